"""Typed tasks that make no mail: each has an id among the mails', and is done when it is answered."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.models import User
from mailqueue import jobs
from mailqueue.done import DoneTask
from mailqueue.subscriptions import deeds
from mailqueue.subscriptions.models import Subscription
from tasks.models import MailTask
from tests.factories import UserFactory, client_of

pytestmark = pytest.mark.django_db
TASK = "/api/v1/task/"
PAYLOADS = {
    "subscribe": {"userId": "jane@example.com", "frequency": "@daily", "content_type": "news"},
    "unsubscribe": {"userId": "jane@example.com"},
}


def call(api: APIClient, kind: str, **more: Any) -> Any:
    return api.post(TASK, {"type": kind, "payload": PAYLOADS[kind]} | more, format="json")


@pytest.mark.parametrize("kind", PAYLOADS)
def test_it_is_shown_as_any_task_is(api: APIClient, kind: str) -> None:
    answer = call(api, kind, task="letter", retries=2)
    assert answer.status_code == 202
    mail = {"recipient_email": "joe@example.com", "subject": "Hello", "body": "Hello."}
    mail_id = api.post(f"{TASK}enqueue", mail, format="json").json()["task_id"]
    shown = api.get(f"{TASK}{answer.json()['task_id']}")
    assert shown.status_code == 200
    assert shown.json().keys() == api.get(f"{TASK}{mail_id}").json().keys()
    told = shown.json()
    about = {"subscription": str(Subscription.objects.get().pk)} if kind == "subscribe" else {}
    assert told["metadata"] == {"task": "letter", "type": kind, **about}
    assert (told["task_id"], told["status"]) == (answer.json()["task_id"], "success")
    assert (told["recipient_email"], told["max_tries"], told["attempts"]) == ("jane@example.com", 3, [])
    assert told["waiting"] is told["next_attempt_at"] is None
    assert told["created_at"] == told["finished_at"] is not None


def test_its_id_is_no_mails(api: APIClient) -> None:
    ids = [call(api, kind).json()["task_id"] for kind in ("subscribe", "unsubscribe", "subscribe")]
    mail = {"recipient_email": "joe@example.com", "subject": "Hello", "body": "Hello."}
    ids.append(api.post(f"{TASK}enqueue", mail, format="json").json()["task_id"])
    assert ids == sorted(set(ids))
    assert api.get(f"{TASK}queue").json()["results"][0]["task_id"] == ids[-1]
    assert len(api.get(f"{TASK}queue").json()["results"]) == 1


@pytest.mark.parametrize(
    ("verb", "body", "code"),
    [
        ("cancel", {}, "not_cancellable"),
        ("retry", {}, "not_retryable"),
        ("resolve", {"action": "retry"}, "not_uncertain"),
        ("", {"scheduled_at": "2090-01-31T09:30:00Z"}, "not_scheduled"),
    ],
)
def test_there_is_nothing_to_change_about_it(
    api: APIClient, verb: str, body: dict[str, str], code: str
) -> None:
    pk = call(api, "subscribe").json()["task_id"]
    address = f"{TASK}{pk}/{verb}".rstrip("/")
    answer = (api.post if verb else api.patch)(address, body, format="json")
    assert (answer.status_code, answer.json()["code"]) == (409, code)
    missing = (api.post if verb else api.patch)(address.replace(str(pk), "4242424242"), body, format="json")
    assert missing.status_code == 404


def test_somebody_elses_does_not_exist(api: APIClient) -> None:
    pk = call(api, "subscribe").json()["task_id"]
    other = client_of(UserFactory())
    for answer in (other.get(f"{TASK}{pk}"), other.post(f"{TASK}{pk}/cancel")):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_what_is_refused_leaves_none(api: APIClient, owner: User, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(api, "subscribe", retries=21).status_code == 400
    api.get(f"{TASK}queue")  # the user is kept for some seconds
    User.objects.filter(pk=owner.pk).update(is_active=False)
    assert call(api, "subscribe").status_code == 401
    assert not DoneTask.objects.exists()


def test_a_repeated_call_is_one_task(api: APIClient) -> None:
    answers = [
        api.post(
            TASK,
            {"type": kind, "payload": PAYLOADS[kind]},
            format="json",
            headers={"Idempotency-Key": kind},
        )
        for kind in PAYLOADS
        for _ in range(2)
    ]
    ids = [answer.json()["task_id"] for answer in answers]
    assert ids[0] == ids[1] != ids[2] == ids[3]
    assert DoneTask.objects.count() == 2
    assert not MailTask.objects.exists()


def test_it_leaves_with_its_owner_and_when_it_is_old(api: APIClient, owner: User, settings: Any) -> None:
    settings.MAIL_KEEP_DAYS = 90
    call(api, "subscribe")
    old = DoneTask.objects.get()
    DoneTask.objects.update(done_at=timezone.now() - timedelta(days=91))
    call(api, "unsubscribe")
    assert jobs.prune()["done"] == 1
    assert not DoneTask.objects.filter(pk=old.pk).exists()
    deeds.forget_owner(owner)
    assert not DoneTask.objects.exists()
