"""What happens is told to those who listen: in order, once, and to nobody else."""

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection, transaction
from django.utils import timezone

from accounts.models import AccountChange, AccountState, SmtpAccount, User
from mailqueue.delivery.breaker import close, trip
from mailqueue.delivery.replies import Answer, Fault, Meaning
from mailqueue.delivery.routes import relay_of
from tasks import events, ledger, submission
from tasks.events import EventRow, Listener
from tasks.ledger import Settlement
from tasks.models import MailTask
from tasks.states import CancelReason, OnUncertain, Outcome, Phase, Status
from tasks.submission import NewMail
from tasks.suppressions import Suppression
from tests.factories import MailFactory, UserFactory, claim_one, client_of, end_leases

#: Several transactions: one alone never sees what it has told.
pytestmark = pytest.mark.django_db(transaction=True)
START = 0
A_MAIL = NewMail("jane@example.com", "hello", "Hello.")


@pytest.fixture
def owner() -> User:
    user: User = UserFactory()
    events.listen(user.pk)
    return user


def told(position: int = START, **narrowed: Any) -> list[tuple[str, str]]:
    return [(one.name, one.data["status"]) for one in events.after(position, 100, **narrowed)]


def said(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def settle(task: MailTask, status: Status, **result: Any) -> None:
    ledger.settle([Settlement(task.pk, claim_one().token, status, **result)], "worker:1")


# Who is told ----------------------------------------------------------------------------------------


def test_nobody_is_told_of_an_owner_whom_nobody_listens_to() -> None:
    other = UserFactory()
    submission.submit(other, A_MAIL)
    settle(MailTask.objects.get(), Status.SUCCESS, outcome=Outcome.ACCEPTED)
    assert not EventRow.objects.exists()


def test_who_listens_is_told_of_the_owners_he_asks_for(owner: User) -> None:
    other = UserFactory()
    events.listen(other.pk)
    mine, theirs = submission.submit(owner, A_MAIL), submission.submit(other, A_MAIL)
    assert [one.task_id for one in events.after(START, 10)] == [mine.pk, theirs.pk]
    assert [one.task_id for one in events.after(START, 10, owner_ids=[other.pk])] == [theirs.pk]
    assert events.after(START, 10, owner_ids=[]) == []


def test_listening_ends_with_its_time(owner: User) -> None:
    Listener.objects.update(until=timezone.now() - timedelta(seconds=1))
    submission.submit(owner, A_MAIL)
    assert told() == []
    assert events.listen(owner.pk, 60)
    submission.submit(owner, A_MAIL)
    assert told() == [("task.queued", "queued")]


def test_a_shorter_time_shortens_nothing(owner: User) -> None:
    assert not events.listen(owner.pk, 1)
    assert Listener.objects.get().until is None
    events.unlisten(owner.pk, 3600)
    until = Listener.objects.get().until
    assert until is not None
    assert not events.listen(owner.pk, 1)
    assert Listener.objects.get().until == until
    assert not events.listen(owner.pk)
    assert Listener.objects.get().until is None


# What is told ---------------------------------------------------------------------------------------


def test_acceptance_is_told(owner: User) -> None:
    later = timezone.now() + timedelta(hours=1)
    submission.submit(owner, A_MAIL)
    submission.submit(owner, NewMail("jane@example.com", "hello", "Hello.", scheduled_at=later, tags=("a",)))
    first, second = events.after(START, 10)
    assert (first.name, first.data["status"], first.data["next_attempt_at"]) == (
        "task.queued",
        "queued",
        None,
    )
    assert (second.name, second.data["status"]) == ("task.queued", "scheduled")
    assert second.data["next_attempt_at"] == said(later)
    assert (first.data["recipient_email"], first.data["max_tries"]) == ("jane@example.com", 8)


def test_a_batch_is_told_mail_by_mail(owner: User) -> None:
    Suppression.objects.add(owner, "joe@example.com")
    submission.submit_many(owner, [A_MAIL, NewMail("joe@example.com", "hello", "Hello."), A_MAIL])
    assert told() == [("task.queued", "queued"), ("task.cancelled", "cancelled"), ("task.queued", "queued")]


def test_a_suppressed_mail_is_told_as_cancelled(owner: User) -> None:
    Suppression.objects.add(owner, A_MAIL.recipient)
    submission.submit(owner, A_MAIL)
    (one,) = events.after(START, 10)
    assert (one.name, one.data["cancel_reason"]) == ("task.cancelled", "suppressed")


@pytest.mark.parametrize(
    ("status", "result", "name"),
    [
        (Status.SUCCESS, {"outcome": Outcome.ACCEPTED}, "task.sent"),
        (Status.SUCCESS, {"outcome": Outcome.UNCERTAIN}, "task.sent"),
        (Status.FAILED, {"outcome": Outcome.TEMPORARY, "wait": 60.0}, "task.deferred"),
        (
            Status.CANCELLED,
            {"outcome": Outcome.REJECTED, "cancel_reason": CancelReason.REJECTED},
            "task.failed",
        ),
        (
            Status.CANCELLED,
            {"outcome": Outcome.TEMPORARY, "cancel_reason": CancelReason.EXHAUSTED},
            "task.failed",
        ),
        (Status.CANCELLED, {"cancel_reason": CancelReason.EXPIRED}, "task.cancelled"),
        (Status.UNCERTAIN, {"outcome": Outcome.UNCERTAIN}, "task.uncertain"),
        (Status.QUEUED, {"outcome": Outcome.UNCERTAIN, "give_back": True}, "task.uncertain"),
    ],
)
def test_each_verdict_is_told(owner: User, status: Status, result: dict[str, Any], name: str) -> None:
    task = MailFactory(owner=owner)
    settle(task, status, phase=Phase.REPLY, code=250, reply="250 so it is", **result)
    (one,) = events.after(START, 10)
    assert (one.name, one.task_id, one.owner_id) == (name, task.pk, owner.pk)
    assert (one.data["status"], one.data["code"], one.data["reply"]) == (status.label, 250, "250 so it is")
    task.refresh_from_db()
    waits = status in (Status.FAILED, Status.QUEUED)
    assert one.data["next_attempt_at"] == (said(task.due_at) if waits else None)


def test_what_was_put_back_untried_is_not_told(owner: User) -> None:
    settle(MailFactory(owner=owner), Status.QUEUED, give_back=True, reply="The account is at its limit.")
    settle(MailTask.objects.get(), Status.FAILED, give_back=True)
    assert told() == []


def test_a_rescue_is_told_as_uncertain(owner: User) -> None:
    MailFactory(owner=owner)
    MailFactory(owner=owner, on_uncertain=OnUncertain.HOLD)
    ledger.claim(2, 60, token=uuid4(), room=9)
    end_leases()
    ledger.rescue()
    assert told() == [("task.uncertain", "queued"), ("task.uncertain", "uncertain")]


def _cancel(tasks: Any) -> int:
    return submission.cancel(tasks)


@pytest.mark.parametrize(
    ("status", "verb", "name", "after"),
    [
        (Status.QUEUED, _cancel, "task.cancelled", "cancelled"),
        (Status.CANCELLED, ledger.requeue, "task.queued", "queued"),
        (Status.FAILED, ledger.requeue, "task.queued", "queued"),
        (Status.UNCERTAIN, ledger.requeue, "task.queued", "queued"),
        (Status.UNCERTAIN, ledger.accept, "task.sent", "success"),
    ],
)
def test_what_people_do_is_told(
    owner: User, status: Status, verb: Callable[[Any], int], name: str, after: str
) -> None:
    task = MailFactory(owner=owner, status=status)
    assert verb(MailTask.objects.filter(pk=task.pk)) == 1
    assert told() == [(name, after)]
    assert verb(MailTask.objects.filter(pk=task.pk)) == 0
    assert told() == [(name, after)]


def test_another_time_is_told(owner: User) -> None:
    MailFactory(owner=owner, status=Status.SCHEDULED)
    later = timezone.now() + timedelta(hours=1)
    submission.reschedule(MailTask.objects.all(), later)
    (one,) = events.after(START, 10)
    assert (one.name, one.data["status"], one.data["next_attempt_at"]) == (
        "task.queued",
        "scheduled",
        said(later),
    )


def test_an_expiry_is_told(owner: User) -> None:
    MailFactory(owner=owner, expires_at=timezone.now() - timedelta(seconds=1))
    ledger.expire()
    (one,) = events.after(START, 10)
    assert (one.name, one.data["cancel_reason"]) == ("task.cancelled", "expired")


def test_the_accounts_breaker_is_told(owner: User) -> None:
    until = timezone.now() + timedelta(minutes=15)
    owner.smtp.note(AccountChange.PAUSED, "535 5.7.8 no", until)
    owner.smtp.note(AccountChange.RESUMED, "The SMTP settings were changed.")
    UserFactory().smtp.note(AccountChange.PAUSED, "535 5.7.8 no", until)
    paused, resumed = events.after(START, 10)
    assert (paused.name, paused.task_id, paused.data["reason"]) == ("account.paused", None, "535 5.7.8 no")
    assert paused.data["until"] == said(until)
    assert (resumed.name, resumed.data["until"]) == ("account.resumed", None)


@pytest.mark.parametrize("state", [AccountState.ACTIVE, AccountState.UNVERIFIED])
def test_an_accounts_event_has_the_state_that_the_api_shows(owner: User, state: AccountState) -> None:
    relay = relay_of(owner.smtp)
    trip(owner.pk, relay, Answer(Phase.AUTH, 535, "5.7.8 no"), Meaning.ACCOUNT)
    if state == AccountState.ACTIVE:
        close(owner.pk, relay, "The relay took a mail.")
    else:  # nobody knows yet whether the new settings are right
        account = SmtpAccount.objects.get(owner=owner)
        account.reopen().save(update_fields=SmtpAccount.REOPENED)
    shown = client_of(owner).get(f"/api/v1/user/{owner.pk}").json()["account"]["state"]
    paused, resumed = events.after(START, 10)
    assert (paused.name, paused.data["state"]) == ("account.paused", "paused")
    assert (resumed.name, resumed.data["state"]) == ("account.resumed", shown)
    assert shown == state


def test_a_name_that_does_not_resolve_pauses_the_account_too(owner: User) -> None:
    trip(owner.pk, relay_of(owner.smtp), Answer(Phase.CONNECT, fault=Fault.UNRESOLVED), Meaning.ACCOUNT)
    (paused,) = events.after(START, 10)
    assert (paused.name, paused.data["state"]) == ("account.paused", "paused")


def test_what_an_older_release_wrote_of_an_account_is_told_too(owner: User) -> None:
    events.tell(owner.pk, AccountChange.PAUSED, "535 5.7.8 no", None)
    events.tell(owner.pk, AccountChange.RESUMED, "The relay took a mail.", None)
    assert [event.data["state"] for event in events.after(START, 10)] == ["paused", "active"]


def test_every_name_is_known() -> None:
    names = {
        events.name_of(status, reason, outcome)
        for status in Status
        for reason in (None, *CancelReason)
        for outcome in (None, *Outcome)
    }
    assert names | {"account.paused", "account.resumed"} == set(events.NAMES)


# In what order -------------------------------------------------------------------------------------


def test_one_reads_on_where_one_was(owner: User) -> None:
    for _ in range(5):
        submission.submit(owner, A_MAIL)
    seen, position = [], START
    while found := events.after(position, 2):
        seen += found
        position = found[-1].position
    assert [one.task_id for one in seen] == list(MailTask.objects.order_by("id").values_list("id", flat=True))
    assert events.after(events.latest(), 10) == []


def test_what_is_not_committed_holds_back_what_came_after_it(owner: User) -> None:
    """Else it would appear before what was read, and nobody would see it."""
    begun, finish = threading.Event(), threading.Event()

    def slowly() -> None:
        try:
            with transaction.atomic():
                submission.submit(owner, NewMail("slow@example.com", "hello", "Hello."))
                begun.set()
                finish.wait(30)
        finally:
            connection.close()

    slow = threading.Thread(target=slowly)
    slow.start()
    try:
        assert begun.wait(30)
        submission.submit(owner, A_MAIL)
        assert told() == []
        with pytest.raises(events.UnsettledError):
            events.latest(patience=0.01)
    finally:
        finish.set()
        slow.join(30)
    recipients = [one.data["recipient_email"] for one in events.after(START, 10)]
    assert recipients == ["slow@example.com", "jane@example.com"]


# How long ------------------------------------------------------------------------------------------


def test_old_events_leave_and_young_ones_stay(owner: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "BITE", 2)
    for _ in range(6):
        submission.submit(owner, A_MAIL)
    tasks = list(EventRow.objects.order_by("id").values_list("task_id", flat=True))
    EventRow.objects.filter(task_id__in=tasks[:5]).update(at=timezone.now() - events.KEPT)
    assert events.prune() == 5
    assert list(EventRow.objects.values_list("task_id", flat=True)) == tasks[5:]


def test_who_has_not_listened_for_long_is_forgotten(owner: User) -> None:
    Listener.objects.update(until=timezone.now() - 2 * events.KEPT)
    events.listen(UserFactory().pk, 60)
    events.prune()
    assert not Listener.objects.filter(owner=owner).exists()
    assert Listener.objects.count() == 1
