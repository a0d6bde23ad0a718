"""Limits put mail off, let it go by themselves, and say why it waits."""

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from mailqueue import upkeep
from mailqueue.delivery import limits
from mailqueue.delivery.courier import Courier
from mailqueue.delivery.limits import Grant, Local, Window, take
from tasks import doorbell
from tasks.models import MailTask
from tasks.states import Lane, Status
from tests.factories import MailFactory, UserFactory, client_of, sending_user
from tests.relay import Relay

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def courier() -> Iterator[Courier]:
    courier = Courier("worker:1").start()
    yield courier
    courier.stop(5)


# The window -----------------------------------------------------------------------------------------


def test_no_more_is_granted_than_the_window_allows() -> None:
    window = Window(10, 86_400)
    assert take("a", [window], 7).count == 7
    assert take("a", [window], 7).count == 3
    refused = take("a", [window], 1)
    assert refused.count == 0
    assert 8000 < refused.wait <= 8640


def test_the_narrowest_of_several_windows_counts_and_none_is_charged_for_what_was_refused() -> None:
    day, hour = Window(100, 86_400), Window(5, 3600)
    assert take("a", [day, hour], 50).count == 5
    assert take("a", [day], 100).count == 95


def test_names_do_not_share_a_window() -> None:
    window = Window(1, 86_400)
    assert [take(name, [window], 1).count for name in ("a", "b", "a")] == [1, 1, 0]


def test_a_bucket_fills_with_time_and_no_further_than_its_limit() -> None:
    seconds = int(doorbell.client().time()[0])  # type: ignore[index]
    key, window = "mailqueue:limit:a:100/86400", Window(100, 86_400)
    doorbell.client().hset(key, mapping={"tokens": 0, "at": seconds - 43_200})
    assert take("a", [window], 100).count == 50
    doorbell.client().hset(key, mapping={"tokens": 50, "at": seconds - 10 * 86_400})
    assert take("a", [window], 1000).count == 100


def test_a_grant_of_zero_says_when_the_next_may_go() -> None:
    window = Window(1, 1)
    take("a", [window], 1)
    assert limits.LEAST_WAIT <= take("a", [window], 1).wait <= 2


def test_without_redis_a_process_keeps_to_its_share(settings: Any) -> None:
    settings.WORKER_CONCURRENCY = 2
    now = [0.0]
    local = Local(lambda: now[0])
    assert local.take("a", [Window(10, 60)], 8) == Grant(5, 12)
    assert local.take("a", [Window(10, 60)], 1).count == 0
    now[0] = 24.0
    assert local.take("a", [Window(10, 60)], 8).count == 2


def test_when_redis_is_away_the_limit_is_kept_locally(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    settings.REDIS_URL, settings.WORKER_CONCURRENCY = "redis://127.0.0.1:1/0", 1
    doorbell.client.cache_clear()
    monkeypatch.setattr(limits, "_local", Local())
    assert take("a", [Window(3, 86_400)], 10).count == 3
    assert take("a", [Window(3, 86_400)], 10).count == 0


# An account's ---------------------------------------------------------------------------------------


def test_an_account_sends_no_more_than_its_limit_and_the_rest_waits_unharmed(
    relay: Relay, courier: Courier
) -> None:
    owner = sending_user(relay.port, per_day=5)
    MailFactory.create_batch(20, owner=owner)
    courier.drain(5)
    assert len(relay.accepted) == 5
    waiting = MailTask.objects.filter(status=Status.QUEUED)
    assert waiting.count() == 15
    assert set(waiting.values_list("try_count", "last_reply")) == {(0, "")}
    assert courier.drain(5).claimed == 0, "a closed account is not even claimed from"


def test_who_waits_for_the_limit_says_so(relay: Relay, courier: Courier) -> None:
    owner = sending_user(relay.port, per_day=1)
    MailFactory.create_batch(2, owner=owner)
    courier.drain(5)
    waiting = MailTask.objects.get(status=Status.QUEUED)
    said = client_of(owner).get(f"/api/v1/task/{waiting.pk}").json()["waiting"]
    assert (said["reason"], said["tries_left"]) == ("account_limit", 8)
    assert said["until"] > timezone.now().isoformat()


def test_the_most_urgent_go_first_where_not_all_may(relay: Relay, courier: Courier) -> None:
    owner = sending_user(relay.port, per_day=1)
    MailFactory(owner=owner, lane=Lane.BULK)
    MailFactory(owner=owner, lane=Lane.OTP)
    MailFactory(owner=owner, lane=Lane.DEFAULT)
    courier.drain(5)
    assert MailTask.objects.get(status=Status.SUCCESS).lane == Lane.OTP


def test_a_limit_of_one_owner_holds_up_no_other(relay: Relay, courier: Courier) -> None:
    MailFactory.create_batch(50, owner=sending_user(relay.port, per_day=1))
    other = MailFactory.create_batch(10, owner=sending_user(relay.port))
    courier.drain(5)
    assert (
        not MailTask.objects.filter(pk__in=[mail.pk for mail in other])
        .exclude(status=Status.SUCCESS)
        .exists()
    )


def test_it_goes_on_by_itself_when_the_time_has_come(relay: Relay, courier: Courier) -> None:
    owner = sending_user(relay.port, per_second=5)
    MailFactory.create_batch(12, owner=owner)
    courier.drain(5)
    while len(relay.accepted) < 12:
        time.sleep(min(courier.opens_in(), 2))
        courier.drain(5)
    assert MailTask.objects.filter(status=Status.SUCCESS, try_count=1).count() == 12


def test_what_waits_for_a_limit_is_neither_due_nor_forgotten(
    relay: Relay, courier: Courier, settings: Any
) -> None:
    settings.SWEEP_AFTER_SECONDS = 1
    owner = sending_user(relay.port, per_day=1)
    MailFactory.create_batch(2, owner=owner)
    courier.drain(5)
    MailTask.objects.update(moved_at=timezone.now() - timedelta(hours=1))
    assert upkeep.dispatch_due()["rang"] == 0
    assert upkeep.sweep() == 0


# Over the API ---------------------------------------------------------------------------------------


def test_a_limit_that_does_not_exist_is_named_and_nothing_is_set() -> None:
    user = UserFactory()
    client, address = client_of(user), f"/api/v1/user/{user.pk}"
    refused = client.patch(address, {"limits": {"per_minute": 5, "nope": 1, "per_week": None}}, format="json")
    assert refused.status_code == 400
    named = [(error["field"], error["code"]) for error in refused.json()["errors"]]
    assert named == [("limits.nope", "unknown_limit"), ("limits.per_week", "unknown_limit")]
    assert client.get(address).json()["limits"]["per_minute"] is None


def test_limits_are_set_shown_and_removed() -> None:
    user = UserFactory()
    client, address = client_of(user), f"/api/v1/user/{user.pk}"
    none = {"per_second": None, "per_minute": None, "per_hour": None, "per_day": None}
    assert client.get(address).json()["limits"] == none
    changed = client.patch(address, {"limits": {"per_second": 5, "per_day": 100}}, format="json")
    assert changed.status_code == 200
    assert changed.json()["limits"] == none | {"per_second": 5, "per_day": 100}
    client.patch(address, {"limits": {"per_second": None}}, format="json")
    assert client.get(address).json()["limits"] == none | {"per_day": 100}


@pytest.mark.parametrize("nonsense", [{"per_second": 0}, {"per_day": -1}, {"per_hour": "many"}, 5, [1]])
def test_nonsense_is_named(nonsense: Any) -> None:
    user = UserFactory()
    answer = client_of(user).patch(f"/api/v1/user/{user.pk}", {"limits": nonsense}, format="json")
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"].startswith("limits")


def test_a_higher_limit_lets_mail_go_at_once(relay: Relay, courier: Courier) -> None:
    owner = sending_user(relay.port, per_day=1)
    MailFactory.create_batch(3, owner=owner)
    courier.drain(5)
    assert len(relay.accepted) == 1
    client_of(owner).patch(f"/api/v1/user/{owner.pk}", {"limits": {"per_day": 100}}, format="json")
    courier.drain(5)
    assert len(relay.accepted) == 3


# A domain's -----------------------------------------------------------------------------------------


def test_a_domain_gets_no_more_than_its_limit_from_all_owners_together(
    relay: Relay, courier: Courier, settings: Any
) -> None:
    settings.MAIL_DOMAIN_LIMITS = {"slow.example": (3, 86_400)}
    for _ in range(2):
        owner = sending_user(relay.port)
        MailFactory.create_batch(4, owner=owner, recipient="a@SLOW.example")
        MailFactory.create_batch(4, owner=owner, recipient="a@fast.example")
    courier.drain(5)
    domains = [mail.recipient.partition("@")[2].lower() for mail in relay.accepted]
    assert (domains.count("slow.example"), domains.count("fast.example")) == (3, 8)
    late = MailTask.objects.filter(status=Status.QUEUED)
    assert {mail.due_at > timezone.now() for mail in late} == {True}
    said = client_of(late[0].owner).get(f"/api/v1/task/{late[0].pk}").json()["waiting"]
    assert (said["reason"], said["tries_left"]) == ("domain_limit", 8)
    assert "slow.example" in said["detail"].lower()
