"""Celery's entry points, a few lines each. What happens to a mail is decided on its row, not here."""

import contextlib
import logging
import os
import socket
import time
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from celery import Task, current_app, shared_task
from celery.signals import (
    task_prerun,
    worker_init,
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
)
from django.db import DatabaseError, InterfaceError, OperationalError, close_old_connections

from mailqueue import done, upkeep, workers
from mailqueue.delivery.courier import Courier
from mailqueue.delivery.hand import Report
from mailqueue.otp import codes
from mailqueue.subscriptions import deeds
from mailqueue.subscriptions.tick import tick
from mailqueue.webhooks import endpoints
from mailqueue.webhooks.fanout import fan_out
from mailqueue.webhooks.sender import Sender
from tasks import doorbell, pruning

logger = logging.getLogger(__name__)

#: A drain hands over after this (seconds): rollouts and Flower see short, steady jobs.
SLICE_SECONDS = 5.0
#: A worker that drains listens for so long (seconds) at a time, and looks whether it has drained.
GLANCE_SECONDS = 0.05
#: How long (seconds) a worker that found nothing more waits for a knock.
LISTEN_SECONDS = 0.8
#: A worker that is told to stop gives its mails this long (seconds).
GRACE_SECONDS = 20.0
#: What waits for an answer of a receiver is given this long when the worker stops (seconds).
WEBHOOK_GRACE_SECONDS = 10.0

#: The infrastructure's troubles, which a job retries; a mail's own are on its row.
AWAY = (OperationalError, InterfaceError)


@lru_cache
def _courier() -> Courier:
    """This process's courier, started after the fork."""
    return Courier(_name()).start()


def _name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


@shared_task(name="mailqueue.drain", bind=True, autoretry_for=AWAY, retry_backoff=True, retry_backoff_max=30)
def drain(self: "Task[Any, Any]") -> dict[str, int]:
    """Sends what is due, for one slice at most; meanwhile this worker is awake, and hears who knocks."""
    end = time.monotonic() + SLICE_SECONDS
    is_listener = doorbell.stay_awake(int(SLICE_SECONDS) + 2)
    report, heard = Report(), True
    doorbell.answer()
    while heard and (left := end - time.monotonic()) > 0:
        draining = _courier().begin_drain(left)
        while is_listener and not draining.done():
            # What it holds may be with a relay that hangs; who knocks meanwhile is let in all the same.
            if doorbell.listen(GLANCE_SECONDS):
                _courier().look()
        report += draining.result()
        # Who drained to the end of the slice has more to do, and hands over at once.
        heard = is_listener and (
            time.monotonic() >= end or _courier().has_overheard or _hears(_courier().opens_in())
        )
    if is_listener:
        doorbell.go_to_sleep(heard=heard)
    return _keep_if(self, asdict(report), worth=bool(report.claimed))


def _hears(opens_in: float) -> bool:
    """Whether there is more to do: somebody knocks, or an account that is at its limit may go on."""
    return doorbell.listen(min(LISTEN_SECONDS, max(opens_in, 0.01))) or opens_in <= LISTEN_SECONDS


@lru_cache
def _ticks() -> workers.Ticks:
    """What this process hears of beat; begun after the fork."""
    return workers.Ticks(_name())


@shared_task(name="mailqueue.dispatch_due", bind=True)
def dispatch_due(self: "Task[Any, Any]") -> dict[str, int]:
    _ticks().heard()
    done = upkeep.dispatch_due()
    return _keep_if(self, done, worth=bool(done["expired"]))


@lru_cache
def _sender() -> Sender:
    """This process's sender of webhooks, started after the fork."""
    return Sender().start()


@shared_task(name="mailqueue.webhooks", bind=True)
def webhooks(self: "Task[Any, Any]") -> dict[str, int]:
    """Writes deliveries of what has happened, and has what is due sent: beside this job, which waits for nobody."""
    done = {"queued": fan_out(), **_sender().look()}
    return _keep_if(self, done, worth=any(done.values()))


@shared_task(name="mailqueue.subscriptions", bind=True)
def subscriptions(self: "Task[Any, Any]") -> dict[str, int]:
    """Makes the mails of subscriptions that are due, for half a second; the next tick goes on."""
    done = {"made": tick()}
    return _keep_if(self, done, worth=bool(done["made"]))


@shared_task(name="mailqueue.rescue", autoretry_for=AWAY, retry_backoff=True, retry_backoff_max=30)
def rescue() -> dict[str, int]:
    return {"rescued": upkeep.rescue()}


@shared_task(name="mailqueue.sweep", autoretry_for=AWAY, retry_backoff=True, retry_backoff_max=30)
def sweep() -> dict[str, int]:
    return {"swept": upkeep.sweep()}


@shared_task(
    name="mailqueue.partitions", bind=True, autoretry_for=AWAY, retry_backoff=True, retry_backoff_max=30
)
def partitions(self: "Task[Any, Any]") -> dict[str, int]:
    """Nothing, unless the ledger is partitioned."""
    done = {"made": upkeep.make_partitions()}
    return _keep_if(self, done, worth=bool(done["made"]))


@shared_task(name="mailqueue.prune", autoretry_for=AWAY, retry_backoff=True, retry_backoff_max=30)
def prune() -> dict[str, int]:
    return {
        "pruned": upkeep.prune(),
        "webhooks": endpoints.prune(),
        "codes": codes.prune(),
        "occurrences": deeds.prune(),
        "done": pruning.prune(done.old(), "done_at"),
    }


def _keep_if(task: "Task[Any, Any]", result: dict[str, int], *, worth: bool) -> dict[str, int]:
    """A tick that found nothing to do leaves no row in django-celery-results and no line in the log: there
    are 86,400 a day."""
    task.request.ignore_result = not worth
    if worth:
        logger.info(task.name, extra=result)
    return result


def _warm_up(**_signal: Any) -> None:
    """A courier takes most of a second to start; no mail should wait for that."""
    if "drain" in current_app.amqp.queues.consume_from:
        _courier()


@worker_init.connect
def _warm_up_after_celery(**_signal: Any) -> None:
    """Celery's Django fixup closes the database connection that a process has inherited, and its number once more. By
    then no courier may have opened one of its own, which could have been given that number."""
    worker_process_init.connect(_warm_up)


@worker_ready.connect
def _look_at_the_table(**_signal: Any) -> None:
    """Who comes up asks for work: what waited for a worker may have been rung for long ago."""
    doorbell.call()


@task_prerun.connect
def _drop_dead_connection(**_signal: Any) -> None:
    """Connections are kept over jobs (config/celery.py), so one that a restart of PostgreSQL has cut is ours
    to notice."""
    close_old_connections()


@worker_process_shutdown.connect
def _finish(**_signal: Any) -> None:
    """The prefork child is about to leave: what is in flight ends first, the rest goes back."""
    if _courier.cache_info().currsize:
        _courier().stop(GRACE_SECONDS)
    if _sender.cache_info().currsize:
        _sender().stop(WEBHOOK_GRACE_SECONDS)
    if _ticks.cache_info().currsize:
        with contextlib.suppress(DatabaseError):
            workers.leave(_ticks().worker)
