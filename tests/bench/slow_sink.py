"""A sink far away: `python -m tests.bench.slow_sink ADDRESS PORT SECONDS`, each reply so much later.

Counts as `smtp-sink -c` does. Commands that came together are answered together, as a relay that is as far away
would be heard to answer them.
"""

import asyncio
import sys

import uvloop

from tests.bench.login_sink import Session


class _Late:
    """A transport that passes on what is written to it after a while."""

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        self.transport, self.seconds, self.loop = transport, seconds, asyncio.get_running_loop()

    def write(self, data: bytes) -> None:
        self.loop.call_later(self.seconds, self._write_now, data)

    def _write_now(self, data: bytes) -> None:
        if not self.transport.is_closing():  # who hung up meanwhile must not make noise among the counts
            self.transport.write(data)

    def close(self) -> None:
        self.loop.call_later(self.seconds, self.transport.close)


class SlowSession(Session):
    def __init__(self, seconds: float) -> None:
        super().__init__(tls=None)
        self.seconds = seconds

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(_Late(transport, self.seconds))  # type: ignore[arg-type]


async def main(address: str, port: int, seconds: float) -> None:
    server = await asyncio.get_running_loop().create_server(
        lambda: SlowSession(seconds), address, port, backlog=1000
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
