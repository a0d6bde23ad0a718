"""The table of transitions, against the diagram and the words of the contract."""

import pytest

from tasks.states import (
    FINAL,
    TRANSITIONS,
    WAITING,
    CancelReason,
    Lane,
    OnUncertain,
    Phase,
    Status,
    may_become,
)

S = Status


def test_every_state_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(Status)


@pytest.mark.parametrize("state", [state for state in Status if state not in FINAL])
def test_a_state_that_is_not_final_has_a_way_to_a_final_one(state: Status) -> None:
    reached, new = {state}, {state}
    while new := {target for origin in new for target in TRANSITIONS[origin]} - reached:
        reached |= new
    assert S.SUCCESS in reached


def test_success_is_left_by_nobody() -> None:
    assert TRANSITIONS[S.SUCCESS] == ()


def test_only_what_waits_may_be_claimed() -> None:
    assert sorted(may_become(S.PROCESSING)) == sorted(WAITING)


def test_only_a_worker_settles() -> None:
    """Failed comes out of an attempt, and out of nothing else; uncertain out of a restore too."""
    assert may_become(S.FAILED) == [S.PROCESSING]
    assert sorted(may_become(S.UNCERTAIN)) == sorted([S.PROCESSING, *WAITING])


def test_nothing_becomes_scheduled_again_by_itself() -> None:
    assert may_become(S.SCHEDULED) == []


def test_no_state_follows_itself() -> None:
    assert not [state for state, targets in TRANSITIONS.items() if state in targets]


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        (Status, "queued processing success failed cancelled scheduled uncertain"),
        (CancelReason, "exhausted rejected suppressed expired user account_closed"),
        (Lane, "otp default bulk"),
        (OnUncertain, "retry hold accept"),
        (Phase, "connect banner tls auth mail rcpt data body reply"),
    ],
)
def test_the_stored_numbers_stand_for_the_words_of_the_contract(choices: type[Status], words: str) -> None:
    assert [(member.value, member.label) for member in choices] == list(enumerate(words.split()))


def test_the_phases_are_in_the_order_of_a_transaction() -> None:
    """Code compares them: beyond BODY the mail may be out."""
    assert max(Phase) == Phase.REPLY
    assert Phase.CONNECT < Phase.AUTH < Phase.RCPT < Phase.BODY < Phase.REPLY
