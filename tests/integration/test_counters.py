"""What is kept count of is what is there, whatever moved it, and nobody counts the ledger for it."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from redis import RedisError

from accounts.models import SmtpAccount, User
from mailqueue import upkeep
from tasks import counters, doorbell, ledger
from tasks.ledger import Claimed, Entry, Settlement
from tasks.models import Claim, Due, MailTask
from tasks.states import CancelReason, Lane, OnUncertain, Outcome, Phase, Status
from tests.factories import RAW, UserFactory, claim_one, end_leases, make_due

pytestmark = pytest.mark.django_db


def enter(owner: User, seconds: float = 0, **changes: object) -> MailTask:
    """As it comes in; due after so many seconds, or since a minute, for PostgreSQL's now() is the transaction's."""
    now = timezone.now()
    due = now + timedelta(seconds=seconds or -60)
    task = MailTask(
        owner=owner,
        status=Status.SCHEDULED if seconds > 0 else Status.QUEUED,
        lane=Lane.DEFAULT,
        max_tries=8,
        on_uncertain=OnUncertain.RETRY,
        due_at=due,
        created_at=now,
        moved_at=now,
        scheduled_at=due if seconds > 0 else None,
        sender="ada@example.com",
        recipient="jane@example.com",
        subject="hello",
        message_id="<1@example.com>",
        **changes,
    )
    assert ledger.enter(task, RAW, from_email=task.owner.smtp.from_email)
    return task


def counted() -> dict[str, int]:
    """The states that have mails."""
    figures = counters.figures()
    found = {status.label: figures.in_state(status) for status in Status} | {"dead": figures.dead_letter}
    return {name: count for name, count in found.items() if count}


def end(mail: Claimed, status: Status, outcome: Outcome, **more: object) -> None:
    one = Settlement(mail.id, mail.token, status, outcome=outcome, phase=Phase.REPLY, duration_ms=30, **more)
    assert ledger.settle([one], "worker:1") == {mail.id}


def all_of(owner: User):
    return MailTask.objects.filter(owner=owner)


# States -----------------------------------------------------------------------------------------------


def test_a_mail_is_counted_where_it_is_on_all_its_way(owner: User) -> None:
    enter(owner)
    assert counted() == {"queued": 1}
    mail = claim_one()
    assert counted() == {"processing": 1}
    end(mail, Status.FAILED, Outcome.TEMPORARY, wait=0.0)
    assert counted() == {"failed": 1}
    end(claim_one(), Status.CANCELLED, Outcome.REJECTED, cancel_reason=CancelReason.REJECTED)
    assert counted() == {"cancelled": 1, "dead": 1}
    ledger.requeue(all_of(owner))
    assert counted() == {"queued": 1}
    end(claim_one(), Status.SUCCESS, Outcome.ACCEPTED)
    assert counted() == {"success": 1}
    assert ledger.forget([mail.id]) == 1
    assert counted() == {}


def test_what_is_cancelled_without_having_failed_is_no_dead_letter(owner: User) -> None:
    enter(owner)
    enter(owner, seconds=60)
    ledger.cancel(all_of(owner), CancelReason.USER)
    assert counted() == {"cancelled": 2}


def test_what_expires_after_a_try_is_a_dead_letter(owner: User) -> None:
    enter(owner)
    end(claim_one(), Status.FAILED, Outcome.TEMPORARY, wait=60.0)
    ledger.cancel(all_of(owner), CancelReason.EXPIRED)
    assert counted() == {"cancelled": 1, "dead": 1}
    assert MailTask.objects.failures().count() == 1


def test_scheduled_mail_is_counted_as_such_until_it_is_claimed(owner: User) -> None:
    enter(owner, seconds=60)
    assert counted() == {"scheduled": 1}
    ledger.reschedule(all_of(owner), timezone.now() + timedelta(hours=1))
    assert counted() == {"scheduled": 1}
    make_due()
    mail = claim_one()
    assert counted() == {"processing": 1}
    ledger.settle(
        [ledger.put_back(mail, "not yet")], "worker:1"
    )  # it has been scheduled, and waits in the queue
    assert counted() == {"queued": 1}
    claim_one()
    assert counted() == {"processing": 1}


def test_scheduled_mail_that_is_wanted_now_is_queued(owner: User) -> None:
    enter(owner, seconds=60)
    ledger.reschedule(all_of(owner), timezone.now() - timedelta(hours=1))
    assert counted() == {"queued": 1}


def test_what_a_person_decides_on_what_is_uncertain_is_counted(owner: User) -> None:
    for _ in range(2):
        enter(owner)
        end(claim_one(), Status.UNCERTAIN, Outcome.UNCERTAIN)
    assert counted() == {"uncertain": 2}
    ledger.accept(all_of(owner).filter(id=all_of(owner).first().id))
    assert counted() == {"uncertain": 1, "success": 1}
    ledger.requeue(all_of(owner))
    assert counted() == {"queued": 1, "success": 1}


def test_a_batch_is_one_line(owner: User) -> None:
    mail = Entry(Status.QUEUED, Lane.BULK, 8, 0, None, None, "a@example.com", "x", "<x@x>", RAW, [], {})
    ledger.enter_many(owner.pk, "ada@example.com", timezone.now(), [mail] * 300)
    assert counted() == {"queued": 300}
    assert counters.Line.objects.count() == 1


def test_a_mail_to_who_is_suppressed_is_cancelled_from_the_beginning(owner: User) -> None:
    from tasks.suppressions import Suppression

    Suppression.objects.add(owner, "jane@example.com")
    enter(owner)
    assert counted() == {"cancelled": 1}


def test_what_is_rolled_back_has_not_happened(owner: User) -> None:
    enter(owner)
    for deed in (lambda: enter(owner), claim_one, lambda: ledger.cancel(all_of(owner), CancelReason.USER)):
        with transaction.atomic():
            deed()
            transaction.set_rollback(True)
        assert counted() == {"queued": 1}


def test_old_mail_that_leaves_is_counted_out(owner: User) -> None:
    enter(owner)
    ledger.cancel(all_of(owner), CancelReason.USER)
    long_ago = timezone.now() - timedelta(days=200)
    MailTask.objects.update(created_at=long_ago, finished_at=long_ago)
    assert upkeep.prune() == 1
    assert counted() == {}


# Attempts ---------------------------------------------------------------------------------------------


def test_attempts_are_counted_by_how_they_ended_and_how_long_they_took(owner: User) -> None:
    enter(owner)
    end(claim_one(), Status.FAILED, Outcome.TEMPORARY, wait=0.0)
    MailTask.objects.update(created_at=timezone.now() - timedelta(seconds=45))
    end(claim_one(), Status.SUCCESS, Outcome.ACCEPTED)
    figures = counters.figures()
    assert [figures.attempts(one) for one in Outcome] == [1, 1, 0, 0, 0]
    smtp, delivery = figures.smtp(Phase.REPLY), figures.delivery()
    assert smtp.counts[counters.SMTP.index(0.05)] == smtp.total == 2  # 30 ms each
    assert smtp.seconds == pytest.approx(0.06)
    assert delivery.counts[counters.DELIVERY.index(60)] == delivery.total == 1
    assert 30 < delivery.seconds < 60


@pytest.mark.parametrize(("duration_ms", "bound"), [(5, 0.005), (6, 0.01), (0, 0.005), (300_000, 300)])
def test_what_takes_exactly_as_long_as_a_bound_is_within_it(
    owner: User, duration_ms: int, bound: float
) -> None:
    enter(owner)
    mail = claim_one()
    sent = Settlement(
        mail.id,
        mail.token,
        Status.SUCCESS,
        outcome=Outcome.ACCEPTED,
        phase=Phase.REPLY,
        duration_ms=duration_ms,
    )
    ledger.settle([sent], "worker:1")
    assert counters.figures().smtp(Phase.REPLY).counts[counters.SMTP.index(bound)] == 1


def test_scheduled_mail_has_been_on_its_way_since_its_time(owner: User) -> None:
    enter(owner, seconds=60)
    make_due()
    now = timezone.now()
    MailTask.objects.update(created_at=now - timedelta(days=2), scheduled_at=now - timedelta(seconds=45))
    end(claim_one(), Status.SUCCESS, Outcome.ACCEPTED)
    assert 30 < counters.figures().delivery().seconds < 60


def test_what_is_taken_from_the_dead_is_counted_and_so_is_the_doubt(owner: User) -> None:
    enter(owner)
    claim_one()
    end_leases()
    assert ledger.rescue() == 1
    figures = counters.figures()
    assert (figures["rescued"], figures["uncertain"], figures.attempts(Outcome.LOST)) == (1, 1, 1)
    assert counted() == {"queued": 1}


def test_a_result_that_comes_too_late_is_counted(owner: User) -> None:
    enter(owner)
    mail = claim_one()
    sent = Settlement(mail.id, mail.token, Status.SUCCESS, outcome=Outcome.ACCEPTED)
    ledger.settle([sent], "worker:1")
    assert ledger.settle([sent], "worker:1") == set()
    assert counters.figures()["late_results"] == 1
    assert counters.figures().attempts(Outcome.ACCEPTED) == 1


def test_what_the_sweep_finds_is_counted(owner: User) -> None:
    enter(owner)
    make_due(timezone.now() - timedelta(hours=1))
    MailTask.objects.update(moved_at=timezone.now() - timedelta(hours=1))
    assert upkeep.sweep() == 1
    assert counters.figures()["swept"] == 1


def test_a_bell_that_cannot_be_rung_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RedisError("away")

    monkeypatch.setattr(doorbell, "client", fail)
    assert not doorbell.ring()
    assert not doorbell.ring()  # it is left alone for a while
    monkeypatch.undo()
    assert counters.figures()["doorbell_failures"] == 1


# Folding ----------------------------------------------------------------------------------------------


def test_folding_changes_no_figure(owner: User) -> None:
    for _ in range(3):
        enter(owner)
    end(claim_one(), Status.SUCCESS, Outcome.ACCEPTED)
    before, minutes = counters.figures(), counters.minutes(timedelta(hours=1))
    assert counters.fold() == 5
    assert counters.Line.objects.count() == 0
    assert counters.fold() == 0
    after = counters.figures()
    assert {name: value for name, value in after._values.items() if value} == {
        name: value for name, value in before._values.items() if value
    }
    ((at, minute),) = minutes.items()
    ((same, folded),) = counters.minutes(timedelta(hours=1)).items()
    assert (at, minute.attempts(Outcome.ACCEPTED)) == (same, folded.attempts(Outcome.ACCEPTED))
    assert folded.delivery() == minute.delivery()
    enter(owner)
    assert counted() == {"queued": 3, "success": 1}


def test_each_tick_folds(owner: User) -> None:
    enter(owner)
    upkeep.dispatch_due()
    assert counters.Line.objects.count() == 0
    assert counted() == {"queued": 1}


def test_old_minutes_leave_and_totals_stay(owner: User) -> None:
    enter(owner)
    end(claim_one(), Status.SUCCESS, Outcome.ACCEPTED)
    counters.Line.objects.update(at=timezone.now() - timedelta(days=3))
    counters.fold()
    assert counters.Minute.objects.exists()
    upkeep.prune()
    assert not counters.Minute.objects.exists()
    assert counters.figures().attempts(Outcome.ACCEPTED) == 1


@pytest.mark.django_db(transaction=True)
def test_nobody_waits_for_another_and_nothing_is_counted_twice() -> None:
    """Mails come in and are cancelled in six threads, while two fold."""
    owner = UserFactory()
    done = threading.Event()

    def work(_number: int) -> None:
        for _ in range(25):
            task = enter(owner)
            ledger.cancel(MailTask.objects.filter(id=task.pk), CancelReason.USER)
            enter(owner)
        connection.close()

    def fold() -> int:
        total = 0
        while not done.is_set():
            total += counters.fold()
        connection.close()
        return total

    with ThreadPoolExecutor(8) as pool:
        folding = [pool.submit(fold) for _ in range(2)]
        try:
            list(pool.map(work, range(6)))
        finally:
            done.set()
        folded = sum(each.result() for each in folding) + counters.fold()
    assert folded == 6 * 25 * 3
    assert counted() == {"queued": 150, "cancelled": 150}


# Recounting -------------------------------------------------------------------------------------------


def test_a_recount_finds_nothing_to_mend(owner: User) -> None:
    enter(owner)
    claim_one()
    enter(owner, seconds=60)
    counters.fold()
    enter(owner)
    assert counters.recount() == 0
    assert counted() == {"queued": 1, "processing": 1, "scheduled": 1}


def test_a_recount_mends_what_was_moved_by_hand(owner: User) -> None:
    enter(owner)
    enter(owner)
    counters.fold()
    Due.objects.all().delete()
    Claim.objects.all().delete()
    MailTask.objects.filter(id=all_of(owner).first().id).delete()
    MailTask.objects.update(
        status=Status.CANCELLED,
        cancel_reason=CancelReason.EXHAUSTED,
        has_failed=True,
        finished_at=timezone.now(),
    )
    assert counted() == {"queued": 2}
    assert counters.recount() == 3  # two too many here, one too few there
    assert counted() == {"cancelled": 1, "dead": 1}
    assert counters.recount() == 0


@pytest.fixture
def other_hand() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool
        pool.submit(_hang_up).result()


def _hang_up() -> None:
    connection.close()  # the thread's own


@pytest.mark.django_db(transaction=True)
def test_a_recount_is_right_while_somebody_has_not_committed(other_hand: ThreadPoolExecutor) -> None:
    owner = UserFactory()
    enter(owner)

    def begin() -> None:
        connection.set_autocommit(False)
        claim_one()

    def commit() -> None:
        connection.commit()
        connection.set_autocommit(True)

    other_hand.submit(begin).result()
    assert counters.recount() == 0
    assert counted() == {"queued": 1}
    other_hand.submit(commit).result()
    assert counted() == {"processing": 1}


# What is due ------------------------------------------------------------------------------------------


def test_due_is_what_a_worker_could_take(owner: User) -> None:
    assert ledger.due() == (0, 0.0)
    for _ in range(3):
        enter(owner)
    enter(owner, seconds=60)
    other = UserFactory()
    enter(other)
    Due.objects.filter(owner=other).update(due_at=timezone.now() - timedelta(hours=1))
    count, age = ledger.due()
    assert count == 4
    assert 3000 < age < 4000
    SmtpAccount.objects.filter(owner=other).update(paused_until=timezone.now() + timedelta(hours=1))
    count, age = ledger.due()
    assert count == 3
    assert age < 1000


def test_due_is_counted_no_further_than_it_is_quick(owner: User, monkeypatch: pytest.MonkeyPatch) -> None:
    from mailqueue import metrics

    monkeypatch.setattr(ledger, "MOST_DUE", 4)
    for _ in range(7):
        enter(owner)
    assert ledger.due()[0] == 4
    assert metrics.stats()["due"] == 7  # the kept number of what is queued


def test_figures_are_read_without_a_look_at_the_mails(owner: User) -> None:
    from mailqueue import metrics

    enter(owner)
    with CaptureQueriesContext(connection) as queries:
        metrics.stats()
        metrics.executed()
        metrics.curves()
    asked = [query["sql"] for query in queries if "tasks_mailtask" in query["sql"]]
    assert asked == []
