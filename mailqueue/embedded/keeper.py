"""Keeps one program running: passes on what it says, names its end, and starts it again."""

import asyncio
import signal
import time
from collections.abc import Callable

from mailqueue.embedded.process import Child, kill_group

FIRST_WAIT = 1.0
LONGEST_WAIT = 30.0
#: After living this long a part's next end counts as its first.
FORGIVEN_AFTER = 60.0
#: After a second Ctrl-C nobody gets longer than this to go by himself.
IN_A_HURRY = 1.0


class Keeper:
    """`start` is called from the main thread alone, for a child goes when the thread that started it does."""

    def __init__(
        self,
        name: str,
        start: Callable[[], Child],
        say: Callable[[str, str], None],
        *,
        stop_signal: signal.Signals = signal.SIGTERM,
        greeting: str = "",
    ) -> None:
        self.name = name
        self.greeting = greeting
        self.greeted = False
        self.started_at = 0.0
        self._start = start
        self._say = say
        self._stop_signal = stop_signal
        self._child: Child | None = None
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def age(self) -> float:
        """Seconds since it was last started."""
        return time.monotonic() - self.started_at

    @property
    def is_running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def keep(self) -> None:
        self._task = asyncio.create_task(self._keep())

    async def run_once(self) -> int:
        """Until it ends by itself or by end(); returns its exit code."""
        self.greeted, self.started_at = False, time.monotonic()
        self._child = child = self._start()
        output = asyncio.create_task(self._pass_on(child))
        try:
            await _gone(child)
        finally:
            kill_group(child)
        await output
        return child.returncode

    async def end(self, seconds: float, hurry: asyncio.Event) -> None:
        """Asks it to stop; kills what is left after `seconds`, or sooner when in a hurry."""
        self._ending.set()
        child = self._child
        if child is not None and child.poll() is None:
            child.send_signal(self._stop_signal)
            gone, hurried = asyncio.create_task(_gone(child)), asyncio.create_task(hurry.wait())
            await asyncio.wait({gone, hurried}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if hurried.done():
                await asyncio.wait({gone}, timeout=min(seconds, IN_A_HURRY))
            gone.cancel()
            hurried.cancel()
            if child.poll() is None:
                self._say(self.name, "does not stop; killed")
            kill_group(child)
        if self._task is not None:
            await self._task

    async def _keep(self) -> None:
        wait = FIRST_WAIT
        while not self._ending.is_set():
            code = await self.run_once()
            if self._ending.is_set():
                return
            if self.age > FORGIVEN_AFTER:
                wait = FIRST_WAIT
            self._say("stack", f"{self.name} {_how(code)}; starting it again in {wait:.0f} s")
            try:
                await asyncio.wait_for(self._ending.wait(), wait)
            except TimeoutError:
                wait = min(wait * 2, LONGEST_WAIT)

    async def _pass_on(self, child: Child) -> None:
        assert child.stdout is not None  # noqa: S101 -- it was started with a pipe
        reader = asyncio.StreamReader(limit=1024 * 1024)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), child.stdout
        )
        try:
            while True:
                try:
                    line = await reader.readline()
                except ValueError:  # longer than the limit, and dropped
                    continue
                if not line:
                    return
                text = line.decode(errors="replace").rstrip()
                self.greeted = self.greeted or (self.greeting != "" and self.greeting in text)
                self._say(self.name, text)
        finally:
            transport.close()


async def _gone(child: Child) -> None:
    # Polled: watchers of child processes differ between versions of Python, and some wait for the pipe too.
    while child.poll() is None:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
