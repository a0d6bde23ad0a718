"""The sandbox's SMTP server: takes mail for anyone from anyone on this machine, and delivers none of it."""

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import cast

import uvloop
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

from mailqueue.delivery import magic
from mailqueue.delivery.replies import Fault
from mailqueue.sandbox.inbox import Inbox, NotKeptError, received
from tasks.states import Phase

#: More than the API takes: attachments of 10 MB, as base64, and two bodies.
MAX_MAIL_BYTES = 20 * 1024 * 1024


class SandboxSession(SMTP):
    # RFC 5321 says 1,000 octets; a mail that breaks the rule is better seen here than refused.
    line_length_limit = 1024 * 1024


class Handler:
    """What is done at the commands, in the names that aiosmtpd calls."""

    def __init__(self, inbox: Inbox, greylisted: set[tuple[str, str]]) -> None:
        """`greylisted`: senders and recipients that were told to come again, shared by all sessions."""
        self._inbox, self._greylisted = inbox, greylisted

    async def handle_EHLO(  # noqa: N802
        self, _server: SMTP, session: Session, _envelope: Envelope, hostname: str, replies: list[str]
    ) -> list[str]:
        session.host_name = hostname
        # Commands are read and answered one after the other, which is all that PIPELINING asks.
        return [*replies[:-1], "250-PIPELINING", replies[-1]]

    async def handle_RCPT(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if magic.is_magic(address) and (refusal := self._refusal(envelope.mail_from or "", address)):
            return refusal
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 2.1.5 OK"

    def _refusal(self, sender: str, recipient: str) -> str:
        """What a magic address answers to RCPT; nothing if that is no refusal."""
        fate, pair = magic.fate_of(recipient), (sender, recipient)
        if fate.answer.phase != Phase.RCPT:
            return ""
        if fate.once:
            if pair in self._greylisted:
                self._greylisted.remove(pair)
                return ""
            self._greylisted.add(pair)
        return f"{fate.answer.code} {fate.answer.text}"

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        fates = [magic.fate_of(recipient) for recipient in envelope.rcpt_tos if magic.is_magic(recipient)]
        await asyncio.sleep(max((fate.after for fate in fates), default=0))
        if any(fate.answer.fault is Fault.LOST for fate in fates):
            cast("asyncio.Transport", server.transport).abort()
            return "421 4.4.2 Nobody reads this"
        mail = received(envelope.mail_from or "", envelope.rcpt_tos, cast("bytes", envelope.content))
        try:
            await self._inbox.keep(mail)
        except NotKeptError:
            return "451 4.3.0 The inbox is away; try again"
        return f"250 2.0.0 Kept as {mail.pk}"


def _welcome(*_: object) -> AuthResult:
    """Any login will do: the sandbox has nothing to protect, and clients want to try theirs."""
    return AuthResult(success=True)


async def serve(host: str, port: int, started: Callable[[], None]) -> None:
    """Until SIGTERM or SIGINT. OSError where the port is taken."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    inbox, name, greylisted = Inbox(), socket.getfqdn(), set[tuple[str, str]]()

    def session() -> SMTP:
        return SandboxSession(
            Handler(inbox, greylisted),
            hostname=name,
            ident="mailqueue sandbox",
            data_size_limit=MAX_MAIL_BYTES,
            enable_SMTPUTF8=True,
            auth_require_tls=False,
            authenticator=_welcome,
            loop=loop,
        )

    server = await loop.create_server(session, host, port)
    writer = asyncio.create_task(inbox.write_forever())
    started()
    stopped = asyncio.create_task(stop.wait())
    # A writer that ended can only have crashed: then so do we, and the runner starts us anew.
    await asyncio.wait({stopped, writer}, return_when=asyncio.FIRST_COMPLETED)
    server.close()
    if writer.done():
        writer.result()
    await inbox.close()


def run(host: str, port: int, started: Callable[[], None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(host, port, started))
