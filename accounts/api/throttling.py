"""Limits of the API: 429 with Retry-After, and what is left in the RateLimit headers.

They are those of draft-ietf-httpapi-ratelimit-headers as it is since revision 08: two lists of named policies.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from rest_framework.exceptions import APIException
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from accounts import quota, throttle
from accounts.caller import address_of
from accounts.models import User
from accounts.quota import Quota
from accounts.throttle import Limit, Standing, Use


class TooManyRequests(APIException):
    """`wait` becomes Retry-After, in seconds."""

    status_code = 429
    default_code = "too_many_requests"

    def __init__(self, wait: int, detail: str | None = None) -> None:
        super().__init__(detail or f"Too many of these; try again in {wait} s.")
        self.wait = wait


class QuotaExceeded(TooManyRequests):
    """Waits for the next day."""

    default_code = "quota_exceeded"


def announce(view: Any, standings: Iterable[Standing]) -> None:
    """Puts what is left on the answer, whatever that will be."""
    for each in standings:
        _add(view, "RateLimit-Policy", f'"{each.limit.name}";q={each.limit.quota};w={each.limit.window}')
        _add(view, "RateLimit", f'"{each.limit.name}";r={each.left};t={each.reset}')


def _add(view: Any, header: str, member: str) -> None:
    before = view.headers.get(header)
    view.headers[header] = f"{before}, {member}" if before else member


def allow(view: Any, *uses: Use) -> None:
    """Counts it; TooManyRequests where it is too much."""
    verdict = throttle.spend(*uses)
    announce(view, verdict.standings)
    if not verdict.granted:
        raise TooManyRequests(verdict.wait)


@contextmanager
def within_quota(view: Any, user: User, count: int) -> Iterator[None]:
    """Around what keeps so many mails, in one transaction with it; QuotaExceeded where they are too many."""
    try:
        with quota.counted(user, count) as standing:
            yield
    except quota.QuotaExceededError as error:
        _announce_quota(view, error.standing)
        per_day, left, reset = error.standing
        raise QuotaExceeded(reset, f"Of {per_day} mails a day (UTC) {left} are left.") from error
    if standing:
        _announce_quota(view, standing)


def _announce_quota(view: Any, standing: Quota) -> None:
    limit = Limit("quota", standing.per_day, 86_400)
    announce(view, [Standing(limit, standing.left, standing.reset)])


class _Throttle(BaseThrottle):
    name: str
    setting: str

    def allow_request(self, request: Request, view: Any) -> bool:
        pace = getattr(settings, self.setting)
        if pace:
            allow(view, Use(Limit(self.name, *pace), self.who(request)))
        return True

    def who(self, request: Request) -> str:
        """The user; where nobody is logged in, the address."""
        return str(request.user.pk) if request.user else address_of(request._request)  # noqa: SLF001 -- DRF's own name


class RegisterThrottle(_Throttle):
    name, setting = "register", "THROTTLE_REGISTER"


class SmtpTestThrottle(_Throttle):
    name, setting = "smtp-test", "THROTTLE_SMTP_TEST"


class EnqueueThrottle(_Throttle):
    name, setting = "enqueue", "THROTTLE_ENQUEUE"
