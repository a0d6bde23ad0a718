"""Times that do not go together."""

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Warning  # noqa: A004 -- Django's name for it

#: Seconds. What a lost machine held waits for its lease, and what fell through every other net for the sweep.
LONGEST_LEASE, LONGEST_SWEEP = 900, 3600
#: Younger mails (seconds) have merely waited for their turn.
SHORTEST_SWEEP_AFTER = 30


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


def lease_ends(**_: Any) -> list[CheckMessage]:
    if settings.MAIL_LEASE_SECONDS <= LONGEST_LEASE:
        return []
    return [
        Warning(
            f"MAIL_LEASE_SECONDS is {settings.MAIL_LEASE_SECONDS}: so long wait the mails of a machine that is lost.",
            hint=f"A running worker renews its leases. Set it to {LONGEST_LEASE} at most; 120 is the default.",
            id="mailqueue.W002",
        )
    ]


def sweep_is_a_net(**_: Any) -> list[CheckMessage]:
    every, after = settings.SWEEP_INTERVAL_SECONDS, settings.SWEEP_AFTER_SECONDS
    if max(every, after) <= LONGEST_SWEEP and after >= SHORTEST_SWEEP_AFTER:
        return []
    return [
        Warning(
            f"The sweep runs every {every} s for what has been due for {after} s (SWEEP_INTERVAL_SECONDS,"
            " SWEEP_AFTER_SECONDS).",
            hint=f"More than {LONGEST_SWEEP} is late for the last net, and less than {SHORTEST_SWEEP_AFTER} counts"
            " mail as forgotten that only waits for its turn. 300 and 300 are the defaults.",
            id="mailqueue.W003",
        )
    ]


ALL = (lease_outlasts_deadlines, lease_ends, sweep_is_a_net)
