r"""A real SMTP relay on a loopback socket that misbehaves on request and remembers what it accepted.

    with Relay() as relay:
        relay.on("rcpt", "451 4.3.0 later", "451 4.3.0 later", to="bob@example.com")   # twice, then 250
        relay.always("dot", RESET, to="eve@example.com")

Steps: connect (the banner), ehlo, starttls, auth, mail, rcpt, data, dot, rset, quit. A reply is one line of text,
several lines with "\n" between them, bytes that go out as they are, or a Deed.
"""

import asyncio
import base64
import re
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Self

_ANYBODY = ""
_STRICT_END = re.compile(rb"(?:\A|(?<=\r\n))\.\r\n")
#: What some relays take for the end of a mail, and what smuggling lives on.
_LENIENT_END = re.compile(rb"(?:\A|(?<=[\r\n]))\.(?:\r\n|\n|\r(?!\n))")


class Deed(Enum):
    """What a relay does in place of a reply."""

    RESET = auto()  # the connection is lost
    HANG = auto()  # never says anything again
    TAKE_AND_RESET = auto()  # at the dot: keeps the mail, and the 250 is lost


RESET, HANG, TAKE_AND_RESET = Deed
Reply = str | bytes | Deed


@dataclass(frozen=True)
class Accepted:
    """A mail that was taken over, or would have been but for the lost 250. `at` is monotonic seconds."""

    sender: str
    recipient: str
    raw: bytes
    at: float
    session: int

    @property
    def message_id(self) -> str:
        found = re.search(rb"(?im)^Message-ID:\s*(\S+)", self.raw)
        return found[1].decode() if found else ""


@dataclass
class Log:
    """One connection, as the relay saw it."""

    number: int
    commands: list[str] = field(default_factory=list)
    is_protected: bool = False
    auth_in_clear: bool = False
    logins: list[tuple[str, str]] = field(default_factory=list)
    #: Commands that came before the reply to the one before them.
    early: int = 0
    is_open: bool = True


class Relay:
    """Start it with `with`. Everything it offers may be changed while it runs; it counts from the next EHLO on."""

    def __init__(
        self,
        *,
        pipelining: bool = True,
        smtputf8: bool = False,
        size: int | None = None,
        users: dict[str, str] | None = None,
        auth: Sequence[str] = ("PLAIN", "LOGIN"),
        certificate: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        lenient: bool = False,
        delay: float = 0,
        port: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        """`users` makes it ask for a login; `certificate` makes it offer STARTTLS; `lenient` lets a bare LF or CR
        around the dot end a mail; `delay` (seconds) comes before each reply."""
        self.pipelining, self.size, self.users, self.auth = pipelining, size, users, auth
        self.smtputf8 = smtputf8
        self.certificate, self.implicit_tls, self.lenient, self.delay = (
            certificate,
            implicit_tls,
            lenient,
            delay,
        )
        self.port, self.host = port, host
        self.accepted: list[Accepted] = []
        self.sessions: list[Log] = []
        self._script: dict[tuple[str, str], deque[Reply]] = {}
        self._always: dict[tuple[str, str], Reply] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._conversations: set[asyncio.Task[None]] = set()

    # For tests --------------------------------------------------------------------------------------

    def on(self, step: str, *replies: Reply, to: str = _ANYBODY) -> Self:
        """These replies, once each and in order; then as usual."""
        self._script.setdefault((step, to), deque()).extend(replies)
        return self

    def always(self, step: str, reply: Reply | None, to: str = _ANYBODY) -> Self:
        """This reply every time; None: as usual again."""
        self._always.pop((step, to), None)
        if reply is not None:
            self._always[step, to] = reply
        return self

    def accepted_for(self, recipient: str) -> list[Accepted]:
        return [mail for mail in self.accepted if mail.recipient == recipient]

    def passed_on(self, message_id: str) -> list[bytes]:
        """A mail that came through another relay, each time, without the lines that that has put in front."""
        found = [mail.raw for mail in self.accepted if mail.message_id == message_id]
        return [raw[raw.index(b"\r\nFrom: ") + 2 :] for raw in found]

    def commands(self) -> list[str]:
        """The verbs and arguments of all connections, one connection after the other."""
        return [command for log in self.sessions for command in log.commands]

    def hang_up(self) -> None:
        """Resets every open connection, as a restart of the relay would."""
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (self._cancel_all(), done.set()))
        done.wait(5)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the relay did not start")
        return self

    def __exit__(self, *_exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    # The server -------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        tls = self.certificate if self.implicit_tls else None
        server = await asyncio.start_server(self._converse, self.host, self.port, ssl=tls, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        self._cancel_all()
        await asyncio.gather(*self._conversations, return_exceptions=True)

    def _cancel_all(self) -> None:
        for conversation in list(self._conversations):
            conversation.cancel()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        self._conversations.add(me)
        log = Log(len(self.sessions), is_protected=self.implicit_tls)
        self.sessions.append(log)
        try:
            await _Conversation(self, log, reader, writer).hold()
        except (ConnectionError, EOFError, ssl.SSLError, asyncio.CancelledError):
            pass  # gone, by their will or by ours
        finally:
            log.is_open = False
            writer.transport.abort()
            self._conversations.discard(me)

    def _scripted(self, step: str, recipient: str) -> Reply | None:
        for key in ((step, recipient), (step, _ANYBODY)):
            if self._script.get(key):
                return self._script[key].popleft()
        return self._always.get((step, recipient), self._always.get((step, _ANYBODY)))


class _Conversation:
    """One connection."""

    def __init__(
        self, relay: Relay, log: Log, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.relay, self.log, self.reader, self.writer = relay, log, reader, writer
        self.buffer = b""
        self.user = ""
        self.sender: str | None = None
        self.recipient: str | None = None

    async def hold(self) -> None:
        await self._say("connect", "220 relay.test ESMTP")
        verbs: dict[str, Callable[[str], object]] = {
            "EHLO": self._ehlo, "HELO": self._ehlo, "STARTTLS": self._starttls, "AUTH": self._auth,
            "MAIL": self._mail, "RCPT": self._rcpt, "DATA": self._data, "RSET": self._rset, "QUIT": self._quit,
        }  # fmt: skip
        while True:
            line = (await self._line()).decode("utf-8" if self.relay.smtputf8 else "ascii", "replace")
            self.log.early += bool(self.buffer)
            verb, _, rest = line.partition(" ")
            self.log.commands.append(line if verb.upper() != "AUTH" else f"AUTH {rest.split()[0]}")
            act = verbs.get(verb.upper())
            if act is None:
                await self._send("500 5.5.1 what?")
            elif await act(rest) is False:  # type: ignore[misc]
                return

    # Verbs ------------------------------------------------------------------------------------------

    async def _ehlo(self, _rest: str) -> None:
        relay = self.relay
        offers = ["relay.test", "8BITMIME", "ENHANCEDSTATUSCODES"]
        offers += ["PIPELINING"] * relay.pipelining
        offers += ["SMTPUTF8"] * relay.smtputf8
        offers += [f"SIZE {relay.size}"] * (relay.size is not None)
        offers += ["STARTTLS"] * (relay.certificate is not None and not self.log.is_protected)
        offers += [f"AUTH {' '.join(relay.auth)}"] * (relay.users is not None)
        await self._say("ehlo", "\n".join(f"250 {offer}" for offer in offers))

    async def _starttls(self, _rest: str) -> None:
        if self.relay.certificate is None:
            await self._send("502 5.5.1 no TLS here")
        elif await self._say("starttls", "220 go on"):
            self.buffer = b""
            await self.writer.start_tls(self.relay.certificate)
            self.log.is_protected = True

    async def _auth(self, rest: str) -> None:
        self.log.auth_in_clear |= not self.log.is_protected
        method, _, initial = rest.partition(" ")
        if method.upper() == "PLAIN":
            _, name, password = _decoded(initial or await self._ask("334 ")).split("\0")
        else:
            name = _decoded(initial or await self._ask("334 VXNlcm5hbWU6"))
            password = _decoded(await self._ask("334 UGFzc3dvcmQ6"))
        self.log.logins.append((name, password))
        if (self.relay.users or {}).get(name) == password:
            if await self._say("auth", "235 2.7.0 welcome"):
                self.user = name
        else:
            await self._send("535 5.7.8 wrong name or password")

    async def _mail(self, rest: str) -> None:
        if self.relay.users is not None and not self.user:
            await self._send("530 5.7.0 log in first")
        elif self.sender is not None:
            await self._send("503 5.5.1 nested MAIL")
        elif await self._say("mail", "250 2.1.0 ok"):
            self.sender = _path(rest)

    async def _rcpt(self, rest: str) -> None:
        if self.sender is None:
            await self._send("503 5.5.1 MAIL first")
        elif await self._say("rcpt", "250 2.1.5 ok", _path(rest)):
            self.recipient = _path(rest)

    async def _data(self, _rest: str) -> None:
        if self.recipient is None:
            await self._send("503 5.5.1 RCPT first")
            return
        if not await self._say("data", "354 go on", self.recipient):
            return
        raw = await self._content()
        sender, recipient = self.sender or "", self.recipient
        mail = Accepted(sender, recipient, raw, time.monotonic(), self.log.number)
        reply = self.relay._scripted("dot", recipient) or "250 2.0.0 taken"
        if reply is TAKE_AND_RESET or (isinstance(reply, str) and reply.startswith("250")):
            self.relay.accepted.append(mail)
        self.sender = self.recipient = None
        await self._send(RESET if reply is TAKE_AND_RESET else reply)

    async def _rset(self, _rest: str) -> None:
        self.sender = self.recipient = None
        await self._say("rset", "250 2.0.0 ok")

    async def _quit(self, _rest: str) -> bool:
        await self._say("quit", "221 2.0.0 bye")
        return False

    # Lines ------------------------------------------------------------------------------------------

    async def _say(self, step: str, usual: str, recipient: str = _ANYBODY) -> bool:
        """The scripted reply, or the usual one; whether it was a good one (2yz, 3yz)."""
        reply = self.relay._scripted(step, recipient) or usual
        await self._send(reply)
        return isinstance(reply, str) and reply[0] in "23"

    async def _send(self, reply: Reply) -> None:
        await asyncio.sleep(self.relay.delay)
        if reply is HANG:
            await asyncio.Event().wait()
        if isinstance(reply, Deed):
            raise ConnectionResetError
        self.writer.write(reply if isinstance(reply, bytes) else b"".join(_lines(reply)))
        await self.writer.drain()

    async def _ask(self, question: str) -> str:
        await self._send(question)
        return (await self._line()).decode("ascii", "replace")

    async def _line(self) -> bytes:
        while b"\n" not in self.buffer:
            await self._read_more()
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line.rstrip(b"\r")

    async def _content(self) -> bytes:
        """Up to the dot, which is not part of it; dot-stuffing undone."""
        ending = _LENIENT_END if self.relay.lenient else _STRICT_END
        while not (end := ending.search(self.buffer)):
            await self._read_more()
        stuffed, self.buffer = self.buffer[: end.start()], self.buffer[end.end() :]
        return re.sub(rb"(?:\A|(?<=\r\n))\.", b"", stuffed)

    async def _read_more(self) -> None:
        data = await self.reader.read(65_536)
        if not data:
            raise EOFError
        self.buffer += data


def _lines(reply: str) -> Iterator[bytes]:
    """A reply's lines as they go out: all but the last with a hyphen (RFC 5321 4.2.1)."""
    *first, last = reply.split("\n")
    for line in first:
        yield f"{line[:3]}-{line[4:]}\r\n".encode()
    yield f"{last}\r\n".encode()


def _path(argument: str) -> str:
    """The address between the angle brackets."""
    return argument[argument.index("<") + 1 : argument.rindex(">")]


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()
