"""The only place that publishes. A bell that cannot be rung costs a second at most, and no mail.

The row is already committed when the bell is rung; beat's dispatch finds it if nobody hears. While a worker is
awake (it drains, or has just done so and listens), a ring is a knock at its door; only when all sleep is it a
Celery message. So a steady trickle of mails costs a message every few seconds instead of one for each.
"""

import contextlib
import logging
import time
from functools import lru_cache

import redis
from celery import current_app
from django.conf import settings
from django.db import DatabaseError, connection
from kombu.exceptions import OperationalError
from redis.commands.core import Script

logger = logging.getLogger(__name__)

BELL, AWAKE, KNOCK = "mailqueue:bell", "mailqueue:awake", "mailqueue:knock"
CALL, HELP = "mailqueue:call", "mailqueue:help"
#: Set by every drain and by every tick of beat; they lapse when nobody does so any more.
DRAINED, TICKED = "mailqueue:drained", "mailqueue:ticked"
#: Celery's own list of messages for the drain queue (its global_keyprefix before the queue's name).
MESSAGES = "mailqueue:drain"
#: A drain begins anew every few seconds and beat ticks every second, so after this (seconds) something is wrong.
SILENT_FOR = 15
#: A bell whose message was lost may be rung again after this.
BELL_SECONDS = 5
#: One more worker is called at most this often. Less than beat's second: every other tick would find it just called.
CALL_MILLISECONDS = 800
#: After a failure the bell is left alone for this long, so that a dead Redis slows one call and not each.
SILENCE_SECONDS = 5.0

# 1 if a message has to be published: nobody is awake to be knocked up, and nobody has rung yet. A knock is one,
# however many knock; to take it is to answer it, so who is awake looks at the table without another word.
_RING = """
if redis.call('EXISTS', KEYS[2]) == 1 then
    if redis.call('EXISTS', KEYS[3]) == 0 then redis.call('LPUSH', KEYS[3], '1') end
    return 0
end
if redis.call('SET', KEYS[1], '1', 'NX', 'EX', ARGV[1]) then return 1 end
return 0
"""

_FAILURES = (redis.RedisError, OperationalError, OSError)
_silent_until = 0.0


@lru_cache
def client() -> redis.Redis:
    """One client for each process, that gives up after a second."""
    return redis.Redis.from_url(
        settings.REDIS_URL, socket_timeout=1, socket_connect_timeout=1, retry=None, health_check_interval=25
    )


@lru_cache
def _ring_script(of: redis.Redis) -> Script:
    return of.register_script(_RING)


def ring() -> bool:
    """Wakes a worker unless one is awake or being woken. False if the bell could not be rung."""
    global _silent_until  # noqa: PLW0603 -- one bell a process
    if time.monotonic() < _silent_until:
        return False
    try:
        if _ring_script(client())(keys=[BELL, AWAKE, KNOCK], args=[BELL_SECONDS]):
            _publish()
    except _FAILURES as error:
        _silent_until = time.monotonic() + SILENCE_SECONDS
        _note_failure(error)
        return False
    return True


def call() -> None:
    """Wakes one more worker, whoever is awake: something is due, and perhaps nobody has come."""
    _call(CALL)


def call_for_help() -> None:
    """The same, by a worker who has seen more than one can do. That somebody has just looked does not help them."""
    _call(HELP)


def _call(key: str) -> None:
    try:
        if client().set(key, "1", nx=True, px=CALL_MILLISECONDS):
            _publish()
    except _FAILURES as error:
        _note_failure(error)


def _note_failure(error: Exception) -> None:
    """Who has no connection to the database, such as a worker's main process, opens none for this."""
    from tasks import counters  # noqa: PLC0415 -- its models load after the apps

    logger.warning("doorbell_failed", extra={"error": repr(error)})
    if connection.connection is not None:
        with contextlib.suppress(DatabaseError):
            counters.add("doorbell_failures")


def _publish() -> None:
    current_app.send_task("mailqueue.drain", queue="drain", expires=30, retry=False)


# The worker's side of the door -----------------------------------------------------------------------


def answer() -> None:
    """A worker has come: a new mail rings again from now on. Call before looking at the table for the first time."""
    try:
        with client().pipeline(transaction=False) as pipe:
            pipe.delete(BELL, KNOCK)
            pipe.set(DRAINED, "1", ex=SILENT_FOR)
            pipe.execute()
    except redis.RedisError as error:
        logger.warning("doorbell_not_answered", extra={"error": repr(error)})


def stay_awake(seconds: int) -> bool:
    """Whether the caller is the one to listen for knocks, for that long at most; another may be already."""
    try:
        return bool(client().set(AWAKE, "1", nx=True, ex=seconds))
    except redis.RedisError:
        return False


def listen(seconds: float) -> bool:
    """Waits for a knock; below a second, for that is the client's patience. So long too where nobody can knock, for
    who listens again and again must not spin."""
    began = time.monotonic()
    try:
        return client().blpop([KNOCK], timeout=seconds) is not None
    except redis.RedisError:
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        return False


def go_to_sleep(*, heard: bool) -> None:
    """Ends `stay_awake`. Who was `heard` and not answered, or knocked in that moment, gets the next worker."""
    try:
        client().delete(AWAKE)
        if heard or client().lpop(KNOCK):
            _publish()
    except _FAILURES as error:
        logger.warning("doorbell_not_answered", extra={"error": repr(error)})


# Whether anybody still comes --------------------------------------------------------------------------


def is_there() -> bool:
    """Whether the broker answers."""
    try:
        return bool(client().ping())
    except redis.RedisError:
        return False


def tick() -> None:
    """Beat and the upkeep worker are alive."""
    try:
        client().set(TICKED, "1", ex=SILENT_FOR)
    except redis.RedisError as error:
        logger.warning("tick_not_noted", extra={"error": repr(error)})


def is_ticking() -> bool:
    """Whether somebody looks every second for what is due. RedisError if the broker is away."""
    return bool(client().exists(TICKED))


def is_unheard() -> bool:
    """Whether messages lie there that no worker takes. RedisError if the broker is away."""
    with client().pipeline(transaction=False) as pipe:
        pipe.exists(DRAINED)
        pipe.llen(MESSAGES)
        drained, waiting = pipe.execute()
    return waiting > 0 and not drained
