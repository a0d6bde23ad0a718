"""Each event becomes one delivery for each webhook that wants to hear of it: no more, no less, whatever happens."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.db import connection

from accounts.models import AccountChange, User
from mailqueue.embedded.process import ROOT
from mailqueue.webhooks import endpoints, fanout
from mailqueue.webhooks.fanout import fan_out
from mailqueue.webhooks.models import Delivery, Endpoint, EventCursor, State
from tasks import events, submission
from tasks.events import EventRow
from tasks.submission import NewMail
from tests.factories import UserFactory

#: Several transactions, as in the world: one alone never sees what it has told.
pytestmark = pytest.mark.django_db(transaction=True)
HOOK = "https://8.8.8.8/hook"


def hook(owner: User, *names: str) -> Endpoint:
    return endpoints.make(owner, HOOK, list(names), "")[0]


def happen(owner: User, count: int = 1) -> None:
    for number in range(count):
        events.tell(owner.pk, AccountChange.PAUSED, f"reason {number}", None)


def delivered_to(endpoint: Endpoint) -> list[str]:
    return list(
        Delivery.objects.filter(endpoint=endpoint).order_by("id").values_list("message_id", flat=True)
    )


def event_ids(owner: User) -> list[str]:
    return [
        f"evt_{pk}" for pk in EventRow.objects.filter(owner=owner).order_by("id").values_list("id", flat=True)
    ]


def test_a_mail_that_is_accepted_is_told_in_the_form_of_the_standard(owner):
    endpoint = hook(owner)
    task_id = submission.submit(owner, NewMail("jane@example.com", "Grüße", "Hello.")).pk
    assert fan_out() == 1
    row = Delivery.objects.get()
    body = json.loads(row.payload)
    assert body.keys() == {"type", "timestamp", "data"}
    assert (body["type"], row.event) == ("task.queued", "task.queued")
    assert (body["data"]["task_id"], body["data"]["status"]) == (task_id, "queued")
    assert (row.endpoint_id, row.state, row.tries) == (endpoint.pk, State.PENDING, 0)


def test_every_webhook_of_the_owner_that_wants_it_gets_it_once(owner):
    everything, nothing, other = hook(owner), hook(owner, "task.sent"), hook(UserFactory())
    narrow = hook(owner, "account.paused", "task.sent")
    happen(owner, 3)
    assert fan_out() == 6
    assert fan_out() == 0
    assert delivered_to(everything) == delivered_to(narrow) == event_ids(owner)
    assert delivered_to(nothing) == delivered_to(other) == []


def test_a_disabled_one_gets_nothing_new(owner):
    on, off = hook(owner), hook(owner)
    endpoints.disable(off, "x")
    happen(owner)
    fan_out()
    endpoints.change(off, is_active=True, reason="")
    assert fan_out() == 0
    assert (len(delivered_to(on)), delivered_to(off)) == (1, [])


def test_more_than_a_bite_is_taken_in_bites(owner, monkeypatch):
    monkeypatch.setattr(fanout, "BITE", 10)
    endpoint = hook(owner)
    happen(owner, 35)
    assert fan_out() == 35
    assert delivered_to(endpoint) == event_ids(owner)
    monkeypatch.setattr(fanout, "BITES", 2)
    happen(owner, 35)
    assert [fan_out(), fan_out(), fan_out()] == [20, 15, 0]


def test_events_of_owners_without_webhooks_are_passed_by(owner):
    other = UserFactory()
    events.listen(other.pk)
    happen(other, 5)
    assert fan_out() == 0
    endpoint = hook(owner)
    happen(owner)
    assert fan_out() == 1
    assert len(delivered_to(endpoint)) == 1


def test_several_at_once_do_it_once(owner, monkeypatch):
    monkeypatch.setattr(fanout, "BITE", 7)
    endpoint = hook(owner)
    happen(owner, 200)

    def go(_: int) -> int:
        try:
            return sum(fan_out() for _ in range(20))
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(go, range(4)))
    written.append(fan_out())  # what all of them left to somebody who was just done
    assert sum(written) == 200
    assert delivered_to(endpoint) == event_ids(owner)


KILLED = """
import os, sys, django
os.environ["DATABASE_URL"] = sys.argv[1]
django.setup()
from mailqueue.webhooks import fanout
from mailqueue.webhooks.models import Delivery, EventCursor
place = sys.argv[2]
def die(*_args, **_named):
    os.kill(os.getpid(), 9)
if place == "before the deliveries":
    fanout._deliveries = die
elif place == "before the cursor":
    EventCursor.save = die
elif place == "before the commit":
    save = EventCursor.save
    EventCursor.save = lambda *args, **named: (save(*args, **named), die())
fanout.fan_out()
"""


@pytest.mark.parametrize("place", ["before the deliveries", "before the cursor", "before the commit"])
def test_killed_at_any_point_it_has_done_nothing_and_the_next_does_it(owner, place):
    endpoint = hook(owner)
    happen(owner, 3)
    name = connection.settings_dict["NAME"]
    url = urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{name}").geturl()
    killed: Any = subprocess.run(
        [sys.executable, "-c", KILLED, url, place], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert killed.returncode == -9, killed.stderr
    assert not Delivery.objects.exists()
    assert fan_out() == 3
    assert delivered_to(endpoint) == event_ids(owner)


def test_a_cursor_that_was_put_back_sends_nothing_twice(owner):
    endpoint = hook(owner)
    happen(owner, 3)
    fan_out()
    EventCursor.objects.update(position=0)
    fan_out()
    assert delivered_to(endpoint) == event_ids(owner)
