"""kill -9 of a worker under load: the next one knows from the journal what became of each mail, and waits for no
lease."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailqueue.delivery.journal import parse
from tests.machine import Machine, own_database, until
from tests.relay import Relay

MAILS = 400
KILLS = 3


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Its leases outlast the test, so whatever is settled after a kill is settled by the journal."""
    with (
        own_database() as database,
        Machine(database, tmp_path, MAIL_LEASE_SECONDS="1200", MAIL_RETRY_SCHEDULE="1") as machine,
    ):
        machine.start_web()
        machine.start_upkeep()
        machine.start_beat()
        yield machine


def in_doubt(machine: Machine) -> set[int]:
    """The mails whose dot may have left and whose reply nobody has read, by the journals of the dead."""
    found = set()
    for file in (machine.folder / "data" / "journal").glob("*.journal"):
        answers = parse(file.read_bytes()).answers
        found |= {
            pk
            for (pk, token), answer in answers.items()
            if answer is None and is_held(machine, pk, str(token))
        }
    return found


def is_held(machine: Machine, pk: int, token: str) -> bool:
    return machine.query(
        f"SELECT count(*) FROM tasks_mailtask WHERE id = {pk} AND status = 1 AND claim_token = '{token}'"
    ) == [(1,)]


@pytest.mark.parametrize("policy", ["retry", "hold"])
def test_killed_under_load_all_arrive_and_only_what_was_in_doubt_goes_twice_or_is_held(
    machine: Machine, policy: str
) -> None:
    with Relay(delay=0.05) as relay:
        sender = machine.user(relay.port)
        for number in range(MAILS):
            sender.enqueue(f"reader{number}@example.com", on_uncertain=policy)
        doubtful: set[int] = set()
        for _ in range(KILLS):
            before = len(relay.accepted)
            machine.start_worker(concurrency=2)
            until(lambda before=before: len(relay.accepted) > before + 50, "some are under way")
            machine.kill("worker")
            time.sleep(0.2)  # PostgreSQL finishes what it was told
            assert machine.query("SELECT count(*) > 0 FROM tasks_mailtask WHERE status = 1") == [(True,)]
            doubtful |= in_doubt(machine)
        assert doubtful, "nobody was between dot and reply: the test has missed its moment"
        machine.start_worker(concurrency=2)
        until(
            lambda: machine.query("SELECT count(*) FROM tasks_mailtask WHERE status NOT IN (2, 6)") == [(0,)],
            "every mail has come to its end, long before its lease",
        )
        arrived = Counter(mail.message_id for mail in relay.accepted)
        ids = dict(machine.query("SELECT message_id, id FROM tasks_mailtask"))
        twice = {ids[name] for name, count in arrived.items() if count > 1}
        held = {pk for (pk,) in machine.query("SELECT id FROM tasks_mailtask WHERE status = 6")}
        lost = {pk for name, pk in ids.items() if name not in arrived}
        assert machine.query("SELECT count(*) FROM tasks_attempt WHERE outcome = 4") == [
            (0,)
        ]  # none by rescue
        if policy == "hold":
            assert (twice, held) == (set(), doubtful)
            assert lost <= doubtful
        else:
            assert (lost, held) == (set(), set())
            assert twice <= doubtful
        machine.terminate("worker")
        assert not list((machine.folder / "data" / "journal").iterdir())
