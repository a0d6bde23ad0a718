"""A worker that slept through its lease wakes up while its mails are rescued: it has kept all of a claim, or nothing.

What it believed to be still its own, and was not, it would send a second time.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import OperationalError, connection

from tasks import ledger
from tasks.models import Claim, MailTask
from tests.factories import MailFactory, UserFactory, end_leases

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["accounts", "tasks", "mailqueue"])


def held_by_a_sleeper() -> UUID:
    """Three mails under one token, whose lease is over."""
    MailFactory.create_batch(3, owner=UserFactory())
    token = uuid4()
    assert len(ledger.claim(3, 60, token=token, room=50)) == 3
    end_leases()
    return token


def test_a_claim_is_rescued_as_a_whole_so_that_no_part_of_it_can_be_renewed() -> None:
    tokens = {held_by_a_sleeper(), held_by_a_sleeper()}
    assert ledger.rescue(1) == 3
    (kept,) = ledger.renew(list(tokens), 60)
    assert MailTask.objects.filter(claim_token=kept).count() == Claim.objects.get().held == 3
    assert not MailTask.objects.filter(claim_token__in=tokens - {kept}).exists()


def test_a_lease_cannot_be_renewed_while_its_mails_are_being_rescued(monkeypatch: pytest.MonkeyPatch) -> None:
    token, really, renewed = held_by_a_sleeper(), ledger.settle, []

    def wake_up() -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '100ms'")
            renewed.extend(ledger.renew([token], 60))
        except OperationalError:
            renewed.append("waits for the rescue")
        finally:
            connection.close()

    def settle_after_it_woke_up(*args: Any) -> set[int]:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(wake_up).result()
        return really(*args)

    monkeypatch.setattr(ledger, "settle", settle_after_it_woke_up)
    assert ledger.rescue() == 3
    assert renewed == ["waits for the rescue"]
    assert ledger.renew([token], 60) == set()
