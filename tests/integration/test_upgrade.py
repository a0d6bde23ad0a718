"""A database of an older schema, with mail in every state, goes on where it was."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import psycopg
import pytest

from mailqueue.embedded.process import ROOT
from tasks.states import WAITING, Status

_OLD_MAIL = """
INSERT INTO tasks_mailtask (owner_id, status, lane, try_count, max_tries, on_uncertain, lost_count, due_at,
    created_at, moved_at, sender, recipient, subject, message_id, last_reply, cancel_reason, finished_at, lease_until,
    claim_token)
SELECT owner.id, status, 1, 1, 8, 0, 0, now(), now(), now(), 'a@example.com', 'b@example.com', 'x',
    '<x@example.com>', '', CASE WHEN status = 4 THEN 4 END, CASE WHEN status IN (2, 4) THEN now() END,
    CASE WHEN status = 1 THEN now() + interval '1 minute' END, CASE WHEN status = 1 THEN gen_random_uuid() END
FROM owner, generate_series(0, 6) status
"""


@pytest.fixture
def database() -> Iterator[str]:
    """The URL of an empty one."""
    server, name = os.environ["DATABASE_URL"], f"upgrade_{secrets.token_hex(4)}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            yield urlsplit(server)._replace(path=f"/{name}").geturl()
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def migrate(database: str, *target: str) -> None:
    command = [sys.executable, "manage.py", "migrate", "--verbosity", "0", *target]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"DATABASE_URL": database}, check=True)


def test_what_waits_and_what_is_held_is_found_in_the_narrow_tables(database: str) -> None:
    migrate(database, "tasks", "0004")
    with psycopg.connect(database, autocommit=True) as old:
        owner = """
            WITH owner AS (INSERT INTO accounts_user (email, password, is_superuser, is_staff, is_active, created_at)
                VALUES ('a@example.com', '', false, false, true, now()) RETURNING id)"""
        old.execute((owner + _OLD_MAIL).encode())
        lease = old.execute("SELECT lease_until FROM tasks_mailtask WHERE status = 1").fetchone()
    migrate(database)
    with psycopg.connect(database) as new:
        due = (
            "SELECT status FROM tasks_due d JOIN tasks_mailtask t ON t.id = d.task_id AND t.due_at = d.due_at"
        )
        assert {status for (status,) in new.execute(due)} == set(WAITING)
        counted = dict(new.execute("SELECT name, value FROM tasks_counter_total").fetchall())
        assert counted == {f"task.{status}": 1 for status in Status}
        held = """
            SELECT c.lease_until FROM tasks_claim c JOIN tasks_mailtask t ON t.claim_token = c.token
            AND c.task_ids = ARRAY[t.id] AND c.owner_ids = ARRAY[t.owner_id] AND c.held = 1"""
        assert new.execute(held.encode()).fetchall() == [lease]
        marked = new.execute("SELECT status, has_failed, is_uncertain FROM tasks_mailtask").fetchall()
    assert {status for status, failed, _ in marked if failed} == {Status.FAILED, Status.CANCELLED}
    assert {status for status, _, uncertain in marked if uncertain} == {Status.UNCERTAIN}
