"""What owners see of their tasks, and what they may do with them; nobody sees another's."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.models import AccountState, SmtpAccount, User
from tasks.models import Attempt, MailTask
from tasks.states import WAITING, CancelReason, Lane, Outcome, Phase, Status
from tests.factories import MailFactory, UserFactory, client_of

pytestmark = pytest.mark.django_db
QUEUE, FAIL = "/api/v1/task/queue", "/api/v1/task/queue/fail"


def ids(answer: Any) -> list[int]:
    assert answer.status_code == 200, answer.content
    return [task["task_id"] for task in answer.json()["results"]]


def assert_problem(answer: Any, status: int, code: str | None = None) -> None:
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    assert answer.json()["status"] == status
    if code:
        assert answer.json()["code"] == code


# Lists ----------------------------------------------------------------------------------------------


def test_the_newest_come_first_and_only_ones_own(api: APIClient, owner: User) -> None:
    mails = [MailFactory(owner=owner) for _ in range(3)]
    MailFactory()
    assert ids(api.get(QUEUE)) == [mail.id for mail in reversed(mails)]


def test_pages_follow_one_another_without_a_gap(api: APIClient, owner: User) -> None:
    mails = [MailFactory(owner=owner) for _ in range(7)]
    seen: list[int] = []
    page = api.get(QUEUE, {"limit": 3})
    assert page.json()["previous"] is None
    while True:
        seen += ids(page)
        MailFactory(owner=owner)  # what arrives meanwhile moves nothing
        if page.json()["next"] is None:
            break
        page = api.get(page.json()["next"])
    assert seen == [mail.id for mail in reversed(mails)]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"status": "queued"}, [0]),
        ({"status": "cancelled"}, [1]),
        ({"lane": "otp"}, [1]),
        ({"recipient": "jane@example.com"}, [2]),
        ({"recipient": "jane@example.com", "status": "success"}, [2]),
        ({"recipient": "jane@example.com", "status": "queued"}, []),
        ({}, [2, 1, 0]),
    ],
)
def test_lists_are_filtered(api: APIClient, owner: User, query: dict[str, str], found: list[int]) -> None:
    mails = [
        MailFactory(owner=owner),
        MailFactory(owner=owner, status=Status.CANCELLED, lane=Lane.OTP),
        MailFactory(owner=owner, status=Status.SUCCESS, recipient="jane@example.com"),
    ]
    assert ids(api.get(QUEUE, query)) == [mails[index].id for index in found]


@pytest.mark.parametrize(
    "query",
    [{"status": "lost"}, {"status": "0"}, {"lane": "fast"}, {"recipient": "jane"}, {"limit": "x"}, {"limit": "0"},
     {"cursor": "nonsense"}, {"recipient": "a\0@b.c"}],
)  # fmt: skip
def test_a_bad_filter_is_named(api: APIClient, query: dict[str, str]) -> None:
    answer = api.get(QUEUE, query)
    assert_problem(answer, 400)
    assert [error["field"] for error in answer.json()["errors"]] == list(query)


def test_the_failures_are_what_failed_and_nothing_else(api: APIClient, owner: User) -> None:
    failed = [
        MailFactory(owner=owner, status=Status.FAILED),
        MailFactory(owner=owner, status=Status.CANCELLED, cancel_reason=CancelReason.EXHAUSTED, try_count=8),
        MailFactory(owner=owner, status=Status.CANCELLED, cancel_reason=CancelReason.REJECTED, try_count=1),
        MailFactory(owner=owner, status=Status.CANCELLED, cancel_reason=CancelReason.EXPIRED, try_count=2),
    ]
    MailFactory(owner=owner, status=Status.CANCELLED, cancel_reason=CancelReason.EXPIRED, try_count=0)
    MailFactory(owner=owner, status=Status.CANCELLED, cancel_reason=CancelReason.USER)
    for status in (Status.QUEUED, Status.PROCESSING, Status.SUCCESS, Status.SCHEDULED):
        MailFactory(owner=owner, status=status)
    MailFactory(status=Status.FAILED)
    assert ids(api.get(FAIL)) == [mail.id for mail in reversed(failed)]


def test_a_list_costs_the_same_few_queries_however_long(
    api: APIClient, owner: User, django_assert_max_num_queries: Any
) -> None:
    MailFactory.create_batch(40, owner=owner)
    with django_assert_max_num_queries(4):
        assert len(ids(api.get(QUEUE))) == 40


# One task -------------------------------------------------------------------------------------------


def test_a_task_tells_everything(api: APIClient, owner: User) -> None:
    mail = MailFactory(owner=owner, status=Status.FAILED, due_at=timezone.now() + timedelta(minutes=5))
    at = timezone.now()
    Attempt.objects.create(
        task=mail, number=1, at=at, outcome=Outcome.TEMPORARY, phase=Phase.RCPT, code=451,
        reply="451 4.3.0 later", duration_ms=12, worker="host:1",
    )  # fmt: skip
    task = api.get(f"/api/v1/task/{mail.id}").json()
    assert (task["status"], task["try_count"], task["max_tries"]) == ("failed", 1, 8)
    assert task["recipient_email"] == mail.recipient
    for name in (
        "created_at",
        "scheduled_at",
        "started_at",
        "finished_at",
        "next_attempt_at",
        "cancel_reason",
    ):
        assert name in task
    assert task["next_attempt_at"].startswith(mail.due_at.isoformat()[:19])
    assert task["waiting"].keys() == {"reason", "until", "detail", "tries_left"}
    assert (task["waiting"]["reason"], task["waiting"]["tries_left"]) == ("retry", 7)
    (attempt,) = task["attempts"]
    assert attempt.pop("at").startswith(at.isoformat()[:19])
    assert attempt == {
        "number": 1, "outcome": "temporary", "phase": "rcpt", "code": 451, "reply": "451 4.3.0 later",
        "duration_ms": 12, "worker": "host:1",
    }  # fmt: skip


def test_a_lost_attempt_has_no_phase(api: APIClient, owner: User) -> None:
    mail = MailFactory(owner=owner)
    Attempt.objects.create(task=mail, number=1, at=timezone.now(), outcome=Outcome.LOST)
    (attempt,) = api.get(f"/api/v1/task/{mail.id}").json()["attempts"]
    assert (attempt["outcome"], attempt["phase"], attempt["code"]) == ("lost", None, None)


@pytest.mark.parametrize("reason", CancelReason)
def test_a_cancelled_task_says_why(api: APIClient, owner: User, reason: CancelReason) -> None:
    mail = MailFactory(owner=owner, status=Status.CANCELLED, cancel_reason=reason)
    task = api.get(f"/api/v1/task/{mail.id}").json()
    assert (task["status"], task["cancel_reason"], task["waiting"]) == ("cancelled", reason.label, None)


def test_a_task_of_a_paused_account_says_so(api: APIClient, owner: User) -> None:
    mail = MailFactory(owner=owner)
    until = timezone.now() + timedelta(hours=1)
    SmtpAccount.objects.filter(owner=owner).update(
        state=AccountState.PAUSED, reason="535 no", paused_until=until
    )
    task = api.get(f"/api/v1/task/{mail.id}").json()
    assert task["waiting"]["reason"] == "account_paused"
    assert "535 no" in task["waiting"]["detail"]
    assert task["next_attempt_at"].startswith(until.isoformat()[:19])


@pytest.mark.parametrize("status", Status)
def test_next_attempt_at_is_known_while_it_waits(api: APIClient, owner: User, status: Status) -> None:
    mail = MailFactory(owner=owner, status=status)
    assert (api.get(f"/api/v1/task/{mail.id}").json()["next_attempt_at"] is not None) == (status in WAITING)


# Nobody else's --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), [("get", ""), ("post", "/cancel"), ("post", "/retry")])
def test_somebody_elses_task_is_like_a_missing_one(api: APIClient, method: str, path: str) -> None:
    foreign = MailFactory(status=Status.FAILED)
    staff = client_of(UserFactory(is_staff=True))
    missing = getattr(api, method)(f"/api/v1/task/{foreign.id + 1000}{path}")
    for client in (api, staff):
        answer = getattr(client, method)(f"/api/v1/task/{foreign.id}{path}")
        assert_problem(answer, 404)
        assert answer.json() == missing.json()
    foreign.refresh_from_db()
    assert foreign.status == Status.FAILED


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("get", "queue"),
        ("get", "queue/fail"),
        ("get", "1"),
        ("post", "1/cancel"),
        ("post", "1/retry"),
        ("post", "1/resolve"),
    ],
)
def test_without_a_token_there_is_nothing(method: str, path: str) -> None:
    assert_problem(getattr(APIClient(), method)(f"/api/v1/task/{path}"), 401)


@pytest.mark.parametrize("pk", ["0", "999999999999999999999999", "9223372036854775807", "nobody", "-1"])
def test_an_id_that_cannot_be_is_a_missing_one(api: APIClient, pk: str) -> None:
    assert_problem(api.get(f"/api/v1/task/{pk}"), 404)


# Deeds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", Status)
def test_cancel(api: APIClient, owner: User, status: Status) -> None:
    mail = MailFactory(owner=owner, status=status)
    answer = api.post(f"/api/v1/task/{mail.id}/cancel")
    if status in WAITING:
        assert answer.status_code == 200
        assert (answer.json()["status"], answer.json()["cancel_reason"]) == ("cancelled", "user")
    else:
        assert_problem(answer, 409, "not_cancellable")
        assert answer.json()["detail"]
        assert MailTask.objects.get().status == status


@pytest.mark.parametrize("status", Status)
def test_retry(api: APIClient, owner: User, status: Status) -> None:
    mail = MailFactory(owner=owner, status=status)
    answer = api.post(f"/api/v1/task/{mail.id}/retry")
    if status in (Status.FAILED, Status.CANCELLED, Status.UNCERTAIN):
        assert answer.status_code == 200
        assert (answer.json()["status"], answer.json()["try_count"]) == ("queued", 0)
    else:
        assert_problem(answer, 409, "not_retryable")
        assert MailTask.objects.get().status == status


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("action", ["accept", "retry"])
def test_resolve(api: APIClient, owner: User, status: Status, action: str) -> None:
    mail = MailFactory(owner=owner, status=status)
    answer = api.post(f"/api/v1/task/{mail.id}/resolve", {"action": action}, format="json")
    if status != Status.UNCERTAIN:
        assert_problem(answer, 409, "not_uncertain")
        assert MailTask.objects.get().status == status
        return
    assert answer.status_code == 200
    task = answer.json()
    if action == "accept":
        assert (task["status"], task["waiting"], task["try_count"]) == ("success", None, 1)
        assert task["finished_at"]
    else:
        assert (task["status"], task["finished_at"], task["try_count"]) == ("queued", None, 0)


@pytest.mark.parametrize("body", [{}, {"action": "forget"}, {"action": None}, {"action": ["accept"]}])
def test_a_resolution_that_is_none_is_named(api: APIClient, owner: User, body: dict[str, Any]) -> None:
    mail = MailFactory(owner=owner, status=Status.UNCERTAIN)
    answer = api.post(f"/api/v1/task/{mail.id}/resolve", body, format="json")
    assert_problem(answer, 400)
    assert [error["field"] for error in answer.json()["errors"]] == ["action"]
    assert MailTask.objects.get().status == Status.UNCERTAIN


def test_nobody_resolves_anothers_mail(api: APIClient) -> None:
    foreign = MailFactory(status=Status.UNCERTAIN)
    for client in (api, client_of(UserFactory(is_staff=True))):
        for action in ("accept", "retry"):
            answer = client.post(f"/api/v1/task/{foreign.id}/resolve", {"action": action}, format="json")
            assert_problem(answer, 404)
    assert MailTask.objects.get().status == Status.UNCERTAIN


def test_closing_the_account_cancels_what_waits(api: APIClient, owner: User) -> None:
    mail = MailFactory(owner=owner)
    assert api.delete(f"/api/v1/user/{owner.pk}").status_code == 204
    mail.refresh_from_db()
    assert (mail.status, mail.cancel_reason) == (Status.CANCELLED, CancelReason.ACCOUNT_CLOSED)
