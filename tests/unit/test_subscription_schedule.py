"""When subscriptions are due: cron lines in their zones, also on the days on which the clock changes, and windows."""

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest

from mailqueue.subscriptions import schedule
from mailqueue.subscriptions.schedule import BadScheduleError, Schedule

#: Both days of change: an hour in the north, an hour in the west, half an hour in the south; and none at all.
ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "UTC"]
BEGIN, END = datetime(2030, 1, 1, tzinfo=UTC), datetime(2031, 1, 1, tzinfo=UTC)
#: Days before the clocks change in one of them.
CHANGES = [(3, 9), (3, 30), (4, 6), (10, 5), (10, 26), (11, 2)]
QUARTER = timedelta(minutes=15)


def walk(plan: Schedule, begin: datetime = BEGIN, end: datetime = END) -> list[datetime]:
    found, at = [], begin - timedelta(seconds=1)
    while (at := schedule.following(plan, at)) < end:
        found.append(at)
    return found


def days(zone: str) -> list[date]:
    """Those that begin in the year, by the zone's calendar, and one more at both ends."""
    first = BEGIN.date() - timedelta(days=1)
    return [first + timedelta(days=n) for n in range(368)]


def on_the_wall(day: date, clock: time, zone: str) -> datetime:
    """The first moment of the day at which a clock on the wall has come as far as this."""
    begin = datetime.combine(day, time(), ZoneInfo(zone)).astimezone(UTC)
    for at in (begin + n * QUARTER for n in range(26 * 4)):
        local = at.astimezone(ZoneInfo(zone))
        if local.date() == day and local.time() >= clock:
            return at
    raise AssertionError


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("clock", [time(0), time(1, 45), time(2), time(2, 30), time(3), time(12)])
def test_a_time_of_the_day_comes_once_on_each_day_of_the_year(zone, clock):
    plan = Schedule(f"{clock.minute} {clock.hour} * * *", zone)
    expected = [on_the_wall(day, clock, zone) for day in days(zone)]
    assert walk(plan) == [at for at in expected if BEGIN <= at < END]


@pytest.mark.parametrize("zone", ZONES)
def test_each_full_hour_that_passes_comes_once(zone):
    quarters = [BEGIN + n * QUARTER for n in range(int((END - BEGIN) / QUARTER))]
    full = [at for at in quarters if at.astimezone(ZoneInfo(zone)).minute == 0]
    assert walk(Schedule("@hourly", zone)) == full


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize(
    ("word", "count", "is_one"),
    [
        ("@daily", 365, lambda at: True),
        ("@weekly", 52, lambda at: at.isoweekday() == 7),
        ("@monthly", 12, lambda at: at.day == 1),
    ],
)
def test_words_mean_midnight_of_the_zone(zone, word, count, is_one):
    local = [at.astimezone(ZoneInfo(zone)) for at in walk(Schedule(word, zone))]
    assert count - 1 <= len(local) <= count + 1
    assert all(is_one(at) for at in local)
    assert {at.time() for at in local} == {time(0)}
    assert len({at.date() for at in local}) == len(local)


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("window", ["", "08:00-18:00", "22:00-06:00", "02:15-02:45"])
@pytest.mark.parametrize("line", ["@hourly", "@daily", "*/20 1-3 * * *", "30 2 * * SUN"])
def test_whoever_asks_at_whatever_time_hears_of_the_same_ones(zone, window, line):
    plan = Schedule(line, zone, window)
    # Around both changes in all the zones.
    for begin in (datetime(2030, *day, tzinfo=UTC) for day in CHANGES):
        end = begin + timedelta(days=3)
        walked = walk(plan, begin, end)
        asked = {
            schedule.following(plan, begin + n * timedelta(minutes=7)) for n in range(int(3 * 24 * 60 / 7))
        }
        assert walked == sorted(set(walked))
        assert {at for at in asked if at < end} <= set(walked)


def test_a_window_puts_off_until_it_opens_and_what_waits_is_one():
    day = walk(Schedule("@hourly", "Europe/Berlin", "08:00-18:00"), end=BEGIN + timedelta(days=1))
    hours = [at.astimezone(ZoneInfo("Europe/Berlin")).hour for at in day]
    assert hours == [8, 9, 10, 11, 12, 13, 14, 15, 16, 17]
    (night,) = walk(Schedule("0 12 * * *", "UTC", "22:00-06:00"), end=BEGIN + timedelta(days=1))
    assert night == BEGIN.replace(hour=22)


def test_what_fell_into_the_closed_time_still_comes():
    plan = Schedule("@daily", "UTC", "08:00-18:00")
    assert schedule.following(plan, BEGIN.replace(hour=3)) == BEGIN.replace(hour=8)
    assert schedule.following(plan, BEGIN.replace(hour=8)) == BEGIN.replace(day=2, hour=8)


@pytest.mark.parametrize("line", ["* * * * *", "@hourly", "@daily", "@monthly", "0 0 29 2 *"])
@pytest.mark.parametrize("back", [timedelta(0), timedelta(hours=3), timedelta(days=40), timedelta(days=400)])
def test_of_those_that_were_missed_the_last_is_found(line, back):
    plan, now = Schedule(line, "Europe/Berlin"), datetime(2034, 7, 15, 12, 30, 20, tzinfo=UTC)
    first = schedule.following(plan, now - back)
    if first > now:
        return
    last, after = schedule.due(plan, first, now)
    assert last <= now < after
    assert schedule.following(plan, last) == after
    assert last == first or last == max(
        at for at in walk(plan, max(first, last - timedelta(days=2)), now) if at <= now
    )


@pytest.mark.parametrize(
    ("plan", "field", "code"),
    [
        (Schedule("@daily", "Europe/Atlantis"), "timezone", "unknown_timezone"),
        (Schedule("@daily", "../etc/passwd"), "timezone", "unknown_timezone"),
        (Schedule("@daily", ""), "timezone", "unknown_timezone"),
        *[
            (Schedule(line), "cron", "invalid_cron")
            for line in [
                "",
                "@yearly",
                "* * * *",
                "* * * * * *",
                "60 * * * *",
                "0 24 * * *",
                "0 0 0 * *",
                "x * * * *",
                "0 0 30 2 *",
                "0 0 * * 8",
                "*/0 * * * *",
                "1-0 * * * *",
                "0 0 L-1 * *",
                "0 0 */L * *",
                "0 0 * * MON#6",
                "0 0 * * L/2",
                "5/MON#1 * * * *",
                "0 0 * * 1#1-2",
                "0 0 * * 1L/2",
                "0 0 1L-3 * *",
                "٣ * * * *",
                "1" * 101 + " * * * *",
            ]
        ],
        *[
            (Schedule("@daily", "UTC", window), "window", "invalid_window")
            for window in ["8-18", "08:00", "08:00-08:00", "08:00-24:00", "08:60-09:00", "08:00-18:00 "]
        ],
    ],
)
def test_what_makes_no_sense_is_named(plan, field, code):
    with pytest.raises(BadScheduleError) as caught:
        schedule.check(plan, BEGIN)
    assert (caught.value.field, caught.value.code) == (field, code)
    assert str(caught.value)


@pytest.mark.parametrize("line", ["30 8 * * MON-FRI", "0 0 L * *", "0 9 * * 1#1", "*/15 9-17 1,15 JAN-JUN *"])
def test_what_makes_sense_is_taken(line):
    schedule.check(Schedule(line, "America/New_York", "22:00-06:00"), BEGIN)
