"""What all rows stand on: one PostgreSQL, one Redis, a scratch folder, and how large to measure."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

import psycopg
import redis

from mailqueue.embedded.services import services
from tests.bench.process import NotMeasuredError

#: What one round of a row found, by unit: {"mails/s": 9120.4}.
Figures = dict[str, float]

#: With the headers of a mail around it about 1 KB, as smtp-source -l 1024 sends.
BODY = "\r\n".join(["The quick brown fox jumps over the lazy dog and runs away again."] * 11) + "\r\n"


@dataclass
class Ground:
    database_url: str
    redis_url: str
    scale: float
    scratch: Path

    def scaled(self, mails: int) -> int:
        return max(50, round(mails * self.scale))

    def fresh_database(self, name: str) -> str:
        """The URL of an empty database of that name on the server."""
        with psycopg.connect(self.database_url, autocommit=True) as server:
            server.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())
            server.execute(f'CREATE DATABASE "{name}"'.encode())
        return urlunsplit(urlsplit(self.database_url)._replace(path=f"/{name}"))

    def redis_database(self, number: int) -> str:
        """The URL of one of the server's numbered databases, emptied."""
        url = urlunsplit(urlsplit(self.redis_url)._replace(path=f"/{number}"))
        with redis.Redis.from_url(url) as client:
            client.flushdb()
        return url

    def settle(self, database_url: str) -> None:
        """Does now what PostgreSQL would otherwise do in the middle of a measurement."""
        with psycopg.connect(database_url, autocommit=True) as server:
            server.execute("VACUUM ANALYZE")
            server.execute("CHECKPOINT")

    def versions(self) -> dict[str, str]:
        with psycopg.connect(self.database_url) as server, redis.Redis.from_url(self.redis_url) as client:
            shown = {
                name: str(server.execute(f"SHOW {name}".encode()).fetchone()[0])  # type: ignore[index]
                for name in ("server_version", "fsync", "synchronous_commit", "full_page_writes")
            }
            shown["redis_version"] = str(client.info("server")["redis_version"])
        return shown


class Row(Protocol):
    """One line of the table. `measure` is called once a round; it cleans up after itself."""

    name: str
    title: str

    def measure(self, ground: Ground) -> Figures: ...


@contextmanager
def grounded(scale: float) -> Iterator[Ground]:
    """Servers that fsync, on the project's own disk; or those that DATABASE_URL and REDIS_URL name."""
    local = Path(".local").absolute()
    local.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix="bench-", dir=local) as folder:
        scratch = Path(folder)
        scratch.chmod(0o711)
        with services(data=scratch / "servers") as env:
            ground = Ground(env["DATABASE_URL"], env["REDIS_URL"], scale, scratch)
            _refuse_unsafe_settings(ground)
            yield ground


def _refuse_unsafe_settings(ground: Ground) -> None:
    """Figures without durable commits would be figures of another product."""
    shown = ground.versions()
    for name in ("fsync", "synchronous_commit", "full_page_writes"):
        if shown[name] != "on":
            raise NotMeasuredError(
                f"PostgreSQL runs with {name}={shown[name]}; nobody would keep mail in it so"
            )
