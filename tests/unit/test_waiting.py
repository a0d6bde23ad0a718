"""Why is it waiting? A word, a time and a sentence."""

from datetime import UTC, datetime, timedelta

import pytest

from accounts.models import AccountState, SmtpAccount
from tasks.models import MailTask
from tasks.states import Status
from tasks.waiting import explain

NOW = datetime(2030, 1, 31, 12, 0, tzinfo=UTC)
BEFORE, LATER, MUCH_LATER = NOW - timedelta(minutes=1), NOW + timedelta(minutes=5), NOW + timedelta(hours=1)
OPEN = SmtpAccount(state=AccountState.ACTIVE)
PAUSED = SmtpAccount(state=AccountState.PAUSED, reason="535 wrong password", paused_until=LATER)
UNVERIFIED = SmtpAccount(
    state=AccountState.UNVERIFIED, reason="the name does not resolve", paused_until=LATER
)


def task(status: Status, due_at: datetime = BEFORE, last_reply: str = "") -> MailTask:
    return MailTask(status=status, due_at=due_at, max_tries=8, try_count=2, last_reply=last_reply)


@pytest.mark.parametrize(
    ("status", "due_at", "account", "reason", "until", "said"),
    [
        (Status.QUEUED, BEFORE, OPEN, "backlog", None, "free worker"),
        (Status.FAILED, BEFORE, OPEN, "backlog", None, "free worker"),
        (Status.SCHEDULED, BEFORE, OPEN, "backlog", None, "free worker"),
        (Status.SCHEDULED, LATER, OPEN, "scheduled", LATER, "time has not come"),
        (Status.SCHEDULED, MUCH_LATER, PAUSED, "scheduled", MUCH_LATER, "time has not come"),
        (Status.FAILED, LATER, OPEN, "retry", LATER, "451 later"),
        (Status.QUEUED, LATER, OPEN, "retry", LATER, "451 later"),
        (Status.QUEUED, BEFORE, PAUSED, "account_paused", LATER, "535 wrong password"),
        (Status.FAILED, BEFORE, PAUSED, "account_paused", LATER, "535 wrong password"),
        (Status.SCHEDULED, BEFORE, PAUSED, "account_paused", LATER, "535 wrong password"),
        (Status.QUEUED, BEFORE, UNVERIFIED, "account_paused", LATER, "does not resolve"),
        (Status.UNCERTAIN, BEFORE, OPEN, "uncertain", None, "a person decides"),
    ],
)
def test_an_unfinished_task_says_why_it_waits(
    *, status: Status, due_at: datetime, account: SmtpAccount, reason: str, until: datetime | None, said: str
) -> None:
    waiting = explain(task(status, due_at, "451 later"), account, NOW)
    assert waiting is not None
    assert (waiting["reason"], waiting["until"], waiting["tries_left"]) == (reason, until, 6)
    assert said in waiting["detail"]


@pytest.mark.parametrize("status", [Status.PROCESSING, Status.SUCCESS, Status.CANCELLED])
def test_what_is_in_hand_or_at_its_end_does_not_wait(status: Status) -> None:
    assert explain(task(status), OPEN, NOW) is None
