"""How often: counts what somebody does within a window, for all processes together.

The counts are in Redis, asked once a call. While that is away each process allows its own share; a dead Redis costs
one call a second at most, and then none for a while.
"""

import hashlib
import logging
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import redis
from django.conf import settings
from redis.commands.core import Script

logger = logging.getLogger(__name__)

#: After a failure Redis is left alone for this long (seconds).
SILENCE_SECONDS = 5.0
#: Counts that one process keeps while Redis is away.
KEEP_COUNTS: Final = 10_000

# KEYS: a counter for each. ARGV: quota, window (ms) and amount of each. All are counted, or none is: an amount of 0
# only asks whether one more would pass. Answers whether it was granted, then use and milliseconds left of each.
_SPEND = """
local granted, answer = 1, {}
for i, key in ipairs(KEYS) do
  local quota, amount = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i])
  local used = tonumber(redis.call('GET', key) or '0')
  if used + math.min(quota, math.max(1, amount)) > quota then granted = 0 end
end
answer[1] = granted
for i, key in ipairs(KEYS) do
  local window, amount = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  if granted == 1 and amount > 0 then
    redis.call('INCRBY', key, amount)
    if redis.call('PTTL', key) < 0 then redis.call('PEXPIRE', key, window) end
  end
  answer[2 * i] = tonumber(redis.call('GET', key) or '0')
  answer[2 * i + 1] = redis.call('PTTL', key)
end
return answer
"""


@dataclass(frozen=True, slots=True)
class Limit:
    """`quota` of something in `window` seconds; `name` is how it is called in the RateLimit headers."""

    name: str
    quota: int
    window: int


class Use(NamedTuple):
    """What is to be counted: one more for this user or address, or `amount` more."""

    limit: Limit
    who: str
    amount: int = 1

    @property
    def key(self) -> str:
        # Hashed, for it is what somebody typed: of any length, and nobody else's business.
        who = hashlib.blake2b(self.who.encode("utf-8", "replace"), digest_size=16).hexdigest()
        return f"mailqueue:throttle:{self.limit.name}:{who}"


class Standing(NamedTuple):
    """What is left of a limit, and in how many seconds all of it is there again."""

    limit: Limit
    left: int
    reset: int


class Verdict(NamedTuple):
    """Whether it may be; if not, in how many seconds."""

    granted: bool
    standings: list[Standing]
    wait: int = 0


def spend(*uses: Use) -> Verdict:
    """Counts all of it, or nothing where one would be too many."""
    global _silent_until  # noqa: PLW0603 -- one silence a process
    if time.monotonic() >= _silent_until:
        try:
            return _spend_in_redis(uses)
        except redis.RedisError as error:
            _silent_until = time.monotonic() + SILENCE_SECONDS
            logger.warning("throttle_kept_locally", extra={"error": repr(error)})
    return _local.spend(uses)


def forget(use: Use) -> None:
    """Begins to count anew."""
    global _silent_until  # noqa: PLW0603 -- the same
    _local.forget(use)
    if time.monotonic() < _silent_until:
        return
    try:
        _client(settings.REDIS_URL).delete(use.key)
    except redis.RedisError as error:
        _silent_until = time.monotonic() + SILENCE_SECONDS
        logger.warning("throttle_kept_locally", extra={"error": repr(error)})


def _spend_in_redis(uses: Sequence[Use]) -> Verdict:
    numbers = [number for use in uses for number in (use.limit.quota, use.limit.window * 1000, use.amount)]
    granted, *found = _script(_client(settings.REDIS_URL))(keys=[use.key for use in uses], args=numbers)
    counts = [(used, left / 1000) for used, left in zip(found[::2], found[1::2], strict=True)]
    return _verdict(uses, [use.limit.quota for use in uses], counts, granted=bool(granted))


def _verdict(
    uses: Sequence[Use], quotas: Sequence[int], counts: Sequence[tuple[int, float]], *, granted: bool
) -> Verdict:
    """From how much is used of each, and the seconds until that ends."""
    standings, wait = [], 0
    for use, quota, (used, ends) in zip(uses, quotas, counts, strict=True):
        # What nobody has begun to count has no end: the next one begins a whole window.
        reset = math.ceil(ends) if ends > 0 else use.limit.window
        standings.append(Standing(use.limit, max(0, quota - used), reset))
        if not granted and used + _asked(use, quota) > quota:
            wait = max(wait, reset)
    return Verdict(granted, standings, wait)


def _asked(use: Use, quota: int) -> int:
    """More at once than the quota passes when none of it is used, for it would wait for ever."""
    return min(quota, max(1, use.amount))


@lru_cache
def _client(url: str) -> redis.Redis:
    """One client for each process, that gives up after a second."""
    return redis.Redis.from_url(
        url, socket_timeout=1, socket_connect_timeout=1, retry=None, health_check_interval=25
    )


@lru_cache
def _script(client: redis.Redis) -> Script:
    return client.register_script(_SPEND)


class Local:
    """One process's share of the same counts while Redis is away."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def spend(self, uses: Sequence[Use]) -> Verdict:
        now = time.monotonic()
        shares = [max(1, use.limit.quota // settings.WEB_PROCESSES) for use in uses]
        with self._lock:
            found = [self._count(use, now) for use in uses]
            each = zip(uses, shares, found, strict=True)
            granted = all(used + _asked(use, share) <= share for use, share, (used, _) in each)
            if granted:
                found = [(used + use.amount, ends) for use, (used, ends) in zip(uses, found, strict=True)]
                self._keep(
                    {use.key: count for use, count in zip(uses, found, strict=True) if use.amount}, now
                )
        return _verdict(uses, shares, [(used, ends - now) for used, ends in found], granted=granted)

    def forget(self, use: Use) -> None:
        self._counts.pop(use.key, None)

    def _count(self, use: Use, now: float) -> tuple[int, float]:
        used, ends = self._counts.get(use.key, (0, 0.0))
        return (used, ends) if now < ends else (0, now + use.limit.window)

    def _keep(self, counts: dict[str, tuple[int, float]], now: float) -> None:
        if len(self._counts) >= KEEP_COUNTS:
            self._counts = {key: count for key, count in self._counts.items() if now < count[1]}
        if len(self._counts) >= KEEP_COUNTS:
            self._counts.clear()
        self._counts |= counts


_local = Local()
_silent_until = 0.0
