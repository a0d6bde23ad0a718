"""Processes die, Redis forgets or is gone: what was accepted arrives all the same."""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest
import redis
from celery import Celery

from tasks import doorbell
from tests.machine import Machine, celery_app, own_database, until
from tests.relay import Relay


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with (
        own_database() as database,
        Machine(database, tmp_path_factory.mktemp("machine"), SWEEP_AFTER_SECONDS="1") as machine,
    ):
        yield machine


@pytest.fixture
def machine(processes: Machine) -> Machine:
    """All of it runs, whatever the test before has ended."""
    return processes.start_all()


@pytest.fixture
def slow_relay() -> Iterator[Relay]:
    """Slow enough that something is under way whenever a test looks."""
    with Relay(delay=0.05) as relay:
        yield relay


def flush(machine: Machine) -> None:
    with redis.Redis.from_url(machine.redis.url) as client:
        client.flushall()


def until_all_are_sent(machine: Machine, relay: Relay, count: int) -> Counter[str]:
    """How often each Message-ID has arrived, once every row says success."""
    unfinished = (
        "SELECT count(*) FROM tasks_mailtask JOIN accounts_smtpaccount USING (owner_id)"
        f" WHERE port = {relay.port} AND status <> 2"
    )
    until(lambda: len({mail.message_id for mail in relay.accepted}) >= count, "all have arrived")
    until(lambda: machine.query(unfinished) == [(0,)], "all rows say success")
    return Counter(mail.message_id for mail in relay.accepted)


def test_killed_in_the_middle_with_redis_emptied_all_500_arrive(machine: Machine, slow_relay: Relay) -> None:
    sender = machine.user(slow_relay.port)
    tasks = [sender.enqueue(f"reader{number}@example.com") for number in range(250)]
    until(lambda: len(slow_relay.accepted) > 20, "some are under way")
    machine.kill("worker")
    tasks += [sender.enqueue(f"reader{number}@example.com") for number in range(250, 500)]
    flush(machine)
    held = machine.query("SELECT count(*) FROM tasks_mailtask WHERE status = 1")[0][0]
    assert held > 0, "nothing was under way: the test has missed its moment"
    machine.start_worker()
    arrived = until_all_are_sent(machine, slow_relay, 500)
    assert len(arrived) == len(set(tasks)) == 500
    assert sum(arrived.values()) - 500 <= held  # only what was under way may have gone twice


def test_redis_emptied_again_and_again_costs_nothing(machine: Machine, relay: Relay) -> None:
    sender = machine.user(relay.port)
    for number in range(100):
        sender.enqueue(f"reader{number}@example.com")
        if number % 10 == 0:
            flush(machine)
    flush(machine)
    arrived = until_all_are_sent(machine, relay, 100)
    assert set(arrived.values()) == {1}


@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_without_redis_a_mail_is_accepted_within_seconds_and_sent(
    machine: Machine, relay: Relay, how: str
) -> None:
    sender = machine.user(relay.port)
    server = machine.redis.child
    assert server is not None
    if how == "stopped":
        machine.redis.stop()
    else:
        os.kill(server.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        pk = sender.enqueue()
        assert time.monotonic() - began < 3  # a promise of the contract
        sender.until(pk, "success")
    finally:
        if how == "stopped":
            machine.redis.start()
        else:
            os.kill(server.pid, signal.SIGCONT)
    sender.until(sender.enqueue(), "success")
    assert len(relay.accepted) == 2


def test_redis_restarted_in_the_middle_ends_no_worker(machine: Machine, slow_relay: Relay) -> None:
    """Celery holds the message of a drain that is on when it loses its connection."""
    slow_relay.delay = 0.2
    sender = machine.user(slow_relay.port)
    sender.change(max_connections=2)
    for number in range(20):
        sender.enqueue(f"reader{number}@example.com")
    until(lambda: slow_relay.accepted, "some are under way")
    machine.redis.kill()
    until(lambda: "Connection to broker lost" in machine.said("worker"), "the worker has noticed")
    machine.redis.start()
    arrived = until_all_are_sent(machine, slow_relay, 20)
    assert set(arrived.values()) == {1}
    assert machine.running["worker"].poll() is None


#: What is left when the bell of a mail was lost: a queued row, and nobody who knows of it.
WITHOUT_A_BELL = """
WITH due AS (UPDATE tasks_due SET due_at = now() - interval '1 minute' WHERE task_id = {0})
UPDATE tasks_mailtask SET status = 0, due_at = now() - interval '1 minute', moved_at = now() - interval '1 minute'
WHERE id = {0} RETURNING id
"""
FINISHED_SWEEPS = "SELECT count(*) FROM django_celery_results_taskresult WHERE task_name = 'mailqueue.sweep'"


def test_the_sweep_finds_a_mail_whose_bell_was_lost_and_twice_sends_once(
    machine: Machine, relay: Relay
) -> None:
    sender = machine.user(relay.port)
    pk = sender.enqueue(scheduled_at="2099-01-01T00:00:00Z")
    machine.terminate("beat")  # its tick of a second would find the mail first
    with celery_app(machine.redis.url) as app, redis.Redis.from_url(machine.redis.url) as client:
        # The worker must not notice, or it calls itself every second and would find the mail too.
        client.set(doorbell.TICKED, "1")
        until(lambda: _is_idle(app, client), "the last ticks are over")
        assert machine.query(WITHOUT_A_BELL.format(pk)) == [(pk,)]
        sweeps = machine.query(FINISHED_SWEEPS)[0][0]
        assert sender.task(pk)["status"] == "queued"
        for _ in range(2):
            app.send_task("mailqueue.sweep", queue="upkeep")
        sender.until(pk, "success")
        until(lambda: machine.query(FINISHED_SWEEPS)[0][0] >= sweeps + 2, "both have run")
        client.delete(doorbell.TICKED)
    assert len(relay.accepted) == 1


def test_when_beat_is_gone_the_workers_look_at_the_table_by_themselves(
    machine: Machine, relay: Relay
) -> None:
    sender = machine.user(relay.port)
    pk = sender.enqueue(scheduled_at="2099-01-01T00:00:00Z")
    machine.terminate("beat")
    machine.terminate("upkeep")
    assert machine.query(WITHOUT_A_BELL.format(pk)) == [(pk,)]
    sender.until(pk, "success")


def test_when_a_worker_takes_no_messages_any_more_its_mail_goes_all_the_same(
    machine: Machine, relay: Relay
) -> None:
    sender = machine.user(relay.port)
    with celery_app(machine.redis.url) as app:
        assert app.control.cancel_consumer("drain", reply=True, timeout=5)
        try:
            sender.until(sender.enqueue(), "success")
        finally:
            machine.terminate("worker")  # the next test starts one that listens


def _is_idle(app: Celery, client: "redis.Redis") -> bool:
    """Nothing is on its way to a worker, nor in its hands."""
    inspect = app.control.inspect(timeout=5, limit=2)  # both workers, on a busy machine too
    queued = [client.llen(f"mailqueue:{queue}") for queue in ("upkeep", "drain")]
    held = [*(inspect.reserved() or {}).values(), *(inspect.active() or {}).values()]
    return not any(queued) and len(held) == 4 and not any(held)


def test_told_to_go_a_worker_finishes_what_it_holds_and_nothing_goes_twice(
    machine: Machine, slow_relay: Relay
) -> None:
    slow_relay.delay = 0.2  # else a busy machine sends as fast as it takes mails in
    sender = machine.user(slow_relay.port)
    for number in range(300):
        sender.enqueue(f"reader{number}@example.com")
    until(lambda: len(slow_relay.accepted) > 20, "some are under way")
    assert machine.terminate("worker") == 0
    assert machine.query("SELECT count(*) FROM tasks_mailtask WHERE status = 1") == [(0,)]
    assert len(slow_relay.accepted) < 300, "nothing was left to do: the test has missed its moment"
    slow_relay.delay = 0.05
    machine.start_worker()
    arrived = until_all_are_sent(machine, slow_relay, 300)
    assert set(arrived.values()) == {1}
