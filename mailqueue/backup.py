"""Copies of the database: a folder with what pg_dump writes and a sheet of what must be found in it again.

Everything is of one snapshot, while mail goes on: the dump, and the counts that a restore is compared with.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from django.conf import settings
from django.db import connection, transaction
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

from mailqueue.embedded.postgres import binaries
from mailqueue.embedded.process import CannotStartError
from tasks.states import Status

DUMP, SHEET = "dump", "sheet.json"
#: What is being written has this behind its name, so that nobody takes it for a whole one.
UNFINISHED = ".unfinished"

#: Of Django's parameters, those that are no libpq options.
_PSYCOPGS_OWN = ("context", "cursor_factory", "prepare_threshold", "autocommit", "row_factory")

Sheet = dict[str, Any]


class BackupError(Exception):
    """Why it was not done, in a sentence."""


def dump(folder: Path, jobs: int = 1) -> Sheet:
    """Writes the folder, for its owner's eyes only: mails stand in it as they are. Its sheet."""
    if folder.exists():
        raise BackupError(f"{folder} is there already. A backup goes into a folder of its own.")
    unfinished = folder.with_name(folder.name + UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700, parents=True)
    with _snapshot() as snapshot:
        _run("pg_dump", f"--jobs={jobs}", f"--snapshot={snapshot}", "--format=directory",
             f"--file={unfinished / DUMP}", "--dbname")  # fmt: skip
        sheet = {
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": settings.VERSION,
            "server": connection.connection.info.server_version,
        } | found()
    with (unfinished / SHEET).open("x") as file:
        os.fchmod(file.fileno(), 0o600)
        json.dump(sheet, file, indent=2)
    unfinished.rename(folder)
    return sheet


def load(folder: Path, jobs: int = 1) -> Sheet:
    """Fills an empty database and compares it with the sheet, which it returns."""
    sheet = read(folder)
    if tables := _rows(_TABLES):
        raise BackupError(
            f"The database is not empty: it has {len(tables)} tables. A restore overwrites nothing; make a new one."
        )
    _run("pg_restore", f"--jobs={jobs}", "--exit-on-error", "--no-owner", "--no-privileges", str(folder / DUMP),
         "--dbname")  # fmt: skip
    there = found()
    wrong = [f"{name}: {there[what].get(name, 0):,} instead of {count:,}"
             for what in ("rows", "mails") for name, count in sheet[what].items()
             if there[what].get(name, 0) != count]  # fmt: skip
    if wrong:
        raise BackupError(
            f"What was restored is not what was backed up. {'; '.join(wrong)}. Use it for nothing."
        )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    return sheet


def read(folder: Path) -> Sheet:
    try:
        sheet: Sheet = json.loads((folder / SHEET).read_text())
    except (OSError, ValueError) as error:
        raise BackupError(f"{folder} is not a finished backup: {SHEET} cannot be read.") from error
    return sheet


def found() -> Sheet:
    """How many rows each table has, and how many mails are in each state. Looks at all of them."""
    count = SQL("SELECT count(*) FROM {}")
    rows = {name: _rows(count.format(Identifier(name)))[0][0] for (name,) in _rows(_TABLES)}
    mails = dict(_rows("SELECT status, count(*) FROM tasks_mailtask GROUP BY status"))
    return {"rows": rows, "mails": {status.label: mails.get(status.value, 0) for status in Status}}


# Partitions are counted with the table that they are of.
_TABLES = """
SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition
AND relnamespace = current_schema()::regnamespace ORDER BY relname
"""


@contextmanager
def _snapshot() -> Iterator[str]:
    """What others can see the database by, as it is now, until this ends."""
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        cursor.execute("SELECT pg_export_snapshot()")
        yield cursor.fetchone()[0]


def _run(name: Literal["pg_dump", "pg_restore"], *arguments: str) -> None:
    """With the database's address behind the arguments, but for its password, which anybody could read there."""
    connection.ensure_connection()
    server = connection.connection.info.server_version // 10_000
    # As configured; what psycopg's libpq adds by itself an older pg_dump may not know.
    given = {k: v for k, v in connection.get_connection_params().items() if k not in _PSYCOPGS_OWN}
    password = given.pop("password", None)
    command = [_tool(name, server), *arguments, make_conninfo(**given)]
    environment = os.environ | ({"PGPASSWORD": password} if password else {})
    done = subprocess.run(  # noqa: S603 -- found on the operator's own PATH
        command, env=environment, umask=0o077, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise BackupError(f"{name} failed: {done.stderr.strip()}")


def _tool(name: str, server: int) -> str:
    """Of the PATH or the wheel, which has PostgreSQL 16 and 18: of the server's version, or the next one after it. An
    older one cannot read the server, and what a much newer one says the server may not know."""
    places = [shutil.which(name)]
    with suppress(CannotStartError):
        places += [str(place) for place in binaries().parents[1].glob(f"*/bin/{name}")]
    versions = {place: _version(place) for place in places if place}
    fit = [place for place, version in versions.items() if version >= server]
    if not fit:
        raise BackupError(
            f"No {name} of PostgreSQL {server} or newer: put it on the PATH (postgresql-client-{server})."
        )
    return min(fit, key=lambda place: versions[place])


def _version(tool: str) -> int:
    try:
        said = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return 0
    number = re.search(r"\d+", said)
    return int(number[0]) if number else 0


def _rows(query: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows
