"""A courier that can be killed at a named point, without the price of a process.

From that moment on nothing that it does reaches its journal, the ledger or the relay, and its file is let go, as
the kernel would. tests/acceptance kills real ones, but cannot choose the moment.
"""

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mailqueue.delivery import journal
from mailqueue.delivery.clerk import Clerk
from mailqueue.delivery.courier import Courier

#: (what, whether before or after it): a line of the journal (C, D, R), the claim's commit, the writing of results.
POINTS = [(what, when) for what in ("C", "D", "R", "settle") for when in ("before", "after")] + [
    ("claim", "after")
]


class Killed(BaseException):
    """What is running must not go on."""


class MortalCourier:
    """Dies when the `nth` of `what` is about to happen, or has happened; if that never comes, with its work done."""

    def __init__(self, patch: pytest.MonkeyPatch, what: str, when: str, nth: int = 1) -> None:
        self._what, self._when, self._left = what, when, nth
        self._is_dead = threading.Event()
        self._lock = threading.Lock()
        #: The lines that reached the file.
        self.lines: list[list[str]] = []
        for place, name, seam in (
            (journal, "_write_all", self._write),
            (Clerk, "claim", self._claim),
            (Clerk, "settle", self._settle),
        ):
            self._replace(patch, place, name, seam)
        self.courier = Courier("worker:1").start()

    def _replace(self, patch: pytest.MonkeyPatch, place: Any, name: str, seam: Callable[..., Any]) -> None:
        really = getattr(place, name)
        patch.setattr(place, name, lambda *args: seam(really, *args))

    def live_and_die(self) -> None:
        """Drains until it dies, or has nothing more to do."""
        drain = asyncio.run_coroutine_threadsafe(self.courier._drain(20), self.courier._loop)
        drain.add_done_callback(lambda _: self._is_dead.set())
        assert self._is_dead.wait(30)
        if drain.done() and not isinstance(drain.exception(), Killed):
            drain.result()  # any other exception would make these tests pass for nothing
        asyncio.run_coroutine_threadsafe(self._break_off(), self.courier._loop).result()
        self.courier._loop.call_soon_threadsafe(self.courier._loop.stop)
        self.courier._thread.join()
        # What PostgreSQL was doing for it ends long before the next worker starts; so here too.
        self.courier._threads.close(wait=True)
        if self.courier._journal._fd is not None:
            os.close(self.courier._journal._fd)

    async def _break_off(self) -> None:
        for hand in self.courier._hands.values():
            hand.mails.clear()  # else each session that ends would make room for the next
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self.courier._pool.close()

    def _write(self, really: Any, fd: int, data: bytes) -> None:
        lines = [line.split(" ") for line in data.decode().splitlines()]
        self._at(lines[-1][0], "before")
        really(fd, data)
        self.lines += lines
        self._at(lines[-1][0], "after")

    def _claim(self, really: Any, *args: Any, **kwargs: Any) -> Any:
        self._at("claim", "before")
        found = really(*args, **kwargs)
        if found[0]:
            self._at("claim", "after")
        return found

    def _settle(self, really: Any, *args: Any) -> Any:
        self._at("settle", "before")
        found = really(*args)
        self._at("settle", "after")
        return found

    def _at(self, what: str, when: str) -> None:
        with self._lock:
            if (what, when) == (self._what, self._when):
                self._left -= 1
                if not self._left:
                    self._is_dead.set()
            if self._is_dead.is_set():
                raise Killed
