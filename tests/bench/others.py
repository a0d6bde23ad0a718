"""The peers: the same mails through what others use, on the same PostgreSQL and Redis, into the same sink."""

import os
import sys
from pathlib import Path

from tests.bench.ground import BODY, Figures, Ground
from tests.bench.process import NotMeasuredError, run, running
from tests.bench.sink import smtp_sink

PROJECT = Path(__file__).parent / "peers"
REQUIREMENTS = PROJECT / "requirements.txt"
VENV = Path(".local/bench-venv").absolute()
PYTHON = VENV / "bin" / "python"


def install() -> None:
    """The pinned peers, once; again when their list has changed."""
    installed = VENV / "requirements.txt"
    if installed.exists() and installed.read_text() == REQUIREMENTS.read_text():
        return
    try:
        run([sys.executable, "-m", "venv", "--clear", VENV])
        run([PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS])
    except NotMeasuredError as error:
        raise NotMeasuredError(f"not measured: the peers could not be installed ({error})") from error
    installed.write_text(REQUIREMENTS.read_text())


class Peer:
    """One way of sending. `command` has to start sending at once; it may stay or end when it is done."""

    def __init__(
        self,
        name: str,
        title: str,
        queue: str,
        mails: int,
        command: list[str],
        *,
        keep_connections: bool = False,
    ) -> None:
        self.name, self.title, self.queue, self.mails, self.command = name, title, queue, mails, command
        self.keep_connections = keep_connections

    def measure(self, ground: Ground) -> Figures:
        install()
        mails = ground.scaled(self.mails)
        with smtp_sink(ground.scratch) as sink:
            env = environment(ground, sink.port, keep_connections=self.keep_connections)
            run([PYTHON, "-m", "django", "migrate", "--run-syncdb", "-v0"], env=env, cwd=PROJECT)
            run([PYTHON, "fill.py", self.queue, str(mails)], env=env, cwd=PROJECT, given=BODY)
            ground.settle(env["BENCH_DATABASE_URL"])
            log = ground.scratch / f"{self.name}.log"
            with running(
                [VENV / "bin" / self.command[0], *self.command[1:]], log, env=env, cwd=PROJECT
            ) as sender:
                return {"mails/s": sink.watch(mails, sender).rate}


def environment(ground: Ground, smtp_port: int, *, keep_connections: bool) -> dict[str, str]:
    """Of the peers' project, with an empty database."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(PROJECT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "DJANGO_SETTINGS_MODULE": "settings",
        "BENCH_DATABASE_URL": ground.fresh_database("bench_peer"),
        "BENCH_REDIS_URL": ground.redis_database(1),
        "BENCH_SMTP_PORT": str(smtp_port),
        "BENCH_DB_REUSE": "1" if keep_connections else "0",
    }


_CELERY = ["celery", "-A", "plain.tasks", "worker", "--concurrency", "2", "--loglevel", "warning"]

PEERS = [
    Peer("celery", "a Celery task per mail, as most write it", "plain", 2_000, _CELERY),
    Peer(
        "celery-kept",
        "a Celery task per mail, connections kept",
        "plain",
        4_000,
        _CELERY,
        keep_connections=True,
    ),
    Peer("django-mailer", "django-mailer", "mailer", 4_000, ["python", "-m", "django", "send_mail"]),
    Peer(
        "post-office",
        "django-post-office, 2 x 5, batch 1,000",
        "post_office",
        20_000,
        ["python", "-m", "django", "send_queued_mail", "--processes", "2", "--log-level", "0"],
    ),
]
