"""PATCH /task/{id}: a scheduled mail gets another time, in both tables, or the answer says why not."""

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.models import User
from tasks import doorbell, ledger
from tasks.models import Due, MailTask
from tasks.states import Status
from tests.factories import MailFactory, UserFactory, claim_one, client_of, make_due

pytestmark = pytest.mark.django_db
HOUR = timedelta(hours=1)


def scheduled(owner: User, **changes: Any) -> MailTask:
    at = timezone.now() + HOUR
    mail: MailTask = MailFactory(
        owner=owner, status=Status.SCHEDULED, **({"scheduled_at": at, "due_at": at} | changes)
    )
    return mail


def patch(api: APIClient, mail: MailTask, at: Any) -> Any:
    at = at.isoformat() if isinstance(at, datetime) else at
    body = json.dumps({"scheduled_at": at})
    return api.patch(f"/api/v1/task/{mail.pk}", body, content_type="application/json")


def assert_problem(answer: Any, status: int, code: str) -> None:
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    assert answer.json()["code"] == code or answer.json()["errors"][0]["code"] == code


@pytest.mark.parametrize("by", [timedelta(minutes=5), timedelta(days=300)])
def test_a_scheduled_mail_gets_another_time(api: APIClient, owner: User, by: timedelta) -> None:
    mail, at = scheduled(owner), timezone.now() + by
    answer = patch(api, mail, at)
    assert answer.status_code == 200
    task = answer.json()
    shown = at.isoformat().replace("+00:00", "Z")
    assert (task["status"], task["scheduled_at"], task["next_attempt_at"]) == ("scheduled", shown, shown)
    assert task["waiting"]["until"] == shown
    ticket = Due.objects.get()
    assert (ticket.task_id, ticket.owner_id, ticket.lane) == (mail.pk, owner.pk, mail.lane)
    assert ticket.due_at == MailTask.objects.get().due_at == at


def test_the_ticket_keeps_its_expiry(api: APIClient, owner: User) -> None:
    end = timezone.now() + 3 * HOUR
    patch(api, scheduled(owner, expires_at=end), timezone.now() + 2 * HOUR)
    assert Due.objects.get().expires_at == end


@pytest.mark.django_db(transaction=True)
def test_a_time_in_the_past_sends_it_at_once() -> None:
    owner = UserFactory()
    mail = scheduled(owner)
    answer = patch(client_of(owner), mail, timezone.now() - HOUR)
    assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    assert doorbell.client().llen(doorbell.MESSAGES) == 1
    assert claim_one().id == mail.pk


@pytest.mark.django_db(transaction=True)
def test_a_mail_put_off_is_not_claimed_and_rings_nobody() -> None:
    owner = UserFactory()
    mail = scheduled(owner)
    make_due()  # its time has come, and nobody has taken it yet
    assert ledger.is_anything_due()
    assert patch(client_of(owner), mail, timezone.now() + HOUR).status_code == 200
    assert not ledger.is_anything_due()
    assert doorbell.client().llen(doorbell.MESSAGES) == 0


@pytest.mark.parametrize("status", [status for status in Status if status != Status.SCHEDULED])
def test_what_is_not_scheduled_keeps_its_time(api: APIClient, owner: User, status: Status) -> None:
    mail = MailFactory(owner=owner, status=status)
    answer = patch(api, mail, timezone.now() + HOUR)
    assert_problem(answer, 409, "not_scheduled")
    assert answer.json()["detail"]
    after = MailTask.objects.get()
    assert (after.status, after.due_at, after.scheduled_at) == (status, mail.due_at, mail.scheduled_at)


@pytest.mark.parametrize("expires_in", [HOUR, -HOUR])
@pytest.mark.parametrize("at_in", [2 * HOUR, HOUR, -2 * HOUR])
def test_it_must_not_expire_before_its_time(
    api: APIClient, owner: User, expires_in: timedelta, at_in: timedelta
) -> None:
    now = timezone.now()
    mail = scheduled(owner, expires_at=now + expires_in)
    answer = patch(api, mail, now + at_in)
    if at_in < expires_in and now < now + expires_in:
        assert answer.status_code == 200
        return
    assert_problem(answer, 400, "after_expires_at")
    assert [error["field"] for error in answer.json()["errors"]] == ["scheduled_at"]
    assert MailTask.objects.get().due_at == Due.objects.get().due_at == mail.due_at


@pytest.mark.parametrize("at", [None, "", "tomorrow", 7, [], "2099-13-01T00:00:00Z"])
def test_what_is_no_time_is_named(api: APIClient, owner: User, at: Any) -> None:
    answer = patch(api, scheduled(owner), at)
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == ["scheduled_at"]


def test_the_time_must_be_given(api: APIClient, owner: User) -> None:
    answer = api.patch(f"/api/v1/task/{scheduled(owner).pk}", {}, format="json")
    assert [error["code"] for error in answer.json()["errors"]] == ["required"]


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_both_ends_of_the_calendar_are_times(api: APIClient, owner: User, at: str) -> None:
    assert patch(api, scheduled(owner), at).status_code == 200


def test_somebody_elses_mail_is_like_a_missing_one(api: APIClient) -> None:
    foreign = scheduled(UserFactory())
    for client in (api, client_of(UserFactory(is_staff=True))):
        assert_problem(patch(client, foreign, timezone.now()), 404, "not_found")
    assert patch(APIClient(), foreign, timezone.now()).status_code == 401
    assert MailTask.objects.get().due_at == foreign.due_at
