"""Subscriptions and contents in the admin."""

import re
from datetime import UTC, datetime

import pytest
from django.contrib.auth.models import Permission
from django.test import Client

from accounts.models import User
from mailqueue.subscriptions import contents, deeds
from mailqueue.subscriptions.models import Content, State, Subscription
from mailqueue.subscriptions.tick import tick
from tests.factories import UserFactory

pytestmark = pytest.mark.django_db
LIST, CONTENTS = "/admin/subscriptions/subscription/", "/admin/subscriptions/content/"


@pytest.fixture
def staff() -> Client:
    client = Client()
    client.force_login(UserFactory(is_staff=True, is_superuser=True))
    return client


@pytest.fixture
def owner() -> User:
    user: User = UserFactory()
    contents.make(user, "news", "The week", '<p id="x">News</p><script>alert("1")</script>')
    deeds.subscribe(user, "jane@example.com", "news", line="@daily")
    return user


def act(client: Client, name: str) -> str:
    chosen = {"action": name, "_selected_action": list(Subscription.objects.values_list("id", flat=True))}
    return client.post(LIST, chosen, follow=True).content.decode()


def test_lists_and_pages_show_what_there_is(staff: Client, owner: User) -> None:
    tick(datetime(2031, 1, 1, tzinfo=UTC))
    one = Subscription.objects.get()
    assert "jane@example.com" in staff.get(LIST).content.decode()
    assert "jane@example.com" in staff.get(LIST, {"q": owner.email}).content.decode()
    page = staff.get(f"{LIST}{one.pk}/change/").content.decode()
    assert "2031-01-02 00:00, 2031-01-03 00:00" in page
    assert f'href="/admin/tasks/mailtask/{one.occurrences.get().task_id}/change/"' in page
    assert "news" in staff.get(CONTENTS).content.decode()


def test_a_preview_runs_and_loads_nothing(staff: Client, owner: User) -> None:
    page = staff.get(f"{CONTENTS}{Content.objects.get().pk}/change/").content.decode()
    (frame,) = re.findall(r"<iframe[^>]*>", page)
    assert 'sandbox=""' in frame
    assert "default-src &#x27;none&#x27;" in frame
    assert "&lt;p id=&quot;x&quot;&gt;News" in frame
    assert '<script>alert("1")' not in page


def test_staff_pause_resume_and_end(staff: Client, owner: User) -> None:
    for name, state in (("pause", State.PAUSED), ("resume", State.ACTIVE), ("end", State.ENDED)):
        act(staff, name)
        assert Subscription.objects.get().state == state
    act(staff, "resume")
    assert Subscription.objects.get().state == State.ENDED


def test_whoever_may_only_look_changes_nothing(owner: User) -> None:
    viewer, client = UserFactory(is_staff=True), Client()
    viewer.user_permissions.add(Permission.objects.get(codename="view_subscription"))
    client.force_login(viewer)
    act(client, "end")
    assert Subscription.objects.get().state == State.ACTIVE
