"""Mails handed over a thousand at a time, beside what PostgreSQL takes of plain rows."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg

from tests.bench import client
from tests.bench.ground import BODY, Figures, Ground, Row
from tests.bench.process import NotMeasuredError
from tests.bench.service import Service
from tests.bench.sink import smtp_sink

A_BATCH = 1_000
CONNECTIONS = 4


def _seconds(connect: Callable[[], Any], work: Callable[[Any, int], None], times: int) -> float:
    """How long so many pieces of work take over CONNECTIONS connections at once."""
    numbers = iter(range(times))  # shared: whoever is free takes the next one

    def take(connection: Any, mine: Iterator[int]) -> None:
        for number in mine:
            work(connection, number)

    connections = [connect() for _ in range(CONNECTIONS)]
    began = time.perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for done in [pool.submit(take, connection, numbers) for connection in connections]:
            done.result()
    return time.perf_counter() - began


class Insert:
    """Rows with a mail's text and one index, 100 a statement and commit, as many programs write their outbox."""

    name = "limit-insert"
    title = f"INSERT of 100 rows a statement, {CONNECTIONS} connections"
    rows = 100_000

    def measure(self, ground: Ground) -> Figures:
        statements = max(10, ground.scaled(self.rows) // 100)
        url = ground.fresh_database("bench_insert")
        with psycopg.connect(url, autocommit=True) as database:
            database.execute(
                "CREATE TABLE mail (id bigserial PRIMARY KEY, owner bigint, recipient text, body text)"
            )
            database.execute("CREATE INDEX ON mail (owner, id)")
        insert = "INSERT INTO mail (owner, recipient, body) VALUES " + ", ".join(["(%s, %s, %s)"] * 100)
        values = [value for n in range(100) for value in (n % 7, f"someone{n}@example.com", BODY)]
        seconds = _seconds(
            lambda: psycopg.connect(url, autocommit=True),
            lambda database, _: database.execute(insert, values, prepare=True),
            statements,
        )
        return {"messages/s": statements * 100 / seconds}


def _hand_over(port: int, batches: int) -> float:
    """Seconds that it takes until every batch is answered with its 207."""
    token = client.log_in(port)
    bodies = [json.dumps({"messages": [_mail(batch, n) for n in range(A_BATCH)]}) for batch in range(batches)]

    def post(caller: client.Client, number: int) -> None:
        caller.connection.request(
            "POST", "/api/v1/task/enqueue/batch", bodies[number].encode(), caller.headers
        )
        response = caller.connection.getresponse()
        said = response.read()
        if response.status != 207 or said.count(b'"task_id"') != A_BATCH:
            raise NotMeasuredError(f"a batch was answered {response.status}: {said[:150]!r}")

    return _seconds(lambda: client.Client(port, token), post, batches)


def _mail(batch: int, number: int) -> dict[str, str]:
    name = f"someone{batch * A_BATCH + number}"
    return {"recipient_email": f"{name}@example.com", "subject": "Benchmark mail", "body": BODY}


class Batches:
    """What the web processes take, while no worker runs."""

    name = "batches"
    title = f"this service, POST /enqueue/batch of {A_BATCH:,}"
    mails = 100_000

    def measure(self, ground: Ground) -> Figures:
        batches = max(8, ground.scaled(self.mails) // A_BATCH)
        with smtp_sink(ground.scratch) as sink:
            service = Service.prepared(ground, sink.port)
            with service.web() as port:
                _hand_over(port, CONNECTIONS)  # each process has met its first
                seconds = _hand_over(port, batches)
        return {"messages/s": batches * A_BATCH / seconds}


class BatchesDelivered:
    """The same with everything running, until the last of them is at the sink and in the ledger."""

    name = "batches-delivered"
    title = "the same, until all are accepted by the relay"
    mails = 100_000

    def measure(self, ground: Ground) -> Figures:
        batches = max(8, ground.scaled(self.mails) // A_BATCH)
        mails = batches * A_BATCH
        with smtp_sink(ground.scratch) as sink:
            service = Service.prepared(ground, sink.port)
            with service.whole() as port:
                seconds = _hand_over(port, batches)
                window = sink.watch(mails)
                service.expect_successes(mails)
            if sink.count() != mails:
                raise NotMeasuredError(f"the sink accepted {sink.count()} mails, but there were only {mails}")
            took = window.last_at - service.first_claim()
        return {"messages/s": mails / seconds, "mails/s": mails / took, "s": took}


BATCHES: list[Row] = [Insert(), Batches(), BatchesDelivered()]
