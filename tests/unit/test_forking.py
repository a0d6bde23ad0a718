"""A worker's main process has threads beside the one that forks its pool. A lock that such a thread holds at that
moment would stay locked in the child, whose first job would wait for it for ever."""

import os
import threading
import time
from types import SimpleNamespace

import pytest

from mailqueue import alive, pulse, standby
from tasks import doorbell

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*fork:DeprecationWarning"
)  # Python 3.12 warns of what is tried here

#: How long an answer of the broker takes here, and how long a child waits for its turn (seconds).
ANSWERS_IN, PATIENCE = 0.2, 10.0


class Broker:
    """Answers one thread at a time, as a pool of connections does."""

    def __init__(self) -> None:
        self.lock, self.asked = threading.Lock(), threading.Event()

    def answer(self) -> bool:
        with self.lock:
            self.asked.set()
            time.sleep(ANSWERS_IN)
        return True

    def answers_a_child(self) -> bool:
        """Whether one that is forked while a thread asks finds the lock open."""
        self.asked.clear()
        assert self.asked.wait(PATIENCE), "no thread asks"
        if not (child := os.fork()):
            os._exit(0 if self.lock.acquire(timeout=PATIENCE) else 1)
        return os.waitpid(child, 0)[1] == 0


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker = Broker()
    monkeypatch.setattr(doorbell, "is_ticking", broker.answer)
    monkeypatch.setattr(doorbell, "is_unheard", lambda: False)
    monkeypatch.setattr(doorbell, "is_there", broker.answer)
    return broker


def test_a_child_that_is_forked_while_the_standby_looks_can_ask_the_broker(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby, "LOOK_EVERY", 0.01)
    step = standby.StandbyStep(SimpleNamespace())
    step.start(None)
    try:
        assert all(broker.answers_a_child() for _ in range(3))
    finally:
        step.stop(None)


def test_a_child_that_is_forked_while_the_pulse_is_felt_can_ask_the_broker(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        pulse, "EVERY", 0.01
    )  # so that the loop is late each time, which calls for a question
    monkeypatch.setattr(alive, "touch", lambda *_: None)
    step = pulse.PulseStep(SimpleNamespace())
    watching = threading.Thread(target=step._watch)
    watching.start()
    try:
        assert all(broker.answers_a_child() for _ in range(3))
    finally:
        step.stop(None)
        watching.join()
