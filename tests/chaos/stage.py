"""The whole service as processes that faults may hit: webs, workers, beats, upkeep, PostgreSQL and Redis.

Each worker stands for a machine of its own, with its own folder for its journal. Whatever dies is started again
after a moment, as an orchestrator would; what was stopped or held back on purpose is not.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import psutil
import psycopg
import redis
from cryptography.fernet import Fernet

from mailqueue.embedded.postgres import Postgres
from mailqueue.embedded.process import ROOT, Child, end, kill_group, spawn
from mailqueue.embedded.redis import Redis, free_port
from tests.chaos.proxy import Proxy
from tests.machine import celery_app, until

#: How long a process may hold its mail without a word, how soon failed mail is tried again, and when the sweep looks.
SETTINGS = {
    "DEBUG": "false",
    "SMTP_ALLOWED_NETWORKS": "127.0.0.0/8",
    "MAIL_LEASE_SECONDS": "10",
    "MAIL_RETRY_SCHEDULE": "1,2,4,8",
    "SWEEP_INTERVAL_SECONDS": "15",
    "SWEEP_AFTER_SECONDS": "15",
    "WORKER_CONNECTIONS": "100",
}
#: An orchestrator needs a moment (seconds).
REVIVED_AFTER = 0.3
#: What a worker that was told to go may take (seconds), as in docker-compose.yml; by its own deadlines 36 at worst.
GRACE = 45.0
#: The small disk: room for PostgreSQL and these runs (tmpfs's size).
DISK = "1g"
WEBS, WORKERS, BEATS = ("web1", "web2"), ("worker1", "worker2", "worker3"), ("beat1", "beat2")
UPKEEP = "upkeep1"


class Stage:
    """Starts with `with`. Faults are its methods; each is over when it returns."""

    def __init__(
        self,
        folder: Path,
        *,
        without: str = "",
        mortal: bool = False,
        has_redis: bool = True,
        redis_link: bool = False,
        small_disk: bool = False,
        older: str = "",
        **settings: str,
    ) -> None:
        """`without` takes out one of sabotage.GUARDS; `mortal` workers die at sabotage.POINTS; with `redis_link` its
        parts reach Redis through a proxy; with `small_disk` PostgreSQL has one that `full_disk` can fill; `older` is
        the migration of `tasks` that its database begins with, until `migrate`."""
        self.folder = folder
        self.points = folder / "points"
        self.points.mkdir()
        self._disk = folder / "disk"
        self._has_small_disk = small_disk
        self.postgres = Postgres((self._disk if small_disk else folder) / "postgres")
        if small_disk:
            self.postgres.settings = self.postgres.settings | {"max_wal_size": "128MB"}
        self.redis = Redis(folder / "redis", secrets.token_hex(16))
        self._has_redis = has_redis
        self._older = older
        self.redis_link = Proxy(self.redis.port)
        self._is_linked = redis_link
        self.ports = {name: free_port() for name in WEBS}
        self.secrets = {name: secrets.token_hex(32) for name in ("SECRET_KEY", "JWT_SIGNING_KEY")}
        self._sabotage = {"CHAOS_WITHOUT": without} if without else {}
        if mortal:
            self._sabotage["CHAOS_POINTS"] = str(self.points)
        self._settings = SETTINGS | settings
        self._machines = dict.fromkeys(WORKERS, 0)
        self._children: dict[str, Child] = {}
        self._held_back: set[str] = set()
        self._lock = threading.RLock()
        self._ended = threading.Event()
        #: How often PostgreSQL was started again.
        self.postgres_revived = 0

    # Its life ---------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        if self._has_small_disk:
            self._disk.mkdir()
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=755", "tmpfs", self._disk], check=True
            )
        self.postgres.start()
        url = urlsplit(self.redis.url)
        if self._has_redis:
            self.redis.start()
        if self._is_linked:
            self.redis_link.__enter__()
            url = url._replace(netloc=url.netloc.replace(str(self.redis.port), str(self.redis_link.port)))
        self._env = (
            {name: value for name, value in os.environ.items() if name not in ("PORT", "DATA_DIR")}
            | self._settings
            | self.secrets
            | {"CREDENTIAL_KEYS": Fernet.generate_key().decode()}
            | self._sabotage
            | {"DATABASE_URL": self.postgres.url, "REDIS_URL": url.geturl()}
        )
        if self._older:
            self.migrate("tasks", self._older)
            for app in ("accounts", "token_blacklist", "django_celery_beat", "django_celery_results"):
                self.migrate(app)
        else:
            self.migrate()
        # They start from a thread that lives as long as the stage, for they die with the thread that started them.
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._keeper.start()

    def migrate(self, *target: str) -> None:
        command = [sys.executable, "manage.py", "migrate", "--verbosity", "0", "--skip-checks", *target]
        subprocess.run(command, cwd=ROOT, env=self._env, check=True)

    def until_up(self) -> None:
        """Webs answer, though they are not ready before a migration, and workers take jobs."""
        for name in WEBS:
            until(lambda name=name: self.answers(name, "live" if self._older else "ready"), f"{name} is up")
        # A worker that finds no Redis takes no jobs, and drains the table in their place.
        greeting, names = ("ready.", (*WORKERS, UPKEEP)) if self._has_redis else ("broker_away", WORKERS)
        for name in names:
            until(lambda name=name: greeting in self.said(name), f"{name} is up")

    def __exit__(self, *_exc: object) -> None:
        self._ended.set()
        if hasattr(self, "_keeper"):
            self._keeper.join()
        with self._lock:
            for child in self._children.values():
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGCONT)
                end(child, signal.SIGTERM, 0.5)
        self.thaw_redis()
        self.redis.stop()
        if self.redis_link.port:
            self.redis_link.__exit__()
        self.postgres.stop()
        if self._has_small_disk:
            subprocess.run(["umount", self._disk], check=False)

    def _keep(self) -> None:
        died: dict[str, float] = {}
        while not self._ended.wait(0.05):
            with self._lock:
                for name in (*WEBS, *WORKERS, *BEATS, UPKEEP):
                    child = self._children.get(name)
                    if name in self._held_back or (child is not None and child.poll() is None):
                        continue
                    since = died.setdefault(name, time.monotonic())
                    if child is None or time.monotonic() > since + REVIVED_AFTER:
                        if child is not None:
                            kill_group(child)  # nothing of the dead one goes on
                        self._children[name] = self._spawn(name)
                        del died[name]
                if self.postgres.child is not None and self.postgres.child.poll() is not None:
                    self._revive_postgres()

    def _revive_postgres(self) -> None:
        if "postgres" not in self._held_back:
            self.postgres_revived += 1
            self.postgres.child = self.postgres.spawn(subprocess.DEVNULL)

    def _spawn(self, name: str) -> Child:
        command = {
            "web": lambda: self._web(name),
            "worker": lambda: self._celery("worker", "-Q", "drain", "--concurrency", "2", "-n", f"{name}@%h"),
            "upkeep": lambda: self._celery(
                "worker", "-Q", "upkeep", "--concurrency", "1", "-n", f"{name}@%h"
            ),
            "beat": lambda: self._celery("beat", "--pidfile="),
        }[name.rstrip("123")]()
        with self._log(name).open("ab") as log:
            return spawn(command, env=self._env | {"DATA_DIR": str(self.data_of(name))}, output=log)

    def _web(self, name: str) -> list[str]:
        target = (
            "tests.chaos.sabotage:application"
            if self._env.get("CHAOS_WITHOUT")
            else "config.rsgi:application"
        )
        return [
            sys.executable, "-m", "granian", "--interface", "rsgi", "--host", "127.0.0.1",
            "--port", str(self.ports[name]), "--workers", "1", "--no-ws", "--respawn-failed-workers",
            "--workers-kill-timeout", "10", target,
        ]  # fmt: skip

    def _celery(self, *arguments: str) -> list[str]:
        program = "tests.chaos.sabotage" if self._sabotage else "celery"
        quiet = (
            ("--without-gossip", "--without-mingle", "--loglevel", "INFO") if arguments[0] == "worker" else ()
        )
        return [sys.executable, "-m", program, "-q", "-A", "config", *arguments, *quiet]

    # Looking ----------------------------------------------------------------------------------------

    def data_of(self, name: str) -> Path:
        """Its DATA_DIR; a worker's is new when its machine was lost."""
        return self.folder / f"data-{name}-{self._machines.get(name, 0)}"

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def said(self, name: str) -> str:
        log = self._log(name)
        return log.read_text(errors="replace") if log.exists() else ""

    def url(self, web: str) -> str:
        return f"http://127.0.0.1:{self.ports[web]}"

    def pid(self, name: str) -> int:
        return self._children[name].pid

    def is_ready(self, web: str) -> bool:
        return self.answers(web, "ready")

    def answers(self, web: str, probe: str) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url(web)}/healthz/{probe}", timeout=3).status_code == 200
        return False

    def query(self, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """What the database says, once it answers."""
        deadline = time.monotonic() + 60
        while True:
            try:
                with psycopg.connect(self.postgres.url, autocommit=True) as connection:
                    return connection.execute(sql, parameters).fetchall()
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def drains(self) -> int:
        """How many messages for a drain the workers have taken, of their present lives."""
        with celery_app(self.redis.url) as app:
            stats = app.control.inspect(timeout=5).stats() or {}
        return sum(one["total"].get("mailqueue.drain", 0) for one in stats.values())

    def send(self, *jobs: str) -> None:
        """Publishes jobs as beat would."""
        with celery_app(self.redis.url) as app:
            for job in jobs:
                app.send_task(f"mailqueue.{job}", queue="drain" if job == "drain" else "upkeep")

    def busiest(self, port: int) -> str:
        """The worker with the most connections to this relay."""

        def connections(name: str) -> int:
            try:
                pool = psutil.Process(self._children[name].pid).children()
                return sum(
                    1
                    for one in pool
                    for link in one.net_connections()
                    if link.raddr and link.raddr.port == port
                )
            except psutil.Error:
                return 0

        return max(WORKERS, key=connections)

    # Faults: processes ------------------------------------------------------------------------------

    def kill(self, name: str) -> None:
        """All of it, as the kernel does when memory runs out."""
        with self._lock:
            kill_group(self._children[name])
            self._children[name].wait()

    def kill_one_process(self, name: str) -> None:
        """One of a worker's pool."""
        with suppress(psutil.Error, IndexError):
            secrets.choice(psutil.Process(self._children[name].pid).children()).kill()

    def lose_machine(self, name: str) -> None:
        """The worker and its journal; the next one is another machine."""
        with self._lock:
            gone = self.data_of(name)
            self._machines[name] += 1
            self.kill(name)
            shutil.rmtree(gone, ignore_errors=True)

    def freeze(self, name: str) -> None:
        os.killpg(self._children[name].pid, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._children[name].pid, signal.SIGCONT)

    def terminate(self, name: str) -> float:
        """Asks it to go; how long it took (seconds), and GRACE if it had to be killed."""
        began = time.monotonic()
        child = self._children[name]
        pool = psutil.Process(child.pid).children(recursive=True)
        with self.held_back(name):
            child.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                child.wait(GRACE)
            psutil.wait_procs(pool, timeout=max(0.0, began + GRACE - time.monotonic()))
            took = time.monotonic() - began
            kill_group(child)
        return min(took, GRACE)

    @contextmanager
    def held_back(self, *names: str) -> Iterator[None]:
        """Nobody starts them meanwhile."""
        self._held_back.update(names)
        try:
            yield
        finally:
            self._held_back.difference_update(names)

    # Faults: Redis ----------------------------------------------------------------------------------

    def empty_redis(self) -> None:
        with redis.Redis.from_url(self.redis.url, socket_timeout=5) as client:
            client.flushall()

    def kill_redis(self) -> None:
        self.redis.kill()

    def start_empty_redis(self) -> None:
        for path in self.redis.data.glob("appendonly*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.redis.start()

    def freeze_redis(self) -> None:
        assert self.redis.child is not None
        os.kill(self.redis.child.pid, signal.SIGSTOP)

    def thaw_redis(self) -> None:
        if self.redis.child is not None:
            with suppress(ProcessLookupError):
                os.kill(self.redis.child.pid, signal.SIGCONT)

    def limit_redis(self, size: str) -> None:
        """CONFIG SET maxmemory; 0 lifts the limit."""
        with redis.Redis.from_url(self.redis.url, socket_timeout=5) as client:
            client.config_set("maxmemory", size)

    def redis_keys(self) -> dict[str, bytes]:
        """All that is in it."""
        with redis.Redis.from_url(self.redis.url, socket_timeout=5) as client:
            return {
                key.decode(errors="replace"): client.dump(key) or b"" for key in client.scan_iter(count=1000)
            }

    # Faults: PostgreSQL -----------------------------------------------------------------------------

    def crash_postgres(self) -> None:
        """As `pg_ctl stop -m immediate`, and the next start recovers."""
        with self._lock, self.held_back("postgres"):
            assert self.postgres.child is not None
            self.postgres.child.send_signal(signal.SIGQUIT)
            self.postgres.child.wait(30)
        until(self.postgres.answers, "PostgreSQL answers again")

    def kill_backend(self) -> int:
        """One of its sessions with us; how many (0 or 1)."""
        killed = self.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'mailqueue'"
            " AND pid <> pg_backend_pid() AND backend_type = 'client backend' ORDER BY random() LIMIT 1"
        )
        return len(killed)

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """PostgreSQL's disk has not a block left."""
        ballast = self._disk / "ballast"
        with ballast.open("wb") as file:
            free = os.statvfs(self._disk)
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
        try:
            yield
        finally:
            ballast.unlink()
