"""The one door through which a task's state changes. Every statement names the old state in its WHERE,
and everything a worker writes carries its claim token; who changed no row has lost the race and is told so.

Times are the database's: the clocks of workers may differ. No transaction here is open while SMTP talks.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import Case, DateTimeField, DurationField, ExpressionWrapper, F, Value, When
from django.db.models.functions import Now

from tasks.models import Attempt, MailContent, MailTask, MailTaskQuerySet
from tasks.states import (
    TRANSITIONS,
    CancelReason,
    Lane,
    OnUncertain,
    Outcome,
    Phase,
    PutOff,
    Status,
)

#: A claim gives each lane this share of a group when all lanes have mail; what one leaves, others take.
LANE_WEIGHTS = {Lane.OTP: 8, Lane.DEFAULT: 4, Lane.BULK: 1}
#: Mails up to this size (bytes) come with the claim. 200 with 10 MB of attachments each would fill the memory.
LARGEST_AT_ONCE = 65_536
#: Owners looked at in one claim; the next claim goes on after the last of them.
OWNERS_A_TURN = 64
#: A mail whose worker died this often is put off, twice as long each time: it may be what kills them.
DEATHS_BEFORE_DELAY = 3

# One statement, one commit, for one mail: the owner is looked at once more, for a token outlives a closed account
# by some seconds.
_ENTER = """
WITH task AS (
    INSERT INTO tasks_mailtask (owner_id, status, lane, try_count, max_tries, on_uncertain, lost_count, due_at,
        created_at, moved_at, scheduled_at, expires_at, sender, recipient, subject, message_id, last_reply)
    SELECT id, %(status)s, %(lane)s, 0, %(max_tries)s, %(on_uncertain)s, 0, %(due_at)s,
        %(created_at)s, %(created_at)s, %(scheduled_at)s, %(expires_at)s, %(sender)s, %(recipient)s, %(subject)s,
        %(message_id)s, ''
    FROM accounts_user WHERE id = %(owner_id)s AND is_active
    RETURNING id, owner_id
){tagged}
INSERT INTO tasks_mailcontent (task_id, raw, details)
SELECT id, %(raw)s, %(details)s::jsonb FROM task RETURNING task_id
"""
_TAGGED = """,
tagged AS (
    INSERT INTO tasks_tag (task_id, position, owner_id, tag)
    SELECT task.id, tag.position, task.owner_id, tag.tag
    FROM task, unnest(%(tags)s::text[]) WITH ORDINALITY AS tag(tag, position)
)"""
#: Mail without tags does not plan for them.
_ENTER_PLAIN, _ENTER_TAGGED = _ENTER.format(tagged=""), _ENTER.format(tagged=_TAGGED)

_WAITING = f"status IN ({Status.QUEUED:d}, {Status.FAILED:d}, {Status.SCHEDULED:d})"

# Owners that have mail in a lane, found by skipping through the index task_claim from one owner to the
# next (a loose index scan), so a million rows of one owner cost one step. Paused accounts are left out;
# one whose pause is over may send a single probe, and the next when that one has come back.
_TURNS = f"""
WITH RECURSIVE lane(lane, quota) AS (SELECT * FROM unnest(%(lanes)s::smallint[], %(quotas)s::int[])),
step(lane, quota, owner_id) AS (
    SELECT lane.lane, lane.quota, first.owner_id FROM lane CROSS JOIN LATERAL (
        SELECT owner_id FROM tasks_mailtask t
        WHERE {_WAITING} AND t.lane = lane.lane AND owner_id > %(after)s ORDER BY owner_id LIMIT 1) first
    UNION ALL
    SELECT step.lane, step.quota, next.owner_id FROM step CROSS JOIN LATERAL (
        SELECT owner_id FROM tasks_mailtask t
        WHERE {_WAITING} AND t.lane = step.lane AND t.owner_id > step.owner_id ORDER BY owner_id LIMIT 1) next
),
turn AS MATERIALIZED (
    SELECT step.lane, step.quota, step.owner_id, account.paused_until IS NOT NULL AS is_probe,
           CASE WHEN account.paused_until IS NOT NULL THEN 1
                ELSE least(coalesce(held.room, %(room)s), account.per_second, account.per_minute,
                           account.per_hour, account.per_day) END AS room
    FROM step
    JOIN accounts_smtpaccount account ON account.owner_id = step.owner_id
    LEFT JOIN unnest(%(owners)s::bigint[], %(rooms)s::int[]) held(owner_id, room) ON held.owner_id = step.owner_id
    WHERE (account.paused_until IS NULL OR account.paused_until <= now() AND NOT EXISTS (
               SELECT 1 FROM tasks_mailtask t
               WHERE t.status = {Status.PROCESSING:d} AND t.owner_id = step.owner_id))
      AND (account.limited_until IS NULL OR account.limited_until <= now())
      AND coalesce(held.room, %(room)s) > 0
      AND EXISTS (SELECT 1 FROM tasks_mailtask t WHERE {_WAITING} AND t.lane = step.lane
                  AND t.owner_id = step.owner_id AND t.due_at <= now())
    LIMIT %(turns)s
)
"""

_CLAIM = f"""
{_TURNS},
once AS (SELECT *, row_number() OVER (PARTITION BY owner_id ORDER BY lane) AS nth FROM turn),
share AS (
    SELECT *, ceil(quota::numeric / count(*) OVER (PARTITION BY lane))::int AS fair
    FROM once WHERE nth = 1 OR NOT is_probe
),
picked AS MATERIALIZED (
    SELECT mail.id, mail.quota FROM share CROSS JOIN LATERAL (
        SELECT t.id, share.quota FROM tasks_mailtask t
        WHERE {_WAITING} AND t.lane = share.lane AND t.owner_id = share.owner_id AND t.due_at <= now()
          AND (t.expires_at IS NULL OR t.expires_at > now())
        ORDER BY t.due_at LIMIT least(share.room, share.fair) FOR UPDATE OF t SKIP LOCKED) mail
    LIMIT %(limit)s
)
UPDATE tasks_mailtask t
SET status = {Status.PROCESSING:d}, try_count = try_count + 1, claim_token = %(token)s, moved_at = now(),
    started_at = coalesce(started_at, now()), lease_until = now() + make_interval(secs => %(lease)s)
FROM picked WHERE t.id = picked.id
RETURNING t.id, t.owner_id, t.claim_token, t.lane, t.try_count, t.max_tries, t.on_uncertain, t.expires_at,
          t.sender, t.recipient,
          (SELECT raw FROM tasks_mailcontent c WHERE c.task_id = t.id AND octet_length(raw) <= {LARGEST_AT_ONCE})
"""

_SETTLE = f"""
WITH verdict AS (
    SELECT * FROM unnest(%(ids)s::bigint[], %(tokens)s::uuid[], %(statuses)s::smallint[], %(returned)s::smallint[],
        %(waits)s::float8[], %(reasons)s::smallint[], %(outcomes)s::smallint[], %(phases)s::smallint[],
        %(codes)s::smallint[], %(replies)s::text[], %(durations)s::int[], %(puts_off)s::smallint[])
    AS v(id, token, status, returned, wait, reason, outcome, phase, code, reply, duration_ms, put_off)
),
moved AS (
    UPDATE tasks_mailtask t
    SET status = v.status, try_count = t.try_count - v.returned, cancel_reason = v.reason,
        due_at = CASE WHEN v.wait IS NULL THEN t.due_at ELSE now() + make_interval(secs => v.wait) END,
        started_at = CASE WHEN t.try_count > v.returned THEN t.started_at END,
        finished_at = CASE WHEN v.status IN ({Status.SUCCESS:d}, {Status.CANCELLED:d}) THEN now() END,
        last_reply = CASE WHEN v.put_off IS NULL THEN v.reply ELSE t.last_reply END,
        put_off = v.put_off, lease_until = NULL, claim_token = NULL, moved_at = now()
    FROM verdict v WHERE t.id = v.id AND t.claim_token = v.token AND t.status = {Status.PROCESSING:d}
    RETURNING t.id, t.try_count + v.returned AS number, v.outcome, v.phase, v.code, v.reply, v.duration_ms
),
noted AS (
    INSERT INTO tasks_attempt (task_id, number, at, outcome, phase, code, reply, duration_ms, worker)
    SELECT id, number, now() - make_interval(secs => duration_ms / 1000.0), outcome, phase, code, reply,
           duration_ms, %(worker)s
    FROM moved WHERE outcome IS NOT NULL
)
SELECT id FROM moved
"""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A mail in a worker's hand, until its lease ends."""

    id: int
    owner_id: int
    token: uuid.UUID
    lane: int
    try_count: int
    max_tries: int
    on_uncertain: int
    expires_at: datetime | None
    sender: str
    recipient: str
    #: None where it is larger than LARGEST_AT_ONCE: `content` reads it when its turn comes.
    raw: bytes | None


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a worker writes about a claimed mail. `wait` is in seconds from now; None keeps `due_at`.

    Without `outcome` no attempt is noted; with `give_back` the try is not used up.
    """

    id: int
    token: uuid.UUID
    status: Status
    wait: float | None = None
    cancel_reason: CancelReason | None = None
    give_back: bool = False
    outcome: Outcome | None = None
    phase: Phase | None = None
    code: int | None = None
    reply: str = ""
    duration_ms: int = 0
    put_off: PutOff | None = None


def enter(
    task: MailTask, raw: bytes, *, tags: Sequence[str] = (), details: Mapping[str, Any] | None = None
) -> bool:
    """Writes a new task and its content, and gives it its id. False if the owner's account is closed."""
    parameters = {
        **vars(task),
        "raw": raw,
        "tags": list(tags),
        "details": json.dumps(details) if details else None,
    }
    with connection.cursor() as cursor:
        cursor.execute(_ENTER_TAGGED if tags else _ENTER_PLAIN, parameters)
        row = cursor.fetchone()
    if row is not None:
        task.pk = row[0]
    return row is not None


def claim(
    limit: int, lease_seconds: float, *, room: int, rooms: Mapping[int, int] | None = None, after: int = 0
) -> list[Claimed]:
    """At most `limit` due mails, by lane weight and in turns between owners, committed before it returns.

    `room` is how many of one owner's mails the caller will hold, `rooms` the same for owners it already
    holds mail of. Owners are looked at from the one after `after` on.
    """
    token = uuid.uuid4()
    total = sum(LANE_WEIGHTS.values())
    quotas = {lane: max(1, limit * weight // total) for lane, weight in LANE_WEIGHTS.items()}
    claimed: list[Claimed] = []
    held = dict(rooms or {})
    with transaction.atomic(), connection.cursor() as cursor:
        while len(claimed) < limit:
            cursor.execute(
                _CLAIM,
                {
                    **_turn_parameters(quotas, room, held, after),
                    "limit": limit - len(claimed),
                    "lease": lease_seconds,
                    "token": token,
                },
            )
            found = [Claimed(*row) for row in cursor.fetchall()]
            claimed += found
            # Lanes that filled their share may have more; the others were asked and are empty.
            lanes = [lane for lane in quotas if sum(mail.lane == lane for mail in found) >= quotas[lane]]
            if not lanes:
                break
            for mail in found:
                held[mail.owner_id] = held.get(mail.owner_id, room) - 1
            quotas = {lane: limit - len(claimed) for lane in lanes}
    return claimed


def content(task_id: int) -> bytes:
    """The mail's bytes; nothing once they have been pruned."""
    return bytes(MailContent.objects.filter(task_id=task_id).values_list("raw", flat=True).first() or b"")


def is_anything_due() -> bool:
    """Whether a claim would find something; as cheap as the claim's first step."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"{_TURNS} SELECT EXISTS (SELECT 1 FROM turn)",
            _turn_parameters(dict.fromkeys(Lane, 1), 1, {}, 0) | {"turns": 1},
        )
        return bool(cursor.fetchone()[0])


def _turn_parameters(
    quotas: Mapping[Lane, int], room: int, held: Mapping[int, int], after: int
) -> dict[str, Any]:
    return {
        "lanes": [int(lane) for lane in quotas],
        "quotas": list(quotas.values()),
        "room": room,
        "owners": list(held.keys()),
        "rooms": list(held.values()),
        "after": after,
        "turns": OWNERS_A_TURN,
    }


def settle(settlements: Sequence[Settlement], worker: str) -> set[int]:
    """Writes results and attempts in one statement; the ids that were still ours. The rest came too late."""
    for one in settlements:
        if one.status not in TRANSITIONS[Status.PROCESSING]:
            raise ValueError(f"A mail in process cannot become {one.status.label}.")
    with connection.cursor() as cursor:
        cursor.execute(
            _SETTLE,
            {
                "worker": worker,
                "ids": [one.id for one in settlements],
                "tokens": [one.token for one in settlements],
                "statuses": [int(one.status) for one in settlements],
                "returned": [int(one.give_back) for one in settlements],
                "waits": [one.wait for one in settlements],
                "reasons": [_stored(one.cancel_reason) for one in settlements],
                "outcomes": [_stored(one.outcome) for one in settlements],
                "phases": [_stored(one.phase) for one in settlements],
                "codes": [one.code for one in settlements],
                "replies": [one.reply for one in settlements],
                "durations": [one.duration_ms for one in settlements],
                "puts_off": [_stored(one.put_off) for one in settlements],
            },
        )
        return {row[0] for row in cursor.fetchall()}


def _stored(choice: int | None) -> int | None:
    return None if choice is None else int(choice)


def renew(tokens: Sequence[uuid.UUID], lease_seconds: float) -> set[uuid.UUID]:
    """Extends leases that are still held; the tokens that hold anything."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE tasks_mailtask SET lease_until = now() + make_interval(secs => %s)"
            f" WHERE status = {Status.PROCESSING:d} AND claim_token = ANY(%s) RETURNING claim_token",
            [lease_seconds, list(tokens)],
        )
        return {row[0] for row in cursor.fetchall()}


@transaction.atomic
def rescue(limit: int = 1000) -> int:
    """Takes back what dead workers held. Nobody knows how far those mails came, so `on_uncertain` decides;
    the try is given back, for the relay gave no verdict."""
    lost = list(
        MailTask.objects.select_for_update(skip_locked=True)
        .filter(status=Status.PROCESSING, lease_until__lt=Now())
        .order_by("lease_until")
        .values_list("id", "try_count")[:limit]
    )
    Attempt.objects.bulk_create(
        Attempt(
            task_id=pk, number=tries, at=Now(), outcome=Outcome.LOST, reply="The worker died with it in hand."
        )
        for pk, tries in lost
    )
    return MailTask.objects.filter(id__in=[pk for pk, _ in lost], status=Status.PROCESSING).update(
        status=Case(
            When(on_uncertain=OnUncertain.HOLD, then=Value(int(Status.UNCERTAIN))),
            When(on_uncertain=OnUncertain.ACCEPT, then=Value(int(Status.SUCCESS))),
            default=Value(int(Status.QUEUED)),
        ),
        finished_at=Case(When(on_uncertain=OnUncertain.ACCEPT, then=Now()), default=None),
        due_at=_after_deaths(),
        try_count=F("try_count") - 1,
        lost_count=F("lost_count") + 1,
        last_reply="The worker died with it in hand.",
        lease_until=None,
        claim_token=None,
        moved_at=Now(),
    )


def _after_deaths() -> Case:
    """Now, and for a mail that was in dying workers' hands again and again a minute more for each time."""
    delay = ExpressionWrapper(F("lost_count") * timedelta(minutes=1), DurationField())
    later = ExpressionWrapper(Now() + delay, DateTimeField())
    return Case(When(lost_count__gte=DEATHS_BEFORE_DELAY, then=later), default=Now())


def expire(limit: int = 1000) -> int:
    """Cancels what waited beyond its `expires_at`."""
    ids = MailTask.objects.waiting().filter(expires_at__lte=Now()).order_by("expires_at").values("id")[:limit]
    return cancel(
        MailTask.objects.filter(id__in=list(ids.values_list("id", flat=True))), CancelReason.EXPIRED
    )


def cancel(tasks: MailTaskQuerySet, reason: CancelReason) -> int:
    """Cancels those that wait; how many."""
    return tasks.filter(status__in=[Status.SCHEDULED, Status.QUEUED, Status.FAILED]).update(
        status=Status.CANCELLED, cancel_reason=reason, finished_at=Now(), moved_at=Now()
    )


def requeue(tasks: MailTaskQuerySet) -> int:
    """Sends again, now and with a fresh count, what failed, was cancelled or is uncertain; how many."""
    return tasks.filter(status__in=[Status.FAILED, Status.CANCELLED, Status.UNCERTAIN]).update(
        status=Status.QUEUED,
        cancel_reason=None,
        finished_at=None,
        try_count=0,
        lost_count=0,
        put_off=None,
        due_at=Now(),
        moved_at=Now(),
        expires_at=Case(When(expires_at__lte=Now(), then=None), default=F("expires_at")),
    )


def accept(tasks: MailTaskQuerySet) -> int:
    """Takes those that are uncertain as sent; how many."""
    return tasks.filter(status=Status.UNCERTAIN).update(
        status=Status.SUCCESS, finished_at=Now(), moved_at=Now()
    )


def held(tokens: Sequence[uuid.UUID]) -> list[Claimed]:
    """The mails that are in process under these claim tokens, without their content."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT id, owner_id, claim_token, lane, try_count, max_tries, on_uncertain, expires_at, sender,"
            f" recipient, NULL FROM tasks_mailtask"
            f" WHERE status = {Status.PROCESSING:d} AND claim_token = ANY(%s) ORDER BY id",
            [list(tokens)],
        )
        return [Claimed(*row) for row in cursor.fetchall()]


def take_back(mails: Sequence[Claimed], why: str) -> int:
    """As they were before, the try not used up, what a dead worker held and had surely not sent; how many.
    The death is counted all the same: it may be the mail that kills them."""
    return MailTask.objects.filter(
        status=Status.PROCESSING,
        id__in=[mail.id for mail in mails],
        claim_token__in={mail.token for mail in mails},
    ).update(
        status=Case(When(try_count__gt=1, then=Value(int(Status.FAILED))), default=Value(int(Status.QUEUED))),
        started_at=Case(When(try_count__gt=1, then=F("started_at")), default=None),
        due_at=Case(When(lost_count__gte=DEATHS_BEFORE_DELAY, then=_after_deaths()), default=F("due_at")),
        try_count=F("try_count") - 1,
        lost_count=F("lost_count") + 1,
        last_reply=why,
        lease_until=None,
        claim_token=None,
        moved_at=Now(),
    )
