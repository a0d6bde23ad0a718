"""API keys: made, shown once, used, revoked; and what each scope is good for on every address."""

import logging
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from django.core import serializers as dumps
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from rest_framework.permissions import AllowAny
from rest_framework.response import Response
from rest_framework.test import APIClient, APIRequestFactory
from rest_framework.views import APIView

from accounts.api import authentication
from accounts.api.scopes import scope_of
from accounts.keys import KEYS_PER_OWNER, ApiKey, Scope
from accounts.models import User
from tests.factories import PASSWORD, MailFactory, UserFactory, client_of
from tests.routes import calls

pytestmark = pytest.mark.django_db

KEYS = "/api/v1/keys"
MAIL = {"recipient_email": "jane@example.com", "subject": "hello", "body": "Hello."}


def bearer(secret: str) -> APIClient:
    client = APIClient(raise_request_exception=False)
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {secret}")
    return client


def key_of(user: User, *scopes: str, **fields) -> APIClient:
    """Calls the API with a key that has these scopes; all without any named."""
    _, secret = ApiKey.mint(user, "test", scopes or Scope.values, **fields)
    return bearer(secret)


def make(client: APIClient, **body):
    return client.post(KEYS, {"name": "shop", "scopes": ["send"]} | body, format="json")


def refused(response, status: int, code: str) -> str:
    assert (response.status_code, response["Content-Type"]) == (status, "application/problem+json")
    assert response.json()["code"] == code
    return response.json()["detail"]


# Made and shown ---------------------------------------------------------------------------------------


def test_a_new_key_is_answered_once_and_works_at_once():
    client = client_of(UserFactory())
    made = make(client).json()
    assert made.keys() == {
        "id",
        "name",
        "prefix",
        "scopes",
        "created_at",
        "expires_at",
        "last_used_at",
        "key",
    }
    assert made["key"].startswith(made["prefix"])
    assert (made["name"], made["scopes"], made["expires_at"]) == ("shop", ["send"], None)
    assert bearer(made["key"]).post("/api/v1/task/enqueue", MAIL, format="json").status_code == 202
    (listed,) = client.get(KEYS).json()["results"]
    assert listed["id"] == made["id"]
    assert "key" not in listed


def test_the_key_itself_is_stored_nowhere():
    secret = make(client_of(UserFactory())).json()["key"]
    assert bearer(secret).get("/api/v1/task/queue").status_code == 403
    stored = dumps.serialize("json", ApiKey.objects.all())
    assert secret not in stored
    assert secret[len("mq_") + 8 :] not in stored
    assert secret not in repr(authentication._kept_keys)


def test_a_key_has_256_random_bits():
    secrets = {ApiKey.mint(UserFactory(), "x", ["send"])[1] for _ in range(20)}
    assert len(secrets) == 20
    assert {len(secret) for secret in secrets} == {len("mq_") + 43}


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({"scopes": []}, "scopes", "empty"),
        ({"scopes": ["admin"]}, "scopes.0", "invalid_choice"),
        ({"scopes": "send"}, "scopes", "not_a_list"),
        ({"name": ""}, "name", "blank"),
        ({"name": "x" * 101}, "name", "max_length"),
        ({"name": 5}, "name", "invalid"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at", "past"),
        ({"expires_at": "tomorrow"}, "expires_at", "invalid"),
        ({"expires_at": "9999-12-31T23:59:59-14:00"}, "expires_at", "overflow"),
    ],
)
def test_what_makes_no_key_is_named(body, field, code):
    response = make(client_of(UserFactory()), **body)
    refused(response, 400, "invalid")
    assert [(each["field"], each["code"]) for each in response.json()["errors"]] == [(field, code)]
    assert not ApiKey.objects.exists()


def test_an_owner_has_a_hundred_keys_at_most():
    user = UserFactory()
    for number in range(KEYS_PER_OWNER):
        ApiKey.mint(user, f"key {number}", ["send"])
    refused(make(client_of(user)), 409, "too_many_keys")
    assert make(client_of(UserFactory())).status_code == 201


def test_keys_are_listed_newest_first_and_page_by_page():
    user = UserFactory()
    ids = [ApiKey.mint(user, "x", ["send"])[0].pk for _ in range(3)]
    first = client_of(user).get(f"{KEYS}?limit=2").json()
    second = client_of(user).get(first["next"]).json()
    assert [each["id"] for each in first["results"] + second["results"]] == ids[::-1]


def test_somebody_elses_key_does_not_exist():
    key, secret = ApiKey.mint(UserFactory(), "x", Scope.values)
    other = client_of(UserFactory())
    assert other.get(KEYS).json()["results"] == []
    refused(other.delete(f"{KEYS}/{key.pk}"), 404, "not_found")
    refused(other.delete(f"{KEYS}/{2**70}"), 404, "not_found")
    assert bearer(secret).get(KEYS).status_code == 200


# Used and refused -------------------------------------------------------------------------------------


def test_a_revoked_key_is_refused_at_once():
    user = UserFactory()
    key, secret = ApiKey.mint(user, "x", ["read"])
    client = bearer(secret)
    assert client.get("/api/v1/task/queue").status_code == 200
    assert client_of(user).delete(f"{KEYS}/{key.pk}").status_code == 204
    refused(client.get("/api/v1/task/queue"), 401, "key_not_valid")


@pytest.mark.parametrize("end", ["revoked", "closed"])
def test_what_another_process_has_ended_is_refused_within_five_seconds(monkeypatch, end):
    now = [100.0]
    monkeypatch.setattr(authentication.time, "monotonic", lambda: now[0])
    user = UserFactory()
    client = key_of(user, "read")
    assert client.get("/api/v1/task/queue").status_code == 200
    if end == "revoked":
        ApiKey.objects.all().delete()
    else:
        User.objects.filter(pk=user.pk).update(is_active=False)
    now[0] += 5.0
    refused(client.get("/api/v1/task/queue"), 401, "key_not_valid" if end == "revoked" else "user_inactive")


def test_a_key_expires_to_the_second_although_it_is_kept():
    with time_machine.travel(datetime.now(UTC), tick=False) as clock:
        client = key_of(UserFactory(), "read", expires_at=timezone.now() + timedelta(seconds=2))
        assert client.get("/api/v1/task/queue").status_code == 200
        clock.shift(timedelta(seconds=2))
        refused(client.get("/api/v1/task/queue"), 401, "key_not_valid")


@pytest.mark.parametrize("secret", ["mq_", "mq_" + "x" * 43, "mq_é", "mq_" + "x" * 5000, "mq_a.b.c"])
def test_what_is_no_key_is_refused_with_a_challenge(secret):
    response = bearer(secret).get("/api/v1/task/queue")
    refused(response, 401, "key_not_valid")
    assert response["WWW-Authenticate"].startswith("Bearer")


def test_a_closed_account_has_no_keys_left():
    user = UserFactory()
    client = key_of(user)
    assert client.get("/api/v1/task/queue").status_code == 200
    assert client_of(user).delete(f"/api/v1/user/{user.pk}").status_code == 204
    refused(client.get("/api/v1/task/queue"), 401, "key_not_valid")
    assert not ApiKey.objects.filter(owner=user).exists()


def test_a_new_password_leaves_keys_alone():
    user = UserFactory()
    client = key_of(user, "read")
    client_of(user).patch(f"/api/v1/user/{user.pk}", {"password": "another password"}, format="json")
    assert client.get("/api/v1/task/queue").status_code == 200


def test_a_key_shows_its_owners_mail_and_nobody_elses():
    mine, other = MailFactory(), MailFactory()
    client = key_of(mine.owner, "read")
    assert [each["task_id"] for each in client.get("/api/v1/task/queue").json()["results"]] == [mine.pk]
    assert client.get(f"/api/v1/task/{other.pk}").status_code == 404


# What it costs ----------------------------------------------------------------------------------------


def queries(client: APIClient) -> int:
    with CaptureQueriesContext(
        connection,
    ) as found:
        assert client.get("/api/v1/task/queue").status_code == 200
    return len(found)


def test_a_call_with_a_key_costs_no_more_queries_than_with_a_token(monkeypatch):
    monkeypatch.setattr(authentication, "KEEP_SECONDS", 3600)  # however slow the machine
    user = UserFactory()
    token, key = client_of(user), key_of(user)
    first = queries(token), queries(key)
    assert first[1] == first[0] + 1  # the note of its use, once a minute
    assert queries(key) == queries(token) == first[0] - 1
    authentication.forget(user.pk)
    assert queries(key) == queries(token)


def test_its_use_is_noted_once_a_minute():
    with time_machine.travel(datetime.now(UTC), tick=False) as clock:
        user = UserFactory()
        client = key_of(user, "read")
        noted = []
        for _ in range(5):
            authentication.forget(user.pk)
            assert client.get("/api/v1/task/queue").status_code == 200
            noted.append(ApiKey.objects.get().last_used_at)
            clock.shift(timedelta(seconds=25))
        first = noted[0]
        assert noted == [first, first, first, first + timedelta(seconds=75), first + timedelta(seconds=75)]


# Scopes -----------------------------------------------------------------------------------------------

CALLS = calls()
OPEN = {
    ("POST", "/api/v1/register"),
    ("POST", "/api/v1/auth/signup"),
    ("POST", "/api/v1/login"),
    ("POST", "/api/v1/token/refresh"),
    ("GET", "/api/schema"),
    ("GET", "/api/docs"),
}
#: Nothing that keys could do may come in without being looked at here.
NEEDED = {
    "send": {
        ("POST", "/api/v1/task/enqueue"),
        ("POST", "/api/v1/task/enqueue/batch"),
        ("POST", "/api/v1/task/"),
        ("POST", "/api/v1/task"),
        ("POST", "/api/v1/task/verify"),
    },
    "read": {
        ("GET", "/api/v1/user/1"),
        ("GET", "/api/v1/keys"),
        ("GET", "/api/v1/workers"),
        ("GET", "/stats"),
        ("GET", "/api/v1/suppressions"),
        ("GET", "/api/v1/templates"),
        ("GET", "/api/v1/templates/1"),
        ("GET", "/api/v1/templates/1/versions"),
        ("POST", "/api/v1/templates/1/preview"),
        ("GET", "/api/v1/task/subscriptionContent"),
        ("GET", "/api/v1/subscriptions"),
        ("GET", "/api/v1/subscriptions/1"),
        ("GET", "/api/v1/webhooks"),
        ("GET", "/api/v1/webhooks/1"),
        ("GET", "/api/v1/webhooks/1/deliveries"),
        ("GET", "/api/v1/task/queue"),
        ("GET", "/api/v1/task/queue/fail"),
        ("GET", "/api/v1/task/1"),
        ("GET", "/api/v1/task/1/events"),
        ("GET", "/api/v1/task/events"),
    },
    "manage": {
        ("PATCH", "/api/v1/user/1"),
        ("DELETE", "/api/v1/user/1"),
        ("POST", "/api/v1/user/1/smtp/test"),
        ("POST", "/api/v1/auth/deregister"),
        ("POST", "/api/v1/keys"),
        ("DELETE", "/api/v1/keys/1"),
        ("POST", "/api/v1/suppressions"),
        ("POST", "/api/v1/templates"),
        ("PUT", "/api/v1/templates/1"),
        ("POST", "/api/v1/templates/1/rollback"),
        ("DELETE", "/api/v1/templates/1"),
        ("DELETE", "/api/v1/suppressions/1"),
        ("POST", "/api/v1/task/subscriptionContent"),
        ("PUT", "/api/v1/task/subscriptionContent"),
        ("PATCH", "/api/v1/subscriptions/1"),
        ("DELETE", "/api/v1/subscriptions/1"),
        ("POST", "/api/v1/subscriptions/1/pause"),
        ("POST", "/api/v1/subscriptions/1/resume"),
        ("POST", "/api/v1/webhooks"),
        ("PATCH", "/api/v1/webhooks/1"),
        ("DELETE", "/api/v1/webhooks/1"),
        ("POST", "/api/v1/webhooks/1/rotate"),
        ("POST", "/api/v1/webhooks/1/test"),
        ("POST", "/api/v1/webhooks/1/replay"),
        ("POST", "/api/v1/webhooks/1/deliveries/1/replay"),
        ("PATCH", "/api/v1/task/1"),
        ("POST", "/api/v1/task/bulk"),
        ("POST", "/api/v1/task/1/cancel"),
        ("POST", "/api/v1/task/1/retry"),
        ("POST", "/api/v1/task/1/resolve"),
    },
}


def test_every_call_names_its_scope_or_is_open_to_everybody():
    found: dict[str, set[tuple[str, str]]] = {"open": set()}
    for method, address, view in CALLS:
        needed = scope_of(view, method)
        word = "open" if AllowAny in view.permission_classes else str(needed)
        found.setdefault(word, set()).add((method, address))
    assert found == NEEDED | {"open": OPEN}


@pytest.mark.parametrize(
    ("method", "address", "scope"),
    [(method, address, scope) for scope, wanted in NEEDED.items() for method, address in sorted(wanted)],
)
def test_a_key_is_refused_without_the_scope_and_let_in_with_it(method, address, scope):
    # Of another user, so that nothing happens behind the door.
    user = UserFactory()
    others = [each for each in Scope.values if each != scope]
    detail = refused(
        key_of(user, *others).generic(method, address, "{}", "application/json"), 403, "insufficient_scope"
    )
    assert scope in detail
    let_in = key_of(user, scope).generic(method, address, "{}", "application/json")
    assert let_in.status_code not in (401, 403, 500)


class Undeclared(APIView):
    def get(self, request):
        return Response({})


def test_a_view_that_names_no_scope_is_closed_to_keys_and_open_to_tokens():
    user = UserFactory()
    _, secret = ApiKey.mint(user, "x", Scope.values)
    for header, status in ((secret, 403), (client_of(user)._credentials["HTTP_AUTHORIZATION"][7:], 200)):
        request = APIRequestFactory().get("/api/v1/x", HTTP_AUTHORIZATION=f"Bearer {header}")
        assert Undeclared.as_view()(request).status_code == status


def test_a_key_makes_no_key_that_may_do_more():
    user = UserFactory()
    client = key_of(user, "manage", "read")
    assert "send" in refused(make(client, scopes=["send", "read"]), 403, "insufficient_scope")
    assert make(client, scopes=["read"]).json()["scopes"] == ["read"]
    assert ApiKey.objects.count() == 2


def test_a_key_makes_no_key_that_lives_longer():
    user = UserFactory()
    end = timezone.now() + timedelta(days=1)
    client = key_of(user, expires_at=end)
    for later in (None, (end + timedelta(seconds=1)).isoformat()):
        response = make(client, expires_at=later)
        refused(response, 400, "invalid")
        assert response.json()["errors"][0]["code"] == "outlives_its_maker"
    assert make(client).status_code == 400
    assert make(client, expires_at=(end - timedelta(hours=1)).isoformat()).status_code == 201


def test_a_key_cannot_give_itself_a_login():
    user = UserFactory()
    response = key_of(user).patch(f"/api/v1/user/{user.pk}", {"password": "another password"}, format="json")
    refused(response, 403, "insufficient_scope")
    user.refresh_from_db()
    assert user.check_password(PASSWORD)


# Staff ------------------------------------------------------------------------------------------------


def test_staff_see_whose_keys_there_are_and_never_a_key():
    key, secret = ApiKey.mint(UserFactory(email="ada@example.com"), "shop", ["send", "read"])
    staff = Client()
    staff.force_login(UserFactory(is_staff=True, is_superuser=True))
    for address in ("/admin/accounts/apikey/", f"/admin/accounts/apikey/{key.pk}/change/"):
        page = staff.get(address).content.decode()
        assert all(shown in page for shown in ("ada@example.com", "shop", key.prefix, "read, send"))
        assert secret not in page
        assert key.digest not in page
    assert staff.get("/admin/accounts/apikey/add/").status_code == 403


@pytest.mark.parametrize("way", ["list", "page"])
def test_staff_revoke_a_key(way):
    key, secret = ApiKey.mint(UserFactory(), "shop", ["read"])
    assert bearer(secret).get("/api/v1/task/queue").status_code == 200
    staff = Client()
    staff.force_login(UserFactory(is_staff=True, is_superuser=True))
    if way == "list":
        chosen = {"action": "delete_selected", "_selected_action": [key.pk], "post": "yes"}
        staff.post("/admin/accounts/apikey/", chosen)
    else:
        staff.post(f"/admin/accounts/apikey/{key.pk}/delete/", {"post": "yes"})
    refused(bearer(secret).get("/api/v1/task/queue"), 401, "key_not_valid")


# Logs -------------------------------------------------------------------------------------------------


def test_no_key_gets_into_a_log(caplog):
    caplog.set_level(logging.DEBUG)
    user = UserFactory()
    secret = make(client_of(user), scopes=["manage"]).json()["key"]
    unknown = "mq_" + "canary" * 8
    bearer(secret).get(KEYS)
    bearer(secret).delete(f"{KEYS}/0")
    bearer(unknown).get(KEYS)
    said = "\n".join(str(record.__dict__) for record in caplog.records)
    assert "/api/v1/keys" in said
    assert secret not in said
    assert "canary" not in said
