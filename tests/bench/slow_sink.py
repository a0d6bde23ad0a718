"""A relay that is some way off: `python -m tests.bench.slow_sink ADDRESS PORT MILLISECONDS`.

Whatever comes together is answered together, so many milliseconds later. Counts as `smtp-sink -c` does, and
notes between the counts how many connections were open at most, and when it accepted mail to `watched...`.
"""

import asyncio
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop

from tests.bench.process import free_port, running, wait_until_open
from tests.bench.sink import Sink

#: Recipients that begin so are noted one by one.
WATCHED = "watched"
_REPLIES = {
    b"EHLO": b"250-sink\r\n250-PIPELINING\r\n250 ENHANCEDSTATUSCODES\r\n",
    b"DATA": b"354 go on\r\n",
    b"QUIT": b"221 2.0.0 bye\r\n",
}


class Session(asyncio.Protocol):
    accepted = 0
    opened = 0
    most_open = 0

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.buffer = b""
        self.in_data = False
        self.recipient = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        Session.opened += 1
        if Session.opened > Session.most_open:
            Session.most_open = Session.opened
            sys.stdout.write(f"open={Session.most_open}\n")
        self._later(b"220 sink ESMTP\r\n", [])

    def connection_lost(self, _error: Exception | None) -> None:
        Session.opened -= 1

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        replies: list[bytes] = []
        taken: list[bytes] = []
        while True:
            line, found, rest = self.buffer.partition(b"\r\n.\r\n" if self.in_data else b"\r\n")
            if not found:
                break
            self.buffer = rest
            if self.in_data:
                taken.append(self.recipient)
                self.in_data = False
                replies.append(b"250 2.0.0 accepted\r\n")
            else:
                replies.append(self._reply(line))
        if replies:
            self._later(b"".join(replies), taken)

    def _reply(self, line: bytes) -> bytes:
        verb = line[:4].upper()
        if verb == b"RCPT":
            self.recipient = line.partition(b"<")[2].partition(b">")[0]
        self.in_data = verb == b"DATA"
        return _REPLIES.get(verb, b"250 2.0.0 ok\r\n")

    def _later(self, replies: bytes, taken: list[bytes]) -> None:
        if self.delay:
            asyncio.get_running_loop().call_later(self.delay, self._answer, replies, taken)
        else:
            self._answer(replies, taken)

    def _answer(self, replies: bytes, taken: list[bytes]) -> None:
        """A mail is accepted when its sender is told."""
        if self.transport.is_closing():
            return
        self.transport.write(replies)
        if replies.startswith(b"221"):
            self.transport.close()
        for recipient in taken:
            Session.accepted += 1
            if recipient.startswith(WATCHED.encode()):
                sys.stdout.write(f"{recipient.decode()} {time.monotonic():.6f}\n")
        if taken:
            sys.stdout.write(f"mesg={Session.accepted}\r")
        sys.stdout.flush()


class SlowSink(Sink):
    """The same from outside."""

    def most_open(self) -> int:
        return max(map(int, re.findall(rb"open=(\d+)\n", self.counters.read_bytes())))

    def accepted_at(self) -> dict[str, float]:
        """When mail to each watched recipient was accepted, in time.monotonic() of this machine."""
        found = re.findall(rf"({WATCHED}\S+) (\S+)\n".encode(), self.counters.read_bytes())
        return {recipient.decode(): float(at) for recipient, at in found}


@contextmanager
def slow_sink(scratch: Path, milliseconds: int) -> Iterator[SlowSink]:
    port, counters = free_port(), scratch / "slow_sink.counters"
    command = [sys.executable, "-m", "tests.bench.slow_sink", "127.0.0.1", str(port), str(milliseconds)]
    with running(command, counters, cwd=Path(__file__).parents[2]) as process:
        wait_until_open(port, process, counters)
        yield SlowSink(port, counters)


async def main(address: str, port: int, milliseconds: int) -> None:
    server = await asyncio.get_running_loop().create_server(
        lambda: Session(milliseconds / 1000), address, port, backlog=1000
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
