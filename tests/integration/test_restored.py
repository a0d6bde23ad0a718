"""What a database that was set back is told to have at stake, and that it is held."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.utils import timezone

from accounts.models import User
from mailqueue import restored
from tasks import ledger, submission
from tasks.models import MailTask
from tasks.states import Status
from tasks.submission import NewMail

pytestmark = pytest.mark.django_db(transaction=True)


def test_what_is_due_and_what_was_in_hand_may_have_been_sent(owner: User) -> None:
    for number in range(3):
        submission.submit(owner, NewMail(f"jane{number}@example.com", "s", "t"))
    later = timezone.now() + timedelta(hours=1)
    submission.submit(owner, NewMail("jane@example.com", "s", "t", scheduled_at=later))
    assert restored.at_stake() == 3
    assert len(ledger.claim(1, 60, token=uuid4(), room=10)) == 1
    assert restored.at_stake() == 3
    assert restored.hold() == 3
    assert restored.at_stake() == 0
    assert MailTask.objects.filter(status=Status.UNCERTAIN).count() == 3
    assert MailTask.objects.filter(status=Status.SCHEDULED).count() == 1
