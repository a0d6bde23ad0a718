"""A PostgreSQL that hangs: it takes everything and answers nothing."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.chaos.proxy import Mode, Proxy
from tests.machine import PATIENCE, Machine, own_database, until


def through(proxy: Proxy, database: str) -> str:
    """The same database, by way of the proxy."""
    given = urlsplit(database)
    login = given.netloc.rpartition("@")[0]
    return given._replace(netloc=f"{login}@127.0.0.1:{proxy.port}", query="").geturl()


def server(database: str) -> int | str:
    given = urlsplit(database)
    if folder := parse_qs(given.query).get("host"):
        return os.path.join(folder[0], f".s.PGSQL.{given.port or 5432}")  # noqa: PTH118 -- libpq's own way
    assert given.hostname in ("127.0.0.1", "localhost")
    return given.port or 5432


@pytest.fixture
def link() -> Iterator[Proxy]:
    with Proxy(server(os.environ["DATABASE_URL"])) as proxy:
        yield proxy


@pytest.fixture
def machine(link: Proxy, tmp_path: Path) -> Iterator[Machine]:
    with own_database() as database, Machine(through(link, database), tmp_path) as machine:
        machine.start_web()
        yield machine


def test_probes_and_calls_are_answered_while_it_hangs(machine: Machine, link: Proxy) -> None:
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{machine.port}", timeout=PATIENCE) as web,
        ThreadPoolExecutor(8) as pool,
    ):
        sender = machine.user(25)
        calls = {"headers": sender._headers}
        assert web.get("/healthz/ready").json()["database"] == "up"
        link.mode = Mode.DROP
        for answer in pool.map(lambda _: web.get("/healthz/ready"), range(8)):
            assert answer.status_code == 503
            assert answer.json() == {"status": "unavailable", "database": "down", "broker": "up"}
        assert web.get("/healthz/live").status_code == web.get("/healthz/ping").status_code == 200
        call = web.get("/api/v1/task/queue", **calls)
        assert (call.status_code, call.json()["code"]) == (503, "unavailable")
        assert web.get("/healthz/live").status_code == 200
        link.mode = Mode.PASS
        until(lambda: web.get("/healthz/ready").status_code == 200, "it is ready again")
        until(lambda: web.get("/api/v1/task/queue", **calls).status_code == 200, "calls are answered again")
