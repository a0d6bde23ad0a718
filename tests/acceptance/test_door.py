"""Requests as they come over a socket, through the door that calls and streams share (config/rsgi.py)."""

import http.client
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest
from django.contrib.staticfiles import finders

from tests.acceptance.test_live_streams import TASKS, listening
from tests.machine import Machine, Sender, own_database, until
from tests.relay import HANG, Relay

LIMIT = 15 * 1024 * 1024


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with own_database() as database, Machine(database, tmp_path_factory.mktemp("machine")) as machine:
        machine.start_web()
        yield machine


@pytest.fixture
def sender(machine: Machine, relay: Relay) -> Sender:
    return machine.user(relay.port)


def answer_to(machine: Machine, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what a request of these very bytes is answered."""
    with socket.create_connection(("127.0.0.1", machine.port), timeout=60) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection, method=request.split(b" ")[0].decode())
        response.begin()
        found = (
            response.status,
            {name.lower(): value for name, value in response.headers.items()},
            response.read(),
        )
        response.close()
        return found


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode("latin-1") + body


def chunked(body: bytes, size: int = 65_536) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def enqueue(sender: Sender, *headers: str, body: bytes = b"") -> bytes:
    bearer = f"Authorization: {sender._headers['Authorization']}"
    return request("POST /api/v1/task/enqueue", bearer, "Content-Type: application/json", *headers, body=body)


def a_mail(**changes: Any) -> bytes:
    return json.dumps({"recipient_email": "jane@example.com", "subject": "x", "body": "x"} | changes).encode()


@pytest.mark.parametrize("size", [10, 300_000, 3_000_000])
def test_a_body_arrives_whole_with_its_length_and_in_chunks(
    machine: Machine, sender: Sender, size: int
) -> None:
    mail = a_mail(body="ü" * (size // 2))
    status, _, said = answer_to(machine, enqueue(sender, f"Content-Length: {len(mail)}", body=mail))
    assert status == 202
    by_length = machine.stored(json.loads(said)["task_id"])
    status, _, said = answer_to(machine, enqueue(sender, "Transfer-Encoding: chunked", body=chunked(mail)))
    assert status == 202
    assert len(machine.stored(json.loads(said)["task_id"])) == len(by_length) > size


def test_a_body_above_the_limit_is_refused_however_it_comes(machine: Machine, sender: Sender) -> None:
    status, _, said = answer_to(machine, enqueue(sender, f"Content-Length: {LIMIT + 1}"))
    assert (status, json.loads(said)["code"]) == (413, "too_large")
    large = chunked(b" " * (LIMIT + 1))
    status, _, said = answer_to(machine, enqueue(sender, "Transfer-Encoding: chunked", body=large))
    assert (status, json.loads(said)["code"]) == (413, "too_large")


def test_who_leaves_in_the_middle_of_a_body_has_handed_over_nothing(machine: Machine, sender: Sender) -> None:
    before = machine.query("SELECT count(*) FROM tasks_mailtask")
    mail = a_mail()
    for sent in (mail, b" " * 1_000_000 + mail):
        with socket.create_connection(("127.0.0.1", machine.port)) as connection:
            connection.sendall(enqueue(sender, f"Content-Length: {len(sent) + 1}", body=sent))
        with socket.create_connection(("127.0.0.1", machine.port)) as connection:
            connection.sendall(enqueue(sender, "Transfer-Encoding: chunked", body=chunked(sent)[:-5]))
    assert answer_to(machine, request("GET /healthz/live"))[0] == 200
    assert machine.query("SELECT count(*) FROM tasks_mailtask") == before


def test_those_who_send_slowly_hold_nobody_up(machine: Machine, sender: Sender) -> None:
    slow = [socket.create_connection(("127.0.0.1", machine.port)) for _ in range(20)]
    try:
        for each in slow:
            each.sendall(enqueue(sender, "Content-Length: 1000000", body=b"{"))
        assert sender.enqueue()
    finally:
        for each in slow:
            each.close()


def test_a_relay_that_hangs_in_its_test_holds_nobody_up(machine: Machine) -> None:
    with Relay() as relay:
        relay.always("ehlo", HANG)
        sender = machine.user(relay.port)
        with ThreadPoolExecutor(1) as pool:
            tested = pool.submit(sender.try_relay)
            until(lambda: relay.sessions, "the test has reached the relay")
            assert sender.enqueue()
            assert not tested.done()
            assert tested.result()["ok"] is False


def test_a_head_is_answered_without_a_body(machine: Machine, sender: Sender) -> None:
    for address in ("/healthz/live", TASKS):
        bearer = f"Authorization: {sender._headers['Authorization']}"
        status, headers, said = answer_to(machine, request(f"HEAD {address}", bearer))
        assert (status, said) == (200, b"")
        assert headers["x-request-id"]


def test_headers_come_and_go_as_they_are(machine: Machine, sender: Sender) -> None:
    status, headers, _ = answer_to(machine, request("GET /healthz/live", "X-Request-ID: mine-4711"))
    assert (status, headers["x-request-id"]) == (200, "mine-4711")
    # Given twice they are one list, which is no id.
    _, headers, _ = answer_to(machine, request("GET /healthz/live", "X-Request-ID: a", "X-Request-ID: b"))
    assert headers["x-request-id"] not in ("a", "b")
    # What is not ASCII counts as empty, not as left out.
    mail = a_mail()
    status, _, said = answer_to(
        machine, enqueue(sender, f"Content-Length: {len(mail)}", "Idempotency-Key: schlüssel", body=mail)
    )
    assert status == 400, said


@pytest.mark.parametrize(
    "path", ["/api/v1/task/%31/cancel%0A", "/%ff", "/%C3%BC?x=%ff", "//", "/api/v1/../x"]
)
def test_strange_paths_are_not_found(machine: Machine, path: str) -> None:
    status, headers, said = answer_to(machine, request(f"GET {path}"))
    assert (status, headers["content-type"]) == (404, "application/problem+json"), said


def test_an_escaped_path_is_the_same_path(machine: Machine, sender: Sender) -> None:
    bearer = f"Authorization: {sender._headers['Authorization']}"
    assert answer_to(machine, request("GET /api/v1/task/%71ueue?page_size=1", bearer))[0] == 200


def test_files_of_the_pages_come_whole(machine: Machine) -> None:
    for name in ("drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js", "sandbox/icon.svg"):
        with open(str(finders.find(name)), "rb") as file:  # noqa: PTH123 -- a file of a package
            whole = file.read()
        got = httpx.get(
            f"http://127.0.0.1:{machine.port}/static/{name}", headers={"Accept-Encoding": "identity"}
        )
        assert got.content == whole


def test_calls_share_one_connection_to_the_database_and_streams_another(
    machine: Machine, sender: Sender
) -> None:
    name = machine.database.rpartition("/")[2]
    with listening(machine, sender) as first, listening(machine, sender) as second:
        for _ in range(20):
            pk = sender.enqueue()
        until(lambda: len(first.events) == len(second.events) == 20, f"both have heard of task {pk}")
        open_now = machine.query(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'")
        # The second one is the test's own; with it goes what the SMTP test has used.
        assert open_now[0][0] <= 4
    first.until_ended()


def test_a_worker_that_dies_is_followed_by_another(machine: Machine, sender: Sender) -> None:
    machine.kill("web")
    machine.start_web()
    assert sender.enqueue()
    assert psutil.Process(machine.running["web"].pid).children()
