"""When a delivery is tried again: as a table."""

import uuid
from datetime import UTC, datetime

import pytest

from mailqueue.webhooks.deliveries import Claimed
from mailqueue.webhooks.models import State
from mailqueue.webhooks.schedule import SCHEDULE, retry_after, wait_after
from mailqueue.webhooks.sender import result_of
from mailqueue.webhooks.wire import Answer

NOW = datetime(2030, 1, 31, 12, 0, tzinfo=UTC)
HOUR = 3600
DAY = 24 * HOUR
TABLE = [
    (0, 0), (1, 5), (2, 300), (3, 1800), (4, 2 * HOUR), (5, 5 * HOUR), (6, 10 * HOUR), (7, 14 * HOUR),
    (8, 20 * HOUR), (9, DAY), (10, None), (11, None),
]  # fmt: skip


@pytest.mark.parametrize(("tries", "seconds"), TABLE)
def test_each_wait_is_that_of_the_schedule_or_a_tenth_more(tries, seconds):
    assert wait_after(tries, 0.0) == seconds
    assert wait_after(tries, 1.0) == (None if seconds is None else pytest.approx(seconds * 1.1))


def test_there_are_ten_tries_over_three_days():
    assert len(SCHEDULE) == 10
    assert sum(SCHEDULE) == pytest.approx(75.6 * HOUR, rel=0.001)


@pytest.mark.parametrize(
    ("tries", "asked", "seconds"),
    [(1, 60, 60), (2, 60, 300), (1, 100 * HOUR, DAY), (9, HOUR, DAY), (10, 60, None), (1, 0, 5)],
)
def test_what_the_receiver_asks_for_lengthens_the_wait_and_never_shortens_it(tries, asked, seconds):
    assert wait_after(tries, 0.0, asked) == seconds


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120),
        (" 7 ", 7),
        ("0", 0),
        ("Thu, 31 Jan 2030 12:01:00 GMT", 60),
        ("Thu, 31 Jan 2030 11:59:00 GMT", 0),
        ("Thursday, 31-Jan-30 12:02:00 GMT", 120),
        ("", 0),
        ("soon", 0),
        ("-5", 0),
        ("1.5", 0),
        ("9" * 5000, 999_999_999),
        ("٣", 0),
        ("Thu, 31 Jan 99999 12:01:00 GMT", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(header, seconds):
    assert retry_after(header, NOW) == seconds


def result(answer: Answer, tries: int = 0):
    claimed = Claimed(1, uuid.uuid4(), 1, "https://example.com", "m", "{}", tries, [])
    return result_of(claimed, answer, 0.0)


@pytest.mark.parametrize("code", [200, 201, 204, 299])
def test_any_2xx_is_delivered(code):
    assert result(Answer(code, "", 0.1))[1:4] == (State.DELIVERED, None, code)


@pytest.mark.parametrize("code", [None, 100, 301, 308, 400, 401, 404, 429, 500, 503])
def test_all_else_is_tried_again(code):
    assert result(Answer(code, "no", 0.1))[1:3] == (State.PENDING, 5)


def test_gone_is_not_tried_again():
    told = result(Answer(410, "HTTP 410", 0.1))
    assert (told.state, told.wait, told.is_gone) == (State.FAILED, None, True)


def test_after_the_tenth_try_it_has_failed():
    assert result(Answer(500, "no", 0.1), tries=8).state == State.PENDING
    assert result(Answer(500, "no", 0.1), tries=9)[1:3] == (State.FAILED, None)
