"""What keeps the ledger moving by itself, and may run twice at any moment."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.utils import timezone

from accounts.models import SmtpAccount
from mailqueue import upkeep
from tasks import doorbell, ledger, submission
from tasks.models import Attempt, MailContent, MailTask
from tasks.states import FINAL, CancelReason, Status
from tests.factories import MailFactory, make_due

pytestmark = pytest.mark.django_db
A_MINUTE = timedelta(minutes=1)
LONG_AGO = timedelta(days=200)


def messages() -> int:
    """Wake-ups on their way to a worker."""
    return int(doorbell.client().llen("mailqueue:drain"))  # type: ignore[arg-type]


def forgotten(**mail: Any) -> MailTask:
    """Queued long ago, and no bell rang."""
    long_ago = timezone.now() - 60 * A_MINUTE
    task: MailTask = MailFactory(**{"due_at": long_ago, "moved_at": long_ago, "created_at": long_ago} | mail)
    return task


# Dispatch -------------------------------------------------------------------------------------------


def test_dispatch_rings_when_something_is_due() -> None:
    MailFactory()
    assert upkeep.dispatch_due() == {"expired": 0, "rang": 1}
    assert messages() == 1


def test_dispatch_is_silent_when_nothing_is_due() -> None:
    MailFactory(due_at=timezone.now() + A_MINUTE)
    assert upkeep.dispatch_due()["rang"] == 0
    assert messages() == 0


def test_twice_the_ticks_ring_once() -> None:
    MailFactory()
    upkeep.dispatch_due()
    upkeep.dispatch_due()
    assert messages() == 1


@pytest.mark.parametrize("status", [Status.QUEUED, Status.FAILED, Status.SCHEDULED])
def test_dispatch_cancels_what_expired(status: Status) -> None:
    mail = MailFactory(status=status, expires_at=timezone.now() - A_MINUTE)
    assert upkeep.dispatch_due() == {"expired": 1, "rang": 0}
    mail.refresh_from_db()
    assert (mail.status, mail.cancel_reason) == (Status.CANCELLED, CancelReason.EXPIRED)
    assert upkeep.expire() == 0


def test_what_is_in_hand_does_not_expire() -> None:
    MailFactory(status=Status.PROCESSING, expires_at=timezone.now() - A_MINUTE)
    assert upkeep.expire() == 0


# Rescue ---------------------------------------------------------------------------------------------


def test_a_rescue_takes_all_of_it_back_and_rings() -> None:
    MailFactory.create_batch(5, status=Status.PROCESSING, lease_until=timezone.now() - A_MINUTE)
    assert upkeep.rescue() == 5
    assert messages() == 1
    assert upkeep.rescue() == 0


# Sweep ----------------------------------------------------------------------------------------------


def test_the_sweep_finds_what_was_forgotten_and_rings_over_a_stuck_bell() -> None:
    forgotten()
    doorbell.client().set(doorbell.BELL, "1", ex=60)  # its message was lost
    assert upkeep.sweep() == 1
    assert messages() == 1


@pytest.mark.parametrize("status", Status)
def test_the_sweep_looks_at_what_waits_only(status: Status) -> None:
    forgotten(status=status)
    assert upkeep.sweep() == int(status in (Status.QUEUED, Status.FAILED, Status.SCHEDULED))


def test_the_sweep_leaves_what_has_just_moved() -> None:
    MailFactory()
    assert upkeep.sweep() == 0
    assert messages() == 0


def test_the_sweep_leaves_what_waits_for_its_time_or_its_account() -> None:
    forgotten(due_at=timezone.now() + A_MINUTE)
    paused = forgotten()
    SmtpAccount.objects.filter(owner=paused.owner_id).update(paused_until=timezone.now() + A_MINUTE)
    assert upkeep.sweep() == 0


# Prune ----------------------------------------------------------------------------------------------


def test_prune_deletes_what_ended_long_ago_with_all_that_belongs_to_it() -> None:
    old = timezone.now() - LONG_AGO
    for status in Status:
        ended = {"finished_at": old} if status in FINAL else {}
        mail = MailFactory(status=status, created_at=old, **ended)
        Attempt.objects.create(task=mail, number=1, at=old, outcome=0)
    young = MailFactory(status=Status.SUCCESS)
    assert upkeep.prune() == len(FINAL)
    left = MailTask.objects.all()
    assert {mail.status for mail in left.exclude(id=young.id)} == set(Status) - set(FINAL)
    assert Attempt.objects.count() == len(Status) - len(FINAL)
    assert MailContent.objects.count() == left.count()
    assert upkeep.prune() == 0


def test_prune_keeps_an_old_mail_that_ended_lately() -> None:
    MailFactory(status=Status.SUCCESS, created_at=timezone.now() - LONG_AGO)
    assert upkeep.prune() == 0


# All states -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [status for status in Status if status not in FINAL])
def test_whatever_is_not_at_its_end_is_moved_on(status: Status) -> None:
    """The walk over all states (a crash may leave a mail in any of them): a tick or a person gets it claimed."""
    long_ago = timezone.now() - 60 * A_MINUTE
    lease = {"lease_until": long_ago} if status == Status.PROCESSING else {}
    mail = forgotten(status=status, **lease)
    if status == Status.UNCERTAIN:
        assert submission.retry(MailTask.objects.filter(id=mail.id)) == 1
    upkeep.rescue()
    make_due(long_ago)  # the database's now() stands still within this test
    assert upkeep.dispatch_due()["rang"] == 1
    assert [claimed.id for claimed in ledger.claim(10, 60, token=uuid4(), room=10)] == [mail.id]


@pytest.mark.parametrize("status", FINAL)
def test_what_is_at_its_end_is_left_alone(status: Status) -> None:
    forgotten(status=status)
    assert (upkeep.rescue(), upkeep.sweep(), upkeep.dispatch_due()["rang"]) == (0, 0, 0)
    assert not ledger.claim(10, 60, token=uuid4(), room=10)
