"""Limits of the API: 429 with Retry-After, and what is left in the RateLimit headers.

They are those of draft-ietf-httpapi-ratelimit-headers as it is since revision 08: two lists of named policies.
"""

from typing import Any

from django.conf import settings
from rest_framework.exceptions import APIException
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from accounts import throttle
from accounts.caller import address_of
from accounts.throttle import Limit, Use, Verdict


class TooManyRequests(APIException):
    """`wait` becomes Retry-After, in seconds."""

    status_code = 429
    default_code = "too_many_requests"

    def __init__(self, wait: int) -> None:
        super().__init__(f"Too many of these; try again in {wait} s.")
        self.wait = wait


def announce(view: Any, verdict: Verdict) -> None:
    """Puts what is left on the answer, whatever that will be."""
    policies = [
        f'"{each.limit.name}";q={each.limit.quota};w={each.limit.window}' for each in verdict.standings
    ]
    left = [f'"{each.limit.name}";r={each.left};t={each.reset}' for each in verdict.standings]
    view.headers |= {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(left)}


def allow(view: Any, *uses: Use) -> None:
    """Counts it; TooManyRequests where it is too much."""
    verdict = throttle.spend(*uses)
    announce(view, verdict)
    if not verdict.granted:
        raise TooManyRequests(verdict.wait)


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
