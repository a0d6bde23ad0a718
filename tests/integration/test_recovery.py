"""A worker is killed; the next one of its host knows from the journal what became of each mail."""

import errno
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError
from django.utils import timezone
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from accounts.models import SmtpAccount
from mailqueue.delivery import journal, recovery
from mailqueue.delivery.courier import Courier
from mailqueue.delivery.hand import Report
from mailqueue.delivery.journal import Journal
from mailqueue.delivery.replies import Answer, Fault
from tasks import ledger
from tasks.ledger import Claimed, Settlement
from tasks.models import Attempt, Due, MailTask
from tasks.states import CancelReason, OnUncertain, Outcome, Phase, Status
from tests.factories import MailFactory, claim_one, end_leases, make_due, sending_user
from tests.machine import until
from tests.mortal import POINTS, MortalCourier
from tests.relay import RESET, TAKE_AND_RESET, Relay

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["accounts", "tasks", "mailqueue"])
LONG = 30.0
POLICIES = {
    OnUncertain.RETRY: Status.FAILED,
    OnUncertain.HOLD: Status.UNCERTAIN,
    OnUncertain.ACCEPT: Status.SUCCESS,
}


@pytest.fixture
def dead(own_journals: Path) -> Iterator[Journal]:
    """The journal of a worker that is about to be found dead."""
    noted = Journal(own_journals, "worker:1")
    yield noted
    noted.close()


def claimed(noted: Journal, **changes: Any) -> Claimed:
    """A mail in the hands of the worker with this journal."""
    MailFactory(**changes)
    mail = claim_one(120)
    noted.claimed(mail.token)
    return mail


def next_worker_starts(dead: Journal) -> None:
    dead.close()
    recover()


def recover() -> None:
    courier = Courier("worker:2").start()
    courier.drain(0)  # which waits for the recovery, and claims nothing
    wait_for_recovery(courier)
    courier.stop(5)


def wait_for_recovery(courier: Courier) -> None:
    async def done() -> None:
        await courier._recovery

    courier._call(done())


def row(mail: Claimed | MailTask) -> MailTask:
    return MailTask.objects.get(pk=mail.id)


def attempts(mail: Claimed | MailTask) -> list[tuple[int, int, int | None, str]]:
    return [
        (one.number, one.outcome, one.code, one.worker) for one in Attempt.objects.filter(task_id=mail.id)
    ]


# The three cases ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", OnUncertain)
def test_without_a_dot_it_was_surely_not_sent_and_is_put_back(dead: Journal, policy: OnUncertain) -> None:
    mail = claimed(dead, on_uncertain=policy)
    before = row(mail).due_at
    next_worker_starts(dead)
    now = row(mail)
    assert (now.status, now.try_count, now.due_at, now.started_at) == (Status.QUEUED, 0, before, None)
    assert attempts(mail) == []


def test_put_back_with_tries_behind_it_it_is_failed_as_before(dead: Journal) -> None:
    mail = claimed(dead, status=Status.FAILED, try_count=3)
    next_worker_starts(dead)
    assert (row(mail).status, row(mail).try_count) == (Status.FAILED, 3)


@pytest.mark.parametrize(("policy", "status"), POLICIES.items())
def test_between_dot_and_reply_it_is_uncertain(dead: Journal, policy: OnUncertain, status: Status) -> None:
    mail = claimed(dead, on_uncertain=policy)
    dead.dot(mail)
    next_worker_starts(dead)
    assert row(mail).status == status
    assert row(mail).last_reply == "the connection was lost (the worker died before the reply)"
    assert attempts(mail) == [(1, Outcome.UNCERTAIN, None, "worker:1")]


@pytest.mark.parametrize(
    ("answer", "status", "outcome"),
    [
        (Answer(Phase.REPLY, 250, "2.0.0 taken"), Status.SUCCESS, Outcome.ACCEPTED),
        (Answer(Phase.REPLY, 451, "4.3.0 later"), Status.FAILED, Outcome.TEMPORARY),
        (Answer(Phase.REPLY, 554, "5.7.1 no"), Status.CANCELLED, Outcome.REJECTED),
        (Answer(Phase.RCPT, 550, "5.1.1 who?"), Status.CANCELLED, Outcome.REJECTED),
        (Answer(Phase.DATA, fault=Fault.LOST), Status.FAILED, Outcome.TEMPORARY),
        (Answer(Phase.REPLY, fault=Fault.TIMEOUT), Status.UNCERTAIN, Outcome.UNCERTAIN),
    ],
)
def test_a_known_answer_counts_as_if_nothing_had_happened(
    dead: Journal, answer: Answer, status: Status, outcome: Outcome
) -> None:
    mail = claimed(dead, on_uncertain=OnUncertain.HOLD)
    if answer.phase == Phase.REPLY:
        dead.dot(mail)
    dead.reply(mail, answer)
    next_worker_starts(dead)
    assert (row(mail).status, row(mail).last_reply) == (status, str(answer))
    assert attempts(mail) == [(1, outcome, answer.code, "worker:1")]


def test_an_answer_about_the_account_costs_the_mail_no_try(dead: Journal) -> None:
    mail = claimed(dead)
    dead.reply(mail, Answer(Phase.AUTH, 535, "5.7.8 wrong password"))
    next_worker_starts(dead)
    assert (row(mail).status, row(mail).try_count) == (Status.QUEUED, 0)
    assert attempts(mail) == []


def test_the_file_is_gone_afterwards(dead: Journal, own_journals: Path) -> None:
    claimed(dead)
    next_worker_starts(dead)
    assert list(own_journals.iterdir()) == []


def test_a_mail_that_is_there_when_workers_die_again_and_again_is_put_off(own_journals: Path) -> None:
    mail = MailFactory()
    for _ in range(ledger.DEATHS_BEFORE_DELAY + 1):
        assert row(mail).due_at <= timezone.now()
        noted = Journal(own_journals, "worker:1")
        held = claim_one(120)
        noted.claimed(held.token)
        next_worker_starts(noted)
    assert row(mail).due_at > timezone.now()


# The fence ------------------------------------------------------------------------------------------


def test_what_was_settled_or_rescued_meanwhile_stays_as_it_is(dead: Journal) -> None:
    settled, rescued, taken = (claimed(dead, on_uncertain=OnUncertain.HOLD) for _ in range(3))
    for mail in (settled, rescued, taken):
        dead.dot(mail)
    ledger.settle(
        [Settlement(settled.id, settled.token, Status.SUCCESS, outcome=Outcome.ACCEPTED)], "worker:1"
    )
    MailTask.objects.update(on_uncertain=OnUncertain.RETRY)
    end_leases()
    ledger.rescue()
    Due.objects.filter(task=rescued.id).update(due_at=timezone.now() + timedelta(hours=1))
    again = claim_one(120)
    assert again.id == taken.id
    next_worker_starts(dead)
    assert [row(mail).status for mail in (settled, rescued, taken)] == [
        Status.SUCCESS,
        Status.QUEUED,
        Status.PROCESSING,
    ]
    assert row(taken).claim_token == again.token


def test_a_late_result_of_a_worker_taken_for_dead_changes_nothing(dead: Journal) -> None:
    mail = claimed(dead)
    next_worker_starts(dead)
    assert ledger.settle([ledger.Settlement(mail.id, mail.token, Status.SUCCESS)], "worker:1") == set()
    assert row(mail).status == Status.QUEUED


def test_a_living_workers_mails_are_left_alone(dead: Journal) -> None:
    mail = claimed(dead)
    recover()
    assert row(mail).status == Status.PROCESSING


def test_another_containers_of_this_machine_are_taken_over(own_journals: Path) -> None:
    noted = Journal(own_journals, "a-container-that-never-comes-back:1")
    mail = claimed(noted)
    next_worker_starts(noted)
    assert row(mail).status == Status.QUEUED
    assert list(own_journals.iterdir()) == []


def test_another_machines_are_left_alone(own_journals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "boot_id", lambda: "elsewhere")
    noted = Journal(own_journals, "elsewhere:1")
    mail = claimed(noted)
    monkeypatch.setattr(journal, "boot_id", lambda: "here")
    next_worker_starts(noted)
    assert row(mail).status == Status.PROCESSING
    assert len(list(own_journals.iterdir())) == 1


def test_after_a_restart_of_the_machine_only_what_is_written_counts(
    dead: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line of a dot may not have come to the disk, so that it is missing proves nothing."""
    silent, taken = claimed(dead), claimed(dead)
    dead.dot(taken)
    dead.reply(taken, Answer(Phase.REPLY, 250, "2.0.0 taken"))
    monkeypatch.setattr(journal, "boot_id", lambda: "another")
    next_worker_starts(dead)
    assert (row(silent).status, row(taken).status) == (Status.PROCESSING, Status.SUCCESS)


# The database is away -------------------------------------------------------------------------------


@pytest.mark.parametrize("deed", ["held", "take_back", "settle"])
def test_while_the_database_is_away_it_tries_again_and_nothing_is_lost(
    dead: Journal, own_journals: Path, monkeypatch: pytest.MonkeyPatch, deed: str
) -> None:
    unsent, taken = claimed(dead), claimed(dead)
    dead.reply(taken, Answer(Phase.REPLY, 250, "2.0.0 taken"))
    really, times = getattr(ledger, deed), 0

    def away_at_first(*args: Any) -> Any:
        nonlocal times
        times += 1
        done = really(*args)
        if times <= 2:
            assert len(list(own_journals.iterdir())) == 1
            raise OperationalError("the connection was lost before the commit")
        return done

    monkeypatch.setattr(recovery.ledger, deed, away_at_first)
    next_worker_starts(dead)
    assert times == (4 if deed == "settle" else 3)  # for taking back settles too
    assert (row(unsent).status, row(unsent).lost_count) == (Status.QUEUED, 1)
    assert row(taken).status == Status.SUCCESS
    assert attempts(taken) == [(1, Outcome.ACCEPTED, 250, "worker:1")]
    assert list(own_journals.iterdir()) == []


def test_no_mail_is_claimed_before_the_recovery_is_over(
    dead: Journal, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed(dead)
    dead.close()
    waiting = MailFactory(owner=sending_user(relay.port))

    def away(_tokens: object) -> list[Claimed]:
        raise OperationalError("away")

    with monkeypatch.context() as patch:
        patch.setattr(recovery.ledger, "held", away)
        courier = Courier("worker:2").start()
        assert courier.drain(0.5) == Report()
        assert row(waiting).status == Status.QUEUED
    wait_for_recovery(courier)
    courier.drain(LONG)
    courier.stop(5)
    assert row(waiting).status == Status.SUCCESS


def test_a_journal_that_cannot_be_recovered_holds_up_neither_mail_nor_other_journals(
    own_journals: Path, relay: Relay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (Journal(own_journals, worker) for worker in ("worker:1", "worker:3"))
    claimed(first)
    good = claimed(second)
    really = recovery.recover

    def raises_on_the_first(path: Path) -> int:
        if "worker:1" in path.name:
            raise ValueError("a bug")
        return really(path)

    monkeypatch.setattr(recovery, "recover", raises_on_the_first)
    first.close()
    second.close()
    recover()
    assert "recovery_failed" in caplog.text
    assert row(good).status == Status.QUEUED
    assert len(list(own_journals.iterdir())) == 1


# A journal that cannot be written -------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """From the first line of this kind on (B begins the file) nothing more can be written."""
    really = os.write

    def fill(first: bytes) -> None:
        is_full = False

        def write(fd: int, data: bytes) -> int:
            nonlocal is_full
            if not data.startswith((b"B ", b"C ", b"D ", b"R ")):
                return really(fd, data)
            is_full = is_full or data.startswith(first)
            if is_full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return really(fd, data)

        monkeypatch.setattr(os, "write", write)

    yield fill
    monkeypatch.setattr(os, "write", really)


def test_a_worker_that_cannot_write_claims_nothing_says_so_and_goes_on_when_it_can(
    relay: Relay, full_disk: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mail = MailFactory(owner=sending_user(relay.port))
    courier = Courier("worker:1").start()
    full_disk(b"B ")
    assert courier.drain(0.5) == Report()
    now = row(mail)
    assert (now.status, now.try_count, len(relay.accepted)) == (Status.QUEUED, 0, 0)
    assert any(one.levelname == "ERROR" and one.msg == "journal_unwritable" for one in caplog.records)
    monkeypatch.undo()
    assert courier.drain(LONG) == Report(claimed=1, sent=1)
    courier.stop(5)


def test_a_dot_that_cannot_be_noted_does_not_leave_and_costs_no_try(
    relay: Relay, full_disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail = MailFactory(owner=sending_user(relay.port))
    courier = Courier("worker:1").start()
    full_disk(b"D ")
    courier.drain(0.5)
    now = row(mail)
    assert (now.status, now.try_count, len(relay.accepted)) == (Status.QUEUED, 0, 0)
    assert "No space left" in now.last_reply
    assert attempts(mail) == []
    courier.stop(5)


def test_a_reply_that_cannot_be_noted_counts_all_the_same(relay: Relay, full_disk: Any) -> None:
    mail = MailFactory(owner=sending_user(relay.port))
    courier = Courier("worker:1").start()
    full_disk(b"R ")
    until(lambda: (courier.drain(1), row(mail).status)[1] == Status.SUCCESS, "it is sent")
    courier.stop(5)
    assert len(relay.accepted) == 1


# Its life -------------------------------------------------------------------------------------------


def test_a_worker_that_ends_in_peace_leaves_no_file(relay: Relay, own_journals: Path) -> None:
    MailFactory.create_batch(5, owner=sending_user(relay.port))
    courier = Courier("worker:1").start()
    courier.drain(LONG)
    (file,) = own_journals.iterdir()
    assert sum(line.startswith("R ") for line in file.read_text().splitlines()) == 5
    assert not any(courier._journal._open.values())
    courier.stop(5)
    assert list(own_journals.iterdir()) == []


def test_the_dot_is_noted_before_it_leaves_and_the_claim_before_it_is_committed(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, int]] = []
    mail = MailFactory(owner=sending_user(relay.port))
    really = journal._write_all

    def spy(fd: int, data: bytes) -> None:
        seen.append((data.decode().splitlines()[-1][0], row_of_another_connection(mail), len(relay.accepted)))
        really(fd, data)

    monkeypatch.setattr(journal, "_write_all", spy)
    courier = Courier("worker:1").start()
    courier.drain(LONG)
    courier.stop(5)
    assert [seen[0], *(note for note in seen[1:] if note[0] != "C")] == [  # a later claim found nothing
        ("C", Status.QUEUED, 0),
        ("D", Status.PROCESSING, 0),
        ("R", Status.PROCESSING, 1),
    ]


def row_of_another_connection(mail: MailTask) -> int:
    """The status that others see."""
    import psycopg
    from django.db import connection

    parameters = {
        name: value
        for name, value in connection.get_connection_params().items()
        if name in ("dbname", "host", "port", "user", "password")
    }
    with psycopg.connect(**parameters) as other:
        found = other.execute("SELECT status FROM tasks_mailtask WHERE id = %s", [mail.id]).fetchone()
    assert found
    return int(found[0])


# Killed at any point --------------------------------------------------------------------------------

#: What the relay does with a mail, and what that makes of it where a worker has lived to know it.
DEEDS: dict[str, tuple[tuple[str, Any] | None, Status | None]] = {
    "takes": (None, Status.SUCCESS),
    "refuses": (("rcpt", "550 5.1.1 who?"), Status.CANCELLED),
    "puts off": (("dot", "451 4.3.0 later"), Status.FAILED),
    "is cut off": (("dot", RESET), None),
    "takes and is cut off": (("dot", TAKE_AND_RESET), None),
}


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    point=st.sampled_from(POINTS),
    nth=st.integers(1, 12),
    plan=st.lists(
        st.tuples(st.sampled_from(sorted(DEEDS)), st.sampled_from(OnUncertain)), min_size=1, max_size=12
    ),
)
def test_killed_at_any_point_each_mail_becomes_what_the_page_says(
    own_journals: Path, point: tuple[str, str], nth: int, plan: list[tuple[str, OnUncertain]]
) -> None:
    MailTask.objects.all().delete()
    with Relay() as relay, pytest.MonkeyPatch.context() as patch:
        owner = sending_user(relay.port, max_connections=3)
        mails: list[tuple[MailTask, str, OnUncertain]] = []
        for deed, policy in plan:
            mail = MailFactory(owner=owner, on_uncertain=policy)
            if script := DEEDS[deed][0]:
                relay.on(*script, to=mail.recipient)
            mails.append((mail, deed, policy))
        mortal = MortalCourier(patch, *point, nth)
        mortal.live_and_die()
        patch.undo()
        noted = {(line[0], int(line[1])) for line in mortal.lines if line[0] in "DR"}
        was_settled = {mail.id for mail, _, _ in mails if row(mail).status not in (0, Status.PROCESSING)}
        recover()
        for mail, deed, policy in mails:
            now = row(mail)
            known = mail.id in was_settled or ("R", mail.id) in noted
            if known:
                expected = DEEDS[deed][1] if DEEDS[deed][1] is not None else POLICIES[policy]
            elif ("D", mail.id) in noted:
                expected = POLICIES[policy]
            else:
                expected = Status.QUEUED
                assert not relay.accepted_for(mail.recipient)
            assert now.status == expected, (deed, policy.label)
            tries = 0 if expected == Status.QUEUED else 1
            assert (now.try_count, len(attempts(mail)), now.claim_token) == (tries, tries, None)
        _then_all_of_it_ends(mails, noted, relay)
    SmtpAccount.objects.all().delete()


def _then_all_of_it_ends(
    mails: list[tuple[MailTask, str, OnUncertain]], noted: set[tuple[str, int]], relay: Relay
) -> None:
    """The next worker brings every mail to its end, and none twice that may not go twice."""
    courier = Courier("worker:2").start()
    for _ in range(3):
        make_due()
        courier.drain(LONG)
    courier.stop(5)
    for mail, deed, policy in mails:
        now, copies = row(mail), len(relay.accepted_for(mail.recipient))
        in_doubt = deed in ("is cut off", "takes and is cut off") or (
            ("D", mail.id) in noted and ("R", mail.id) not in noted
        )
        assert now.status in (Status.SUCCESS, Status.UNCERTAIN, Status.CANCELLED)
        assert copies <= (2 if in_doubt and policy == OnUncertain.RETRY else 1)
        if now.status == Status.CANCELLED:
            assert (deed, now.cancel_reason) == ("refuses", CancelReason.REJECTED)
        if now.status == Status.SUCCESS and policy != OnUncertain.ACCEPT:
            assert copies >= 1  # nothing is lost
