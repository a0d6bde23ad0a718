"""The service as processes of its own, each of which a test may kill, on a database and a Redis of its own.

Unlike `make run` nobody restarts what a test has ended, and the waits are seconds.
"""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx
import kombu.pools
import psutil
import psycopg
from celery import Celery

from config.celery import app as service
from mailqueue.embedded.process import ROOT, Child, end, kill_group, spawn
from mailqueue.embedded.redis import Redis, free_port

#: For whatever is waited for; far longer than it takes, for the machine may be busy (seconds).
PATIENCE = 90.0
PASSWORD = "correct horse battery"
T = TypeVar("T")
_CELERY = (sys.executable, "-m", "celery", "-q", "-A", "config")
_WORKER = (*_CELERY, "worker", "--without-gossip", "--without-mingle", "--loglevel", "INFO")


def until(answer: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
    """Asks until the answer is true, and returns it."""
    deadline = time.monotonic() + seconds
    while not (found := answer()):
        assert time.monotonic() < deadline, f"{what}: it did not come to pass in {seconds:.0f} s"
        time.sleep(0.05)
    return found


@contextmanager
def celery_app(broker: str) -> Iterator[Celery]:
    """To speak with the workers of that broker; nobody's current app, and its connections end with it."""
    with Celery(broker=broker, set_as_current=False) as app:
        app.conf.broker_transport_options = {"global_keyprefix": "mailqueue:"}
        try:
            yield app
        finally:
            _forget_broker_connections()


def _forget_broker_connections() -> None:
    """Pools keep them by URL, beyond the life of an app, and all apps share them. The service's own app, which
    tests publish with, must not go on with a pool that was closed so."""
    kombu.pools.reset()
    service._pool = None
    if "amqp" in vars(service):
        service.amqp._producer_pool = None


@contextmanager
def empty_database() -> Iterator[str]:
    """The URL of a new one on the test run's PostgreSQL; it goes away afterwards."""
    server = os.environ["DATABASE_URL"]
    name = f"machine_{secrets.token_hex(4)}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            yield urlsplit(server)._replace(path=f"/{name}").geturl()
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def own_database() -> Iterator[str]:
    """The same, migrated."""
    with empty_database() as url:
        migrate = [sys.executable, "manage.py", "migrate", "--verbosity", "0"]
        subprocess.run(migrate, cwd=ROOT, env=os.environ | {"DATABASE_URL": url}, check=True)
        yield url


class Machine:
    """Web, workers, upkeep and beat. Start each by name; all of it ends with the `with`."""

    def __init__(self, database: str, folder: Path, **settings: str) -> None:
        """`settings` are environment variables over the short waits that tests want."""
        self.database, self.folder = database, folder
        self.redis = Redis(folder / "redis", secrets.token_hex(8))
        self.port = free_port()
        self.env = os.environ | {
            "DATABASE_URL": database,
            "REDIS_URL": self.redis.url,
            "DATA_DIR": str(folder / "data"),
            "HEARTBEAT_DIR": str(folder),
            "DEBUG": "false",
            "SMTP_ALLOWED_NETWORKS": "127.0.0.0/8",
            "MAIL_RETRY_SCHEDULE": "1,2",
            "MAIL_LEASE_SECONDS": "4",
            **settings,
        }
        self.running: dict[str, Child] = {}
        self._web = httpx.Client(base_url=f"http://127.0.0.1:{self.port}/api/v1", timeout=30)

    def __enter__(self) -> Self:
        self.redis.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._web.close()
        for child in self.running.values():
            end(child, signal.SIGTERM, 1)
        self.redis.stop()

    # Processes --------------------------------------------------------------------------------------

    def start_web(self) -> None:
        granian = (sys.executable, "-m", "granian", "--interface", "rsgi", "--host", "127.0.0.1")
        self._start("web", *granian, "--port", str(self.port), "--no-ws", "config.rsgi:application")
        until(self._web_answers, "web answers")

    def start_worker(self, name: str = "worker", concurrency: int = 1) -> None:
        self._start(name, *_WORKER, "-Q", "drain", "--concurrency", str(concurrency), "-n", f"{name}@%h")

    def start_upkeep(self, name: str = "upkeep") -> None:
        self._start(name, *_WORKER, "-Q", "upkeep", "--concurrency", "1", "-n", f"{name}@%h")

    def start_beat(self, name: str = "beat") -> None:
        self._start(name, *_CELERY, "beat", "--pidfile=")

    def start_all(self) -> Self:
        """Whatever does not run yet; returns when the web answers and the workers take jobs."""
        starts = {
            "worker": self.start_worker,
            "upkeep": self.start_upkeep,
            "beat": self.start_beat,
            "web": self.start_web,
        }
        for name, start in starts.items():
            if name not in self.running:
                start()
        self.until_ready("worker", "upkeep")
        return self

    def until_ready(self, *names: str) -> None:
        """Workers that take jobs."""
        for name in names:
            until(lambda name=name: "ready." in self.said(name), f"{name} is ready")

    def kill(self, name: str) -> None:
        """As a crash would: the worker and its pool, at once."""
        child = self.running.pop(name)
        kill_group(child)
        child.wait()

    def terminate(self, name: str, seconds: float = PATIENCE) -> int:
        """Asks it to go, and returns its exit code; fails if it does not go by itself."""
        child = self.running.pop(name)
        pool = psutil.Process(child.pid).children(recursive=True)
        child.send_signal(signal.SIGTERM)
        try:
            code = child.wait(seconds)
            assert not psutil.wait_procs(pool, timeout=5)[1], f"{name} left processes behind"
        finally:
            kill_group(child)
        return code

    def said(self, name: str) -> str:
        """Its log since it was started."""
        return (self.folder / f"{name}.log").read_text()

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.running[name] = spawn(command, env=self.env, output=log)

    def _web_answers(self) -> bool:
        try:
            return self._web.get(f"http://127.0.0.1:{self.port}/healthz/live").status_code == 200
        except httpx.TransportError:
            return False

    # What people do ---------------------------------------------------------------------------------

    def user(
        self, port: int, host: str = "127.0.0.1", name: str = "", password: str = "", security: str = "auto"
    ) -> "Sender":
        """A new user whose mail goes to this relay."""
        login = {"email": f"{secrets.token_hex(6)}@example.com", "password": PASSWORD}
        relay = {"smtp_host": host, "smtp_port": port, "smtp-username": name, "smtp-password": password}
        relay["smtp_security"] = security
        self._web.post("/register", json=login | relay).raise_for_status()
        user = self._web.post("/login", json=login).raise_for_status().json()
        return Sender(self._web, {"Authorization": f"Bearer {user['token']}"}, user["id"])

    def stored(self, pk: int) -> bytes:
        """The mail as it was built."""
        ((raw,),) = self.query(f"SELECT raw FROM tasks_mailcontent WHERE task_id = {pk}")
        return bytes(raw)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """What the database says."""
        with psycopg.connect(self.database, autocommit=True) as connection:
            return connection.execute(sql).fetchall()


class Sender:
    """Somebody with a token."""

    def __init__(self, web: httpx.Client, headers: dict[str, str], pk: int) -> None:
        self._web, self._headers, self.pk = web, headers, pk

    def account(self) -> dict[str, Any]:
        """Whether mail goes out, and why not."""
        found: dict[str, Any] = self._get(f"/user/{self.pk}")["account"]
        return found

    def change(self, **settings: Any) -> None:
        """New SMTP settings; `_` stands for the hyphen of smtp-password."""
        answer = self._web.patch(f"/user/{self.pk}", json=settings, headers=self._headers)
        assert answer.status_code == 200, answer.text

    def try_relay(self) -> dict[str, Any]:
        """What the SMTP test says."""
        answer = self._web.post(f"/user/{self.pk}/smtp/test", headers=self._headers)
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    def enqueue(self, recipient: str = "jane@example.com", **changes: Any) -> int:
        """The task's id, once the mail is accepted."""
        mail = {"recipient_email": recipient, "subject": "Grüße", "body": "Hello ✓"}
        answer = self._web.post("/task/enqueue", json=mail | changes, headers=self._headers)
        assert answer.status_code == 202, answer.text
        return int(answer.json()["task_id"])

    def cancel(self, pk: int) -> None:
        self._web.post(f"/task/{pk}/cancel", headers=self._headers).raise_for_status()

    def task(self, pk: int) -> dict[str, Any]:
        return self._get(f"/task/{pk}")

    def failures(self) -> list[int]:
        return [task["task_id"] for task in self._get("/task/queue/fail")["results"]]

    def until(self, pk: int, status: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """The task as soon as it has come to this status."""
        try:
            until(lambda: self.task(pk)["status"] == status, f"task {pk} is {status}", seconds)
        except AssertionError as error:  # what it is instead says why
            raise AssertionError(f"{error}\n{self.task(pk)}\n{self.account()}") from None
        return self.task(pk)

    def until_paused(self) -> dict[str, Any]:
        """The account, as soon as its breaker is open."""
        until(lambda: self.account()["state"] == "paused", "the account is paused")
        return self.account()

    def assert_it_waits_untried(self, pk: int) -> None:
        """As mail does whose account is paused."""
        task = self.until(pk, "queued")
        assert (task["try_count"], task["attempts"]) == (0, [])
        assert task["waiting"]["reason"] == "account_paused"

    def _get(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = self._web.get(path, headers=self._headers).raise_for_status().json()
        return found
