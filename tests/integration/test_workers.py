"""Workers tell that they live; who falls silent is shown as gone, and who leaves is not."""

from datetime import timedelta
from functools import lru_cache
from typing import Any

import pytest
from django.utils import timezone

from mailqueue import jobs, metrics, workers
from mailqueue.delivery.courier import Courier
from mailqueue.workers import Worker
from tests.factories import UserFactory, client_of, sending_user
from tests.machine import until
from tests.relay import Relay


@pytest.fixture(autouse=True)
def nobody_yet(db: None) -> None:
    """Whom another test has killed may have left a heartbeat."""
    Worker.objects.all().delete()


def listed() -> list[dict[str, Any]]:
    answer = client_of(UserFactory()).get("/api/v1/workers")
    assert answer.status_code == 200
    return answer.json()["results"]


def beat(name: str, **ago: float) -> None:
    workers.beat(name, "sending", 7, 40, timezone.now())
    if ago:
        Worker.objects.filter(name=name).update(heartbeat_at=timezone.now() - timedelta(**ago))


@pytest.mark.django_db
def test_workers_are_listed_with_what_they_do() -> None:
    beat("mail-1:41")
    (worker,) = listed()
    assert worker.pop("id")
    assert worker.pop("started_at")
    assert worker.pop("last_heartbeat")
    assert worker == {
        "name": "mail-1:41",
        "host": "mail-1",
        "pid": 41,
        "state": "alive",
        "doing": "sending",
        "in_flight": 7,
        "sent": 40,
    }


@pytest.mark.django_db
@pytest.mark.parametrize(("seconds", "state"), [(0, "alive"), (15, "alive"), (60, "gone")])
def test_who_is_silent_for_half_a_minute_is_gone(seconds: float, state: str) -> None:
    beat("mail-1:41", seconds=seconds)
    assert [worker["state"] for worker in listed()] == [state]
    assert Worker.objects.alive().count() == (state == "alive")


@pytest.mark.django_db
def test_a_heartbeat_brings_one_back() -> None:
    beat("mail-1:41", minutes=10)
    beat("mail-1:41")
    assert [worker["state"] for worker in listed()] == ["alive"]


@pytest.mark.django_db
def test_the_dead_are_forgotten_after_an_hour_by_whoever_lives() -> None:
    beat("mail-1:41", minutes=50)
    beat("mail-2:42", minutes=70)
    beat("mail-3:43")
    assert {worker["name"] for worker in listed()} == {"mail-1:41", "mail-3:43"}


@pytest.mark.django_db
def test_the_list_comes_in_pages() -> None:
    for number in range(3):
        beat(f"mail:{number}")
    client = client_of(UserFactory())
    first = client.get("/api/v1/workers?limit=2").json()
    assert [worker["pid"] for worker in first["results"]] == [2, 1]
    assert [worker["pid"] for worker in client.get(first["next"]).json()["results"]] == [0]


@pytest.mark.django_db(transaction=True)
def test_a_courier_is_alive_without_mail_and_takes_its_leave(relay: Relay) -> None:
    courier = Courier("mail-1:4711").start()
    try:
        until(lambda: [worker["name"] for worker in listed()] == ["mail-1:4711"], "it is listed")
        (worker,) = listed()
        assert (worker["state"], worker["doing"], worker["in_flight"]) == ("alive", "idle", 0)
    finally:
        courier.stop(5)
    assert listed() == []


@pytest.mark.django_db(transaction=True)
def test_a_courier_tells_what_it_has_in_hand_and_what_it_has_sent(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "TELL_EVERY", 0.05)
    owner = sending_user(relay.port)
    client = client_of(owner)
    mail = {"recipient_email": "jane@example.com", "subject": "Hello", "body": "Hello Jane."}
    for _ in range(3):
        assert client.post("/api/v1/task/enqueue", mail, format="json").status_code == 202
    courier = Courier("mail-1:4711").start()
    try:
        courier.drain(30)
        until(lambda: [worker["sent"] for worker in listed()] == [3], "it tells what it has sent")
    finally:
        courier.stop(5)


# Upkeep -----------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_the_upkeep_worker_tells_when_it_heard_beat_and_is_no_one_who_delivers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for other in ("_courier", "_sender"):  # which another test may have begun
        monkeypatch.setattr(jobs, other, lru_cache(lambda: None))
    assert metrics.stats()["last_tick_seconds"] is None
    jobs._ticks.cache_clear()
    try:
        jobs.dispatch_due.apply()
        told = metrics.stats()
        assert told["last_tick_seconds"] >= 0
        assert (told["workers"], listed()) == (0, [])
        Worker.objects.update(heartbeat_at=timezone.now() - timedelta(minutes=2))
        jobs.dispatch_due.apply()  # too soon for another row
        assert metrics.stats()["last_tick_seconds"] >= 120
        jobs._ticks()._beats_at = 0.0
        jobs.dispatch_due.apply()
        assert metrics.stats()["last_tick_seconds"] < 120
        jobs._finish()
        assert metrics.stats()["last_tick_seconds"] is None
    finally:
        jobs._ticks.cache_clear()
