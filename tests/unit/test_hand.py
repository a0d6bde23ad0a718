"""How many mails of one owner a worker holds at once."""

from uuid import uuid4

from mailqueue.delivery.hand import FIRST_HAND, LARGEST_HAND, URGENT_HAND, Hand
from mailqueue.delivery.routes import Route
from tasks.ledger import Claimed
from tasks.states import Lane

SESSIONS = 10


def emptied(hand: Hand, *, filled_at: float, after: float) -> int:
    """Its allowance, once all of its sessions have found it empty so many seconds after it was filled."""
    hand.filled_at = filled_at
    for number in range(SESSIONS):
        hand.adapt(filled_at + after + number / 100)
    return hand.allowance


def mail(lane: Lane) -> Claimed:
    return Claimed(uuid4(), 1, 1, lane, 1, 8, 0, 0, None, "ada@example.com", "jane@example.com")


def hand() -> Hand:
    return Hand(1, Route(None, SESSIONS, is_unproven=False))


def test_a_hand_that_goes_out_within_a_second_doubles_up_to_the_largest() -> None:
    fast = hand()
    grown = [emptied(fast, filled_at=at, after=0.1) for at in (10.0, 20.0, 30.0, 40.0)]
    assert grown == [2 * FIRST_HAND, 4 * FIRST_HAND, LARGEST_HAND, LARGEST_HAND]


def test_a_full_hand_has_room_for_so_many_one_time_passwords() -> None:
    full = hand()
    for _ in range(FIRST_HAND):
        full.take(mail(Lane.BULK))
    assert (full.room(), full.urgent_room()) == (0, URGENT_HAND)
    for _ in range(URGENT_HAND + 5):
        full.take(mail(Lane.OTP))
    assert (full.room(), full.urgent_room()) == (0, 0)
    for _ in range(URGENT_HAND):
        full.drop(mail(Lane.OTP))
    assert full.urgent_room() == URGENT_HAND - 5


def test_a_hand_that_takes_long_halves_down_to_two_mails_a_connection() -> None:
    slow = hand()
    assert emptied(slow, filled_at=10.0, after=6) == FIRST_HAND // 2
    assert emptied(slow, filled_at=20.0, after=6) == 2 * SESSIONS


def test_a_pace_between_leaves_it_as_it_is() -> None:
    assert emptied(hand(), filled_at=10.0, after=2) == FIRST_HAND
