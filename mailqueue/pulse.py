"""A Celery worker's sign of life, for `python -m mailqueue.alive`: it must not depend on the broker, and must end
with the work.

The main process's loop is what may get stuck, and its timers show that it turns. But they rest while it waits for a
broker that is away, as it should (standby.py delivers meanwhile). So a thread looks at both: the file stays young
while the loop turns or the broker does not answer, and grows old where the broker answers and the loop does not turn,
or the whole process stands still. A pool process that hangs is not seen here, for jobs may wait long for relays and
databases: it goes missing from the list of workers, and its mails come back when the lease is over.
"""

import logging
import threading
import time
from typing import Any

from celery import bootsteps
from django.conf import settings

from mailqueue import alive
from mailqueue.forking import NO_FORK
from tasks import doorbell

logger = logging.getLogger(__name__)

#: Seconds between two signs.
EVERY = 5.0
#: A loop that is silent for so long is stuck. After an outage it comes back by itself within 32 s (kombu's longest
#: pause between two attempts to connect).
PATIENCE = 60.0

_PROGRAMS = {"drain": "worker", "upkeep": "upkeep"}


class PulseStep(bootsteps.StartStopStep):
    """Runs in the worker's main process, from before it looks for the broker until it ends."""

    requires = ("celery.worker.components:Timer",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._programs: list[str] = []
        self._stopped = threading.Event()
        self._turned = time.monotonic()

    def start(self, parent: Any) -> None:
        queues = parent.app.amqp.queues.consume_from
        self._programs = [program for queue, program in _PROGRAMS.items() if queue in queues]
        self.turn()
        parent.timer.call_repeatedly(EVERY, self.turn)
        threading.Thread(target=self._watch, name="pulse", daemon=True).start()

    def stop(self, parent: Any) -> None:
        self._stopped.set()

    terminate = stop

    def turn(self) -> None:
        """The loop has come round."""
        self._turned = time.monotonic()

    def is_well(self) -> bool:
        """Whether the loop turns, or has a reason not to."""
        if time.monotonic() - self._turned > 2 * EVERY and not doorbell.is_there():
            self.turn()  # its patience counts from the broker's return
        return time.monotonic() - self._turned < PATIENCE

    def _watch(self) -> None:
        is_well = True
        while True:
            with NO_FORK:
                was_well, is_well = is_well, self.is_well()
            if is_well:
                touch(*self._programs)
            elif was_well:
                logger.error("loop_stuck", extra={"seconds": round(PATIENCE)})
            if self._stopped.wait(EVERY):
                return


def touch(*programs: str) -> None:
    """A sign that cannot be given stops no work; the probe will say so."""
    for program in programs:
        try:
            alive.touch(program, settings.HEARTBEAT_DIR)
        except OSError as error:
            logger.warning("no_sign_of_life", extra={"program": program, "error": str(error)})
