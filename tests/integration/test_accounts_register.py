"""POST /register: who may send through which relay."""

import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection
from rest_framework.test import APIClient

from accounts.models import SmtpAccount, User
from tests.factories import UserFactory

pytestmark = pytest.mark.django_db

RELAY = {
    "smtp_host": "127.0.0.1",
    "smtp_port": 1025,
    "smtp-username": "relay-user",
    "smtp-password": "relay-secret",
}
USER = {"email": "Ada@Example.com", "password": "correct horse battery"}
FIELDS = set(RELAY)


@pytest.fixture(autouse=True)
def _loopback_is_allowed(settings):
    settings.SMTP_ALLOWED_NETWORKS = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
    settings.SMTP_ALLOWED_PORTS = [25, 465, 587, 2525]
    settings.DEFAULT_SMTP_URL = ""


def register(**body):
    return APIClient(raise_request_exception=False).post("/api/v1/register", body, format="json")


def bad_fields(response):
    assert response.status_code == 400, response.content
    return {error["field"] for error in response.json()["errors"]}


def test_a_user_is_registered_with_their_relay():
    response = register(**USER, **RELAY)
    user = User.objects.get()
    assert response.status_code == 201
    assert response.json() == {
        "id": user.pk,
        "email": "ada@example.com",
        "smtp_host": "127.0.0.1",
        "smtp_port": 1025,
        "smtp-username": "relay-user",
    }
    assert response["Location"] == f"/api/v1/user/{user.pk}"
    assert user.check_password(USER["password"])
    assert (user.smtp.state, user.smtp.security) == ("unverified", "auto")
    assert user.smtp.password == "relay-secret"


def test_the_relays_password_is_sealed_in_the_database():
    register(**USER, **RELAY)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT row_to_json(a)::text || row_to_json(u)::text FROM accounts_smtpaccount a, accounts_user u"
        )
        (stored,) = cursor.fetchone()
    assert "relay-user" in stored
    assert "relay-secret" not in stored
    assert USER["password"] not in stored


def test_underscored_names_are_understood_too():
    underscored = {name.replace("-", "_"): value for name, value in RELAY.items()}
    assert register(**USER, **underscored).status_code == 201
    assert SmtpAccount.objects.get().username == "relay-user"
    assert SmtpAccount.objects.get().password == "relay-secret"


def test_the_answer_is_the_same_whatever_else_is_sent():
    assert register(**USER, **RELAY, id=10**9, is_staff=True, is_superuser=True).status_code == 201
    user = User.objects.get()
    assert user.pk != 10**9
    assert not user.is_staff
    assert not user.is_superuser


@pytest.mark.parametrize(
    ("username", "given", "expected"),
    [
        ("relay-user", None, "ada@example.com"),
        ("box@example.org", None, "box@example.org"),
        ("box@example.org", "news@example.net", "news@example.net"),
        ("\u017fam@example.org", None, "ada@example.com"),
        ("box@example.org", "news@bücher.example", "news@bücher.example"),
    ],
)
def test_mail_comes_from_what_was_asked_else_the_mailbox_else_the_user(username, given, expected):
    extra = {"from_email": given} if given else {}
    register(**USER, **RELAY | {"smtp-username": username}, **extra)
    assert SmtpAccount.objects.get().from_email == expected


def test_without_a_relay_it_is_the_default_one(settings):
    settings.DEFAULT_SMTP_URL = "smtp://127.0.0.1:1025"
    response = register(**USER)
    assert response.status_code == 201
    assert [response.json()[name] for name in ("smtp_host", "smtp_port", "smtp-username")] == [None] * 3
    assert SmtpAccount.objects.get().uses_default_relay


def test_without_a_relay_and_without_a_default_all_four_fields_are_missed():
    assert bad_fields(register(**USER)) == FIELDS


@pytest.mark.parametrize("left_out", sorted(FIELDS))
@pytest.mark.parametrize("default", ["", "smtp://127.0.0.1:1025"])
def test_half_a_relay_is_refused_by_what_is_missing(settings, default, left_out):
    settings.DEFAULT_SMTP_URL = default
    some = {name: value for name, value in RELAY.items() if name != left_out}
    assert bad_fields(register(**USER, **some)) == {left_out}


def test_a_relay_without_login_has_neither_username_nor_password():
    assert register(**USER, **RELAY | {"smtp-username": "", "smtp-password": ""}).status_code == 201


@pytest.mark.parametrize("empty", ["smtp-username", "smtp-password"])
def test_one_of_username_and_password_alone_is_refused(empty):
    assert bad_fields(register(**USER, **RELAY | {empty: ""})) == {empty}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("email", "nobody"),
        ("email", "a@b@example.com"),
        ("email", "a@example.com\r\nBcc: b@example.com"),
        ("email", "a" * 250 + "@example.com"),
        ("email", None),
        ("email", ["a@example.com"]),
        ("password", "short"),
        ("password", 1234567890),
        ("password", "x" * 300),
        ("smtp_host", ""),
        ("smtp_host", None),
        ("smtp_host", 5),
        ("smtp_host", {"a": 1}),
        ("smtp_host", "two words"),
        ("smtp_host", "http://127.0.0.1/"),
        ("smtp_host", "127.0.0.1:25"),
        ("smtp_host", "user@127.0.0.1"),
        ("smtp_host", "-host"),
        ("smtp_host", "x" * 300),
        ("smtp_port", 0),
        ("smtp_port", 65536),
        ("smtp_port", -25),
        ("smtp_port", "many"),
        ("smtp_port", True),
        ("smtp_port", None),
        ("smtp-username", "a\r\nb"),
        ("smtp-username", 5),
        ("smtp-password", 5),
        ("smtp_security", "ssl"),
        ("smtp_security", 1),
        ("email", "\u017fam@example.com"),
        ("from_email", "nobody"),
        ("from_email", "\u017fam@example.com"),
        ("from_email", "sam@" + "ü" * 60 + ".example"),
    ],
)
def test_a_bad_value_is_refused_by_name_and_leaves_no_user(field, value):
    assert bad_fields(register(**USER | RELAY | {field: value})) == {field}
    assert not User.objects.exists()


def test_a_missing_email_and_password_are_named():
    assert bad_fields(register(**RELAY)) == {"email", "password"}


def test_a_host_that_does_not_resolve_just_now_is_accepted_unproven():
    response = register(**USER, **RELAY | {"smtp_host": "relay.invalid", "smtp_port": 587})
    assert response.status_code == 201
    assert SmtpAccount.objects.get().state == "unverified"


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "169.254.169.254", "::ffff:10.1.2.3", "167772161", "0xa.1", "fd00::1"]
)
def test_a_host_at_a_forbidden_address_is_refused(host):
    assert bad_fields(register(**USER, **RELAY | {"smtp_host": host, "smtp_port": 587})) == {"smtp_host"}


@pytest.mark.parametrize("host", ["8.8.8.8", "relay.invalid"])
def test_a_port_that_is_not_for_mail_is_refused(host):
    assert bad_fields(register(**USER, **RELAY | {"smtp_host": host, "smtp_port": 6379})) == {"smtp_port"}


@pytest.mark.parametrize("host", ["8.8.8.8", "relay.invalid"])
def test_plain_text_is_refused_outside_the_allowed_networks(host):
    relay = RELAY | {"smtp_host": host, "smtp_port": 587, "smtp_security": "none"}
    assert bad_fields(register(**USER, **relay)) == {"smtp_security"}


def test_plain_text_is_accepted_towards_an_allowed_network():
    assert register(**USER, **RELAY, smtp_security="none").status_code == 201


def test_the_resolver_is_asked_outside_any_transaction(monkeypatch, transactional_db):
    inside = []
    real = socket.getaddrinfo

    def spying(*args, **kwargs):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE state LIKE 'idle in transaction%%' AND datname = current_database()"
            )
            inside.append(cursor.fetchone()[0])
        connection.close()
        return real(*args, **kwargs)

    monkeypatch.setattr("accounts.guard.socket.getaddrinfo", spying)
    assert register(**USER, **RELAY).status_code == 201
    assert inside == [0]


@pytest.mark.parametrize("email", ["ada@example.com", "ADA@EXAMPLE.COM"])
def test_a_taken_address_is_a_conflict(email):
    UserFactory(email="ada@example.com")
    response = register(**USER | {"email": email}, **RELAY)
    assert (response.status_code, response.json()["code"]) == (409, "email_taken")
    assert User.objects.count() == 1


def test_of_several_who_register_an_address_at_once_one_wins(transactional_db):
    def attempt(_number):
        try:
            return register(**USER, **RELAY).status_code
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        answers = sorted(pool.map(attempt, range(8)))
    assert answers == [201] + [409] * 7
    assert User.objects.count() == SmtpAccount.objects.count() == 1
