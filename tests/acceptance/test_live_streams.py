"""Live status over real sockets: in order, once, to its owner; over lost connections, processes and databases."""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from tests.listening import Listening
from tests.machine import Machine, Sender, own_database, until
from tests.relay import Relay

TASKS = "/api/v1/task/events"


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with own_database() as database, Machine(database, tmp_path_factory.mktemp("machine")) as machine:
        yield machine


@pytest.fixture
def machine(processes: Machine) -> Machine:
    return processes.start_all()


@pytest.fixture
def sender(machine: Machine, relay: Relay) -> Sender:
    return machine.user(relay.port)


def listening(machine: Machine, sender: Sender, address: str = TASKS, last: str | None = None) -> Listening:
    return Listening(machine.port, sender._headers, address, last)


def of(pk: int) -> str:
    return f"/api/v1/task/{pk}/events"


def test_what_happens_to_a_mail_is_told_in_order_and_its_stream_ends_with_it(
    machine: Machine, sender: Sender, relay: Relay
) -> None:
    relay.on("dot", "451 4.3.0 later")
    with listening(machine, sender) as own:
        assert own.headers["Content-Type"].startswith("text/event-stream")
        assert (own.headers["Cache-Control"], own.headers["X-Accel-Buffering"]) == ("no-store", "no")
        pk = sender.enqueue()
        with listening(machine, sender, of(pk)) as stream:
            stream.until_ended()
            assert stream.events[0].name in ("task.queued", "task.deferred")
            assert stream.events[-1].name == "task.sent"
            assert {each.data["task_id"] for each in stream.events} == {pk}
        told = own.until(3)
        assert own.names() == ["task.queued", "task.deferred", "task.sent"]
        assert [each.data["status"] for each in told] == ["queued", "failed", "success"]
        assert [each.data["try_count"] for each in told] == [0, 1, 2]
        positions = [each.position for each in told]
        assert positions == sorted(set(positions))
        with listening(machine, sender, of(pk), stream.last) as again:
            assert again.status == 204


def test_who_comes_late_is_told_how_it_ended(machine: Machine, sender: Sender) -> None:
    pk = sender.enqueue()
    sender.until(pk, "success")
    with listening(machine, sender, of(pk)) as stream:
        assert [each.name for each in stream.until_ended()] == ["task.sent"]


def test_what_happened_while_the_connection_was_lost_is_told_once(machine: Machine, sender: Sender) -> None:
    with listening(machine, sender) as before:
        first = sender.enqueue()
        before.until(2)
    missed = [sender.enqueue() for _ in range(20)]
    for pk in missed:
        sender.until(pk, "success")
    with listening(machine, sender, last=before.last) as after:
        after.until(40)
        last = sender.enqueue()
        after.until(42)
        for pk in [*missed, last]:
            assert after.names(pk) == ["task.queued", "task.sent"]
        assert after.names(first) == []


def test_nobody_hears_of_anothers_mail(machine: Machine, sender: Sender, relay: Relay) -> None:
    other = machine.user(relay.port)
    with listening(machine, sender) as mine, listening(machine, other) as theirs:
        pks = {sender.enqueue(), sender.enqueue()}
        their_pk = other.enqueue()
        mine.until(4)
        theirs.until(2)
        assert {each.data["task_id"] for each in mine.events} == pks
        assert {each.data["task_id"] for each in theirs.events} == {their_pk}
        refused = httpx.get(f"http://127.0.0.1:{machine.port}{of(their_pk)}", headers=sender._headers)
        assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
    refused = httpx.get(f"http://127.0.0.1:{machine.port}{TASKS}")
    assert (refused.status_code, refused.json()["code"]) == (401, "not_authenticated")


def test_a_pause_of_the_account_is_told_to_its_owner_alone(machine: Machine, relay: Relay) -> None:
    # It is not told a password without encryption.
    sender = machine.user(relay.port, name="ada", password="secret", security="starttls")
    with listening(machine, sender) as stream:
        pk = sender.enqueue()
        sender.until_paused()
        until(lambda: "account.paused" in stream.names(), "the pause is told")
        with listening(machine, sender, of(pk)) as of_task:
            of_task.until(1)
            assert of_task.names() == ["task.queued"]


def test_a_silent_stream_has_heartbeats(machine: Machine, sender: Sender) -> None:
    with listening(machine, sender) as stream:
        until(lambda: stream.heartbeats, "a heartbeat has come")
        assert stream.events == []


def test_a_database_that_goes_away_costs_no_stream(machine: Machine, sender: Sender) -> None:
    with listening(machine, sender) as stream:
        pk = sender.enqueue()
        sender.until(pk, "success")
        stream.until(2)
        with no_database(machine):
            until(lambda: "streams_wait_for_database" in machine.said("web"), "the reader has noticed")
        until(lambda: httpx.get(ready(machine)).status_code == 200, "the web has its database again")
        pk = sender.enqueue()
        assert stream.until(4)
        assert stream.names(pk) == ["task.queued", "task.sent"]


def ready(machine: Machine) -> str:
    return f"http://127.0.0.1:{machine.port}/healthz/ready"


@contextmanager
def no_database(machine: Machine) -> Iterator[None]:
    """Nobody gets in, and those who are in are thrown out, as by a restart."""
    name = urlsplit(machine.database).path[1:]
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
        try:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            yield
        finally:
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())


def test_a_web_that_is_killed_is_resumed_where_it_was(machine: Machine, sender: Sender) -> None:
    with listening(machine, sender) as before:
        pks = [sender.enqueue()]
        before.until(2)
        pks.append(sender.enqueue())
        machine.kill("web")
        before.until_ended()
    machine.start_web()
    with listening(machine, sender, last=before.last) as after:
        until(lambda: len(before.events) + len(after.events) >= 4, "all is told")
        for pk in pks:
            assert before.names(pk) + after.names(pk) == ["task.queued", "task.sent"]


def test_a_web_that_is_asked_to_go_ends_its_streams_and_goes(machine: Machine, sender: Sender) -> None:
    with listening(machine, sender) as stream:
        assert machine.terminate("web") == 0
        stream.until_ended()


def test_a_stream_ends_with_what_it_was_let_in_by(machine: Machine, sender: Sender, relay: Relay) -> None:
    home = f"http://127.0.0.1:{machine.port}/api/v1"
    made = httpx.post(f"{home}/keys", json={"name": "x", "scopes": ["read"]}, headers=sender._headers).json()
    by_key = {"Authorization": f"Bearer {made['key']}"}
    other = machine.user(relay.port)
    with (
        Listening(machine.port, by_key, TASKS) as with_key,
        listening(machine, sender) as with_token,
        listening(machine, other) as of_another,
    ):
        httpx.delete(f"{home}/keys/{made['id']}", headers=sender._headers).raise_for_status()
        with_key.until_ended()
        assert not with_token.has_ended.is_set()
        httpx.delete(f"{home}/user/{sender.pk}", headers=sender._headers).raise_for_status()
        with_token.until_ended()
        assert not of_another.has_ended.is_set()


def test_who_does_not_read_is_dropped_and_who_reads_hears_all_of_it_once(
    machine: Machine, sender: Sender
) -> None:
    """Everybody is cut off after a megabyte; who reads resumes."""
    machine.kill("worker")
    silent = socket.create_connection(("127.0.0.1", machine.port))
    asked = f"GET {TASKS} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {sender._headers['Authorization']}\r\n\r\n"
    with silent:
        silent.sendall(asked.encode())
        with listening(machine, sender) as stream:
            home = f"http://127.0.0.1:{machine.port}/api/v1/task/enqueue/batch"
            mail = {"recipient_email": "jane@example.com", "subject": "x", "body": "x"}
            for _ in range(4):
                batch = {"messages": [mail] * 1_000}
                httpx.post(home, json=batch, headers=sender._headers, timeout=60).raise_for_status()
            stream.until_ended()
        heard = [each.id for each in stream.events]
        while len(heard) < 4_000:
            left = 4_000 - len(heard)
            with listening(machine, sender, last=stream.last) as stream:
                until(
                    lambda stream=stream, left=left: stream.has_ended.is_set() or len(stream.events) >= left,
                    "all is told",
                )
            heard += [each.id for each in stream.events]
        assert len(heard) == len(set(heard)) == 4_000
        silent.settimeout(60)
        given = b"".join(iter(lambda: silent.recv(65_536), b""))
    assert 500_000 < len(given) < 1_500_000
    assert b"event: task.queued" in given


def test_open_streams_are_counted_for_who_scales_them(machine: Machine, sender: Sender) -> None:
    until(lambda: _open(machine) == 0, "those of before have left")
    with listening(machine, sender):
        with listening(machine, sender):
            until(lambda: _open(machine) == 2, "two are open")
        until(lambda: _open(machine) == 1, "one has left")
    until(lambda: _open(machine) == 0, "both have left")


def _open(machine: Machine) -> float:
    text = httpx.get(f"http://127.0.0.1:{machine.port}/metrics", timeout=30).text
    (value,) = re.findall(r"^mailqueue_live_streams (.*)$", text, re.MULTILINE)
    return float(value)
