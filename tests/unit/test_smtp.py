"""A transaction over a real socket, step by step: when the dot may leave, and how long the relay has."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from mailqueue.delivery import smtp
from mailqueue.delivery.replies import Answer, Fault
from mailqueue.delivery.smtp import Connection, Session
from tasks.states import Phase

MAIL = b"Subject: hello\r\n\r\nhello\r\n"
ENVELOPE = b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go on\r\n"
TAKEN = Answer(Phase.REPLY, 250, "2.0.0 taken")

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def takes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """One mail, with its dot; what came after the envelope."""
    await reader.readuntil(b"DATA\r\n")
    writer.write(ENVELOPE)
    content = await reader.readuntil(b"\r\n.\r\n")
    writer.write(b"250 2.0.0 taken\r\n")
    return content


def with_session(
    script: Script, deed: Callable[[Session], Awaitable[Any]], *, pipelining: bool = True
) -> Any:
    """What `deed` makes of a session with a relay that behaves as `script` says."""

    async def both() -> Any:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await script(reader, writer)
                await reader.read()
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**24)
        port = server.sockets[0].getsockname()[1]
        _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
        session = Session(connection, pipelining=pipelining, size_limit=None)
        try:
            return await asyncio.wait_for(deed(session), 20)
        finally:
            session.abort()
            server.close()

    return uvloop.run(both())


async def send(session: Session, raw: bytes = MAIL, before_dot: Callable[[], None] = lambda: None) -> Answer:
    return await session.send("ada@example.com", "jane@example.com", raw, before_dot=before_dot)


def test_a_small_mail_arrives_in_one_piece_with_its_dot() -> None:
    pieces = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"DATA\r\n")
        writer.write(ENVELOPE)
        pieces.append(await reader.read(65_536))
        writer.write(b"250 2.0.0 taken\r\n")

    assert with_session(script, send) == TAKEN
    assert pieces == [MAIL + b".\r\n"]


@pytest.mark.parametrize("size", [100, 5_000_000])
def test_a_dot_that_may_not_leave_does_not(size: int) -> None:
    """Whatever has left by then, the relay is never told that it was all, and the session serves no other mail."""
    came = bytearray()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"DATA\r\n")
        writer.write(ENVELOPE)
        while piece := await reader.read(65_536):
            came.extend(piece)

    def refuse() -> None:
        raise OSError("the disk is full")

    async def deed(session: Session) -> bool:
        with pytest.raises(OSError, match="disk is full"):
            await send(session, b"x" * size + b"\r\n", refuse)
        await asyncio.sleep(0.05)
        return session.is_usable

    assert with_session(script, deed) is False
    assert not came.endswith(b".\r\n")


def test_a_large_mail_that_the_relay_does_not_read_was_surely_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(smtp.DEADLINES, Phase.BODY, 0.3)
    noted: list[int] = []
    never = asyncio.Event()  # of the test's own: a task that nothing but itself waits for may be collected

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"DATA\r\n")
        writer.write(ENVELOPE)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await never.wait()

    answer = with_session(script, lambda session: send(session, b"x" * 50_000_000, lambda: noted.append(1)))
    assert answer == Answer(Phase.BODY, fault=Fault.TIMEOUT)
    assert noted == []


@pytest.mark.parametrize(
    ("taken", "phase"), [(0, Phase.DATA), (3, Phase.DATA), (0, Phase.REPLY), (3, Phase.REPLY)]
)
def test_a_deadline_is_kept_on_the_first_mail_and_on_later_ones(
    monkeypatch: pytest.MonkeyPatch, taken: int, phase: Phase
) -> None:
    monkeypatch.setattr(smtp, "DEADLINES", dict.fromkeys(Phase, 0.3))

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(taken):
            await takes(reader, writer)
        await reader.readuntil(b"DATA\r\n")
        if phase == Phase.REPLY:
            writer.write(ENVELOPE)

    async def deed(session: Session) -> Answer:
        for _ in range(taken):
            assert await send(session) == TAKEN
            await asyncio.sleep(
                0.2
            )  # the alarm of an earlier step rings meanwhile, and must not end a later one
        return await send(session)

    silent = Phase.MAIL if phase == Phase.DATA else Phase.REPLY
    assert with_session(script, deed) == Answer(silent, fault=Fault.TIMEOUT)


def test_a_shorter_deadline_counts_though_a_longer_one_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(smtp.DEADLINES, Phase.REPLY, 0.3)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"DATA\r\n")
        writer.write(ENVELOPE)

    assert with_session(script, send) == Answer(Phase.REPLY, fault=Fault.TIMEOUT)


def test_idle_for_longer_than_any_deadline_a_session_is_good_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smtp, "DEADLINES", dict.fromkeys(Phase, 0.2))

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await takes(reader, writer)
        await takes(reader, writer)

    async def deed(session: Session) -> list[Answer]:
        first = await send(session)
        await asyncio.sleep(0.6)
        assert session.is_usable
        return [first, await send(session)]

    assert with_session(script, deed) == [TAKEN, TAKEN]


@pytest.mark.parametrize("pipelining", [True, False])
def test_replies_may_come_byte_by_byte_and_in_many_lines(pipelining: bool) -> None:
    async def dribble(writer: asyncio.StreamWriter, text: bytes) -> None:
        for place in range(len(text)):
            writer.write(text[place : place + 1])
            await writer.drain()
            await asyncio.sleep(0)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        envelope = [b"250-2.1.0 so\r\n250 ok\r\n", b"250\n", b"354-go\r\n354 on\r\n"]
        for reply in envelope if not pipelining else [b"".join(envelope)]:
            await reader.readuntil(b"DATA\r\n" if pipelining else b"\r\n")
            await dribble(writer, reply)
        await reader.readuntil(b"\r\n.\r\n")
        await dribble(writer, b"250-2.0.0 taken\r\n250-as\r\n250 7\xff\r\n")

    assert with_session(script, send, pipelining=pipelining) == Answer(
        Phase.REPLY, 250, "2.0.0 taken as 7\N{REPLACEMENT CHARACTER}"
    )


def test_cut_off_in_the_middle_a_session_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"DATA\r\n")

    async def deed(session: Session) -> bool:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(send(session), 0.1)
        return session.is_usable

    assert with_session(script, deed) is False


def test_who_slept_past_the_end_of_its_lease_sends_no_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The replies have come while it was stopped, and it reads them before any alarm rings."""
    came, noted = bytearray(), list[int]()
    really = Connection.data_received

    def late(self: Connection, data: bytes) -> None:
        time.sleep(0.4)
        really(self, data)

    monkeypatch.setattr(Connection, "data_received", late)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"DATA\r\n")
        writer.write(ENVELOPE)
        while piece := await reader.read(65_536):
            came.extend(piece)

    async def deed(session: Session) -> Answer:
        answer = await session.send(
            "ada@example.com",
            "jane@example.com",
            MAIL,
            before_dot=lambda: noted.append(1),
            ends_at=asyncio.get_running_loop().time() + 0.3,
        )
        await asyncio.sleep(0.05)
        assert not session.is_usable
        return answer

    assert with_session(script, deed) == Answer(Phase.BODY, fault=Fault.TIMEOUT)
    assert noted == []
    assert not came.endswith(b".\r\n")
