"""An empty Redis and an unspoilt bell for each test."""

from collections.abc import Iterator

import pytest

from tasks import doorbell


@pytest.fixture(autouse=True)
def quiet_bell(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody has rung, and no failure of an earlier test keeps the bell silent."""
    monkeypatch.setattr(doorbell, "_silent_until", 0.0)
    doorbell.client().flushdb()
    yield
    doorbell.client.cache_clear()
