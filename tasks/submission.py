"""What people do with mails: submit, cancel, retry, resolve. Ledger first, bell after the commit."""

import select
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from django.conf import settings
from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import Max
from django.utils import timezone
from structlog.contextvars import get_contextvars

from accounts.addresses import wire_address
from accounts.models import User
from tasks import doorbell, ledger, message
from tasks.models import MailTask, MailTaskQuerySet
from tasks.states import CancelReason, Lane, OnUncertain, Status
from tasks.suppressions import Suppression

#: Mails changed in one transaction of a deed in bulk, and how long (seconds) one call may go on.
BITE, BULK_SECONDS = 1_000, 10.0


class NewMail(NamedTuple):
    """One mail as it was asked for, its values checked by the serializer. Times are aware; `max_tries` None means
    the service's; `reply_to` is name and address."""

    recipient: str
    subject: str
    text: str
    html: str = ""
    scheduled_at: datetime | None = None
    expires_at: datetime | None = None
    max_tries: int | None = None
    lane: Lane = Lane.DEFAULT
    on_uncertain: OnUncertain = OnUncertain.RETRY
    from_name: str = ""
    reply_to: tuple[str, str] | None = None
    headers: Mapping[str, str] = MappingProxyType({})
    attachments: tuple[message.Attachment, ...] = ()
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = MappingProxyType({})
    #: Name and version of the template that it was made from.
    template: tuple[str, int] | None = None

    def details(self) -> dict[str, Any]:
        """What the API shows again, as far as given."""
        if not (
            self.from_name
            or self.reply_to
            or self.headers
            or self.attachments
            or self.metadata
            or self.template
        ):
            return {}
        given = {
            "from_name": self.from_name,
            "reply_to": self.reply_to and shown_mailbox(*self.reply_to),
            "headers": self.headers,
            "attachments": [
                {"filename": one.filename, "content_type": one.content_type, "size": len(one.content)}
                for one in self.attachments
            ],
            "metadata": self.metadata,
            "template": self.template and {"name": self.template[0], "version": self.template[1]},
        }
        return {name: value for name, value in given.items() if value}


def shown_mailbox(name: str, address: str) -> str:
    return f"{name} <{address}>" if name else address


class AccountClosedError(Exception):
    """The owner's account was closed while its token was still taken."""


def submit(owner: User, mail: NewMail, *, secret: str = "") -> MailTask:
    """Keeps the mail and rings. When this returns, or the transaction of a caller who has begun one is committed, the
    mail will be sent, unless its recipient is suppressed: then it is cancelled by now, and nobody is woken.

    A `secret` is for the recipient's eyes alone: the mail is sent with it, serves once (see OneTime), and is listed
    with a subject in which it cannot be read."""
    _drop_cut_connection()
    if not (task := _enter(owner, mail, owner.smtp.from_email, secret)):
        # Either the account is closed, or its address has changed in the seconds since the caller was looked up.
        task = _enter(owner, mail, _from_email(owner), secret)
    if not task:
        raise AccountClosedError
    if task.status == Status.QUEUED:
        transaction.on_commit(doorbell.ring)
    return task


def _enter(owner: User, mail: NewMail, from_email: str, secret: str) -> MailTask | None:
    """The task, or None if nothing was stored: the owner's account is closed, or sends from another address."""
    task, raw = _compose(owner, mail, from_email)
    if secret:
        task.subject = task.subject.replace(secret, "•" * len(secret))
    is_stored = ledger.enter(
        task,
        raw,
        from_email=from_email,
        tags=mail.tags,
        details=mail.details(),
        is_one_time=bool(secret),
        request_id=_request_id(),
    )
    return task if is_stored else None


def _drop_cut_connection() -> None:
    """Before the statement that must not be sent twice, as it might be if its answer were lost: what a restart of
    PostgreSQL has cut says so, and is replaced. Asking (SELECT 1) each time would be a fifth of the whole call."""
    kept = connection.connection
    if kept is None or connection.in_atomic_block:
        return
    connection.health_check_done = True  # type: ignore[attr-defined]
    heard = select.poll()
    heard.register(kept.fileno(), select.POLLIN)
    if heard.poll(0) and not connection.is_usable():
        connection.close()


def submit_many(owner: User, mails: Sequence[NewMail]) -> list[tuple[int, Status]]:
    """Keeps them all in one statement, and rings once; id and status of each, in order."""
    if not mails:
        return []
    now, sender = timezone.now(), wire_address(_from_email(owner))
    entries = [_entry(mail, sender, now) for mail in mails]
    kept = ledger.enter_many(owner.pk, sender, now, entries, _request_id())
    if not kept:
        raise AccountClosedError
    if any(status == Status.QUEUED for _, status in kept):
        transaction.on_commit(doorbell.ring)
    return kept


def _request_id() -> str:
    """Of the call that is being answered; it goes with the mail into the log of its attempts."""
    return str(get_contextvars().get("request_id", ""))


def compose(owner: User, mail: NewMail) -> tuple[MailTask, bytes]:
    """The row and the bytes that `submit` would keep."""
    return _compose(owner, mail, _from_email(owner))


def _from_email(owner: User) -> str:
    """The account's address as it is now. As a query that may be sent twice it also tells whether the kept
    connection is alive."""
    connection.health_check_done = True  # type: ignore[attr-defined]
    try:
        return _read_from_email(owner)
    except (OperationalError, InterfaceError):
        if connection.in_atomic_block:
            raise
        connection.close()
        return _read_from_email(owner)


def _read_from_email(owner: User) -> str:
    with connection.cursor() as cursor:
        # Through the ORM it takes three times as long: most of the call's query would be the making of it.
        cursor.execute("SELECT from_email FROM accounts_smtpaccount WHERE owner_id = %s", [owner.pk])
        return str(cursor.fetchone()[0])


def _compose(owner: User, mail: NewMail, from_email: str) -> tuple[MailTask, bytes]:
    """The row and the mail's bytes, nothing stored yet."""
    now, sender = timezone.now(), wire_address(from_email)
    entry = _entry(mail, sender, now)
    task = MailTask(
        owner=owner,
        status=entry.status,
        lane=entry.lane,
        max_tries=entry.max_tries,
        on_uncertain=entry.on_uncertain,
        created_at=now,
        moved_at=now,
        due_at=max(entry.scheduled_at or now, now),
        scheduled_at=entry.scheduled_at,
        expires_at=entry.expires_at,
        sender=sender,
        recipient=entry.recipient,
        subject=entry.subject,
        message_id=entry.message_id,
    )
    return task, entry.raw


def _entry(mail: NewMail, sender: str, now: datetime) -> ledger.Entry:
    is_for_later = mail.scheduled_at is not None and mail.scheduled_at > now
    recipient, message_id = wire_address(mail.recipient), message.new_message_id(sender)
    raw = message.build(
        sender=sender,
        recipient=recipient,
        subject=mail.subject,
        text=mail.text,
        html=mail.html,
        message_id=message_id,
        date=now,
        from_name=mail.from_name,
        reply_to=mail.reply_to,
        own_headers=mail.headers,
        attachments=mail.attachments,
    )
    return ledger.Entry(
        status=Status.SCHEDULED if is_for_later else Status.QUEUED,
        lane=mail.lane,
        max_tries=mail.max_tries or settings.MAIL_MAX_TRIES,
        on_uncertain=mail.on_uncertain,
        scheduled_at=mail.scheduled_at,
        expires_at=mail.expires_at,
        recipient=recipient,
        subject=mail.subject,
        message_id=message_id,
        raw=raw,
        tags=mail.tags,
        details=mail.details(),
    )


def cancel(tasks: MailTaskQuerySet) -> int:
    """Cancels those that still wait; the number of them. What a worker holds is left alone."""
    return ledger.cancel(tasks, CancelReason.USER)


def retry(tasks: MailTaskQuerySet) -> int:
    """Sends those again that failed, were cancelled or are uncertain, with a fresh count, but to nobody who is
    suppressed; the number of them."""
    changed = ledger.requeue(tasks)
    if changed:
        transaction.on_commit(doorbell.ring)
    return changed


def reschedule(tasks: MailTaskQuerySet, scheduled_at: datetime) -> int:
    """Gives those that are scheduled another time; the number of them. What would expire first is left as it is."""
    changed = ledger.reschedule(tasks, scheduled_at)
    if changed and scheduled_at <= timezone.now():
        transaction.on_commit(doorbell.ring)
    return changed


class Bulk(NamedTuple):
    """What a deed in bulk has found and changed; `complete` is False where time was over before all was seen."""

    matched: int
    changed: int
    complete: bool


def in_bulk(tasks: MailTaskQuerySet, verb: Callable[[MailTaskQuerySet], int] | None) -> Bulk:
    """Does it to all of them, in bites, each a transaction of its own; without a verb they are only counted.

    What is submitted meanwhile is not touched. Ends after BULK_SECONDS, for somebody waits for the answer.
    """
    end = time.monotonic() + BULK_SECONDS
    newest = MailTask.objects.aggregate(newest=Max("id"))["newest"] or 0
    last = matched = changed = 0
    while True:
        bite = tasks.filter(id__gt=last, id__lte=newest).order_by("id")
        ids = list(bite.values_list("id", flat=True)[:BITE])
        if ids and verb:
            # The filter once more: what has changed since is judged anew.
            changed += verb(tasks.filter(id__in=ids))
        matched += len(ids)
        if len(ids) < BITE:
            return Bulk(matched, changed, complete=True)
        if time.monotonic() > end:
            return Bulk(matched, changed, complete=False)
        last = ids[-1]


def suppress(owner: User, address: str) -> tuple[Suppression, bool]:
    """Puts an address, in its wire form, on the owner's list, and cancels what waits for it; the entry, and False if
    it was there before. What is found only beyond the index, by another case, ends when it is claimed."""
    found, is_new = Suppression.objects.add(owner, address)
    waiting = MailTask.objects.owned_by(owner).waiting()
    ledger.cancel(waiting.filter(recipient__in={address, found.address}), CancelReason.SUPPRESSED)
    return found, is_new


def accept(tasks: MailTaskQuerySet) -> int:
    """A person knows, or does not mind: takes those that are uncertain as sent; the number of them."""
    return ledger.accept(tasks)


def send_again(tasks: MailTaskQuerySet) -> int:
    """Sends those again that are uncertain, and no others, with a fresh count; the number of them."""
    return retry(tasks.filter(status=Status.UNCERTAIN))


def cancel_what_waits(user: User, **_signal: Any) -> None:
    """Receiver of accounts.models.account_closed, inside its transaction."""
    ledger.cancel(MailTask.objects.owned_by(user), CancelReason.ACCOUNT_CLOSED)
