"""The filters of the lists: by time, and by what stands in a mail, also where a page cannot look through all."""

from datetime import timedelta
from itertools import chain
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.models import User
from tasks.api import filters
from tasks.models import MailTask
from tasks.states import CancelReason, Lane, Status
from tests.factories import MailFactory

pytestmark = pytest.mark.django_db
QUEUE, FAIL = "/api/v1/task/queue", "/api/v1/task/queue/fail"


def ids(answer: Any) -> list[int]:
    assert answer.status_code == 200, answer.content
    return [task["task_id"] for task in answer.json()["results"]]


def walk(api: APIClient, page: Any, direction: str = "next") -> tuple[list[list[int]], Any]:
    """The pages from this one on, and the last of them."""
    pages = [ids(page)]
    while (address := page.json()[direction]) is not None:
        page = api.get(address)
        pages.append(ids(page))
        assert len(pages) < 100
    return pages, page


def test_by_the_time_of_acceptance(api: APIClient, owner: User) -> None:
    now = timezone.now()
    mails = [MailFactory(owner=owner, created_at=now - timedelta(days=days)) for days in (9, 6, 3, 0)]

    def found(**query: int) -> list[int]:
        asked = {name: (now - timedelta(days=days)).isoformat() for name, days in query.items()}
        return [[mail.id for mail in mails].index(pk) for pk in ids(api.get(QUEUE, asked))]

    assert found(created_after=4) == [3, 2]
    assert found(created_before=4) == [1, 0]
    assert found(created_after=7, created_before=1) == [2, 1]
    assert found(created_after=6, created_before=3) == [1]  # from, and not to
    assert found(created_after=1, created_before=7) == []
    assert found(created_after=20) == [3, 2, 1, 0]
    assert found(created_before=-1) == [3, 2, 1, 0]


def test_ids_may_differ_from_the_order_of_time_as_clocks_do(api: APIClient, owner: User) -> None:
    now = timezone.now() - timedelta(days=1)
    minutes = (-30, 6, 4, 0, 5, -2, 1, 30)
    mails = [MailFactory(owner=owner, created_at=now + timedelta(minutes=one)) for one in minutes]
    between = {"created_after": now.isoformat(), "created_before": (now + timedelta(minutes=5)).isoformat()}
    assert ids(api.get(QUEUE, between)) == [mails[6].id, mails[3].id, mails[2].id]


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
@pytest.mark.parametrize("name", ["created_after", "created_before"])
def test_both_ends_of_the_calendar_are_times(api: APIClient, owner: User, name: str, at: str) -> None:
    MailFactory(owner=owner)
    assert len(ids(api.get(QUEUE, {name: at}))) == int((name == "created_after") == at.startswith("0"))


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ("invoice", [0, 1]),
        ("INVOICE", [0, 1]),
        ("your inv", [0]),
        ("jane", [2]),
        ("@example.org", [2]),
        ("grüsse", []),
        ("GRÜSSE", []),
        ("grüße", [2]),
        ("GRÜß", [2]),
        ("100%", [3]),
        ("0_o", [3]),
        ("%", [3]),
        ("\\", [3]),
        ("nobody", []),
    ],
)
def test_by_a_part_of_subject_or_recipient(api: APIClient, owner: User, q: str, found: list[int]) -> None:
    mails = [
        MailFactory(owner=owner, subject="Your invoice"),
        MailFactory(owner=owner, subject="hello", recipient="invoices@example.com"),
        MailFactory(owner=owner, subject="Viele Grüße", recipient="Jane@example.org"),
        MailFactory(owner=owner, subject="100% of \\o/ 0_o"),
    ]
    MailFactory(subject="Your invoice")
    assert ids(api.get(QUEUE, {"q": q})) == [mails[index].id for index in reversed(found)]


def test_filters_hold_together_and_for_the_failures_too(api: APIClient, owner: User) -> None:
    wanted = MailFactory(owner=owner, status=Status.FAILED, lane=Lane.BULK, subject="invoice")
    for different in ({"lane": Lane.OTP}, {"subject": "other"}, {"status": Status.QUEUED}):
        MailFactory(
            owner=owner, **({"status": Status.FAILED, "lane": Lane.BULK, "subject": "invoice"} | different)
        )
    asked = {"q": "invoice", "lane": "bulk", "status": "failed"}
    assert ids(api.get(QUEUE, asked)) == ids(api.get(FAIL, asked)) == [wanted.id]


@pytest.mark.parametrize(
    "query",
    [{"q": ""}, {"q": "x" * 201}, {"q": "a\0b"}, {"created_after": "yesterday"}, {"created_before": ""},
     {"status": "lost"}, {"lane": "fast"}],
)  # fmt: skip
@pytest.mark.parametrize("path", [QUEUE, FAIL])
def test_a_bad_filter_is_named(api: APIClient, path: str, query: dict[str, str]) -> None:
    answer = api.get(path, query)
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == list(query)


# Where no index leads to what is asked for ------------------------------------------------------------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page looks through five rows."""
    monkeypatch.setattr(filters, "LOOKED_AT", 5)


#: For each of 23 rows whether it is asked for, the oldest first.
PATTERNS = [
    "..x....................",
    "x......................",
    "......................x",
    ".......................",
    "xxxxxxxxxxxxxxxxxxxxxxx",
    "..x.....xx....x....xxx.",
    "....x....x....x....x...",
    "x....x....x....x....x..",
    ".x....x....x....x....x.",
]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("limit", [1, 2, 50])
@pytest.mark.usefixtures("few")
def test_no_row_is_missed_or_told_twice_in_either_direction(
    api: APIClient, owner: User, pattern: str, limit: int
) -> None:
    mails = [MailFactory(owner=owner, subject={"x": "wanted", ".": "other"}[mark]) for mark in pattern]
    wanted = [mail.id for mail in mails if mail.subject == "wanted"][::-1]
    pages, last = walk(api, api.get(QUEUE, {"q": "wanted", "limit": limit}))
    assert list(chain(*pages)) == wanted
    assert max(map(len, pages)) <= limit
    if last.json()["previous"]:
        back, first = walk(api, api.get(last.json()["previous"]), "previous")
        assert list(chain(*reversed(back))) == wanted[: len(wanted) - len(pages[-1])]
        again = api.get(first.json()["next"]) if first.json()["next"] else None
        rest = walk(api, again)[0] if again else []
        assert [*back[-1], *chain(*rest)] == wanted


@pytest.mark.usefixtures("few")
def test_a_page_may_be_empty_and_still_lead_on(api: APIClient, owner: User) -> None:
    wanted = MailFactory(owner=owner, subject="wanted")
    MailFactory.create_batch(12, owner=owner)
    page = api.get(QUEUE, {"q": "wanted"})
    assert ids(page) == []
    assert walk(api, page)[0] == [[], [], [wanted.id]]


@pytest.mark.parametrize("query", [{"q": "hello"}, {"lane": "otp"}, {"status": "success"}])
@pytest.mark.usefixtures("few")
def test_a_page_looks_through_so_many_rows_and_no_more(
    api: APIClient, owner: User, query: dict[str, str]
) -> None:
    MailFactory.create_batch(7, owner=owner, subject="hello", lane=Lane.OTP, status=Status.SUCCESS)
    assert list(map(len, walk(api, api.get(QUEUE, query))[0])) == [5, 2]


@pytest.mark.parametrize("query", [{}, {"status": "cancelled"}, {"recipient": "jane@example.com"}])
@pytest.mark.usefixtures("few")
def test_what_an_index_leads_to_comes_whole(api: APIClient, owner: User, query: dict[str, str]) -> None:
    MailFactory.create_batch(7, owner=owner, status=Status.CANCELLED, recipient="jane@example.com")
    assert len(ids(api.get(QUEUE, query))) == 7


@pytest.mark.usefixtures("few")
def test_the_failures_are_looked_through_and_not_all_mails(api: APIClient, owner: User) -> None:
    dead = {"status": Status.CANCELLED, "cancel_reason": CancelReason.EXHAUSTED}
    wanted = MailFactory(owner=owner, subject="wanted", **dead)
    MailFactory.create_batch(20, owner=owner)
    assert ids(api.get(FAIL, {"q": "wanted"})) == [wanted.id]
    assert MailTask.objects.count() == 21
