"""A backup that was made while mail went on, restored into an empty database: all is there, and delivery goes on."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography.fernet import Fernet

from mailqueue.embedded.process import ROOT
from tasks.states import Status
from tests.machine import Machine, empty_database, own_database, until
from tests.relay import HANG, TAKE_AND_RESET, Log, Relay

KEYS = Fernet.generate_key().decode()
#: Ids of the words, as the API says them.
WAITING = [int(status) for status in (Status.QUEUED, Status.FAILED, Status.SCHEDULED, Status.PROCESSING)]


PAUSE = "UPDATE accounts_smtpaccount SET paused_until = {until} WHERE owner_id = {owner} RETURNING 1"


@dataclass
class Made:
    """A backup, the relay that its mail goes to, and the last id that the machine gave before it was gone."""

    folder: Path
    sheet: dict[str, Any]
    relay: Relay
    newest: int


def manage(database: str, *command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"DATABASE_URL": database, "CREDENTIAL_KEYS": KEYS, "DEBUG": "false"} | environment
    line = [sys.executable, "manage.py", *map(str, command)]
    return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Mails in every state, and more of them accepted and sent all the time."""
    folder = tmp_path_factory.mktemp("backup")
    settings = {"CREDENTIAL_KEYS": KEYS, "MAIL_RETRY_SCHEDULE": "3600", "MAIL_LEASE_SECONDS": "600"}
    relay = Relay(delay=0.01, users={"ada": "relay's password"}, auth=("PLAIN",))
    relay.always("rcpt", "451 4.3.0 later", to="later@example.com")
    relay.always("rcpt", HANG, to="hangs@example.com")
    relay.always("dot", TAKE_AND_RESET, to="doubt@example.com")
    with relay, own_database() as database, Machine(database, folder / "first", **settings) as machine:
        machine.start_all()
        sender = machine.user(relay.port, name="ada", password="relay's password", security="none")
        in_a_day = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        late, doubt = (
            sender.enqueue("later@example.com"),
            sender.enqueue("doubt@example.com", on_uncertain="hold"),
        )
        hanging = sender.enqueue("hangs@example.com")
        for pk, status in ((late, "failed"), (doubt, "uncertain"), (hanging, "processing")):
            sender.until(pk, status)
        sender.enqueue("scheduled@example.com", scheduled_at=in_a_day)
        paused = machine.user(relay.port, name="ada", password="relay's password", security="none")
        machine.query(PAUSE.format(until="now() + interval '1 day'", owner=paused.pk))
        paused.enqueue("queued@example.com")
        sender.cancel(sender.enqueue(scheduled_at=in_a_day))
        enough = threading.Event()
        number = 0

        def go_on() -> None:
            nonlocal number
            while not enough.wait(0.02):
                sender.enqueue(f"reader{number}@example.com")
                number += 1

        going_on = threading.Thread(target=go_on)
        going_on.start()
        try:
            until(lambda: len(relay.accepted) > 60, "mail is under way")
            machine.terminate("worker")  # so that some of it waits
            machine.start_worker()
            said = manage(database, "backup", folder / "backup")
            before = len(relay.accepted)
            until(lambda: len(relay.accepted) > before + 20, "mail goes on after the backup")
        finally:
            enough.set()
            going_on.join()
        assert said.returncode == 0, said.stderr
        for name in list(machine.running):
            machine.kill(name)  # the disaster
        until(
            lambda: all(is_over(session) for session in relay.sessions), "the relay has heard the last of it"
        )
        ((newest,),) = machine.query("SELECT last_value FROM tasks_mailtask_id_seq")
        relay.always("rcpt", None, to="later@example.com").always("rcpt", None, to="hangs@example.com")
        sheet = json.loads((folder / "backup" / "sheet.json").read_text())
        yield Made(folder / "backup", sheet, relay, newest)


def partition(database: str, size: int) -> None:
    """By fewer than the command allows."""
    switch = f"import django; django.setup(); from tasks import partitions; partitions.apply({size})"
    subprocess.run(
        [sys.executable, "-c", switch], cwd=ROOT, env=os.environ | {"DATABASE_URL": database}, check=True
    )


def is_over(session: Log) -> bool:
    """But for those that hang, which never end."""
    return not session.is_open or any("hangs@example.com" in command for command in session.commands)


def states(database: str) -> dict[str, int]:
    with psycopg.connect(database) as connection:
        found = dict(connection.execute("SELECT status, count(*) FROM tasks_mailtask GROUP BY 1").fetchall())
    return {status.label: found.get(int(status), 0) for status in Status}


def test_it_holds_mail_in_every_state_and_is_for_its_owner_alone(made: Made) -> None:
    assert all(made.sheet["mails"].values()), made.sheet["mails"]
    assert made.folder.stat().st_mode & 0o077 == 0
    assert not made.folder.with_name("backup.unfinished").exists()


def test_delivery_goes_on_and_each_mail_of_the_backup_is_sent_once(made: Made, tmp_path: Path) -> None:
    before = len(made.relay.accepted)
    with empty_database() as database:
        said = manage(database, "restore", made.folder, "--send", "--jobs", 2)
        assert said.returncode == 0, said.stderr
        assert states(database) == made.sheet["mails"]
        settings = {"CREDENTIAL_KEYS": KEYS, "MAIL_LEASE_SECONDS": "4"}
        with Machine(database, tmp_path, **settings) as machine:
            # Time passes: whatever waits is due, no account is paused, and the leases of the dead are over.
            machine.query("UPDATE tasks_due SET due_at = now() RETURNING 1")
            machine.query(PAUSE.format(until="NULL", owner="owner_id"))
            machine.query("UPDATE tasks_claim SET lease_until = now() RETURNING 1")
            to_be_sent = f"SELECT message_id FROM tasks_mailtask WHERE status = ANY(ARRAY{WAITING})"
            wanted = {name for (name,) in machine.query(to_be_sent)}
            machine.start_all()
            until(lambda: not machine.query(to_be_sent), "all that waited is sent")
            sent = Counter(mail.message_id for mail in made.relay.accepted[before:])
            assert sent == dict.fromkeys(wanted, 1)
            fresh = machine.user(made.relay.port, name="ada", password="relay's password", security="none")
            assert fresh.enqueue("later@example.com") > made.newest  # nobody's id is given to another
            kept = {
                key: count for key, count in made.sheet["mails"].items() if key in ("uncertain", "cancelled")
            }
            assert {key: states(database)[key] for key in kept} == kept


def test_held_nothing_of_it_is_sent_before_somebody_says_so(made: Made, tmp_path: Path) -> None:
    before = len(made.relay.accepted)
    with empty_database() as database:
        said = manage(database, "restore", made.folder, "--hold")
        assert said.returncode == 0, said.stderr
        held = states(database)
        at_stake = made.sheet["mails"]["queued"] + made.sheet["mails"]["processing"]
        assert held["uncertain"] == made.sheet["mails"]["uncertain"] + at_stake
        assert (held["queued"], held["processing"]) == (0, 0)
        assert [held[name] for name in ("failed", "scheduled", "success", "cancelled")] == [
            made.sheet["mails"][name] for name in ("failed", "scheduled", "success", "cancelled")
        ]
        with psycopg.connect(database) as connection:
            said_of = connection.execute("SELECT name, value FROM tasks_counter_total").fetchall()
            lines = connection.execute(
                "SELECT 'task.' || was, -mails FROM tasks_counter_line WHERE was IS NOT NULL"
                " UNION ALL SELECT 'task.' || became, mails FROM tasks_counter_line WHERE became IS NOT NULL"
            ).fetchall()
        counted: Counter[str] = Counter()
        for name, value in [*said_of, *lines]:
            counted[name] += int(value)
        assert {status.label: counted[f"task.{int(status)}"] for status in Status} == held
        with Machine(database, tmp_path, CREDENTIAL_KEYS=KEYS) as machine:
            machine.start_all()
            sender = machine.user(made.relay.port, name="ada", password="relay's password", security="none")
            sender.until(sender.enqueue("new@example.com"), "success")
        assert [mail.recipient for mail in made.relay.accepted[before:]] == ["new@example.com"]


def test_it_goes_into_an_empty_database_only(made: Made) -> None:
    with own_database() as database:
        said = manage(database, "restore", made.folder, "--hold")
        assert (said.returncode, "not empty" in said.stderr) == (1, True)
        assert not any(states(database).values())


def test_without_the_keys_that_sealed_its_passwords_it_says_so(made: Made) -> None:
    with empty_database() as database:
        other = Fernet.generate_key().decode()
        said = manage(database, "restore", made.folder, "--hold", CREDENTIAL_KEYS=other)
        assert said.returncode == 1
        assert "None of CREDENTIAL_KEYS opens 2 of SmtpAccount.sealed_password." in said.stderr
        again = manage(database, "after_restore", "--hold", CREDENTIAL_KEYS=f"{other},{KEYS}")
        assert again.returncode == 0, again.stderr


def test_what_lacks_a_row_is_not_taken_for_whole(made: Made, tmp_path: Path) -> None:
    copy = tmp_path / "backup"
    copy.mkdir()
    (copy / "dump").symlink_to(made.folder / "dump")
    sheet = made.sheet | {"mails": made.sheet["mails"] | {"queued": made.sheet["mails"]["queued"] + 1}}
    (copy / "sheet.json").write_text(json.dumps(sheet))
    with empty_database() as database:
        said = manage(database, "restore", copy, "--send")
        assert said.returncode == 1
        assert "queued: " in said.stderr


def test_a_ledger_in_partitions_comes_back_in_partitions(tmp_path: Path) -> None:
    with own_database() as database, empty_database() as other:
        partition(database, 50)
        with psycopg.connect(database) as connection:
            connection.execute(OLD_MAILS)
        assert manage(database, "backup", tmp_path / "backup").returncode == 0
        said = manage(other, "restore", tmp_path / "backup", "--send", "--skip-ids", 0)
        assert said.returncode == 0, said.stderr
        there = "SELECT tableoid::regclass::text, count(*) FROM tasks_mailtask GROUP BY 1"
        with psycopg.connect(database) as before, psycopg.connect(other) as after:
            rows = dict(before.execute(there).fetchall())
            assert rows == dict(after.execute(there).fetchall())
        assert rows == {"tasks_mailtask_p0": 99, "tasks_mailtask_p100": 50, "tasks_mailtask_p150": 11}


OLD_MAILS = """
WITH owner AS (INSERT INTO accounts_user (email, password, is_superuser, is_staff, is_active, created_at)
    VALUES ('a@example.com', '', false, false, true, now()) RETURNING id)
INSERT INTO tasks_mailtask (owner_id, status, lane, try_count, max_tries, on_uncertain, lost_count, due_at,
    created_at, moved_at, sender, recipient, subject, message_id, last_reply, finished_at, has_failed, is_uncertain)
SELECT owner.id, 2, 1, 1, 8, 0, 0, now(), now(), now(), 'a@example.com', 'b@example.com', 'x', '<x@example.com>', '',
    now(), false, false
FROM owner, generate_series(1, 160)
"""


def test_an_unfinished_one_is_refused(tmp_path: Path) -> None:
    with empty_database() as database:
        said = manage(database, "restore", tmp_path, "--send")
        assert (said.returncode, "is not a finished backup" in said.stderr) == (1, True)
