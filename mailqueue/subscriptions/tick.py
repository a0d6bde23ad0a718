"""Makes the mails of subscriptions that are due, bite by bite. It may run twice, on two machines, and die anywhere.

A bite is one transaction: it holds its subscriptions, writes an occurrence for each, enters the mails into the ledger
and moves `next_at` on. Who comes at the same time passes by what is held, and finds it moved on later.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import zip_longest
from typing import NamedTuple

from cronsim import CronSimError
from django.db import connection, transaction

from accounts import quota
from accounts.models import User
from mailqueue.subscriptions import contents, deeds, links
from mailqueue.subscriptions.models import ContentVersion, Occurrence, Outcome, Policy, State, Subscription
from mailqueue.subscriptions.schedule import BadScheduleError, due, within_window
from tasks import submission
from tasks.plain_text import is_html, text_of
from tasks.states import Lane
from tasks.submission import NewMail

logger = logging.getLogger(__name__)

#: Subscriptions of one transaction, and how long (seconds) one tick goes on: others want their turn in this worker.
#: With 500 a one-time password took 1.5 times as long meanwhile as without, with 200 as long: its commit waits behind
#: these. 100,000 take a tenth longer so.
BITE, SECONDS = 200, 0.5
#: So late an occurrence is not missed yet, whatever the policy.
GRACE = timedelta(minutes=5)

_ENTER = """
INSERT INTO subscriptions_occurrence (subscription_id, at, outcome, task_id, created_at)
SELECT subscription_id, at, outcome, task_id, clock_timestamp()
FROM unnest(%s::bigint[], %s::timestamptz[], %s::smallint[], %s::bigint[])
    AS new(subscription_id, at, outcome, task_id)
"""
_MOVE_ON = """
UPDATE subscriptions_subscription AS one SET next_at = new.next_at
FROM unnest(%s::bigint[], %s::timestamptz[]) AS new(id, next_at)
WHERE one.id = new.id AND one.state = 0
"""


class Turn(NamedTuple):
    """A subscription that is due, for which time, and when it is next."""

    subscription: Subscription
    at: datetime
    following: datetime


def tick(now: datetime | None = None, seconds: float = SECONDS) -> int:
    """Makes what is due, for so long; how many subscriptions had their turn. `now` is the database's time."""
    now, end, total = now or deeds.now(), time.monotonic() + seconds, 0
    while True:
        taken = _bite(now)
        total += taken
        if taken < BITE or time.monotonic() > end:
            return total


@transaction.atomic
def _bite(now: datetime) -> int:
    held = list(
        Subscription.objects.due(now)
        .select_related("owner")
        .order_by("next_at", "id")
        .select_for_update(of=("self",), skip_locked=True)[:BITE]
    )
    if not held:
        return 0
    turns = list(_turns(held, now))
    outcomes = dict(_outcomes(_not_yet_made(turns), now))
    _write(
        _ENTER,
        [
            (
                turn.subscription.pk,
                turn.at,
                int(outcomes[turn.subscription.pk][0]),
                outcomes[turn.subscription.pk][1],
            )
            for turn in turns
            if turn.subscription.pk in outcomes
        ],
    )
    _write(_MOVE_ON, [(turn.subscription.pk, turn.following) for turn in turns])
    return len(held)


def _turns(held: Iterable[Subscription], now: datetime) -> Iterable[Turn]:
    """One whose schedule makes no sense any more, such as a zone that is no longer known, is paused: it must not hold
    up all others."""
    for each in held:
        try:
            yield Turn(each, *due(each.schedule, each.next_at or now, now))
        except (BadScheduleError, CronSimError, ValueError, KeyError):
            logger.exception("subscription paused", extra={"subscription": each.pk})
            Subscription.objects.filter(pk=each.pk).update(state=State.PAUSED, next_at=None)


def _not_yet_made(turns: Sequence[Turn]) -> list[Turn]:
    """All of them, but where the clock was set back. Nobody else can be writing: we hold the subscriptions."""
    made = set(
        Occurrence.objects.filter(
            subscription__in=[turn.subscription.pk for turn in turns], at__in={turn.at for turn in turns}
        ).values_list("subscription_id", "at")
    )
    return [turn for turn in turns if (turn.subscription.pk, turn.at) not in made]


Made = tuple[Outcome, int | None]


def _outcomes(turns: Iterable[Turn], now: datetime) -> Iterable[tuple[int, Made]]:
    """What became of each, by the id of its subscription."""
    by_owner: dict[int, list[Turn]] = defaultdict(list)
    for turn in turns:
        if turn.subscription.policy == Policy.SKIP and now - turn.at > GRACE:
            yield turn.subscription.pk, (Outcome.MISSED, None)
        else:
            by_owner[turn.subscription.owner_id].append(turn)
    # In this order, as everywhere: two bites that wait for the same owners must not wait for each other.
    for owner_id in sorted(by_owner):
        yield from _of_one_owner(owner_id, by_owner[owner_id], now)


def _of_one_owner(owner_id: int, turns: Sequence[Turn], now: datetime) -> Iterable[tuple[int, Made]]:
    said = contents.newest(owner_id, {turn.subscription.content_type for turn in turns})
    to_send = [turn for turn in turns if turn.subscription.content_type in said]
    for turn in turns:
        if turn.subscription.content_type not in said:
            yield turn.subscription.pk, (Outcome.NO_CONTENT, None)
    try:
        kept = _kept(turns[0].subscription.owner, list(_mails(to_send, said, now)))
    except submission.AccountClosedError:
        # Those that we hold alone: to wait for another bite's, which may wait for ours, would be a deadlock.
        held = [turn.subscription.pk for turn in turns]
        Subscription.objects.filter(id__in=held).update(state=State.ENDED, next_at=None)
        return
    for turn, task_id in zip_longest(to_send, kept):
        made = (Outcome.OVER_QUOTA, None) if task_id is None else (Outcome.QUEUED, task_id)
        yield turn.subscription.pk, made


def _kept(owner: User, mails: Sequence[NewMail]) -> list[int]:
    """The ids of the first of them: as many as the owner's quota has room for."""
    try:
        with quota.counted(owner, len(mails)):
            return [task_id for task_id, _ in submission.submit_many(owner, mails)]
    except quota.QuotaExceededError as error:
        # Fewer than before each time, so this comes to an end, whoever else hands over mail meanwhile.
        return _kept(owner, mails[: min(error.standing.left, len(mails) - 1)])


def _mails(turns: Iterable[Turn], said: Mapping[str, ContentVersion], now: datetime) -> Iterable[NewMail]:
    parts = {name: _parts(version.content) for name, version in said.items()}
    for subscription, at, _ in turns:
        text, html = parts[subscription.content_type]
        # What comes late waits for the window, if it has closed meanwhile.
        opens = within_window(subscription.schedule, max(at, now))
        name = {"task": subscription.name} if subscription.name else {}
        yield NewMail(
            recipient=subscription.recipient,
            subject=said[subscription.content_type].subject,
            text=text,
            html=html,
            scheduled_at=opens if opens > now else None,
            max_tries=subscription.max_tries,
            lane=Lane.BULK,
            headers=links.headers(subscription.pk),
            metadata=name | {"type": "subscribe", "subscription": str(subscription.pk)},
        )


def _parts(content: str) -> tuple[str, str]:
    """Text and HTML."""
    return (text_of(content), content) if is_html(content) else (content, "")


def _write(statement: str, rows: Sequence[tuple[object, ...]]) -> None:
    if rows:
        with connection.cursor() as cursor:
            cursor.execute(statement, [list(column) for column in zip(*rows, strict=True)])
