"""The only place that publishes. A bell that cannot be rung costs a second at most, and no mail.

The row is already committed when the bell is rung; beat's dispatch finds it if nobody hears.
"""

import logging
import time
from functools import lru_cache

import redis
from celery import current_app
from django.conf import settings
from kombu.exceptions import OperationalError

logger = logging.getLogger(__name__)

BELL = "mailqueue:bell"
#: A bell whose message was lost may be rung again after this.
BELL_SECONDS = 5
#: After a failure the bell is left alone for this long, so that a dead Redis slows one call and not each.
SILENCE_SECONDS = 5.0

_silent_until = 0.0


@lru_cache
def client() -> redis.Redis:
    """One client for each process, that gives up after a second."""
    return redis.Redis.from_url(
        settings.REDIS_URL, socket_timeout=1, socket_connect_timeout=1, retry=None, health_check_interval=25
    )


def ring() -> bool:
    """Wakes a worker unless one is already being woken. True if the bell is, or was, ringing."""
    global _silent_until  # noqa: PLW0603 -- one bell a process
    if time.monotonic() < _silent_until:
        return False
    try:
        if client().set(BELL, "1", nx=True, ex=BELL_SECONDS):
            current_app.send_task("mailqueue.drain", queue="drain", expires=30, retry=False)
    except (redis.RedisError, OperationalError, OSError) as error:
        _silent_until = time.monotonic() + SILENCE_SECONDS
        logger.warning("doorbell_failed", extra={"error": repr(error)})
        return False
    return True


def answer() -> None:
    """A worker has come: from now on a new mail rings again. Call before looking at the table."""
    try:
        client().delete(BELL)
    except redis.RedisError as error:
        logger.warning("doorbell_not_cleared", extra={"error": repr(error)})
