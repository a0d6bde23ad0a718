"""`python -m mailqueue.embedded run`, as `make run` starts it: all of it, on free ports, in a path with a space."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import create_server

import httpx
import psutil
import psycopg
import pytest
import redis

from mailqueue.embedded.postgres import Postgres
from mailqueue.embedded.process import ROOT
from mailqueue.embedded.redis import Redis, free_port

RUNNER = [sys.executable, "-m", "mailqueue.embedded"]
AS_TYPED = {"cwd": ROOT, "capture_output": True, "text": True}
PORTS = ("PORT", "FLOWER_PORT", "SANDBOX_SMTP_PORT")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A newcomer's: nothing of this test run's own."""
    env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return (
        env | {name: str(free_port()) for name in PORTS} | {"DATA_DIR": str(tmp_path / "a place of its own")}
    )


class Running:
    """A stack and what it has said so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        self.said.extend(self.process.stdout)

    def hears(self, pattern: str, seconds: float = 120) -> str:
        def heard() -> str | None:
            return next((line for line in [*self.said] if re.search(pattern, line)), None)

        assert eventually(heard, seconds), f"{pattern!r} was not said:\n{''.join(self.said)}"
        return heard() or ""

    def part(self, of_its_command: str) -> psutil.Process | None:
        children = psutil.Process(self.process.pid).children()
        return next((child for child in children if of_its_command in " ".join(child.cmdline())), None)

    def stop(self, with_signal: signal.Signals) -> None:
        """Returns when the runner is gone; nothing that it started may be left."""
        everybody = psutil.Process(self.process.pid).children(recursive=True)
        assert len(everybody) > 10
        self.process.send_signal(with_signal)
        assert self.process.wait(30) == 0
        assert [process for process in everybody if process.is_running()] == []


def eventually(holds: object, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():  # type: ignore[operator]
            return True
        time.sleep(0.1)
    return False


@contextmanager
def run(env: dict[str, str]) -> Iterator[Running]:
    with subprocess.Popen(
        [*RUNNER, "run"], cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            yield Running(process)
        finally:
            process.terminate()


def test_it_comes_up_mends_itself_goes_down_whole_and_finds_its_data_again(
    environment: dict[str, str],
) -> None:
    home = f"http://127.0.0.1:{environment['PORT']}"
    user = {"email": "ada@example.com", "password": "a long enough password"}

    with run(environment) as stack:
        stack.hears(f"^ready: {home}$")
        stack.hears("admin@example.com")
        assert httpx.get(f"{home}/healthz/ready").json() == {"status": "ok", "database": "up", "broker": "up"}
        assert httpx.post(f"{home}/api/v1/register", json=user).status_code == 201
        flower = f"http://127.0.0.1:{environment['FLOWER_PORT']}"
        assert httpx.get(flower).status_code == 401

        second = subprocess.run([*RUNNER, "run"], check=False, **AS_TYPED, env=environment)
        assert (second.returncode, second.stdout) == (1, "")
        assert f"runs on {environment['DATA_DIR']} already (process {stack.process.pid})" in second.stderr

        victim = stack.part("upkeep@")
        assert victim is not None
        victim.kill()
        stack.hears("stack .*upkeep was killed by SIGKILL; starting it again in 1 s")
        assert eventually(lambda: stack.part("upkeep@") not in (None, victim), 20)

        stack.stop(signal.SIGTERM)
        assert sum(line.startswith("ready: ") for line in stack.said) == 1

    with run(environment) as stack:
        stack.hears("^ready: ")
        assert httpx.post(f"{home}/api/v1/login", json=user).status_code == 200
        stack.stop(signal.SIGINT)


def test_a_taken_port_is_named_before_anything_starts(environment: dict[str, str]) -> None:
    with create_server(("127.0.0.1", int(environment["FLOWER_PORT"]))):
        tried = subprocess.run([*RUNNER, "run"], check=False, **AS_TYPED, env=environment)
    assert (tried.returncode, tried.stdout) == (1, "")
    assert f"Port {environment['FLOWER_PORT']} is taken (FLOWER_PORT)" in tried.stderr
    assert "make run FLOWER_PORT=" in tried.stderr


def test_a_command_runs_among_services_of_its_own_and_its_exit_code_comes_back(
    environment: dict[str, str],
) -> None:
    ask = "import os, psycopg; psycopg.connect(os.environ['DATABASE_URL']); print(os.environ['REDIS_URL']); exit(7)"
    command = [*RUNNER, "exec", "--temporary", "--", sys.executable, "-c", ask]
    ran = subprocess.run(command, check=False, **AS_TYPED, env=environment)
    assert ran.returncode == 7, ran.stderr
    with pytest.raises(redis.ConnectionError), redis.Redis.from_url(ran.stdout.strip()) as client:
        client.ping()
    assert not Path(environment["DATA_DIR"]).exists()


def test_a_killed_redis_comes_back_at_the_same_address_with_what_it_knew(tmp_path: Path) -> None:
    server = Redis(tmp_path / "redis data", "secret")
    server.start()
    try:
        with redis.Redis.from_url(server.url) as client:
            client.set("kept", "yes")
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        server.kill()
        assert not server.answers()
        server.start()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("kept") == b"yes"
    finally:
        server.stop()


def test_a_killed_postgres_comes_back_with_what_was_committed(tmp_path: Path) -> None:
    server = Postgres(tmp_path / "postgres data", durable=False)
    server.start()
    try:
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
        server.kill()
        server.start()
        with psycopg.connect(server.url) as connection:
            assert connection.execute("SELECT one FROM kept").fetchone() == (1,)
    finally:
        server.stop()
