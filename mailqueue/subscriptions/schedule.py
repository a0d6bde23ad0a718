"""When is the next one due? Pure: the time is passed in, aware, and comes back in UTC.

Cron lines are read as Debian's cron does. On the day on which the clock goes forward, what falls into the hour that
is missing comes right after it; on the day on which it goes back, a fixed time comes once, the first time, and `*`
hours come in each hour that passes.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

#: The words that stand for a cron line, with the meaning that cron gives them.
FREQUENCIES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
}
LONGEST_CRON = 100
#: Where to look for the last one before now: the nearest of these that finds any saves a walk of years.
_BACK = (timedelta(hours=1), timedelta(days=1), timedelta(days=8), timedelta(days=32))
_A_SECOND, _A_MINUTE, _A_DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)
_WINDOW = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")


class BadScheduleError(Exception):
    """A cron line, zone or window that makes no sense; says which, and why."""

    def __init__(self, field: str, complaint: str, code: str) -> None:
        super().__init__(complaint)
        self.field, self.code = field, code


class Schedule(NamedTuple):
    """`line` is one of FREQUENCIES or a cron line of five fields; `window` such as 08:00-18:00, or empty."""

    line: str
    zone: str = "UTC"
    window: str = ""


@lru_cache(maxsize=1)
def zones() -> frozenset[str]:
    return frozenset(available_timezones())


def check(schedule: Schedule, now: datetime) -> None:
    """BadScheduleError, also for what never comes."""
    if schedule.zone not in zones():
        raise BadScheduleError(
            "timezone", "Must be a zone of the IANA database, such as Europe/Berlin.", "unknown_timezone"
        )
    if schedule.window:
        _window(schedule.window)
    if schedule.line in FREQUENCIES:
        return
    complaint = "Must be a cron line of five fields, such as 30 8 * * MON-FRI."
    if len(schedule.line) > LONGEST_CRON or len(schedule.line.split()) != 5:
        raise BadScheduleError("cron", complaint, "invalid_cron")
    try:
        following(schedule, now)
    except (CronSimError, OverflowError, AssertionError, TypeError, ValueError) as error:
        raise BadScheduleError("cron", f"{complaint} {error}".strip(), "invalid_cron") from error


def _window(text: str) -> tuple[time, time]:
    found = _WINDOW.fullmatch(text)
    if found is None or found[0][:5] == found[0][6:]:
        raise BadScheduleError(
            "window", "Must be two different times, such as 08:00-18:00.", "invalid_window"
        )
    return time(int(found[1]), int(found[2])), time(int(found[3]), int(found[4]))


@lru_cache(maxsize=4096)
def following(schedule: Schedule, after: datetime) -> datetime:
    """The first one after this time."""
    for at in _lines(schedule, _last_closing(schedule, after)):
        if (shifted := within_window(schedule, at)) > after:
            return shifted
    raise BadScheduleError("cron", "It never comes.", "invalid_cron")


def next_times(schedule: Schedule, after: datetime, count: int) -> list[datetime]:
    found: list[datetime] = []
    for _ in range(count):
        after = following(schedule, after)
        found.append(after)
    return found


@lru_cache(maxsize=4096)
def due(schedule: Schedule, first: datetime, now: datetime) -> tuple[datetime, datetime]:
    """Of those from `first` (which is one) to `now`, the last; and the first one after now."""
    last = first
    for back in _BACK:
        if now - back <= first:
            break
        if (nearer := following(schedule, now - back)) <= now:
            last = nearer
            break
    while (after := following(schedule, last)) <= now:
        last = after
    return last, after


def within_window(schedule: Schedule, at: datetime) -> datetime:
    """The same time; where the window is closed then, when it opens next."""
    if not schedule.window:
        return at
    opens, closes = _window(schedule.window)
    local = at.astimezone(ZoneInfo(schedule.zone))
    if _is_open(local.time(), opens, closes):
        return at
    day = local.date() if local.time() < opens else local.date() + _A_DAY
    return _at(datetime.combine(day, opens), schedule.zone)


def _last_closing(schedule: Schedule, after: datetime) -> datetime:
    """From where to look for what comes after this time: what fell into the closed time before it may still come."""
    if not schedule.window:
        return after
    opens, closes = _window(schedule.window)
    local = after.astimezone(ZoneInfo(schedule.zone))
    if _is_open(local.time(), opens, closes):
        return after
    day = local.date() if local.time() >= closes else local.date() - _A_DAY
    return _at(datetime.combine(day, closes), schedule.zone) - _A_SECOND


def _is_open(clock: time, opens: time, closes: time) -> bool:
    return opens <= clock < closes if opens < closes else not closes <= clock < opens


def _at(local: datetime, zone: str) -> datetime:
    """This time of a clock on the wall, in UTC; where the clock leaves it out, the end of what it leaves out."""
    while True:
        at = local.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
        if at.astimezone(ZoneInfo(zone)).replace(tzinfo=None) == local:
            return at
        local += _A_MINUTE


def _lines(schedule: Schedule, after: datetime) -> Iterator[datetime]:
    """What the cron line says, beginning after this time or a little before, in UTC."""
    line = FREQUENCIES.get(schedule.line, schedule.line)
    for at in CronSim(line, after.astimezone(ZoneInfo(schedule.zone))):
        yield at.astimezone(UTC)
