"""Which processes deliver, and whether they still do: each writes its heartbeat, all the time. So does the upkeep
worker, as long as it hears beat."""

import time
from datetime import datetime, timedelta
from typing import Any, ClassVar, Self

from django.db import connection, models
from django.db.models import Case, CharField, DurationField, ExpressionWrapper, F, Q, Value, When
from django.db.models.functions import Now
from django.utils import timezone

#: Seconds between two heartbeats, and between two while there is something new to tell.
BEAT_EVERY, TELL_EVERY = 10.0, 2.0
#: Who is silent for so long is taken for dead, and who has been for longer is forgotten.
SILENT, FORGOTTEN = timedelta(seconds=30), timedelta(hours=1)
#: What a process does that delivers nothing, and hears beat tick.
UPKEEP = "upkeep"


class WorkerQuerySet(models.QuerySet["Worker"]):
    def delivering(self) -> Self:
        return self.exclude(doing=UPKEEP)

    def alive(self) -> Self:
        return self.filter(_ALIVE)

    def last_tick(self) -> float | None:
        """Seconds since beat was heard, give or take BEAT_EVERY; None if it has not been for long."""
        found = self.filter(doing=UPKEEP).order_by("-heartbeat_at").with_state().first()
        return None if found is None else max(0.0, found.silence.total_seconds())

    def with_state(self) -> Self:
        """Each with `state` and `silence`, by the database's clock."""
        return self.annotate(
            state=Case(When(_ALIVE, then=Value("alive")), default=Value("gone"), output_field=CharField()),
            silence=ExpressionWrapper(Now() - F("heartbeat_at"), output_field=DurationField()),
        )

    def gone_first(self) -> Self:
        """And of each host together."""
        return self.order_by(Case(When(_ALIVE, then=1), default=0), "host", "pid")


_ALIVE = Q(heartbeat_at__gt=Now() - SILENT)


class Worker(models.Model):
    """A process that delivers, or sees to upkeep. Who ends in peace takes the row along; the killed leave theirs."""

    id = models.BigAutoField(primary_key=True)
    #: Host and process id, as in Attempt.worker; a container that starts again may have the name of its last life.
    name = models.CharField(max_length=120, unique=True)
    host = models.CharField(max_length=100)
    pid = models.IntegerField()
    started_at = models.DateTimeField()
    heartbeat_at = models.DateTimeField()
    #: idle, sending, or stopping; or UPKEEP.
    doing = models.CharField(max_length=10)
    in_flight = models.IntegerField(default=0)
    #: Mails that relays have taken from it since it started.
    sent = models.BigIntegerField(default=0)

    objects: ClassVar[WorkerQuerySet] = WorkerQuerySet.as_manager()  # type: ignore[assignment]
    #: With `with_state`.
    state: str
    silence: timedelta

    def __str__(self) -> str:
        return self.name


def beat(name: str, doing: str, in_flight: int, sent: int, started_at: datetime) -> None:
    """`name` is alive. Who has been silent for long is forgotten."""
    host, _, pid = name.rpartition(":")
    with connection.cursor() as cursor:
        parameters: dict[str, Any] = {
            "name": name,
            "host": host[:100],
            "pid": int(pid),
            "started_at": started_at,
            "doing": doing,
            "in_flight": in_flight,
            "sent": sent,
            "forgotten": FORGOTTEN,
        }
        cursor.execute(_BEAT, parameters)


# The dead are passed by where another has them in hand: two of them at once never wait for each other.
_BEAT = """
WITH forgotten AS (
    DELETE FROM mailqueue_worker WHERE id IN (
        SELECT id FROM mailqueue_worker WHERE heartbeat_at < now() - %(forgotten)s AND name <> %(name)s
        FOR UPDATE SKIP LOCKED)
)
INSERT INTO mailqueue_worker AS known (name, host, pid, started_at, heartbeat_at, doing, in_flight, sent)
VALUES (%(name)s, %(host)s, %(pid)s, %(started_at)s, now(), %(doing)s, %(in_flight)s, %(sent)s)
ON CONFLICT (name) DO UPDATE SET started_at = excluded.started_at, heartbeat_at = excluded.heartbeat_at,
    doing = excluded.doing, in_flight = excluded.in_flight, sent = excluded.sent
"""


class Ticks:
    """What the upkeep worker hears of beat."""

    def __init__(self, worker: str) -> None:
        self.worker, self._started_at, self._beats_at = worker, timezone.now(), 0.0

    def heard(self) -> None:
        """One. Every BEAT_EVERY seconds that is worth a row."""
        if time.monotonic() >= self._beats_at:
            self._beats_at = time.monotonic() + BEAT_EVERY
            beat(self.worker, UPKEEP, 0, 0, self._started_at)


def leave(name: str) -> None:
    """It ends, and nobody need look for it."""
    Worker.objects.filter(name=name).delete()
