"""Over HTTP in, over SMTP out, with a real web, worker, upkeep and beat between; the waits are seconds."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from typing import Any

import pytest

from tests.machine import Machine, Sender, own_database, until
from tests.relay import RESET, Relay


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with own_database() as database, Machine(database, tmp_path_factory.mktemp("machine")) as machine:
        yield machine.start_all()


@pytest.fixture
def sender(machine: Machine, relay: Relay) -> Sender:
    return machine.user(relay.port)


def history(task: dict[str, Any]) -> list[tuple[str, int]]:
    return [(attempt["outcome"], attempt["code"]) for attempt in task["attempts"]]


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_a_mail_goes_from_the_call_to_the_relay_unchanged(relay: Relay, sender: Sender) -> None:
    task = sender.until(sender.enqueue(subject="Grüße 🙂", body="Hello ✓\n"), "success")
    assert history(task) == [("accepted", 250)]
    (got,) = relay.accepted
    assert got.message_id == task["message_id"]
    parsed = message_from_bytes(got.raw, policy=policy.default)
    assert (parsed["To"], parsed["Subject"]) == ("jane@example.com", "Grüße 🙂")
    assert parsed.get_content().strip() == "Hello ✓"


def test_451_twice_and_then_250_makes_three_attempts_by_the_schedule(relay: Relay, sender: Sender) -> None:
    relay.on("rcpt", "451 4.3.0 later", "451 4.3.0 later", to="jane@example.com")
    task = sender.until(sender.enqueue(), "success")
    assert history(task) == [("temporary", 451), ("temporary", 451), ("accepted", 250)]
    first, second, third = (moment(attempt["at"]) for attempt in task["attempts"])
    assert (second - first).total_seconds() > 1 * 0.8  # the schedule is 1 s, 2 s, each a fifth more or less
    assert (third - second).total_seconds() > 2 * 0.8
    assert len(relay.accepted) == 1


def test_a_mail_that_always_fails_is_cancelled_after_its_last_try(relay: Relay, sender: Sender) -> None:
    relay.always("rcpt", "450 4.2.1 never", to="jane@example.com")
    pk = sender.enqueue(max_tries=3)
    task = sender.until(pk, "cancelled")
    assert (task["cancel_reason"], task["try_count"]) == ("exhausted", 3)
    assert history(task) == [("temporary", 450)] * 3
    assert sender.failures() == [pk]
    assert not relay.accepted


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("kind", ["message", "generateOtp"])
def test_a_typed_task_is_tried_so_often_again_as_it_says(
    relay: Relay, sender: Sender, kind: str, retries: int
) -> None:
    relay.always("rcpt", "451 4.3.0 later")
    payload = {"userId": "jane@example.com"} | ({"subject": "x", "content": "x"} if kind == "message" else {})
    asked = {"type": kind, "retries": retries, "payload": payload}
    answer = sender._web.post("/task/", json=asked, headers=sender._headers).raise_for_status().json()
    task = sender.until(answer["task_id"], "cancelled")
    assert (task["cancel_reason"], history(task)) == ("exhausted", [("temporary", 451)] * (retries + 1))
    assert sum(command.startswith("RCPT") for command in relay.commands()) == retries + 1
    assert not relay.accepted


def test_a_recipient_that_does_not_exist_is_cancelled_at_once(relay: Relay, sender: Sender) -> None:
    relay.always("rcpt", "550 5.1.1 no such user", to="jane@example.com")
    pk = sender.enqueue()
    task = sender.until(pk, "cancelled")
    assert (task["cancel_reason"], history(task)) == ("rejected", [("rejected", 550)])
    assert sender.failures() == [pk]


def test_a_scheduled_mail_goes_out_at_its_time(relay: Relay, sender: Sender) -> None:
    at = datetime.now(UTC) + timedelta(seconds=4)
    pk = sender.enqueue(scheduled_at=at.isoformat())
    assert sender.task(pk)["waiting"]["reason"] == "scheduled"
    task = sender.until(pk, "success")
    lateness = (moment(task["attempts"][0]["at"]) - at).total_seconds()
    assert lateness >= 0  # never before; how late depends on the machine, and belongs into a benchmark
    assert len(relay.accepted) == 1


def test_a_mail_scheduled_in_the_past_goes_out_at_once(relay: Relay, sender: Sender) -> None:
    sender.until(sender.enqueue(scheduled_at="2001-01-01T00:00:00Z"), "success")


def test_a_mail_that_expires_waiting_is_cancelled(relay: Relay, sender: Sender) -> None:
    relay.always("rcpt", "450 4.7.1 greylisted for five minutes", to="jane@example.com")
    expires_at = datetime.now(UTC) + timedelta(seconds=30)
    task = sender.until(sender.enqueue(expires_at=expires_at.isoformat()), "cancelled")
    assert task["cancel_reason"] == "expired"


def test_a_held_mail_waits_for_a_person(relay: Relay, sender: Sender) -> None:
    relay.on("dot", RESET, to="jane@example.com")
    task = sender.until(sender.enqueue(on_uncertain="hold"), "uncertain")
    assert task["waiting"]["reason"] == "uncertain"
    assert not relay.accepted


def test_a_name_that_does_not_resolve_waits_and_says_why(machine: Machine) -> None:
    sender = machine.user(587, host="smtp.invalid", name="ada", password="secret")
    pk = sender.enqueue()
    until(
        lambda: (sender.task(pk)["waiting"] or {}).get("reason") == "account_paused", "the account is parked"
    )
    task = sender.task(pk)
    assert (task["status"], task["try_count"], task["attempts"]) == ("queued", 0, [])
    assert "does not resolve" in task["waiting"]["detail"]


def test_hundreds_of_mails_arrive_once_each(relay: Relay, sender: Sender) -> None:
    for number in range(300):
        sender.enqueue(f"reader{number}@example.com")
    until(lambda: len(relay.accepted) >= 300, "all have arrived")
    assert len({mail.recipient for mail in relay.accepted}) == len(relay.accepted) == 300
