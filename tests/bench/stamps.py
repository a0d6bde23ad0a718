"""A small SMTP sink that notes when it accepted the mail of each recipient.

smtp-sink only counts, and aiosmtpd takes about as long for a mail as the whole way we measure.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_EHLO = b"250-stamps\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n250 8BITMIME\r\n"
_REPLIES = {
    b"EHLO": _EHLO,
    b"HELO": b"250 stamps\r\n",
    b"DATA": b"354 go on\r\n",
    b"QUIT": b"221 2.0.0 bye\r\n",
}


@dataclass
class Stamps:
    """time.monotonic() of the final dot of each recipient's mail, in this process."""

    port: int = 0
    accepted: dict[str, float] = field(default_factory=dict)


class _Session(asyncio.Protocol):
    def __init__(self, stamps: Stamps) -> None:
        self.stamps = stamps
        self.buffer = b""
        self.in_data = False
        self.recipient = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(b"220 stamps ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            mark = b"\r\n.\r\n" if self.in_data else b"\r\n"
            taken, found, rest = self.buffer.partition(mark)
            if not found:
                return
            self.buffer = rest
            self._accept() if self.in_data else self._command(taken)

    def _accept(self) -> None:
        self.stamps.accepted[self.recipient] = time.monotonic()
        self.in_data = False
        self.transport.write(b"250 2.0.0 accepted\r\n")

    def _command(self, line: bytes) -> None:
        verb = line[:4].upper()
        if verb == b"RCPT":
            self.recipient = line.partition(b"<")[2].partition(b">")[0].decode()
        self.transport.write(_REPLIES.get(verb, b"250 2.0.0 ok\r\n"))
        self.in_data = verb == b"DATA"
        if verb == b"QUIT":
            self.transport.close()


@contextmanager
def stamping_sink() -> Iterator[Stamps]:
    """The sink on a loopback port, in a thread of this process, so that both ends read one clock."""
    stamps, ready = Stamps(), threading.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        server = await loop.create_server(lambda: _Session(stamps), "127.0.0.1", 0, backlog=1000)
        stamps.port = server.sockets[0].getsockname()[1]
        ready.set()

    def live() -> None:
        loop.run_until_complete(serve())
        loop.run_forever()
        loop.close()

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield stamps
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
