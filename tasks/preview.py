"""What would become of a mail, and nothing stored: how it would look, which way it would take, and when."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_string, policy
from email.header import decode_header, make_header
from email.message import Message
from typing import Any, cast

from django.conf import settings
from django.utils import timezone

from accounts.addresses import MAGIC_DOMAIN
from accounts.models import SmtpAccount, User
from accounts.relays import address_of
from tasks import submission
from tasks.models import MailTask
from tasks.states import CancelReason, Status
from tasks.suppressions import Suppression
from tasks.waiting import Waiting, explain

_FOLD = re.compile(r"\r?\n(?=[ \t])")


@dataclass(frozen=True, slots=True)
class Preview:
    task: MailTask
    raw: bytes
    account: SmtpAccount
    waiting: Waiting | None


def preview(owner: User, mail: submission.NewMail) -> Preview:
    """As `submission.submit` would have it, were it called now."""
    task, raw = submission.compose(owner, mail)
    if Suppression.objects.owned_by(owner).of(task.recipient).exists():
        task.status, task.cancel_reason = Status.CANCELLED, CancelReason.SUPPRESSED
    account = SmtpAccount.objects.get(owner=owner)
    return Preview(task, raw, account, explain(task, account, timezone.now()))


def describe(seen: Preview) -> dict[str, Any]:
    """The mail, its route and its plan, as the API shows them. No secrets: neither a password nor who logs in."""
    source = seen.raw.decode()
    # Not by policy.default, whose readers of addresses and dates stumble over what a user's own header may hold.
    message = message_from_string(source, policy=policy.compat32)
    return {
        "mail": {
            "headers": [{"name": name, "value": _decoded(value)} for name, value in message.items()],
            "parts": list(_parts(message)),
            "source": source,
        },
        "route": _route(seen),
        "plan": {
            "status": seen.task.status,
            "cancel_reason": seen.task.cancel_reason,
            "due_at": seen.task.due_at,
            "expires_at": seen.task.expires_at,
            "lane": seen.task.lane,
            "max_tries": seen.task.max_tries,
            "retry_after_seconds": _waits(seen.task.max_tries),
            "on_uncertain": seen.task.on_uncertain,
            "waiting": seen.waiting,
        },
    }


def _decoded(value: str) -> str:
    """A header's value unfolded, its encoded words as text (RFC 2047)."""
    return str(make_header(decode_header(_FOLD.sub("", value))))


def _parts(message: Message) -> Iterator[dict[str, Any]]:
    """Text as people will read it; of files only what they are."""
    for part in message.walk():
        if part.is_multipart():
            continue
        is_text = part.get_content_maintype() == "text" and part.get_content_disposition() is None
        content = cast(bytes, part.get_payload(decode=True))
        yield {
            "content_type": part.get_content_type(),
            "filename": part.get_filename(),
            "size": len(content),
            "text": content.decode() if is_text else None,
        }


def _route(seen: Preview) -> dict[str, Any]:
    if seen.task.recipient.rpartition("@")[2].lower() == MAGIC_DOMAIN:
        return {"relay": "none", "host": None, "port": None, "security": None}
    if seen.account.uses_default_relay:
        host, port, security = address_of(settings.DEFAULT_SMTP_URL)
        return {"relay": "default", "host": host, "port": port, "security": security}
    account = seen.account
    return {"relay": "own", "host": account.host, "port": account.port, "security": account.security}


def _waits(max_tries: int) -> list[int]:
    """Seconds before the second try, the third and so on; the last of the schedule repeats."""
    schedule = settings.MAIL_RETRY_SCHEDULE
    return [int(schedule[min(number, len(schedule) - 1)]) for number in range(max_tries - 1)]
