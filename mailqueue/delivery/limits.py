"""How fast: limits of an account and of a recipient's domain. They put mail off and never fail it.

A limit is a token bucket: it holds as many tokens as the limit and fills within its period, so the pace is exact in
the long run and a burst is one period's worth. The buckets are in Redis, for all workers; while that is away each
process keeps to its own share.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache

import redis
from django.conf import settings
from django.utils import timezone
from redis.commands.core import Script

from accounts.models import SmtpAccount
from tasks import doorbell, ledger, prepared
from tasks.ledger import Claimed, Settlement
from tasks.states import PutOff

logger = logging.getLogger(__name__)

PERIODS = {"per_second": 1, "per_minute": 60, "per_hour": 3600, "per_day": 86_400}
#: Mails are not let go one by one: after a refusal nothing is asked for this long (seconds).
LEAST_WAIT = 0.3

# KEYS: a hash for each bucket. ARGV: how many, then limit and period of each. Answers how many may go now, and in how
# many milliseconds the next one.
_TAKE = """
local now = redis.call('TIME')
now = tonumber(now[1]) + tonumber(now[2]) / 1e6
local granted, wait, filled = tonumber(ARGV[1]), 0, {}
for i, key in ipairs(KEYS) do
  local limit, period = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  local kept = redis.call('HMGET', key, 'tokens', 'at')
  local tokens, at = tonumber(kept[1] or limit), tonumber(kept[2] or now)
  filled[i] = math.min(limit, tokens + math.max(0, now - at) * limit / period)
  granted = math.min(granted, math.floor(filled[i] + 1e-6))
end
for i, key in ipairs(KEYS) do
  local limit, period = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  local left = filled[i] - granted
  redis.call('HSET', key, 'tokens', string.format('%.6f', left), 'at', string.format('%.6f', now))
  redis.call('EXPIRE', key, period + 1)
  wait = math.max(wait, (1 - left) * period / limit)
end
return {granted, math.ceil(wait * 1000)}
"""


@dataclass(frozen=True, slots=True)
class Window:
    """`limit` mails in `period` seconds."""

    limit: int
    period: int


@dataclass(frozen=True, slots=True)
class Grant:
    """How many may go now, and after how many seconds the next one may."""

    count: int
    wait: float


def windows_of(account: SmtpAccount) -> list[Window]:
    limits = ((getattr(account, name), period) for name, period in PERIODS.items())
    return [Window(limit, period) for limit, period in limits if limit]


def take(name: str, windows: Sequence[Window], count: int) -> Grant:
    """As many of `count` as all the windows allow; what is granted is used up."""
    try:
        keys = [f"mailqueue:limit:{name}:{window.limit}/{window.period}" for window in windows]
        numbers = [number for window in windows for number in (window.limit, window.period)]
        granted, milliseconds = _script(doorbell.client())(keys=keys, args=[count, *numbers])
    except redis.RedisError as error:
        logger.warning("limits_kept_locally", extra={"error": repr(error)})
        return _local.take(name, windows, count)
    return Grant(int(granted), max(LEAST_WAIT, int(milliseconds) / 1000))


@lru_cache
def _script(client: "redis.Redis") -> Script:
    return client.register_script(_TAKE)


class Local:
    """One process's share of the same buckets while Redis is away."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: dict[tuple[str, Window], tuple[float, float]] = {}

    def take(self, name: str, windows: Sequence[Window], count: int) -> Grant:
        now, wait = self._clock(), LEAST_WAIT
        filled: dict[Window, float] = {}
        for window in windows:
            share = max(1, window.limit // settings.WORKER_CONCURRENCY)
            tokens, at = self._kept.get((name, window), (share, now))
            filled[window] = min(share, tokens + (now - at) * share / window.period)
            count = min(count, int(filled[window] + 1e-6))
        for window, tokens in filled.items():
            left = tokens - count
            self._kept[name, window] = (left, now)
            share = max(1, window.limit // settings.WORKER_CONCURRENCY)
            wait = max(wait, (1 - left) * window.period / share)
        return Grant(count, wait)


_local = Local()


@dataclass(frozen=True, slots=True)
class Admission:
    """What may be sent now, what goes back to the ledger, and which accounts are closed for how long (seconds)."""

    admitted: list[Claimed]
    put_off: list[Settlement]
    closed: dict[int, float]


def admit(claimed: Sequence[Claimed], accounts: Mapping[int, SmtpAccount]) -> Admission:
    """Asks every limit that concerns these mails, most urgent lanes first."""
    result = Admission([], [], {})
    by_owner: dict[int, list[Claimed]] = {}
    for mail in sorted(claimed, key=lambda mail: mail.lane):
        by_owner.setdefault(mail.owner_id, []).append(mail)
    for owner_id, mails in by_owner.items():
        windows = windows_of(accounts[owner_id])
        grant = take(f"account:{owner_id}", windows, len(mails)) if windows else Grant(len(mails), 0)
        result.admitted.extend(mails[: grant.count])
        if grant.count < len(mails):
            result.closed[owner_id] = grant.wait
            result.put_off.extend(_put_off(mail, None, PutOff.ACCOUNT_LIMIT) for mail in mails[grant.count :])
    return _admit_domains(result)


def _admit_domains(admission: Admission) -> Admission:
    limits: Mapping[str, Window] = {
        domain: Window(*limit) for domain, limit in settings.MAIL_DOMAIN_LIMITS.items()
    }
    if not limits:
        return admission
    by_domain: dict[str, list[Claimed]] = {}
    for mail in admission.admitted:
        by_domain.setdefault(mail.recipient.rpartition("@")[2].lower(), []).append(mail)
    admitted: list[Claimed] = []
    for domain, mails in by_domain.items():
        window = limits.get(domain)
        grant = take(f"domain:{domain}", [window], len(mails)) if window else Grant(len(mails), 0)
        admitted.extend(mails[: grant.count])
        for place, mail in enumerate(mails[grant.count :]):
            pace = window.period / window.limit if window else 0
            admission.put_off.append(_put_off(mail, grant.wait + place * pace, PutOff.DOMAIN_LIMIT))
    return Admission(admitted, admission.put_off, admission.closed)


def _put_off(mail: Claimed, wait: float | None, why: PutOff) -> Settlement:
    return ledger.put_back(mail, "")._replace(wait=wait, put_off=why)


def next_opening() -> float | None:
    """Seconds until the first account that is at its limit may send again, whichever worker has closed it."""
    ((seconds,),) = prepared.rows(_NEXT_OPENING)
    return None if seconds is None else max(0.0, seconds)


_NEXT_OPENING = """
SELECT date_part('epoch', min(limited_until) - now()) FROM accounts_smtpaccount WHERE limited_until > now()
"""


def close_accounts(closed: Mapping[int, float]) -> None:
    """Until then nothing of these accounts is claimed; nothing has to open them again."""
    for owner_id, wait in closed.items():
        SmtpAccount.objects.filter(owner_id=owner_id).update(
            limited_until=timezone.now() + timedelta(seconds=wait)
        )
