"""Mails handed over at an even pace, and how long each took."""

import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.bench.client import Client
from tests.bench.ground import BODY
from tests.bench.process import NotMeasuredError
from tests.bench.service import Service

#: As in the row `latency`.
A_SECOND = 20


def pile_up(service: Service, *backlogs: tuple[Any, ...]) -> None:
    """See tests/bench/backlog.py."""
    service.python("-m", "tests.bench.backlog", json.dumps(backlogs), given=BODY)


def send_in_step(
    enqueuer: Client, recipients: Sequence[tuple[str, str]], enough: Callable[[], bool] = lambda: False
) -> dict[str, float]:
    """A mail to each (recipient, lane), so many a second; when each call began, in time.monotonic()."""
    began: dict[str, float] = {}
    start = time.monotonic()
    for number, (recipient, lane) in enumerate(recipients):
        time.sleep(max(0.0, start + number / A_SECOND - time.monotonic()))
        if enough():
            break
        began[recipient] = time.monotonic()
        mail = {"recipient_email": recipient, "subject": "Benchmark mail", "body": BODY, "lane": lane}
        enqueuer.post("/api/v1/task/enqueue", mail, 202)
    return began


def wait_for(
    accepted: Callable[[], dict[str, float]], began: dict[str, float], patience: float
) -> dict[str, float]:
    """When each of these mails was accepted; NotMeasuredError if one is not."""
    deadline = time.monotonic() + patience
    while missing := began.keys() - (found := dict(accepted())).keys():
        if time.monotonic() > deadline:
            raise NotMeasuredError(f"{len(missing)} of {len(began)} mails did not come in {patience:.0f} s")
        time.sleep(0.1)
    return found


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[math.ceil(len(values) * share) - 1]
