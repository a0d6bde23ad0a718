"""The one door through which a task's state changes. Every statement names the old state in its WHERE,
and everything a worker writes carries its claim token; who changed no row has lost the race and is told so.

Times are the database's: the clocks of workers may differ. No transaction here is open while SMTP talks.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import psycopg
from django.core.exceptions import EmptyResultSet
from django.db import OperationalError, connection, transaction

from tasks import counters, prepared, statements
from tasks.models import MailContent, MailTask, MailTaskQuerySet
from tasks.states import TRANSITIONS, CancelReason, Lane, OnUncertain, Outcome, Phase, PutOff, Status

#: A claim gives each lane this share of a group when all lanes have mail; what one leaves, others take.
LANE_WEIGHTS = {Lane.OTP: 8, Lane.DEFAULT: 4, Lane.BULK: 1}
#: Owners looked at in one claim; the next claim goes on after the last of them.
OWNERS_A_TURN = 64
#: A mail whose worker died this often is put off, a minute longer each time: it may be what kills them.
DEATHS_BEFORE_DELAY = 3


class Claimed(NamedTuple):
    """A mail in a worker's hand, until its lease ends."""

    token: uuid.UUID
    id: int
    owner_id: int
    lane: int
    try_count: int
    max_tries: int
    lost_count: int
    on_uncertain: int
    expires_at: datetime | None
    sender: str
    recipient: str
    #: None where it is larger than LARGEST_AT_ONCE: `content` reads it when its turn comes.
    raw: bytes | None = None
    #: Of the call that handed it over.
    request_id: str = ""
    #: Its recipient has come on the owner's list of suppressions since it was accepted.
    is_suppressed: bool = False


class Settlement(NamedTuple):
    """What a worker writes about a claimed mail. `wait` is in seconds from now; None keeps `due_at`.

    Without `outcome` no attempt is noted; with `give_back` the try is not used up; `is_lost` counts a worker's death;
    `suppress` puts the recipient on the owner's list of suppressions.
    """

    id: int
    token: uuid.UUID
    status: Status
    wait: float | None = None
    cancel_reason: CancelReason | None = None
    give_back: bool = False
    is_lost: bool = False
    outcome: Outcome | None = None
    phase: Phase | None = None
    code: int | None = None
    reply: str = ""
    duration_ms: int = 0
    put_off: PutOff | None = None
    suppress: bool = False


def enter(
    task: MailTask,
    raw: bytes,
    *,
    from_email: str,
    tags: Sequence[str] = (),
    details: Mapping[str, Any] | None = None,
    is_one_time: bool = False,
    request_id: str = "",
) -> bool:
    """Writes a new task and its content, and gives it its id. False if the owner's account is closed, or does not
    send from `from_email`.

    To somebody on the owner's list of suppressions it is cancelled from the beginning."""
    parameters = {
        **vars(task),
        "raw": raw,
        "from_email": from_email,
        "tags": list(tags),
        "details": json.dumps(details) if details else None,
        "request_id": request_id,
    }
    statement = statements.ENTER_TAGGED if tags else statements.ENTER
    rows = prepared.rows(statements.ENTER_ONE_TIME if is_one_time else statement, parameters)
    for task_id, is_suppressed in rows:
        task.pk = task_id
        if is_suppressed:
            task.status, task.cancel_reason = Status.CANCELLED, CancelReason.SUPPRESSED
            task.has_failed, task.finished_at = True, task.created_at
    return bool(rows)


class Entry(NamedTuple):
    """A new mail of a batch, nothing of it stored yet; `details` as for `enter`."""

    status: Status
    lane: int
    max_tries: int
    on_uncertain: int
    scheduled_at: datetime | None
    expires_at: datetime | None
    recipient: str
    subject: str
    message_id: str
    raw: bytes
    tags: Sequence[str]
    details: Mapping[str, Any]


def enter_many(
    owner_id: int, sender: str, created_at: datetime, mails: Sequence[Entry], request_id: str = ""
) -> list[tuple[int, Status]]:
    """Writes new tasks of one owner in one statement; their ids and states, in order: cancelled where the recipient
    is on the owner's list of suppressions. None at all if the account is closed."""
    tags = [(mail, at, tag) for mail, one in enumerate(mails, 1) for at, tag in enumerate(one.tags, 1)]
    parameters = {
        "owner_id": owner_id,
        "sender": sender,
        "created_at": created_at,
        "request_id": request_id,
        "statuses": _array([one.status for one in mails]),
        "lanes": _array([one.lane for one in mails]),
        "max_tries": _array([one.max_tries for one in mails]),
        "on_uncertain": _array([one.on_uncertain for one in mails]),
        "scheduled": _times([one.scheduled_at for one in mails]),
        "expire": _times([one.expires_at for one in mails]),
        "recipients": [one.recipient for one in mails],
        "subjects": [one.subject for one in mails],
        "message_ids": [one.message_id for one in mails],
        "raws": [one.raw for one in mails],
        "details": [json.dumps(one.details) if one.details else None for one in mails],
        "tag_places": _array([mail for mail, _, _ in tags]),
        "tag_positions": _array([at for _, at, _ in tags]),
        "tags": [tag for _, _, tag in tags],
    }
    rows = prepared.rows(statements.ENTER_MANY_TAGGED if tags else statements.ENTER_MANY, parameters)
    return [
        (task_id, Status.CANCELLED if is_suppressed else mail.status)
        for (task_id, is_suppressed), mail in zip(rows, mails, strict=False)
    ]


def claim(
    limit: int,
    lease_seconds: float,
    *,
    token: uuid.UUID,
    room: int,
    rooms: Mapping[int, tuple[int, int]] | None = None,
    after: int = 0,
) -> list[Claimed]:
    """At most `limit` due mails, by lane weight and in turns between owners, committed before it returns.

    They are held under `token`, which must be new unless it was used for claims that found nothing. `room` is how
    many of one owner's mails the caller will hold; `rooms` the same for owners it already holds mail of, and how many
    one-time passwords if those are more. Owners are looked at from the one after `after` on. Urgent lanes come first.
    """
    total = sum(LANE_WEIGHTS.values())
    quotas = {lane: max(1, limit * weight // total) for lane, weight in LANE_WEIGHTS.items()}
    parameters = _turns(quotas, room, rooms or {}, after, OWNERS_A_TURN)
    rows = prepared.rows(
        statements.CLAIM, parameters | {"limit": limit, "lease": lease_seconds, "token": token}
    )
    return [Claimed._make((token, *row)) for row in rows]


def is_anything_due() -> bool:
    """Whether a claim would find something; as cheap as the claim's first step."""
    rows = prepared.rows(statements.IS_ANYTHING_DUE, _turns(dict.fromkeys(Lane, 1), 1, {}, after=0, turns=1))
    return bool(rows[0][0])


def _turns(
    quotas: Mapping[Lane, int], room: int, rooms: Mapping[int, tuple[int, int]], after: int, turns: int
) -> dict[str, Any]:
    return {
        "lanes": [int(lane) for lane in quotas],
        "quotas": list(quotas.values()),
        "room": room,
        "owners": list(rooms.keys()),
        "rooms": [room for room, _ in rooms.values()],
        "urgent_rooms": [max(both) for both in rooms.values()],
        "after": after,
        "turns": turns,
    }


def settle(settlements: Sequence[Settlement], worker: str) -> set[int]:
    """Writes results and attempts in one statement; the ids that were still ours. The rest came too late."""
    for one in settlements:
        if one.status not in TRANSITIONS[Status.PROCESSING]:
            raise ValueError(f"A mail in process cannot become {one.status.label}.")
    suppressed = [one.id for one in settlements if one.suppress]
    rows = prepared.rows(
        statements.SETTLE_LISTING if suppressed else statements.SETTLE,
        {
            "worker": worker,
            "suppressed": _array(suppressed),
            "ids": _array([one.id for one in settlements]),
            "tokens": f"{{{','.join([one.token.hex for one in settlements])}}}",
            "statuses": _array([one.status for one in settlements]),
            "returned": _array([one.give_back for one in settlements]),
            "lost": _array([one.is_lost for one in settlements]),
            "waits": [one.wait for one in settlements],
            "reasons": _array([one.cancel_reason for one in settlements]),
            "outcomes": _array([one.outcome for one in settlements]),
            "phases": _array([one.phase for one in settlements]),
            "codes": _array([one.code for one in settlements]),
            "replies": [one.reply for one in settlements],
            "durations": _array([one.duration_ms for one in settlements]),
            "puts_off": _array([one.put_off for one in settlements]),
        },
    )
    if len(rows) < len(settlements):
        counters.add("late_results", len(settlements) - len(rows))
    return {row[0] for row in rows}


def _array(numbers: Sequence[int | None]) -> str:
    """As PostgreSQL writes it. psycopg would look at each number several times to find the type they share."""
    return f"{{{','.join(['NULL' if one is None else f'{one:d}' for one in numbers])}}}"


def _times(times: Sequence[datetime | None]) -> str:
    return f"{{{','.join(['NULL' if one is None else one.isoformat() for one in times])}}}"


def renew(tokens: Sequence[uuid.UUID], lease_seconds: float) -> set[uuid.UUID]:
    """Extends leases that are still held; the tokens that hold anything."""
    rows = prepared.rows(statements.RENEW, {"lease": lease_seconds, "tokens": list(tokens)})
    return {row[0] for row in rows}


def held(tokens: Sequence[uuid.UUID]) -> list[Claimed]:
    """The mails that are in process under these claim tokens, without their content."""
    return [Claimed(*row) for row in prepared.rows(statements.HELD, {"tokens": list(tokens)})]


#: What becomes of a mail when its worker died and nobody knows how far it came.
_BY_POLICY = {
    OnUncertain.HOLD: Status.UNCERTAIN,
    OnUncertain.ACCEPT: Status.SUCCESS,
    OnUncertain.RETRY: Status.QUEUED,
}


@transaction.atomic
def rescue(claims: int = 10) -> int:
    """Takes back what dead workers held, so many claims at most; how many mails. Nobody knows how far those came, so
    `on_uncertain` decides; the try is given back, for the relay gave no verdict."""
    lost = [
        Settlement(
            id=pk,
            token=token,
            status=_BY_POLICY[OnUncertain(on_uncertain)],
            wait=_delay(deaths) or 0.0,
            give_back=True,
            is_lost=True,
            outcome=Outcome.LOST,
            reply="The worker died with it in hand.",
        )
        for pk, token, on_uncertain, deaths in prepared.rows(statements.LOST, {"claims": claims})
    ]
    rescued = settle(lost, "") if lost else set()
    prepared.rows(statements.CLEAR)
    return len(rescued)


def put_back(mail: Claimed, why: str) -> Settlement:
    """Unsent for a reason that is not the mail's own: as it was before, the try not used up."""
    status = Status.FAILED if mail.try_count > 1 else Status.QUEUED
    return Settlement(id=mail.id, token=mail.token, status=status, give_back=True, reply=why)


def suppressed(mail: Claimed) -> Settlement:
    """Unsent, for its recipient has come on the list; the try is not used up."""
    return Settlement(
        id=mail.id,
        token=mail.token,
        status=Status.CANCELLED,
        cancel_reason=CancelReason.SUPPRESSED,
        give_back=True,
        reply="The recipient is on the list of suppressions.",
    )


def take_back(mails: Sequence[Claimed], why: str) -> int:
    """Puts back what a dead worker held and had surely not sent; how many. The death is counted: it may be the mail
    that kills them."""
    unsent = [put_back(mail, why)._replace(wait=_delay(mail.lost_count), is_lost=True) for mail in mails]
    return len(settle(unsent, "")) if unsent else 0


def _delay(deaths: int) -> float | None:
    """Seconds; None where the mail need not wait for it."""
    return deaths * 60.0 if deaths >= DEATHS_BEFORE_DELAY else None


def expire(limit: int = 1000) -> int:
    """Cancels what waited beyond its `expires_at`."""
    ids = [row[0] for row in prepared.rows(statements.EXPIRED, {"limit": limit})]
    return cancel(MailTask.objects.filter(id__in=ids), CancelReason.EXPIRED)


def blank(limit: int) -> int:
    """Empties the content of mails that served once and have come to their end; how many."""
    return len(prepared.rows(statements.BLANK, {"limit": limit}))


def forgotten(seconds: float, limit: int) -> int:
    """How many, of `limit` at most, have been due and untouched for so long, though nothing holds them back."""
    parameters = _turns(dict.fromkeys(Lane, 1), 1, {}, after=0, turns=limit)
    return len(prepared.rows(statements.FORGOTTEN, parameters | {"seconds": seconds, "limit": limit}))


#: `due` counts no further; it takes 10 ms.
MOST_DUE = 10_000


def due() -> tuple[int, float]:
    """How many mails could be claimed now, MOST_DUE at most, and since how many seconds the first could. None of
    accounts that are paused or at a limit: no worker could take those."""
    parameters = _turns(dict.fromkeys(Lane, 1), 1, {}, after=0, turns=1)
    ((count, age),) = prepared.rows(statements.DUE, parameters | {"most": MOST_DUE})
    return int(count), max(0.0, float(age or 0.0))


def forget(ids: Sequence[int]) -> int:
    """Deletes what is at its end, for good; how many. What is kept beside them is the caller's."""
    return int(prepared.rows(statements.FORGET, {"ids": list(ids)})[0][0])


def cancel(tasks: MailTaskQuerySet, reason: CancelReason) -> int:
    """Cancels those that wait; how many."""
    return _run_for(statements.CANCEL, tasks, int(reason))


def requeue(tasks: MailTaskQuerySet) -> int:
    """Sends again, now and with a fresh count, what failed, was cancelled or is uncertain, but to nobody on the list
    of suppressions; how many."""
    return _run_for(statements.REQUEUE, tasks)


def reschedule(tasks: MailTaskQuerySet, scheduled_at: datetime) -> int:
    """Gives those that are scheduled another time, unless they would expire first; a past one makes them due. How
    many."""
    return _run_for(statements.RESCHEDULE, tasks, scheduled_at, scheduled_at)


def accept(tasks: MailTaskQuerySet) -> int:
    """Takes those that are uncertain as sent; how many."""
    return _run_for(statements.ACCEPT, tasks)


def next_id() -> int:
    """An id that no mail has, nor will have."""
    return int(prepared.rows(statements.NEXT_ID)[0][0])


def hold(why: str, limit: int) -> int:
    """Makes what is due, `limit` at most, and what is in process uncertain, whoever's it is; how many. After a
    restore, before any worker runs."""
    return int(prepared.rows(statements.HOLD, {"why": why, "limit": limit})[0][0])


class KeyHeldError(Exception):
    """Another transaction holds this idempotency key, and has not come to its end."""


def take_key(owner_id: int, key: str, fingerprint: bytes, kept: timedelta, patience: float) -> bool:
    """Whether the key was free; it is taken when the caller's transaction commits. If not, its row is locked.
    Waits for another transaction that holds it, `patience` seconds at most."""
    parameters = {
        "owner_id": owner_id,
        "key": key,
        "fingerprint": fingerprint,
        "kept": kept,
        "patience": f"{patience * 1000:.0f}ms",
    }
    try:
        return bool(prepared.rows(statements.TAKE_KEY, parameters))
    except OperationalError as error:
        if isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
            raise KeyHeldError from error
        raise


def keep_answer(owner_id: int, key: str, answer: str) -> None:
    """Notes what a taken key was answered."""
    prepared.rows(statements.KEEP_ANSWER, {"owner_id": owner_id, "key": key, "answer": answer})


def content(task_id: int) -> bytes:
    """The mail's bytes; nothing once they have been pruned."""
    return bytes(MailContent.objects.filter(task_id=task_id).values_list("raw", flat=True).first() or b"")


def _run_for(statement: str, tasks: MailTaskQuerySet, *values: Any) -> int:
    """Fills in the query for the tasks' ids; how many rows were changed."""
    try:
        chosen, chosen_by = tasks.order_by().values("id").query.sql_with_params()
    except EmptyResultSet:
        return 0
    with connection.cursor() as cursor:
        cursor.execute(statement.format(chosen=chosen), [*chosen_by, *values])
        changed: int = cursor.rowcount
    return changed
