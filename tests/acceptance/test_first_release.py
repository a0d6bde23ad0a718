"""A database of the first release, with mail in every state, is migrated by the service's own command: every row
keeps its meaning, what ought to be sent is sent, once, and nothing else is."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography.fernet import Fernet

from mailqueue.embedded.process import ROOT
from tasks.states import Status
from tests.machine import Machine, empty_database, until
from tests.relay import Relay

#: The last migrations of the first release, by app; what it had of others is theirs to keep.
FIRST_RELEASE = {"accounts": "0001_initial", "tasks": "0002_storage", "sandbox": "0001_mail"}
OTHERS = (
    "admin",
    "auth",
    "contenttypes",
    "sessions",
    "token_blacklist",
    "django_celery_beat",
    "django_celery_results",
)
KEYS, PASSWORD = Fernet.generate_key().decode(), "relay's password"

Q, P, S, F, C, W, U = (int(status) for status in Status)  # as they are stored
# Name, state, when it is due, what else; `lease` is its end. Where one is sent, its name is in SENT.
MAILS: list[tuple[str, int, str, dict[str, str]]] = [
    ("queued", Q, "-1 hour", {}),
    ("queued-urgent", Q, "-1 hour", {"lane": "0"}),
    ("queued-too-late", Q, "-1 hour", {"expires_at": "now() - interval '1 minute'"}),
    ("scheduled-due", W, "-1 minute", {"scheduled_at": "now() - interval '1 minute'"}),
    ("scheduled-next-year", W, "1 year", {"scheduled_at": "now() + interval '1 year'"}),
    ("failed-due", F, "-1 minute", {"try_count": "3", "last_reply": "'451 4.3.0 later'"}),
    ("failed-later", F, "1 day", {"try_count": "1", "last_reply": "'451 4.3.0 later'"}),
    ("lost-retry", P, "-1 hour", {"try_count": "1", "lease": "-1 minute"}),
    ("lost-hold", P, "-1 hour", {"try_count": "1", "lease": "-1 minute", "on_uncertain": "1"}),
    ("lost-accept", P, "-1 hour", {"try_count": "1", "lease": "-1 minute", "on_uncertain": "2"}),
    ("in-hand", P, "-1 hour", {"try_count": "1", "lease": "1 day"}),
    ("sent", S, "-1 day", {"try_count": "1", "finished_at": "now()", "last_reply": "'250 ok'"}),
    ("rejected", C, "-1 day", {"try_count": "1", "finished_at": "now()", "cancel_reason": "1"}),
    ("cancelled", C, "-1 day", {"finished_at": "now()", "cancel_reason": "4"}),
    ("uncertain", U, "-1 day", {"try_count": "1"}),
]
SENT = {"queued", "queued-urgent", "scheduled-due", "failed-due", "lost-retry"}
#: Where the others are, once all that moves has moved.
ELSEWHERE = {
    "queued-too-late": "cancelled",
    "scheduled-next-year": "scheduled",
    "failed-later": "failed",
    "lost-hold": "uncertain",
    "lost-accept": "success",
    "in-hand": "processing",
    "sent": "success",
    "rejected": "cancelled",
    "cancelled": "cancelled",
    "uncertain": "uncertain",
    "of-a-paused-account": "queued",
}


def manage(database: str, *command: str) -> str:
    env = os.environ | {
        "DATABASE_URL": database,
        "CREDENTIAL_KEYS": KEYS,
        "DEBUG": "false",
        "ADMIN_EMAIL": "",
    }
    line = [sys.executable, "manage.py", *command]
    return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout


def fill(old: psycopg.Connection[Any], port: int) -> None:
    """As the first release would have written it."""
    password = Fernet(KEYS).encrypt(PASSWORD.encode()).decode()
    owners = [_owner(old, f"{name}@example.com", port, password) for name in ("ada", "bob")]
    old.execute("UPDATE accounts_smtpaccount SET state = 'paused', paused_until = now() + interval '1 day'"
                " WHERE owner_id = %s", [owners[1]])  # fmt: skip
    for name, status, due, more in MAILS:
        _mail(old, owners[0], name, status, due, more)
    _mail(old, owners[1], "of-a-paused-account", Q, "-1 hour", {})


def _owner(old: psycopg.Connection[Any], email: str, port: int, password: str) -> int:
    (pk,) = old.execute(
        "INSERT INTO accounts_user (email, password, is_superuser, is_staff, is_active, created_at)"
        " VALUES (%s, '', false, false, true, now()) RETURNING id",
        [email],
    ).fetchone() or [0]
    old.execute(
        "INSERT INTO accounts_smtpaccount (owner_id, host, port, username, sealed_password, security, from_email,"
        " max_connections, state, reason, faults)"
        " VALUES (%s, '127.0.0.1', %s, 'ada', %s, 'none', %s, 10, 'active', '', 0)",
        [pk, port, password, email],
    )
    return int(pk)


def _mail(old: psycopg.Connection[Any], owner: int, name: str, *of: Any) -> None:
    status, due, given = of
    more = dict(given)
    lease = more.pop("lease", None)
    if lease:
        more |= {
            "lease_until": f"now() + interval '{lease}'",
            "claim_token": "gen_random_uuid()",
            "started_at": "now()",
        }
    columns = {
        "owner_id": str(owner), "status": str(status), "lane": "1", "try_count": "0", "max_tries": "8",
        "on_uncertain": "0", "lost_count": "0", "due_at": f"now() + interval '{due}'", "sender": "'a@example.com'",
        "created_at": "now() - interval '2 days'", "moved_at": "now() - interval '1 hour'", "last_reply": "''",
        "recipient": f"'{name}@example.com'", "subject": "'Hello'", "message_id": f"'<{name}@example.com>'",
    } | more  # fmt: skip
    line = f"INSERT INTO tasks_mailtask ({', '.join(columns)}) VALUES ({', '.join(columns.values())}) RETURNING id"
    (pk,) = old.execute(line.encode()).fetchone() or [0]
    raw = f"Message-ID: <{name}@example.com>\r\nSubject: Hello\r\n\r\nHello {name}.\r\n"
    old.execute("INSERT INTO tasks_mailcontent (task_id, raw) VALUES (%s, %s)", [pk, raw.encode()])
    for number in range(1, int(columns["try_count"]) + 1):
        old.execute(
            "INSERT INTO tasks_attempt (task_id, number, at, outcome, reply, duration_ms, worker)"
            " VALUES (%s, %s, now(), 1, '451 4.3.0 later', 12, 'old:1')",
            [pk, number],
        )


def rows(database: str, table: str) -> list[dict[str, Any]]:
    key = {"accounts_smtpaccount": "owner_id", "tasks_mailcontent": "task_id"}.get(table, "id")
    with psycopg.connect(database) as connection:
        found = connection.execute(f"SELECT to_jsonb(t) FROM {table} t ORDER BY t.{key}".encode())
        return [row for (row,) in found.fetchall()]


@pytest.fixture
def relay() -> Iterator[Relay]:
    with Relay(users={"ada": PASSWORD}, auth=("PLAIN",)) as relay:
        yield relay


def test_it_goes_on_where_the_first_release_was(relay: Relay, tmp_path: Path) -> None:
    with empty_database() as database:
        for app, migration in [*FIRST_RELEASE.items(), *((app, "") for app in OTHERS)]:
            manage(database, "migrate", "--verbosity", "0", app, *filter(None, [migration]))
        with psycopg.connect(database) as old:
            assert old.execute("SELECT to_regclass('tasks_due')").fetchone() == (None,)
            fill(old, relay.port)
        before = {table: rows(database, table) for table in ("accounts_smtpaccount", *LEDGER)}

        manage(database, "prepare")
        for table, kept in before.items():
            after = rows(database, table)
            assert len(after) == len(kept)
            for row, new in zip(kept, after, strict=True):
                row.pop(
                    "lease_until", None
                )  # it is in tasks_claim now, see tests/integration/test_upgrade.py
                assert {name: new[name] for name in row} == row
        assert manage(database, "shell", "-v0", "-c", RECOUNT).strip() == "0"

        settings = {"CREDENTIAL_KEYS": KEYS, "MAIL_RETRY_SCHEDULE": "3600"}
        with Machine(database, tmp_path, **settings) as machine:
            machine.start_all()
            wanted = dict.fromkeys(SENT, "success") | ELSEWHERE
            until(lambda: states(database) == wanted, f"all is where it ought to be: {wanted}")
            machine.start_worker("another")  # who comes late finds nothing more
            machine.until_ready("another")
            sent = Counter(mail.recipient for mail in relay.accepted)
            assert sent == {f"{name}@example.com": 1 for name in SENT}
            assert states(database) == wanted
            assert {mail.message_id for mail in relay.accepted} == {f"<{name}@example.com>" for name in SENT}
            tries = "SELECT try_count FROM tasks_mailtask WHERE recipient = 'failed-due@example.com'"
            assert machine.query(tries) == [(4,)]
        assert manage(database, "shell", "-v0", "-c", RECOUNT).strip() == "0"


LEDGER = ("tasks_mailtask", "tasks_mailcontent", "tasks_attempt")
RECOUNT = "from tasks import counters; print(counters.recount())"


def states(database: str) -> dict[str, str]:
    with psycopg.connect(database) as connection:
        found = connection.execute(
            "SELECT split_part(recipient, '@', 1), status FROM tasks_mailtask"
        ).fetchall()
    return {name: Status(status).label for name, status in found}
