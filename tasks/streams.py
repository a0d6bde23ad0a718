"""Live streams: who listens in this process, and the one reader who looks for what has happened.

The loop's own thread hands out, another asks the database: every quarter of a second while anybody listens, once for
all of them. So a stream costs a socket and a few objects, and none costs a query of its own but where it resumes.
"""

import asyncio
import json
import logging
import random
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from django.db import Error, connection
from django.http import HttpResponse
from rest_framework_simplejwt.tokens import Token

from accounts.api.authentication import ended
from accounts.keys import ApiKey
from tasks import events
from tasks.events import Event
from tasks.models import MailTask
from tasks.states import FINAL, WAITING, Status

logger = logging.getLogger(__name__)

#: Seconds. Between two looks; without a word; until a credential is looked at again; until a new stream's task is.
LOOK_EVERY, HEARTBEAT, CHECK_EVERY, LOOK_AGAIN = 0.25, 15.0, 10.0, 2.0
#: For so long from the last look at them an owner's events are written, and how often that is renewed (seconds).
LISTEN_FOR, RENEW_EVERY = 3600.0, 300.0
#: Seconds; between two looks while the database does not answer.
LONGEST_WAIT = 4.0
#: Events at a time; owners who catch up at a time; chunks that wait for a reader.
PAGE, CATCH_UP, BACKLOG = 1_000, 50, 1_000
#: A stream ends when it has been given so much, and is resumed by its reader. The server takes what nobody reads, and
#: does not say so: this bounds what a reader who does not read can make it keep (bytes).
MOST = 1024 * 1024
#: Streams in one process: of an owner, and of all; fewer than the connections that it takes (`--backpressure`).
PER_OWNER, IN_ALL = 1_000, 3_000

FINAL_WORDS = {Status(each).label for each in FINAL}
GREETING = b"retry: 2000\n"
HEART = b": heartbeat\n\n"


class Known(NamedTuple):
    """A task's state, as far as one is told from another."""

    status: str
    try_count: int


@dataclass(eq=False)
class Stream:
    """Somebody who listens, to one task or to all of an owner."""

    owner_id: int
    #: What it was let in by.
    credential: Token | ApiKey
    #: All up to there it has, or does not want.
    position: int
    task_id: int | None = None
    #: The end of all events when it was opened; its position is before that where it resumes.
    newest: int = 0
    #: The last it was told of its task; None where that is not known.
    known: Known | None = None
    #: Told from the row, which may be ahead of the events.
    is_from_row: bool = False
    #: A statement that began before anybody listened may have moved the task without an event.
    look_again_at: float = field(default_factory=lambda: time.monotonic() + LOOK_AGAIN)
    #: Has yet to be told what has happened since its position; None: nobody has looked at it yet.
    is_behind: bool | None = None
    chunks: asyncio.Queue[bytes] = field(default_factory=lambda: asyncio.Queue(BACKLOG))
    #: No more comes; what is in `chunks` is still sent.
    is_over: bool = False

    @property
    def topic(self) -> tuple[int, int | None]:
        return self.owner_id, self.task_id

    def take(self, event: Event) -> None:
        """What has just happened, if it has not been told already."""
        if self.is_over or event.position <= self.position:
            return
        if self.chunks.full():
            self.is_behind = True  # and has this told again when there is room
            return
        self.position = event.position
        if self.task_id is None:
            self._say(sse(event.name, event.data, str(event.position)))
            return
        state = Known(event.data["status"], event.data["try_count"])
        if not (self.is_from_row and state == self.known):
            self._tell(event.name, event.data, state)
        self.is_from_row = False

    def take_row(self, task: MailTask, position: int) -> None:
        """The task as it is, if that is news. In a worker's hands it is on its way to an event."""
        if self.is_over or task.status == Status.PROCESSING:
            return
        if self.known is None or self.known.status != task.get_status_display():
            self.position = max(self.position, position)
            self.tell_row(task)

    def tell_row(self, task: MailTask) -> None:
        """The task as it is."""
        self.is_from_row = True
        self._tell(*described(task), Known(task.get_status_display(), task.try_count))

    def _tell(self, name: str, data: dict[str, Any], state: Known) -> None:
        self.known = state
        self._say(sse(name, data, f"{self.position}-{state.status}"))
        if state.status in FINAL_WORDS:
            self.end()

    def _say(self, chunk: bytes) -> None:
        self.chunks.put_nowait(chunk)

    def waiting(self) -> bytes:
        """What there is to be sent just now."""
        found = b""
        while not self.chunks.empty():
            found += self.chunks.get_nowait()
        return found

    def end(self) -> None:
        if not self.is_over:
            self.is_over = True
            with suppress(asyncio.QueueFull):  # then it is seen when the queue is empty
                self.chunks.put_nowait(b"")


def sse(name: str, data: dict[str, Any], event_id: str) -> bytes:
    """An event as text/event-stream has it (HTML, section 9.2.5)."""
    return f"id: {event_id}\nevent: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def described(task: MailTask) -> tuple[str, dict[str, Any]]:
    """The event that a task's present state would be, and its data."""
    return events.name_of(Status(task.status), task.cancel_reason), events.task_data(
        task_id=task.pk,
        status=task.status,
        try_count=task.try_count,
        max_tries=task.max_tries,
        cancel_reason=task.cancel_reason,
        outcome=None,
        code=None,
        reply=task.last_reply,
        until=task.due_at if task.status in WAITING else None,
        recipient=task.recipient,
        message_id=task.message_id,
        at=task.moved_at,
    )


class LiveResponse(HttpResponse):
    """What is said at once, and the stream that goes on with it where the server can (config/rsgi.py)."""

    def __init__(self, stream: Stream) -> None:
        # To know where to resume, before anything has happened.
        first = GREETING if stream.task_id else GREETING + f"id: {stream.position}\n\n".encode()
        super().__init__([first, stream.waiting()], content_type="text/event-stream; charset=utf-8")
        self.stream = stream
        self["Cache-Control"] = "no-store"
        self["X-Accel-Buffering"] = "no"


class Question(NamedTuple):
    """What the reader is to ask the database."""

    at: float
    position: int
    owners: list[int]
    #: Owners who catch up, and from where.
    behind: dict[int, int]
    tasks: list[int]
    credentials: list[Token | ApiKey]
    renewed: list[int]


class Found(NamedTuple):
    news: list[Event]
    missed: dict[int, list[Event]]
    #: Tasks as they are, and a position that they are not behind.
    rows: dict[int, MailTask]
    rows_at: int
    ended: list[Token | ApiKey]


class Streams:
    """Those of this process. Everything but `_ask` is called in the loop's thread."""

    def __init__(self) -> None:
        self._all: set[Stream] = set()
        self._by_topic: dict[tuple[int, int | None], set[Stream]] = defaultdict(set)
        self._count: Counter[int] = Counter()
        #: All up to there has been handed out to those who are not behind.
        self._position = 0
        self._checked_at = self._renewed_at = 0.0
        self._reader: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()

    def is_full(self, owner_id: int) -> bool:
        return self._count[owner_id] >= PER_OWNER or len(self._all) >= IN_ALL

    async def serve(self, stream: Stream, first: bytes, transport: Any, protocol: Any) -> None:
        """Until it is over, or nobody is there any more. `transport` and `protocol` are RSGI's."""
        self._join(stream)
        gone = asyncio.ensure_future(protocol.client_disconnect())
        sending = asyncio.ensure_future(_send(stream, first, transport))
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._leave(stream)
            gone.cancel()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    def end_all(self) -> None:
        """The process is about to end."""
        for stream in self._all:
            stream.end()

    async def close(self) -> None:
        self.end_all()
        if self._reader:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    def _join(self, stream: Stream) -> None:
        if not self._all:
            self._position = stream.newest
            self._checked_at = self._renewed_at = time.monotonic()
        self._all.add(stream)
        self._by_topic[stream.topic].add(stream)
        self._count[stream.owner_id] += 1
        self._wanted.set()
        if self._reader is None or self._reader.done():
            self._reader = asyncio.ensure_future(self._read())

    def _leave(self, stream: Stream) -> None:
        stream.is_over = True
        self._all.discard(stream)
        same = self._by_topic[stream.topic]
        same.discard(stream)
        if not same:
            del self._by_topic[stream.topic]
        self._count[stream.owner_id] -= 1
        if not self._count[stream.owner_id]:
            del self._count[stream.owner_id]
        if not self._all:
            self._wanted.clear()

    # The reader -------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """While anybody listens. What the database cannot answer now, it is asked again."""
        loop, wait = asyncio.get_running_loop(), LOOK_EVERY
        thread = ThreadPoolExecutor(1, "streams")
        try:
            while True:
                if not self._all:
                    await loop.run_in_executor(thread, _let_go)
                    await self._wanted.wait()
                question = self._question()
                try:
                    found = await loop.run_in_executor(thread, _ask, question)
                except Error as error:
                    wait = min(wait * 2, LONGEST_WAIT)
                    logger.warning("streams_wait_for_database", extra={"error": repr(error)})
                    await asyncio.sleep(wait * random.uniform(0.5, 1))  # noqa: S311 -- only to spread
                    continue
                wait = LOOK_EVERY
                if not self._hand_out(question, found):
                    await asyncio.sleep(LOOK_EVERY)
        finally:
            # Nobody is left waiting for a reader who is gone: they resume.
            self.end_all()
            await loop.run_in_executor(thread, _let_go)
            thread.shutdown(wait=False)

    def _question(self) -> Question:
        now = time.monotonic()
        behind: dict[int, int] = {}
        for stream in self._all:
            if stream.is_behind is None:
                stream.is_behind = stream.position < self._position
            if stream.is_behind and stream.chunks.empty():
                owner, position = stream.owner_id, stream.position
                if owner in behind or len(behind) < CATCH_UP:
                    behind[owner] = min(position, behind.get(owner, position))
        tasks = {each.task_id for each in self._all if each.task_id and each.look_again_at <= now}
        credentials: list[Token | ApiKey] = []
        if now >= self._checked_at + CHECK_EVERY:
            self._checked_at = now
            credentials = list({id(each.credential): each.credential for each in self._all}.values())
        owners = list(self._count)
        renewed: list[int] = []
        if now >= self._renewed_at + RENEW_EVERY:
            self._renewed_at, renewed = now, owners
        return Question(now, self._position, owners, behind, sorted(tasks), credentials, renewed)

    def _hand_out(self, question: Question, found: Found) -> bool:
        """Whether there is more to be had at once."""
        for event in found.news:
            self._tell(event)
            self._position = event.position
        for stream in self._all if found.missed else ():
            start = question.behind.get(stream.owner_id)
            if stream.is_behind and start is not None and start <= stream.position:
                _catch_up(stream, found.missed[stream.owner_id])
        for stream in self._all if found.rows else ():
            if stream.look_again_at <= question.at and not stream.is_behind and stream.task_id in found.rows:
                stream.look_again_at = float("inf")
                stream.take_row(found.rows[stream.task_id], found.rows_at)
        for stream in self._all if found.ended else ():
            if any(stream.credential is each for each in found.ended):
                stream.end()
        return len(found.news) == PAGE or any(len(page) == PAGE for page in found.missed.values())

    def _tell(self, event: Event) -> None:
        for topic in {(event.owner_id, None), (event.owner_id, event.task_id)}:
            for stream in self._by_topic.get(topic, ()):
                if stream.is_behind is False:
                    stream.take(event)


def _catch_up(stream: Stream, page: list[Event]) -> None:
    """What it has missed; with a page that is not full it is where the others are."""
    for event in page:
        if stream.task_id in (None, event.task_id):
            if stream.chunks.full():
                return
            stream.take(event)
    if page:
        stream.position = max(stream.position, page[-1].position)
    stream.is_behind = len(page) == PAGE


def _ask(question: Question) -> Found:
    """In the reader's own thread, with a connection of its own."""
    try:
        news = events.after(question.position, PAGE, question.owners)
        # After the news, so that who has caught up has had the news too.
        missed = {owner: events.after(start, PAGE, [owner]) for owner, start in question.behind.items()}
        rows, rows_at = _rows(question.tasks)
        gone = ended(question.credentials) if question.credentials else []
        for owner in question.renewed:
            events.listen(owner, LISTEN_FOR)
    except Error:
        connection.close()
        raise
    return Found(news, missed, rows, rows_at, gone)


def _let_go() -> None:
    connection.close()  # whose it is, is decided where it is called


def _rows(tasks: list[int]) -> tuple[dict[int, MailTask], int]:
    if not tasks:
        return {}, 0
    try:
        at = events.latest()
    except events.UnsettledError:
        return {}, 0  # they are asked for again
    return MailTask.objects.in_bulk(tasks), at


async def _send(stream: Stream, first: bytes, transport: Any) -> None:
    await transport.send_bytes(first)
    sent = len(first)
    while sent < MOST and not (stream.is_over and stream.chunks.empty()):
        try:
            async with asyncio.timeout(HEARTBEAT):
                chunk = await stream.chunks.get()
        except TimeoutError:
            chunk = HEART
        chunk += stream.waiting()
        if chunk:
            await transport.send_bytes(chunk)
            sent += len(chunk)


STREAMS = Streams()
