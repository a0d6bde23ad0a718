"""Sends what is due, in an event loop of its own beside the process's jobs: a receiver that hangs for its 15 seconds
holds up no tick, no rescue, and nobody else's events."""

import asyncio
import logging
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Self, TypeVar

from django.conf import settings
from django.db import DatabaseError, InterfaceError, close_old_connections, connection

from mailqueue.webhooks import deliveries, signing
from mailqueue.webhooks.deliveries import Claimed, Result
from mailqueue.webhooks.models import State
from mailqueue.webhooks.schedule import wait_after
from mailqueue.webhooks.wire import Answer, Caller

logger = logging.getLogger(__name__)

#: Calls in flight of one sender at most.
ROOM = 500
#: Results gather for so long, to be written together (seconds).
GATHER_SECONDS = 0.01
#: After trouble with the database (seconds).
PAUSE_SECONDS = 1.0
#: A sender that stops waits for so long for what it has asked of the database.
DATABASE_SECONDS = 5.0

T = TypeVar("T")


class Sender:
    """Looks into the table whenever it is told to, and goes on for as long as something is due."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="webhooks", daemon=True)
        #: One connection to the database, which blocks nobody but itself.
        self._desk = ThreadPoolExecutor(1, thread_name_prefix="webhooks-desk")
        self._flying: dict[asyncio.Task[None], Claimed] = {}
        self._results: list[Result] = []
        self._counts: Counter[str] = Counter()
        self._is_stopping = self._is_over = False

    def start(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._begin(), self._loop).result()
        return self

    def look(self) -> dict[str, int]:
        """Something may be due. Answers what was done since the last time: delivered, put_off, failed, rescued."""
        counts, self._counts = self._counts, Counter()
        self._loop.call_soon_threadsafe(self._knock)
        return {name: counts[name] for name in ("delivered", "put_off", "failed", "rescued")}

    def stop(self, seconds: float) -> None:
        """Claims no more, gives what is in flight so long, and puts the rest back."""
        self._is_stopping = True
        asyncio.run_coroutine_threadsafe(self._finish(seconds), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._desk.submit(_hang_up)
        self._desk.shutdown()

    async def _begin(self) -> None:
        self._caller = Caller()
        self._knocked, self._must_rescue = asyncio.Event(), False
        self._round = asyncio.create_task(self._rounds())

    def _knock(self) -> None:
        self._must_rescue = True
        self._knocked.set()

    async def _finish(self, seconds: float) -> None:
        if self._flying:
            await asyncio.wait(self._flying, timeout=seconds)
        self._is_over = True
        self._knocked.set()
        # It ends by itself: a claim that is broken off might be committed all the same, and wait for its lease.
        await asyncio.wait([self._round], timeout=DATABASE_SECONDS)
        self._round.cancel()
        await asyncio.wait([self._round])
        left = dict(self._flying)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
        try:
            await self._settle()
            await self._at_desk(lambda: deliveries.give_back(list(left.values())))
        except (DatabaseError, InterfaceError):
            logger.warning("webhooks wait for the end of their lease: the database is away")
        await self._caller.close()

    # Round and round --------------------------------------------------------------------------------

    async def _rounds(self) -> None:
        while not self._is_over:
            await self._knocked.wait()
            self._knocked.clear()
            try:
                await self._settle()
                await self._claim()
            except Exception:  # the loop outlives whatever the database does
                logger.exception("webhooks: a round failed")
                await asyncio.sleep(PAUSE_SECONDS)
                self._knocked.set()
            await asyncio.sleep(GATHER_SECONDS)

    async def _settle(self) -> None:
        """What cannot be written now is tried again; after its lease it is nobody's any more."""
        results, self._results = self._results, []
        if not results:
            return
        try:
            settled = await self._at_desk(lambda: deliveries.settle(results))
        except BaseException:
            self._results = results + self._results
            raise
        if settled < len(results):
            logger.warning("webhooks: late results", extra={"late": len(results) - settled})
        for each in results:
            word = {State.DELIVERED: "delivered", State.FAILED: "failed"}.get(each.state, "put_off")
            self._counts[word] += 1

    async def _claim(self) -> None:
        room = ROOM - len(self._flying)
        if self._is_stopping or room <= 0:
            return
        if self._must_rescue:
            self._must_rescue = False
            self._counts["rescued"] += await self._at_desk(deliveries.rescue)
        for claimed in await self._at_desk(lambda: deliveries.claim(room)):
            task = asyncio.create_task(self._send(claimed))
            self._flying[task] = claimed
            task.add_done_callback(self._land)

    def _land(self, task: asyncio.Task[None]) -> None:
        self._flying.pop(task, None)
        self._knocked.set()

    async def _send(self, claimed: Claimed) -> None:
        if claimed.secrets:
            now = datetime.now(UTC)
            signed = signing.headers(claimed.message_id, claimed.payload, now, claimed.secrets)
            headers = signed | {
                "Content-Type": "application/json",
                "User-Agent": f"mailqueue-webhooks/{settings.VERSION}",
            }
            answer = await self._caller.post(
                claimed.endpoint_id, claimed.url, claimed.payload.encode(), headers
            )
        else:
            answer = Answer(None, "Its secret cannot be read; rotate it.", 0.0)
        self._results.append(result_of(claimed, answer, random.random()))  # noqa: S311 -- spreads load, hides nothing

    async def _at_desk(self, deed: Callable[[], T]) -> T:
        def do() -> T:
            close_old_connections()  # one that a restart of PostgreSQL has cut
            return deed()

        return await self._loop.run_in_executor(self._desk, do)


def _hang_up() -> None:
    """Closes the connection of the thread that it is called in."""
    connection.close()


def result_of(claimed: Claimed, answer: Answer, chance: float) -> Result:
    """What a try means for its delivery; `chance`, 0 to 1, spreads the next ones."""
    duration = round(answer.seconds * 1000)
    if answer.is_taken:
        return Result(claimed, State.DELIVERED, None, answer.code, "", duration)
    wait = None if answer.is_gone else wait_after(claimed.tries + 1, chance, answer.retry_after)
    state = State.FAILED if wait is None else State.PENDING
    return Result(claimed, state, wait, answer.code, answer.error, duration, answer.is_gone)
