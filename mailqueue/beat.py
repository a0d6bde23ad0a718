"""Celery's beat, which shows with each tick that it ticks (`python -m mailqueue.alive beat`)."""

from typing import Any

from celery.utils.log import get_logger
from django_celery_beat.schedulers import DatabaseScheduler

from mailqueue.pulse import touch

logger = get_logger(__name__)


class Scheduler(DatabaseScheduler):  # type: ignore[misc]  # has no types
    """The schedule in the database."""

    def tick(self, *args: Any, **kwargs: Any) -> float:
        seconds: float = super().tick(*args, **kwargs)
        touch("beat")
        return seconds

    def _ensure_connected(self) -> Any:
        """The first tick waits for the broker, for as long as it takes. That is no reason to start beat anew."""

        def note(error: Exception, interval: float) -> None:
            logger.error("beat: Connection error: %s. Trying again in %s seconds...", error, interval)
            touch("beat")

        return self.connection.ensure_connection(note, self.app.conf.broker_connection_max_retries)
