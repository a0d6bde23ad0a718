"""What the service costs besides time: memory of its processes, and commits."""

import time

import httpx
import psutil
import psycopg

from tests.bench import client
from tests.bench.ground import BODY, Figures, Ground, Row
from tests.bench.process import NotMeasuredError
from tests.bench.service import Service
from tests.bench.sink import smtp_sink

CONNECTIONS = 250
MEGABYTE = 1024 * 1024


def _descendants(word: str) -> list[psutil.Process]:
    """The processes that were started below the program of ours that has this word in its command."""
    mine = psutil.Process().children()
    return [child for one in mine if word in one.cmdline() for child in one.children(recursive=True)]


def _pss(process: psutil.Process) -> float:
    """MB that this process takes: its own pages, and its share of those it shares (proc(5), smaps_rollup)."""
    return float(process.memory_full_info().pss) / MEGABYTE


def _connections_to(port: int, process: psutil.Process) -> int:
    return sum(
        bool(one.raddr) and one.raddr.port == port and one.status == psutil.CONN_ESTABLISHED
        for one in process.net_connections("tcp")
    )


class WorkerMemory:
    """A prefork child that sends, the larger of two, while it holds 250 connections to a relay that takes 2 s
    for each mail. Celery's parent of the children, which sends nothing, is told beside it."""

    name = "memory-worker"
    title = "memory of a worker process, 250 connections open"
    owners = 100  # ten connections each are what an account may have by default
    mails = 10_000
    delay = 2

    def measure(self, ground: Ground) -> Figures:
        with smtp_sink(ground.scratch, "-w", str(self.delay)) as sink:
            service = Service.empty(ground)
            service.env["WORKER_CONNECTIONS"] = str(CONNECTIONS)
            service.plenty("due", self.mails, self.owners, sink.port, BODY)
            with service.worker():
                service.ring()
                return self._watch(sink.port)

    def _watch(self, port: int, patience: float = 60) -> Figures:
        """Looks until each child has had all its connections, and for some seconds more."""
        most: dict[int, tuple[int, float]] = {}
        deadline, full_until = time.monotonic() + patience, 0.0
        while time.monotonic() < min(deadline, full_until or deadline):
            time.sleep(0.5)
            for child in _descendants("drain"):
                if open_now := _connections_to(port, child):
                    had, took = most.get(child.pid, (0, 0.0))
                    most[child.pid] = max(had, open_now), max(took, _pss(child))
            if most and not full_until and all(had >= CONNECTIONS for had, _ in most.values()):
                full_until = time.monotonic() + 3 * self.delay
        if not full_until:
            opened = ", ".join(str(had) for had, _ in most.values()) or "no"
            raise NotMeasuredError(f"the worker processes opened {opened} connections")
        parent = next(one for one in psutil.Process().children() if "drain" in one.cmdline())
        return {"worker MB": max(took for _, took in most.values()), "its parent MB": _pss(parent)}


class WebMemory:
    """The largest of granian's processes that answer, after calls of every usual kind."""

    name = "memory-web"
    title = "memory of a web process"
    mails = 1_000

    def measure(self, ground: Ground) -> Figures:
        with smtp_sink(ground.scratch) as sink:
            service = Service.prepared(ground, sink.port)
            with service.whole() as port:
                token = client.log_in(port)
                client.enqueue_all(port, token, ground.scaled(self.mails), 4)
                with httpx.Client(headers={"Authorization": f"Bearer {token}"}) as reader:
                    for _ in range(20):
                        reader.get(f"http://127.0.0.1:{port}/api/v1/task/queue?limit=200").raise_for_status()
                return {"web MB": max(_pss(process) for process in _descendants("granian"))}


class Commits:
    """Transactions of the workers while they drain, as PostgreSQL counts them. Also those that only read, those
    of starting up and stopping, and Celery's results."""

    name = "commits"
    title = "commits for each mail, drain, 2 processes"
    mails = 20_000

    def measure(self, ground: Ground) -> Figures:
        mails = ground.scaled(self.mails)
        with smtp_sink(ground.scratch) as sink:
            service = Service.prepared(ground, sink.port, waiting=mails)
            before = _transactions(ground)
            with service.worker():
                service.ring()
                sink.watch(mails)
            counted = _transactions(ground) - before
            service.expect_successes(mails)
        return {"commits a mail": counted / mails, "commits": float(counted)}


def _transactions(ground: Ground, patience: float = 30) -> int:
    """So far, in the database of ours. A connection hands in its counts after seconds, or when it ends: so this
    waits until none is left, and is itself in another database, so that asking does not count."""
    deadline = time.monotonic() + patience
    with psycopg.connect(ground.database_url, autocommit=True) as server:
        while server.execute("SELECT 1 FROM pg_stat_activity WHERE datname = 'bench_ours'").fetchone():
            if time.monotonic() > deadline:
                raise NotMeasuredError("somebody stayed connected, so the database's counts are not all in")
            time.sleep(0.1)
        row = server.execute(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'bench_ours'"
        ).fetchone()
    return int(row[0]) if row else 0


COST: list[Row] = [WorkerMemory(), WebMemory(), Commits()]
