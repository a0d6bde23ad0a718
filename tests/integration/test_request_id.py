"""The id of a call goes with its mail to the relay, and stands in the log of each attempt."""

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from accounts.models import User
from mailqueue.delivery import attempt
from mailqueue.delivery.courier import Courier
from tasks.models import MailTask
from tests.factories import client_of, make_due, sending_user
from tests.relay import Relay

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["accounts", "tasks", "mailqueue"])

MAIL = {"recipient_email": "jane@example.com", "subject": "a secret subject", "body": "a secret text"}


@pytest.fixture
def owner(relay: Relay) -> User:
    return sending_user(relay.port)


@pytest.fixture
def courier() -> Iterator[Courier]:
    courier = Courier("worker:1").start()
    yield courier
    courier.stop(5)


def attempts(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    told = ("task_id", "request_id", "number", "meaning", "phase", "code")
    found = [record for record in caplog.records if record.getMessage() == "attempt"]
    return [{name: getattr(record, name) for name in told} for record in found]


def test_it_stands_in_the_log_of_every_attempt(
    relay: Relay, owner: User, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    relay.on("rcpt", "451 4.3.0 later", to=MAIL["recipient_email"])
    with caplog.at_level(logging.DEBUG, "mailqueue.delivery.attempt"):
        pk = (
            client_of(owner)
            .post("/api/v1/task/enqueue", MAIL, "json", HTTP_X_REQUEST_ID="order-4711")
            .data["task_id"]
        )
        courier.drain(60)
        make_due()
        courier.drain(60)
    tried = {"task_id": pk, "request_id": "order-4711"}
    assert attempts(caplog) == [
        tried | {"number": 1, "meaning": "temporary", "phase": "rcpt", "code": 451},
        tried | {"number": 2, "meaning": "accepted", "phase": "reply", "code": 250},
    ]
    assert "secret" not in str([vars(record) for record in caplog.records])


@pytest.fixture(params=[20, 0])
def told_a_second(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(attempt, "TOLD_A_SECOND", request.param)
    return int(request.param)


def test_what_goes_well_is_told_unless_there_is_a_flood_of_it(
    owner: User, courier: Courier, caplog: pytest.LogCaptureFixture, told_a_second: int
) -> None:
    with caplog.at_level(logging.INFO, "mailqueue.delivery.attempt"):
        client_of(owner).post("/api/v1/task/enqueue", MAIL, "json", HTTP_X_REQUEST_ID="order-4713")
        courier.drain(60)
    assert MailTask.objects.get().attempts.exists()
    told = [each["request_id"] for each in attempts(caplog)]
    assert told == (["order-4713"] if told_a_second else [])


def test_each_second_has_its_own_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "TOLD_A_SECOND", 2)
    clock = [7.0, 7.1, 7.2, 7.9, 8.0, 8.5, 8.9, 20.0]
    times = iter(clock)
    monkeypatch.setattr(attempt, "time", SimpleNamespace(monotonic=lambda: next(times)))
    one: Any = SimpleNamespace(_told=(0, 0))
    found = [attempt.Attempts._is_a_flood(one) for _ in clock]
    assert found == [False, False, True, True, False, False, True, False]


def test_all_mails_of_a_batch_have_the_same(
    relay: Relay, owner: User, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "mailqueue.delivery.attempt"):
        batch = {"messages": [MAIL, MAIL | {"tags": ["a"]}]}
        client_of(owner).post("/api/v1/task/enqueue/batch", batch, "json", HTTP_X_REQUEST_ID="order-4712")
        courier.drain(60)
    assert [each["request_id"] for each in attempts(caplog)] == ["order-4712"] * 2
