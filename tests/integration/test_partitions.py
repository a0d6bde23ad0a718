"""The ledger in partitions: switched on while mail is accepted and sent, kept ahead of the ids; old mail leaves by
the table. That all else is the same is what the last test sees to."""

import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.utils import timezone

from accounts.models import User
from mailqueue import upkeep
from mailqueue.embedded.process import ROOT
from tasks import counters, ledger, partitions, submission
from tasks.ledger import Settlement
from tasks.models import Attempt, Claim, Due, MailContent, MailTask, Tag
from tasks.partitions import BusyError, Partition
from tasks.states import FINAL, CancelReason, Outcome, Status
from tests.factories import MailFactory, UserFactory, client_of
from tests.machine import own_database, until

SIZE = 20
#: More than MAIL_KEEP_DAYS, by less than a tenth; and by more.
OLD, VERY_OLD = timedelta(days=92), timedelta(days=120)
#: Files whose tests are about the statements that partitions are under.
ABOUT_STATEMENTS = ("claim", "ledger", "rescue", "upkeep", "queue", "counters", "bulk")


@pytest.fixture(scope="module")
def migrated() -> Iterator[str]:
    """The name of a database that others are copied from."""
    with own_database() as url:
        yield urlsplit(url).path[1:]


@pytest.fixture(autouse=True)
def own_ledger(migrated: str, django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """A database of the test's own behind Django's connections: there is no way back into one table."""
    name, usual = f"partitions_{secrets.token_hex(4)}", connection.settings_dict["NAME"]
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as admin, django_db_blocker.unblock():
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {migrated}")
        connection.close()
        connection.settings_dict["NAME"] = name
        try:
            yield
        finally:
            connection.close()
            connection.settings_dict["NAME"] = usual
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def apply(size: int = SIZE, ahead: int = 2) -> list[Partition]:
    return partitions.apply(size, ahead)


def draw_ids_up_to(last: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT setval('tasks_mailtask_id_seq', %s)", [last])


def leaves() -> dict[int, str]:
    """Where each mail is."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT id, tableoid::regclass::text FROM tasks_mailtask")
        return dict(cursor.fetchall())


def ended(ago: timedelta, **mail: Any) -> MailTask:
    """Sent so long ago, with an attempt and a tag."""
    then = timezone.now() - ago
    made = {"status": Status.SUCCESS, "created_at": then, "finished_at": then} | mail
    task: MailTask = MailFactory(**made)
    Attempt.objects.create(task=task, number=1, at=then, outcome=Outcome.ACCEPTED)
    Tag.objects.create(task=task, position=1, owner=task.owner, tag="welcome")
    return task


# The switch -------------------------------------------------------------------------------------------


def test_what_is_there_becomes_the_first_partition_and_ids_go_on() -> None:
    mails = {status: MailFactory(status=status) for status in Status}
    before = list(MailTask.objects.order_by("id").values())
    first, *_, tail = apply()
    assert list(MailTask.objects.order_by("id").values()) == before
    assert (first.first, tail.end) == (0, 2**63 - 1)
    assert MailFactory().pk == mails[Status.UNCERTAIN].pk + 1
    assert set(leaves().values()) == {"tasks_mailtask_p0"}
    draw_ids_up_to(first.end - 2)
    last, next_one = MailFactory().pk, MailFactory().pk
    assert (leaves()[last], leaves()[next_one]) == ("tasks_mailtask_p0", f"tasks_mailtask_p{first.end}")


def test_nothing_is_lost_or_sent_twice_while_it_is_switched_on() -> None:
    """Four who accept and two who deliver go on over the switch, and none of them gets an error."""
    owner = UserFactory()
    settled: list[int] = []
    accepted: list[int] = []
    over, errors = threading.Event(), []

    def accept() -> None:
        accepted.append(submission.submit(owner, submission.NewMail("a@example.com", "Hello", "Hello")).pk)

    def deliver() -> None:
        mails = ledger.claim(10, 60, token=uuid4(), room=100)
        results = [Settlement(one.id, one.token, Status.SUCCESS, outcome=Outcome.ACCEPTED) for one in mails]
        settled.extend(ledger.settle(results, "worker") if results else [])

    def go_on(deed: Callable[[], None]) -> None:
        try:
            while not over.is_set():
                deed()
        except Exception as error:  # noqa: BLE001 -- shown below
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=go_on, args=[deed]) for deed in [accept] * 4 + [deliver] * 2]
    for thread in threads:
        thread.start()
    try:
        until(lambda: errors or len(settled) > 50, "mail is sent")
        first, *_ = apply(20_000)
        before = len(settled)
        until(lambda: errors or len(settled) > before + 50, "mail goes on")
        draw_ids_up_to(first.end - 10)
        until(lambda: errors or partitions.last_id() > first.end, "the first partition is full")
        assert errors or partitions.keep_ahead() > 0
        before = len(settled)
        until(lambda: errors or len(settled) > before + 50, "mail goes on")
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not errors
    while ledger.is_anything_due():
        deliver()
    assert sorted(settled) == sorted(accepted)
    assert MailTask.objects.filter(status=Status.SUCCESS).count() == len(accepted) == Attempt.objects.count()
    assert (Due.objects.count(), Claim.objects.count()) == (0, 0)
    assert counters.recount() == 0


def test_whoever_holds_the_ledger_is_let_through_and_it_says_that_it_could_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(partitions, "TRIES", 2)
    monkeypatch.setattr(partitions, "BETWEEN_TRIES", 0.01)
    MailFactory()
    with psycopg.connect(**_address()) as dump:
        dump.execute("SELECT count(*) FROM tasks_mailtask")  # and its transaction stays open
        with pytest.raises(BusyError):
            apply()
        with pytest.raises(CommandError, match="in use"):
            call_command("partition_ledger", apply=True, stdout=StringIO())
    assert not partitions.partitions()
    draw_ids_up_to(10 * SIZE)
    assert MailFactory().pk == 10 * SIZE + 1  # no bound is left behind
    apply()


def _address() -> dict[str, Any]:
    parameters = connection.get_connection_params()
    return {
        name: parameters[name]
        for name in ("dbname", "user", "host", "port", "password")
        if parameters.get(name)
    }


def test_of_two_at_once_one_does_it() -> None:
    with psycopg.connect(**_address()) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [partitions._ALONE])
        with pytest.raises(BusyError):
            apply()
    apply()


def test_a_view_that_would_go_on_reading_the_first_partition_is_named() -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE VIEW report AS SELECT status, count(*) FROM tasks_mailtask GROUP BY 1")
    said = StringIO()
    call_command("partition_ledger", stdout=said)
    assert "in the way: the view report on tasks_mailtask" in said.getvalue()
    with pytest.raises(CommandError, match="the view report on tasks_mailtask"):
        call_command("partition_ledger", apply=True, stdout=said)
    assert not partitions.partitions()


def test_who_may_read_it_still_may() -> None:
    role = f"reader_{secrets.token_hex(4)}"
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {role}")
        try:
            cursor.execute(f"GRANT SELECT ON tasks_mailtask TO {role}")
            apply()
            cursor.execute(f"SET ROLE {role}")
            cursor.execute("SELECT count(*) FROM tasks_mailtask")
            cursor.execute("RESET ROLE")
        finally:
            cursor.execute(f"DROP OWNED BY {role}")
            cursor.execute(f"DROP ROLE {role}")


def test_migrations_find_what_they_left() -> None:
    def named() -> dict[str, Any]:
        with connection.cursor() as cursor:
            return {
                table: connection.introspection.get_constraints(cursor, table) for table in partitions.KEYS
            }

    before = named()
    apply()
    after = named()
    for table, constraints in before.items():
        # PostgreSQL cannot keep a key over all partitions that has not the task in it.
        missing = {"tasks_attempt_pkey"} if table == "tasks_attempt" else set()
        assert set(after[table]) == set(constraints) - missing
        assert all(after[table][name]["columns"] == constraints[name]["columns"] for name in after[table])


def test_a_migration_changes_all_partitions() -> None:
    apply()
    call_command("migrate", "tasks", "0012", verbosity=0)  # takes a column away
    call_command("migrate", verbosity=0)
    draw_ids_up_to(3 * SIZE)
    mail = MailFactory()
    assert MailContent.objects.get(task=mail).request_id == ""
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


def test_partitions_that_would_be_full_before_they_are_made_are_refused() -> None:
    with pytest.raises(CommandError, match="10,000"):
        call_command("partition_ledger", apply=True, size=9_999, stdout=StringIO())
    assert not partitions.partitions()


def test_a_second_switch_is_refused() -> None:
    apply()
    with pytest.raises(CommandError, match="already"):
        call_command("partition_ledger", apply=True, stdout=StringIO())


# Ahead of the ids -------------------------------------------------------------------------------------


def test_there_are_always_two_partitions_to_come() -> None:
    first, *_ = apply()
    assert partitions.keep_ahead() == 0
    for last in range(first.end, first.end + 10 * SIZE, SIZE):
        draw_ids_up_to(last)
        partitions.keep_ahead()
        parts = partitions.partitions()
        assert sum(part.first > last for part in parts[:-1]) == 2
        assert [part.end for part in parts[:-1]] == [part.first for part in parts[1:]]
        assert all(part.end - part.first == SIZE for part in parts[1:-1])


def test_where_nobody_made_the_next_one_the_last_takes_all() -> None:
    *_, tail = apply()
    draw_ids_up_to(tail.first + 5 * SIZE)
    mail = MailFactory()
    assert leaves()[mail.pk] == f"tasks_mailtask_p{tail.first}"
    assert upkeep.make_partitions() == 3
    *_, closed, new, _, _ = partitions.partitions()
    assert closed.first <= mail.pk < closed.end == new.first
    assert new.end - new.first == SIZE
    assert leaves()[mail.pk] == f"tasks_mailtask_p{tail.first}"
    (claimed,) = ledger.claim(10, 60, token=uuid4(), room=10)
    assert claimed.id == mail.pk


def test_a_bound_that_a_killed_one_left_is_taken_away() -> None:
    *_, tail = apply()
    with connection.cursor() as cursor:
        leaf = tail.of("tasks_mailtask")
        cursor.execute(
            f"ALTER TABLE {leaf} ADD CONSTRAINT {partitions._BOUND} CHECK (id < {tail.first + SIZE})"
        )
    draw_ids_up_to(tail.first + 1)
    partitions.keep_ahead()
    draw_ids_up_to(tail.first + 50 * SIZE)
    MailFactory()


def test_so_is_one_that_a_killed_switch_left() -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE tasks_mailtask ADD CONSTRAINT {partitions._BOUND} CHECK (id < {SIZE})")
    assert upkeep.make_partitions() == 0
    draw_ids_up_to(SIZE)
    MailFactory()


def test_new_partitions_are_stored_as_the_table_was() -> None:
    apply()
    draw_ids_up_to(10 * SIZE)
    partitions.keep_ahead()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT array(SELECT unnest(reloptions) ORDER BY 1)::text FROM pg_class"
            " WHERE relispartition AND relname LIKE 'tasks_mailtask_p%%' AND relkind = 'r'"
        )
        ((options,),) = cursor.fetchall()
    assert "fillfactor=50" in options


def test_without_partitions_nothing_is_made() -> None:
    assert upkeep.make_partitions() == 0
    assert not partitions.partitions()


# Leaving ----------------------------------------------------------------------------------------------


def test_a_partition_in_which_all_ended_long_ago_is_dropped_with_all_that_belongs_to_it() -> None:
    first, second, *_ = apply()
    ended(OLD)
    ended(OLD, status=Status.CANCELLED, cancel_reason=CancelReason.REJECTED, has_failed=True)
    draw_ids_up_to(first.end)
    kept = ended(OLD)
    young = ended(timedelta(days=1))
    draw_ids_up_to(second.end)
    counters.recount()
    assert upkeep.drop_partitions(timedelta(days=90)) == 2
    assert counters.recount() == 0  # what left was counted out
    assert set(MailTask.objects.values_list("id", flat=True)) == {kept.pk, young.pk}
    for rows in (Attempt, MailContent, Tag):
        assert rows.objects.count() == 2
    assert first not in partitions.partitions()
    assert upkeep.prune() == 0


@pytest.mark.parametrize("status", [status for status in Status if status not in FINAL])
def test_one_mail_that_is_not_at_its_end_keeps_its_partition(status: Status) -> None:
    first, *_ = apply()
    then = timezone.now() - VERY_OLD
    mail = MailFactory(status=status, created_at=then, scheduled_at=then)
    ended(OLD)
    gone = ended(VERY_OLD)
    draw_ids_up_to(first.end)
    assert upkeep.prune() == 1  # alone, for the partition stays
    assert first in partitions.partitions()
    assert MailTask.objects.filter(id=mail.pk).exists()
    assert not MailTask.objects.filter(id=gone.pk).exists()


def test_a_mail_that_somebody_sends_again_at_this_moment_is_not_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, *_ = apply()
    mail = ended(OLD, status=Status.CANCELLED, cancel_reason=CancelReason.USER, has_failed=True)
    draw_ids_up_to(first.end)
    looked = partitions._states

    def look_and_retry(*args: Any) -> Any:
        found = looked(*args)
        assert submission.retry(MailTask.objects.filter(id=mail.pk)) == 1
        return found

    monkeypatch.setattr(partitions, "_states", look_and_retry)
    assert upkeep.prune() == 0
    assert [claimed.id for claimed in ledger.claim(10, 60, token=uuid4(), room=10)] == [mail.pk]


def test_a_partition_that_is_being_filled_stays_however_old_it_is() -> None:
    apply()
    ended(OLD)
    assert upkeep.prune() == 0
    assert MailTask.objects.count() == 1


# What it costs ----------------------------------------------------------------------------------------


def test_a_list_by_id_walks_from_the_newest_partition_and_stops_where_it_is_full() -> None:
    first, *_ = apply(ahead=5)
    owner: User = UserFactory()
    for part in partitions.partitions()[:-1]:
        draw_ids_up_to(part.first + 1)
        MailFactory.create_batch(5, owner=owner)
    partitions.analyze()
    shown = client_of(owner).get("/api/v1/task/queue?limit=4").json()
    assert len(shown["results"]) == 4
    with connection.cursor() as cursor:
        cursor.execute("SET enable_seqscan = off")  # as with more rows than these
        newest = MailTask.objects.owned_by(owner).order_by("-id")[:5]
        plan = newest.explain(analyze=True, costs=False, timing=False)
    walked = [line for line in plan.splitlines() if "Scan" in line and "never executed" not in line]
    assert len(walked) <= 2, plan  # the last, empty one, and the newest
    assert f"tasks_mailtask_p{first.first}" in plan


# All else ---------------------------------------------------------------------------------------------


@pytest.mark.timeout(1800)
def test_the_ledgers_other_tests_pass_in_partitions_too(tmp_path: Path) -> None:
    """Each of them with ids on both sides of a partition's end."""
    own = ("DATABASE_URL", "REDIS_URL", "DATA_DIR", "DJANGO_SETTINGS_MODULE", "LEDGER_PARTITION_SIZE")
    env = {
        name: value for name, value in os.environ.items() if name not in own and not name.startswith("PYTEST")
    }
    files = [f"tests/integration/test_{name}.py" for name in ABOUT_STATEMENTS]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n0",
        "-p",
        "no:cacheprovider",
        f"--basetemp={tmp_path / 'in'}",
        *files,
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=env | {"LEDGER_PARTITION_SIZE": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert " passed" in done.stdout
