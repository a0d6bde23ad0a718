"""A worker that is awake is knocked up, each time anew, and nobody publishes a message for it."""

import pytest

from tasks import doorbell

#: For a knock that is there already, or is not (seconds).
A_MOMENT = 0.05


@pytest.fixture
def awake() -> None:
    """A worker that has come, looked at the table, and listens."""
    assert doorbell.stay_awake(60)
    doorbell.answer()


def messages() -> int:
    return int(doorbell.client().llen(doorbell.MESSAGES))


@pytest.mark.usefixtures("awake")
def test_who_is_awake_hears_each_ring_that_follows_an_answered_one() -> None:
    for _ in range(3):
        assert doorbell.ring()
        assert doorbell.listen(A_MOMENT), "to take the knock was to answer it"
    assert messages() == 0


@pytest.mark.usefixtures("awake")
def test_many_rings_are_one_knock() -> None:
    for _ in range(5):
        assert doorbell.ring()
    assert doorbell.listen(A_MOMENT)
    assert not doorbell.listen(A_MOMENT)


def test_who_is_awake_is_knocked_up_although_a_bell_is_stuck() -> None:
    doorbell.client().set(doorbell.BELL, "1", ex=60)  # its message was lost
    assert doorbell.stay_awake(60)
    assert doorbell.ring()
    assert doorbell.listen(A_MOMENT)


@pytest.mark.usefixtures("awake")
def test_a_knock_that_nobody_took_calls_the_next_worker() -> None:
    assert doorbell.ring()
    doorbell.go_to_sleep(heard=False)
    assert messages() == 1


@pytest.mark.usefixtures("awake")
def test_once_all_sleep_a_ring_is_a_message_again() -> None:
    doorbell.go_to_sleep(heard=False)
    assert doorbell.ring()
    assert messages() == 1
