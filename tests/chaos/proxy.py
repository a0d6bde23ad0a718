"""A TCP proxy that can be told to misbehave, for a relay, Redis or PostgreSQL behind a network that does.

    with Proxy(target_port) as proxy:
        proxy.mode = Mode.DRIP

The mode counts for what passes from that moment on, on old connections as on new.
"""

import asyncio
import threading
from contextlib import suppress
from enum import Enum
from typing import Self

from tests.machine import until


class Mode(Enum):
    PASS = "passes everything on"
    DELAY = "half a second late"
    DROP = "takes everything and passes nothing on: half-open"
    RESET = "resets every connection"
    TRUNCATE = "passes half of an answer on, and closes"
    DRIP = "answers a byte a second"
    GARBAGE = "answers nonsense"
    BANNER = "a greeting that never ends"


#: How late DELAY is, and how far apart the bytes of DRIP are (seconds).
LATE, APART = 0.5, 1.0


class Proxy:
    """Runs in a thread of its own while the `with` lasts."""

    def __init__(self, target: int | str) -> None:
        """A port of this machine, or the path of a Unix socket."""
        self.target = target
        self.port = 0
        self._mode = Mode.PASS
        self._open: set[asyncio.StreamWriter] = set()
        self._conversations: set[asyncio.Task[None]] = set()

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._mode = mode
        if mode in (Mode.RESET, Mode.TRUNCATE):
            self._loop.call_soon_threadsafe(self._reset_all)

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()
        until(lambda: self.port, "the proxy listens")
        return self

    def __exit__(self, *_exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._converse, "127.0.0.1", 0, backlog=1000)
        self.port = server.sockets[0].getsockname()[1]
        await self._stop.wait()
        server.close()
        for conversation in list(self._conversations):
            conversation.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)

    def _reset_all(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        self._conversations.add(me)
        self._open.add(writer)
        onwards = None
        try:
            if self._mode is Mode.RESET:
                return
            # A relay that never comes to the end of its greeting, or begins with nonsense, is not asked at all.
            await self._babble(writer)
            from_target, onwards = await self._reach()
            self._open.add(onwards)
            await _first_to_end(self._forward(reader, onwards), self._answer(from_target, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for one in filter(None, (writer, onwards)):
                self._open.discard(one)
                one.transport.abort() if self._mode is Mode.RESET else one.close()
            self._conversations.discard(me)

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.target, str):
            return await asyncio.open_unix_connection(self.target)
        return await asyncio.open_connection("127.0.0.1", self.target)

    async def _babble(self, writer: asyncio.StreamWriter) -> None:
        while self._mode in (Mode.BANNER, Mode.GARBAGE):
            writer.write(b"220-and then\r\n" if self._mode is Mode.BANNER else b"\x16\x03\x01 what?\r\n")
            await writer.drain()
            await asyncio.sleep(0.1)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if self._mode is Mode.DELAY:
                await asyncio.sleep(LATE)
            if self._mode is not Mode.DROP:
                writer.write(data)
                await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if self._mode is Mode.TRUNCATE:
                writer.write(data[: len(data) // 2])
                await writer.drain()
                return
            if self._mode is Mode.GARBAGE:
                data = b"\x16\x03\x01 what?\r\n"
            while self._mode is Mode.DRIP and data:
                writer.write(data[:1])
                data = data[1:]
                await asyncio.sleep(APART)
            if self._mode is Mode.DELAY:
                await asyncio.sleep(LATE)
            if self._mode is not Mode.DROP:
                writer.write(data)
                await writer.drain()


async def _first_to_end(*ways: "asyncio._CoroutineLike[None]") -> None:
    """Who closes one way closes both."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await task
