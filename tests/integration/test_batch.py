"""POST /enqueue/batch: the good ones go, the bad ones are named, all in the order they came in."""

import json
from datetime import timedelta
from email import message_from_bytes, policy
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.models import User
from tasks import doorbell, ledger
from tasks.models import Due, MailContent, MailTask, Tag
from tasks.states import Lane, OnUncertain, Status
from tests.factories import UserFactory, claim_one, client_of, make_due

pytestmark = pytest.mark.django_db
BATCH, ENQUEUE = "/api/v1/task/enqueue/batch", "/api/v1/task/enqueue"
A_MAIL = {"recipient_email": "jane@example.com", "subject": "hello", "body": "Hello."}


@pytest.fixture
def owner() -> User:
    user: User = UserFactory(email="ada@example.com")
    return user


def send(api: APIClient, messages: Any, **headers: str) -> Any:
    return api.post(
        BATCH, json.dumps({"messages": messages}), content_type="application/json", headers=headers
    )


def results(api: APIClient, messages: Any) -> list[dict[str, Any]]:
    answer = send(api, messages)
    assert answer.status_code == 207, answer.content
    found: list[dict[str, Any]] = answer.json()["results"]
    return found


def test_each_mail_is_kept_in_the_order_of_the_messages(api: APIClient, owner: User) -> None:
    given = [A_MAIL | {"recipient_email": f"reader{number}@example.com"} for number in range(1000)]
    found = results(api, given)
    tasks = {task.pk: task for task in MailTask.objects.select_related("content")}
    assert [tasks[one["task_id"]].recipient for one in found] == [one["recipient_email"] for one in given]
    assert {(task.owner_id, task.status, task.sender) for task in tasks.values()} == {
        (owner.pk, Status.QUEUED, "ada@example.com")
    }
    assert {one["status"] for one in found} == {"queued"}
    assert len({task.message_id for task in tasks.values()}) == 1000
    for task in tasks.values():
        parsed = message_from_bytes(bytes(task.content.raw), policy=policy.default)
        assert (parsed["To"], parsed["Message-ID"]) == (task.recipient, task.message_id)
    assert set(Due.objects.values_list("task_id", flat=True)) == tasks.keys()
    assert [one["task_id"] for one in found] == sorted(tasks)


def test_the_good_ones_go_and_the_bad_ones_are_named(api: APIClient) -> None:
    at = timezone.now() + timedelta(hours=1)
    later = at.isoformat()
    found = results(
        api,
        [
            A_MAIL,
            A_MAIL | {"recipient_email": "jane", "max_tries": 0},
            {},
            7,
            None,
            [A_MAIL],
            A_MAIL | {"scheduled_at": later},
            A_MAIL | {"attachments": [{"filename": "a/b", "content": "AAAA"}]},
        ],
    )
    assert ["task_id" in one for one in found] == [True, False, False, False, False, False, True, False]
    assert (found[0]["status"], found[6]["status"]) == ("queued", "scheduled")
    for_later = MailTask.objects.get(id=found[6]["task_id"])
    assert for_later.due_at == for_later.scheduled_at == for_later.due.due_at == at
    errors = [one["error"] for one in found if "error" in one]
    assert all(one.keys() == {"code", "detail", "errors"} and one["detail"] for one in errors)
    assert {each["field"] for each in errors[0]["errors"]} == {"recipient_email", "max_tries"}
    assert {each["field"] for each in errors[1]["errors"]} == {"recipient_email", "subject", "body"}
    assert [each["field"] for each in errors[5]["errors"]] == ["attachments.0.filename"]
    assert MailTask.objects.count() == 2


@pytest.mark.parametrize(
    "text",
    ["a\0b", "\ud800", {"a": "\0"}, json.loads("[" * 40 + "]" * 40)],
    ids=["NUL", "half", "key", "deep"],
)
def test_what_cannot_be_stored_spoils_only_its_own_message(api: APIClient, text: Any) -> None:
    found = results(api, [A_MAIL, A_MAIL | {"metadata": {"key": text}}, A_MAIL | {"subject": text}, A_MAIL])
    assert [one.get("error", {}).get("code") for one in found] == [None, "invalid", "invalid", None]
    assert MailTask.objects.count() == 2


def test_a_message_takes_all_that_a_single_mail_takes(api: APIClient) -> None:
    expires_at = timezone.now() + timedelta(days=1)
    everything = A_MAIL | {
        "html_body": "<b>hi</b>",
        "from_name": "Ada's Bookshop",
        "reply_to": "Support <support@example.com>",
        "headers": {"X-Campaign": "spring"},
        "attachments": [{"filename": "a.txt", "content_type": "text/plain", "content": "aGVsbG8="}],
        "tags": ["invoice", "2030-01"],
        "metadata": {"invoice": 4711},
        "max_tries": 20,
        "lane": "otp",
        "on_uncertain": "hold",
        "expires_at": expires_at.isoformat(),
    }
    alone = api.post(ENQUEUE, everything, format="json").json()["task_id"]
    in_batch = [one["task_id"] for one in results(api, [A_MAIL, everything, A_MAIL | {"tags": ["other"]}])]
    task = MailTask.objects.get(id=in_batch[1])
    assert (task.max_tries, task.lane, task.on_uncertain) == (20, Lane.OTP, OnUncertain.HOLD)
    assert task.expires_at == Due.objects.get(task=task).expires_at == expires_at
    own = {"task_id", "created_at", "message_id", "next_attempt_at"}
    shown = [api.get(f"/api/v1/task/{pk}").json() for pk in (alone, task.pk)]
    assert {k: v for k, v in shown[0].items() if k not in own} == {
        k: v for k, v in shown[1].items() if k not in own
    }
    assert b"X-Campaign: spring" in bytes(task.content.raw)
    assert list(Tag.objects.filter(task__in=in_batch).values_list("task_id", "position", "tag")) == [
        (in_batch[1], 1, "invoice"), (in_batch[1], 2, "2030-01"), (in_batch[2], 1, "other"),
    ]  # fmt: skip
    assert MailContent.objects.get(task=in_batch[0]).details is None


def test_a_mail_of_a_batch_is_claimed_like_any_other(api: APIClient) -> None:
    (one,) = results(api, [A_MAIL])
    make_due()
    mail = claim_one()
    assert (mail.id, mail.recipient) == (one["task_id"], "jane@example.com")
    assert mail.raw
    assert b"Hello." in mail.raw


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "required"),
        ({"messages": None}, "not_a_list"),
        ({"messages": {}}, "not_a_list"),
        ({"messages": "x"}, "not_a_list"),
        ({"messages": []}, "empty"),
        ({"messages": [A_MAIL] * 1001}, "max_length"),
    ],
)
def test_what_is_no_batch_is_refused_as_a_whole(api: APIClient, body: Any, code: str) -> None:
    answer = api.post(BATCH, body, format="json")
    assert answer.status_code == 400
    assert [(one["field"], one["code"]) for one in answer.json()["errors"]] == [("messages", code)]
    assert not MailTask.objects.exists()


def test_a_batch_of_bad_ones_is_answered_and_leaves_nothing(api: APIClient) -> None:
    assert all("error" in one for one in results(api, [{}, {}]))
    assert not MailTask.objects.exists()


def test_a_closed_account_hands_over_nothing(owner: User, api: APIClient) -> None:
    assert send(api, [A_MAIL]).status_code == 207  # so the token is known
    owner.close()
    assert ledger.enter_many(owner.pk, "ada@example.com", timezone.now(), []) == []
    answer = send(api, [A_MAIL, A_MAIL])
    assert (answer.status_code, answer.json()["code"]) == (401, "user_inactive")
    assert MailTask.objects.count() == 1


def test_a_batch_costs_the_same_few_statements_however_long(api: APIClient) -> None:
    results(api, [A_MAIL])
    counts = []
    for length in (2, 200):
        with CaptureQueriesContext(connection) as asked:
            results(api, [A_MAIL] * length)
        counts.append(len(asked))
    assert counts[0] == counts[1] <= 2


@pytest.mark.django_db(transaction=True)
def test_a_batch_rings_once_and_one_for_later_rings_nobody() -> None:
    api = client_of(UserFactory())
    later = (timezone.now() + timedelta(hours=1)).isoformat()
    results(api, [A_MAIL | {"scheduled_at": later}])
    assert doorbell.client().llen(doorbell.MESSAGES) == 0
    results(api, [A_MAIL] * 50)
    assert doorbell.client().llen(doorbell.MESSAGES) == 1


def test_without_a_token_there_is_nothing() -> None:
    assert send(APIClient(), [A_MAIL]).status_code == 401


def test_a_dry_run_of_a_batch_is_refused_and_never_sent(api: APIClient) -> None:
    answer = api.post(f"{BATCH}?dry_run=true", {"messages": [A_MAIL]}, format="json")
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == "dry_run"
    assert not MailTask.objects.exists()
