"""How long the web waits for others: for a statement, for a connection, for what a probe asks."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.db import OperationalError, connections

from config import health
from config.postgresql import base
from config.postgresql.base import DatabaseWrapper
from tests.machine import until

pytestmark = pytest.mark.django_db


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A connection of its own, as a web has it."""
    monkeypatch.setattr(DatabaseWrapper, "patience", 60.0)
    monkeypatch.setattr(DatabaseWrapper, "_silent_until", 0.0)
    fresh = connections.create_connection("default")
    yield fresh
    fresh.close()


def asked(of: Any, statement: str) -> Any:
    with of.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0]


def test_a_statement_without_an_answer_fails_and_goes_on_for_nobody(impatient: Any) -> None:
    pid = asked(impatient, "SELECT pg_backend_pid()")
    impatient.connection.patience = 0.3
    with pytest.raises(OperationalError, match="no answer"):
        asked(impatient, "SELECT pg_sleep(600)")
    assert impatient.connection.closed
    impatient.close_if_unusable_or_obsolete()
    still = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND state = 'active'"
    until(lambda: not asked(impatient, still), "it has ended")


def test_an_error_of_the_servers_own_leaves_the_connection_as_it_is(impatient: Any) -> None:
    pid = asked(impatient, "SELECT pg_backend_pid()")
    asked(impatient, "SELECT set_config('statement_timeout', '50ms', false)")
    with pytest.raises(OperationalError, match="statement timeout"):
        asked(impatient, "SELECT pg_sleep(600)")
    assert asked(impatient, "SELECT pg_backend_pid()") == pid


def test_workers_and_commands_are_patient() -> None:
    assert DatabaseWrapper.patience is None
    patient = connections.create_connection("default")
    try:
        assert asked(patient, "SELECT 1") == 1
        assert type(patient.connection) is psycopg.Connection
    finally:
        patient.close()


def test_one_sign_of_life_is_waited_for_less(impatient: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DatabaseWrapper, "patience", 3600.0)
    asked(impatient, "SELECT 1")
    seen: list[float] = []
    wait = base.ImpatientConnection.wait

    def watched(self: Any, *args: Any) -> Any:
        seen.append(self.patience)
        return wait(self, *args)

    monkeypatch.setattr(base.ImpatientConnection, "wait", watched)
    assert impatient.is_usable()
    asked(impatient, "SELECT 1")
    assert (seen[0], seen[-1]) == (base.SIGN_OF_LIFE, 3600.0)


def test_after_a_connection_that_nobody_answered_the_next_call_does_not_wait(
    impatient: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def nobody(*_args: Any, **_params: Any) -> None:
        tried.append(1)
        raise psycopg.errors.ConnectionTimeout("connection timeout expired")

    monkeypatch.setattr(psycopg, "connect", nobody)
    monkeypatch.setattr(base, "SILENCE", 3600.0)
    for _ in range(3):
        with pytest.raises(OperationalError):
            asked(impatient, "SELECT 1")
    assert len(tried) == 1
    monkeypatch.undo()
    monkeypatch.setattr(DatabaseWrapper, "_silent_until", 0.0)
    assert asked(impatient, "SELECT 1") == 1


def test_a_question_that_hangs_is_asked_once_whoever_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "DEADLINE", 0.2)
    answered, times = threading.Event(), []

    def ask() -> str:
        times.append(1)
        answered.wait()
        return "up"

    async def probes() -> None:
        question = health.Question(ask, "down")
        try:
            assert await asyncio.gather(*(question.answer() for _ in range(5))) == ["down"] * 5
            assert await question.answer() == "down"
            assert len(times) == 1
            monkeypatch.setattr(health, "DEADLINE", 60.0)
            answered.set()
            while await question.answer() == "down":  # noqa: ASYNC110 -- its thread wakes up when it likes
                await asyncio.sleep(0.01)
            assert await question.answer() == "up"
        finally:
            answered.set()
            question.close()

    asyncio.run(probes())
