"""A fast relay that notes in a file what it took: `python -m tests.chaos.sink PORT LOG LONGEST_DELAY`.

A line for each mail, with the kernel before anything is answered: seconds since the epoch, recipient, Message-ID.
354 and 250 come after random delays, so that at any moment some mails are just before their final dot, and some
between it and its reply: whoever is killed then leaves mails behind that were taken, and cannot know.
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


@dataclass(frozen=True)
class Taken:
    """A mail that the relay took over; `at` is seconds since the epoch."""

    at: float
    recipient: str
    message_id: str


@dataclass(frozen=True)
class Sink:
    port: int
    log: Path

    def count(self) -> int:
        return self.log.read_bytes().count(b"\n")

    def taken(self) -> list[Taken]:
        lines = [line.split(" ") for line in self.log.read_text().splitlines()]
        return [Taken(float(at), recipient, message_id) for at, recipient, message_id in lines]


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


class _Session(asyncio.Protocol):
    def __init__(self, log: int, longest_delay: float) -> None:
        self.log, self.longest_delay = log, longest_delay
        self.loop = asyncio.get_running_loop()
        self.buffer, self.recipient, self.in_data = b"", b"", False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._say(b"220 sink ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
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
        at = b"%.6f" % time.time()
        os.write(self.log, b" ".join([at, self.recipient, found[1] if found else b"-"]) + b"\n")
        self._say_later(b"250 2.0.0 accepted\r\n")

    def _command(self, line: bytes) -> None:
        verb = line[:4].upper()
        if verb == b"RCPT":
            self.recipient = line.partition(b"<")[2].partition(b">")[0]
        self.in_data = verb == b"DATA"
        say = self._say_later if self.in_data else self._say
        say(_REPLIES.get(verb, b"250 2.0.0 ok\r\n"))
        if verb == b"QUIT":
            self.transport.close()

    def _say_later(self, reply: bytes) -> None:
        self.loop.call_later(random.random() * self.longest_delay, self._say, reply)

    def _say(self, reply: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(reply)  # type: ignore[attr-defined]


async def main(port: int, log: Path, longest_delay: float) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Session(file, longest_delay), "127.0.0.1", port, backlog=1000)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])))
