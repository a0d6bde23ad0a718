"""Our service for one measurement: its own database, and its programs as an operator starts them."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from cryptography.fernet import Fernet

from mailqueue.embedded.parts import all_parts
from tests.bench.ground import BODY, Ground
from tests.bench.process import NotMeasuredError, free_port, run, running, wait_until_logged, wait_until_open

ROOT = Path(__file__).parents[2]


@dataclass
class Service:
    """Migrated, with one user whose relay is the sink, and with `waiting` mails in the ledger."""

    env: dict[str, str]
    scratch: Path

    @classmethod
    def prepared(
        cls,
        ground: Ground,
        smtp_port: int,
        waiting: int = 0,
        account: dict[str, Any] | None = None,
        authority: Path | None = None,
    ) -> "Service":
        """`account`: other fields of the SMTP account; `authority`: whose certificates the worker trusts."""
        service = cls.empty(ground, authority)
        fill = ["tests.bench.fill", str(smtp_port), str(waiting), json.dumps(account or {})]
        service.python("-m", *fill, given=BODY)
        ground.settle(service.env["DATABASE_URL"])
        return service

    @classmethod
    def empty(cls, ground: Ground, authority: Path | None = None, database: str = "bench_ours") -> "Service":
        """Migrated, and nobody in it yet."""
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "DEBUG": "false",
            "DATABASE_URL": ground.fresh_database(database),
            "REDIS_URL": ground.redis_database(0),
            "SECRET_KEY": Fernet.generate_key().decode(),
            "JWT_SIGNING_KEY": Fernet.generate_key().decode(),
            "CREDENTIAL_KEYS": Fernet.generate_key().decode(),
            "SMTP_ALLOWED_NETWORKS": "127.0.0.0/8,::1/128",
            "DATA_DIR": str(ground.scratch),
            "PORT": str(free_port()),
            "FLOWER_PORT": "5555",  # never started here
            "SANDBOX_SMTP_PORT": "1025",  # nor is this
            "WORKER_CONCURRENCY": "2",
        }
        env |= {name: os.environ[name] for name in ("WORKER_CONNECTIONS",) if name in os.environ}
        env |= {"SSL_CERT_FILE": str(authority)} if authority else {}
        service = cls(env, ground.scratch)
        service.python("manage.py", "migrate", "-v0")
        return service

    def plenty(self, kind: str, rows: int, owners: int, smtp_port: int, text: str) -> None:
        """Very many mails of many owners; see tests/bench/plenty.py."""
        numbers = [str(number) for number in (rows, owners, smtp_port)]
        self.python("-m", "tests.bench.plenty", kind, *numbers, given=text, patience=600 + rows / 1_000)

    def python(self, *arguments: str, given: str = "", patience: float = 600) -> str:
        return run([sys.executable, *arguments], env=self.env, cwd=ROOT, given=given, patience=patience)

    @contextmanager
    def worker(self) -> Iterator[None]:
        with self._part("worker"):
            yield

    @contextmanager
    def web(self) -> Iterator[int]:
        """The web server alone; its port."""
        with self._part("web"):
            yield int(self.env["PORT"])

    @contextmanager
    def whole(self) -> Iterator[int]:
        """Web, both workers and beat; the port of the web server."""
        with ExitStack() as stack:
            for name in ("web", "worker", "upkeep", "beat"):
                stack.enter_context(self._part(name))
            yield int(self.env["PORT"])

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        """A part of the stack, by the very command that `make run` starts it with, once it is ready."""
        part = next(part for part in all_parts(self.env, "") if part.name == name)
        log = self.scratch / f"{name}.log"
        with running(part.command, log, env=self.env, cwd=ROOT) as process:
            if part.url:
                wait_until_open(int(self.env["PORT"]), process, log)
            elif name != "beat":  # which says nothing, and is waited for by nobody
                wait_until_logged(part.greeting, process, log)
            yield

    def ring(self) -> None:
        self.python("-c", "import django; django.setup(); from tasks import doorbell; assert doorbell.ring()")

    def first_claim(self) -> float:
        """Seconds since the epoch, by the database's clock."""
        return self._number("SELECT extract(epoch FROM min(started_at)) FROM tasks_mailtask")

    def seconds_of_sending(self) -> float:
        """From the first claim to the last result in the ledger."""
        return self._number(
            "SELECT extract(epoch FROM max(finished_at) - min(started_at)) FROM tasks_mailtask"
        )

    def expect_successes(self, mails: int, patience: float = 30) -> None:
        """The ledger must come to say what the sink said; a figure without it would be no delivery."""
        deadline = time.monotonic() + patience
        while (successes := self._number("SELECT count(*) FROM tasks_mailtask WHERE status = 2")) != mails:
            if time.monotonic() > deadline:
                raise NotMeasuredError(f"the sink accepted {mails} mails, the ledger says {successes:.0f}")
            time.sleep(0.1)

    def shares(self) -> list[int]:
        """How many tries each host made; a worker's name begins with its host's."""
        by_host = "SELECT count(*) FROM tasks_attempt GROUP BY split_part(worker, ':', 1)"
        with psycopg.connect(self.env["DATABASE_URL"]) as database:
            return [int(count) for (count,) in database.execute(by_host)]

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.env["DATABASE_URL"]) as database:
            database.execute(statement.encode())

    def _number(self, query: str) -> float:
        with psycopg.connect(self.env["DATABASE_URL"]) as database:
            row = database.execute(query.encode()).fetchone()
        return float(row[0]) if row and row[0] is not None else 0.0
