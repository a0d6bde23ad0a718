"""Subscriptions over HTTP: subscribe and unsubscribe, the list, the contents, and the page of RFC 8058."""

from typing import Any

import pytest
from django.test import Client
from rest_framework.test import APIClient

from accounts.models import User
from mailqueue.done import DoneTask
from mailqueue.subscriptions import contents, deeds, links, tick
from mailqueue.subscriptions.models import Content, Policy, State, Subscription
from tasks import versions
from tasks.models import MailTask
from tests.factories import UserFactory, client_of

pytestmark = pytest.mark.django_db
TASK, LIST = "/api/v1/task/", "/api/v1/subscriptions"
CONTENT = "/api/v1/task/subscriptionContent"
NEWS = {"content_type": "news", "subject": "The week", "content": "<p>What was new.</p>"}
JANE: dict[str, Any] = {"userId": "jane@example.com", "frequency": "@daily", "content_type": "news"}


def call(api: APIClient, kind: str, payload: Any, **more: Any) -> Any:
    return api.post(TASK, {"type": kind, "payload": payload} | more, format="json")


def without(payload: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in payload.items() if name not in names}


def refused(answer: Any, field: str, code: str) -> None:
    assert answer.status_code == 400, answer.json()
    assert [(each["field"], each["code"]) for each in answer.json()["errors"]] == [(field, code)]


def subscribed(api: APIClient, **payload: Any) -> int:
    return int(call(api, "subscribe", JANE | payload).json()["subscription_id"])


# Subscribe ----------------------------------------------------------------------------------------------


def test_subscribing_answers_with_its_subscription(api: APIClient, owner: User) -> None:
    answer = call(api, "subscribe", JANE, task="letter", retries=2)
    found = Subscription.objects.get()
    assert answer.status_code == 202
    assert answer.json() == {
        "status": True,
        "msg": answer.json()["msg"],
        "task_id": DoneTask.objects.get().pk,
        "subscription_id": found.pk,
    }
    assert answer["Location"].endswith(f"/api/v1/task/{answer.json()['task_id']}")
    assert "subscriptionContent" in answer.json()["msg"]
    assert not MailTask.objects.exists()
    shown = api.get(f"{LIST}/{found.pk}").json()
    assert (shown["recipient"], shown["frequency"], shown["cron"]) == ("jane@example.com", "@daily", None)
    assert (shown["task"], shown["retries"], shown["policy"]) == ("letter", 2, "last")
    assert (shown["timezone"], shown["window"], shown["state"]) == ("UTC", "", "active")
    assert [at[10:] for at in shown["next_times"]] == ["T00:00:00Z"] * 5
    assert shown["occurrences"] == []


def test_with_content_nothing_is_said_of_it(api: APIClient) -> None:
    api.post(CONTENT, NEWS, format="json")
    assert "subscriptionContent" not in call(api, "subscribe", JANE).json()["msg"]


@pytest.mark.parametrize(
    ("payload", "line"),
    [
        *[(JANE | {"frequency": word}, word) for word in ("@hourly", "@daily", "@weekly", "@monthly")],
        (without(JANE, "frequency") | {"cron": "30 8 * * mon-fri"}, "30 8 * * MON-FRI"),
        (without(JANE, "frequency") | {"cron": "  0   9 1 * * "}, "0 9 1 * *"),
        (JANE | {"timezone": "Europe/Berlin", "window": "22:00-06:00", "policy": "skip"}, "@daily"),
        (JANE | {"window": ""}, "@daily"),
        (JANE | {"length": 99, "subject": None}, "@daily"),  # not its own fields
        (without(JANE, "userId") | {"recipient": "jane@example.com"}, "@daily"),
    ],
)
def test_a_right_payload_is_taken(api: APIClient, payload: dict[str, Any], line: str) -> None:
    assert call(api, "subscribe", payload).status_code == 202
    found = Subscription.objects.get()
    assert found.line == line
    assert found.policy == (Policy.SKIP if "policy" in payload else Policy.LAST)


@pytest.mark.parametrize(
    ("payload", "field", "code"),
    [
        *[(without(JANE, name), name, "required") for name in JANE],
        *[(JANE | {name: None}, name, "null") for name in (*JANE, "cron", "timezone", "window", "policy")],
        *[(JANE | {name: ""}, name, "blank") for name in ("userId", "content_type", "cron", "timezone")],
        (JANE | {"userId": "jane"}, "userId", "invalid_address"),
        *[
            (JANE | {"frequency": word}, "frequency", "invalid_choice")
            for word in ("", "daily", "@yearly", "@Daily", 1)
        ],
        (JANE | {"content_type": 7}, "content_type", "invalid"),
        (JANE | {"content_type": "x" * 101}, "content_type", "max_length"),
        (JANE | {"content_type": "a\nb"}, "content_type", "control_character"),
        (JANE | {"cron": "0 0 * * *"}, "cron", "not_with_others"),
        (without(JANE, "frequency") | {"cron": "0 25 * * *"}, "cron", "invalid_cron"),
        (without(JANE, "frequency") | {"cron": "@hourly"}, "cron", "invalid_cron"),
        (JANE | {"timezone": "Berlin"}, "timezone", "unknown_timezone"),
        (JANE | {"window": "8-18"}, "window", "invalid_window"),
        (JANE | {"policy": "all"}, "policy", "invalid_choice"),
    ],
)
def test_a_wrong_payload_is_refused_and_the_field_is_named(
    api: APIClient, payload: dict[str, Any], field: str, code: str
) -> None:
    refused(call(api, "subscribe", payload), f"payload.{field}", code)
    assert not Subscription.objects.exists()


def test_subscribing_uses_up_no_quota_and_is_done_once_for_its_key(api: APIClient, owner: User) -> None:
    owner.daily_quota = 1
    owner.save()
    asked = {"type": "subscribe", "payload": JANE}
    first, second = (
        api.post(TASK, asked, format="json", headers={"Idempotency-Key": "a-key"}) for _ in range(2)
    )
    assert (first.status_code, first.content, first["Location"]) == (202, second.content, second["Location"])
    assert second["Idempotency-Replayed"] == "true"
    assert call(api, "subscribe", JANE | {"userId": "joe@example.com"}).status_code == 202


def test_a_closed_account_subscribes_nobody(api: APIClient, owner: User) -> None:
    api.get(LIST)  # the user is kept for some seconds
    User.objects.filter(pk=owner.pk).update(is_active=False)
    assert call(api, "subscribe", JANE).status_code == 401
    assert not Subscription.objects.exists()


# Unsubscribe --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "left"),
    [
        ({"userId": "jane@example.com", "content_type": "news"}, {"sport"}),
        ({"userId": "JANE@example.com"}, set()),
        ({"userId": "jane@example.com", "content_type": "other"}, {"news", "sport"}),
        ({"userId": "joe@example.com"}, {"news", "sport"}),
    ],
)
def test_unsubscribing_ends_what_is_named(api: APIClient, payload: dict[str, Any], left: set[str]) -> None:
    subscribed(api)
    subscribed(api, content_type="sport")
    subscribed(client_of(UserFactory()), userId="jane@example.com")
    for _ in range(2):
        answer = call(api, "unsubscribe", payload)
        assert (answer.status_code, answer.json()["status"]) == (202, True)
        assert answer.json()["task_id"] == DoneTask.objects.latest("id").pk
    own = api.get(f"{LIST}?state=active").json()["results"]
    assert {each["content_type"] for each in own} == left
    assert Subscription.objects.filter(state=State.ACTIVE).count() == len(left) + 1


@pytest.mark.parametrize(
    ("payload", "field", "code"),
    [
        ({}, "userId", "required"),
        ({"userId": "jane"}, "userId", "invalid_address"),
        ({"userId": "jane@example.com", "content_type": ""}, "content_type", "blank"),
    ],
)
def test_a_wrong_unsubscribe_is_refused(
    api: APIClient, payload: dict[str, Any], field: str, code: str
) -> None:
    refused(call(api, "unsubscribe", payload), f"payload.{field}", code)


# The list -----------------------------------------------------------------------------------------------


def test_the_list_is_filtered(api: APIClient) -> None:
    jane, joe = subscribed(api), subscribed(api, userId="joe@example.com", content_type="sport")
    api.post(f"{LIST}/{joe}/pause")

    def ids(query: str) -> list[int]:
        return [each["id"] for each in api.get(f"{LIST}?{query}").json()["results"]]

    assert ids("") == [joe, jane]
    assert ids("state=paused") == ids("content_type=sport") == ids("recipient=JOE@example.com") == [joe]
    refused(api.get(f"{LIST}?state=gone"), "state", "invalid_choice")


def test_a_change_is_taken_and_the_rest_stays(api: APIClient) -> None:
    pk = subscribed(api, window="08:00-18:00")
    changed = api.patch(f"{LIST}/{pk}", {"cron": "30 9 * * *", "retries": 0}, format="json").json()
    assert (changed["cron"], changed["frequency"], changed["window"]) == ("30 9 * * *", None, "08:00-18:00")
    assert (changed["retries"], changed["next_times"][0][10:]) == (0, "T09:30:00Z")
    changed = api.patch(f"{LIST}/{pk}", {"timezone": "Asia/Kolkata", "policy": "skip"}, format="json").json()
    assert (changed["next_times"][0][10:], changed["policy"]) == ("T04:00:00Z", "skip")
    refused(api.patch(f"{LIST}/{pk}", {"timezone": "x"}, format="json"), "timezone", "unknown_timezone")
    refused(api.patch(f"{LIST}/{pk}", {"retries": 21}, format="json"), "retries", "max_value")


def test_pause_and_resume(api: APIClient) -> None:
    pk = subscribed(api)
    for _ in range(2):
        paused = api.post(f"{LIST}/{pk}/pause").json()
        assert (paused["state"], paused["next_times"]) == ("paused", [])
    assert len(api.post(f"{LIST}/{pk}/resume").json()["next_times"]) == 5
    assert api.patch(f"{LIST}/{pk}", {"state": "paused"}, format="json").json()["state"] == "paused"
    assert api.patch(f"{LIST}/{pk}", {"state": "active"}, format="json").json()["state"] == "active"
    call(api, "unsubscribe", JANE)
    for answer in (
        api.post(f"{LIST}/{pk}/pause"),
        api.post(f"{LIST}/{pk}/resume"),
        api.patch(f"{LIST}/{pk}", {"state": "active"}, format="json"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "subscription_ended")
    assert Subscription.objects.get().state == State.ENDED


def test_what_came_of_it_is_shown(api: APIClient, owner: User) -> None:
    api.post(CONTENT, NEWS, format="json")
    pk = subscribed(api)
    due = Subscription.objects.get().next_at
    tick.tick(due)
    (made,) = api.get(f"{LIST}/{pk}").json()["occurrences"]
    assert (made["outcome"], made["task_id"]) == ("queued", MailTask.objects.get().pk)
    assert api.delete(f"{LIST}/{pk}").status_code == 204
    assert api.get(f"/api/v1/task/{made['task_id']}").json()["status"] == "cancelled"
    assert api.get(f"{LIST}/{pk}").status_code == 404


# Contents -----------------------------------------------------------------------------------------------


def test_a_content_is_made_changed_and_listed(api: APIClient) -> None:
    made = api.post(CONTENT, NEWS, format="json")
    assert made.status_code == 201
    assert (
        made.json() == {"id": made.json()["id"], "version": 1, "created_at": made.json()["created_at"]} | NEWS
    )
    changed = api.put(CONTENT, NEWS | {"subject": "The month"}, format="json")
    assert (changed.status_code, changed.json()["version"], changed.json()["subject"]) == (
        200,
        2,
        "The month",
    )
    api.post(CONTENT, NEWS | {"content_type": "sport"}, format="json")
    listed = api.get(CONTENT).json()["results"]
    assert [(each["content_type"], each["version"]) for each in listed] == [("sport", 1), ("news", 2)]
    (one,) = api.get(f"{CONTENT}?content_type=news").json()["results"]
    assert one == changed.json()
    assert api.get(f"{CONTENT}?content_type=other").json()["results"] == []


def test_what_is_unknown_or_there_already_is_refused(api: APIClient) -> None:
    answer = api.put(CONTENT, NEWS, format="json")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    client_of(UserFactory()).post(CONTENT, NEWS, format="json")
    assert api.put(CONTENT, NEWS, format="json").status_code == 404
    api.post(CONTENT, NEWS, format="json")
    answer = api.post(CONTENT, NEWS, format="json")
    assert (answer.status_code, answer.json()["code"]) == (409, "content_type_taken")


@pytest.mark.parametrize("method", ["post", "put"])
@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        *[(without(NEWS, name), name, "required") for name in NEWS],
        *[(NEWS | {name: ""}, name, "blank") for name in NEWS],
        *[(NEWS | {name: 7}, name, "invalid") for name in NEWS],
        (NEWS | {"subject": "a\nb"}, "subject", "control_character"),
        (NEWS | {"subject": "x" * 999}, "subject", "max_length"),
    ],
)
def test_a_wrong_content_is_refused(api: APIClient, method: str, body: Any, field: str, code: str) -> None:
    api.post(CONTENT, NEWS, format="json")
    refused(getattr(api, method)(CONTENT, body, format="json"), field, code)


def test_there_may_be_so_many(api: APIClient, owner: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "CONTENTS_PER_OWNER", 1)
    api.post(CONTENT, NEWS, format="json")
    answer = api.post(CONTENT, NEWS | {"content_type": "sport"}, format="json")
    assert (answer.status_code, answer.json()["code"]) == (409, "too_many_contents")


def test_the_last_versions_are_kept(owner: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "VERSIONS_KEPT", 2)
    contents.make(owner, "news", "1", "x")
    for number in (2, 3):
        contents.change(owner, "news", str(number), "x")
    kept = Content.objects.get().versions.order_by("number").values_list("subject", flat=True)
    assert list(kept) == ["2", "3"]


def test_options_are_answered(api: APIClient) -> None:
    assert api.options(CONTENT).status_code == 200


# The page -----------------------------------------------------------------------------------------------


@pytest.fixture
def browser() -> Client:
    return Client(enforce_csrf_checks=True)


def test_to_look_at_the_page_ends_nothing_and_to_post_does(api: APIClient, browser: Client) -> None:
    pk = subscribed(api)
    page = f"/unsubscribe/{links.token_of(pk)}"
    for method in ("get", "head", "get"):
        assert getattr(browser, method)(page).status_code == 200
    assert Subscription.objects.get().state == State.ACTIVE
    asked = browser.get(page)
    assert b"<button>" in asked.content
    assert b"jane@example.com" not in asked.content
    assert (asked["Referrer-Policy"], asked["Cache-Control"]) == ("no-referrer", "no-store")
    for _ in range(2):
        answer = browser.post(page, "List-Unsubscribe=One-Click", "application/x-www-form-urlencoded")
        assert answer.status_code == 200
        assert b"You are unsubscribed" in answer.content
        assert Subscription.objects.get().state == State.ENDED
    assert b"<button>" not in browser.get(page).content
    assert not browser.cookies


def test_one_click_as_multipart_does_too(api: APIClient, browser: Client) -> None:
    page = f"/unsubscribe/{links.token_of(subscribed(api))}"
    assert browser.post(page, {"List-Unsubscribe": "One-Click"}).status_code == 200
    assert Subscription.objects.get().state == State.ENDED


def test_it_ends_that_one_alone(api: APIClient, browser: Client) -> None:
    pk, other = subscribed(api), subscribed(api, content_type="sport")
    browser.post(f"/unsubscribe/{links.token_of(pk)}")
    assert Subscription.objects.get(state=State.ACTIVE).pk == other


@pytest.mark.parametrize(
    "forge",
    [
        lambda token, pk: token[:-1],
        lambda token, pk: token.replace(f"{pk}.", f"{pk + 1}."),
        lambda token, pk: token.replace(f"{pk}.", f"0{pk}."),
        lambda token, pk: f"{pk}.",
        lambda token, pk: str(pk),
        lambda token, pk: "ä.ö",
        lambda token, pk: "9" * 30 + token[token.index(".") :],
    ],
)
def test_a_link_cannot_be_made_up(api: APIClient, browser: Client, forge: Any) -> None:
    pk = subscribed(api)
    subscribed(api, content_type="sport")
    page = f"/unsubscribe/{forge(links.token_of(pk), pk)}"
    for method in ("get", "post"):
        answer = getattr(browser, method)(page)
        assert answer.status_code == 404
        assert b"Unknown link" in answer.content
    assert not Subscription.objects.filter(state=State.ENDED).exists()


def test_a_link_outlives_a_change_of_keys_and_its_subscription_is_gone_when_deleted(
    api: APIClient, browser: Client, settings: Any
) -> None:
    pk = subscribed(api)
    page = f"/unsubscribe/{links.token_of(pk)}"
    settings.CREDENTIAL_KEYS = ["c2Vjb25kLWtleS0zMi1ieXRlcy1sb25nLS0tLS0tLS0=", *settings.CREDENTIAL_KEYS]
    assert browser.get(page).status_code == 200
    deeds.remove(Subscription.objects.get())
    assert browser.post(page).status_code == 404
