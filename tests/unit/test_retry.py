"""What becomes of a mail after an attempt, for a given verdict and a given number of tries."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from accounts.models import SmtpAccount
from mailqueue.delivery.replies import Answer, Fault, Meaning, Verdict, read
from mailqueue.delivery.retry import conclude, wait_after
from tasks import ledger
from tasks.ledger import Claimed, Settlement
from tasks.models import MailTask
from tasks.states import TRANSITIONS, CancelReason, Lane, OnUncertain, Outcome, Phase, Status
from tasks.waiting import explain

NOW = datetime(2030, 1, 31, 12, 0, tzinfo=UTC)
SCHEDULE = [60, 300, 900]
TEMPORARY = Verdict(Meaning.TEMPORARY)
UNCERTAIN = Verdict(Meaning.UNCERTAIN)


def claimed(**changes: Any) -> Claimed:
    mail: dict[str, Any] = {
        "id": 1,
        "owner_id": 1,
        "token": uuid4(),
        "lane": Lane.DEFAULT,
        "try_count": 1,
        "max_tries": 3,
        "lost_count": 0,
        "on_uncertain": OnUncertain.RETRY,
        "expires_at": None,
        "sender": "ada@example.com",
        "recipient": "jane@example.com",
        "raw": b"",
    }
    return Claimed(**mail | changes)


def after(verdict: Verdict, **changes: Any) -> Settlement:
    answer = Answer(Phase.RCPT, 451, "4.3.0 later")
    return conclude(claimed(**changes), answer, verdict, now=NOW, schedule=SCHEDULE, duration_ms=7)


class Middle(random.Random):
    """No jitter."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


@pytest.mark.parametrize("max_tries", [2, 8])
@pytest.mark.parametrize(
    "answer",
    [
        Answer(Phase.RCPT, 452, "4.2.2 the mailbox is full"),
        Answer(Phase.REPLY, 552, "4.2.2 the mailbox is full"),
        Answer(Phase.RCPT, 421, "4.2.2 Mailbox full, closing"),
        Answer(Phase.RCPT, 452, "4.2.2 Greylisted"),
        Answer(Phase.RCPT, 452, "4.2.21 what is that"),
        Answer(Phase.RCPT, 452, "4.3.1 the disk is full, not 4.2.2"),
        Answer(Phase.RCPT, 451, "4.3.0 later"),
        Answer(Phase.RCPT, fault=Fault.LOST),
    ],
    ids=str,
)
def test_the_tries_that_are_left_are_those_that_come(answer: Answer, max_tries: int) -> None:
    def is_tried_after(tries: int) -> bool:
        mail = claimed(try_count=tries, max_tries=max_tries)
        settled = conclude(mail, answer, read(answer), now=NOW, schedule=SCHEDULE, duration_ms=7)
        return settled.status == Status.FAILED

    last = next(tries for tries in range(1, 20) if not is_tried_after(tries))
    for tries in range(1, last):
        task = MailTask(status=Status.FAILED, due_at=NOW, try_count=tries, max_tries=max_tries)
        task.last_reply = str(answer)
        waiting = explain(task, SmtpAccount(), NOW)
        assert waiting is not None
        assert waiting["tries_left"] == last - tries


def test_a_persons_retry_has_all_tries_whatever_was_said_before() -> None:
    task = MailTask(status=Status.QUEUED, due_at=NOW, try_count=0, max_tries=8, last_reply="452 4.2.2 full")
    assert explain(task, SmtpAccount(), NOW)["tries_left"] == 8  # type: ignore[index]


@pytest.mark.parametrize(("tries", "seconds"), [(1, 60), (2, 300), (3, 900), (4, 900), (19, 900)])
def test_the_waits_follow_the_schedule_and_the_last_repeats(tries: int, seconds: float) -> None:
    assert wait_after(tries, SCHEDULE, dice=Middle()) == pytest.approx(seconds)


def test_the_jitter_spreads_over_a_fifth_either_way_and_no_further() -> None:
    waits = [wait_after(1, [100], dice=random.Random(seed)) for seed in range(1000)]
    assert 80 <= min(waits) < 82
    assert 118 < max(waits) <= 120


def test_the_waits_differ_without_being_told_to() -> None:
    assert len({wait_after(1, [100]) for _ in range(20)}) > 1


@pytest.mark.parametrize(
    ("verdict", "changes", "status", "outcome", "reason"),
    [
        (Verdict(Meaning.ACCEPTED), {}, "success", "accepted", None),
        (Verdict(Meaning.ACCEPTED), {"try_count": 3}, "success", "accepted", None),
        (Verdict(Meaning.REJECTED), {}, "cancelled", "rejected", "rejected"),
        (TEMPORARY, {}, "failed", "temporary", None),
        (TEMPORARY, {"try_count": 2}, "failed", "temporary", None),
        (TEMPORARY, {"try_count": 3}, "cancelled", "temporary", "exhausted"),
        (TEMPORARY, {"try_count": 1, "max_tries": 1}, "cancelled", "temporary", "exhausted"),
        (Verdict(Meaning.TEMPORARY, most_tries=3), {"try_count": 2, "max_tries": 8}, "failed", "temporary", None),
        (
            Verdict(Meaning.TEMPORARY, most_tries=3),
            {"try_count": 3, "max_tries": 8},
            "cancelled",
            "temporary",
            "exhausted",
        ),
        (
            Verdict(Meaning.TEMPORARY, most_tries=3),
            {"try_count": 1, "max_tries": 1},
            "cancelled",
            "temporary",
            "exhausted",
        ),
        (UNCERTAIN, {}, "failed", "uncertain", None),
        (UNCERTAIN, {"try_count": 3}, "cancelled", "uncertain", "exhausted"),
        (UNCERTAIN, {"on_uncertain": OnUncertain.HOLD}, "uncertain", "uncertain", None),
        (UNCERTAIN, {"on_uncertain": OnUncertain.HOLD, "try_count": 3}, "uncertain", "uncertain", None),
        (UNCERTAIN, {"on_uncertain": OnUncertain.ACCEPT}, "success", "uncertain", None),
        (TEMPORARY, {"expires_at": NOW + timedelta(seconds=40)}, "cancelled", "temporary", "expired"),
        (TEMPORARY, {"expires_at": NOW + timedelta(seconds=80)}, "failed", "temporary", None),
        (
            Verdict(Meaning.TEMPORARY, least_wait=300),
            {"expires_at": NOW + timedelta(seconds=290)},
            "cancelled",
            "temporary",
            "expired",
        ),
        (Verdict(Meaning.ACCEPTED), {"expires_at": NOW - timedelta(seconds=1)}, "success", "accepted", None),
    ],
)  # fmt: skip
def test_after(
    verdict: Verdict, changes: dict[str, Any], status: str, outcome: str, reason: str | None
) -> None:
    settled = after(verdict, **changes)
    assert settled.status.label == status
    assert settled.outcome is not None
    assert settled.outcome.label == outcome
    assert settled.cancel_reason == (CancelReason[reason.upper()] if reason else None)
    assert (settled.wait is not None) == (status == "failed")
    assert settled.status in TRANSITIONS[Status.PROCESSING]
    assert not settled.give_back


def test_a_failure_waits_by_the_schedule() -> None:
    assert 48 <= (after(TEMPORARY).wait or 0) <= 72
    assert 240 <= (after(TEMPORARY, try_count=2).wait or 0) <= 360


def test_a_relay_that_asks_for_more_time_gets_it_to_the_second() -> None:
    assert after(Verdict(Meaning.TEMPORARY, least_wait=1210)).wait == 1210


def test_a_relay_that_asks_for_less_time_does_not_shorten_the_schedule() -> None:
    assert (after(Verdict(Meaning.TEMPORARY, least_wait=11), try_count=2).wait or 0) >= 240


def test_what_the_relay_said_is_kept() -> None:
    settled = after(TEMPORARY)
    assert (settled.phase, settled.code, settled.reply) == (Phase.RCPT, 451, "451 4.3.0 later")
    assert settled.duration_ms == 7


@pytest.mark.parametrize(("tries", "status"), [(1, Status.QUEUED), (2, Status.FAILED)])
def test_a_mail_put_back_keeps_its_try_and_has_no_attempt(tries: int, status: Status) -> None:
    back = ledger.put_back(claimed(try_count=tries), "535 no")
    assert back.status == status
    assert back.give_back
    assert (back.outcome, back.wait, back.cancel_reason) == (None, None, None)
    assert back.reply == "535 no"


def test_every_verdict_on_a_mail_is_noted_under_its_own_name() -> None:
    """Every meaning that is a verdict on the mail ends in an outcome of its own name."""
    for meaning in (Meaning.ACCEPTED, Meaning.TEMPORARY, Meaning.REJECTED, Meaning.UNCERTAIN):
        assert after(Verdict(meaning)).outcome == Outcome[meaning.name]
