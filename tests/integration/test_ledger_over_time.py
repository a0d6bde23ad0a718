"""Whatever workers, people, upkeep and time do to the ledger, in whatever order, and wherever workers die: each row
is what it must be, no mail goes where it must not, and in the end none is lost.

CHAOS_SCALE=1 is the full size (5,000 runs of 50 steps), a twentieth is the default; CHAOS_SEED repeats a run. The
small size has always the same dice, so that it turns red by a change and not by chance.
"""

import os
import secrets
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import psycopg
import pytest
from django.db import connection, transaction
from django.db.models.functions import Now
from django.utils import timezone
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from accounts.models import SmtpAccount, User
from mailqueue.delivery import recovery, retry
from mailqueue.delivery.journal import LeftBehind
from tasks import counters, ledger, prepared
from tasks.models import MailTask, MailTaskQuerySet
from tasks.states import CancelReason, Lane, OnUncertain, Outcome, Status
from tests.factories import RAW, UserFactory
from tests.ledger_model import DEEDS, LEASE, Clock, Dead, Mail, Model, Verdict, Worker

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["accounts", "tasks", "mailqueue"])
SCALE = float(os.environ.get("CHAOS_SCALE", "0.05"))
RUNS, STEPS = max(1, round(5000 * SCALE)), 50
MOST_MAILS = 40
USUAL_SEED = 20260722

ROWS_AND_TICKETS = """
SELECT t.id, t.owner_id, t.lane, t.status, t.try_count, t.lost_count, t.cancel_reason, t.claim_token, t.due_at,
       t.expires_at, t.moved_at, d.task_id, d.owner_id, d.lane, d.due_at, d.expires_at
FROM tasks_mailtask t FULL JOIN tasks_due d ON d.task_id = t.id ORDER BY t.id
"""
CLAIMS = "SELECT token, lease_until, held, task_ids, owner_ids FROM tasks_claim"
EMPTY = """
DELETE FROM tasks_attempt; DELETE FROM tasks_mailcontent; DELETE FROM tasks_due; DELETE FROM tasks_claim;
DELETE FROM tasks_mailtask; DELETE FROM tasks_counter_line; DELETE FROM tasks_counter_total;
DELETE FROM tasks_counter_minute; UPDATE accounts_smtpaccount SET paused_until = NULL
"""


class Kind(NamedTuple):
    """A mail as its owner wants it; times in seconds."""

    owner: int
    lane: Lane
    policy: OnUncertain
    max_tries: int
    after: int
    lasts: int | None


kinds = st.builds(
    Kind,
    owner=st.integers(0, 2),
    lane=st.sampled_from(Lane),
    policy=st.sampled_from([*OnUncertain, OnUncertain.RETRY]),
    max_tries=st.sampled_from([1, 2, 8]),
    after=st.sampled_from([0, 0, 0, 60, 4000]),
    lasts=st.sampled_from([None, None, None, 100, 7200]),
)
picks = st.lists(st.integers(0, MOST_MAILS - 1), min_size=1, max_size=3)
workers = st.integers(0, 2)
limits = st.sampled_from([1, 4, 200])
#: What the relay does with one mail after the other.
plans = st.lists(st.sampled_from([*DEEDS, "takes", "takes, reply lost"]), min_size=1, max_size=6)
#: What must have come up in a quarter of a thousand runs, or they prove nothing.
SEEN = [
    *("claimed", "probes", "died holding", "rescued", "journals recovered", "late results", "sent twice"),
    *("cancelled", "retried", "delivered", "believed"),
]
DEATHS = [
    "between two calls",
    "between two calls",
    "before the claim's commit",
    "before the dot",
    "before the settlement's commit",
    "after the settlement's commit",
]


class Stage:
    """What all runs of one test share: the clock, three owners, and a second connection in a thread of its own."""

    def __init__(self, folder: Path, clock: Clock, owners: list[User], elsewhere: ThreadPoolExecutor) -> None:
        self.folder, self.clock, self.owners, self.elsewhere = folder, clock, owners, elsewhere
        self.runs = self.steps = self.ends = 0
        #: How often what was seen; a test that sees nothing proves nothing.
        self.seen: Counter[str] = Counter()


class LedgerOverTime(RuleBasedStateMachine):
    """Three workers, whoever comes after them, the owners of three accounts, and beat.

    No rule has a precondition: which of two mails that are due at the same moment is claimed first is PostgreSQL's
    choice, and Hypothesis must be able to do the same steps again whatever that was.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage, self.clock = stage, stage.clock
        stage.runs += 1
        self.folder = stage.folder / str(stage.runs)
        self.model = Model(stage.clock, [owner.pk for owner in stage.owners], stage.seen)
        self.hired = 0
        self.workers = [self.hire() for _ in range(3)]
        self.dead: list[Dead] = []
        _empty_the_tables(stage.runs)

    def hire(self) -> Worker:
        self.hired += 1
        return Worker(self.model, self.folder, self.hired)

    # Owners -----------------------------------------------------------------------------------------

    @initialize(kinds=st.lists(kinds, min_size=4, max_size=10))
    def begin(self, kinds: list[Kind]) -> None:
        self.enter(kinds)

    @rule(kinds=st.lists(kinds, min_size=1, max_size=4))
    def enter(self, kinds: list[Kind]) -> None:
        now = self.clock.now
        for kind in kinds[: MOST_MAILS - len(self.model.mails)]:
            user, due = self.stage.owners[kind.owner], now + timedelta(seconds=kind.after)
            expires = None if kind.lasts is None else due + timedelta(seconds=kind.lasts)
            status = Status.SCHEDULED if kind.after else Status.QUEUED
            task = MailTask(
                owner=user,
                status=status,
                lane=kind.lane,
                max_tries=kind.max_tries,
                on_uncertain=kind.policy,
                due_at=due,
                created_at=now,
                moved_at=now,
                scheduled_at=due if kind.after else None,
                expires_at=expires,
                sender="ada@example.com",
                recipient="jane@example.com",
                subject="hello",
                message_id="<1@example.com>",
            )
            assert ledger.enter(task, RAW, from_email=task.owner.smtp.from_email)
            self.model.mails[task.pk] = Mail(
                task.pk, user.pk, kind.lane, kind.policy, kind.max_tries, due, expires, status, now
            )

    def chosen(self, which: list[int]) -> tuple[list[Mail], MailTaskQuerySet]:
        mails = list(self.model.mails.values())
        mails = [mails[number] for number in {number % len(mails) for number in which}]
        return mails, MailTask.objects.filter(id__in=[mail.pk for mail in mails])

    @rule(which=picks)
    def cancel(self, which: list[int]) -> None:
        mails, tasks = self.chosen(which)
        assert ledger.cancel(tasks, CancelReason.USER) == self.model.cancel(mails, CancelReason.USER)

    @rule(which=picks, is_retry=st.booleans())
    def decide(self, which: list[int], is_retry: bool) -> None:
        mails, tasks = self.chosen(which)
        if is_retry:
            assert ledger.requeue(tasks) == self.model.requeue(mails)
        else:
            assert ledger.accept(tasks) == self.model.accept(mails)

    @rule(owner=st.integers(0, 2), seconds=st.sampled_from([None, None, 0, 200]))
    def pause(self, owner: int, seconds: int | None) -> None:
        until = None if seconds is None else self.clock.now + timedelta(seconds=seconds)
        self.model.paused[self.stage.owners[owner].pk] = until
        SmtpAccount.objects.filter(owner=self.stage.owners[owner]).update(paused_until=until)

    # Workers ----------------------------------------------------------------------------------------

    @rule(who=workers, limit=limits)
    def claim(self, who: int, limit: int) -> None:
        worker = self.workers[who]
        may = self.model.claimable()
        found, _, _ = worker.clerk.claim(limit, LEASE, {}, 0)
        worker.take_in_hand(self.model.claimed(found, limit, may))

    def one_of(self, who: int, has: Callable[[Worker], Any]) -> Worker | None:
        """One of those that have something to do."""
        able = [worker for worker in self.workers if has(worker)]
        return able[who % len(able)] if able else None

    @rule(who=workers, what=plans)
    def send(self, who: int, what: list[str]) -> None:
        """Up to the final dot, or to an answer before it."""
        worker = self.one_of(who, lambda worker: worker.unsent)
        if not worker:
            self.claim(who, 4)
            worker = self.workers[who]
        for hand, deed in zip(worker.unsent, what, strict=False):
            worker.send(hand, DEEDS[deed])

    @rule(who=workers, what=plans)
    def hear(self, who: int, what: list[str]) -> None:
        worker = self.one_of(who, lambda worker: worker.unanswered)
        if not worker:
            self.send(who, what)
            return
        for hand in worker.unanswered:
            worker.hear(hand)

    @rule(who=workers, most=st.integers(1, 5), what=plans)
    def settle(self, who: int, most: int, what: list[str]) -> None:
        worker = self.one_of(who, lambda worker: worker.unsettled)
        if not worker:
            self.hear(who, what)
            return
        worker.settle(worker.unsettled[:most])

    @rule(who=workers, limit=limits, what=plans)
    def claim_and_work(self, who: int, limit: int, what: list[str]) -> None:
        """All the way at once."""
        self.claim(who, limit)
        self._work(self.workers[who], what)

    def _work(self, worker: Worker, what: list[str]) -> None:
        for hand, deed in zip(worker.unsent, what, strict=False):
            worker.send(hand, DEEDS[deed])
        self._finish(worker)

    def _finish(self, worker: Worker) -> None:
        for hand in worker.unanswered:
            worker.hear(hand)
        if worker.unsettled:
            worker.settle(worker.unsettled)

    @rule()
    def settle_again(self) -> None:
        """All that anybody ever had to say, the dead too: a second time, or after somebody else has spoken."""
        said = {hand.key: hand.settlement for hand in self.model.hands.values() if hand.settlement}
        if said:
            moved = self.model.settle({key: Verdict.of(one) for key, one in said.items()})
            assert ledger.settle(list(said.values()), "worker:0") == moved

    @rule(who=workers)
    def renew(self, who: int) -> None:
        if worker := self.one_of(who, lambda worker: worker.until):
            worker.renew()

    # Deaths -----------------------------------------------------------------------------------------

    def bury(self, worker: Worker, journal: str = "kept", lines: int = 0) -> None:
        self.workers[self.workers.index(worker)] = self.hire()
        self.stage.seen["deaths"] += 1
        self.stage.seen["died holding"] += len(worker.hands)
        path = worker.die()
        if path and journal == "kept":
            self.dead.append(Dead(worker, path))
        elif path and journal == "torn":
            self.dead.append(Dead(worker, path, lines_kept=lines))
        elif path:
            Dead(worker, path, lines_kept=0).path.unlink()

    @rule(
        who=workers,
        when=st.sampled_from(DEATHS),
        journal=st.sampled_from(["kept", "kept", "torn", "lost"]),
        lines=st.integers(0, 12),
    )
    def die(self, who: int, when: str, journal: str, lines: int) -> None:
        """Between two of its calls: after the claim, a dot, a reply, as the last step was; or in the midst of one."""
        worker = self.one_of(who, lambda worker: worker.hands)
        if not worker:
            return
        settlements = [hand.settlement for hand in worker.unsettled if hand.settlement]
        if when == "before the claim's commit":
            _and_roll_back(lambda: worker.clerk.claim(200, LEASE, {}, 0)[0])
        elif when == "before the dot":  # which was noted, and never left
            for hand in worker.unsent[:2]:
                worker.send(hand, DEEDS["cut off"], dies_at_dot=True)
        elif when == "before the settlement's commit" and settlements:
            _and_roll_back(lambda: worker.clerk.settle(settlements))
        elif when == "after the settlement's commit" and settlements:
            worker.settle(worker.unsettled, is_forgotten=True)
        self.bury(worker, journal, lines)

    @rule(
        which=st.integers(0, 9), dies=st.sampled_from(["never", "never", "before commit", "before removal"])
    )
    def recover(self, which: int, dies: str) -> None:
        """The next worker of the host reads a journal; if it dies over that, another does it again."""
        if not self.dead:
            return
        dead = self.dead[which % len(self.dead)]
        if dies == "before commit":
            with patch.object(LeftBehind, "remove"):
                _and_roll_back(lambda: recovery.recover(dead.path))
            return
        with patch.object(LeftBehind, "remove") if dies == "before removal" else nullcontext():
            recovered = recovery.recover(dead.path)
        assert recovered == len(self.model.settle(dead.verdicts()))
        if dies == "never":
            self.stage.seen["journals recovered"] += 1
            self.dead.remove(dead)
            assert not dead.path.exists()

    # Two at the same moment -------------------------------------------------------------------------

    def elsewhere(self, deed: Callable[[], Any]) -> Any:
        return self.stage.elsewhere.submit(deed).result()

    @rule(first=workers, second=workers, limit=limits, is_committed=st.booleans())
    def claim_while_another_claims(self, first: int, second: int, limit: int, is_committed: bool) -> None:
        """What a claim that is not committed yet has taken is passed over, not waited for."""
        if first == second:
            return
        one, other, may = self.workers[first], self.workers[second], self.model.claimable()
        theirs = self.elsewhere(lambda: _begin(self.clock, lambda: one.clerk.claim(limit, LEASE, {}, 0)[0]))
        ours = other.clerk.claim(200, LEASE, {}, 0)[0]
        self.elsewhere(lambda: _end(is_committed))
        assert not {mail.id for mail in ours} & {mail.id for mail in theirs}
        # Neither saw the other's, so each may have got a probe of the same account.
        if is_committed:
            one.take_in_hand(self.model.claimed(theirs, limit, may))
        other.take_in_hand(self.model.claimed(ours, 200, may, is_alone=False))
        if not is_committed:
            self.bury(one)

    @rule(who=workers, is_committed=st.booleans())
    def rescue_while_it_settles(self, who: int, is_committed: bool) -> None:
        """A claim of which something is being settled at this moment is not rescued, though its lease is over."""
        worker = self.one_of(who, lambda worker: worker.unsettled)
        if not worker:
            return
        hands = worker.unsettled
        settlements = [hand.settlement for hand in hands if hand.settlement]
        busy = {hand.mail.token for hand in hands if self.model.holds(hand)}
        self.elsewhere(lambda: _begin(self.clock, lambda: worker.clerk.settle(settlements)))
        over = [token for token in self.model.over() if token not in busy]
        assert ledger.rescue(100) == self.model.rescue(over)
        self.elsewhere(lambda: _end(is_committed))
        if is_committed:
            self.model.settle({(one.id, one.token): Verdict.of(one) for one in settlements})
            for hand in hands:
                worker.drop(hand)
        else:
            self.bury(worker)

    # Time and upkeep --------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 61, 61, 121, 121, 301, 3601]))
    def time_passes(self, seconds: int) -> None:
        self.clock.pass_by(seconds)

    @rule(what=st.sampled_from(["rescue", "rescue", "rescue one", "dispatch_due", "sweep"]))
    def upkeep(self, what: str) -> None:
        if what == "dispatch_due":
            assert ledger.expire() == self.model.cancel(self.model.expired(), CancelReason.EXPIRED)
            assert ledger.is_anything_due() == bool(self.model.due())
        elif what == "sweep":
            assert ledger.forgotten(300, 1000) == len(self.model.forgotten(300))
        else:
            claims = 1 if what == "rescue one" else 100
            assert ledger.rescue(claims) == self.model.rescue(self.model.over()[:claims])

    # What must be true after each step --------------------------------------------------------------

    @invariant()
    def all_tables_are_as_they_must_be(self) -> None:
        self.stage.steps += 1
        mails = self.model.mails.values()
        assert prepared.rows(ROWS_AND_TICKETS) == [mail.row + mail.ticket for mail in mails]
        claims = prepared.rows(CLAIMS)
        assert {token: until for token, until, *_ in claims} == self.model.leases
        for token, _, held, task_ids, owner_ids in claims:
            mails = self.model.held_under(token)
            assert held == len(mails) > 0
            assert {mail.pk for mail in mails} <= set(task_ids)
            assert {mail.owner for mail in mails} <= set(owner_ids)

    @invariant()
    def what_is_kept_count_of_is_what_is_there(self) -> None:
        """Folded or not: every deed counts in its own transaction, and what was rolled back has not happened."""
        if self.stage.steps % 3 == 0:
            counters.fold()
        figures = counters.figures()
        there = Counter(mail.status for mail in self.model.mails.values())
        assert {status: figures.in_state(status) for status in Status} == {s: there[s] for s in Status}
        assert figures.dead_letter == MailTask.objects.failures().filter(status=Status.CANCELLED).count()
        ended = dict(prepared.rows("SELECT outcome, count(*)::int FROM tasks_attempt GROUP BY outcome"))
        assert {one: figures.attempts(one) for one in Outcome} == {one: ended.get(one, 0) for one in Outcome}
        assert figures.delivery().total == ended.get(Outcome.ACCEPTED, 0)

    # The end ----------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:  # else that is what is to be told
                self.it_all_comes_to_an_end()
        finally:
            for worker in self.workers:
                worker.die()
            shutil.rmtree(self.folder, ignore_errors=True)

    def it_all_comes_to_an_end(self) -> None:
        """The faults are over: what is left is sent, and every mail is accounted for."""
        for number in range(3):
            self.pause(number, None)
        for dead in list(self.dead):
            self.recover(self.dead.index(dead), "never")
        for worker in self.workers:
            self._send_all(worker)
        for _ in range(20):
            if not any(one.waits or one.token for one in self.model.mails.values()):
                break
            ends = [*self.model.leases.values(), *(mail.due for mail in self.model.waiting())]
            self.clock.pass_by(max(0.0, (max(ends) - self.clock.now).total_seconds()) + 1)
            self.upkeep("rescue")
            self.upkeep("dispatch_due")
            self.claim(0, 200)
            self._send_all(self.workers[0])
            self.all_tables_are_as_they_must_be()
        assert not any(one.waits or one.token for one in self.model.mails.values())
        mails = self.model.mails.values()
        delivered = {one.pk for one in mails if one.status == Status.SUCCESS and one.copies}
        believed = {one.pk for one in mails if one.status == Status.SUCCESS and one.is_believed}
        ended = {one.pk for one in mails if one.status in (Status.CANCELLED, Status.UNCERTAIN)}
        assert set(self.model.mails) - delivered - believed - ended == set(), "lost"
        noted = dict(prepared.rows("SELECT task_id, count(*)::int FROM tasks_attempt GROUP BY task_id"))
        assert noted == {one.pk: one.attempts for one in mails if one.attempts}
        self.stage.ends += 1
        self.stage.seen["mails"] += len(mails)
        self.stage.seen["delivered"] += len(delivered)
        self.stage.seen["believed"] += len(believed - delivered)
        self.stage.seen["cancelled or held"] += len(ended)

    def _send_all(self, worker: Worker) -> None:
        for hand in worker.unsent:
            worker.send(hand, DEEDS["takes"])
        self._finish(worker)


def _begin(clock: Clock, deed: Callable[[], Any]) -> Any:
    """In a transaction that stays open."""
    clock.wind()
    connection.set_autocommit(False)
    return deed()


def _end(is_committed: bool) -> None:
    if is_committed:
        connection.commit()
    else:
        connection.rollback()
    connection.set_autocommit(True)


def _hang_up() -> None:
    connection.close()  # the thread's own


def _and_roll_back(deed: Callable[[], Any]) -> None:
    """Done, and not committed: the worker died first."""
    with transaction.atomic():
        deed()
        transaction.set_rollback(True)


def _empty_the_tables(run: int) -> None:
    """By hand: to flush the whole database takes as long as a run, and to truncate makes each statement be planned
    anew."""
    with psycopg.Cursor(connection.connection) as cursor:
        cursor.execute(EMPTY)
        if run % 100 == 0:
            cursor.execute("VACUUM ANALYZE")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    with connection.cursor() as cursor:
        cursor.execute(Clock.FUNCTIONS)
    clock.wind()
    monkeypatch.setattr(timezone, "now", lambda: clock.now)
    yield clock
    with connection.cursor() as cursor:
        cursor.execute("DROP SCHEMA clock CASCADE")
    connection.close()  # and with it its search_path


@pytest.fixture
def stage(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(retry, "JITTER", 0)
    monkeypatch.setattr(recovery.logger, "disabled", True)
    with ThreadPoolExecutor(1) as elsewhere:
        yield Stage(tmp_path, clock, UserFactory.create_batch(3), elsewhere)
        elsewhere.submit(_hang_up).result()


def test_the_ledger_goes_by_the_clock_that_the_test_moves(clock: Clock) -> None:
    """Prepared or not, and Django's own Now() too; else all below would be true by accident."""
    owner = UserFactory()
    for _ in range(8):  # after five times PostgreSQL keeps a plan
        assert User.objects.annotate(at=Now()).values_list("at", flat=True).get(pk=owner.pk) == clock.now
        assert prepared.rows("SELECT now(), statement_timestamp()") == [(clock.now, clock.now)]
        clock.pass_by(3600)


@pytest.mark.timeout(600 + 7200 * SCALE)
def test_whatever_happens_in_whatever_order_the_ledger_says_what_is_true_and_loses_nothing(
    stage: Stage,
) -> None:
    number = int(os.environ.get("CHAOS_SEED") or (secrets.randbelow(10**9) if SCALE > 0.05 else USUAL_SEED))
    sys.stdout.write(f"CHAOS_SEED={number} CHAOS_SCALE={SCALE:g}: {RUNS} runs of {STEPS} steps\n")
    run_state_machine_as_test(
        seed(number)(lambda: LedgerOverTime(stage)),
        settings=settings(
            # Some of Hypothesis's runs are shorter than they may be: so many have as many steps together.
            max_examples=RUNS * 6 // 5,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
    seen = ", ".join(f"{what} {count}" for what, count in sorted(stage.seen.items()))
    sys.stdout.write(f"{stage.ends} runs to the end, {stage.steps} steps; {seen}\n")
    assert stage.ends >= RUNS
    if RUNS >= 250:  # fewer need not see everything
        assert stage.steps >= RUNS * STEPS * 0.9
        assert [what for what in SEEN if not stage.seen[what]] == []
