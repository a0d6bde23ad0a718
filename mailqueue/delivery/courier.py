"""The drain loop of one worker process: claim in groups, send over kept connections, settle in groups.

One event loop in a thread of its own does all the SMTP and outlives the single drain, so that idle connections
are looked after and a hanging relay holds up no job. What becomes of one mail is attempt.py's; the ledger is written
from threads beside the loop.
"""

import asyncio
import contextlib
import logging
import math
import threading
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from random import uniform
from typing import Any, ParamSpec, TypeVar

import uvloop
from django.conf import settings
from django.db import DatabaseError, InterfaceError, OperationalError
from django.utils import timezone

from mailqueue import workers
from mailqueue.delivery import breaker, journal, magic, recovery, retry
from mailqueue.delivery.attempt import Attempts
from mailqueue.delivery.clerk import Clerk
from mailqueue.delivery.hand import Hand, Lease, Report
from mailqueue.delivery.journal import Journal, UnwritableError
from mailqueue.delivery.ledger_threads import LedgerThreads
from mailqueue.delivery.pool import Pool
from mailqueue.delivery.replies import Answer, Meaning
from mailqueue.delivery.routes import Route
from tasks import counters, doorbell, ledger
from tasks.ledger import Claimed, Settlement
from tasks.states import Status

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: Mails claimed at once. 50 gave 78 % of the rate of 200, more than 200 gave nothing.
GROUP = 200
#: Results wait this long (seconds) for company before they are written.
LINGER = 0.01
#: After a claim that took all there was the next one waits this long (seconds) for company: mails that come one by
#: one, hundreds a second, are then claimed in threes and fours, and not each by itself.
BETWEEN_CLAIMS = 0.015
#: How long (seconds) a claim that found nothing is not repeated while mails are still being sent.
PAUSE_BETWEEN_CLAIMS = 0.02
#: How long (seconds) a worker that cannot write its journal claims nothing.
UNWRITABLE_PAUSE = 2.0


class Courier:
    """Call `start` once, `drain` from one thread at a time, `stop` at the end."""

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self.capacity = max(2 * GROUP, 2 * settings.WORKER_CONNECTIONS)
        self.lease_seconds = settings.MAIL_LEASE_SECONDS
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="courier", daemon=True)
        self._threads = LedgerThreads()
        self._pool = Pool()
        self._journal = Journal(settings.JOURNAL_DIR, worker)
        self._clerk = Clerk(worker, self._journal)
        self._attempts = Attempts(self._pool, self._journal, self._threads)
        self._hands: dict[int, Hand] = {}
        self._leases: dict[uuid.UUID, Lease] = {}
        self._in_hand = self._sent = 0
        self._started_at = timezone.now()
        self._connections = 0
        #: Hands that have mails and no session, for want of a connection.
        self._queueing: deque[Hand] = deque()
        self._last_owner = 0
        #: When the first account that is at its limit may send again (the loop's seconds).
        self._opens_at = math.inf
        self._unsettled: list[tuple[Claimed, Settlement]] = []
        self._report = Report()
        self._stopping = False
        #: A look was asked for when the drain had looked for the last time.
        self.has_overheard = False
        self._chores: list[asyncio.Task[None]] = []
        self._serving: set[asyncio.Task[None]] = set()

    # From outside -----------------------------------------------------------------------------------

    def start(self) -> "Courier":
        self._thread.start()
        self._call(self._begin())
        return self

    def drain(self, seconds: float) -> Report:
        """Sends what is due until nothing is, or for `seconds`; what hangs then goes on by itself."""
        return self.begin_drain(seconds).result()

    def begin_drain(self, seconds: float) -> Future[Report]:
        """The same without waiting for it."""
        return asyncio.run_coroutine_threadsafe(self._drain(seconds), self._loop)

    def look(self) -> None:
        """There is a new mail: the drain that is on looks at once, whatever it waits for. See `has_overheard`."""
        self.has_overheard = True
        self._loop.call_soon_threadsafe(self._knock)

    def _knock(self) -> None:
        self._knocked.set()
        self._progress.set()

    def opens_in(self) -> float:
        """Seconds until an account that is at its limit may send again; infinite if none is known to be."""
        return max(0.0, self._opens_at - self._loop.time())

    def aside(self, deed: Callable[[], T]) -> T:
        """Does something with the ledger on the courier's own connection, through restarts of PostgreSQL."""
        done: T = self._call(self._threads.persistently(deed))
        return done

    def stop(self, seconds: float) -> None:
        """Claims no more, gives what is in flight `seconds` to finish, says goodbye to the relays."""
        self._stopping = True
        self._call(self._finish(seconds))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        if not self._thread.is_alive():  # else it may still send, and note it
            self._clerk.release()
            self._journal.close()
        self._threads.close()

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    # The loop's life --------------------------------------------------------------------------------

    async def _begin(self) -> None:
        self._has_results = asyncio.Event()
        #: Both settling and renewing write several claims at once; side by side they could wait for each other.
        self._writing = asyncio.Lock()
        self._progress = asyncio.Event()
        self._knocked = asyncio.Event()
        self._recovery = asyncio.create_task(self._recover())
        self._chores = [
            self._recovery,
            asyncio.create_task(self._settle_results()),
            asyncio.create_task(self._renew_leases()),
            asyncio.create_task(self._reap_connections()),
            asyncio.create_task(self._beat()),
        ]

    async def _finish(self, seconds: float) -> None:
        deadline = self._loop.time() + seconds
        self._put_back_unstarted()
        while self._in_hand and self._loop.time() < deadline:
            self._progress.clear()
            await self._wait_for_progress(deadline - self._loop.time())
        for chore in self._chores:
            chore.cancel()
        self._pool.close()
        with contextlib.suppress(DatabaseError):
            await self._threads.once(workers.leave, self.worker)
        await asyncio.sleep(0)

    async def _drain(self, seconds: float) -> Report:
        self._report = report = Report()
        self._opens_at = math.inf
        end = self._loop.time() + seconds
        await asyncio.wait([self._recovery], timeout=seconds)
        while self._loop.time() < end and not self._stopping:
            was_idle, was_knocked, self.has_overheard = not self._in_hand, self.has_overheard, False
            self._progress.clear()
            self._knocked.clear()
            room = min(GROUP, self.capacity - self._in_hand)
            try:
                claimed = await self._claim(room) if room * 2 >= GROUP or (was_knocked and room) else []
            except (OperationalError, InterfaceError) as error:
                logger.warning("database_away", extra={"error": str(error)})
                await asyncio.sleep(uniform(0.2, 1))  # noqa: S311 -- spreads load, guards nothing
                continue
            except UnwritableError:
                # The mails stay queued, for other workers or for later. Sent without a journal they would be in
                # doubt after a crash; a full disk or a folder that is not ours is soon seen and mended.
                logger.exception("journal_unwritable", extra={"doing": "claiming nothing"})
                await asyncio.sleep(min(UNWRITABLE_PAUSE, max(end - self._loop.time(), 0)))
                continue
            if claimed:
                report.claimed += len(claimed)
                if len(claimed) == room or self._has_filled_a_hand(claimed):
                    await self._threads.once(doorbell.call_for_help)
                elif not self._last_owner:
                    # That was all there is; a claim now would only stand in the way of the mails just claimed.
                    await asyncio.sleep(BETWEEN_CLAIMS)
                    await self._wait_for_progress(PAUSE_BETWEEN_CLAIMS)
                continue
            # What came to its end during the claim has made room that the claim did not know of.
            if was_idle and not self.has_overheard:
                break
            await self._wait_for_progress(min(PAUSE_BETWEEN_CLAIMS * 5, end - self._loop.time()))
            if self._in_hand:
                await _within(min(PAUSE_BETWEEN_CLAIMS, end - self._loop.time()), self._knocked)
        return report

    async def _wait_for_progress(self, seconds: float) -> None:
        await _within(seconds, self._progress)

    # Claiming ---------------------------------------------------------------------------------------

    async def _claim(self, room: int) -> list[Claimed]:
        rooms = {hand.owner_id: (hand.room(), hand.urgent_room()) for hand in self._hands.values()}
        started = self._loop.time()
        claimed, found, opens_in = await self._threads.once(
            self._clerk.claim, room, self.lease_seconds, rooms, self._last_owner
        )
        if opens_in is not None:
            self._opens_at = min(self._opens_at, self._loop.time() + opens_in)
        if not claimed:
            was_behind, self._last_owner = self._last_owner, 0
            return await self._claim(room) if was_behind else []
        self._last_owner = max(mail.owner_id for mail in claimed) if len(found) >= ledger.OWNERS_A_TURN else 0
        for mail in claimed:
            lease = self._leases.setdefault(mail.token, Lease(0, started + self.lease_seconds))
            lease.mails += 1
            hand = self._hands.get(mail.owner_id)
            if hand is None:
                hand = self._hands[mail.owner_id] = Hand(mail.owner_id, found[mail.owner_id])
            hand.take(mail)
        self._in_hand += len(claimed)
        for owner_id, its_route in found.items():
            self._hands[owner_id].hurry()
            self._set_to_work(self._hands[owner_id], its_route)
        return claimed

    def _has_filled_a_hand(self, claimed: list[Claimed]) -> bool:
        """Whether an owner got as much as their hand had room for, so that more of theirs may wait."""
        hands = (self._hands[owner_id] for owner_id in {mail.owner_id for mail in claimed})
        return any(hand.held >= hand.allowance for hand in hands)

    def _set_to_work(self, hand: Hand, route: Route) -> None:
        """As many sessions as there are mails and as both the account and this process may have."""
        hand.route, hand.filled_at = route, self._loop.time()
        wanted = min(len(hand.mails), route.max_connections) - hand.sessions
        for _ in range(max(0, min(wanted, settings.WORKER_CONNECTIONS - self._connections))):
            hand.sessions += 1
            self._connections += 1
            task = asyncio.create_task(self._serve(hand))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
        if hand.mails and not hand.sessions and hand not in self._queueing:
            self._queueing.append(hand)

    # Sending ----------------------------------------------------------------------------------------

    async def _serve(self, hand: Hand) -> None:
        """One session's worth of work: mail after mail until the hand is empty, or gives way to another hand."""
        try:
            while hand.mails:
                await self._deliver(hand, hand.mails.popleft())
                if self._queueing:
                    break
            if not hand.mails:
                hand.adapt(self._loop.time())
        finally:
            hand.sessions -= 1
            self._connections -= 1
            self._pass_on(hand)

    def _pass_on(self, hand: Hand) -> None:
        """The free connection goes to whoever waits longest; the hand that gave way waits behind them."""
        if hand.mails and not hand.sessions:
            self._queueing.append(hand)
        while self._queueing and self._connections < settings.WORKER_CONNECTIONS:
            waiting = self._queueing.popleft()
            self._set_to_work(waiting, waiting.route)

    async def _deliver(self, hand: Hand, mail: Claimed) -> None:
        # The lease as it is now: renewed or not meanwhile, no transaction lasts longer than one.
        ends_at = self._leases[mail.token].until
        if ends_at <= self._loop.time():
            # We slept through our lease: another worker may have it.
            self._drop(mail)
            return
        route = hand.route
        try:
            answer, verdict, duration_ms = await self._attempts.make(mail, route.relay, ends_at)
        except UnwritableError as error:
            logger.exception("journal_unwritable", extra={"task_id": mail.id})
            self._note(mail, ledger.put_back(mail, f"The worker cannot write its journal: {error}"[:500]))
            return
        if not magic.is_magic(mail.recipient) and await self._account_must_wait(
            hand, route, answer, verdict.meaning
        ):
            self._park(hand, mail, answer)
        elif verdict.meaning is Meaning.ACCEPTED:
            self._note(mail, retry.accepted(mail, answer, duration_ms))
        else:
            schedule = settings.MAIL_RETRY_SCHEDULE
            self._note(
                mail,
                retry.conclude(
                    mail, answer, verdict, now=timezone.now(), schedule=schedule, duration_ms=duration_ms
                ),
            )

    async def _account_must_wait(self, hand: Hand, route: Route, answer: Answer, meaning: Meaning) -> bool:
        """Tells the breaker what it has to know of this answer, which is nothing of most; whether it is open.

        `route` is the one that was used; the hand may have been given another since.
        """
        if breaker.concerns(answer, meaning):
            hand.route = replace(hand.route, has_missed=True)
            return await self._threads.persistently(breaker.trip, hand.owner_id, route.relay, answer, meaning)
        if meaning is Meaning.ACCEPTED and (hand.route.is_unproven or hand.route.has_missed):
            # Before the wait, so that the sessions beside this one do not tell it too.
            hand.route = replace(hand.route, is_unproven=False, has_missed=False)
            await self._threads.persistently(
                breaker.close, hand.owner_id, route.relay, "The relay took a mail."
            )
        elif answer.code is not None and hand.route.has_missed:
            hand.route = replace(hand.route, has_missed=False)
            await self._threads.persistently(breaker.answered, hand.owner_id)
        return False

    def _park(self, hand: Hand, mail: Claimed, answer: Answer) -> None:
        """The account is at fault, and its breaker open: its mails go back as they were."""
        for one in [mail, *hand.mails]:
            self._note(one, ledger.put_back(one, str(answer)))
        hand.mails.clear()

    def _put_back_unstarted(self) -> None:
        for hand in self._hands.values():
            for mail in hand.mails:
                self._note(mail, ledger.put_back(mail, "The worker was told to stop."))
            hand.mails.clear()

    # Settling ---------------------------------------------------------------------------------------

    def _note(self, mail: Claimed, settlement: Settlement) -> None:
        self._unsettled.append((mail, settlement))
        self._has_results.set()

    async def _settle_results(self) -> None:
        """Writes results as they come, in groups that grow with the load."""
        while True:
            await self._has_results.wait()
            await asyncio.sleep(LINGER)
            self._has_results.clear()
            batch, self._unsettled = self._unsettled, []
            if not batch:
                continue
            async with self._writing:
                ours = await self._threads.persistently(
                    self._clerk.settle, [settlement for _, settlement in batch]
                )
            for mail, settlement in batch:
                if mail.id in ours:
                    self._report.count(settlement.status)
                    self._sent += settlement.status == Status.SUCCESS
                else:
                    logger.warning("late_result", extra={"task_id": mail.id})
                self._drop(mail)

    def _drop(self, mail: Claimed) -> None:
        """No longer in hand."""
        self._journal.settled(mail)
        lease = self._leases[mail.token]
        lease.mails -= 1
        if not lease.mails:
            del self._leases[mail.token]
            self._journal.released(mail.token)
        hand = self._hands[mail.owner_id]
        hand.drop(mail)
        if not hand.held and not hand.sessions and len(self._hands) > 1000:
            del self._hands[mail.owner_id]
        self._in_hand -= 1
        self._progress.set()

    # Chores -----------------------------------------------------------------------------------------

    async def _recover(self) -> None:
        """Settles what dead workers of this host held, before the first claim."""
        for path in journal.files_of(settings.JOURNAL_DIR, self.worker):
            try:
                if await self._threads.persistently(recovery.recover, path):
                    await self._threads.once(doorbell.call)
            except Exception:  # there the lease is left to decide; new mail must go out
                logger.exception("recovery_failed", extra={"journal": str(path)})

    async def _renew_leases(self) -> None:
        while True:
            await asyncio.sleep(self.lease_seconds / 3)
            if not self._leases:
                continue
            started = self._loop.time()
            async with self._writing:
                held = await self._threads.persistently(ledger.renew, list(self._leases), self.lease_seconds)
            for token in held & self._leases.keys():
                self._leases[token].until = started + self.lease_seconds

    async def _reap_connections(self) -> None:
        while True:
            await asyncio.sleep(1)
            self._pool.reap()

    async def _beat(self) -> None:
        """Tells that we live, whether there is mail or not, and adds up what was counted meanwhile, should beat be
        away. What the database does not take now it gets with the next one."""
        told, beats_at = ("", 0, 0), 0.0
        while True:
            doing = "stopping" if self._stopping else "sending" if self._in_hand else "idle"
            news = doing, self._in_hand, self._sent
            if news != told or self._loop.time() >= beats_at:
                told, beats_at = news, self._loop.time() + workers.BEAT_EVERY
                try:
                    await self._threads.once(workers.beat, self.worker, *news, self._started_at)
                    await self._threads.once(counters.fold)
                except DatabaseError as error:
                    logger.warning("heartbeat_failed", extra={"error": str(error)})
            await asyncio.sleep(workers.TELL_EVERY)


async def _within(seconds: float, event: asyncio.Event) -> None:
    """Waits for it so long at most."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), max(seconds, 0))
