"""Beat and the upkeep worker are killed for an hour and more; then two of each come up at once."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from mailqueue.subscriptions.models import Outcome
from tests.machine import Machine, Sender, own_database, until
from tests.relay import Relay

HOUR = timedelta(hours=1)
POLICIES = {"jane@example.com": "last", "joe@example.com": "skip"}
LATER = "kim@example.com"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with (
        own_database() as database,
        Machine(database, tmp_path, PUBLIC_URL="https://mail.example.com") as machine,
    ):
        yield machine.start_all()


def post(sender: Sender, path: str, body: Any) -> Any:
    return sender._web.post(path, json=body, headers=sender._headers).raise_for_status().json()


def subscribe(sender: Sender, recipient: str, minute: int, policy: str = "last") -> int:
    plan = {"cron": f"{minute} * * * *", "content_type": "news", "policy": policy}
    asked = {"type": "subscribe", "payload": {"userId": recipient, **plan}}
    return int(post(sender, "/task/", asked)["subscription_id"])


def move(machine: Machine, recipient: str, next_at: datetime) -> None:
    """As if its next time had been that one."""
    with psycopg.connect(machine.database, autocommit=True) as database:
        database.execute(
            "UPDATE subscriptions_subscription SET next_at = %s WHERE recipient = %s", [next_at, recipient]
        )


def shown(sender: Sender, pk: int) -> dict[str, Any]:
    return sender._get(f"/subscriptions/{pk}")


def time_of(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_after_an_outage_each_policy_does_what_it_says_once(machine: Machine, relay: Relay) -> None:
    sender = machine.user(relay.port)
    post(sender, "/task/subscriptionContent", {"content_type": "news", "subject": "News", "content": "New."})
    ((now,),) = machine.query("SELECT now()")
    # Hourly, and the last time was half an hour ago: too long to count as in time, and far from the next one.
    last = (now.astimezone(UTC) - HOUR / 2).replace(second=0, microsecond=0)
    ids = {who: subscribe(sender, who, last.minute, policy) for who, policy in POLICIES.items()}
    kim = subscribe(sender, LATER, last.minute)

    machine.kill("beat")
    machine.kill("upkeep")
    for who in POLICIES:
        move(machine, who, last - HOUR)  # so that this time was missed, and the one after it
    for number in ("1", "2"):
        machine.start_beat(f"beat{number}")
        machine.start_upkeep(f"upkeep{number}")

    until(lambda: [one.recipient for one in relay.accepted] == ["jane@example.com"], "the last one is sent")
    # When a later one has arrived, both have had their ticks.
    machine.until_ready("upkeep1", "upkeep2")
    move(machine, LATER, last)
    until(lambda: LATER in [one.recipient for one in relay.accepted], "the later one is sent")
    assert [one.recipient for one in relay.accepted] == ["jane@example.com", LATER]
    outcomes = {"jane@example.com": Outcome.QUEUED, "joe@example.com": Outcome.MISSED}
    for who, pk in ids.items():
        found = shown(sender, pk)
        assert [(time_of(one["at"]), one["outcome"]) for one in found["occurrences"]] == [
            (last, outcomes[who].label)
        ]
        assert time_of(found["next_times"][0]) == last + HOUR
    assert [one["outcome"] for one in shown(sender, kim)["occurrences"]] == ["queued"]

    # The mail that came has its one-click link.
    (raw,) = [one.raw for one in relay.accepted if one.recipient == "jane@example.com"]
    assert b"List-Unsubscribe-Post: List-Unsubscribe=One-Click" in raw
