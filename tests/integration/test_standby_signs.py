"""The signs by which a standby knows that beat is gone, or that a consumer takes no messages."""

import pytest
from django.conf import settings

from mailqueue import upkeep
from tasks import doorbell

pytestmark = pytest.mark.django_db


def test_beat_is_taken_for_gone_until_it_ticks() -> None:
    assert not doorbell.is_ticking()
    upkeep.dispatch_due()
    assert doorbell.is_ticking()
    assert 0 < doorbell.client().ttl(doorbell.TICKED) <= doorbell.SILENT_FOR


def test_a_message_that_no_worker_takes_is_unheard() -> None:
    assert not doorbell.is_unheard()
    doorbell.call()
    assert doorbell.is_unheard()


def test_a_call_is_over_before_the_next_tick() -> None:
    doorbell.call()
    assert (
        0
        < doorbell.client().pttl(doorbell.CALL)
        < 1000 * settings.CELERY_BEAT_SCHEDULE["dispatch what is due"]["schedule"] - 100
    )


def test_where_drains_begin_nothing_is_unheard() -> None:
    doorbell.call()
    doorbell.answer()
    assert not doorbell.is_unheard()
    assert 0 < doorbell.client().ttl(doorbell.DRAINED) <= doorbell.SILENT_FOR
