"""Whom a crowd holds up: codes behind much bulk mail, and others while one owner's relay hangs."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench import client
from tests.bench.ground import Figures, Ground, Row
from tests.bench.pace import percentile, pile_up, send_in_step, wait_for
from tests.bench.process import NotMeasuredError
from tests.bench.service import Service
from tests.bench.slow_sink import WATCHED, slow_sink
from tests.bench.stamps import Stamps, stamping_sink

#: A p95 of fewer says nothing.
FEWEST = 20


class CodesBehindBulk:
    """A login code behind the bulk mail of the very same owner, who has 10 connections of each process."""

    bulk = 100_000
    otps = 200

    def __init__(self, name: str, title: str, milliseconds: int) -> None:
        self.name, self.title, self.milliseconds = name, title, milliseconds

    def measure(self, ground: Ground) -> Figures:
        bulk = max(ground.scaled(self.bulk), 10_000)  # fewer would be gone before the codes are sent
        with slow_sink(ground.scratch, self.milliseconds) as sink:
            service = Service.prepared(ground, sink.port)
            with service.whole() as port:
                enqueuer = client.Client(port, client.log_in(port))
                pile_up(service, (client.EMAIL, bulk, "bulk", 0, {}))
                ground.settle(service.env["DATABASE_URL"])
                sink.watch(1)
                codes = [(f"{WATCHED}{n}@example.com", "otp") for n in range(self.otps)]
                began = send_in_step(enqueuer, codes, lambda: sink.count() >= bulk)
                accepted = wait_for(sink.accepted_at, began, patience=60)
            service.expect_successes(sink.count())
        if len(began) < FEWEST:
            raise NotMeasuredError(f"the backlog was gone after {len(began)} codes")
        took = [(accepted[recipient] - at) * 1000 for recipient, at in began.items()]
        return {"p50 ms": percentile(took, 0.5), "p95 ms": percentile(took, 0.95), "codes": len(took)}


class HangingRelay:
    """Takes connections (the kernel does) and never says a word."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._held: list[socket.socket] = []

    def held(self) -> int:
        """How many connections callers keep open."""
        while True:
            try:
                caller, _ = self._listener.accept()
            except BlockingIOError:
                break
            caller.setblocking(False)
            self._held.append(caller)
        self._held = [caller for caller in self._held if _is_open(caller)]
        return len(self._held)

    def close(self) -> None:
        for one in [*self._held, self._listener]:
            one.close()


def _is_open(caller: socket.socket) -> bool:
    try:
        return bool(caller.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False


@contextmanager
def _hanging_relay() -> Iterator[HangingRelay]:
    relay = HangingRelay()
    try:
        yield relay
    finally:
        relay.close()


class Neighbour:
    """Another owner's mails and codes, before and while one with much bulk mail has a relay that hangs."""

    name = "neighbour"
    title = "this service, 200,000 bulk mails of another owner hang"
    bulk = 200_000
    calls = 200
    #: Both processes should be stuck by then (seconds); after 30 they give the relay up.
    patience = 12

    def measure(self, ground: Ground) -> Figures:
        calls = ground.scaled(self.calls)
        with stamping_sink() as sink, _hanging_relay() as relay:
            service = Service.prepared(ground, sink.port)
            with service.whole() as port:
                enqueuer = client.Client(port, client.log_in(port))
                before = self._latencies(enqueuer, sink, "before", calls)
                pile_up(service, ("noisy@example.com", ground.scaled(self.bulk), "bulk", relay.port, {}))
                ground.settle(service.env["DATABASE_URL"])
                held = self._wait_until_stuck(relay)
                after = self._latencies(enqueuer, sink, "after", calls)
                if relay.held() != held:
                    raise NotMeasuredError(f"of {held} connections that hung {relay.held()} were left")
                service.expect_successes(2 * calls)
                relay.close()
        figures = {"connections": float(held)}
        for lane in ("default", "otp"):
            unloaded, loaded = (percentile(took[lane], 0.95) for took in (before, after))
            figures |= {
                f"{lane} p95 ms unloaded": unloaded,
                f"{lane} p95 ms": loaded,
                f"{lane} x unloaded": loaded / unloaded,
            }
        return figures

    def _latencies(
        self, enqueuer: client.Client, sink: Stamps, name: str, calls: int
    ) -> dict[str, list[float]]:
        """Milliseconds from the call to the dot, in turns a mail of the default lane and a code."""
        recipients = [(f"{name}{n}@example.com", ("default", "otp")[n % 2]) for n in range(calls)]
        began = send_in_step(enqueuer, recipients)
        accepted = wait_for(lambda: sink.accepted, began, patience=30)
        took: dict[str, list[float]] = {"default": [], "otp": []}
        for recipient, lane in recipients:
            took[lane].append((accepted[recipient] - began[recipient]) * 1000)
        return took

    def _wait_until_stuck(self, relay: HangingRelay) -> int:
        wanted, deadline = 20, time.monotonic() + self.patience
        while (held := relay.held()) < wanted and time.monotonic() < deadline:
            time.sleep(0.05)
        if not held:
            raise NotMeasuredError("nobody called the relay that hangs")
        return held


CROWD: list[Row] = [
    CodesBehindBulk("otp-bulk", "this service, codes behind 100,000 bulk mails", 0),
    CodesBehindBulk("otp-bulk-slow", "this service, the same, relay of 100 ms", 100),
    Neighbour(),
]
