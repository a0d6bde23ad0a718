"""100,000 subscribers due in the same second: how fast their mails are made, and whom that delays.

`python -m tests.bench.subscribers COUNT` subscribes so many to the user of tests/bench/fill.py, for a time to come.
"""

import sys
import time

from tests.bench import client
from tests.bench.ground import Figures, Ground
from tests.bench.pace import A_SECOND, percentile, wait_for
from tests.bench.process import NotMeasuredError
from tests.bench.service import Service
from tests.bench.slow_sink import WATCHED, slow_sink

#: A p95 of fewer says nothing.
FEWEST = 20
_LEFT = "SELECT count(*) FROM subscriptions_subscription WHERE next_at <= now()"


class SubscribersAtOnce:
    """One-time passwords of the very same owner, before and while the subscriptions' mails are made and sent."""

    name = "subscribers"
    title = "this service, 100,000 subscribers due at once"
    subscribers = 100_000
    #: Codes before it begins.
    before = 100

    def measure(self, ground: Ground) -> Figures:
        subscribers = max(ground.scaled(self.subscribers), 5_000)
        with slow_sink(ground.scratch, 0) as sink:
            service = Service.prepared(ground, sink.port)
            service.python("-m", "tests.bench.subscribers", str(subscribers))
            ground.settle(service.env["DATABASE_URL"])
            with service.whole() as port:
                codes = _Codes(client.Client(port, client.log_in(port)))
                codes.send(self.before)
                service.execute("UPDATE subscriptions_subscription SET next_at = date_trunc('second', now())")
                began = time.monotonic()
                codes.name, entered, sent = "meanwhile", 0.0, False
                while not sent:
                    codes.send(A_SECOND)
                    if not entered and not service._number(_LEFT):
                        entered = time.monotonic() - began
                    sent = sink.count() >= subscribers + len(codes.began)
                took = time.monotonic() - began
                accepted = wait_for(sink.accepted_at, codes.began, patience=60)
            service.expect_successes(sink.count())
        figures = {"s to enter": entered, "s to send": took}
        for name in ("before", "meanwhile"):
            waits = [(accepted[to] - at) * 1000 for to, at in codes.began.items() if f"-{name}-" in to]
            if len(waits) < FEWEST:
                raise NotMeasuredError(f"all was over after {len(waits)} codes")
            figures |= {
                f"{name} {unit} ms": percentile(waits, p) for unit, p in (("p50", 0.5), ("p95", 0.95))
            }
        return figures


class _Codes:
    """One-time passwords at an even pace, each to somebody else."""

    def __init__(self, caller: client.Client) -> None:
        self._caller = caller
        self.name = "before"
        #: By recipient, in time.monotonic().
        self.began: dict[str, float] = {}

    def send(self, count: int) -> None:
        start = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, start + number / A_SECOND - time.monotonic()))
            recipient = f"{WATCHED}-{self.name}-{len(self.began)}@example.com"
            self.began[recipient] = time.monotonic()
            asked = {"type": "generateOtp", "payload": {"userId": recipient}}
            self._caller.post("/api/v1/task/", asked, 202)
        time.sleep(max(0.0, start + count / A_SECOND - time.monotonic()))


def subscribe(count: int) -> None:
    import django

    django.setup()
    from accounts.models import User
    from mailqueue.subscriptions import contents, deeds
    from mailqueue.subscriptions.models import Subscription
    from tests.bench.ground import BODY

    owner = User.objects.get(email=client.EMAIL)
    contents.make(owner, "news", "What is new", BODY)
    one, _ = deeds.subscribe(owner, "someone0@example.com", "news", line="@monthly")
    Subscription.objects.bulk_create(
        Subscription(
            owner=owner,
            recipient=f"someone{number}@example.com",
            content_type="news",
            line="@monthly",
            next_at=one.next_at,
        )
        for number in range(1, count)
    )


if __name__ == "__main__":
    subscribe(int(sys.argv[1]))
