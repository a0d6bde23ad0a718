"""A sink that offers STARTTLS and AUTH, which smtp-sink does not: `python -m tests.bench.login_sink PORT [PEM]`.

Counts as `smtp-sink -c` does. With a certificate it takes mail only after STARTTLS and a login; without one it
is the same sink in clear, so that what the two cost can be compared. Both are faster than what is measured.
"""

import asyncio
import ssl
import sys
from typing import Any

import uvloop

#: The one login that it accepts, as AUTH PLAIN sends it: base64 of "\0ada\0secret".
USER, PASSWORD, _PLAIN = "ada", "secret", b"AGFkYQBzZWNyZXQ="
_OFFERS = b"250-sink\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n"


class Session(asyncio.Protocol):
    accepted = 0

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self.tls = tls
        self.is_protected = False
        self.may_send = tls is None
        self.buffer = b""
        self.in_data = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        if not self.is_protected:
            transport.write(b"220 sink ESMTP\r\n")  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        before, replies = Session.accepted, []
        while True:
            taken, found, rest = self.buffer.partition(b"\r\n.\r\n" if self.in_data else b"\r\n")
            if not found:
                break
            self.buffer = rest
            replies.append(self._accept() if self.in_data else self._reply(taken))
        if replies:
            self.transport.write(b"".join(replies))
        if Session.accepted != before:
            sys.stdout.write(f"mesg={Session.accepted}\r")
            sys.stdout.flush()

    def _accept(self) -> bytes:
        Session.accepted += 1
        self.in_data = False
        return b"250 2.0.0 accepted\r\n"

    def _reply(self, line: bytes) -> bytes:
        verb = line[:4].upper()
        if verb == b"EHLO":
            offer = b"STARTTLS" if self.tls and not self.is_protected else b"AUTH PLAIN"
            return _OFFERS + b"250 " + offer + b"\r\n"
        if verb == b"STAR" and self.tls:
            self.is_protected = True
            asyncio.get_running_loop().create_task(self._protect(self.tls))
            return b"220 go on\r\n"
        if verb == b"AUTH":
            self.may_send = self.is_protected and line.split()[-1] == _PLAIN
            return b"235 2.7.0 welcome\r\n" if self.may_send else b"535 5.7.8 no\r\n"
        if verb in (b"MAIL", b"DATA") and not self.may_send:
            return b"530 5.7.0 STARTTLS and AUTH first\r\n"
        if verb == b"QUIT":
            self.transport.close()
        self.in_data = verb == b"DATA"
        return b"354 go on\r\n" if self.in_data else b"250 2.0.0 ok\r\n"

    async def _protect(self, tls: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        self.transport = await loop.start_tls(self.transport, self, tls, server_side=True)


async def main(port: int, pem: str = "") -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if pem else None
    if tls:
        tls.load_cert_chain(pem)
    server = await asyncio.get_running_loop().create_server(
        lambda: Session(tls), "127.0.0.1", port, backlog=1000
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), *sys.argv[2:]))
