"""The faults of docs/reliability.md: what is done, and how often, while mail is handed over."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial, wraps
from typing import Any

from tests.chaos import sabotage
from tests.chaos.client import Call, Owner
from tests.chaos.proxy import Mode, Proxy
from tests.chaos.run import SOON, Case, Run
from tests.chaos.stage import BEATS, GRACE, SETTINGS, UPKEEP, WEBS, WORKERS
from tests.machine import until

#: After a fault of PostgreSQL all parts go on by themselves within (seconds).
BACK_WITHIN = 30.0
LEASE = int(SETTINGS["MAIL_LEASE_SECONDS"])


def _as_the_same_processes(do: Callable[[Run], None]) -> Callable[[Run], None]:
    """A case after which no part of the service may have had to be started again."""

    @wraps(do)
    def case(run: Run) -> None:
        before = _pids(run)
        do(run)
        run.expect(_pids(run) == before, "a part of the service had to be started again")

    return case


def _pids(run: Run) -> dict[str, int]:
    return {name: run.stage.pid(name) for name in (*WEBS, *WORKERS, *BEATS, UPKEEP)}


# Workers --------------------------------------------------------------------------------------------


def kill_workers(run: Run) -> None:
    """C1: in turn a worker, a process of its pool, and (each tenth) a worker with its machine and journal."""
    for number in run.bursts(1):
        name = run.stage.busiest(run.sink.port) if number % 3 else run.dice.choice(WORKERS)
        deeds = (run.stage.kill, run.stage.kill_one_process)
        deed = run.stage.lose_machine if number % 10 == 2 else deeds[number % 2]
        with run.fault(f"{deed.__name__} {name}", cuts_off=True):
            deed(name)


def lose_machines(run: Run) -> None:
    """M3: workers go with their journals while a relay that does not answer keeps mail in their hands."""
    owner = run.owner(max_connections=20)
    for _ in range(run.times):
        before = run.sink.count()
        mails = run.mails // run.times
        run.client.send([owner], mails, kind="silent", on_uncertain="retry", scheduled_at=None)
        until(lambda before=before: run.sink.count() > before, "the relay has a mail")  # type: ignore[misc]
        with run.fault("lose a machine", cuts_off=True):
            run.stage.lose_machine(run.stage.busiest(run.sink.port))


def freeze_workers(run: Run) -> None:
    """C2: stopped until the lease is over and others have its mail, then let go on. Rescue is told to look meanwhile,
    which it else does every 30 s."""
    for _ in run.bursts(1):
        name = run.stage.busiest(run.sink.port)
        with run.fault("freeze", cuts_off=True):
            run.stage.freeze(name)
        end = time.monotonic() + 2 * LEASE
        while time.monotonic() < end:
            run.stage.send("rescue")
            time.sleep(2)
        with run.fault("thaw", cuts_off=True):
            run.stage.thaw(name)


def points(run: Run) -> None:
    """C10: kill -9 at each point around a mail. Who dies where the mail was surely not sent, or surely was, leaves
    none behind that goes twice."""
    owner = run.owner()
    rounds = [point for point in sabotage.POINTS for _ in range(run.times)]
    run.dice.shuffle(rounds)
    how = {"on_uncertain": "retry", "scheduled_at": None}
    for number, point in enumerate(rounds):
        recipient = run.client.address(f"ok-{point}")
        armed = run.stage.points / point
        armed.write_text(recipient)
        with run.fault(point, cuts_off=True):
            call = run.client.hand_over(owner, recipient=recipient, **how)
            if point not in sabotage.SURE:  # beside a mail that is sure nothing may be between dot and reply
                run.client.hand_over(owner, **how)
            until(lambda armed=armed: not armed.exists(), f"somebody dies {point}")  # type: ignore[misc]
        if point in sabotage.SURE:
            _until_ended(run, call)
        run.say(f"{point}, {number + 1} of {len(rounds)}")
    arrivals = Counter(mail.recipient for mail in run.sink.taken())
    twice = [
        recipient
        for recipient, count in arrivals.items()
        if count > 1 and recipient.startswith(_SURE_ADDRESSES)
    ]
    run.expect(not twice, f"I2: {len(twice)} mails went twice, though the journal or the ledger knew of them")


_SURE_ADDRESSES = tuple(f"ok-{point}." for point in sabotage.SURE)


def _until_ended(run: Run, call: Call) -> None:
    """Whoever needs the lease for it is not told so by waiting for ever."""
    ended = "SELECT count(*) FROM tasks_mailtask WHERE id = %s AND status IN (2, 4, 6)"
    end, rescued = time.monotonic() + SOON, time.monotonic()
    while run.stage.query(ended, [call.task_id]) != [(1,)] and time.monotonic() < end:
        if time.monotonic() > rescued + 2:
            run.stage.send("rescue")
            rescued = time.monotonic()
        time.sleep(0.05)


def roll_workers(run: Run) -> None:
    """C13: SIGTERM to one worker after the other; each is gone within its grace."""
    for number in run.bursts(0.5):
        _terminate(run, WORKERS[number % len(WORKERS)])


def roll_everything(run: Run) -> None:
    """R1: SIGTERM to each part of the service in turn, as an upgrade does."""
    parts = (*WEBS, *WORKERS, *BEATS, UPKEEP)
    for number in run.bursts(0.5):
        name = parts[number % len(parts)]
        _terminate(run, name)
        if name in WEBS:
            until(lambda name=name: run.stage.is_ready(name), f"{name} is back")  # type: ignore[misc]
    run.expect(
        not [call for call in run.client.calls if call.task_id is None and call.answer.isdigit()],
        "a web that was told to go answered with an error",
    )


def _terminate(run: Run, name: str) -> None:
    with run.fault(f"terminate {name}"):
        took = run.stage.terminate(name)
    run.expect(took < GRACE, f"{name} was not gone after {GRACE:.0f} s")


@_as_the_same_processes
def upgrade(run: Run) -> None:
    """R2: parts of this release come up before the database is migrated, in which older ones have left mail in every
    state that goes on. Nothing is accepted before; then all of it goes, and nobody has to be started again."""
    owner = run.owner()
    for call in (_left_by_an_older(run, owner, status) for status in (0, 1, 3, 5) for _ in range(10)):
        run.client.calls.append(call)
    with run.in_background(lambda: run.client.send([owner], run.mails, per_second=run.mails / 20)):
        time.sleep(8)
        ready = [name for name in WEBS if run.stage.is_ready(name)]
        early = [call for call in run.client.accepted if call.answer == "202"]
        with run.fault("migrate", cuts_off=True):
            run.stage.migrate()
    run.expect(not early, f"{len(early)} mails were accepted before the migration")
    run.expect(not ready, f"{ready} said that they were ready before the migration")


_OLDER = """
WITH task AS (
    INSERT INTO tasks_mailtask (owner_id, status, lane, try_count, max_tries, on_uncertain, lost_count, due_at,
        created_at, moved_at, sender, recipient, subject, message_id, last_reply, lease_until, claim_token)
    SELECT %(owner)s, %(status)s, 1, 1, 8, 0, 0, now(), now(), now(), 'old@example.com', %(recipient)s, 'chaos',
        %(message_id)s, '', CASE WHEN %(status)s = 1 THEN now() END,
        CASE WHEN %(status)s = 1 THEN gen_random_uuid() END
    RETURNING id)
INSERT INTO tasks_mailcontent (task_id, raw) SELECT id, %(raw)s FROM task RETURNING task_id
"""


def _left_by_an_older(run: Run, owner: Owner, status: int) -> Call:
    """A mail in this state, as the schema `older` has it."""
    recipient = run.client.address()
    message_id = f"<{recipient}>"
    raw = f"Message-ID: {message_id}\r\nSubject: chaos\r\n\r\nold\r\n".encode()
    row = {"owner": owner.pk, "status": status, "recipient": recipient, "message_id": message_id, "raw": raw}
    ((pk,),) = run.stage.query(_OLDER, row)
    return Call(recipient, time.time(), time.time(), pk, "of an older release")


# Redis ----------------------------------------------------------------------------------------------


@_as_the_same_processes
def restart_redis(run: Run) -> None:
    """C3: killed, away for a moment, and started empty."""
    for _ in run.bursts(1):
        with run.fault("kill Redis"):
            run.stage.kill_redis()
            time.sleep(run.dice.uniform(0, 2))
            run.stage.start_empty_redis()


@_as_the_same_processes
def flush_redis(run: Run) -> None:
    """C4"""
    with run.sending(5.0 * run.times):
        for _ in run.each(5):
            with run.fault("FLUSHALL"):
                run.stage.empty_redis()


@_as_the_same_processes
def freeze_redis(run: Run) -> None:
    """C5: it takes connections, and answers nothing for a minute."""
    with run.sending(75.0 * run.times):
        for _ in run.each(12):
            with run.fault("freeze Redis"):
                run.stage.freeze_redis()
                time.sleep(60)
                run.stage.thaw_redis()


def without_redis(run: Run) -> None:
    """C6: away from start to end. It comes when all is over, for the look into it."""
    with run.fault("no Redis"), run.sending(60):
        pass
    run.wait()
    run.stage.redis.start()


@_as_the_same_processes
def full_redis(run: Run) -> None:
    """C7: it answers, and takes nothing in."""
    with run.sending(60):
        time.sleep(5)
        with run.fault("Redis is full"):
            run.stage.limit_redis("1")
            time.sleep(45)
            run.stage.limit_redis("0")


def twice_of_all(run: Run) -> None:
    """C12: three times the wake-ups and more sweeps than anybody needs, beside two beats. Nothing goes twice; and
    however many mails, the bell makes few messages."""
    before = run.stage.drains()
    called = 0
    over = threading.Event()

    def wake() -> None:
        nonlocal called
        while not over.wait(0.3):
            run.stage.send("drain", "drain", "drain", "sweep", "sweep", "rescue", "rescue", "dispatch_due")
            called += 3

    waking = threading.Thread(target=wake)
    began = time.monotonic()
    with run.sending(20):
        waking.start()
        with run.fault("wake-ups"):
            time.sleep(18)
    over.set()
    waking.join()
    run.wait()
    # Each worker begins anew every few seconds, and asks for help at most once per 0.8 s; so does each tick.
    most = called + 12 * (time.monotonic() - began) + 20
    took = run.stage.drains() - before
    run.expect(took <= most, f"the bell was not guarded: {took} messages, at most {most:.0f} were expected")


# PostgreSQL -----------------------------------------------------------------------------------------


@_as_the_same_processes
def crash_postgres(run: Run) -> None:
    """C8: `-m immediate`, and on. All parts go on by themselves within 30 s, as the same processes."""
    watch = Watch(run)
    for _ in run.bursts(1):
        with run.fault("crash PostgreSQL", cuts_off=True):
            run.stage.crash_postgres()
        watch.until_back()


@_as_the_same_processes
def kill_backends(run: Run) -> None:
    """C9: two sessions a second are ended."""
    watch = Watch(run)
    with run.sending(0.6 * run.times):
        for _ in run.each(0.5):
            with run.fault("kill a backend", cuts_off=True):
                run.stage.kill_backend()
    watch.until_back()


class Watch:
    """Whether web, workers and upkeep go on: a mail is accepted and arrives; one that waits beyond its time is
    cancelled, which only beat's tick does, by way of upkeep."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._sender = run.owner()
        # Its second mail waits until tomorrow, and whatever comes after it.
        self._limited = run.owner(limits={"per_day": 1})
        run.client.hand_over(self._limited, scheduled_at=None)

    def until_back(self) -> None:
        """A broken promise if that takes longer than 30 s."""
        run, began = self._run, time.monotonic()
        mail = self._accepted(self._sender)
        waits = self._accepted(
            self._limited, kind="expires", expires_at=(datetime.now(UTC) + timedelta(seconds=2)).isoformat()
        )
        for pk, status, what in ((mail, 2, "sent"), (waits, 4, "cancelled at its time")):
            while run.stage.query("SELECT status FROM tasks_mailtask WHERE id = %s", [pk]) != [(status,)]:
                if time.monotonic() > began + BACK_WITHIN:
                    run.expect(False, f"after {BACK_WITHIN:.0f} s a mail was not {what}")
                    return
                time.sleep(0.1)

    def _accepted(self, owner: Any, **changes: Any) -> int:
        found: list[int] = []

        def hand_over() -> bool:
            call = self._run.client.hand_over(owner, lane="otp", scheduled_at=None, **changes)
            found.extend(filter(None, [call.task_id]))
            return bool(found)

        until(hand_over, "a mail is accepted", BACK_WITHIN)
        return found[0]


def full_disk(run: Run) -> None:
    """C14: PostgreSQL has no room for a minute; whatever it refuses gets no 202."""
    with run.sending(100.0 * run.times):
        for _ in run.each(15):
            with run.fault("disk full", cuts_off=True):
                with run.stage.full_disk():
                    time.sleep(60)
                until(lambda: run.stage.is_ready(WEBS[0]), "PostgreSQL is back")
    run.expect(
        bool([call for call in run.client.calls if call.task_id is None]),
        "nothing was refused: the disk was not full",
    )


# The relay ------------------------------------------------------------------------------------------


def bad_relay(run: Run) -> None:
    """C11: five kinds of mail that the relay treats badly at the first try, and four ways for a network to do so,
    each for half a minute."""
    kinds = ("reset", "silent", "close421", "later451", "no550")
    modes = (Mode.DRIP, Mode.DROP, Mode.GARBAGE, Mode.BANNER)
    each = run.mails // 7
    with ExitStack() as proxies:
        with ExitStack() as meanwhile:
            for kind in kinds:
                policy = {"on_uncertain": "retry"} if kind in ("reset", "silent") else {}
                owner = run.owner(max_connections=60)
                send = partial(run.client.send, [owner], each, kind=kind, **policy)
                meanwhile.enter_context(run.in_background(send))
            for mode in modes:
                proxy = proxies.enter_context(Proxy(run.sink.port))
                send = partial(run.client.send, [run.owner(proxy.port)], each // 2, per_second=each / 2 / 40)
                meanwhile.enter_context(run.in_background(send))
                meanwhile.enter_context(run.in_background(partial(_misbehave, run, proxy, mode, 30.0)))
        run.wait()


def _misbehave(run: Run, proxy: Proxy, mode: Mode, seconds: float) -> None:
    time.sleep(5)
    with run.fault(mode.name, cuts_off=True):
        proxy.mode = mode
        time.sleep(seconds)
        proxy.mode = Mode.PASS


# All of it ------------------------------------------------------------------------------------------


def everything(run: Run) -> None:
    """C15: any of it, one every five seconds or so."""
    stage, dice = run.stage, run.dice
    with Proxy(run.sink.port) as proxy:

        def for_a_while(seconds: float, begin: Callable[[], None], end: Callable[[], None]) -> None:
            begin()
            time.sleep(seconds)
            end()

        def network(link: Proxy) -> None:
            link.mode = dice.choice(list(Mode))
            time.sleep(dice.uniform(1, 8))
            link.mode = Mode.PASS

        def redis_away() -> None:
            stage.kill_redis()
            time.sleep(dice.uniform(0, 3))
            stage.start_empty_redis()

        def frozen() -> None:
            name = dice.choice(WORKERS)
            for_a_while(LEASE * dice.uniform(0.3, 1.6), lambda: stage.freeze(name), lambda: stage.thaw(name))

        deeds: list[Callable[[], Any]] = [
            lambda: stage.kill(dice.choice(WORKERS)),
            lambda: stage.kill_one_process(dice.choice(WORKERS)),
            lambda: stage.lose_machine(dice.choice(WORKERS)),
            lambda: stage.kill(dice.choice(WEBS)),
            lambda: stage.kill(dice.choice(BEATS)),
            lambda: stage.kill(UPKEEP),
            lambda: stage.terminate(dice.choice((*WORKERS, *WEBS, *BEATS, UPKEEP))),
            frozen,
            redis_away,
            stage.empty_redis,
            lambda: for_a_while(dice.uniform(1, 8), stage.freeze_redis, stage.thaw_redis),
            stage.crash_postgres,
            lambda: [stage.kill_backend() for _ in range(5)],
            lambda: network(proxy),
            lambda: network(stage.redis_link),
        ]
        with run.sending(5.0 * run.times, relay_port=proxy.port):
            for _ in run.each(0):
                began = time.monotonic()
                deed = dice.choice(deeds)
                with run.fault("anything", cuts_off=True):
                    deed()
                time.sleep(max(0.0, began + 5 - time.monotonic()))
        run.wait()


_BOUNDED: dict[str, Any] = {"bounds_calls": True}

CASES = (
    Case("C1", "a worker killed with -9", 20_000, 100, kill_workers, in_ci=True),
    Case("C2", "a worker frozen beyond its lease", 5_000, 20, freeze_workers),
    Case("C3", "Redis killed, started empty", 10_000, 20, restart_redis, in_ci=True, cuts_off=False, judged=_BOUNDED),
    Case("C4", "FLUSHALL", 10_000, 60, flush_redis, in_ci=True, cuts_off=False, judged=_BOUNDED),
    Case("C5", "Redis frozen for 60 s", 5_000, 5, freeze_redis, cuts_off=False, judged=_BOUNDED),
    Case(
        "C6", "no Redis at all", 2_000, 1, without_redis, cuts_off=False, judged=_BOUNDED, stage={"has_redis": False}
    ),
    Case("C7", "Redis full", 5_000, 1, full_redis, cuts_off=False, judged=_BOUNDED),
    Case("C8", "PostgreSQL stopped, immediate", 10_000, 15, crash_postgres, in_ci=True),
    Case("C9", "PostgreSQL sessions ended", 10_000, 200, kill_backends),
    Case("C10", "kill -9 at six named points", 800, 100, points, in_ci=True, stage={"mortal": True}),
    Case("C11", "the relay misbehaves", 7_000, 4, bad_relay, judged={"may_repeat": ("reset", "silent")}),
    Case("C12", "twice the beats, thrice the bells", 5_000, 1, twice_of_all, cuts_off=False),
    Case("C13", "workers told to go, in turn", 10_000, 30, roll_workers, in_ci=True, cuts_off=False),
    Case("C14", "PostgreSQL out of disk for 60 s", 2_000, 2, full_disk, stage={"small_disk": True}),
    Case(
        "C15", "all of it, at random", 50_000, 360, everything, judged={"may_exhaust": True},
        stage={"redis_link": True},
    ),
    Case("R1", "every part told to go, in turn", 5_000, 16, roll_everything, in_ci=True, cuts_off=False),
    Case("R2", "started before its migration", 500, 1, upgrade, stage={"older": "0004"}),
)  # fmt: skip

#: tests/integration/test_ledger_over_time.py, which needs no stage.
OVER_TIME = Case("S1", "the ledger, clocks that jump", 0, 5_000, lambda _: None)
#: The suite's own test.
MUTANTS = (
    Case("M1", "without the fence", 500, 2, freeze_workers, must_break=True, stage={"without": "fence"}),
    Case(
        "M2", "without the journal", 20, 2, points, must_break=True,
        stage={"without": "journal", "mortal": True, "MAIL_LEASE_SECONDS": "3"},
    ),
    Case(
        "M3", "without the rescue", 20, 2, lose_machines, must_break=True,
        stage={"without": "rescue", "MAIL_LEASE_SECONDS": "3"},
    ),
    Case("M4", "without the bell's guard", 2_500, 1, twice_of_all, must_break=True, stage={"without": "bell"}),
)  # fmt: skip
