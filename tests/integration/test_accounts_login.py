"""POST /login and /token/refresh, and what a token is good for."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import jwt
import pytest
import time_machine
from django.contrib.auth.hashers import Argon2PasswordHasher
from django.db import connection
from rest_framework.test import APIClient
from rest_framework_simplejwt.token_blacklist.models import OutstandingToken
from rest_framework_simplejwt.tokens import AccessToken

from accounts.api import authentication
from accounts.api.authentication import SingleUseToken
from tests.factories import PASSWORD, UserFactory, client_of

pytestmark = pytest.mark.django_db


def post(path, **body):
    return APIClient(raise_request_exception=False).post(f"/api/v1/{path}", body, format="json")


def read(user, token):
    client = APIClient(raise_request_exception=False)
    return client.get(f"/api/v1/user/{user.pk}", HTTP_AUTHORIZATION=f"Bearer {token}").status_code


def test_login_answers_the_id_and_tokens_that_work():
    user = UserFactory()
    response = post("login", email=user.email.upper(), password=PASSWORD)
    assert response.status_code == 200
    assert response.json().keys() == {"id", "token", "refresh"}
    assert response.json()["id"] == user.pk
    assert read(user, response.json()["token"]) == 200


def _hashing(monkeypatch) -> list[str]:
    """Notes each run of the slow hash."""
    runs: list[str] = []
    for name in ("encode", "verify"):
        real = getattr(Argon2PasswordHasher, name)

        def noted(self, *args, _real=real, _name=name, **kwargs):
            runs.append(_name)
            return _real(self, *args, **kwargs)

        monkeypatch.setattr(Argon2PasswordHasher, name, noted)
    return runs


def test_a_wrong_password_and_an_unknown_or_closed_user_are_answered_alike_for_the_same_work(monkeypatch):
    known, closed = UserFactory(), UserFactory(is_active=False)
    runs = _hashing(monkeypatch)
    answers, work = [], []
    for email, password in [
        (known.email, "not the password"),
        ("nobody@example.com", "not the password"),
        ("no address at all", "not the password"),
        (closed.email, PASSWORD),
    ]:
        runs.clear()
        response = post("login", email=email, password=password)
        answers.append((response.status_code, response.json(), response["WWW-Authenticate"]))
        work.append(len(runs))
    assert answers[0][0] == 401
    assert answers == answers[:1] * 4
    assert work == [1] * 4


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"email": "a@example.com"}, "password"),
        ({"password": "x"}, "email"),
        ({"email": 5, "password": "x"}, "email"),
        ({"email": "a@example.com", "password": ["x"]}, "password"),
    ],
)
def test_login_names_what_is_missing_or_wrong(body, field):
    response = post("login", **body)
    assert response.status_code == 400
    assert [error["field"] for error in response.json()["errors"]] == [field]


def test_a_stale_token_does_not_hinder_login():
    user = UserFactory()
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION="Bearer stale.stale.stale")
    response = client.post("/api/v1/login", {"email": user.email, "password": PASSWORD}, format="json")
    assert response.status_code == 200


def test_a_refresh_token_gives_a_new_pair_and_works_once():
    user = UserFactory()
    old = post("login", email=user.email, password=PASSWORD).json()["refresh"]
    first, second = post("token/refresh", refresh=old), post("token/refresh", refresh=old)
    assert (first.status_code, second.status_code) == (200, 401)
    assert first.json().keys() == {"token", "refresh"}
    assert read(user, first.json()["token"]) == 200
    assert post("token/refresh", refresh=first.json()["refresh"]).status_code == 200


def test_of_fifty_refreshes_at_once_exactly_one_wins(transactional_db):
    token = str(SingleUseToken.for_user(UserFactory()))

    def attempt(_number):
        try:
            return post("token/refresh", refresh=token).status_code
        finally:
            connection.close()

    with ThreadPoolExecutor(25) as pool:
        answers = sorted(pool.map(attempt, range(50)))
    assert answers == [200] + [401] * 49


def test_a_live_refresh_token_is_nowhere_in_the_database():
    user = UserFactory()
    old = post("login", email=user.email, password=PASSWORD).json()["refresh"]
    live = post("token/refresh", refresh=old).json()["refresh"]
    assert not OutstandingToken.objects.filter(token=live).exists()


@pytest.mark.parametrize("end", ["closed", "deleted", "password"])
def test_a_refresh_token_ends_with_its_account_and_password(end):
    user = UserFactory()
    token = str(SingleUseToken.for_user(user))
    if end == "deleted":
        user.delete()
    else:
        user.is_active = end != "closed"
        if end == "password":
            user.set_password("another password")
        user.save()
    assert post("token/refresh", refresh=token).status_code == 401


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "é", 5, None])
def test_what_is_no_refresh_token_is_refused(token):
    assert post("token/refresh", refresh=token).status_code in (400, 401)


def test_an_access_token_does_not_refresh_and_a_refresh_token_gives_no_access():
    user = UserFactory()
    refresh = SingleUseToken.for_user(user)
    assert post("token/refresh", refresh=str(refresh.access_token)).status_code == 401
    assert read(user, str(refresh)) == 401


def _token(user, *, key=None, algorithm="HS256", lifetime=timedelta(minutes=5), **claims):
    token = AccessToken.for_user(user)
    token.set_exp(lifetime=lifetime)
    payload = token.payload | claims
    return jwt.encode(payload, key, algorithm=algorithm)


@pytest.mark.parametrize(
    "forgery",
    [
        "none",
        "other key",
        "other algorithm",
        "secret key",
        "no signature",
        "expired",
        "no user",
        "wrong type",
        "closed",
    ],
)
def test_a_forged_or_expired_token_is_refused(settings, forgery):
    user, key = UserFactory(), settings.SIMPLE_JWT["SIGNING_KEY"]
    assert read(user, _token(user, key=key)) == 200, "the control must pass"
    forged = {
        "none": lambda: _token(user, algorithm="none"),
        "other key": lambda: _token(user, key="k" * 64),
        "other algorithm": lambda: _token(user, key=key, algorithm="HS512"),
        "no signature": lambda: _token(user, key=key).rpartition(".")[0] + ".",
        "closed": lambda: _token(UserFactory(is_active=False), key=key),
        "secret key": lambda: _token(user, key=settings.SECRET_KEY),
        "expired": lambda: _token(user, key=key, lifetime=timedelta(seconds=-1)),
        "no user": lambda: _token(user, key=key, user_id=None),
        "wrong type": lambda: _token(user, key=key, token_type="refresh"),
    }[forgery]()
    assert read(user, forged) == 401


def test_a_token_that_was_taken_before_is_refused_once_it_has_expired(settings):
    user = UserFactory()
    token = _token(user, key=settings.SIMPLE_JWT["SIGNING_KEY"], lifetime=timedelta(minutes=5))
    with time_machine.travel(datetime.now(UTC), tick=False) as clock:
        assert read(user, token) == 200
        clock.shift(timedelta(minutes=4))
        assert read(user, token) == 200
        clock.shift(timedelta(minutes=2))
        assert read(user, token) == 401


def test_a_known_user_costs_no_query_for_a_while(django_assert_num_queries):
    client = client_of(UserFactory())
    client.get("/api/v1/user/0")
    with django_assert_num_queries(1):  # the view's own
        client.get("/api/v1/user/0")


def test_a_closed_account_is_out_once_the_kept_user_is_old(monkeypatch):
    user = UserFactory()
    client = client_of(user)
    now = [100.0]
    monkeypatch.setattr(authentication.time, "monotonic", lambda: now[0])
    assert client.get(f"/api/v1/user/{user.pk}").status_code == 200
    type(user).objects.filter(pk=user.pk).update(is_active=False)  # as another process does
    now[0] += 5.0
    response = client.get(f"/api/v1/user/{user.pk}")
    assert (response.status_code, response.json()["code"]) == (401, "user_inactive")


def test_a_new_token_works_at_once_although_the_user_was_kept_with_the_old_password():
    user = UserFactory()
    assert client_of(user).get(f"/api/v1/user/{user.pk}").status_code == 200
    user.set_password("another password")
    user.save()  # as another process does
    assert client_of(user).get(f"/api/v1/user/{user.pk}").status_code == 200
