"""What a live stream begins with, and how it goes on: the parts that sockets do not show."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connections

from tasks import events, streams, submission
from tasks.api import live
from tasks.states import CancelReason, Status
from tasks.streams import LiveResponse, Stream, Streams
from tasks.submission import NewMail
from tests.factories import MailFactory, UserFactory, client_of

A_MAIL = NewMail("jane@example.com", "hello", "Hello.")


def parsed(said: bytes) -> list[tuple[str, str, dict[str, Any]]]:
    """Id, name and data of each event."""
    found = []
    for block in said.decode().split("\n\n"):
        lines = dict(line.partition(": ")[::2] for line in block.splitlines() if not line.startswith(":"))
        if "data" in lines:
            found.append((lines["id"], lines["event"], json.loads(lines["data"])))
    return found


# How it begins --------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("state", "name"),
    [
        ({}, "task.queued"),
        ({"status": Status.SCHEDULED}, "task.queued"),
        ({"status": Status.SUCCESS}, "task.sent"),
        ({"status": Status.FAILED}, "task.deferred"),
        ({"status": Status.UNCERTAIN}, "task.uncertain"),
        ({"status": Status.CANCELLED, "cancel_reason": CancelReason.USER}, "task.cancelled"),
        ({"status": Status.CANCELLED, "cancel_reason": CancelReason.EXHAUSTED}, "task.failed"),
    ],
)
def test_a_tasks_stream_begins_with_its_present_state(state, name):
    task = MailFactory(**state)
    response = client_of(task.owner).get(f"/api/v1/task/{task.pk}/events")
    assert response.content.startswith(b"retry: 2000\n")
    ((event_id, said, data),) = parsed(response.content)
    assert (said, data["task_id"], data["status"]) == (name, task.pk, task.get_status_display())
    assert event_id == f"{events.latest()}-{data['status']}"
    assert response.stream.is_over == (task.status in (Status.SUCCESS, Status.CANCELLED))


@pytest.mark.django_db
def test_an_event_and_a_state_say_the_same_fields():
    owner = UserFactory()
    events.listen(owner.pk)
    task = submission.submit(owner, A_MAIL)
    (event,) = events.after(0, 10, [owner.pk])
    ((_, name, data),) = parsed(client_of(owner).get(f"/api/v1/task/{task.pk}/events").content)
    assert (name, data.keys()) == (event.name, event.data.keys())


@pytest.mark.django_db
def test_whoever_has_had_the_last_event_is_told_to_stop():
    task = MailFactory(status=Status.SUCCESS)
    address, client = f"/api/v1/task/{task.pk}/events", client_of(task.owner)
    ((event_id, _, _),) = parsed(client.get(address).content)
    again = client.get(address, headers={"Last-Event-ID": event_id})
    assert (again.status_code, again.content) == (204, b"")


@pytest.mark.django_db
@pytest.mark.parametrize(
    "last", ["", "x", "-1", "1.5", "99999999999999999999", "9" * 5000, "½", "12345678-success"]
)
def test_what_is_no_id_of_ours_counts_as_none(last):
    task = MailFactory(status=Status.SUCCESS)
    headers = {"Last-Event-ID": last}
    response = client_of(task.owner).get(f"/api/v1/task/{task.pk}/events", headers=headers)
    assert [name for _, name, _ in parsed(response.content)] == ["task.sent"]


@pytest.mark.django_db
def test_an_owners_stream_begins_with_an_id_to_resume_by():
    response = client_of(UserFactory()).get("/api/v1/task/events")
    assert response.content == f"retry: 2000\nid: {events.latest()}\n\n".encode()


@pytest.mark.django_db
def test_too_many_streams_of_one_owner_are_refused(monkeypatch):
    owner = UserFactory()
    monkeypatch.setattr(live, "STREAMS", full := Streams())
    full._count[owner.pk] = streams.PER_OWNER
    refused = client_of(owner).get("/api/v1/task/events")
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
    assert refused["Retry-After"] == "5"
    assert client_of(UserFactory()).get("/api/v1/task/events").status_code == 200


# How it goes on -------------------------------------------------------------------------------------


class Transport:
    """Takes what is sent while it is open."""

    def __init__(self) -> None:
        self.said = b""
        self.open = asyncio.Event()
        self.open.set()

    async def send_bytes(self, chunk: bytes) -> None:
        await self.open.wait()
        self.said += chunk


class Protocol:
    """A client who stays."""

    async def client_disconnect(self) -> None:
        await asyncio.Event().wait()


async def until(answer: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not answer():  # noqa: ASYNC110 -- only asking tells
            await asyncio.sleep(0.02)


def follow(response: LiveResponse, play: Callable[[Transport, Streams, Stream], Any]) -> Transport:
    """Serves a stream while `play` goes on, as config/rsgi.py would."""

    async def serve() -> Transport:
        those, transport = Streams(), Transport()
        serving = asyncio.create_task(those.serve(response.stream, response.content, transport, Protocol()))
        try:
            await play(transport, those, response.stream)
        finally:
            transport.open.set()
            await those.close()
            await serving
        return transport

    return asyncio.run(serve())


def outside(call: Callable[[], Any]) -> Any:
    """In a thread without a loop, as Django wants it, whose connection is closed."""

    def work() -> Any:
        try:
            return call()
        finally:
            connections.close_all()

    return asyncio.get_running_loop().run_in_executor(None, work)


@pytest.mark.django_db(transaction=True)
def test_a_stream_whose_reader_is_slow_falls_behind_and_catches_up():
    owner = UserFactory()
    response = client_of(owner).get("/api/v1/task/events")
    response.stream.chunks = asyncio.Queue(5)

    async def play(transport: Transport, _those: Streams, stream: Stream) -> None:
        await until(lambda: transport.said)
        transport.open.clear()
        await outside(lambda: [submission.submit(owner, A_MAIL) for _ in range(40)])
        await until(lambda: stream.is_behind)
        assert stream.chunks.qsize() <= 5
        transport.open.set()
        await until(lambda: len(parsed(transport.said)) == 40 and stream.is_behind is False)
        await outside(lambda: submission.submit(owner, A_MAIL))
        await until(lambda: len(parsed(transport.said)) == 41)

    told = [int(event_id) for event_id, _, _ in parsed(follow(response, play).said)]
    assert told == sorted(set(told))


@pytest.mark.django_db(transaction=True)
def test_a_mail_that_was_moved_unheard_is_told_from_its_row():
    task = MailFactory()
    response = client_of(task.owner).get(f"/api/v1/task/{task.pk}/events")

    async def play(transport: Transport, _those: Streams, stream: Stream) -> None:
        # As a statement does that began before anybody listened.
        await outside(
            lambda: (
                type(task).objects.filter(pk=task.pk).update(status=Status.SUCCESS, finished_at=task.due_at)
            )
        )
        await until(lambda: stream.is_over)

    assert [name for _, name, _ in parsed(follow(response, play).said)] == ["task.queued", "task.sent"]


@pytest.mark.django_db(transaction=True)
def test_what_the_row_has_told_already_is_not_told_again():
    owner = UserFactory()
    events.listen(owner.pk)
    before = events.latest()
    task = submission.submit(owner, A_MAIL)
    response = client_of(owner).get(f"/api/v1/task/{task.pk}/events")
    response.stream.position = response.stream.newest = before  # the row was read a moment later

    async def play(transport: Transport, _those: Streams, stream: Stream) -> None:
        await until(lambda: stream.position > before)

    assert [name for _, name, _ in parsed(follow(response, play).said)] == ["task.queued"]
