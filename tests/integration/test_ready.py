"""Whether a web may have calls: not before its release's migrations, and still when those of the next are there."""

import pytest
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client

from config import health

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def a_process_that_has_just_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_was_migrated", False)


def ready() -> tuple[int, dict[str, str]]:
    answer = Client().get("/healthz/ready")
    return answer.status_code, answer.json()


def test_a_migrated_database_is_all_it_takes() -> None:
    assert ready() == (200, {"status": "ok", "database": "up", "broker": "up"})


def test_before_a_migration_it_is_not_ready_and_says_why() -> None:
    MigrationRecorder(connection).record_unapplied("tasks", "0013_request_id")
    pending = {"status": "unavailable", "database": "up", "broker": "up", "migrations": "pending"}
    assert ready() == (503, pending)
    assert ready() == (503, pending)
    MigrationRecorder(connection).record_applied("tasks", "0013_request_id")
    assert ready()[0] == 200


def test_old_code_beside_a_newer_schema_is_ready() -> None:
    MigrationRecorder(connection).record_applied("tasks", "9999_of_the_next_release")
    assert ready()[0] == 200


def test_what_was_once_applied_is_not_asked_for_again() -> None:
    assert ready()[0] == 200
    MigrationRecorder(connection).record_unapplied("tasks", "0013_request_id")
    assert ready()[0] == 200
