"""Which mails a worker gets: due ones, each once, in fair turns."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.utils import timezone

from accounts.models import SmtpAccount, User
from tasks import ledger
from tasks.ledger import Claimed, claim
from tasks.models import Claim, Due, MailContent, MailTask
from tasks.states import FINAL, WAITING, Lane, Status
from tests.factories import MailFactory, UserFactory, hold_or_let_wait

pytestmark = pytest.mark.django_db
A_MINUTE = timedelta(minutes=1)


def take(limit: int = 100, **how: Any) -> list[Claimed]:
    return claim(limit, 60, **{"token": uuid4(), "room": 50} | how)


def fill(owner: User, count: int, **changes: Any) -> None:
    mails = MailFactory.build_batch(count, owner=owner, **changes)
    tasks = MailTask.objects.bulk_create(mails)
    hold_or_let_wait(tasks)
    MailContent.objects.bulk_create(MailContent(task=task, raw=b"x") for task in tasks)


@pytest.mark.parametrize("status", Status)
def test_only_what_waits_is_claimed(status: Status) -> None:
    mail = MailFactory(status=status)
    assert [found.id for found in take()] == ([mail.id] if status in WAITING else [])


def test_a_claim_sets_lease_token_and_try() -> None:
    mail = MailFactory(raw=b"the mail")
    (found,) = take()
    mail.refresh_from_db()
    assert mail.status == Status.PROCESSING
    assert mail.try_count == found.try_count == 1
    assert mail.claim_token == found.token
    assert mail.started_at is not None
    assert 50 < (Claim.objects.get().lease_until - mail.started_at).total_seconds() <= 60
    assert (found.sender, found.recipient, found.raw) == (mail.sender, mail.recipient, b"the mail")


def test_the_first_start_is_kept_over_later_tries() -> None:
    then = timezone.now() - timedelta(hours=1)
    mail = MailFactory(status=Status.FAILED, started_at=then)
    take()
    mail.refresh_from_db()
    assert (mail.started_at, mail.try_count) == (then, 2)


def test_what_was_claimed_is_not_claimed_again() -> None:
    MailFactory()
    assert take()
    assert not take()


@pytest.mark.parametrize("status", WAITING)
def test_nothing_is_claimed_before_its_time(status: Status) -> None:
    MailFactory(status=status, due_at=timezone.now() + A_MINUTE)
    assert not take()
    assert not ledger.is_anything_due()


def test_what_has_expired_is_not_claimed() -> None:
    MailFactory(expires_at=timezone.now() - A_MINUTE)
    alive = MailFactory(expires_at=timezone.now() + A_MINUTE)
    assert [found.id for found in take()] == [alive.id]


def test_older_mails_of_an_owner_come_first() -> None:
    owner = UserFactory()
    late = MailFactory(owner=owner)
    early = MailFactory(owner=owner, due_at=late.due_at - A_MINUTE)
    assert [found.id for found in take(1, room=1)] == [early.id]


def test_no_more_are_claimed_than_asked_for() -> None:
    for _ in range(3):
        fill(UserFactory(), 20)
    assert len(take(7)) == 7


def test_a_claim_is_filled_from_whoever_has_mail() -> None:
    fill(UserFactory(), 30, lane=Lane.BULK)
    assert len(take(30)) == 30


# Fairness -------------------------------------------------------------------------------------------


def test_a_thousand_mails_of_one_owner_do_not_delay_anothers_first() -> None:
    big, small = UserFactory(), UserFactory()
    fill(big, 1000, due_at=timezone.now() - 60 * A_MINUTE)
    mail = MailFactory(owner=small)
    assert mail.id in [found.id for found in take(20)]


def test_owners_of_a_lane_get_equal_turns() -> None:
    owners = UserFactory.create_batch(4)
    for owner in owners:
        fill(owner, 40)
    shares = Counter(found.owner_id for found in take(40))
    assert set(shares) == {owner.pk for owner in owners}
    assert max(shares.values()) - min(shares.values()) <= 2


def test_lanes_share_a_claim_by_their_weights() -> None:
    owner = UserFactory()
    for lane in Lane:
        fill(owner, 200, lane=lane)
    shares = Counter(found.lane for found in take(130, room=400))
    assert shares[Lane.OTP] >= 80
    assert shares[Lane.DEFAULT] >= 40
    assert shares[Lane.BULK] >= 10


def test_a_one_time_password_is_in_the_first_claim_whatever_else_waits() -> None:
    for _ in range(3):
        fill(UserFactory(), 300, lane=Lane.BULK, due_at=timezone.now() - 60 * A_MINUTE)
    urgent = MailFactory(lane=Lane.OTP)
    assert urgent.id in [found.id for found in take(10)]


def test_an_owner_gets_no_more_than_the_room_there_is() -> None:
    owner, other = UserFactory(), UserFactory()
    fill(owner, 50)
    fill(other, 50)
    shares = Counter(found.owner_id for found in take(200, room=20, rooms={owner.pk: (3, 3)}))
    assert shares == {owner.pk: 3, other.pk: 20}


def test_room_counts_over_all_lanes() -> None:
    owner = UserFactory()
    for lane in Lane:
        fill(owner, 50, lane=lane)
    assert len(take(150, room=30)) <= 30 * len(Lane)


def test_an_owner_without_room_is_passed_over() -> None:
    owner = UserFactory()
    fill(owner, 5)
    assert not take(rooms={owner.pk: (0, 0)})


def test_an_owner_without_room_still_gets_a_one_time_password() -> None:
    owner = UserFactory()
    fill(owner, 5)
    fill(owner, 5, lane=Lane.OTP)
    assert [found.lane for found in take(rooms={owner.pk: (0, 3)})] == [Lane.OTP] * 3


def test_every_owner_has_a_turn_even_when_they_are_many() -> None:
    for owner in UserFactory.create_batch(ledger.OWNERS_A_TURN + 6):
        MailFactory(owner=owner)
    first = take(200)
    second = take(200, after=max(found.owner_id for found in first))
    assert len(first) + len(second) == ledger.OWNERS_A_TURN + 6


# Accounts at fault ----------------------------------------------------------------------------------


def pause(owner: User, for_: timedelta) -> None:
    SmtpAccount.objects.filter(owner=owner).update(paused_until=timezone.now() + for_)


def test_a_paused_account_is_left_out() -> None:
    owner = UserFactory()
    fill(owner, 5)
    pause(owner, A_MINUTE)
    assert not take()
    assert not ledger.is_anything_due()


def test_a_paused_account_does_not_hold_up_another() -> None:
    paused = UserFactory()
    fill(paused, 100)
    pause(paused, A_MINUTE)
    mail = MailFactory()
    assert [found.id for found in take()] == [mail.id]


def test_after_the_pause_a_single_probe_goes_out() -> None:
    owner = UserFactory()
    fill(owner, 20)
    pause(owner, -A_MINUTE)
    assert ledger.is_anything_due()
    assert len(take()) == 1


def test_after_the_pause_a_single_probe_goes_out_whatever_the_lanes() -> None:
    owner = UserFactory()
    for lane in Lane:
        fill(owner, 20, lane=lane)
    pause(owner, -A_MINUTE)
    assert len(take()) == 1


def test_while_a_probe_is_under_way_there_is_no_second() -> None:
    owner = UserFactory()
    fill(owner, 20)
    pause(owner, -A_MINUTE)
    assert len(take()) == 1
    assert not take()


# Many workers ---------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_claimers_at_the_same_moment_never_share_a_mail() -> None:
    for _ in range(5):
        fill(UserFactory(), 80)
    claimers = 4
    start = Barrier(claimers)

    def work() -> list[int]:
        start.wait(10)
        found: list[int] = []
        # Rows that others hold locked are skipped, so an empty hand is not yet the end.
        while Due.objects.exists():
            found += [mail.id for mail in take(13)]
        connection.close()
        return found

    with ThreadPoolExecutor(claimers) as pool:
        hands = [task.result(60) for task in [pool.submit(work) for _ in range(claimers)]]
    claimed = [pk for hand in hands for pk in hand]
    assert len(claimed) == len(set(claimed)) == 400
    assert not MailTask.objects.exclude(try_count=1).exists()
    assert not MailTask.objects.filter(status__in=FINAL).exists()
