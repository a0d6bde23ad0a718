"""The system in numbers: for Prometheus, for people, and for programs that ask in a word. From what is kept count of
(tasks/counters.py), so that every process answers the same, and goes on where another was killed."""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import accumulate
from typing import Any

from django.db import transaction
from django.utils import timezone
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from mailqueue.workers import Worker
from tasks import counters, ledger
from tasks.counters import Figures, Histogram, percentile
from tasks.states import WAITING, Outcome, Phase, Status

#: What latencies and curves are told of.
AN_HOUR, A_MINUTE = timedelta(hours=1), timedelta(minutes=1)


class Ledger(Collector):
    """What the ledger and the workers are like when Prometheus asks."""

    def describe(self) -> Iterable[Metric]:
        """Nothing: else the library would ask the database for the names, when it is told of us."""
        return []

    def collect(self) -> Iterator[Metric]:
        with transaction.atomic():
            figures, (due, age) = counters.figures(), ledger.due()
            workers = Worker.objects.delivering().alive().count()
        yield from _states(figures)
        yield GaugeMetricFamily(
            "mailqueue_due",
            "Mails that a worker could take now; those of paused or limited accounts are not among them.",
            value=_due(figures, due),
        )
        yield GaugeMetricFamily(
            "mailqueue_oldest_due_age_seconds",
            "How long the first of them has been due; 0 without any.",
            value=age,
        )
        yield from _deliveries(figures)
        for name, what in _COUNTERS.items():
            yield CounterMetricFamily(f"mailqueue_{name}", what, value=figures[name])
        yield GaugeMetricFamily(
            "mailqueue_workers", "Processes that deliver and were heard of in the last 30 s.", value=workers
        )


_COUNTERS = {
    "rescued": "Mails taken back from workers that died.",
    "swept": "Mails that the sweep found due and untouched; a bell was lost.",
    "uncertain": "Attempts of which nobody knows whether the relay took the mail.",
    "late_results": "Results that came when the mail was no longer the worker's.",
    "doorbell_failures": "Bells that could not be rung, for Redis did not answer.",
}


def _states(figures: Figures) -> Iterator[Metric]:
    tasks = GaugeMetricFamily("mailqueue_tasks", "Mails in each state.", labels=["status"])
    for status in Status:
        tasks.add_metric([status.label], figures.in_state(status))
    yield tasks


def _deliveries(figures: Figures) -> Iterator[Metric]:
    deliveries = CounterMetricFamily(
        "mailqueue_deliveries", "Attempts, by how they ended.", labels=["outcome"]
    )
    for outcome in Outcome:
        deliveries.add_metric([outcome.label], figures.attempts(outcome))
    yield deliveries
    taken = HistogramMetricFamily(
        "mailqueue_delivery_seconds",
        "From the enqueue, or the time that a mail was scheduled for, until the relay accepted it.",
    )
    histogram = figures.delivery()
    taken.add_metric([], _buckets(counters.DELIVERY, histogram), sum_value=histogram.seconds)
    yield taken
    smtp = HistogramMetricFamily(
        "mailqueue_smtp_seconds",
        "What attempts took, by the phase of SMTP in which they ended.",
        labels=["phase"],
    )
    for phase in Phase:
        histogram = figures.smtp(phase)
        smtp.add_metric([phase.label], _buckets(counters.SMTP, histogram), sum_value=histogram.seconds)
    yield smtp


def _buckets(bounds: Iterable[float], histogram: Histogram) -> list[tuple[str, float]]:
    """As Prometheus has them: each bound with all that is within it."""
    names = [*(f"{bound:g}" for bound in bounds), "+Inf"]
    return list(zip(names, accumulate(histogram.counts), strict=True))


def _due(figures: Figures, counted: int) -> int:
    """Counted as far as that is quick; when there are more, the kept number of what is queued."""
    return counted if counted < ledger.MOST_DUE else max(counted, figures.in_state(Status.QUEUED))


# For people and programs ------------------------------------------------------------------------------


def stats() -> dict[str, Any]:
    """The whole system's; see docs/metrics.md."""
    with transaction.atomic():
        figures, (due, age) = counters.figures(), ledger.due()
        last_hour = counters.minutes(AN_HOUR)
        workers, last_tick = Worker.objects.delivering().alive().count(), Worker.objects.last_tick()
    states = {status.label: figures.in_state(status) for status in Status}
    latency = _together(list(last_hour.values()))
    return {
        "pending": sum(figures.in_state(status) for status in WAITING),
        "processing": states.pop("processing"),
        "dead_letter": figures.dead_letter,
        **states,
        "due": _due(figures, due),
        "oldest_due_age_seconds": round(age, 3),
        "rate": round(_rate(last_hour), 2),
        "latency_p50_seconds": _rounded(percentile(latency, 0.5)),
        "latency_p95_seconds": _rounded(percentile(latency, 0.95)),
        "attempts": {outcome.label: figures.attempts(outcome) for outcome in Outcome},
        "workers": workers,
        "last_tick_seconds": _rounded(last_tick),
    }


def executed() -> dict[str, Any]:
    """In three numbers; a job is an attempt to send a mail."""
    figures = counters.figures()
    successful, all_of_them = figures.attempts(Outcome.ACCEPTED), figures.attempts(*Outcome)
    return {
        "status": True,
        "Total Jobs Executed": all_of_them,
        "Jobs Successful": successful,
        "Jobs Failed": all_of_them - successful,
    }


def curves() -> dict[str, list[float | None]]:
    """Minute by minute over the last hour, the one that has begun at the end: mails accepted a second, and the
    latency (seconds) that 95 of 100 of them had at most."""
    found, now = counters.minutes(AN_HOUR), timezone.now()
    this = now.replace(second=0, microsecond=0)
    rates: list[float | None] = []
    latencies: list[float | None] = []
    for ago in range(59, -1, -1):
        figures = found.get(this - ago * A_MINUTE, Figures({}))
        seconds = 60.0 if ago else max(1.0, (now - this).total_seconds())
        rates.append(round(figures.attempts(Outcome.ACCEPTED) / seconds, 3))
        latencies.append(_rounded(percentile(figures.delivery(), 0.95)))
    return {"rate": rates, "latency": latencies}


def _rate(minutes: dict[Any, Figures]) -> float:
    """Mails accepted a second, in the minute that has begun and the one before."""
    now = timezone.now()
    since = now.replace(second=0, microsecond=0) - A_MINUTE
    accepted = sum(figures.attempts(Outcome.ACCEPTED) for at, figures in minutes.items() if at >= since)
    return accepted / (now - since).total_seconds()


def _together(parts: list[Figures]) -> Histogram:
    histograms = [figures.delivery() for figures in parts] or [Figures({}).delivery()]
    counts = [sum(count) for count in zip(*(each.counts for each in histograms), strict=True)]
    return Histogram(counts, sum(each.seconds for each in histograms))


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
