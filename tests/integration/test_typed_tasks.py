"""POST /api/v1/task/: each type with its own required fields, and its own number of retries."""

import json
from email import message_from_bytes, policy
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.models import User
from mailqueue.typed import KINDS
from tasks.models import MailTask, OneTime
from tasks.states import Lane, Status
from tasks.suppressions import Suppression

pytestmark = pytest.mark.django_db
TASK = "/api/v1/task/"
MESSAGE: dict[str, Any] = {"userId": "jane@example.com", "subject": "Grüße", "content": "Hello Jane."}
CODE: dict[str, Any] = {"userId": "jane@example.com", "length": 6}
GOOD = {"message": MESSAGE, "generateOtp": CODE}
#: Those that make a mail; the others are in test_subscriptions_api.py.
MAILS = [name for name, kind in KINDS.items() if kind.mails]


def call(api: APIClient, kind: Any, payload: Any, path: str = TASK, **more: Any) -> Any:
    return api.post(path, {"task": "a name", "type": kind, "payload": payload} | more, format="json")


def without(payload: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in payload.items() if name not in names}


def sent() -> Any:
    """The only mail, as its reader will see it."""
    return message_from_bytes(bytes(MailTask.objects.get().content.raw), policy=policy.default)


# Right ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAILS)
@pytest.mark.parametrize("path", [TASK, TASK.rstrip("/")])
def test_each_type_is_taken_with_or_without_the_slash(api: APIClient, kind: str, path: str) -> None:
    answer = call(api, kind, GOOD[kind], path, retries=3)
    assert answer.status_code == 202
    task = MailTask.objects.get()
    assert answer.json() == {"status": True, "msg": answer.json()["msg"], "task_id": task.pk}
    assert answer["Location"].endswith(f"/api/v1/task/{task.pk}")
    assert (task.status, task.recipient) == (Status.QUEUED, "jane@example.com")
    shown = api.get(f"/api/v1/task/{task.pk}").json()
    assert shown["metadata"] == {"task": "a name", "type": kind}


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("message", MESSAGE),
        ("message", MESSAGE | {"subject": "x" * 998}),
        ("message", MESSAGE | {"content_type": "text/html"}),
        ("message", MESSAGE | {"content_type": "news"}),
        ("message", MESSAGE | {"length": 99, "frequency": "never"}),  # not its own fields
        ("message", MESSAGE | {"userId": "jänë@bücher.example"}),
        ("generateOtp", CODE),
        ("generateOtp", without(CODE, "length")),
        ("generateOtp", CODE | {"length": 4}),
        ("generateOtp", CODE | {"length": 8}),
        ("generateOtp", CODE | {"subject": "", "content": None}),  # not its own fields
        *[
            (kind, without(payload, "userId") | {name: "jane@example.com"})
            for kind, payload in GOOD.items()
            for name in ("userEmail", "recipient", "recipient_email")
        ],
    ],
)
def test_a_right_payload_is_taken(api: APIClient, kind: str, payload: dict[str, Any]) -> None:
    answer = call(api, kind, payload)
    assert answer.status_code == 202, answer.json()
    assert MailTask.objects.count() == 1


@pytest.mark.parametrize("kind", MAILS)
@pytest.mark.parametrize(("retries", "tries"), [(0, 1), (1, 2), (3, 4), (20, 21), (2.0, 3), (None, 8)])
def test_retries_are_what_follows_the_first_try(
    api: APIClient, settings: Any, kind: str, retries: float | None, tries: int
) -> None:
    settings.MAIL_MAX_TRIES = 8
    more = {} if retries is None else {"retries": retries}
    assert call(api, kind, GOOD[kind], **more).status_code == 202
    assert MailTask.objects.get().max_tries == tries


@pytest.mark.parametrize("kind", MAILS)
def test_the_name_may_be_left_out(api: APIClient, kind: str) -> None:
    answer = api.post(TASK, {"type": kind, "payload": GOOD[kind]}, format="json")
    assert answer.status_code == 202
    assert api.get(f"/api/v1/task/{answer.json()['task_id']}").json()["metadata"] == {"type": kind}


# Wrong ------------------------------------------------------------------------------------------------

BAD_ADDRESSES = ["jane", "jane@", "jane@example.com, joe@example.com", "jane@example.com\nBcc: x@example.com"]
WRONG: list[tuple[str, Any, str, str]] = [
    *[
        (kind, payload | {"userId": value}, "payload.userId", code)
        for kind, payload in GOOD.items()
        for value, code in [
            *[(address, "invalid_address") for address in BAD_ADDRESSES],
            ("", "blank"),
            (None, "null"),
            (42, "invalid"),
            (["jane@example.com"], "invalid"),
            (f"{'x' * 250}@example.com", "invalid_address"),
        ]
    ],
    *[(kind, without(payload, "userId"), "payload.userId", "required") for kind, payload in GOOD.items()],
    *[
        (kind, payload, field, code)
        for kind in GOOD
        for payload, field, code in [
            (None, "payload", "null"),
            ("jane@example.com", "payload", "invalid"),
            ([], "payload", "invalid"),
        ]
    ],
    *[("message", without(MESSAGE, name), f"payload.{name}", "required") for name in ("subject", "content")],
    *[("message", MESSAGE | {name: ""}, f"payload.{name}", "blank") for name in ("subject", "content")],
    *[("message", MESSAGE | {name: None}, f"payload.{name}", "null") for name in ("subject", "content")],
    *[("message", MESSAGE | {name: 7}, f"payload.{name}", "invalid") for name in ("subject", "content")],
    ("message", MESSAGE | {"subject": "x" * 999}, "payload.subject", "max_length"),
    ("message", MESSAGE | {"subject": "a\r\nBcc: b@example.com"}, "payload.subject", "control_character"),
    ("message", MESSAGE | {"content_type": 7}, "payload.content_type", "invalid"),
    *[("generateOtp", CODE | {"length": n}, "payload.length", "min_value") for n in (3, 0, -6)],
    *[("generateOtp", CODE | {"length": n}, "payload.length", "max_value") for n in (9, 4000)],
    *[
        ("generateOtp", CODE | {"length": n}, "payload.length", "invalid")
        for n in ("6", "six", 6.5, True, [])
    ],
    ("generateOtp", CODE | {"length": None}, "payload.length", "null"),
    *[("message", MESSAGE | {name: "a\0b"}, f"payload.{name}", "unstorable") for name in MESSAGE],
    ("generateOtp", CODE | {"userId": "\0"}, "payload.userId", "unstorable"),
]


@pytest.mark.parametrize(("kind", "payload", "field", "code"), WRONG)
def test_a_wrong_payload_is_refused_and_the_field_is_named(
    api: APIClient, kind: str, payload: Any, field: str, code: str
) -> None:
    refused(call(api, kind, payload), field, code)


@pytest.mark.parametrize("kind", MAILS)
@pytest.mark.parametrize(
    ("more", "field", "code"),
    [
        ({"retries": -1}, "retries", "min_value"),
        ({"retries": 21}, "retries", "max_value"),
        ({"retries": "3"}, "retries", "invalid"),
        ({"retries": 1.5}, "retries", "invalid"),
        ({"retries": True}, "retries", "invalid"),
        ({"retries": None}, "retries", "null"),
        ({"task": 7}, "task", "invalid"),
        ({"task": None}, "task", "null"),
        ({"task": "x" * 201}, "task", "max_length"),
    ],
)
def test_what_all_types_have_is_named_too(
    api: APIClient, kind: str, more: Any, field: str, code: str
) -> None:
    refused(call(api, kind, GOOD[kind], **more), field, code)


@pytest.mark.parametrize("kind", ["", "Message", "generateotp", "delete", None, 7, ["message"], {}, True])
def test_another_type_is_refused(api: APIClient, kind: Any) -> None:
    refused(call(api, kind, MESSAGE), "type", "invalid_choice")


@pytest.mark.parametrize(
    ("body", "field"),
    [({}, "type"), ({"payload": MESSAGE}, "type"), ({"type": "message"}, "payload")],
)
def test_what_is_missing_is_named(api: APIClient, body: Any, field: str) -> None:
    refused(api.post(TASK, body, format="json"), field, "required")


def test_all_that_is_wrong_is_named_at_once(api: APIClient) -> None:
    errors = call(api, "message", {"userId": "jane"}, retries=99).json()["errors"]
    assert {each["field"] for each in errors} == {
        "retries",
        "payload.userId",
        "payload.subject",
        "payload.content",
    }


def refused(answer: Any, field: str, code: str) -> None:
    assert (answer.status_code, answer["Content-Type"]) == (400, "application/problem+json")
    assert [(each["field"], each["code"]) for each in answer.json()["errors"]] == [(field, code)]
    assert not MailTask.objects.exists()


# A message ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    ["Hello <Jane>, 1 < 2 and 3 > 2", "Hello.\n\nGrüße", "Jane <jane@example.com> wrote: a<b", "&lt;p&gt;"],
)
def test_plain_content_stays_plain(api: APIClient, content: str) -> None:
    call(api, "message", MESSAGE | {"content": content})
    mail = sent()
    assert (mail["Subject"], mail["To"]) == ("Grüße", "jane@example.com")
    assert mail.get_content_type() == "text/plain"
    assert mail.get_content().replace("\r\n", "\n").strip() == content
    assert MailTask.objects.get().lane == Lane.DEFAULT


@pytest.mark.parametrize(
    "content",
    [
        "<p>Hello <b>Jane</b></p>",
        "<!DOCTYPE html><html><body>Hello Jane</body></html>",
        'Hello <a href="https://example.com">Jane</a>',
        "Hello<BR/>Jane",
    ],
)
def test_html_gets_a_text_part(api: APIClient, content: str) -> None:
    call(api, "message", MESSAGE | {"content": content})
    mail = sent()
    assert mail.get_content_type() == "multipart/alternative"
    assert mail.get_body(("html",)).get_content().strip() == content
    text = mail.get_body(("plain",)).get_content()
    assert "Hello" in text
    assert "Jane" in text
    assert "<" not in text


def test_the_content_type_says_which_it_is(api: APIClient) -> None:
    call(api, "message", MESSAGE | {"content": "Write <b>bold</b>", "content_type": "text/plain"})
    assert sent().get_content_type() == "text/plain"
    MailTask.objects.all().delete()
    call(api, "message", MESSAGE | {"content": "&lt;3", "content_type": "text/html; charset=utf-8"})
    assert sent().get_body(("plain",)).get_content().strip() == "<3"


def test_a_message_is_no_secret(api: APIClient) -> None:
    call(api, "message", MESSAGE)
    assert not OneTime.objects.exists()


# As every mail ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAILS)
def test_the_same_call_is_done_once(api: APIClient, kind: str) -> None:
    body = json.dumps({"type": kind, "payload": GOOD[kind]})
    asked = {"content_type": "application/json", "headers": {"Idempotency-Key": "a-key"}}
    first, second = (api.post(TASK, body, **asked) for _ in range(2))
    assert (first.status_code, first.content) == (202, second.content)
    assert second["Idempotency-Replayed"] == "true"
    assert first["Location"] == second["Location"]
    assert MailTask.objects.count() == 1


@pytest.mark.parametrize("kind", MAILS)
def test_the_quota_counts_it(api: APIClient, owner: User, kind: str) -> None:
    owner.daily_quota = 1
    owner.save()
    assert call(api, kind, GOOD[kind]).status_code == 202
    answer = call(api, kind, GOOD[kind] | {"userId": "joe@example.com"})
    assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
    assert MailTask.objects.count() == 1


@pytest.mark.parametrize("kind", MAILS)
def test_calls_are_limited_as_those_of_enqueue_are(api: APIClient, settings: Any, kind: str) -> None:
    settings.THROTTLE_ENQUEUE = (1, 3600)
    assert call(api, kind, GOOD[kind])["RateLimit-Policy"].startswith('"enqueue";q=1;w=3600')
    answer = api.post("/api/v1/task/enqueue", {}, format="json")
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_requests")


@pytest.mark.parametrize("kind", MAILS)
def test_who_is_suppressed_gets_nothing(api: APIClient, owner: User, kind: str) -> None:
    Suppression.objects.add(owner, "jane@example.com")
    answer = call(api, kind, GOOD[kind])
    assert answer.status_code == 202
    assert "list of suppressions" in answer.json()["msg"]
    assert MailTask.objects.get().status == Status.CANCELLED


@pytest.mark.parametrize("kind", MAILS)
def test_a_closed_account_hands_over_nothing(api: APIClient, owner: User, kind: str) -> None:
    api.get("/api/v1/task/queue")  # the user is kept for some seconds
    User.objects.filter(pk=owner.pk).update(is_active=False)
    assert call(api, kind, GOOD[kind]).status_code == 401
    assert not MailTask.objects.exists()


@pytest.mark.parametrize("asked", ["true", "false", ""])
def test_a_dry_run_of_it_sends_nothing(api: APIClient, asked: str) -> None:
    refused(call(api, "generateOtp", CODE, f"{TASK}?dry_run={asked}"), "dry_run", "not_for_typed_tasks")


def test_a_message_is_due_at_once(api: APIClient) -> None:
    call(api, "message", MESSAGE)
    task = MailTask.objects.get()
    assert task.due_at <= timezone.now()
    assert task.expires_at is None
