"""The drain job around the courier: when it sends for the next one."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from threading import Thread

import pytest

from mailqueue import jobs
from mailqueue.delivery.courier import Courier
from mailqueue.delivery.hand import FIRST_HAND, Report
from mailqueue.embedded.process import ROOT
from tasks import doorbell
from tests.factories import MailFactory, sending_user
from tests.machine import until
from tests.relay import Relay

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["accounts", "tasks", "mailqueue"])


@pytest.fixture(autouse=True)
def courier(monkeypatch: pytest.MonkeyPatch) -> Iterator[Courier]:
    courier = Courier("worker:1").start()
    monkeypatch.setattr(jobs, "_courier", lambda: courier)
    yield courier
    courier.stop(5)


def messages() -> int:
    """Drains that wait for a worker."""
    return int(doorbell.client().llen(doorbell.MESSAGES))


def test_a_slice_that_ends_while_mail_waits_sends_for_the_next_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "SLICE_SECONDS", 0.3)
    with Relay(delay=0.1) as relay:
        MailFactory.create_batch(20, owner=sending_user(relay.port, max_connections=1))
        jobs.drain.apply().get()
        assert len(relay.accepted) < 20
    assert messages() == 1


def test_who_knocks_while_another_owners_relay_hangs_is_let_in_at_once(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mailqueue.delivery.courier.PAUSE_BETWEEN_CLAIMS", 60.0
    )  # it looks if it hears, or not at all
    monkeypatch.setattr(jobs, "SLICE_SECONDS", 6.0)
    with Relay(delay=4) as hanging:
        MailFactory.create_batch(3, owner=sending_user(hanging.port))
        job = Thread(target=jobs.drain.apply)
        job.start()
        until(lambda: bool(hanging.sessions), "its mail is in hand")
        late = MailFactory(owner=sending_user(relay.port))
        assert doorbell.ring()
        until(lambda: bool(relay.accepted_for(late.recipient)), "it has gone out")
        assert not hanging.accepted
        job.join()


def test_a_knock_that_comes_when_the_drain_has_just_ended_is_not_lost(
    courier: Courier, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    drains, knocks = [], iter([True])

    def begin(seconds: float) -> Future[Report]:
        drains.append(Courier.begin_drain(courier, seconds))
        return drains[-1]

    def listen(_seconds: float) -> bool:
        if next(knocks, False):
            until(drains[0].done, "the drain has found nothing")
            MailFactory(owner=sending_user(relay.port))
            return True
        return False

    monkeypatch.setattr(courier, "begin_drain", begin)
    monkeypatch.setattr(doorbell, "listen", listen)
    jobs.drain.apply().get()
    assert len(relay.accepted) == 1


def test_who_finds_more_than_one_owners_hand_takes_calls_another_worker(relay: Relay) -> None:
    MailFactory.create_batch(FIRST_HAND + 1, owner=sending_user(relay.port))
    jobs.drain.apply().get()
    assert len(relay.accepted) == FIRST_HAND + 1
    assert messages() == 1


def test_a_drain_that_left_nothing_sends_for_nobody(relay: Relay) -> None:
    MailFactory.create_batch(3, owner=sending_user(relay.port))
    jobs.drain.apply().get()
    assert len(relay.accepted) == 3
    assert messages() == 0


WHO_COMES_FIRST = """
import weakref
from celery import signals
from config.celery import app
app.loader.import_default_modules()
class Controller:
    pass
Controller.app = app
signals.worker_init.send(sender=Controller)
receivers = [call() if isinstance(call, weakref.ref) else call for _, call in signals.worker_process_init.receivers]
print([call.__name__ for call in receivers])
"""


def test_a_courier_starts_when_celery_has_let_go_of_what_its_process_has_inherited() -> None:
    """Else the socket of its first connection may be closed under it, for it has the number of an inherited one."""
    done = subprocess.run(
        [sys.executable, "-c", WHO_COMES_FIRST], cwd=ROOT, capture_output=True, text=True, check=True
    )
    order = done.stdout.splitlines()[-1]
    assert 0 < order.index("on_worker_process_init") < order.index("_warm_up")
