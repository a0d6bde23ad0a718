"""What happens to mails and accounts, in order, for those who want to hear of it: live streams and webhooks.

The statements that move a mail write a row here, in the same transaction, and only for owners whom somebody listens
to: who never asked does not pay. What is read here is committed, and nothing ever appears before what was read.
"""

import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db import connection, models
from django.db.models.functions import Now

from accounts.models import AccountChange, AccountEvent, AccountState, User
from tasks.states import CancelReason, Outcome, Status

#: How long an event can be read, and how many are let go at a time.
KEPT, BITE = timedelta(days=3), 10_000
#: Seconds: what a reader waits for writers, and between two looks. A writer takes milliseconds.
PATIENCE, _A_MOMENT = 0.5, 0.005

NAMES = (
    "task.queued",
    "task.sent",
    "task.deferred",
    "task.failed",
    "task.cancelled",
    "task.uncertain",
    "account.paused",
    "account.resumed",
)
_GAVE_UP = (CancelReason.EXHAUSTED, CancelReason.REJECTED)
_UNKNOWN = (Outcome.UNCERTAIN, Outcome.LOST)


class Listener(models.Model):
    """An owner whose events are written."""

    owner = models.OneToOneField(
        User, on_delete=models.CASCADE, primary_key=True, related_name="+", db_constraint=False
    )
    #: None: for ever.
    until = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"until {self.until}"


class EventRow(models.Model):
    """One event as it is kept. Written by tasks/statements.py and `tell`, read by `after`."""

    id = models.BigAutoField(primary_key=True)
    owner = models.ForeignKey(
        User, on_delete=models.CASCADE, related_name="+", db_index=False, db_constraint=False
    )
    task_id = models.BigIntegerField(null=True)
    at = models.DateTimeField()
    #: Of a task's event, where it was moved to, and by what outcome of an attempt.
    status = models.SmallIntegerField(null=True)
    cancel_reason = models.SmallIntegerField(null=True)
    outcome = models.SmallIntegerField(null=True)
    try_count = models.SmallIntegerField(null=True)
    #: The relay's reply code (RFC 5321), if it gave one.
    code = models.SmallIntegerField(null=True)
    #: What the relay said, or why the account was paused or resumed.
    reply = models.CharField(max_length=500, default="")
    #: The next attempt, or the end of the account's pause.
    until = models.DateTimeField(null=True)
    #: Of an account's event: what happened to it.
    account = models.CharField(max_length=10, db_default="")
    #: And the state that it then had, as GET /user/{id} shows it; empty where an older release wrote it.
    account_state = models.CharField(max_length=10, db_default="")

    class Meta:
        db_table = "tasks_event"
        # An owner's events after a position.
        indexes = [models.Index("owner", "id", name="event_of_owner")]

    def __str__(self) -> str:
        return f"event {self.pk}"


class Event(NamedTuple):
    """What has happened; `data` is plain JSON."""

    #: Its place in the order of all; what is asked for next comes `after` it.
    position: int
    owner_id: int
    task_id: int | None
    name: str
    at: datetime
    data: dict[str, Any]


def listen(owner_id: int, seconds: float | None = None) -> bool:
    """From its commit on this owner's events are written, for so long at least; for ever without `seconds`. Whether
    nobody has listened until now: a statement that began before may still move a mail without a word."""
    with connection.cursor() as cursor:
        cursor.execute(_LISTEN, {"owner_id": owner_id, "seconds": seconds})
        (was_listening,) = cursor.fetchone()
    return not was_listening


_LISTEN = """
WITH before AS (
    SELECT EXISTS (
        SELECT 1 FROM tasks_listener WHERE owner_id = %(owner_id)s AND (until IS NULL OR until > now())) AS heard
)
INSERT INTO tasks_listener AS listener (owner_id, until)
SELECT %(owner_id)s, now() + make_interval(secs => %(seconds)s::float8) FROM before
ON CONFLICT (owner_id) DO UPDATE SET until = CASE WHEN listener.until IS NOT NULL
    THEN CASE WHEN excluded.until IS NOT NULL THEN greatest(listener.until, excluded.until) END END
RETURNING (SELECT heard FROM before)
"""


def unlisten(owner_id: int, seconds: float = 3600) -> None:
    """Ends a `listen` without end, after so many seconds: streams may still be open."""
    Listener.objects.filter(owner_id=owner_id, until=None).update(until=Now() + timedelta(seconds=seconds))


class UnsettledError(Exception):
    """A transaction that tells of events has been open for too long to wait for it."""


def latest(patience: float = 5.0) -> int:
    """The position up to which everything has been told: what is not yet in the rows comes `after` it. Waits, so many
    seconds at most, for transactions that have begun to tell; UnsettledError."""
    with connection.cursor() as cursor:
        return _settled(cursor, patience)


def after(position: int, limit: int, owner_ids: Iterable[int] | None = None) -> list[Event]:
    """The next of these owners, or of all; nothing for now while a transaction that has begun to tell stays open."""
    owners = None if owner_ids is None else list(owner_ids)
    with connection.cursor() as cursor:
        try:
            end = _settled(cursor, PATIENCE)
        except UnsettledError:
            return []
        parameters = {"position": position, "end": end, "owners": owners, "limit": limit}
        cursor.execute(_AFTER if owners is None else _AFTER_OF, parameters)
        return [_event(row) for row in cursor.fetchall()]


def _settled(cursor: Any, patience: float) -> int:
    """Rows become visible when their transaction commits, which is not the order of their ids: read at once, one that
    appears late would be passed by. A transaction that has drawn an id holds a lock on the table until its end, so
    when those that held one after the newest id was known have let go, all up to that id is there to be read.
    """
    cursor.execute("SELECT last_value, is_called FROM tasks_event_id_seq")
    newest, is_called = cursor.fetchone()
    end = time.monotonic() + patience
    cursor.execute(_TELLING)
    while telling := [transaction for (transaction,) in cursor.fetchall()]:
        if time.monotonic() > end:
            raise UnsettledError
        time.sleep(_A_MOMENT)
        cursor.execute(f"{_TELLING} AND virtualtransaction = ANY(%s)", [telling])
    return newest if is_called else 0


_TELLING = """
SELECT virtualtransaction FROM pg_locks
WHERE locktype = 'relation' AND relation = 'tasks_event'::regclass AND mode = 'RowExclusiveLock' AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND pid <> pg_backend_pid()
"""
_READ = """
SELECT e.id, e.owner_id, e.task_id, e.at, e.status, e.cancel_reason, e.outcome, e.try_count, e.code, e.reply, e.until,
       e.account, e.account_state, t.max_tries, t.recipient, t.message_id
FROM tasks_event e LEFT JOIN tasks_mailtask t ON t.id = e.task_id
WHERE e.id > %(position)s AND e.id <= %(end)s
"""
_AFTER = f"{_READ} ORDER BY e.id LIMIT %(limit)s"
_AFTER_OF = f"{_READ} AND e.owner_id = ANY(%(owners)s::bigint[]) ORDER BY e.id LIMIT %(limit)s"


def tell(owner_id: int, what: AccountChange, reason: str, until: datetime | None, state: str = "") -> None:
    """Something has happened to an account, which left it in this state; in the caller's transaction."""
    with connection.cursor() as cursor:
        cursor.execute(
            _TELL,
            {"owner_id": owner_id, "what": str(what), "reason": reason, "until": until, "state": str(state)},
        )


_TELL = """
INSERT INTO tasks_event (owner_id, at, reply, until, account, account_state)
SELECT owner_id, now(), %(reason)s, %(until)s, %(what)s, %(state)s FROM tasks_listener
WHERE owner_id = %(owner_id)s AND (until IS NULL OR until > now())
"""


def tell_of_account(instance: AccountEvent, created: bool, **_signal: Any) -> None:
    """Receiver of Django's post_save, inside its transaction."""
    if created:
        what, state = AccountChange(instance.what), instance.account.state
        tell(instance.account_id, what, instance.reason, instance.until, state)


def prune() -> int:
    """Lets go of what is older than KEPT, and of those nobody has listened to for so long; how many events."""
    Listener.objects.filter(until__lt=Now() - KEPT).delete()
    total = 0
    with connection.cursor() as cursor:
        while True:
            cursor.execute(_PRUNE, {"days": KEPT.days, "bite": BITE})
            gone: int = cursor.rowcount
            total += gone
            if gone < BITE:
                return total


# From the oldest on, and no further than the first that is young.
_PRUNE = """
DELETE FROM tasks_event e USING (SELECT id, at FROM tasks_event ORDER BY id LIMIT %(bite)s) oldest
WHERE e.id = oldest.id AND oldest.at < now() - make_interval(days => %(days)s)
"""


def name_of(status: Status, cancel_reason: int | None, outcome: int | None = None) -> str:
    """What an event is called that has moved a task there."""
    if status == Status.CANCELLED:
        return "task.failed" if cancel_reason in _GAVE_UP else "task.cancelled"
    if status == Status.SUCCESS:
        return "task.sent"
    if status == Status.UNCERTAIN or outcome in _UNKNOWN:
        return "task.uncertain"
    return "task.deferred" if status == Status.FAILED or outcome is not None else "task.queued"


def task_data(
    *,
    task_id: int | None,
    status: int,
    try_count: int,
    max_tries: int | None,
    cancel_reason: int | None,
    outcome: int | None,
    code: int | None,
    reply: str,
    until: datetime | None,
    recipient: str | None,
    message_id: str | None,
    at: datetime,
) -> dict[str, Any]:
    """What is told of a task. What is stored on the task alone is None once that is gone."""
    return {
        "task_id": task_id,
        "status": Status(status).label,
        "try_count": try_count,
        "max_tries": max_tries,
        "cancel_reason": None if cancel_reason is None else CancelReason(cancel_reason).label,
        "outcome": None if outcome is None else Outcome(outcome).label,
        "code": code,
        "reply": reply,
        "next_attempt_at": _said(until),
        "recipient_email": recipient,
        "message_id": message_id,
        "at": _said(at),
    }


def _event(row: Sequence[Any]) -> Event:
    (
        position,
        owner_id,
        task_id,
        at,
        status,
        cancel_reason,
        outcome,
        try_count,
        code,
        reply,
        until,
        account,
        account_state,
    ) = row[:13]
    if account:
        data = {
            "state": _state(account, account_state),
            "reason": reply,
            "until": _said(until),
            "at": _said(at),
        }
        return Event(position, owner_id, None, f"account.{account}", at, data)
    max_tries, recipient, message_id = row[13:]
    data = task_data(
        task_id=task_id,
        status=status,
        try_count=try_count,
        max_tries=max_tries,
        cancel_reason=cancel_reason,
        outcome=outcome,
        code=code,
        reply=reply,
        until=until,
        recipient=recipient,
        message_id=message_id,
        at=at,
    )
    return Event(position, owner_id, task_id, name_of(Status(status), cancel_reason, outcome), at, data)


def _state(what: str, state: str) -> str:
    """`paused` whenever mail waits, though settings that were never proven may stay unverified meanwhile."""
    return AccountState.PAUSED if what == AccountChange.PAUSED else state or AccountState.ACTIVE


def _said(at: datetime | None) -> str | None:
    """As DRF says it."""
    return None if at is None else at.isoformat().replace("+00:00", "Z")
