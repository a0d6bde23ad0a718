"""Webhooks over HTTP: made, changed, rotated, tested, listed, replayed."""

import ipaddress
import json
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from cryptography.fernet import Fernet
from django.core.management import call_command
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.models import User
from mailqueue.webhooks import deliveries, endpoints, fanout
from mailqueue.webhooks.models import Delivery, Endpoint, State
from tasks.events import NAMES, Listener
from tests.factories import UserFactory, client_of

pytestmark = pytest.mark.django_db
HOOK = "https://8.8.8.8/hook"


@pytest.fixture
def client(owner: User) -> APIClient:
    return client_of(owner)


def make(client: APIClient, **fields: Any) -> Any:
    return client.post("/api/v1/webhooks", {"url": HOOK} | fields, format="json")


def made(client: APIClient, **fields: Any) -> dict[str, Any]:
    answer = make(client, **fields)
    assert answer.status_code == 201, answer.json()
    found: dict[str, Any] = answer.json()
    return found


def code_of(answer: Any) -> tuple[int, str]:
    body = answer.json()
    return answer.status_code, body["errors"][0]["code"] if "errors" in body else body["code"]


def patch(client: APIClient, pk: int, **changes: Any) -> Any:
    return client.patch(f"/api/v1/webhooks/{pk}", changes, format="json")


def is_listening(owner: User) -> bool:
    return Listener.objects.filter(owner=owner, until=None).exists()


def delivery_of(endpoint: Endpoint | int, state: State = State.DELIVERED, **fields: Any) -> Delivery:
    ended = {"finished_at": timezone.now()} if state in (State.DELIVERED, State.FAILED) else {}
    held = {"claim_token": uuid4(), "lease_until": timezone.now()} if state == State.SENDING else {}
    pk = endpoint.pk if isinstance(endpoint, Endpoint) else endpoint
    known = {"message_id": f"evt_{uuid4().hex}", "event": "task.sent", "payload": "{}"}
    made: Delivery = Delivery.objects.create(endpoint_id=pk, state=state, **known | ended | held | fields)
    return made


# Making and changing ---------------------------------------------------------------------------------


def test_the_secret_is_shown_once_and_stored_sealed(client, owner):
    answer = made(client, description="the shop")
    assert answer["secret"].startswith("whsec_")
    assert answer["events"] == list(NAMES)
    assert (answer["state"], answer["reason"], answer["description"]) == ("active", "", "the shop")
    endpoint = Endpoint.objects.get()
    assert endpoint.secrets(timezone.now()) == [answer["secret"]]
    assert answer["secret"] not in endpoint.sealed_secret
    for address in ("/api/v1/webhooks", f"/api/v1/webhooks/{answer['id']}"):
        assert b"whsec_" not in client.get(address).content
    assert b"whsec_" not in patch(client, answer["id"], description="x").content
    assert is_listening(owner)


def test_only_the_events_that_one_wants(client):
    pk = made(client, events=["task.failed", "task.sent", "task.sent"])["id"]
    assert Endpoint.objects.get().events == ["task.sent", "task.failed"]
    assert patch(client, pk, events=["account.paused"]).json()["events"] == ["account.paused"]
    for bad in ([], ["task.exploded"], "task.sent", None):
        assert make(client, events=bad).status_code == 400


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://10.0.0.1/", "forbidden_address"),
        ("https://169.254.169.254/latest/meta-data", "forbidden_address"),
        ("http://8.8.8.8/", "forbidden_scheme"),
        ("https://8.8.8.8:22/", "forbidden_port"),
        ("https://u:p@8.8.8.8/", "invalid_url"),
        ("ftp://8.8.8.8/", "invalid_url"),
        ("", "blank"),
        (7, "invalid"),
        ("https://8.8.8.8/" + "x" * 2000, "invalid_url"),
    ],
)
def test_a_url_that_must_not_be_called_is_refused(client, settings, url, code):
    settings.SMTP_ALLOWED_NETWORKS = ()
    assert code_of(make(client, url=url)) == (400, code)
    pk = made(client)["id"]
    assert code_of(patch(client, pk, url=url)) == (400, code)
    assert Endpoint.objects.get().url == HOOK


def test_plain_http_is_for_networks_that_the_operator_allows(client, settings):
    settings.SMTP_ALLOWED_NETWORKS = (ipaddress.ip_network("127.0.0.0/8"),)
    assert make(client, url="http://127.0.0.1:9000/hook").status_code == 201


def test_a_name_that_does_not_resolve_yet_is_taken_with_https_alone(client):
    assert make(client, url="https://nobody.invalid/hook").status_code == 201
    assert code_of(make(client, url="http://nobody.invalid/hook")) == (400, "forbidden_scheme")


def test_there_may_be_ten_of_them(client):
    for _ in range(10):
        made(client)
    assert code_of(make(client)) == (409, "too_many_webhooks")
    assert make(client_of(UserFactory())).status_code == 201


def test_its_owner_disables_it_and_switches_it_on_again(client, owner):
    pk = made(client)["id"]
    other = made(client)["id"]
    Endpoint.objects.update(failing_since=timezone.now())
    answer = patch(client, pk, state="disabled").json()
    assert (answer["state"], answer["reason"]) == ("disabled", "Its owner has disabled it.")
    assert is_listening(owner)
    patch(client, other, state="disabled")
    assert not is_listening(owner)
    answer = patch(client, pk, state="active").json()
    assert (answer["state"], answer["reason"], answer["failing_since"]) == ("active", "", None)
    assert is_listening(owner)


def test_a_reason_is_not_overwritten_by_the_same_state(client):
    pk = made(client)["id"]
    endpoints.disable(Endpoint.objects.get(), "The receiver answered 410 Gone.")
    assert patch(client, pk, state="disabled").json()["reason"] == "The receiver answered 410 Gone."


def test_deleted_it_is_gone_with_all_that_belongs_to_it(client, owner):
    pk = made(client)["id"]
    delivery_of(pk)
    assert client.delete(f"/api/v1/webhooks/{pk}").status_code == 204
    assert not Endpoint.objects.exists()
    assert not Delivery.objects.exists()
    assert not is_listening(owner)


def test_a_closed_account_hears_of_nothing_more(client, owner):
    delivery_of(made(client)["id"])
    assert client.delete(f"/api/v1/user/{owner.pk}").status_code == 204
    assert not Endpoint.objects.exists()
    assert not is_listening(owner)


# Rotation --------------------------------------------------------------------------------------------


def rotate(client: APIClient, pk: int, **body: Any) -> Any:
    return client.post(f"/api/v1/webhooks/{pk}/rotate", body, format="json")


def test_the_old_secret_signs_too_for_a_day(client):
    first = made(client)
    second = rotate(client, first["id"]).json()
    now, endpoint = timezone.now(), Endpoint.objects.get()
    assert first["secret"] != second["secret"]
    assert endpoint.secrets(now) == [second["secret"], first["secret"]]
    assert endpoint.secrets(now + timedelta(hours=23)) == [second["secret"], first["secret"]]
    assert endpoint.secrets(now + timedelta(hours=24, minutes=1)) == [second["secret"]]
    assert second["old_secret_until"] is not None


def test_a_leaked_secret_ends_at_once(client):
    first = made(client)
    second = rotate(client, first["id"], grace_seconds=0).json()
    assert Endpoint.objects.get().secrets(timezone.now()) == [second["secret"]]
    assert Endpoint.objects.get().sealed_old_secret == ""


@pytest.mark.parametrize("bad", [-1, 604_801, "3600", True, 1.5])
def test_a_grace_is_a_number_of_seconds(client, bad):
    assert rotate(client, made(client)["id"], grace_seconds=bad).status_code == 400


def test_credentials_are_rotated_with_the_others(client, settings):
    first = made(client)
    rotate(client, first["id"])
    secrets = Endpoint.objects.get().secrets(timezone.now())
    new = Fernet.generate_key().decode()
    settings.CREDENTIAL_KEYS = [new, *settings.CREDENTIAL_KEYS]
    call_command("rotate_credentials")
    settings.CREDENTIAL_KEYS = [new]
    assert Endpoint.objects.get().secrets(timezone.now()) == secrets
    assert len(secrets) == 2


# Deliveries ------------------------------------------------------------------------------------------


def test_a_test_event_waits_to_be_sent(client):
    pk = made(client, events=["task.failed"])["id"]
    answer = client.post(f"/api/v1/webhooks/{pk}/test")
    assert answer.status_code == 202
    assert (answer.json()["event"], answer.json()["state"]) == ("webhook.test", "pending")
    patch(client, pk, state="disabled")
    assert code_of(client.post(f"/api/v1/webhooks/{pk}/test")) == (409, "webhook_disabled")


def test_tests_are_limited(client, settings):
    settings.THROTTLE_SMTP_TEST = (2, 60)
    pk = made(client)["id"]
    codes = [client.post(f"/api/v1/webhooks/{pk}/test").status_code for _ in range(3)]
    assert codes == [202, 202, 429]


def test_deliveries_are_listed_newest_first_page_by_page(client):
    pk = made(client)["id"]
    rows = [delivery_of(pk) for _ in range(5)]
    first = client.get(f"/api/v1/webhooks/{pk}/deliveries?limit=3").json()
    rest = client.get(first["next"]).json()
    assert [each["id"] for each in first["results"] + rest["results"]] == [row.pk for row in reversed(rows)]


def test_deliveries_are_filtered_by_state_and_say_when_they_go_on(client):
    pk = made(client)["id"]
    for state in State:
        delivery_of(pk, state, code=500, error="HTTP 500", tries=2)
    for state in State:
        (found,) = client.get(f"/api/v1/webhooks/{pk}/deliveries?state={state.label}").json()["results"]
        assert found["state"] == state.label
        assert (found["next_attempt_at"] is not None) == (state == State.PENDING)
        assert (found["code"], found["error"], found["tries"]) == (500, "HTTP 500", 2)
    assert client.get(f"/api/v1/webhooks/{pk}/deliveries?state=lost").status_code == 400


@pytest.mark.parametrize("state", State)
def test_one_is_replayed_unless_it_is_being_sent(client, state):
    pk = made(client)["id"]
    row = delivery_of(pk, state, tries=10, next_attempt_at=timezone.now() + timedelta(days=1))
    answer = client.post(f"/api/v1/webhooks/{pk}/deliveries/{row.pk}/replay")
    if state == State.SENDING:
        assert code_of(answer) == (409, "being_sent")
        return
    assert answer.status_code == 202
    again = Delivery.objects.get()
    assert (again.state, again.tries, again.message_id) == (State.PENDING, 0, row.message_id)
    assert again.next_attempt_at <= timezone.now()


def test_nothing_is_replayed_for_a_disabled_one(client):
    pk = made(client)["id"]
    row = delivery_of(pk)
    patch(client, pk, state="disabled")
    assert code_of(client.post(f"/api/v1/webhooks/{pk}/deliveries/{row.pk}/replay")) == (
        409,
        "webhook_disabled",
    )
    answer = client.post(f"/api/v1/webhooks/{pk}/replay", {"since": "2020-01-01T00:00:00Z"}, format="json")
    assert code_of(answer) == (409, "webhook_disabled")


def test_another_webhooks_delivery_is_not_found(client):
    mine, others = made(client)["id"], made(client)["id"]
    row = delivery_of(others)
    assert client.post(f"/api/v1/webhooks/{mine}/deliveries/{row.pk}/replay").status_code == 404


def replay(client: APIClient, pk: int, **body: Any) -> dict[str, Any]:
    answer = client.post(f"/api/v1/webhooks/{pk}/replay", body, format="json")
    assert answer.status_code == 202, answer.json()
    found: dict[str, Any] = answer.json()
    return found


def test_all_since_a_time_are_replayed_or_only_what_failed(client):
    pk = made(client)["id"]
    now = timezone.now()
    old = delivery_of(pk, State.FAILED, created_at=now - timedelta(hours=2))
    for state in State:
        delivery_of(pk, state)
    since = (now - timedelta(hours=1)).isoformat()
    assert replay(client, pk, since=since, only_failed=True) == {"replayed": 1, "next_since": None}
    assert replay(client, pk, since=since) == {"replayed": 1, "next_since": None}  # the delivered one
    assert replay(client, pk, since=since)["replayed"] == 0
    old.refresh_from_db()
    assert old.state == State.FAILED


def test_a_replay_that_takes_too_long_says_where_to_go_on(client, monkeypatch):
    monkeypatch.setattr(deliveries, "BITE", 2)
    monkeypatch.setattr(deliveries, "LONGEST_REPLAY", -1.0)
    pk, start = made(client)["id"], timezone.now() - timedelta(minutes=10)
    for minute in range(5):
        delivery_of(pk, created_at=start + timedelta(minutes=minute))
    since, replayed = start.isoformat(), 0
    for _ in range(4):
        answer = replay(client, pk, since=since)
        replayed += answer["replayed"]
        if answer["next_since"] is None:
            break
        since = answer["next_since"]
    assert replayed == 5
    assert set(Delivery.objects.values_list("state", flat=True)) == {State.PENDING}


@pytest.mark.parametrize(
    "body", [{}, {"since": "yesterday"}, {"since": None}, {"since": "2030-01-01", "only_failed": 1}]
)
def test_a_replay_asks_for_a_time(client, body):
    pk = made(client)["id"]
    assert client.post(f"/api/v1/webhooks/{pk}/replay", body, format="json").status_code == 400


# Prune and admin -------------------------------------------------------------------------------------


def test_prune_lets_go_of_what_is_old_whatever_its_state(client):
    pk = made(client)["id"]
    for state in State:
        delivery_of(pk, state, created_at=timezone.now() - timedelta(days=15))
    young = delivery_of(pk, created_at=timezone.now() - timedelta(days=13))
    assert endpoints.prune() == len(State)
    assert list(Delivery.objects.all()) == [young]


@pytest.fixture
def staff() -> Client:
    client = Client()
    client.force_login(UserFactory(is_staff=True, is_superuser=True))
    return client


def test_staff_replay_and_disable_and_see_no_secret(client, owner, staff):
    made_one = made(client, url=f"{HOOK}/token-in-the-path")
    failed = delivery_of(made_one["id"], State.FAILED, tries=10)
    pages = ["endpoint/", f"endpoint/{made_one['id']}/change/", "delivery/", f"delivery/{failed.pk}/change/"]
    for page in pages:
        answer = staff.get(f"/admin/webhooks/{page}")
        assert answer.status_code == 200, page
        assert b"whsec_" not in answer.content
        assert Endpoint.objects.get().sealed_secret.encode() not in answer.content
    assert b"token-in-the-path" not in staff.get("/admin/webhooks/endpoint/").content
    action = {"action": "replay", "_selected_action": [failed.pk]}
    assert b"1 of 1 are sent again" in staff.post("/admin/webhooks/delivery/", action, follow=True).content
    failed.refresh_from_db()
    assert (failed.state, failed.tries) == (State.PENDING, 0)
    for name, active in (("switch_off", False), ("switch_on", True)):
        action = {"action": name, "_selected_action": [made_one["id"]]}
        staff.post("/admin/webhooks/endpoint/", action, follow=True)
        assert Endpoint.objects.get().is_active == active
        assert is_listening(owner) == active


def test_the_test_event_is_of_the_usual_form(client):
    made(client)
    body = json.loads(fanout.test_delivery(Endpoint.objects.get()).payload)
    assert body.keys() == {"type", "timestamp", "data"}
