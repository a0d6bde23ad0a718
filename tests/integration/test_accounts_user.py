"""GET, PATCH and DELETE /user/{id}."""

import ipaddress
from datetime import timedelta

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.models import AccountState, SmtpAccount, User, account_closed
from tests.factories import PASSWORD, UserFactory, client_of

pytestmark = pytest.mark.django_db

RELAY = {
    "smtp_host": "127.0.0.1",
    "smtp_port": 1025,
    "smtp-username": "relay-user",
    "smtp-password": "relay-secret",
}


@pytest.fixture(autouse=True)
def _loopback_is_allowed(settings):
    settings.SMTP_ALLOWED_NETWORKS = (ipaddress.ip_network("127.0.0.0/8"),)
    settings.SMTP_ALLOWED_PORTS = [25, 465, 587, 2525]
    settings.DEFAULT_SMTP_URL = "smtp://127.0.0.1:1025"


@pytest.fixture
def user():
    """Has a relay that has failed them."""
    user = UserFactory()
    SmtpAccount.objects.filter(owner=user).update(
        host="127.0.0.1",
        port=2525,
        username="old-user",
        state=AccountState.PAUSED,
        reason="535 wrong password",
        paused_until=timezone.now() + timedelta(hours=1),
        faults=3,
    )
    user.smtp.refresh_from_db()
    user.smtp.password = "old-secret"
    user.smtp.save()
    return user


def patch(user, **body):
    return client_of(user).patch(f"/api/v1/user/{user.pk}", body, format="json")


def bad_fields(response):
    assert response.status_code == 400, response.content
    return {error["field"] for error in response.json()["errors"]}


def test_a_user_reads_their_account_without_any_password(user):
    response = client_of(user).get(f"/api/v1/user/{user.pk}")
    shown = response.json()
    assert shown == {
        "id": user.pk,
        "email": user.email,
        "smtp_host": "127.0.0.1",
        "smtp_port": 2525,
        "smtp-username": "old-user",
        "smtp_security": "auto",
        "from_email": user.email,
        "max_connections": 10,
        "limits": {"per_second": None, "per_minute": None, "per_hour": None, "per_day": None},
        "account": {
            "state": "paused",
            "reason": "535 wrong password",
            "until": user.smtp.paused_until.isoformat().replace("+00:00", "Z"),
            "history": [],
        },
        "created_at": user.created_at.isoformat().replace("+00:00", "Z"),
    }


def test_on_the_default_relay_there_is_no_host_to_show():
    user = UserFactory()
    shown = client_of(user).get(f"/api/v1/user/{user.pk}").json()
    assert [shown[name] for name in ("smtp_host", "smtp_port", "smtp-username")] == [None] * 3
    assert shown["account"] == {"state": "unverified", "reason": "", "until": None, "history": []}


@pytest.mark.parametrize("method", ["get", "patch", "delete"])
@pytest.mark.parametrize("asking", ["other", "staff"])
def test_somebody_elses_account_does_not_exist(user, method, asking):
    client = client_of(UserFactory(is_staff=asking == "staff", is_superuser=asking == "staff"))
    missing = getattr(client, method)("/api/v1/user/999999999999999999999999")
    response = getattr(client, method)(f"/api/v1/user/{user.pk}")
    assert response.status_code == missing.status_code == 404
    assert response.json() == missing.json()
    assert User.objects.get(pk=user.pk).is_active


@pytest.mark.parametrize("method", ["get", "patch", "delete"])
def test_nobody_reads_an_account_without_a_token(user, method):
    assert getattr(APIClient(), method)(f"/api/v1/user/{user.pk}").status_code == 401


@pytest.mark.parametrize(
    ("name", "value", "column"),
    [
        ("smtp_port", 1025, "port"),
        ("smtp-username", "new-user", "username"),
        ("smtp_username", "new-user", "username"),
        ("smtp-password", "new-secret", "password"),
        ("smtp_password", "new-secret", "password"),
        ("smtp_security", "none", "security"),
    ],
)
def test_new_smtp_settings_are_kept_and_reopen_the_account(user, name, value, column):
    response = patch(user, **{name: value})
    assert response.status_code == 200
    shown = response.json()["account"]
    (event,) = shown.pop("history")
    assert shown == {"state": "unverified", "reason": "", "until": None}
    assert (event["what"], event["reason"]) == ("resumed", "The SMTP settings were changed.")
    assert "secret" not in response.content.decode()
    account = SmtpAccount.objects.get(owner=user)
    assert getattr(account, column) == value
    assert account.faults == 0


def test_another_host_is_not_told_the_stored_password(user):
    assert bad_fields(patch(user, smtp_host="127.0.0.2")) == {"smtp-password"}
    assert bad_fields(patch(user, smtp_host="127.0.0.2", smtp_username="new-user")) == {"smtp-password"}
    account = SmtpAccount.objects.get(owner=user)
    assert (account.host, account.password, account.state) == ("127.0.0.1", "old-secret", AccountState.PAUSED)


@pytest.mark.parametrize(
    "login",
    [
        {"smtp-password": "new-secret"},
        {"smtp_password": "old-secret"},
        {"smtp-username": "", "smtp-password": ""},
    ],
)
def test_another_host_comes_with_its_own_password_or_without_a_login(user, login):
    assert patch(user, smtp_host="127.0.0.2", **login).status_code == 200
    account = SmtpAccount.objects.get(owner=user)
    assert account.host == "127.0.0.2"
    assert account.password == next(value for name, value in login.items() if "password" in name)
    assert account.state == AccountState.UNVERIFIED


def test_the_same_host_or_one_without_a_stored_password_needs_none(user):
    assert patch(user, smtp_host="127.0.0.1", smtp_port=1025).status_code == 200
    SmtpAccount.objects.filter(owner=user).update(username="", sealed_password="")
    assert patch(user, smtp_host="127.0.0.2").status_code == 200


@pytest.mark.parametrize(
    ("name", "value", "column"),
    [("from_email", "news@example.net", "from_email"), ("max_connections", 3, "max_connections")],
)
def test_what_is_not_the_relays_leaves_the_account_paused(user, name, value, column):
    response = patch(user, **{name: value})
    assert response.json()[name] == value
    account = SmtpAccount.objects.get(owner=user)
    assert getattr(account, column) == value
    assert (account.state, account.faults) == (AccountState.PAUSED, 3)


def test_an_empty_change_changes_nothing(user):
    before = client_of(user).get(f"/api/v1/user/{user.pk}").json()
    response = patch(user, email="other@example.com", is_staff=True, account={"state": "active"}, id=5)
    assert (response.status_code, response.json()) == (200, before)
    assert not User.objects.get(pk=user.pk).is_staff


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"smtp_host": "10.0.0.1"}, "smtp_host"),
        ({"smtp_host": "8.8.8.8", "smtp_port": 80}, "smtp_port"),
        ({"smtp_host": "8.8.8.8", "smtp_security": "none"}, "smtp_security"),
        ({"smtp_port": 0}, "smtp_port"),
        ({"smtp-password": ""}, "smtp-password"),
        ({"smtp-username": ""}, "smtp-username"),
        ({"max_connections": 0}, "max_connections"),
        ({"max_connections": 101}, "max_connections"),
        ({"password": "short"}, "password"),
        ({"from_email": "nobody"}, "from_email"),
        ({"from_email": "\u017fam@example.com"}, "from_email"),
        ({"from_email": "sam@" + "ü" * 60 + ".example"}, "from_email"),
    ],
)
def test_a_bad_change_is_refused_by_name_and_changes_nothing(user, body, field):
    before = SmtpAccount.objects.filter(owner=user).values().get()
    assert bad_fields(patch(user, **body)) == {field}
    assert SmtpAccount.objects.filter(owner=user).values().get() == before


def test_a_port_of_an_allowed_network_does_not_come_along_to_another_host(user):
    assert patch(user, smtp_port=1025).status_code == 200
    assert bad_fields(patch(user, smtp_host="8.8.8.8")) == {"smtp_port"}


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_host_goes_back_to_the_default_relay(user, empty):
    assert patch(user, smtp_host=empty).json()["smtp_host"] is None
    account = SmtpAccount.objects.get(owner=user)
    assert account.uses_default_relay
    assert (account.username, account.sealed_password) == ("", "")


def test_where_there_is_no_default_relay_a_host_is_needed(user, settings):
    settings.DEFAULT_SMTP_URL = ""
    assert bad_fields(patch(user, smtp_host="")) == {"smtp_host"}


def test_leaving_the_default_relay_takes_a_whole_one():
    user = UserFactory()
    assert bad_fields(patch(user, smtp_host="127.0.0.1")) == set(RELAY) - {"smtp_host"}
    assert patch(user, **RELAY).json()["smtp_host"] == "127.0.0.1"


def test_a_new_password_ends_the_old_one_and_its_tokens(user):
    old = client_of(user)
    assert (
        old.patch(f"/api/v1/user/{user.pk}", {"password": "another password"}, format="json").status_code
        == 200
    )
    assert old.get(f"/api/v1/user/{user.pk}").status_code == 401
    logins = [
        APIClient().post("/api/v1/login", {"email": user.email, "password": word}, format="json").status_code
        for word in (PASSWORD, "another password")
    ]
    assert logins == [401, 200]


def test_an_old_token_does_not_come_back_with_the_new_one(user):
    old = client_of(user)
    patch(user, password="another password")
    new = client_of(User.objects.get(pk=user.pk))
    assert new.get(f"/api/v1/user/{user.pk}").status_code == 200
    assert old.get(f"/api/v1/user/{user.pk}").status_code == 401


def test_a_closed_account_is_out_and_its_ledger_told(user):
    told = []

    def receiver(user, **_signal):
        told.append(user.pk)

    account_closed.connect(receiver)
    client = client_of(user)
    try:
        response = client.delete(f"/api/v1/user/{user.pk}")
    finally:
        account_closed.disconnect(receiver)
    assert (response.status_code, response.content) == (204, b"")
    assert told == [user.pk]
    assert client.get(f"/api/v1/user/{user.pk}").status_code == 401
    login = APIClient().post("/api/v1/login", {"email": user.email, "password": PASSWORD}, format="json")
    assert login.status_code == 401


def test_an_account_stays_open_if_its_ledger_cannot_be_told(user, transactional_db):
    def receiver(**_signal):
        raise RuntimeError("no")

    account_closed.connect(receiver)
    try:
        assert client_of(user).delete(f"/api/v1/user/{user.pk}").status_code == 500
    finally:
        account_closed.disconnect(receiver)
    assert User.objects.get(pk=user.pk).is_active
