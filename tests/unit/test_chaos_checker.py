"""The fault suite's judge: each promise that is broken is named, and a run that kept them all is not accused."""

from dataclasses import replace
from pathlib import Path

import pytest

from tasks.states import CancelReason, Status
from tests.chaos import checker
from tests.chaos.checker import Evidence, Fault, Row, judge
from tests.chaos.client import Call
from tests.chaos.sink import Sink, Taken

CALL = Call("ok.1@chaos.example", at=100, answered_at=100.1, task_id=7, answer="202")
TAKEN = Taken(101, "ada@example.com", CALL.recipient, "<7@example.com>", read_at=101.1)
ROW = Row(
    7, CALL.recipient, Status.SUCCESS, None, 1, 8, TAKEN.message_id, holds=False, is_due=True, successes=1
)  # fmt: skip
AGAIN = replace(TAKEN, at=105, read_at=105.1)
KILL = Fault("kill", 101.5, 101.6, cuts_off=True)


def broken(
    calls: list[Call] = [CALL],  # noqa: B006
    taken: list[Taken] = [TAKEN],  # noqa: B006
    rows: list[Row] = [ROW],  # noqa: B006
    faults: list[Fault] = [],  # noqa: B006
    **judged: object,
) -> list[str]:
    return judge(Evidence(calls, taken, rows, faults), **judged).broken  # type: ignore[arg-type]


def test_a_run_that_kept_its_promises_is_not_accused() -> None:
    verdict = judge(Evidence([CALL], [TAKEN], [ROW], [KILL]))
    assert (verdict.broken, verdict.accepted, verdict.delivered, verdict.lost) == ([], 1, 1, 0)
    assert verdict.duplicates == verdict.cancelled == verdict.held == 0


@pytest.mark.parametrize(
    ("row", "promise"),
    [
        (None, "I1"),
        (replace(ROW, id=8), "I1"),
        (replace(ROW, status=Status.UNCERTAIN), "I1"),
        (replace(ROW, status=Status.CANCELLED, cancel_reason=CancelReason.EXHAUSTED), "I1"),
        (replace(ROW, status=Status.CANCELLED, cancel_reason=CancelReason.REJECTED), "I1"),
        (replace(ROW, status=Status.PROCESSING), "I3"),
        (replace(ROW, status=Status.FAILED), "I3"),
        (replace(ROW, status=Status.QUEUED), "I3"),
        (replace(ROW, try_count=9), "I5"),
        (replace(ROW, message_id="<8@example.com>"), "I5"),
        (replace(ROW, successes=2), "I2"),
    ],
)
def test_a_row_that_is_not_as_it_must_be_is_named(row: Row | None, promise: str) -> None:
    assert promise in {sentence[:2] for sentence in broken(rows=[row] if row else [])}


def test_success_without_an_arrival_is_a_loss() -> None:
    verdict = judge(Evidence([CALL], [], [ROW], []))
    assert (verdict.lost, verdict.broken) == (1, ["I1: task 7 says success, and never arrived"])


def test_who_was_not_answered_may_have_a_mail_or_none() -> None:
    unanswered = replace(CALL, task_id=None, answer="ReadTimeout")
    assert broken([unanswered]) == []
    assert broken([unanswered], [], []) == []


def test_twice_is_forgiven_only_where_nobody_could_know() -> None:
    unread = replace(TAKEN, read_at=None)
    assert broken(taken=[TAKEN, AGAIN]) != []  # the answer was read, and nobody was cut off
    assert broken(taken=[unread, AGAIN]) != []  # nobody was cut off
    assert broken(taken=[unread, AGAIN], faults=[replace(KILL, cuts_off=False)]) != []
    assert broken(taken=[unread, AGAIN], faults=[KILL]) == []
    assert broken(taken=[TAKEN, AGAIN], faults=[KILL]) == []  # read in the moment of the kill
    assert broken(taken=[TAKEN, AGAIN], faults=[replace(KILL, at=103, until=103)]) != []
    assert (
        broken(taken=[replace(TAKEN, read_at=106), AGAIN], faults=[KILL]) == []
    )  # read when it was too late
    assert broken(taken=[unread, AGAIN], rows=[replace(ROW, holds=True)], faults=[KILL]) != []


def test_a_relay_that_never_answers_may_get_its_mail_again() -> None:
    kind = {"recipient": "reset.1@chaos.example"}
    mails = [replace(TAKEN, **kind, read_at=None), replace(AGAIN, **kind)]
    run = ([replace(CALL, **kind)], mails, [replace(ROW, **kind)])  # type: ignore[arg-type]
    assert broken(*run) != []
    assert broken(*run, may_repeat=("reset",)) == []


def test_a_mail_that_nobody_handed_over_or_before_its_time_is_named() -> None:
    assert broken([]) == [
        f"I4: {CALL.recipient} got a mail that nobody handed over, or of which there is no row"
    ]
    assert broken([replace(CALL, due_at=101.5)]) == [f"I4: {CALL.recipient} got a mail 0.500 s early"]
    assert broken([replace(CALL, due_at=100.9)]) == []


def test_a_cancellation_has_the_reason_of_its_kind() -> None:
    refused = replace(
        ROW, recipient="no550.1@x", status=Status.CANCELLED, cancel_reason=CancelReason.REJECTED
    )
    call = replace(CALL, recipient=refused.recipient)
    assert broken([call], [], [refused]) == []
    assert broken([call], [], [replace(refused, cancel_reason=CancelReason.EXPIRED)]) != []
    exhausted = replace(ROW, status=Status.CANCELLED, cancel_reason=CancelReason.EXHAUSTED)
    assert broken(taken=[], rows=[exhausted], may_exhaust=True) == []


def test_a_long_call_is_named_where_redis_was_at_its_worst() -> None:
    slow = replace(CALL, answered_at=103.2)
    assert broken([slow], [replace(TAKEN, at=104)]) == []
    assert broken([slow], [replace(TAKEN, at=104)], bounds_calls=True) == ["I7: a call took 3.2 s"]


def test_recovery_is_counted_to_the_last_mail_that_was_due_before() -> None:
    later = replace(CALL, recipient="ok.2@chaos.example", task_id=8, at=101.7, answered_at=101.9)
    came_late = replace(TAKEN, at=104)
    verdict = judge(Evidence([CALL, later], [came_late], [ROW], [KILL]))
    assert verdict.recovered == [pytest.approx(2.4)]
    assert verdict.accepts_again == [pytest.approx(0.3)]


def test_secrets_are_found_where_they_have_no_business(tmp_path: Path) -> None:
    (tmp_path / "web1.log").write_text("nothing to see")
    (tmp_path / "worker1.log").write_text("login with hunter2 failed")
    found = checker.secrets_shown(tmp_path, ["hunter2", "tok"], {"celery": b"..tok.."}, [("()", "hunter2")])
    assert found == [
        "I6: a secret stands in worker1.log",
        "I6: a secret stands in Redis: celery",
        "I6: a secret stands in task results",
    ]


def test_the_sinks_log_says_what_was_taken_and_what_was_read(tmp_path: Path) -> None:
    log = tmp_path / "taken.log"
    log.write_text("T 1.0 3 a@x b@x <1@x>\nT 2.0 4 a@x c@x <2@x>\nP 2.5 3\nT 3.0 3 a@x d@x <3@x>\nP 4.0 3\n")
    sink = Sink(0, log)
    assert sink.count() == 3
    assert [(mail.recipient, mail.at, mail.read_at) for mail in sink.taken()] == [
        ("b@x", 1.0, 2.5),
        ("c@x", 2.0, None),
        ("d@x", 3.0, 4.0),
    ]
