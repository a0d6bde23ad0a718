"""The sandbox's SMTP server: takes mail for anyone from anyone on this machine, and delivers none of it."""

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import cast

import uvloop
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session
from django.utils import timezone

from mailqueue.sandbox.inbox import Inbox, NotKeptError
from mailqueue.sandbox.models import SandboxMail
from mailqueue.sandbox.reading import printable, subject_of

HOST = "127.0.0.1"
#: More than the API takes: attachments of 10 MB, as base64, and two bodies.
MAX_MAIL_BYTES = 20 * 1024 * 1024


class SandboxSession(SMTP):
    # RFC 5321 says 1,000 octets; a mail that breaks the rule is better seen here than refused.
    line_length_limit = 1024 * 1024


class Handler:
    """What is done at the commands, in the names that aiosmtpd calls."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    async def handle_EHLO(  # noqa: N802
        self, _server: SMTP, session: Session, _envelope: Envelope, hostname: str, replies: list[str]
    ) -> list[str]:
        session.host_name = hostname
        # Commands are read and answered one after the other, which is all that PIPELINING asks.
        return [*replies[:-1], "250-PIPELINING", replies[-1]]

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        raw = cast("bytes", envelope.content)
        mail = SandboxMail(
            received_at=timezone.now(),
            sender=_address(envelope.mail_from or ""),
            recipients=[_address(recipient) for recipient in envelope.rcpt_tos],
            subject=subject_of(raw),
            size=len(raw),
            raw=raw,
        )
        try:
            await self._inbox.keep(mail)
        except NotKeptError:
            return "451 4.3.0 The inbox is away; try again"
        return f"250 2.0.0 Kept as {mail.pk}"


def _address(text: str) -> str:
    return "" if text == "<>" else printable(text)


def _welcome(*_: object) -> AuthResult:
    """Any login will do: the sandbox has nothing to protect, and clients want to try theirs."""
    return AuthResult(success=True)


async def serve(port: int, started: Callable[[], None]) -> None:
    """Until SIGTERM or SIGINT. OSError where the port is taken."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    inbox, name = Inbox(), socket.getfqdn()

    def session() -> SMTP:
        return SandboxSession(
            Handler(inbox),
            hostname=name,
            ident="mailqueue sandbox",
            data_size_limit=MAX_MAIL_BYTES,
            enable_SMTPUTF8=True,
            auth_require_tls=False,
            authenticator=_welcome,
            loop=loop,
        )

    server = await loop.create_server(session, HOST, port)
    writer = asyncio.create_task(inbox.write_forever())
    started()
    stopped = asyncio.create_task(stop.wait())
    # A writer that ended can only have crashed: then so do we, and the runner starts us anew.
    await asyncio.wait({stopped, writer}, return_when=asyncio.FIRST_COMPLETED)
    server.close()
    if writer.done():
        writer.result()
    await inbox.close()


def run(port: int, started: Callable[[], None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(port, started))
