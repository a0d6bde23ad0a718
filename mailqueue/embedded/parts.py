"""The programs of the stack besides PostgreSQL and Redis: how each is started, and how to tell it is up."""

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

#: A part that cannot be asked, and whose log level hides its greeting, counts as up after this (seconds).
SURELY_UP = 10.0


@dataclass(frozen=True)
class Part:
    """Up when `url` answers 200, else when `port` takes connections, else when it has said `greeting`."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    url: str = ""
    port: int = 0
    greeting: str = ""

    async def is_up(self, said: bool, age: float) -> bool:
        """`said`: the greeting was heard; `age`: seconds since it was started."""
        if self.url:
            return await _answers(self.url)
        if self.port:
            return await _listens(self.port)
        return said or age > SURELY_UP


def prepare(env: Mapping[str, str]) -> Part:
    """Migrations and the superuser; ends by itself."""
    return Part("prepare", (sys.executable, "manage.py", "prepare"), _with_debug(env, "false"))


def all_parts(env: Mapping[str, str], flower_login: str) -> list[Part]:
    python, port = sys.executable, env["PORT"]
    # Only the web: elsewhere Django would keep every query that it has made.
    quiet = _with_debug(env, "false")
    celery = (python, "-m", "celery", "--quiet", "-A", "config")
    # Nobody votes and nobody needs to hear of the others, so workers start a second sooner.
    worker = (
        *celery,
        "worker",
        "--loglevel",
        env.get("LOG_LEVEL", "INFO"),
        "--without-gossip",
        "--without-mingle",
    )
    return [
        Part(
            "web",
            (python, "-m", "granian", "--interface", "rsgi", "--host", "127.0.0.1", "--port", port,
             "--workers", "2", "--backlog", "4096", "--backpressure", "4096", "--respawn-failed-workers",
             "--workers-kill-timeout", "4", "--no-ws", "config.rsgi:application"),
            _with_debug(env, "true"),
            url=f"http://127.0.0.1:{port}/healthz/ready",
        ),
        Part(
            "worker",
            (*worker, "-Q", "drain", "--concurrency", env["WORKER_CONCURRENCY"], "-n", "drain@%h"),
            quiet,
            greeting="ready.",
        ),
        Part(
            "upkeep",
            (*worker, "-Q", "upkeep", "--concurrency", "1", "-n", "upkeep@%h"),
            quiet,
            greeting="ready.",
        ),
        # Not quiet: its banner, whatever the log level, is all it says.
        Part("beat", (python, "-m", "celery", "-A", "config", "beat", "--pidfile="), quiet, greeting="LocalTime ->"),
        Part(
            "flower",
            (*celery, "flower", "--address=127.0.0.1", f"--port={env['FLOWER_PORT']}"),
            quiet | {"FLOWER_BASIC_AUTH": env.get("FLOWER_BASIC_AUTH") or flower_login},
            port=int(env["FLOWER_PORT"]),
        ),
        Part(
            "sandbox",
            (python, "manage.py", "sandbox"),
            quiet,
            port=int(env["SANDBOX_SMTP_PORT"]),
        ),
    ]  # fmt: skip


#: Taken down in this order, each by so many seconds after the signal, so that nobody misses whom he needs.
#: Delivery gives what is in flight up to 20 s; all of it must be over in 30.
STOPPED_BY = (
    (("prepare", "web", "beat", "flower"), 5.0),
    (("worker", "upkeep"), 22.0),
    (("sandbox",), 24.0),
    (("redis",), 25.0),
    (("postgres",), 28.0),
)


def _with_debug(env: Mapping[str, str], debug: str) -> dict[str, str]:
    """What the user has set wins."""
    return dict(env) if "DEBUG" in env or "DEBUG_FILE" in env else {**env, "DEBUG": debug}


async def _answers(url: str) -> bool:
    async with httpx.AsyncClient(timeout=2) as client:
        try:
            return (await client.get(url)).status_code == 200
        except httpx.HTTPError:
            return False


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
