"""Idempotency-Key: the same call is done once, whoever makes it again and when; its answer stays the same."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import time_machine
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.models import User
from mailqueue import upkeep
from tasks import doorbell, idempotency, ledger
from tasks.models import IdempotencyKey, MailTask
from tests.factories import UserFactory, client_of

pytestmark = pytest.mark.django_db
BATCH, ENQUEUE = "/api/v1/task/enqueue/batch", "/api/v1/task/enqueue"
A_MAIL = {"recipient_email": "jane@example.com", "subject": "hello", "body": "Hello."}
ANOTHER = A_MAIL | {"subject": "something else"}


def call(api: APIClient, key: str, body: Any = A_MAIL, path: str = ENQUEUE) -> Any:
    return api.post(path, json.dumps(body), content_type="application/json", headers={"Idempotency-Key": key})


def assert_problem(answer: Any, status: int, code: str) -> None:
    assert (answer.status_code, answer["Content-Type"]) == (status, "application/problem+json")
    assert answer.json()["code"] == code or answer.json()["errors"][0]["code"] == code


@pytest.mark.parametrize(
    ("path", "body", "status"), [(ENQUEUE, A_MAIL, 202), (BATCH, {"messages": [A_MAIL, {}, ANOTHER]}, 207)]
)
def test_the_same_call_is_done_once_and_answered_alike(
    api: APIClient, path: str, body: Any, status: int
) -> None:
    first, second = (call(api, "a-key", body, path) for _ in range(2))
    assert first.status_code == second.status_code == status
    assert first.content == second.content
    assert "Idempotency-Replayed" not in first
    assert second["Idempotency-Replayed"] == "true"
    assert first.get("Location") == second.get("Location")
    assert ("Location" in first) == (status == 202)
    assert MailTask.objects.count() == str(body).count("jane@")


def test_the_order_of_fields_makes_no_other_call(api: APIClient) -> None:
    assert call(api, "a-key").json() == call(api, "a-key", dict(reversed(A_MAIL.items()))).json()


@pytest.mark.parametrize(
    ("path", "body"),
    [(ENQUEUE, ANOTHER), (ENQUEUE, A_MAIL | {"lane": "otp"}), (ENQUEUE, {}), (BATCH, {"messages": [A_MAIL]})],
)
def test_the_same_key_for_another_call_is_refused(api: APIClient, path: str, body: Any) -> None:
    call(api, "a-key")
    assert_problem(call(api, "a-key", body, path), 422, "idempotency_key_reused")
    assert MailTask.objects.count() == 1


def test_the_same_key_at_another_address_is_refused_though_the_body_is_the_same(api: APIClient) -> None:
    body = A_MAIL | {"messages": [A_MAIL]}  # good for both
    assert call(api, "a-key", body).status_code == 202
    assert_problem(call(api, "a-key", body, BATCH), 422, "idempotency_key_reused")
    assert call(api, "another", body, BATCH).status_code == 207


def test_bare_and_quoted_are_the_same_key(api: APIClient) -> None:
    given = ["8e03978e-40d5", '"8e03978e-40d5"', ' "8e03978e-40d5" ']
    assert len({call(api, key).content for key in given}) == 1
    assert MailTask.objects.count() == 1
    assert call(api, r'"a\"b\\c"').status_code == 202
    assert IdempotencyKey.objects.filter(key='a"b\\c').exists()


@pytest.mark.parametrize("key", ["k", "x" * 255, '"' + "x" * 255 + '"', '"two words"', "a:b/c=d;e,f~"])
def test_a_key_is_up_to_255_visible_characters(api: APIClient, key: str) -> None:
    assert call(api, key).status_code == 202


@pytest.mark.parametrize(
    "key",
    ["", " ", '""', "x" * 256, '"' + "x" * 256 + '"', '"open', 'a"', '"a"b"', r'"\x"', '"a";p=1', "two words", "é",
     '"é"', "a\tb", "a\x7f", '"'],
)  # fmt: skip
def test_another_key_is_refused_and_named(api: APIClient, key: str) -> None:
    answer = call(api, key)
    assert_problem(answer, 400, "invalid_idempotency_key")
    assert answer.json()["errors"][0]["field"] == "Idempotency-Key"
    assert not MailTask.objects.exists()


def test_each_owner_has_keys_of_their_own(api: APIClient) -> None:
    other = client_of(UserFactory())
    assert call(api, "a-key").json() != call(other, "a-key", ANOTHER).json()
    assert MailTask.objects.count() == 2


def test_what_was_refused_leaves_its_key_free(api: APIClient) -> None:
    assert call(api, "a-key", {}).status_code == 400
    assert not IdempotencyKey.objects.exists()
    answer = call(api, "a-key")
    assert answer.status_code == 202
    assert "Idempotency-Replayed" not in answer


def test_a_closed_account_leaves_no_key(api: APIClient, owner: User) -> None:
    call(api, "before")
    owner.close()
    assert call(api, "a-key").status_code == 401
    assert not IdempotencyKey.objects.filter(key="a-key").exists()


def test_an_accepted_mail_that_would_be_refused_by_now_is_answered_all_the_same(api: APIClient) -> None:
    """The client asks again after a while, and `expires_at` is past."""
    with time_machine.travel(timezone.now() - timedelta(hours=2)):
        asked = A_MAIL | {"expires_at": (timezone.now() + timedelta(hours=1)).isoformat()}
        first = call(client_of(User.objects.get()), "a-key", asked)
    assert first.status_code == 202
    assert call(api, "a-key", asked).json() == first.json()
    assert call(api, "another", asked).status_code == 400


def test_after_a_day_the_key_is_free_again(api: APIClient) -> None:
    first = call(api, "a-key").json()
    age(hours=23)
    assert call(api, "a-key").json() == first
    age(hours=25)
    second = call(api, "a-key", ANOTHER)
    assert second.status_code == 202
    assert second.json() != first
    assert call(api, "a-key", ANOTHER).json() == second.json()


def test_prune_lets_go_of_old_keys_only(api: APIClient) -> None:
    call(api, "old")
    age(hours=25)
    call(api, "young")
    upkeep.prune()
    assert [key.key for key in IdempotencyKey.objects.all()] == ["young"]


def age(hours: int) -> None:
    IdempotencyKey.objects.update(created_at=timezone.now() - timedelta(hours=hours))


def test_without_a_key_a_mail_costs_one_statement_and_no_row(api: APIClient) -> None:
    api.post(ENQUEUE, A_MAIL, format="json")
    with CaptureQueriesContext(connection) as asked:
        api.post(ENQUEUE, A_MAIL, format="json")
    # The mail itself goes by a cursor of psycopg's own, which Django does not see.
    assert not asked.captured_queries
    assert not IdempotencyKey.objects.exists()


# At the same time -----------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("path", "body", "mails"), [(ENQUEUE, A_MAIL, 1), (BATCH, {"messages": [A_MAIL, ANOTHER]}, 2)]
)
def test_fifty_equal_calls_at_once_are_one_deed_with_fifty_equal_answers(
    path: str, body: Any, mails: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "PATIENCE", 60.0)
    owner, key, together = UserFactory(), str(uuid4()), threading.Barrier(50)
    clients = [client_of(owner) for _ in range(50)]

    def ask(client: APIClient) -> Any:
        together.wait(60)
        try:
            return call(client, key, body, path)
        finally:
            connection.close()

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, clients))
    assert {answer.status_code for answer in answers} == ({202} if mails == 1 else {207})
    assert len({answer.content for answer in answers}) == 1
    assert sorted("Idempotency-Replayed" in answer for answer in answers) == [False] + [True] * 49
    assert MailTask.objects.count() == mails
    assert doorbell.client().llen(doorbell.MESSAGES) == 1


@pytest.fixture
def held() -> Any:
    """Runs a deed in a transaction of another connection that goes on until the test says so."""
    done, begun = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def hold(owner: User, key: str, fingerprint: bytes, ending: Exception | None = None) -> threading.Event:
        def act() -> str:
            begun.set()
            done.wait(60)
            if ending:
                raise ending
            return "{}"

        def run() -> None:
            try:
                idempotency.once(owner.pk, key, fingerprint, act)
            except RuntimeError:
                pass
            finally:
                connection.close()

        threads.append(threading.Thread(target=run))
        threads[0].start()
        assert begun.wait(60)
        return done

    yield hold
    done.set()
    for thread in threads:
        thread.join(60)


@pytest.mark.django_db(transaction=True)
def test_while_the_first_call_runs_the_second_is_told_to_come_again(
    held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "PATIENCE", 0.1)
    owner = UserFactory()
    held(owner, "a-key", b"")
    answer = call(client_of(owner), "a-key")
    assert_problem(answer, 409, "idempotency_key_in_use")
    assert answer["Retry-After"] == "1"
    assert call(client_of(owner), "another").status_code == 202
    assert call(client_of(UserFactory()), "a-key").status_code == 202


@pytest.mark.django_db(transaction=True)
def test_if_the_first_call_fails_the_second_is_done(held: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "PATIENCE", 60.0)
    owner = UserFactory()
    done = held(owner, "a-key", b"", RuntimeError("the first one fails"))
    threading.Timer(0.2, done.set).start()
    answer = call(client_of(owner), "a-key")
    assert answer.status_code == 202
    assert "Idempotency-Replayed" not in answer
    assert MailTask.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_the_wait_for_a_key_ends_with_its_transaction() -> None:
    """Else the next mail on this connection would give up on any lock as soon."""
    owner = UserFactory()
    with connection.cursor() as cursor:
        cursor.execute("SHOW lock_timeout")
        before = cursor.fetchone()
        assert call(client_of(owner), "a-key").status_code == 202
        cursor.execute("SHOW lock_timeout")
        assert cursor.fetchone() == before


@pytest.mark.django_db(transaction=True)
def test_a_mail_and_its_key_are_there_together_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(ledger, "keep_answer", fail)
    assert call(client_of(UserFactory()), "a-key").status_code == 500
    assert not MailTask.objects.exists()
    assert not IdempotencyKey.objects.exists()
    assert doorbell.client().llen(doorbell.MESSAGES) == 0
