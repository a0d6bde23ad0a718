"""Delivery while the broker is away: a Celery worker that hears no bell looks at the table by itself.

Each delivery worker's main process watches the broker. When it is gone, a child process drains the ledger
(`manage.py drain --while-broker-is-away`) until the broker answers again. It also stands in for a beat that no longer
ticks, and for a consumer that no longer takes its messages. No mail is in the broker, so all may run at once.
"""

import logging
import subprocess
import sys
import threading
from typing import Any

import redis
from celery import bootsteps
from django.conf import settings

from mailqueue.forking import NO_FORK
from tasks import doorbell

logger = logging.getLogger(__name__)

#: Seconds between two looks at the broker, and how many must fail before the child is started.
LOOK_EVERY, LOOKS = 1.0, 2


class StandbyStep(bootsteps.StartStopStep):
    """Runs in the worker's main process, beside the pool and independent of the consumer, which has no broker."""

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._stopped = threading.Event()

    def include_if(self, parent: Any) -> bool:
        """Only where mail is delivered: not in the upkeep worker."""
        return "drain" in parent.app.amqp.queues.consume_from

    def start(self, parent: Any) -> None:
        threading.Thread(target=self._watch, name="standby", daemon=True).start()

    def stop(self, parent: Any) -> None:
        self._stopped.set()

    terminate = stop

    def _watch(self) -> None:
        missed = unheard = 0
        while not self._stopped.wait(LOOK_EVERY):
            try:
                with NO_FORK:
                    if not doorbell.is_ticking():
                        doorbell.call()  # beat is gone: look at the table in its place
                    unheard = unheard + 1 if doorbell.is_unheard() else 0
                missed = 0
            except redis.RedisError:
                missed, unheard = missed + 1, 0
            if missed >= LOOKS:
                logger.warning("broker_away", extra={"doing": "draining the table without it"})
                self._drain("--while-broker-is-away")
                missed = 0
            elif unheard >= LOOKS:
                # A consumer may come out of a broken connection deaf; nobody's mail should wait for its restart.
                logger.warning("consumer_deaf", extra={"doing": "draining the table in its place"})
                self._drain("--seconds", str(doorbell.SILENT_FOR))
                unheard = 0

    def _drain(self, *options: str) -> None:
        """The child until it ends, or until this worker does."""
        command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "drain", *options]
        child = subprocess.Popen(command)  # noqa: S603 -- our own command
        while child.poll() is None:
            if self._stopped.wait(0.2):
                child.terminate()
                child.wait()
