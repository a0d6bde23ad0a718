"""Wrong passwords at a web of two processes: together they look at five, and without Redis at no more."""

import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.machine import PASSWORD, Machine, own_database, until


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    settings = {
        "WEB_PROCESSES": "2",
        "THROTTLE_LOGIN_ADDRESS": "off",
        "DEFAULT_SMTP_URL": "smtp://127.0.0.1:1",
    }
    with own_database() as database, Machine(database, tmp_path, **settings) as machine:
        granian = (
            sys.executable,
            "-m",
            "granian",
            "--interface",
            "wsgi",
            "--host",
            "127.0.0.1",
            "--workers",
            "2",
        )
        machine._start("web", *granian, "--port", str(machine.port), "--no-ws", "config.wsgi:application")
        until(machine._web_answers, "web answers")
        until(lambda: len(psutil.Process(machine.running["web"].pid).children()) >= 2, "both run")
        yield machine


def register(machine: Machine, email: str) -> None:
    machine._web.post("/register", json={"email": email, "password": PASSWORD}).raise_for_status()


def log_in(machine: Machine, email: str, password: str = "not the password") -> httpx.Response:
    """By a new connection, which either process may take."""
    login: dict[str, Any] = {"email": email, "password": password}
    return httpx.post(f"http://127.0.0.1:{machine.port}/api/v1/login", json=login, timeout=60)


def many_wrong(machine: Machine, email: str) -> Counter[int]:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: log_in(machine, email), range(40)))
    for answer in answers:
        if answer.status_code == 429:
            assert 0 < int(answer.headers["Retry-After"]) <= 300
    return Counter(answer.status_code for answer in answers)


def test_the_sixth_waits_whichever_process_is_asked_with_redis_and_without(machine: Machine) -> None:
    for name in ("ada", "bob"):
        register(machine, f"{name}@example.com")
    assert many_wrong(machine, "ada@example.com") == {401: 5, 429: 35}
    assert log_in(machine, "ada@example.com", PASSWORD).status_code == 429
    assert many_wrong(machine, "nobody@example.com") == {401: 5, 429: 35}
    assert log_in(machine, "bob@example.com", PASSWORD).status_code == 200

    machine.redis.stop()
    counted = many_wrong(machine, "bob@example.com")
    assert counted.keys() == {401, 429}
    assert 2 <= counted[401] <= 5  # the share of each process that was asked
    assert many_wrong(machine, "somebody@example.com")[401] <= 5
