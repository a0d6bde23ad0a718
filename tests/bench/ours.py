"""Our own rows: the real worker, web server and beat, into the same sink."""

import statistics
import time

from tests.bench import client
from tests.bench.ground import Figures, Ground
from tests.bench.process import NotMeasuredError
from tests.bench.service import Service
from tests.bench.sink import Sink, smtp_sink
from tests.bench.stamps import Stamps, stamping_sink


def _refuse_duplicates(sink: Sink, mails: int) -> None:
    if sink.count() != mails:
        raise NotMeasuredError(f"the sink accepted {sink.count()} mails, but there were only {mails}")


class Drain:
    """Mails that wait in the ledger, moved by `celery worker -Q drain --concurrency 2`."""

    name = "ours"
    title = "this service, drain, 2 processes"
    mails = 40_000

    def measure(self, ground: Ground) -> Figures:
        mails = ground.scaled(self.mails)
        with smtp_sink(ground.scratch) as sink:
            service = Service.prepared(ground, sink.port, waiting=mails)
            with service.worker():
                service.ring()
                window = sink.watch(mails)
                service.expect_successes(mails)
            _refuse_duplicates(sink, mails)
            return {"mails/s": mails / (window.last_at - service.first_claim())}


class EndToEnd:
    """Mails handed over one by one by HTTP while the worker sends them."""

    name = "ours-http"
    title = "this service, POST /enqueue one by one"
    mails = 5_000
    connections = 8

    def measure(self, ground: Ground) -> Figures:
        mails = ground.scaled(self.mails)
        with smtp_sink(ground.scratch) as sink:
            service = Service.prepared(ground, sink.port)
            with service.whole() as port:
                token = client.log_in(port)
                seconds = client.enqueue_all(port, token, mails, self.connections)
                window = sink.watch(mails)
                service.expect_successes(mails)
            _refuse_duplicates(sink, mails)
            began = service.first_claim()
        return {"enqueued/s": mails / seconds, "mails/s": mails / (window.last_at - began)}


class Latency:
    """From the first byte of the HTTP call to the final dot at the sink, 20 mails a second."""

    name = "latency"
    title = "this service, at 20 mails/s"
    a_second = 20
    mails = 300
    warm_up = 20

    def measure(self, ground: Ground) -> Figures:
        mails = ground.scaled(self.mails)
        with stamping_sink() as sink:
            service = Service.prepared(ground, sink.port)
            with service.whole() as port:
                calls = self._send_in_step(client.Client(port, client.log_in(port)), mails + self.warm_up)
                took = sorted(self._milliseconds(sink, calls))
        return {
            "p50 ms": statistics.median(took),
            "p95 ms": took[int(len(took) * 0.95)],
            "worst ms": took[-1],
            "the 202 p50 ms": statistics.median((done - began) * 1000 for began, done in calls.values()),
        }

    def _send_in_step(self, enqueuer: client.Client, mails: int) -> dict[str, tuple[float, float]]:
        """When each call began and when its answer was read, by recipient."""
        calls: dict[str, tuple[float, float]] = {}
        start = time.monotonic()
        for number in range(mails):
            time.sleep(max(0.0, start + number / self.a_second - time.monotonic()))
            began = time.monotonic()
            recipient = enqueuer.enqueue(number)
            calls[recipient] = (began, time.monotonic())
        return calls

    def _milliseconds(self, sink: Stamps, calls: dict[str, tuple[float, float]]) -> list[float]:
        deadline = time.monotonic() + 30
        while len(sink.accepted) < len(calls):
            if time.monotonic() > deadline:
                raise NotMeasuredError(f"only {len(sink.accepted)} of {len(calls)} mails came")
            time.sleep(0.1)
        measured = list(calls.items())[self.warm_up :]
        return [(sink.accepted[recipient] - began) * 1000 for recipient, (began, _) in measured]


OURS = [Drain(), EndToEnd(), Latency()]
