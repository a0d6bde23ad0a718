"""What has been done and what is there, in numbers: kept as it happens, never counted from the ledger.

The statements that move mails write a line here, in the same transaction (tasks/statements.py): how many went from
which state to which, and what became of how many attempts. A line a statement and not one row for all, which would be
what everybody waits for. `fold` adds lines to the totals; who reads adds up totals and lines in one snapshot.
"""

import itertools
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db import connection, models
from django.db.models.functions import Now

from tasks.states import CancelReason, Outcome, Phase, Status

#: Counted beside the other states, and no state of its own: cancelled, after attempts that failed.
DEAD = 7
#: Upper bounds (seconds) of the histograms; what took longer is in one more.
DELIVERY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14_400, 86_400)
SMTP = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
#: Lines folded at a time, and how long the figures of a minute are kept.
BITE, KEPT = 20_000, timedelta(hours=26)


class Line(models.Model):
    """What one statement has done to so many mails."""

    id = models.BigAutoField(primary_key=True)
    at = models.DateTimeField()
    mails = models.IntegerField()
    #: Their state before and after it, as Status or DEAD; NULL before a mail is there, and after it is gone.
    was = models.SmallIntegerField(null=True)
    became = models.SmallIntegerField(null=True)
    #: Of attempts: how they ended and where, and which of the bounds above they took at most.
    outcome = models.SmallIntegerField(null=True)
    phase = models.SmallIntegerField(null=True)
    smtp_le = models.SmallIntegerField(null=True)
    smtp_seconds = models.FloatField(null=True)
    delivery_le = models.SmallIntegerField(null=True)
    delivery_seconds = models.FloatField(null=True)
    #: Taken from workers that died.
    rescued = models.IntegerField(null=True)

    class Meta:
        db_table = "tasks_counter_line"

    def __str__(self) -> str:
        return f"{self.mails} from {self.was} to {self.became}"


class Total(models.Model):
    """A figure since the beginning, but for what is in lines."""

    name = models.CharField(max_length=40, primary_key=True)
    value = models.FloatField()

    class Meta:
        db_table = "tasks_counter_total"

    def __str__(self) -> str:
        return f"{self.name} {self.value}"


class Minute(models.Model):
    """A figure of one minute, but for what is in lines: for rates, and how they went."""

    pk = models.CompositePrimaryKey("at", "name")
    at = models.DateTimeField()
    name = models.CharField(max_length=40)
    value = models.FloatField()

    class Meta:
        db_table = "tasks_counter_minute"

    def __str__(self) -> str:
        return f"{self.name} {self.value} at {self.at}"


class Histogram(NamedTuple):
    """How many were within each bound, the last without one, and the sum of all (seconds)."""

    counts: list[int]
    seconds: float

    @property
    def total(self) -> int:
        return sum(self.counts)


class Figures:
    """All of it at one moment. A figure that has never been counted is 0."""

    def __init__(self, values: Mapping[str, float]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> int:
        return round(self._values.get(name, 0))

    def in_state(self, status: int) -> int:
        """How many mails are there now; those in process and cancelled with all that belongs to it."""
        count = self[f"task.{status:d}"] + (self[f"task.{DEAD}"] if status == Status.CANCELLED else 0)
        return max(0, count)

    @property
    def dead_letter(self) -> int:
        """Cancelled, after attempts that failed."""
        return max(0, self[f"task.{DEAD}"])

    def attempts(self, *outcomes: Outcome) -> int:
        """How many have ended so, ever."""
        return sum(self[f"outcome.{outcome:d}"] for outcome in outcomes)

    def delivery(self) -> Histogram:
        """From the acceptance of a mail, or the time it was scheduled for, to the relay's."""
        return self._histogram("delivery", len(DELIVERY))

    def smtp(self, phase: Phase) -> Histogram:
        """What attempts took that ended in this phase."""
        return self._histogram(f"smtp.{phase:d}", len(SMTP))

    def _histogram(self, name: str, bounds: int) -> Histogram:
        counts = [self[f"{name}.{number}"] for number in range(bounds + 1)]
        return Histogram(counts, self._values.get(f"{name}.sum", 0.0))


def percentile(histogram: Histogram, share: float) -> float | None:
    """Seconds that this share of all took at most, as far as the bounds tell; None of nothing. What is beyond the
    last bound is told as that bound."""
    wanted, below = histogram.total * share, 0
    if not wanted:
        return None
    for (lower, upper), count in zip(itertools.pairwise((0.0, *DELIVERY)), histogram.counts, strict=False):
        if count and below + count >= wanted:
            return lower + (upper - lower) * (wanted - below) / count
        below += count
    return float(DELIVERY[-1])


# Reading and folding ----------------------------------------------------------------------------------

# Lines that say the same, as one, minute by minute.
_ADDED_UP = """
(SELECT date_trunc('minute', at) AS at, was, became, outcome, phase, smtp_le, delivery_le, sum(mails) AS mails,
    sum(smtp_seconds) AS smtp_seconds, sum(delivery_seconds) AS delivery_seconds, sum(rescued) AS rescued
FROM {lines} GROUP BY 1, 2, 3, 4, 5, 6, 7) AS line
"""
_LINES = _ADDED_UP.format(lines="tasks_counter_line")
# What a line stands for, by name.
_MEANT = f"""
CROSS JOIN LATERAL (VALUES
    ('task.' || became, mails), ('task.' || was, -mails), ('outcome.' || outcome, mails),
    ('smtp.' || phase || '.' || smtp_le, mails), ('smtp.' || phase || '.sum', smtp_seconds),
    ('delivery.' || delivery_le, mails), ('delivery.sum', delivery_seconds), ('rescued', rescued),
    (CASE WHEN outcome IN ({Outcome.UNCERTAIN:d}, {Outcome.LOST:d}) THEN 'uncertain' END, mails)
) AS meant(name, value)
WHERE name IS NOT NULL AND value <> 0
"""
_OF_A_MINUTE = "(name LIKE 'outcome.%%' OR name LIKE 'delivery.%%')"

_FIGURES = f"""
SELECT name, sum(value) FROM (
    SELECT name, value FROM tasks_counter_total
    UNION ALL SELECT name, value FROM {_LINES} {_MEANT}) AS all_of_it
GROUP BY name
"""
_MINUTES = f"""
SELECT at, name, sum(value) FROM (
    SELECT at, name, value FROM tasks_counter_minute WHERE at > now() - %(past)s::interval
    UNION ALL
    SELECT at, name, value FROM {_LINES} {_MEANT} AND {_OF_A_MINUTE} AND at > now() - %(past)s::interval) AS all_of_it
GROUP BY at, name ORDER BY at
"""
# Two may fold at once: neither takes the other's lines, and both add to the totals in one order.
_FOLD = f"""
WITH gone AS (
    DELETE FROM tasks_counter_line WHERE id = ANY(ARRAY(
        SELECT id FROM tasks_counter_line ORDER BY id LIMIT %(bite)s FOR UPDATE SKIP LOCKED)) RETURNING *
),
figure AS MATERIALIZED (
    SELECT at AS minute, name, sum(value) AS value FROM {_ADDED_UP.format(lines="gone")} {_MEANT} GROUP BY 1, 2
),
total AS (
    INSERT INTO tasks_counter_total AS kept (name, value)
    SELECT name, sum(value) FROM figure GROUP BY name ORDER BY name
    ON CONFLICT (name) DO UPDATE SET value = kept.value + excluded.value
),
minutes AS (
    INSERT INTO tasks_counter_minute AS kept (at, name, value)
    SELECT minute, name, value FROM figure WHERE {_OF_A_MINUTE} ORDER BY minute, name
    ON CONFLICT (at, name) DO UPDATE SET value = kept.value + excluded.value
)
SELECT count(*) FROM gone
"""
_ADD = """
INSERT INTO tasks_counter_total AS kept (name, value) VALUES (%(name)s, %(number)s)
ON CONFLICT (name) DO UPDATE SET value = kept.value + excluded.value
"""
# In one snapshot what is there and what was kept of it, while others move mails; what differs becomes lines.
_RECOUNT = f"""
WITH there AS (
    SELECT 'task.' || CASE WHEN status = {Status.CANCELLED:d} AND (
            cancel_reason IN ({CancelReason.EXHAUSTED:d}, {CancelReason.REJECTED:d})
            OR cancel_reason = {CancelReason.EXPIRED:d} AND try_count > 0) THEN {DEAD} ELSE status END AS name,
        count(*) AS value
    FROM tasks_mailtask GROUP BY 1
),
kept AS (SELECT * FROM ({_FIGURES}) AS figures(name, value) WHERE name LIKE 'task.%%'),
wrong AS (
    SELECT split_part(name, '.', 2)::smallint AS state, coalesce(there.value, 0) - coalesce(kept.value, 0) AS mails
    FROM there FULL JOIN kept USING (name) WHERE coalesce(there.value, 0) <> coalesce(kept.value, 0)
),
mended AS (
    INSERT INTO tasks_counter_line (at, mails, became) SELECT now(), mails, state FROM wrong
)
SELECT coalesce(sum(abs(mails)), 0) FROM wrong
"""


def figures() -> Figures:
    """As of now, with what was committed a moment ago."""
    return Figures(dict(_rows(_FIGURES)))


def minutes(past: timedelta) -> dict[datetime, Figures]:
    """What came to an end in each of the last minutes, the one that has begun too; none where nothing did."""
    found: dict[datetime, dict[str, float]] = {}
    for at, name, value in _rows(_MINUTES, {"past": past}):
        found.setdefault(at, {})[name] = value
    return {at: Figures(values) for at, values in found.items()}


def fold() -> int:
    """Adds the oldest lines, BITE at most, to the totals; how many."""
    ((lines,),) = _rows(_FOLD, {"bite": BITE})
    return int(lines)


def add(name: str, number: int = 1) -> None:
    """Counts what is rare, in the caller's transaction: all who count the same wait for each other."""
    with connection.cursor() as cursor:
        cursor.execute(_ADD, {"name": name, "number": number})


def recount() -> int:
    """Looks at every mail and mends how many there are in each state, which is right unless a program of before these
    counters moved mails, or a person did by hand; how many differed. Nobody has to stop for it."""
    ((wrong,),) = _rows(_RECOUNT, {})
    return int(wrong)


def prune() -> None:
    """Lets go of old minutes."""
    Minute.objects.filter(at__lt=Now() - KEPT).delete()


def _rows(statement: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or {})
        found: list[tuple[Any, ...]] = cursor.fetchall()
    return found
