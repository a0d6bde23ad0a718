"""A relay that notes in a file what it took, and misbehaves towards those whose address says so.

    python -m tests.chaos.sink PORT LOG LONGEST_DELAY

A line for each mail, with the kernel before anything is answered, and one when the client is known to have read
the answer, for it has gone on:

    T seconds connection sender recipient message-id    taken (seconds since the epoch)
    P seconds connection                                the reply to what was last taken there has been read

354 and 250 come after random delays, so that at any moment some mails are just before their final dot, and some
between it and its reply: whoever is killed then leaves mails behind that were taken, and cannot know.

The local part's first word says what happens at the recipient's first try (and what, at later ones):

    reset   taken, and the connection reset (taken)         later451   451 to RCPT (taken)
    silent  taken, and never answered (taken)               close421   421 to RCPT, and closed (taken)
    no550   550 to RCPT (the same, always)
"""

import asyncio
import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import create_connection

import uvloop

from mailqueue.embedded.process import end, spawn
from mailqueue.embedded.redis import free_port
from tests.machine import until

_MESSAGE_ID = re.compile(rb"(?im)^Message-ID:\s*(\S+)")
_REPLIES = {
    b"EHLO": b"250-sink\r\n250-PIPELINING\r\n250 ENHANCEDSTATUSCODES\r\n",
    b"DATA": b"354 go on\r\n",
    b"QUIT": b"221 2.0.0 bye\r\n",
}
_REFUSALS = {
    b"later451": b"451 4.3.0 not now\r\n",
    b"close421": b"421 4.3.2 closing\r\n",
    b"no550": b"550 5.7.1 not here\r\n",
}


@dataclass(frozen=True)
class Taken:
    """A mail that the relay took over; times are seconds since the epoch."""

    at: float
    sender: str
    recipient: str
    message_id: str
    #: When the client was seen to have read the reply; None: never, so that it may not know.
    read_at: float | None


@dataclass(frozen=True)
class Sink:
    port: int
    log: Path

    def count(self) -> int:
        """Mails taken, in a moment: the whole log is not parsed."""
        log = self.log.read_bytes()
        return log.count(b"\nT ") + log.startswith(b"T ")

    def taken(self) -> list[Taken]:
        found: list[Taken] = []
        last: dict[str, int] = {}
        for kind, at, connection, *mail in map(str.split, self.log.read_text().splitlines()):
            if kind == "T":
                last[connection] = len(found)
                found.append(Taken(float(at), *mail, None))
            else:
                before = found[last[connection]]
                found[last[connection]] = Taken(
                    before.at, before.sender, before.recipient, before.message_id, float(at)
                )
        return found


@contextmanager
def running_sink(folder: Path, longest_delay: float) -> Iterator[Sink]:
    """In a process of its own, for the client that fills the queue needs this one's processor."""
    sink = Sink(free_port(), folder / "taken.log")
    sink.log.touch()
    arguments = [str(sink.port), str(sink.log), str(longest_delay)]
    with (folder / "sink.log").open("wb") as said:
        child = spawn([sys.executable, "-m", "tests.chaos.sink", *arguments], output=said)
    try:
        until(lambda: _listens(sink.port), "the sink listens")
        yield sink
    finally:
        end(child, signal.SIGTERM, 5)


def _listens(port: int) -> bool:
    try:
        create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class _Log:
    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, *words: bytes) -> None:
        os.write(self._file, b" ".join(words) + b"\n")


class _Session(asyncio.Protocol):
    def __init__(self, log: _Log, longest_delay: float, number: int, known: set[bytes]) -> None:
        self.log, self.longest_delay, self.known = log, longest_delay, known
        self.number = b"%d" % number
        self.loop = asyncio.get_running_loop()
        self.buffer, self.sender, self.recipient, self.in_data = b"", b"-", b"", False
        self.is_unread = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "abort")
        self.transport: asyncio.Transport = transport  # type: ignore[assignment] -- uvloop's own
        self._say(b"220 sink ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        if self.is_unread:
            self.is_unread = False
            self.log.write(b"P", _now(), self.number)
        self.buffer += data
        while True:
            taken, found, rest = self.buffer.partition(b"\r\n.\r\n" if self.in_data else b"\r\n")
            if not found:
                return
            self.buffer = rest
            self._take(taken) if self.in_data else self._command(taken)

    def _take(self, mail: bytes) -> None:
        self.in_data = False
        found = _MESSAGE_ID.search(mail)
        self.log.write(b"T", _now(), self.number, self.sender, self.recipient, found[1] if found else b"-")
        if self._is_first(b"reset"):
            self.transport.abort()
        elif not self._is_first(b"silent"):
            self._say_later(b"250 2.0.0 accepted\r\n", is_verdict=True)

    def _command(self, line: bytes) -> None:
        verb = line[:4].upper()
        if verb == b"MAIL":
            self.sender = _path(line) or b"-"
        if verb == b"RCPT":
            self.recipient = _path(line)
            if (kind := self._kind()) in _REFUSALS and (kind == b"no550" or self._is_first(kind)):
                self.recipient = b""
                self._say(_REFUSALS[kind])
                if kind == b"close421":
                    self.transport.close()
                return
        if verb == b"DATA" and not self.recipient:
            self._say(b"503 5.5.1 RCPT first\r\n")
            return
        self.in_data = verb == b"DATA"
        say = self._say_later if self.in_data else self._say
        say(_REPLIES.get(verb, b"250 2.0.0 ok\r\n"))
        if verb == b"QUIT":
            self.transport.close()

    def _kind(self) -> bytes:
        return self.recipient.partition(b".")[0]

    def _is_first(self, kind: bytes) -> bool:
        """Whether it is this recipient's kind, and the first time."""
        if self._kind() != kind or self.recipient in self.known:
            return False
        self.known.add(self.recipient)
        return True

    def _say_later(self, reply: bytes, *, is_verdict: bool = False) -> None:
        self.loop.call_later(random.random() * self.longest_delay, self._say, reply, is_verdict)

    def _say(self, reply: bytes, is_verdict: bool = False) -> None:
        if not self.transport.is_closing():
            self.transport.write(reply)
            self.is_unread |= is_verdict


def _now() -> bytes:
    return b"%.6f" % time.time()


def _path(line: bytes) -> bytes:
    return line.partition(b"<")[2].partition(b">")[0]


async def main(port: int, log: Path, longest_delay: float) -> None:
    file, known, loop = _Log(log), set[bytes](), asyncio.get_running_loop()
    numbers = iter(range(10**9))
    server = await loop.create_server(
        lambda: _Session(file, longest_delay, next(numbers), known), "127.0.0.1", port, backlog=1000
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])))
