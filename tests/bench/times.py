"""What has its time: mail that is scheduled, and mail that a limit holds back."""

import time
from datetime import UTC, datetime, timedelta

from tests.bench import client
from tests.bench.ground import BODY, Figures, Ground, Row
from tests.bench.pace import percentile, wait_for
from tests.bench.process import NotMeasuredError
from tests.bench.service import Service
from tests.bench.sink import smtp_sink
from tests.bench.stamps import stamping_sink


class Limited:
    """An account's limit of 5 a second: the bucket holds 5, so the last of 100 mails may go after 19 seconds."""

    name = "limited"
    title = "this service, 100 mails at 5 a second"
    mails = 100
    a_second = 5

    def measure(self, ground: Ground) -> Figures:
        mails = ground.scaled(self.mails)
        shortest = (mails - self.a_second) / self.a_second
        with smtp_sink(ground.scratch) as sink:
            service = Service.prepared(ground, sink.port, mails, {"per_second": self.a_second})
            with service.whole():
                window = sink.watch(mails)
                service.expect_successes(mails)
            if sink.count() != mails:
                raise NotMeasuredError(f"the sink accepted {sink.count()} mails, but there were only {mails}")
            seconds = window.last_at - service.first_claim()
        if seconds < shortest:
            raise NotMeasuredError(f"{mails} mails went out in {seconds:.1f} s: the limit was not kept")
        return {"s": seconds, "s too long": seconds - shortest}


class Scheduled:
    """Mails for moments spread over ten seconds; how late the final dot comes. Too early is no figure at all."""

    name = "scheduled"
    title = "this service, scheduled mail"
    mails = 200
    #: Seconds until the first of them: time enough to hand over the last.
    ahead = 10.0

    def measure(self, ground: Ground) -> Figures:
        mails = ground.scaled(self.mails)
        with stamping_sink() as sink:
            service = Service.prepared(ground, sink.port)
            with service.whole() as port:
                due = self._hand_over(client.Client(port, client.log_in(port)), mails)
                accepted = wait_for(lambda: sink.accepted, due, patience=3 * self.ahead)
                service.expect_successes(mails)
        late = [accepted[recipient] - at for recipient, at in due.items()]
        if min(late) < 0:
            raise NotMeasuredError(f"a mail came {-min(late):.3f} s before its time")
        return {"p50 s": percentile(late, 0.5), "p99 s": percentile(late, 0.99), "worst s": max(late)}

    def _hand_over(self, enqueuer: client.Client, mails: int) -> dict[str, float]:
        """When each mail is due, in time.monotonic(), by its recipient."""
        start, monotonic = datetime.now(UTC), time.monotonic()
        due: dict[str, float] = {}
        for number in range(mails):
            wait = self.ahead * (1 + number / mails)
            recipient = f"later{number}@example.com"
            mail = {"recipient_email": recipient, "subject": "Benchmark mail", "body": BODY}
            at = {"scheduled_at": (start + timedelta(seconds=wait)).isoformat()}
            enqueuer.post("/api/v1/task/enqueue", mail | at, 202)
            due[recipient] = monotonic + wait
        if time.monotonic() > monotonic + self.ahead:
            raise NotMeasuredError("handing the mails over took longer than the first of them had to wait")
        return due


TIMES: list[Row] = [Limited(), Scheduled()]
