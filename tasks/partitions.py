"""The ledger's wide tables in partitions by ranges of task ids, for who keeps very much mail: old mail then leaves by
dropping a table. Off until `manage.py partition_ledger --apply`; docs/data.md says when it pays.

Ids follow time, so a partition holds the mails of some days or weeks, with all that belongs to them. The last one is
open at its end: whatever id is drawn there is a place for it, whether anybody has made the next partition or not. A
DEFAULT partition would be the same net, but PostgreSQL then walks no list by id from partition to partition.

Everything here is done between the statements of those who deliver: whatever they wait for takes milliseconds, and
who would have to wait for them gives up after LOCK_TIMEOUT, lets them pass and tries again.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import psycopg
from django.db import OperationalError, connection, transaction
from psycopg.sql import SQL, Composed, Identifier, Literal

from tasks import statements

#: Each by the task's id. What waits (tasks_due) and what is held (tasks_claim) stays as narrow as it is. In the order
#: in which a worker's prepared statements lock them: in another, each would wait for the other.
KEYS = {
    "tasks_mailcontent": "task_id",
    "tasks_mailtask": "id",
    "tasks_attempt": "task_id",
    "tasks_tag": "task_id",
    "tasks_onetime": "task_id",
}
TASKS = "tasks_mailtask"
#: Ids of one partition unless told otherwise, and how many partitions are there before they are needed.
SIZE, AHEAD = 10_000_000, 2
#: Shorter than PostgreSQL's deadlock_timeout (1 s), so that it is never a mail's statement that has to give way.
LOCK_TIMEOUT, TRIES, BETWEEN_TRIES = "250ms", 40, 0.5
#: Stands on a table only while a partition is given its end.
_BOUND = "ledger_bound"
_BEYOND_ALL = 2**63 - 1
_ALONE = 7_305_146_411


class BusyError(Exception):
    """Somebody reads or writes the ledger for too long, such as a dump, or partitions it at this moment. Nothing was
    changed; try again later."""


class CannotPartitionError(Exception):
    """What stands in the way, in a sentence."""


class Partition(NamedTuple):
    """The ids from `first` on, before `end`."""

    first: int
    end: int

    def of(self, table: str) -> str:
        return f"{table}_p{self.first}"


class Plan(NamedTuple):
    """What `apply` would do: all that is there becomes the first partition, up to `bound`."""

    bound: int
    rows: dict[str, int]
    obstacles: list[str]


def partitions() -> list[Partition]:
    """In their order; none while the ledger is not partitioned. The last one is open at its end."""
    found = [re.findall(r"MINVALUE|MAXVALUE|[0-9]+", bounds) for (bounds,) in _rows(_BOUNDS)]
    ends = {"MINVALUE": 0, "MAXVALUE": _BEYOND_ALL}
    return sorted(Partition(*[int(ends.get(word, word)) for word in words]) for words in found)


_BOUNDS = """
SELECT pg_get_expr(leaf.relpartbound, leaf.oid) FROM pg_inherits JOIN pg_class leaf ON leaf.oid = inhrelid
WHERE inhparent = 'tasks_mailtask'::regclass AND leaf.relispartition
"""


def plan(size: int = SIZE) -> Plan:
    """How many rows there are is PostgreSQL's estimate."""
    rows = {table: int(_rows(_ESTIMATE, [table])[0][0]) for table in KEYS}
    obstacles = [f"{kind} {name} on {table}" for kind, name, table in _rows(_OBSTACLES, [list(KEYS)])]
    return Plan(_bound_after(last_id(), size), rows, obstacles)


_ESTIMATE = "SELECT greatest(reltuples, 0) FROM pg_class WHERE oid = %s::regclass"
# What would go on looking at the first partition alone, or would not be there for the others.
_OBSTACLES = """
WITH ledger AS (SELECT oid, relname FROM pg_class WHERE oid = ANY(%s::regclass[]))
SELECT DISTINCT 'the view', r.ev_class::regclass::text, relname::text
FROM ledger JOIN pg_depend d ON d.refobjid = ledger.oid AND d.classid = 'pg_rewrite'::regclass
JOIN pg_rewrite r ON r.oid = d.objid WHERE r.ev_class <> ledger.oid
UNION ALL SELECT 'the trigger', tgname, relname
FROM pg_trigger JOIN ledger ON ledger.oid = tgrelid WHERE NOT tgisinternal
UNION ALL SELECT 'the publication', pubname, relname
FROM pg_publication_rel JOIN ledger ON ledger.oid = prrelid JOIN pg_publication p ON p.oid = prpubid
UNION ALL SELECT 'the foreign key', conname, conrelid::regclass::text
FROM pg_constraint JOIN ledger ON ledger.oid = confrelid WHERE contype = 'f'
"""


def last_id() -> int:
    """The newest id that was drawn, whether its mail was committed or not."""
    ((last, is_called),) = _rows("SELECT last_value, is_called FROM tasks_mailtask_id_seq")
    return int(last) if is_called else 0


def apply(size: int = SIZE, ahead: int = AHEAD) -> list[Partition]:
    """Makes all that is there the first partition, without moving a row, while everybody goes on; the partitions.

    The long part, to look whether all ids are what the first partition may hold, is done before anybody has to wait.
    """
    with _alone():
        if partitions():
            raise CannotPartitionError("The ledger is partitioned already.")
        planned = plan(size)
        if planned.obstacles:
            raise CannotPartitionError(
                f"In the way: {', '.join(planned.obstacles)}. Make them anew afterwards."
            )
        first = Partition(0, planned.bound)
        with _bounded({table: table for table in KEYS}, first.end):
            _between_statements(lambda: _switch(first, size, ahead))
        analyze()
        return partitions()


def keep_ahead(ahead: int = AHEAD) -> int:
    """Makes the next partitions before they are needed; how many were made. Free where nothing is to be done."""
    if not _bounds_left() and _has_enough(partitions(), ahead):
        return 0
    with _alone():
        _unbind()  # of one that was killed
        if _has_enough(parts := partitions(), ahead):
            return 0
        *bounded, tail = parts
        last, size = last_id(), bounded[-1].end - bounded[-1].first
        closed = Partition(
            tail.first,
            tail.first + size if last < tail.first else _bound_after(last - tail.first, size) + tail.first,
        )
        more = max(0, ahead - _count_beyond([*bounded, closed], last))
        new = [Partition(closed.end + n * size, closed.end + (n + 1) * size) for n in range(more)]
        new.append(Partition(closed.end + more * size, _BEYOND_ALL))
        with _bounded({tail.of(table): table for table in KEYS}, closed.end):
            _between_statements(lambda: _extend(tail, closed, new))
        return len(new)


def drop_oldest(keep: timedelta) -> int | None:
    """Drops the oldest partition in which all came to its end so long ago; how many mails went with it. None if there
    is no such partition, or none that has been filled."""
    last = last_id()
    for part in partitions():
        if part.end > last or not _is_old(part, keep):
            return None
        states = _states(part, keep)
        if all(is_ended for _, _, is_ended in states):
            with _alone():
                _between_statements(lambda: _drop(part, states))  # noqa: B023 -- called at once
            return sum(mails for _, mails, _ in states)
    return None


def analyze() -> None:
    """What PostgreSQL's autovacuum does for each partition and not for the whole."""
    if partitions():
        with connection.cursor() as cursor:
            for table in KEYS:
                cursor.execute(SQL("ANALYZE {}").format(Identifier(table)))


# One partition ----------------------------------------------------------------------------------------


def _is_old(part: Partition, keep: timedelta) -> bool:
    newest = SQL("SELECT coalesce(max(created_at) < now() - {keep}, true) FROM {leaf}")
    return bool(_rows(newest.format(keep=Literal(keep), leaf=Identifier(part.of(TASKS))))[0][0])


def _states(part: Partition, keep: timedelta) -> list[tuple[int, int, bool]]:
    """What its mails count as, how many there are, and whether all of them ended so long ago."""
    counted = SQL(statements.ENDED).format(keep=Literal(keep), leaf=Identifier(part.of(TASKS)))
    return [(int(state), int(mails), bool(is_ended)) for state, mails, is_ended in _rows(counted)]


def _drop(part: Partition, states: Sequence[tuple[int, int, bool]]) -> None:
    """In one transaction that all others wait for. Since it was looked at somebody may have sent a mail of it again:
    the narrow tables know at once. If that mail has come to its end again meanwhile, it goes with the others."""
    with connection.cursor() as cursor:
        cursor.execute(_LOCK)
        uncertain = SQL("SELECT EXISTS (SELECT FROM {leaf} WHERE is_uncertain)")
        cursor.execute(uncertain.format(leaf=Identifier(part.of(TASKS))))
        (is_any_uncertain,) = cursor.fetchone()
        cursor.execute(statements.MOVING, {"first": part.first, "end": part.end})
        (is_any_moving,) = cursor.fetchone()
        if is_any_uncertain or is_any_moving:
            raise BusyError(f"A mail of the partition from {part.first} was sent again just now.")
        for table in KEYS:
            names = {"table": Identifier(table), "leaf": Identifier(part.of(table))}
            cursor.execute(SQL("ALTER TABLE {table} DETACH PARTITION {leaf}").format(**names))
            cursor.execute(SQL("DROP TABLE {leaf}").format(**names))
        cursor.executemany(statements.LEFT, [[mails, state] for state, mails, _ in states])


def _extend(tail: Partition, closed: Partition, new: Sequence[Partition]) -> None:
    """Gives the last partition an end, and adds others behind it."""
    with connection.cursor() as cursor:
        cursor.execute(_LOCK)
        for table in KEYS:
            names = {"table": Identifier(table), "leaf": Identifier(tail.of(table))}
            cursor.execute(SQL("ALTER TABLE {table} DETACH PARTITION {leaf}").format(**names))
            cursor.execute(_attach(table, closed))
            for part in new:
                _make(cursor, table, part, like=tail.of(table))


def _make(cursor: Any, table: str, part: Partition, like: str) -> None:
    """An empty partition, stored as `like` is."""
    names = {"leaf": Identifier(part.of(table)), "like": Identifier(like)}
    cursor.execute("SELECT unnest(reloptions) FROM pg_class WHERE oid = %s::regclass", [like])
    options = SQL(", ").join(SQL(option) for (option,) in cursor.fetchall())
    create = """CREATE TABLE {leaf} (LIKE {like} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING GENERATED
        INCLUDING STORAGE INCLUDING COMPRESSION)"""
    cursor.execute(
        SQL(create).format(**names) + (SQL(" WITH ({})").format(options) if options.as_string() else SQL(""))
    )
    cursor.execute(
        SQL("ALTER TABLE {leaf} DROP CONSTRAINT IF EXISTS {bound}").format(bound=Identifier(_BOUND), **names)
    )
    key, is_by_range = _primary_key(cursor, like)
    if not is_by_range:
        cursor.execute(SQL("ALTER TABLE {leaf} ADD {key}").format(key=SQL(key), **names))
    cursor.execute(_attach(table, part))


def _attach(table: str, part: Partition) -> Composed:
    first = Literal(part.first) if part.first else SQL("MINVALUE")
    end = Literal(part.end) if part.end != _BEYOND_ALL else SQL("MAXVALUE")
    statement = SQL("ALTER TABLE {table} ATTACH PARTITION {leaf} FOR VALUES FROM ({first}) TO ({end})")
    return statement.format(table=Identifier(table), leaf=Identifier(part.of(table)), first=first, end=end)


def _primary_key(cursor: Any, leaf: str) -> tuple[str, bool]:
    """As SQL, and whether the column by which the table is partitioned is in it. Where it is not, as in that of the
    attempts, PostgreSQL keeps it within each partition; the ids are from one sequence all the same."""
    cursor.execute(_KEY, [leaf, KEYS[re.sub(r"_p[0-9]+$", "", leaf)]])
    key, is_by_range = cursor.fetchone()
    return str(key), bool(is_by_range)


_KEY = """
SELECT pg_get_constraintdef(c.oid), a.attnum = ANY(c.conkey) FROM pg_constraint c, pg_attribute a
WHERE c.contype = 'p' AND c.conrelid = %s::regclass AND a.attrelid = c.conrelid AND a.attname = %s
"""


# The switch -------------------------------------------------------------------------------------------


def _switch(first: Partition, size: int, ahead: int) -> None:
    """In one transaction that all others wait for: names in the catalogue change, no row is touched."""
    with connection.cursor() as cursor:
        cursor.execute(_LOCK)
        for table in KEYS:
            _make_whole(cursor, table, first)
            for n in range(ahead):
                _make(
                    cursor,
                    table,
                    Partition(first.end + n * size, first.end + (n + 1) * size),
                    first.of(table),
                )
            _make(cursor, table, Partition(first.end + ahead * size, _BEYOND_ALL), first.of(table))


def _make_whole(cursor: Any, table: str, first: Partition) -> None:
    """The table becomes the first partition of a new one, which has its name, its columns, and all that is named and
    may be changed by a migration to come: indexes, constraints, the sequence."""
    names = {"table": Identifier(table), "leaf": Identifier(first.of(table))}
    said = {what: _ask(cursor, query, table) for what, query in _ALL_OF_IT.items()}
    cursor.execute(SQL("ALTER TABLE {table} RENAME TO {leaf}").format(**names))
    for name in [*(name for name, _ in said["indexes"]), *(name for name, _ in said["key"])]:
        rename = SQL("ALTER INDEX {} RENAME TO {}")
        cursor.execute(rename.format(Identifier(name), Identifier(f"{name}_p{first.first}")))
    sequences = [
        (column, *_drop_identity(cursor, first.of(table), column, name)) for column, name in said["identity"]
    ]
    create = """CREATE TABLE {table} (LIKE {leaf} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING GENERATED
        INCLUDING STORAGE INCLUDING COMPRESSION) PARTITION BY RANGE ({column})"""
    cursor.execute(SQL(create).format(column=Identifier(KEYS[table]), **names))
    cursor.execute(
        SQL("ALTER TABLE {table} DROP CONSTRAINT {bound}").format(bound=Identifier(_BOUND), **names)
    )
    for column, name, following in sequences:
        add = """ALTER TABLE {table} ALTER COLUMN {column}
            ADD GENERATED BY DEFAULT AS IDENTITY (SEQUENCE NAME {name} START WITH {following})"""
        parts = {"column": Identifier(column), "name": Identifier(name), "following": Literal(following)}
        cursor.execute(SQL(add).format(**parts, **names))
    _, is_by_range = _primary_key(cursor, first.of(table))
    own = said["key"] if is_by_range else []
    for name, definition in [*own, *said["foreign keys"]]:
        add = "ALTER TABLE {table} ADD CONSTRAINT {name} {definition}"
        cursor.execute(SQL(add).format(name=Identifier(name), definition=SQL(definition), **names))
    for _, definition in said["indexes"]:
        cursor.execute(definition)
    for grantee, right in said["rights"]:
        whom = SQL("PUBLIC") if grantee == "PUBLIC" else Identifier(grantee)
        cursor.execute(SQL("GRANT {right} ON {table} TO {whom}").format(right=SQL(right), whom=whom, **names))
    cursor.execute(_attach(table, first))


def _drop_identity(cursor: Any, leaf: str, column: str, sequence: str) -> tuple[str, int]:
    """The name of the sequence that was dropped with it, and the number that it would have given next."""
    cursor.execute(SQL("SELECT last_value + is_called::int FROM {}").format(Identifier(sequence)))
    (following,) = cursor.fetchone()
    drop = SQL("ALTER TABLE {leaf} ALTER COLUMN {column} DROP IDENTITY")
    cursor.execute(drop.format(leaf=Identifier(leaf), column=Identifier(column)))
    return sequence, int(following)


_ALL_OF_IT = {
    "indexes": """SELECT i.relname, pg_get_indexdef(i.oid) FROM pg_index x JOIN pg_class i ON i.oid = indexrelid
        WHERE indrelid = %s::regclass AND NOT indisprimary ORDER BY 1""",
    "key": """SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE conrelid = %s::regclass AND contype = 'p'""",
    "foreign keys": """SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE conrelid = %s::regclass AND contype = 'f'""",
    "identity": """SELECT a.attname, s.relname FROM pg_attribute a
        JOIN pg_depend d ON d.refobjid = a.attrelid AND d.refobjsubid = a.attnum AND d.deptype = 'i'
        JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
        WHERE a.attrelid = %s::regclass AND a.attidentity <> ''""",
    "rights": """SELECT coalesce(r.rolname, 'PUBLIC'), privilege_type
        FROM pg_class c CROSS JOIN aclexplode(c.relacl) LEFT JOIN pg_roles r ON r.oid = grantee
        WHERE c.oid = %s::regclass AND grantee <> c.relowner""",
}


# Waiting for nobody -----------------------------------------------------------------------------------


@contextmanager
def _alone() -> Iterator[None]:
    """One at a time does any of this; BusyError."""
    if not _rows("SELECT pg_try_advisory_lock(%s)", [_ALONE])[0][0]:
        raise BusyError("Somebody else is at the ledger's partitions.")
    try:
        yield
    finally:
        _rows("SELECT pg_advisory_unlock(%s)", [_ALONE])


@contextmanager
def _bounded(leaves: dict[str, str], end: int) -> Iterator[None]:
    """Makes sure that these hold nothing from `end` on, which PostgreSQL would otherwise look for while all others
    wait. `end` is at least one partition's size away, for mails beyond it are refused meanwhile."""
    try:
        for leaf, table in leaves.items():
            names = {"leaf": Identifier(leaf), "name": Identifier(_BOUND)}
            add = SQL("ALTER TABLE {leaf} ADD CONSTRAINT {name} CHECK ({key} < {end}) NOT VALID")
            bound = add.format(key=Identifier(KEYS[table]), end=Literal(end), **names)
            _between_statements(lambda bound=bound: _rows(bound))  # type: ignore[misc]
            _rows(SQL("ALTER TABLE {leaf} VALIDATE CONSTRAINT {name}").format(**names))
        yield
    finally:
        _unbind()


def _bounds_left() -> list[tuple[Any, ...]]:
    """The tables that are bounded at this moment, by whom ever."""
    return _rows("SELECT conrelid::regclass::text FROM pg_constraint WHERE conname = %s", [_BOUND])


def _unbind() -> None:
    for (leaf,) in _bounds_left():
        drop = SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(SQL(leaf), Identifier(_BOUND))
        _between_statements(lambda drop=drop: _rows(drop))  # type: ignore[misc]


def _between_statements(change: Callable[[], object]) -> None:
    """Does it in a transaction of its own as soon as nobody is in the way; BusyError if somebody is for too long."""
    for _ in range(TRIES):
        try:
            with transaction.atomic():
                _rows(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
                change()
        except OperationalError as error:
            if not isinstance(
                error.__cause__, psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected
            ):
                raise
            time.sleep(BETWEEN_TRIES)
        else:
            return
    raise BusyError("The ledger is in use by somebody who does not let go of it, such as a dump.")


_LOCK = f"LOCK TABLE ONLY {', ONLY '.join(KEYS)} IN ACCESS EXCLUSIVE MODE"


def _bound_after(last: int, size: int) -> int:
    """The end of a partition that holds all up to `last`, and has room for as much as a partition holds, at least."""
    return (last // size + 2) * size


def _has_enough(parts: Sequence[Partition], ahead: int) -> bool:
    """Where there are none none are missing."""
    return not parts or _count_beyond(parts[:-1], last_id()) >= ahead


def _count_beyond(parts: Sequence[Partition], last: int) -> int:
    return sum(part.first > last for part in parts)


def _ask(cursor: Any, query: str, table: str) -> list[tuple[str, str]]:
    cursor.execute(query, [table])
    found: list[tuple[str, str]] = cursor.fetchall()
    return found


def _rows(query: str | Composed, parameters: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        found: list[tuple[Any, ...]] = cursor.fetchall() if cursor.description else []
    return found
