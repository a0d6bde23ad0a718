"""POST /enqueue: a good mail is kept and answered with 202; a bad one leaves no row and a clear complaint."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.models import User
from tasks.models import MailContent, MailTask
from tasks.states import Lane, OnUncertain, Status

pytestmark = pytest.mark.django_db
ENQUEUE = "/api/v1/task/enqueue"
A_MAIL = {"recipient_email": "jane@example.com", "subject": "Grüße", "body": "Hello ✓"}


def enqueue(api: APIClient, **changes: Any) -> Any:
    return api.post(ENQUEUE, json.dumps(A_MAIL | changes), content_type="application/json")


def assert_refused(answer: Any, status: int = 400, field: str | None = None) -> None:
    """A problem (RFC 9457) for people and programs, without a row and without a traceback."""
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem.keys() >= {"type", "title", "status", "detail", "code"}
    assert problem["status"] == status
    assert problem["detail"]
    assert "Traceback" not in answer.content.decode()
    if field:
        assert field in [error["field"] for error in problem["errors"]]
    assert not MailTask.objects.exists()
    assert not MailContent.objects.exists()


def test_a_mail_is_accepted(api: APIClient, owner: User) -> None:
    answer = enqueue(api)
    assert answer.status_code == 202
    assert answer.json().keys() == {"task_id", "status"}
    task = MailTask.objects.get(id=answer.json()["task_id"])
    assert (task.owner, task.status, answer.json()["status"]) == (owner, Status.QUEUED, "queued")
    assert api.get(answer["Location"]).json()["task_id"] == task.pk


def test_all_that_can_be_asked_for_is_kept(api: APIClient) -> None:
    expires_at = timezone.now() + timedelta(days=1)
    asked = {
        "html_body": "<b>hi</b>",
        "max_tries": 20,
        "lane": "otp",
        "on_uncertain": "hold",
        "expires_at": expires_at.isoformat(),
    }
    task = MailTask.objects.get(id=enqueue(api, **asked).json()["task_id"])
    assert (task.max_tries, task.lane, task.on_uncertain) == (20, Lane.OTP, OnUncertain.HOLD)
    assert task.expires_at == expires_at
    assert b"<b>hi</b>" in bytes(task.content.raw)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("2099-01-31T12:00:00Z", datetime(2099, 1, 31, 12, tzinfo=UTC)),
        ("2099-01-31T12:00:00+02:00", datetime(2099, 1, 31, 10, tzinfo=UTC)),
        ("2099-01-31T12:00:00-0530", datetime(2099, 1, 31, 17, 30, tzinfo=UTC)),
        ("2099-01-31T12:00:00", datetime(2099, 1, 31, 12, tzinfo=UTC)),
        ("2099-01-31", datetime(2099, 1, 31, tzinfo=UTC)),
        ("2099-01-31T12:00", datetime(2099, 1, 31, 12, tzinfo=UTC)),
        ("2099-01-31 12:00:00.25", datetime(2099, 1, 31, 12, 0, 0, 250_000, tzinfo=UTC)),
    ],
)
def test_a_time_ahead_schedules_the_mail(api: APIClient, given: str, meant: datetime) -> None:
    answer = enqueue(api, scheduled_at=given)
    assert (answer.status_code, answer.json()["status"]) == (202, "scheduled")
    assert MailTask.objects.get().due_at == meant


@pytest.mark.parametrize("given", ["2001-01-31T12:00:00Z", "1970-01-01T00:00:00", None])
def test_a_time_in_the_past_means_now(api: APIClient, given: str | None) -> None:
    assert enqueue(api, scheduled_at=given).json()["status"] == "queued"
    assert abs(MailTask.objects.get().due_at - timezone.now()) < timedelta(minutes=1)


@pytest.mark.parametrize("name", ["recipient_email", "subject", "body"])
def test_a_missing_field_is_named(api: APIClient, name: str) -> None:
    mail = {key: value for key, value in A_MAIL.items() if key != name}
    assert_refused(api.post(ENQUEUE, mail, format="json"), field=name)


WRONG = [
    ("recipient_email", value)
    for value in (
        None, "", 7, True, ["jane@example.com"], {}, "jane", "@example.com", "jane@", "jane@@example.com",
        "jane@example.com, eve@example.com", "jane@example.com;eve@example.com", "jane@example.com eve@example.com",
        "Jane <jane@example.com>", "<jane@example.com>", "jane@example.com\r\nBcc: eve@example.com",
        "jane\0@example.com", "jane@exa\tmple.com", "jane@example..com", "jane@-example.com",
        "jür gen@example.com", "\u017fam@example.com", "x" * 250 + "@example.com", "jane@" + "ü" * 70 + ".example",
        "jane@example.com>\r\nRCPT TO:<eve@example.com",
    )
] + [
    ("subject", value)
    for value in (
        None, "", 7, ["a"], {"a": 1}, "a\r\nBcc: eve@example.com", "a\nb", "a\rb", "a\0b", "a\u2028b", "a\x85b",
        "a\x1bb", "x" * 999, "\ud800",
    )
] + [
    ("body", value) for value in (None, "", 7, False, ["a"], "a\0b", "x" * 2_000_001, "\ud800")
] + [
    ("html_body", value) for value in (7, ["<p>"], "\0", "x" * 2_000_001)
] + [
    ("scheduled_at", value)
    for value in (
        "tomorrow", "", 7, True, "2099-13-01T00:00:00Z", "2099-02-30T00:00:00Z", "12:00", [], {},
        "2099-01-01T25:00:00Z", "9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00", "-1", 1e300,
    )
] + [
    ("expires_at", value) for value in ("soon", "2001-01-01T00:00:00Z", 7)
] + [
    ("max_tries", value) for value in (0, 21, -1, "3", 2.5, True, 10**30, [], "many")
] + [
    ("lane", value) for value in ("express", 1, "", ["otp"], "OTP", {})
] + [
    ("on_uncertain", value) for value in ("guess", 0, "")
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_refused_and_its_field_named(api: APIClient, name: str, value: Any) -> None:
    assert_refused(enqueue(api, **{name: value}), field=name)


def test_a_whole_number_may_be_written_as_a_fraction(api: APIClient) -> None:
    # To JSON Schema 5.0 is an integer, and some languages know no other numbers.
    answer = enqueue(api, max_tries=5.0)
    assert answer.status_code == 202
    assert MailTask.objects.get(pk=answer.json()["task_id"]).max_tries == 5


def test_all_wrong_fields_are_named_at_once(api: APIClient) -> None:
    answer = enqueue(api, recipient_email="jane", max_tries=0, lane="express")
    assert {error["field"] for error in answer.json()["errors"]} == {"recipient_email", "max_tries", "lane"}


def test_what_would_expire_before_its_time_is_refused(api: APIClient) -> None:
    now = timezone.now()
    times = {
        "scheduled_at": (now + timedelta(hours=2)).isoformat(),
        "expires_at": (now + timedelta(hours=1)).isoformat(),
    }
    assert_refused(enqueue(api, **times), field="expires_at")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"mail"',
        b"7",
        b'{"subject": NaN}',
        b"\xff\xfe{}",
        b"{'a': 1}",
        b"[" * 100_000,
    ],
)
def test_what_is_no_json_object_is_refused(api: APIClient, body: bytes) -> None:
    assert_refused(api.post(ENQUEUE, body, content_type="application/json"))


def test_another_kind_of_body_is_refused(api: APIClient) -> None:
    assert_refused(api.post(ENQUEUE, "subject=x", content_type="application/x-www-form-urlencoded"), 415)


def test_a_text_of_ten_megabytes_is_refused(api: APIClient) -> None:
    assert_refused(enqueue(api, body="x" * 10_000_000), field="body")


def test_a_request_of_sixteen_megabytes_is_refused(api: APIClient) -> None:
    assert_refused(enqueue(api, body="x" * 16_000_000), 413)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer nonsense", "Basic YTpi", "Bearer a.b.c", "Bearer \x00", "Token x"]
)
def test_without_a_good_token_nothing_is_kept(header: str | None) -> None:
    anonymous = APIClient(raise_request_exception=False)
    if header is not None:
        anonymous.credentials(HTTP_AUTHORIZATION=header)
    assert_refused(enqueue(anonymous), 401)


def test_a_closed_account_hands_over_nothing(owner: User, api: APIClient) -> None:
    owner.close()
    assert_refused(enqueue(api), 401)


@pytest.mark.parametrize("method", ["get", "put", "patch", "delete"])
def test_only_post_enqueues(api: APIClient, method: str) -> None:
    assert_refused(getattr(api, method)(ENQUEUE), 405)


def test_sixty_injections_in_every_header_field_make_no_mail(api: APIClient) -> None:
    """No extra header, no extra envelope: refused at the door, whatever the line end and wherever it stands."""
    ends = ["\r\n", "\n", "\r", "\r\n\r\n", "\n\n", "\0", "\u2028", "\u2029", "\x0b", "\x0c"]
    parts = ["Bcc: eve@example.com", "RCPT TO:<eve@example.com>", ".", "DATA", "Content-Type: text/html", ""]
    payloads = [end + part for end in ends for part in parts]
    assert len(payloads) == 60
    for payload in payloads:
        for field, value in (
            ("recipient_email", f"jane@example.com{payload}"),
            ("recipient_email", f"jane{payload}@example.com"),
            ("subject", f"Hello{payload} there"),
            ("lane", f"default{payload}"),
            ("scheduled_at", f"2099-01-01T00:00:00Z{payload}"),
        ):
            if value.strip() in ("jane@example.com", "2099-01-01T00:00:00Z"):
                continue  # white space around it is no part of it
            assert enqueue(api, **{field: value}).status_code == 400, (field, value)
    assert not MailTask.objects.exists()
