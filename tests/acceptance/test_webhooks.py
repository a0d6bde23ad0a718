"""A receiver that is away at first, and a service that is killed meanwhile: in the end it has got every event, and
its library verifies each."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mailqueue.embedded.redis import free_port
from tests.machine import Machine, Sender, own_database, until
from tests.receiver import Receiver
from tests.relay import Relay


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with own_database() as database, Machine(database, tmp_path_factory.mktemp("machine")) as machine:
        yield machine.start_all()


def make(machine: Machine, sender: Sender, url: str) -> tuple[int, str]:
    """Its number and its secret."""
    answer = httpx.post(
        f"http://127.0.0.1:{machine.port}/api/v1/webhooks", json={"url": url}, headers=sender._headers
    )
    assert answer.status_code == 201, answer.text
    return answer.json()["id"], answer.json()["secret"]


def deliveries(machine: Machine, webhook: int, state: str) -> int:
    ((count,),) = machine.query(
        f"SELECT count(*) FROM webhooks_delivery WHERE endpoint_id = {webhook} AND state IN ({state})"
    )
    return int(count)


def let_time_pass(machine: Machine) -> None:
    """What waits for its next try is due."""
    machine.query(
        "UPDATE webhooks_delivery SET next_attempt_at = now() - interval '1 minute' WHERE state = 0 RETURNING id"
    )


def test_a_lost_receiver_gets_every_event_in_the_end(machine: Machine, relay: Relay) -> None:
    sender, port = machine.user(relay.port), free_port()
    webhook, secret = make(machine, sender, f"http://127.0.0.1:{port}/hook")
    relay.on("rcpt", "550 5.7.1 no", to="nobody@example.com")
    tasks = [sender.enqueue(f"reader{number}@example.com") for number in range(20)]
    tasks.append(sender.enqueue("nobody@example.com"))
    for task in tasks[:-1]:
        sender.until(task, "success")
    sender.until(tasks[-1], "cancelled")
    # Queued and at its end: two events of each.
    until(lambda: deliveries(machine, webhook, "0, 1") >= 2 * len(tasks), "all of it is to be told")
    until(
        lambda: not machine.query("SELECT 1 FROM webhooks_delivery WHERE tries = 0"),
        "all of it is tried in vain",
    )
    machine.kill("upkeep")
    machine.query("UPDATE webhooks_delivery SET lease_until = now() WHERE state = 1 RETURNING id")
    with Receiver(port) as receiver:
        receiver.answers = [(500, {}), (429, {"Retry-After": "1"}), (503, {})]
        machine.start_upkeep()

        def all_told() -> bool:
            let_time_pass(machine)
            return deliveries(machine, webhook, "0, 1") == 0

        until(all_told, "all of it is told")
        assert deliveries(machine, webhook, "2") >= 2 * len(tasks)
        told = {call.id: call.verified(secret) for call in receiver.calls}
    known = {
        f"evt_{pk}" for (pk,) in machine.query(f"SELECT id FROM tasks_event WHERE owner_id = {sender.pk}")
    }
    assert told.keys() == known
    heard = {(event["data"]["task_id"], event["type"]) for event in told.values()}
    assert heard == (
        {(task, "task.queued") for task in tasks}
        | {(task, "task.sent") for task in tasks[:-1]}
        | {(tasks[-1], "task.failed")}
    )


def test_an_event_arrives_within_seconds_and_the_log_keeps_its_secret(
    machine: Machine, relay: Relay, tmp_path: Path
) -> None:
    sender = machine.user(relay.port)
    with Receiver() as receiver:
        _, secret = make(machine, sender, f"{receiver.url}/canary-in-the-path")
        task = sender.enqueue()
        until(lambda: len(receiver.calls) >= 2, "both events are told")
        assert {call.verified(secret)["data"]["task_id"] for call in receiver.calls} == {task}
    logs = "".join(machine.said(name) for name in machine.running)
    assert secret not in logs
    assert "canary-in-the-path" not in logs
    signature = receiver.calls[0].headers["webhook-signature"]
    assert signature not in logs
    results = machine.query("SELECT result::text FROM django_celery_results_taskresult")
    assert not any(word in str(results) for word in (secret, "canary", signature))
    dump = machine.query("SELECT sealed_secret FROM webhooks_endpoint")
    assert secret not in str(dump)
