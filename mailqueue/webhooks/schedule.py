"""When is it tried again? Pure: time and chance are passed in."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_MINUTE, _HOUR = 60, 3600
#: Seconds before the first try, and after each that failed (the schedule that Standard Webhooks recommends).
SCHEDULE = (
    0, 5, 5 * _MINUTE, 30 * _MINUTE, 2 * _HOUR, 5 * _HOUR, 10 * _HOUR, 14 * _HOUR, 20 * _HOUR, 24 * _HOUR,
)  # fmt: skip
#: A wait grows by up to this share of it, so that what failed together does not come together.
JITTER = 0.1
#: A receiver may ask for so much patience, and no more (seconds).
LONGEST_RETRY_AFTER = 24 * _HOUR


def wait_after(tries: int, chance: float, asked: float = 0.0) -> float | None:
    """Seconds until the next try when `tries` have failed, or None after the last. `asked` by the receiver may
    lengthen the wait, and does not shorten it; `chance` is 0 to 1."""
    if tries >= len(SCHEDULE):
        return None
    return max(SCHEDULE[tries] * (1 + JITTER * chance), min(asked, LONGEST_RETRY_AFTER))


def retry_after(header: str, now: datetime) -> float:
    """Seconds that a Retry-After (RFC 9110, 10.2.3: seconds or a date) asks for; 0 where it makes no sense."""
    text = header.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    # A date without a zone is in UTC, as all of HTTP's are.
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds())
