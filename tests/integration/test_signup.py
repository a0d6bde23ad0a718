"""POST /auth/signup and /auth/deregister."""

from datetime import timedelta

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.keys import ApiKey
from accounts.models import User
from tasks.states import CancelReason, Status
from tests.factories import PASSWORD, MailFactory, client_of

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _default_relay(settings):
    settings.DEFAULT_SMTP_URL = "smtp://127.0.0.1:1025"


def call(path, key=None, **body):
    client = APIClient(raise_request_exception=False)
    if key:
        client.credentials(HTTP_AUTHORIZATION=f"Bearer {key}")
    return client.post(f"/api/v1/{path}", body, format="json")


def signup(address="ada@example.com", password=PASSWORD):
    return call("auth/signup", id=address, password=password)


def test_the_key_of_a_signup_sends_reads_and_manages():
    response = signup("Ada@example.com")
    assert response.status_code == 201
    assert response.json().keys() == {"apiKey"}
    key = response.json()["apiKey"]
    user = User.objects.get()
    assert (user.email, user.smtp.host, user.smtp.from_email) == ("ada@example.com", "", "ada@example.com")
    mail = {"recipient_email": "jane@example.com", "subject": "hello", "body": "Hello."}
    later = (timezone.now() + timedelta(days=1)).isoformat()
    task = call("task/enqueue", key, **mail, scheduled_at=later).json()["task_id"]
    assert call(f"task/{task}/cancel", key).json()["status"] == "cancelled"


def test_who_signed_up_logs_in_with_id_and_password():
    signup()
    assert call("login", email="ada@example.com", password=PASSWORD).status_code == 200


def test_a_taken_address_makes_neither_user_nor_key():
    signup()
    response = signup("ADA@example.com")
    assert (response.status_code, response.json()["code"]) == (409, "email_taken")
    assert (User.objects.count(), ApiKey.objects.count()) == (1, 1)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"password": PASSWORD}, "id"),
        ({"id": "ada@example.com"}, "password"),
        ({"id": "ada", "password": PASSWORD}, "id"),
        ({"id": 5, "password": PASSWORD}, "id"),
        ({"id": "ada@example.com", "password": "short"}, "password"),
    ],
)
def test_a_bad_field_is_named(body, field):
    response = call("auth/signup", **body)
    assert response.status_code == 400
    assert {each["field"] for each in response.json()["errors"]} == {field}
    assert not User.objects.exists()


def test_without_a_default_relay_nobody_signs_up(settings):
    settings.DEFAULT_SMTP_URL = ""
    response = signup()
    assert response.status_code == 400
    assert response.json()["errors"][0]["code"] == "no_default_relay"
    assert not User.objects.exists()


@pytest.mark.parametrize("by", ["key", "token"])
def test_deregister_closes_the_account(by):
    key = signup().json()["apiKey"]
    user = User.objects.get()
    waiting = MailFactory(owner=user)
    response = (
        call("auth/deregister", key) if by == "key" else client_of(user).post("/api/v1/auth/deregister")
    )
    assert response.status_code == 200
    assert response.json().keys() == {"status", "msg"}
    assert response.json()["status"] is True
    assert call("auth/deregister", key).status_code == 401
    assert call("login", email="ada@example.com", password=PASSWORD).status_code == 401
    waiting.refresh_from_db()
    assert (waiting.status, waiting.cancel_reason) == (Status.CANCELLED, CancelReason.ACCOUNT_CLOSED)


def test_deregister_asks_who_is_there():
    assert call("auth/deregister").status_code == 401
