"""POST /task/bulk: the same deed for all that a filter means; nobody else's, and nothing by accident."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.models import User
from tasks import doorbell, submission
from tasks.models import Due, MailTask, Tag
from tasks.states import WAITING, CancelReason, Lane, Status
from tests.factories import MailFactory, UserFactory, client_of

pytestmark = pytest.mark.django_db
BULK = "/api/v1/task/bulk"
EXHAUSTED: dict[str, Any] = {
    "status": Status.CANCELLED,
    "cancel_reason": CancelReason.EXHAUSTED,
    "try_count": 8,
}


def bulk(api: APIClient, action: str, filter_: dict[str, Any], **more: Any) -> Any:
    return api.post(BULK, {"action": action, "filter": filter_} | more, format="json")


def done(answer: Any) -> tuple[int, int]:
    assert answer.status_code == 200, answer.content
    assert answer.json().keys() == {"matched", "changed", "complete"}
    assert answer.json()["complete"]
    return answer.json()["matched"], answer.json()["changed"]


def states() -> list[int]:
    return list(MailTask.objects.order_by("id").values_list("status", flat=True))


def test_all_that_waits_is_cancelled_and_nothing_else(api: APIClient, owner: User) -> None:
    mails = [MailFactory(owner=owner, status=status) for status in Status]
    assert done(bulk(api, "cancel", {"all": True})) == (len(WAITING), len(WAITING))
    assert states() == [Status.CANCELLED if mail.status in WAITING else mail.status for mail in mails]
    assert not Due.objects.exists()
    assert done(bulk(api, "cancel", {"all": True})) == (0, 0)


def test_a_retry_takes_the_failures_and_nothing_that_a_person_decided_or_must(
    api: APIClient, owner: User
) -> None:
    mails = [MailFactory(owner=owner, status=status) for status in Status]  # cancelled by a person
    dead = MailFactory(owner=owner, **EXHAUSTED)
    assert done(bulk(api, "retry", {"all": True})) == (2, 2)
    assert states() == [
        *(Status.QUEUED if mail.status == Status.FAILED else mail.status for mail in mails), Status.QUEUED,
    ]  # fmt: skip
    assert Due.objects.filter(task=dead).exists()


@pytest.mark.parametrize("status", Status)
def test_a_retry_by_status_takes_what_has_it_and_may_be_retried(
    api: APIClient, owner: User, status: Status
) -> None:
    for each in Status:
        MailFactory(owner=owner, status=each)
    expected = int(status in (Status.FAILED, Status.CANCELLED, Status.UNCERTAIN))
    assert done(bulk(api, "retry", {"status": status.label})) == (expected, expected)


def test_the_filters_are_those_of_the_lists(api: APIClient, owner: User) -> None:
    wanted = MailFactory(owner=owner, recipient="jane@example.com", lane=Lane.BULK, subject="Your Invoice")
    Tag.objects.create(task=wanted, position=1, owner=owner, tag="spring")
    MailFactory(owner=owner)
    now = timezone.now()
    filters: list[dict[str, Any]] = [
        {"recipient": "jane@example.com"}, {"lane": "bulk"}, {"q": "invoice"}, {"tag": "spring"},
        {"tag": "spring", "status": "queued", "q": "JANE"},
    ]  # fmt: skip
    for one in filters:
        assert done(bulk(api, "cancel", one, dry_run=True)) == (1, 0), one
    assert done(bulk(api, "cancel", {"created_before": (now + timedelta(1)).isoformat()}, dry_run=True)) == (
        2,
        0,
    )
    assert done(bulk(api, "cancel", {"created_after": (now + timedelta(1)).isoformat()}, dry_run=True)) == (
        0,
        0,
    )
    assert done(bulk(api, "cancel", {"tag": "spring"})) == (1, 1)
    assert states() == [Status.CANCELLED, Status.QUEUED]


def test_nobody_elses_mail_is_touched(api: APIClient) -> None:
    MailFactory(), MailFactory(**EXHAUSTED)
    before = states()
    staff = client_of(UserFactory(is_staff=True))
    for client in (api, staff):
        for action in ("cancel", "retry"):
            assert done(bulk(client, action, {"all": True})) == (0, 0)
    assert states() == before


def test_a_dry_run_counts_and_changes_nothing(api: APIClient, owner: User) -> None:
    MailFactory.create_batch(3, owner=owner)
    assert done(bulk(api, "cancel", {"all": True}, dry_run=True)) == (3, 0)
    assert states() == [Status.QUEUED] * 3


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({"filter": {}}, "filter", "empty_filter"),
        ({"filter": {"all": False}}, "filter", "empty_filter"),
        ({"filter": {"all": True, "lane": "otp"}}, "filter.all", "not_with_others"),
        ({"filter": {"recpient": "jane@example.com"}}, "filter.recpient", "unknown_filter"),
        ({"filter": {"lane": "otp", "ids": [1]}}, "filter.ids", "unknown_filter"),
        ({"filter": {"status": "lost"}}, "filter.status", "invalid_choice"),
        ({"filter": {"status": 0}}, "filter.status", "invalid_choice"),
        ({"filter": {"q": ""}}, "filter.q", "blank"),
        ({"filter": {"created_after": "soon"}}, "filter.created_after", "invalid"),
        ({"filter": None}, "filter", "null"),
        ({"filter": []}, "filter", "invalid"),
        ({}, "filter", "required"),
        ({"filter": {"all": True}, "action": "delete"}, "action", "invalid_choice"),
        ({"filter": {"all": True}, "action": None}, "action", "null"),
        ({"filter": {"all": True}, "dry_run": "perhaps"}, "dry_run", "invalid"),
        ({"filter": {"all": True}, "dry_run": 0}, "dry_run", "invalid"),
        ({"filter": {"all": True}, "dry_run": "off"}, "dry_run", "invalid"),
        ({"filter": {"all": "yes"}}, "filter.all", "invalid"),
        ({"filter": {"all": True}, "dry_run": None}, "dry_run", "null"),
    ],
)
def test_what_is_not_clear_changes_nothing(
    api: APIClient, owner: User, body: dict[str, Any], field: str, code: str
) -> None:
    MailFactory(owner=owner)
    answer = api.post(BULK, {"action": "cancel"} | body, format="json")
    assert answer.status_code == 400, answer.content
    assert [(error["field"], error["code"]) for error in answer.json()["errors"]] == [(field, code)]
    assert states() == [Status.QUEUED]


def test_many_mails_are_changed_in_bites(
    api: APIClient, owner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "BITE", 3)
    MailFactory.create_batch(8, owner=owner)
    bites: list[int] = []

    def counting(tasks: Any) -> int:
        bites.append(tasks.count())
        return submission.cancel(tasks)

    found = submission.in_bulk(MailTask.objects.owned_by(owner).waiting(), counting)
    assert found == (8, 8, True)
    assert bites == [3, 3, 2]


def test_a_call_that_takes_too_long_says_that_there_is_more(
    api: APIClient, owner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "BITE", 2)
    monkeypatch.setattr(submission, "BULK_SECONDS", -1.0)
    MailFactory.create_batch(3, owner=owner)
    first, second, third = (bulk(api, "cancel", {"all": True}).json() for _ in range(3))
    assert first == {"matched": 2, "changed": 2, "complete": False}
    assert second == {"matched": 1, "changed": 1, "complete": True}
    assert third == {"matched": 0, "changed": 0, "complete": True}


def test_what_comes_meanwhile_is_left_alone(owner: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a deed would go on for as long as somebody submits."""
    monkeypatch.setattr(submission, "BITE", 1)
    MailFactory.create_batch(2, owner=owner)

    def cancel_and_submit(tasks: Any) -> int:
        if MailTask.objects.count() < 10:
            MailFactory(owner=owner)
        return submission.cancel(tasks)

    found = submission.in_bulk(MailTask.objects.owned_by(owner).waiting(), cancel_and_submit)
    assert found == (2, 2, True)


def test_what_has_changed_since_it_was_found_is_judged_anew(owner: User) -> None:
    mail = MailFactory(owner=owner, status=Status.FAILED)

    def late(tasks: Any) -> int:
        Due.objects.all().delete()
        MailTask.objects.filter(id=mail.id).update(
            status=Status.UNCERTAIN, has_failed=False, is_uncertain=True
        )
        return submission.retry(tasks)

    assert submission.in_bulk(MailTask.objects.owned_by(owner).failures(), late) == (1, 0, True)


@pytest.mark.django_db(transaction=True)
def test_a_retry_in_bulk_rings() -> None:
    owner = UserFactory()
    MailFactory(owner=owner, **EXHAUSTED)
    assert done(bulk(client_of(owner), "retry", {"all": True})) == (1, 1)
    assert doorbell.client().llen(doorbell.MESSAGES) == 1


def test_without_a_token_there_is_nothing() -> None:
    assert bulk(APIClient(), "cancel", {"all": True}).status_code == 401
