"""Deliveries in the database: claimed, settled, given back, rescued, replayed. By the database's clock; what is
written after a claim carries its token."""

import time
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from django.db import connection, transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from accounts.sealing import UnreadableSecretError
from mailqueue.webhooks.endpoints import disable
from mailqueue.webhooks.models import ENDED, Delivery, DeliveryQuerySet, Endpoint, State

#: Longer than a call may take, and its settlement, while the database restarts (seconds).
LEASE_SECONDS = 60
#: How many calls of one receiver run at once, over all senders; and of one that fails.
AT_ONCE, AT_ONCE_FAILING = 10, 2
#: Failing for so long without a break, an endpoint is disabled. A pause with nothing to send is a break.
PATIENCE, BREAK = timedelta(days=5), timedelta(days=2)
GONE = "The receiver answered 410 Gone."
SILENT = "Every attempt has failed for 5 days."
#: A replay's rows of one transaction, and how long a call goes on (seconds).
BITE, LONGEST_REPLAY = 1000, 10.0


class Claimed(NamedTuple):
    id: int
    token: uuid.UUID
    endpoint_id: int
    url: str
    message_id: str
    payload: str
    tries: int
    #: Empty if none of CREDENTIAL_KEYS opens them.
    secrets: list[str]


class Result(NamedTuple):
    """What became of one try. `wait`: seconds until the next, None where there is none."""

    claimed: Claimed
    state: State
    wait: float | None
    code: int | None
    error: str
    duration_ms: int
    is_gone: bool = False


def claim(room: int) -> list[Claimed]:
    """Takes up to so many that are due, of each endpoint a few."""
    token = uuid.uuid4()
    with connection.cursor() as cursor:
        cursor.execute(
            _CLAIM,
            {
                "token": token,
                "room": room,
                "lease": LEASE_SECONDS,
                "at_once": AT_ONCE,
                "at_once_failing": AT_ONCE_FAILING,
            },
        )
        rows = cursor.fetchall()
    endpoints = Endpoint.objects.in_bulk({row[1] for row in rows})
    now = timezone.now()
    secrets = {pk: _secrets(endpoint, now) for pk, endpoint in endpoints.items()}
    return [
        Claimed(
            pk, token, endpoint_id, endpoints[endpoint_id].url, message_id, payload, tries,
            secrets[endpoint_id],
        )
        for pk, endpoint_id, message_id, payload, tries in rows
        if endpoint_id in endpoints  # else it was deleted just now
    ]  # fmt: skip


def _secrets(endpoint: Endpoint, now: datetime) -> list[str]:
    try:
        return endpoint.secrets(now)
    except UnreadableSecretError:
        return []


# `waiting` hops over delivery_due from endpoint to endpoint: it costs as much as there are endpoints for which
# something waits, however much that is.
_CLAIM = """
WITH RECURSIVE waiting AS (
    (SELECT endpoint_id FROM webhooks_delivery WHERE state = 0 ORDER BY endpoint_id LIMIT 1)
    UNION ALL
    SELECT (SELECT d.endpoint_id FROM webhooks_delivery d
            WHERE d.state = 0 AND d.endpoint_id > w.endpoint_id ORDER BY d.endpoint_id LIMIT 1)
    FROM waiting w WHERE w.endpoint_id IS NOT NULL
), due AS MATERIALIZED (
    SELECT mine.id FROM waiting w
    JOIN webhooks_endpoint e ON e.id = w.endpoint_id AND e.is_active
    CROSS JOIN LATERAL (
        SELECT count(*) AS held FROM webhooks_delivery h WHERE h.endpoint_id = e.id AND h.state = 1
    ) h
    CROSS JOIN LATERAL (
        SELECT d.id, d.next_attempt_at FROM webhooks_delivery d
        WHERE d.endpoint_id = e.id AND d.state = 0 AND d.next_attempt_at <= clock_timestamp()
        ORDER BY d.next_attempt_at, d.id
        LIMIT greatest(0, CASE WHEN e.failing_since IS NULL THEN %(at_once)s ELSE %(at_once_failing)s END - h.held)
        FOR UPDATE SKIP LOCKED
    ) mine
    ORDER BY mine.next_attempt_at
    LIMIT %(room)s
)
UPDATE webhooks_delivery d
SET state = 1, claim_token = %(token)s, lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
FROM due WHERE d.id = due.id AND d.state = 0
RETURNING d.id, d.endpoint_id, d.message_id, d.payload, d.tries
"""


def settle(results: Sequence[Result]) -> int:
    """Writes what became of them; how many were still ours to write."""
    gone = {each.claimed.endpoint_id for each in results if each.is_gone}
    for endpoint in Endpoint.objects.active().filter(pk__in=gone):
        disable(endpoint, GONE)
    taken = {each.claimed.endpoint_id for each in results if each.state == State.DELIVERED}
    failed = {each.claimed.endpoint_id for each in results} - taken
    with transaction.atomic(), connection.cursor() as cursor:
        # In one order everywhere, so that two senders do not wait for each other.
        of = sorted(results, key=lambda each: each.claimed.id)
        cursor.execute(
            _SETTLE,
            {
                "ids": [each.claimed.id for each in of],
                "tokens": [each.claimed.token for each in of],
                "states": [int(each.state) for each in of],
                "waits": [each.wait for each in of],
                "codes": [each.code for each in of],
                "errors": [each.error for each in of],
                "durations": [each.duration_ms for each in of],
            },
        )
        settled: int = cursor.rowcount
    _note(taken, failed)
    return settled


_SETTLE = """
UPDATE webhooks_delivery d SET
    state = r.state, tries = d.tries + 1, claim_token = NULL, lease_until = NULL,
    next_attempt_at = CASE WHEN r.wait IS NULL THEN d.next_attempt_at
                           ELSE clock_timestamp() + make_interval(secs => r.wait) END,
    finished_at = CASE WHEN r.wait IS NULL THEN clock_timestamp() END,
    last_attempt_at = clock_timestamp(), code = r.code, error = r.error, duration_ms = r.duration
FROM unnest(%(ids)s::bigint[], %(tokens)s::uuid[], %(states)s::smallint[], %(waits)s::float8[], %(codes)s::smallint[],
            %(errors)s::text[], %(durations)s::int[]) AS r(id, token, state, wait, code, error, duration)
WHERE d.id = r.id AND d.claim_token = r.token
"""


def _note(taken: set[int], failed: set[int]) -> None:
    """Since when which webhooks fail; those that have failed for too long are disabled."""
    now = timezone.now()
    mended, failing = Q(pk__in=taken, failing_since__isnull=False), Q(pk__in=failed)
    broken = Q(failing_since=None) | Q(last_failed_at__lt=now - BREAK)
    with transaction.atomic():
        # In the order in which the fan-out takes them.
        changed = Endpoint.objects.filter(mended | failing).order_by("id")
        if not list(changed.select_for_update(no_key=True).values_list("id")):
            return
        Endpoint.objects.filter(mended).update(failing_since=None, last_failed_at=None)
        Endpoint.objects.filter(failing & broken).update(failing_since=now)
        Endpoint.objects.filter(failing).update(last_failed_at=now)
    for silent in Endpoint.objects.active().filter(failing, failing_since__lt=now - PATIENCE):
        disable(silent, SILENT)


def give_back(claimed: Sequence[Claimed]) -> None:
    """Unsent, or not known to be: whoever is next sends them at once."""
    for each in claimed:
        Delivery.objects.filter(id=each.id, claim_token=each.token).update(
            state=State.PENDING, claim_token=None, lease_until=None
        )


def rescue() -> int:
    """Takes back what dead senders held; how many. A try that nobody has settled does not count."""
    return Delivery.objects.filter(state=State.SENDING, lease_until__lt=Now()).update(
        state=State.PENDING, claim_token=None, lease_until=None, next_attempt_at=Now()
    )


def replay(chosen: DeliveryQuerySet) -> int:
    """Sends them anew, by a fresh schedule and under the same message id; how many. Not what is just being sent."""
    return chosen.exclude(state=State.SENDING).update(
        state=State.PENDING, tries=0, next_attempt_at=Now(), finished_at=None
    )


def replay_since(endpoint: Endpoint, since: datetime, *, only_failed: bool) -> tuple[int, datetime | None]:
    """Replays what has ended, of the events queued since then, the oldest first. How many, and from when on there may
    be more: a call ends after LONGEST_REPLAY."""
    states = (State.FAILED,) if only_failed else ENDED
    ends_at, total, last = time.monotonic() + LONGEST_REPLAY, 0, 0
    until = timezone.now()  # so that it does not chase those that it has replayed itself
    while True:
        chosen = endpoint.deliveries.filter(
            id__gt=last, created_at__gte=since, created_at__lte=until, state__in=states
        ).order_by("id")
        bite = list(chosen.values_list("id", "created_at")[:BITE])
        if not bite:
            return total, None
        last, at = bite[-1]
        total += replay(Delivery.objects.filter(id__in=[pk for pk, _ in bite], state__in=states))
        if time.monotonic() > ends_at:
            return total, at
