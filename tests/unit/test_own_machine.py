"""What `make run` sets where its user has set nothing."""

from pathlib import Path

import pytest

from config import env, values
from mailqueue.embedded import environment


def pace_of_registrations(data: Path, monkeypatch: pytest.MonkeyPatch) -> values.Pace:
    given = environment.complete(data) | {"DATABASE_URL": "postgres://u@h/n", "REDIS_URL": "redis://h"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return env.read().throttle_register


def test_a_suite_that_registers_a_user_for_each_test_is_not_held_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("THROTTLE_REGISTER", raising=False)
    assert pace_of_registrations(tmp_path, monkeypatch) == (1000, 3600)


def test_a_limit_that_the_user_has_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THROTTLE_REGISTER", "3/h")
    assert pace_of_registrations(tmp_path, monkeypatch) == (3, 3600)
