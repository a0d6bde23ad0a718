"""Relays that are hard on a sender: those that take one mail a connection, and those that are far away."""

from tests.bench.ground import Figures, Ground, Row
from tests.bench.pace import pile_up
from tests.bench.process import NotMeasuredError
from tests.bench.service import Service
from tests.bench.sink import smtp_sink
from tests.bench.slow_sink import slow_sink


class ConnectionPerMail:
    """The row `ours` with WORKER_MAILS_PER_CONNECTION=1, against smtp-source that connects for each mail."""

    name = "ours-connect"
    title = "this service, a connection per mail"
    mails = 10_000

    def measure(self, ground: Ground) -> Figures:
        mails = ground.scaled(self.mails)
        with smtp_sink(ground.scratch) as sink:
            service = Service.prepared(ground, sink.port, waiting=mails)
            service.env["WORKER_MAILS_PER_CONNECTION"] = "1"
            with service.worker():
                service.ring()
                window = sink.watch(mails)
                service.expect_successes(mails)
            if sink.count() != mails or sink.sessions() < mails:
                raise NotMeasuredError(f"{sink.count()} of {mails} mails came, in {sink.sessions()} sessions")
            return {"mails/s": mails / (window.last_at - service.first_claim())}


class SlowRelay:
    """Every packet is answered so much later. With pipelining a mail takes two answers: to its envelope, to its dot.

    25 owners, each with the 10 connections of a new account, fill the 250 of each worker process: as many as a
    user has who leaves WORKER_CONNECTIONS alone. The figure is what of the possible is reached; possible is what
    the connections that were really open, at most, could have carried without a pause. Timed
    is the way to four fifths of the mails, for the last owner's last mails cannot fill all connections.
    """

    owners = 25

    def __init__(self, milliseconds: int, mails: int) -> None:
        self.name = f"slow-{milliseconds}"
        self.title = f"this service, a relay that takes {milliseconds} ms a reply"
        self.milliseconds, self.mails = milliseconds, mails

    def measure(self, ground: Ground) -> Figures:
        each = ground.scaled(self.mails) // self.owners
        mails = each * self.owners
        with slow_sink(ground.scratch, self.milliseconds) as sink:
            service = Service.prepared(ground, sink.port)
            pile_up(
                service,
                *((f"sender{n}@example.com", each, "bulk", sink.port, {}) for n in range(self.owners)),
            )
            ground.settle(service.env["DATABASE_URL"])
            with service.worker():
                service.ring()
                window = sink.watch(mails * 4 // 5)
                sink.watch(mails)
                service.expect_successes(mails)
            rate = window.last_count / (window.last_at - service.first_claim())
            connections = sink.most_open()
        possible = connections / (2 * self.milliseconds / 1000)
        return {"mails/s": rate, "connections": connections, "of the possible": rate / possible}


SLOW: list[Row] = [ConnectionPerMail(), SlowRelay(20, 50_000), SlowRelay(100, 25_000)]
