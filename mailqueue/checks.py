"""What an operator can get wrong in a way that starts well and goes wrong later."""

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Warning  # noqa: A004 -- Django's name for it


def one_click_is_https(**_: Any) -> list[CheckMessage]:
    """RFC 8058, section 3.1: the address must be https, or mail programs show no button."""
    if not settings.PUBLIC_URL.startswith("http:"):
        return []
    return [
        Warning(
            f"PUBLIC_URL is {settings.PUBLIC_URL}.",
            hint="Mail programs show a button to unsubscribe for an https address only.",
            id="mailqueue.W002",
        )
    ]


def lease_outlasts_deadlines(**_: Any) -> list[CheckMessage]:
    """A worker renews its leases whenever a third of one has passed, so two thirds is what is left at worst when
    the database goes away; a transaction is cut off where the lease ends that it began with. A relay that may be
    silent for longer could have taken the mail by then, and it would go twice."""
    from mailqueue.delivery.smtp import DEADLINES  # noqa: PLC0415 -- the web has no use for it

    left, longest = settings.MAIL_LEASE_SECONDS * 2 / 3, max(DEADLINES.values())
    if left > longest:
        return []
    return [
        Warning(
            f"MAIL_LEASE_SECONDS is {settings.MAIL_LEASE_SECONDS}, and a relay may be silent for {longest:.0f} s.",
            hint=f"Mails may go twice when the database is away. Set it to more than {longest * 3 / 2:.0f}.",
            id="mailqueue.W001",
        )
    ]
