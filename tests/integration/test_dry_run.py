"""POST /enqueue?dry_run=true: what would become of the mail, and nothing kept."""

from datetime import timedelta
from email import message_from_string, policy
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.models import AccountState, Security, SmtpAccount, User
from tasks import doorbell
from tasks.models import Due, IdempotencyKey, MailContent, MailTask
from tests.factories import UserFactory, client_of, sending_user, with_login

pytestmark = pytest.mark.django_db
ENQUEUE = "/api/v1/task/enqueue"
A_MAIL = {"recipient_email": "jane@example.com", "subject": "Grüße", "body": "Hello ✓"}
SECRET = "a canary that sings"


@pytest.fixture
def owner() -> User:
    user: User = UserFactory(email="ada@example.com")
    return user


def dry_run(api: APIClient, **changes: Any) -> dict[str, Any]:
    answer = api.post(f"{ENQUEUE}?dry_run=true", A_MAIL | changes, format="json")
    assert answer.status_code == 200, answer.content
    seen: dict[str, Any] = answer.json()
    return seen


@pytest.mark.parametrize("word", ["true", "1", "True"])
def test_nothing_is_kept_and_nobody_is_rung_for(api: APIClient, word: str) -> None:
    answer = api.post(
        f"{ENQUEUE}?dry_run={word}", A_MAIL, format="json", headers={"Idempotency-Key": "a-key"}
    )
    assert answer.status_code == 200
    assert not any(rows.objects.exists() for rows in (MailTask, MailContent, Due, IdempotencyKey))
    assert doorbell.client().llen(doorbell.MESSAGES) == 0


@pytest.mark.parametrize("word", ["", "maybe", "2", "true,true"])
def test_a_word_that_is_neither_yes_nor_no_sends_nothing(api: APIClient, word: str) -> None:
    answer = api.post(f"{ENQUEUE}?dry_run={word}", A_MAIL, format="json")
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == ["dry_run"]
    assert not MailTask.objects.exists()


def test_a_malformed_idempotency_key_is_refused_here_too(api: APIClient) -> None:
    answer = api.post(f"{ENQUEUE}?dry_run=true", A_MAIL, format="json", HTTP_IDEMPOTENCY_KEY="a b")
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["code"] == "invalid_idempotency_key"


def test_dry_run_false_is_a_real_one(api: APIClient) -> None:
    assert api.post(f"{ENQUEUE}?dry_run=false", A_MAIL, format="json").status_code == 202
    assert MailTask.objects.exists()


def test_the_mail_is_shown_as_it_would_go_out(api: APIClient) -> None:
    mail = dry_run(
        api,
        html_body="<p>Grüße</p>",
        from_name="Ädä",
        headers={"X-Campaign": "spring " * 30 + "end", "X-Word": "=?utf-8?q?not=20one?="},
        attachments=[{"filename": "grüße.txt", "content_type": "text/plain", "content": "aGVsbG8="}],
    )["mail"]
    headers = {header["name"]: header["value"] for header in mail["headers"]}
    assert headers["From"] == "Ädä <ada@example.com>"
    assert (headers["To"], headers["Subject"]) == ("jane@example.com", "Grüße")
    assert headers["X-Campaign"] == "spring " * 30 + "end"
    assert headers["X-Word"] == "=?utf-8?q?not=20one?="
    assert mail["parts"] == [
        {"content_type": "text/plain", "filename": None, "size": 11, "text": "Hello ✓\r\n"},
        {"content_type": "text/html", "filename": None, "size": 16, "text": "<p>Grüße</p>\r\n"},
        {"content_type": "text/plain", "filename": "grüße.txt", "size": 5, "text": None},
    ]
    parsed = message_from_string(mail["source"], policy=policy.default)
    assert parsed["Subject"] == "Grüße"


def test_a_recipient_beyond_ascii_is_shown(api: APIClient) -> None:
    mail = dry_run(api, recipient_email="jürgen@example.com")["mail"]
    assert {"name": "To", "value": "jürgen@example.com"} in mail["headers"]


def test_a_bad_mail_is_refused_as_ever(api: APIClient) -> None:
    answer = api.post(f"{ENQUEUE}?dry_run=true", A_MAIL | {"lane": "fast"}, format="json")
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == ["lane"]


def test_the_route_is_the_owners_relay_and_holds_no_secret() -> None:
    user = with_login(sending_user(2525), "ada-at-relay", SECRET, Security.STARTTLS)
    answer = client_of(user).post(f"{ENQUEUE}?dry_run=true", A_MAIL, format="json")
    assert answer.json()["route"] == {
        "relay": "own", "host": "127.0.0.1", "port": 2525, "security": "starttls",
    }  # fmt: skip
    assert SECRET not in answer.content.decode()
    assert "ada-at-relay" not in answer.content.decode()


@pytest.mark.parametrize(
    ("url", "port", "security"),
    [
        (f"smtp://joe:{SECRET}@relay.example.com", 587, "auto"),
        (f"smtps://joe:{SECRET}@relay.example.com", 465, "tls"),
        (f"smtp://joe:{SECRET}@relay.example.com:2525?security=none", 2525, "none"),
    ],
)
def test_the_route_may_be_the_default_relay(
    api: APIClient, settings: Any, url: str, port: int, security: str
) -> None:
    settings.DEFAULT_SMTP_URL = url
    seen = dry_run(api)
    assert seen["route"] == {
        "relay": "default", "host": "relay.example.com", "port": port, "security": security,
    }  # fmt: skip
    assert SECRET not in str(seen)


def test_a_magic_address_goes_nowhere(api: APIClient) -> None:
    assert dry_run(api, recipient_email="ok@Sandbox.invalid")["route"]["relay"] == "none"


def test_the_plan_says_when_and_how_often(api: APIClient, settings: Any) -> None:
    settings.MAIL_RETRY_SCHEDULE = [60, 300]
    later, end = timezone.now() + timedelta(hours=1), timezone.now() + timedelta(hours=2)
    plan = dry_run(
        api,
        scheduled_at=later.isoformat(),
        expires_at=end.isoformat(),
        lane="bulk",
        max_tries=5,
        on_uncertain="hold",
    )["plan"]
    assert plan.pop("waiting")["reason"] == "scheduled"
    assert plan == {
        "status": "scheduled",
        "cancel_reason": None,
        "due_at": later.isoformat().replace("+00:00", "Z"),
        "expires_at": end.isoformat().replace("+00:00", "Z"),
        "lane": "bulk",
        "max_tries": 5,
        "retry_after_seconds": [60, 300, 300, 300],
        "on_uncertain": "hold",
    }


def test_the_plan_says_what_would_make_it_wait(api: APIClient, owner: User) -> None:
    assert dry_run(api)["plan"]["waiting"]["reason"] == "backlog"
    until = timezone.now() + timedelta(minutes=5)
    SmtpAccount.objects.filter(owner=owner).update(
        state=AccountState.PAUSED, paused_until=until, reason="535 5.7.8 wrong password"
    )
    waiting = dry_run(api)["plan"]["waiting"]
    assert waiting["reason"] == "account_paused"
    assert "535 5.7.8" in waiting["detail"]


def test_a_dry_run_needs_a_token() -> None:
    assert APIClient().post(f"{ENQUEUE}?dry_run=true", A_MAIL, format="json").status_code == 401
