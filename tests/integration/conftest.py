"""An empty Redis, an unspoilt bell and a journal folder of its own for each test; an owner, and a client that calls
the API as they do."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from accounts import throttle
from tasks import doorbell

if TYPE_CHECKING:
    from rest_framework.test import APIClient

    from accounts.models import User


@pytest.fixture(autouse=True)
def quiet_bell(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody has rung, and no failure of an earlier test keeps the bell silent."""
    monkeypatch.setattr(doorbell, "_silent_until", 0.0)
    monkeypatch.setattr(throttle, "_silent_until", 0.0)
    monkeypatch.setattr(throttle, "_local", throttle.Local())
    doorbell.client().flushdb()
    yield
    doorbell.client.cache_clear()


@pytest.fixture(autouse=True)
def own_journals(settings: Any, tmp_path: Path) -> Path:
    """Where the journals of this test's couriers are."""
    settings.JOURNAL_DIR = tmp_path / "journal"
    return tmp_path / "journal"


@pytest.fixture
def owner() -> "User":
    from tests.factories import UserFactory

    user: User = UserFactory()
    return user


@pytest.fixture
def api(owner: "User") -> "APIClient":
    from tests.factories import client_of

    return client_of(owner)


#: With this in the environment all tests here run on a ledger in partitions, of so many ids each.
PARTITION_SIZE = int(os.environ.get("LEDGER_PARTITION_SIZE", "0"))


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> None:
    if PARTITION_SIZE:
        from tasks import partitions

        with django_db_blocker.unblock():
            partitions.apply(PARTITION_SIZE, ahead=12)


@pytest.fixture(autouse=PARTITION_SIZE > 0)
def ids_on_both_sides(request: pytest.FixtureRequest) -> None:
    """The test's first mails are the last of one partition and the first of the next."""
    if request.node.get_closest_marker("django_db"):
        request.getfixturevalue("db")
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("SELECT setval('tasks_mailtask_id_seq', %s)", [2 * PARTITION_SIZE - 2])
