"""The door through which states change: who holds the token may write, who lost it is told so."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from tasks import ledger, submission
from tasks.ledger import Claimed, Settlement
from tasks.models import Attempt, Claim, MailTask
from tasks.states import FINAL, TRANSITIONS, WAITING, CancelReason, OnUncertain, Outcome, Phase, Status
from tests.factories import MailFactory, UserFactory, claim_one, end_leases, make_due

pytestmark = pytest.mark.django_db
A_MINUTE = timedelta(minutes=1)
FAILED_FOR_NOW: dict[str, Any] = {
    "status": Status.FAILED,
    "wait": 60.0,
    "outcome": Outcome.TEMPORARY,
    "phase": Phase.RCPT,
    "code": 451,
    "reply": "451 4.3.0 later",
    "duration_ms": 1500,
}


def claimed_mail(**mail: Any) -> Claimed:
    MailFactory(**mail)
    return claim_one()


def settle(claimed: Claimed, **result: Any) -> set[int]:
    return ledger.settle([Settlement(claimed.id, **{"token": claimed.token} | result)], "worker:1")


def row(claimed: Claimed) -> MailTask:
    return MailTask.objects.get(id=claimed.id)


def held(minutes_left: float, **mail: Any) -> MailTask:
    lease_until = timezone.now() + timedelta(minutes=minutes_left)
    task: MailTask = MailFactory(status=Status.PROCESSING, lease_until=lease_until, **mail)
    return task


# Settle ---------------------------------------------------------------------------------------------


def test_a_success_is_written_with_its_attempt() -> None:
    mail = claimed_mail()
    result = {
        "outcome": Outcome.ACCEPTED,
        "phase": Phase.REPLY,
        "code": 250,
        "reply": "250 ok",
        "duration_ms": 12,
    }
    assert settle(mail, status=Status.SUCCESS, **result) == {mail.id}
    task = row(mail)
    assert (task.status, task.last_reply, task.claim_token) == (Status.SUCCESS, "250 ok", None)
    assert task.finished_at is not None
    attempt = task.attempts.get()
    assert (attempt.number, attempt.outcome, attempt.phase, attempt.code) == (
        1,
        Outcome.ACCEPTED,
        Phase.REPLY,
        250,
    )
    assert (attempt.reply, attempt.duration_ms, attempt.worker) == ("250 ok", 12, "worker:1")


def test_a_failure_waits_and_is_not_finished() -> None:
    mail = claimed_mail()
    settle(mail, **FAILED_FOR_NOW)
    task = row(mail)
    assert (task.status, task.try_count, task.finished_at) == (Status.FAILED, 1, None)
    assert (task.due_at - task.moved_at).total_seconds() == pytest.approx(60)
    attempt = task.attempts.get()
    assert (task.moved_at - attempt.at).total_seconds() == pytest.approx(1.5)


def test_a_cancellation_says_why() -> None:
    mail = claimed_mail()
    settle(mail, status=Status.CANCELLED, cancel_reason=CancelReason.REJECTED, outcome=Outcome.REJECTED)
    task = row(mail)
    assert (task.status, task.cancel_reason) == (Status.CANCELLED, CancelReason.REJECTED)
    assert task.finished_at is not None


def test_a_mail_put_back_is_as_it_was() -> None:
    mail = claimed_mail()
    before = row(mail).due_at
    settle(mail, status=Status.QUEUED, give_back=True, reply="535 no")
    task = row(mail)
    assert (task.status, task.try_count, task.due_at, task.started_at) == (Status.QUEUED, 0, before, None)
    assert not task.attempts.exists()


def test_many_are_settled_at_once_each_its_own_way() -> None:
    MailFactory.create_batch(3)
    first, second, third = ledger.claim(3, 60, token=uuid4(), room=50)
    done = ledger.settle(
        [
            Settlement(first.id, first.token, Status.SUCCESS, outcome=Outcome.ACCEPTED),
            Settlement(second.id, second.token, **FAILED_FOR_NOW),
            Settlement(third.id, uuid4(), Status.SUCCESS, outcome=Outcome.ACCEPTED),
        ],
        "worker:1",
    )
    assert done == {first.id, second.id}
    assert [row(mail).status for mail in (first, second, third)] == [
        Status.SUCCESS,
        Status.FAILED,
        Status.PROCESSING,
    ]
    assert Attempt.objects.count() == 2


def test_a_claim_counts_what_it_holds_and_goes_with_the_last() -> None:
    MailFactory.create_batch(3)
    mails = ledger.claim(3, 60, token=uuid4(), room=50)
    for left in (2, 1):
        settle(mails.pop(), status=Status.SUCCESS, outcome=Outcome.ACCEPTED)
        assert Claim.objects.get().held == left
    settle(mails.pop(), **FAILED_FOR_NOW)
    assert not Claim.objects.exists()


def test_a_foreign_token_changes_nothing() -> None:
    mail = claimed_mail()
    before = MailTask.objects.values().get(id=mail.id)
    assert settle(mail, token=uuid4(), **FAILED_FOR_NOW) == set()
    assert MailTask.objects.values().get(id=mail.id) == before
    assert not Attempt.objects.exists()


def test_a_result_comes_too_late_once_the_mail_was_rescued() -> None:
    mail = claimed_mail()
    end_leases()
    assert ledger.rescue() == 1
    assert settle(mail, status=Status.SUCCESS, outcome=Outcome.ACCEPTED) == set()
    assert row(mail).status == Status.QUEUED


def test_a_result_comes_too_late_once_another_worker_has_claimed_it() -> None:
    mail = claimed_mail()
    end_leases()
    ledger.rescue()
    make_due()
    again = claim_one()
    assert settle(mail, status=Status.SUCCESS, outcome=Outcome.ACCEPTED) == set()
    assert settle(again, status=Status.SUCCESS, outcome=Outcome.ACCEPTED) == {mail.id}


def test_a_result_is_written_once() -> None:
    mail = claimed_mail()
    assert settle(mail, status=Status.SUCCESS, outcome=Outcome.ACCEPTED) == {mail.id}
    assert settle(mail, **FAILED_FOR_NOW) == set()
    assert row(mail).attempts.count() == 1


@pytest.mark.parametrize(
    "status", [status for status in Status if status not in TRANSITIONS[Status.PROCESSING]]
)
def test_a_transition_that_is_not_in_the_table_is_refused(status: Status) -> None:
    mail = claimed_mail()
    with pytest.raises(ValueError, match="cannot become"):
        settle(mail, status=status)
    assert row(mail).status == Status.PROCESSING


# Leases ---------------------------------------------------------------------------------------------


def test_a_lease_is_renewed_for_its_holder_only() -> None:
    mine, others = held(1), held(1)
    assert ledger.renew([mine.claim_token, uuid4()], 600) == {mine.claim_token}
    until = dict(Claim.objects.values_list("token", "lease_until"))
    assert until[mine.claim_token] > timezone.now() + 9 * A_MINUTE
    assert until[others.claim_token] < timezone.now() + 2 * A_MINUTE


def test_a_rescue_leaves_leases_that_hold() -> None:
    mail = held(+1)
    assert ledger.rescue() == 0
    mail.refresh_from_db()
    assert mail.status == Status.PROCESSING


@pytest.mark.parametrize(
    ("policy", "status"),
    [
        (OnUncertain.RETRY, Status.QUEUED),
        (OnUncertain.HOLD, Status.UNCERTAIN),
        (OnUncertain.ACCEPT, Status.SUCCESS),
    ],
)
def test_a_rescue_goes_by_the_policy_gives_the_try_back_and_notes_the_loss(
    policy: OnUncertain, status: Status
) -> None:
    mail = held(-1, on_uncertain=policy, try_count=3)
    assert ledger.rescue() == 1
    mail.refresh_from_db()
    assert (mail.status, mail.try_count, mail.lost_count) == (status, 2, 1)
    assert mail.claim_token is None
    assert not Claim.objects.exists()
    assert (mail.finished_at is not None) == (status in FINAL)
    attempt = mail.attempts.get()
    assert (attempt.number, attempt.outcome) == (3, Outcome.LOST)


def test_a_rescue_twice_rescues_once() -> None:
    held(-1)
    assert [ledger.rescue(), ledger.rescue()] == [1, 0]


@pytest.mark.parametrize(("deaths", "minutes"), [(0, 0), (2, 0), (3, 3), (10, 10)])
def test_what_kills_its_workers_is_put_off_longer_each_time(deaths: int, minutes: int) -> None:
    mail = held(-1, lost_count=deaths)
    ledger.rescue()
    mail.refresh_from_db()
    assert (mail.due_at - mail.moved_at) == timedelta(minutes=minutes)


# People ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", Status)
def test_only_what_waits_can_be_cancelled(status: Status) -> None:
    mail = MailFactory(status=status)
    changed = submission.cancel(MailTask.objects.filter(id=mail.id))
    assert changed == int(status in WAITING)
    mail.refresh_from_db()
    assert mail.status == (Status.CANCELLED if status in WAITING else status)


@pytest.mark.parametrize("status", Status)
def test_only_what_failed_was_cancelled_or_is_uncertain_can_be_retried(status: Status) -> None:
    mail = MailFactory(status=status, lost_count=2, expires_at=timezone.now() - A_MINUTE)
    may = status in (Status.FAILED, Status.CANCELLED, Status.UNCERTAIN)
    assert submission.retry(MailTask.objects.filter(id=mail.id)) == int(may)
    mail.refresh_from_db()
    if may:
        assert (mail.status, mail.try_count, mail.lost_count, mail.cancel_reason) == (
            Status.QUEUED,
            0,
            0,
            None,
        )
        assert (mail.finished_at, mail.expires_at) == (None, None)
        assert mail.due_at <= timezone.now()
    else:
        assert mail.status == status


def test_closing_an_account_cancels_what_waits_and_nobody_elses() -> None:
    owner = UserFactory()
    mails = {status: MailFactory(owner=owner, status=status) for status in Status}
    foreign = MailFactory()
    with transaction.atomic():
        owner.close()
    for status, mail in mails.items():
        mail.refresh_from_db()
        if status in WAITING:
            assert (mail.status, mail.cancel_reason) == (Status.CANCELLED, CancelReason.ACCOUNT_CLOSED)
        else:
            assert mail.status == status
    foreign.refresh_from_db()
    assert foreign.status == Status.QUEUED


# What must never be ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "wrong"),
    [
        (Status.QUEUED, {"status": 7}),
        (Status.QUEUED, {"lane": 3}),
        (Status.QUEUED, {"try_count": -1}),
        (Status.QUEUED, {"try_count": 9}),
        (Status.QUEUED, {"claim_token": uuid4()}),
        (Status.QUEUED, {"finished_at": timezone.now()}),
        (Status.QUEUED, {"cancel_reason": CancelReason.USER}),
        (Status.PROCESSING, {"claim_token": None}),
        (Status.PROCESSING, {"status": Status.FAILED}),
        (Status.PROCESSING, {"finished_at": timezone.now()}),
        (Status.SUCCESS, {"finished_at": None}),
        (Status.SUCCESS, {"cancel_reason": CancelReason.USER}),
        (Status.CANCELLED, {"finished_at": None}),
        (Status.CANCELLED, {"cancel_reason": None}),
        (Status.CANCELLED, {"status": Status.QUEUED}),
    ],
)
def test_the_database_refuses_what_must_never_be(status: Status, wrong: dict[str, Any]) -> None:
    mail = MailFactory(status=status)
    with pytest.raises(IntegrityError, match="task_"), transaction.atomic():
        MailTask.objects.filter(id=mail.id).update(**wrong)
