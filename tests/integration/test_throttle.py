"""Limits: who has to wait, over several processes and without Redis, and what the answer says."""

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from django.contrib.auth.hashers import Argon2PasswordHasher
from django.db import connection
from django.test import Client
from rest_framework.test import APIClient

from accounts import throttle
from accounts.keys import ApiKey
from accounts.throttle import Limit, Use
from tasks import doorbell
from tests.factories import PASSWORD, UserFactory, client_of
from tests.routes import calls

pytestmark = pytest.mark.django_db

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT = Limit("test", 5, 60)
MAIL = {"recipient_email": "jane@example.com", "subject": "hello", "body": "Hello."}


def post(path, address="192.0.2.1", **body):
    client = APIClient(raise_request_exception=False, REMOTE_ADDR=address)
    return client.post(f"/api/v1/{path}", body, format="json")


def login(email, password="not the password", address="192.0.2.1"):
    return post("login", address, email=email, password=password)


def has_to_wait(response, policy: str, window: int) -> None:
    assert (response.status_code, response["Content-Type"]) == (429, "application/problem+json")
    assert response.json()["code"] == "too_many_requests"
    wait = int(response["Retry-After"])
    assert 0 < wait <= window
    assert policy in response["RateLimit-Policy"].split(", ")
    name = policy.partition(";")[0]
    left = dict(each.split(";", 1) for each in response["RateLimit"].split(", "))
    assert re.fullmatch(r"r=0;t=\d+", left[name])


@pytest.fixture
def no_redis(settings) -> None:
    """Nobody answers at its address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        settings.REDIS_URL = f"redis://127.0.0.1:{taken.getsockname()[1]}/0"
        yield


@pytest.fixture
def frozen_redis(settings) -> Iterator[list[socket.socket]]:
    """Whoever connects gets no answer; the connections so far."""
    came: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        settings.REDIS_URL = f"redis://127.0.0.1:{server.getsockname()[1]}/0"

        def accept() -> None:
            while True:
                try:
                    came.append(server.accept()[0])
                except OSError:
                    return

        listener = threading.Thread(target=accept)
        listener.start()
        yield came
        server.shutdown(socket.SHUT_RDWR)
    listener.join()
    for each in came:
        each.close()


# Login ------------------------------------------------------------------------------------------------


def test_the_sixth_wrong_password_waits_and_so_does_a_right_one_after_it(settings):
    settings.THROTTLE_LOGIN_ADDRESS = None
    user = UserFactory()
    assert [login(user.email).status_code for _ in range(5)] == [401] * 5
    has_to_wait(login(user.email), '"login";q=5;w=300', 300)
    has_to_wait(login(user.email.upper() + " ", PASSWORD), '"login";q=5;w=300', 300)
    assert login(user.email, PASSWORD, address="192.0.2.2").status_code == 200
    assert login(UserFactory().email, PASSWORD).status_code == 200


def test_an_unknown_or_closed_account_waits_like_any_other(settings):
    settings.THROTTLE_LOGIN_ADDRESS = None
    seen = []
    for email in (UserFactory().email, UserFactory(is_active=False).email, "nobody@example.com", "x"):
        answers = [login(email) for _ in range(6)]
        body = re.sub(r"\d+ s", "", answers[-1].content.decode())
        seen.append(([each.status_code for each in answers], body, answers[-1]["RateLimit-Policy"]))
    assert seen == seen[:1] * 4
    assert seen[0][0] == [401] * 5 + [429]


def test_the_sixth_wrong_password_from_an_address_waits_whatever_the_account(settings):
    settings.THROTTLE_LOGIN_ADDRESS = (5, 3600)
    users = [UserFactory() for _ in range(6)]
    assert [login(user.email).status_code for user in users[:5]] == [401] * 5
    has_to_wait(login(users[5].email), '"login-address";q=5;w=3600', 3600)
    assert login(users[5].email, PASSWORD, address="192.0.2.2").status_code == 200


def test_one_persons_typos_lock_nobody_else_out_of_their_office():
    typist, colleague = UserFactory(), UserFactory()
    assert [login(typist.email).status_code for _ in range(6)] == [401] * 5 + [429]
    assert login(colleague.email, PASSWORD).status_code == 200


def test_right_passwords_count_for_nothing():
    user = UserFactory()
    assert [login(user.email, PASSWORD).status_code for _ in range(12)] == [200] * 12


def test_a_right_password_ends_the_count(settings):
    settings.THROTTLE_LOGIN_ADDRESS = None
    user = UserFactory()
    for _ in range(3):
        assert [login(user.email).status_code for _ in range(4)] == [401] * 4
        assert login(user.email, PASSWORD).status_code == 200


def test_of_fifty_wrong_passwords_at_once_five_are_looked_at(transactional_db, monkeypatch):
    user = UserFactory()
    looked_at = []
    real = Argon2PasswordHasher.verify

    def noted(self, *args):
        looked_at.append(args)
        return real(self, *args)

    monkeypatch.setattr(Argon2PasswordHasher, "verify", noted)

    def attempt(_number):
        try:
            return login(user.email).status_code
        finally:
            connection.close()

    with ThreadPoolExecutor(25) as pool:
        answers = sorted(pool.map(attempt, range(50)))
    assert answers == [401] * 5 + [429] * 45
    assert len(looked_at) == 5


@pytest.mark.parametrize("processes", [1, 2])
def test_without_redis_the_sixth_waits_too(no_redis, settings, monkeypatch, processes):
    settings.THROTTLE_LOGIN_ADDRESS, settings.WEB_PROCESSES = None, processes
    user = UserFactory()
    memories = [throttle.Local() for _ in range(processes)]
    answers = []
    for number in range(6):
        monkeypatch.setattr(throttle, "_local", memories[number % processes])  # another process
        answers.append(login(user.email).status_code)
    allowed = 5 // processes * processes
    assert answers == [401] * allowed + [429] * (6 - allowed)


def test_the_admin_counts_together_with_the_api(settings):
    user = UserFactory(is_staff=True)
    for _ in range(3):
        login(user.email)
    page = Client(REMOTE_ADDR="192.0.2.1")
    for password in ("wrong", "wrong", PASSWORD):
        answer = page.post("/admin/login/", {"username": user.email, "password": password, "next": "/admin/"})
    assert answer.status_code == 200
    assert "Too many wrong passwords" in answer.content.decode()
    assert login(user.email, PASSWORD).status_code == 429
    fresh = {"username": user.email, "password": PASSWORD, "next": "/admin/"}
    assert Client(REMOTE_ADDR="192.0.2.2").post("/admin/login/", fresh).status_code == 302


@pytest.mark.parametrize("missing", ["username", "password"])
def test_a_form_that_is_not_filled_in_ends_no_count(settings, missing):
    settings.THROTTLE_LOGIN_ADDRESS = None
    user = UserFactory(is_staff=True)
    page = Client(REMOTE_ADDR="192.0.2.1")
    for _ in range(4):
        login(user.email)
    form = {"username": user.email, "password": PASSWORD} | {missing: ""}
    assert page.post("/admin/login/", form).status_code == 200
    assert [login(user.email).status_code for _ in range(2)] == [401, 429]


def test_wrong_passwords_in_the_admin_count_for_the_address_too(settings):
    settings.THROTTLE_LOGIN_ADDRESS = (5, 3600)
    page = Client(REMOTE_ADDR="192.0.2.1")
    for number in range(5):
        page.post("/admin/login/", {"username": f"nobody{number}@example.com", "password": "wrong"})
    has_to_wait(login(UserFactory().email, PASSWORD), '"login-address";q=5;w=3600', 3600)


# Counting ---------------------------------------------------------------------------------------------

_SPENDING = """
import django, sys
django.setup()
from accounts.throttle import Limit, Use, spend
print(sum(spend(Use(Limit("test", 20, 600), "ada")).granted for _ in range(50)))
"""


def test_two_processes_count_together(settings):
    environment = {
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "DEBUG": "true",
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "REDIS_URL": settings.REDIS_URL,
    }
    both = [
        subprocess.Popen(
            [sys.executable, "-c", _SPENDING], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    granted = [int(each.communicate()[0]) for each in both]
    assert sum(granted) == 20
    assert not throttle.spend(Use(Limit("test", 20, 600), "ada")).granted


def test_a_count_ends_with_its_window():
    for _ in range(5):
        verdict = throttle.spend(Use(LIMIT, "ada"))
    use = Use(LIMIT, "ada")
    assert not throttle.spend(use).granted
    assert 0 < doorbell.client().pttl(use.key) <= 60_000
    assert 0 < verdict.standings[0].reset <= 60
    doorbell.client().pexpire(use.key, 1)
    while doorbell.client().exists(use.key):
        pass
    assert throttle.spend(use).standings[0].left == 4


def test_neither_what_passes_nor_what_is_refused_prolongs_the_wait():
    use = Use(LIMIT, "ada")
    throttle.spend(use)
    doorbell.client().pexpire(use.key, 30_000)
    for _ in range(4):
        assert throttle.spend(use).standings[0].reset <= 30
    for _ in range(20):
        assert throttle.spend(use).wait <= 30
    assert doorbell.client().get(use.key) == b"5"


@pytest.mark.parametrize("redis_is", ["there", "away"])
def test_many_at_once_pass_whole_or_not_at_all(request, settings, redis_is):
    settings.WEB_PROCESSES = 1
    if redis_is == "away":
        request.getfixturevalue("no_redis")
    assert throttle.spend(Use(LIMIT, "ada", 3)).granted
    refused = throttle.spend(Use(LIMIT, "ada", 3))
    assert (refused.granted, refused.standings[0].left) == (False, 2)
    assert 0 < refused.wait <= 60
    assert throttle.spend(Use(LIMIT, "ada", 2)).granted
    assert throttle.spend(Use(LIMIT, "bob", 50)).granted, "what could never pass would wait for ever"
    assert not throttle.spend(Use(LIMIT, "bob")).granted


def test_where_one_limit_refuses_the_others_are_not_used_up():
    other = Limit("other", 5, 60)
    throttle.spend(Use(LIMIT, "ada", 5))
    verdict = throttle.spend(Use(other, "ada"), Use(LIMIT, "ada"))
    assert [each.left for each in verdict.standings] == [5, 0]


def test_nobody_can_read_who_it_was():
    use = Use(LIMIT, "ada@example.com 192.0.2.1")
    throttle.spend(use)
    (key,) = doorbell.client().scan_iter("mailqueue:throttle:*")
    assert b"ada" not in key
    assert len(Use(LIMIT, "x" * 100_000).key) == len(use.key)


def test_a_frozen_redis_is_asked_once_and_then_left_alone(frozen_redis):
    assert throttle._client("redis://127.0.0.1:1/0").get_connection_kwargs()["socket_timeout"] == 1
    for _ in range(4):
        throttle.spend(Use(Limit("test", 100, 60), "ada"))
        throttle.forget(Use(LIMIT, "bob"))
    while not frozen_redis:  # who listens may be slower than who gives up
        pass
    assert len(frozen_redis) == 1


def test_redis_is_asked_again_after_the_silence(no_redis, settings, monkeypatch):
    throttle.spend(Use(LIMIT, "ada"))
    asked = []
    monkeypatch.setattr(
        throttle, "_spend_in_redis", lambda uses: asked.append(uses) or throttle._local.spend(uses)
    )
    throttle.spend(Use(LIMIT, "ada"))
    assert asked == []
    monkeypatch.setattr(throttle, "_silent_until", throttle._silent_until - throttle.SILENCE_SECONDS)
    throttle.spend(Use(LIMIT, "ada"))
    assert len(asked) == 1


def test_one_process_does_not_remember_everybody(no_redis, monkeypatch):
    monkeypatch.setattr(throttle, "KEEP_COUNTS", 10)
    for number in range(25):
        throttle.spend(Use(LIMIT, str(number)))
    assert len(throttle._local._counts) <= 10


# The limits of the API --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"), [("register", "email"), ("auth/signup", "id")], ids=["register", "signup"]
)
def test_an_address_registers_so_often_only(settings, path, name):
    settings.THROTTLE_REGISTER, settings.DEFAULT_SMTP_URL = (2, 3600), "smtp://127.0.0.1:1025"
    answers = [post(path, **{name: f"ada{n}@example.com", "password": PASSWORD}) for n in range(3)]
    assert [each.status_code for each in answers] == [201, 201, 429]
    assert answers[0]["RateLimit"].startswith('"register";r=1;t=')
    has_to_wait(answers[2], '"register";q=2;w=3600', 3600)
    fresh = {name: "bob@example.com", "password": PASSWORD}
    assert post(path, "192.0.2.2", **fresh).status_code == 201


def test_a_user_tests_their_relay_so_often_only(settings):
    settings.THROTTLE_SMTP_TEST = (1, 3600)
    user, other = UserFactory(), UserFactory()
    assert client_of(user).post(f"/api/v1/user/{user.pk}/smtp/test").status_code == 200
    has_to_wait(client_of(user).post(f"/api/v1/user/{user.pk}/smtp/test"), '"smtp-test";q=1;w=3600', 3600)
    assert client_of(other).post(f"/api/v1/user/{other.pk}/smtp/test").status_code == 200


def test_a_user_hands_over_so_much_only_with_whatever_key(settings):
    settings.THROTTLE_ENQUEUE = (3, 3600)
    user = UserFactory()
    clients = [client_of(user)]
    for _ in range(2):
        clients.append(APIClient())
        clients[-1].credentials(HTTP_AUTHORIZATION=f"Bearer {ApiKey.mint(user, 'x', ['send'])[1]}")
    answers = [client.post("/api/v1/task/enqueue", MAIL, format="json") for client in clients]
    assert [each["RateLimit"].partition(";t=")[0] for each in answers] == [
        f'"enqueue";r={left}' for left in (2, 1, 0)
    ]
    has_to_wait(clients[1].post("/api/v1/task/enqueue", MAIL, format="json"), '"enqueue";q=3;w=3600', 3600)
    assert client_of(UserFactory()).post("/api/v1/task/enqueue", MAIL, format="json").status_code == 202


def test_where_there_is_no_limit_redis_is_not_asked(settings, monkeypatch):
    monkeypatch.setattr(throttle, "spend", None)
    assert settings.THROTTLE_ENQUEUE is None
    response = client_of(UserFactory()).post("/api/v1/task/enqueue", MAIL, format="json")
    assert response.status_code == 202
    assert "RateLimit" not in response


def test_without_redis_a_limited_call_is_answered_all_the_same(no_redis, settings):
    settings.THROTTLE_ENQUEUE, settings.WEB_PROCESSES = (2, 60), 1
    client = client_of(UserFactory())
    answers = [client.post("/api/v1/task/enqueue", MAIL, format="json").status_code for _ in range(3)]
    assert answers == [202, 202, 429]


def test_the_schema_says_which_calls_are_limited():
    paths = APIClient().get("/api/schema?format=json").json()["paths"]
    limited = {
        (method, address)
        for method, address, view in calls()
        if view.throttle_classes or address == "/api/v1/login" or address.endswith("/events")
    } - {("POST", "/api/v1/task")}  # the same as with a slash, and not said twice
    documented = {
        (method.upper(), re.sub(r"\{\w+\}", "1", address))
        for address, operations in paths.items()
        for method, operation in operations.items()
        if "429" in operation["responses"]
    }
    assert documented == limited
    assert len(limited) == 11
