"""What PostgreSQL and Redis say of themselves. One that cannot be asked is a warning of its own."""

from datetime import UTC, datetime
from typing import Any, NamedTuple

import redis
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004 -- Django's name for it
from django.db import DatabaseError, connection

OLDEST_POSTGRES, OLDEST_REDIS = 14, (6, 2)
#: Seconds.
CLOCKS_APART, PATIENCE = 1.0, 5


class Database(NamedTuple):
    version: int
    is_standby: bool
    synchronous_commit: str
    #: Settings without which a crash of its machine damages the database.
    unsafe: list[str]
    #: Seconds that its clock is ahead of ours, for certain.
    ahead: float


def database(**_: Any) -> list[CheckMessage]:
    try:
        return judge_database(_ask_database())
    except DatabaseError as error:
        return [
            Warning(
                f"PostgreSQL does not answer: {str(error).strip()}",
                hint="What depends on its settings was not checked. Look at DATABASE_URL and at the server.",
                id="mailqueue.W018",
            )
        ]


def broker(**_: Any) -> list[CheckMessage]:
    try:
        with redis.Redis.from_url(
            settings.REDIS_URL, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE, retry=None
        ) as client:
            return judge_broker(client.info())
    except redis.RedisError as error:
        return [
            Warning(
                f"Redis does not answer: {str(error).strip()}",
                hint="What depends on its settings was not checked. Look at REDIS_URL and at the server; its user"
                " must be allowed INFO.",
                id="mailqueue.W019",
            )
        ]


def judge_database(found: Database) -> list[CheckMessage]:
    messages: list[CheckMessage] = []
    if found.version < OLDEST_POSTGRES:
        messages.append(
            Error(
                f"PostgreSQL is version {found.version}.",
                hint=f"{OLDEST_POSTGRES} or newer is needed.",
                id="mailqueue.E003",
            )
        )
    if found.is_standby:
        messages.append(
            Error(
                "DATABASE_URL leads to a standby, which takes no mail.",
                hint="Let it lead to the primary: with several hosts add ?target_session_attrs=read-write.",
                id="mailqueue.E004",
            )
        )
    if found.synchronous_commit == "off":
        messages.append(
            Error(
                "PostgreSQL runs with synchronous_commit=off: a crash loses mails that were answered with 202.",
                hint="ALTER SYSTEM SET synchronous_commit = on; SELECT pg_reload_conf(); and look whether the user or"
                " the database has a setting of its own (\\drds in psql).",
                id="mailqueue.E005",
            )
        )
    if found.unsafe:
        messages.append(
            Error(
                f"PostgreSQL runs with {' and '.join(f'{name}=off' for name in found.unsafe)}: it may not survive a"
                " crash of its machine.",
                hint="Set them to on in its configuration.",
                id="mailqueue.E006",
            )
        )
    if abs(found.ahead) > CLOCKS_APART:
        messages.append(
            Warning(
                f"PostgreSQL's clock is {abs(found.ahead):.1f} s {'ahead of' if found.ahead > 0 else 'behind'} ours.",
                hint="Mail waits for so long, or goes so much too early. Let NTP keep the clock of every machine.",
                id="mailqueue.W020",
            )
        )
    return messages


def judge_broker(info: dict[str, Any]) -> list[CheckMessage]:
    """`info` is the answer to INFO, for managed servers refuse CONFIG. Without a field nothing is said of it."""
    messages: list[CheckMessage] = []
    version = str(info.get("redis_version", ""))
    if version and tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
        messages.append(
            Error(f"Redis is version {version}.", hint="6.2 or newer is needed.", id="mailqueue.E007")
        )
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        messages.append(
            Warning(
                f"Redis runs with maxmemory-policy {policy}: when it is full it forgets bells and counts of wrong"
                " passwords, and nobody is told.",
                hint="CONFIG SET maxmemory-policy noeviction, and the same in its configuration.",
                id="mailqueue.W021",
            )
        )
    if not info.get("aof_enabled", 1):
        messages.append(
            Warning(
                "Redis runs without appendonly: a restart forgets who may not try passwords any more and which limits"
                " are used up. No mail is lost.",
                hint="CONFIG SET appendonly yes, and the same in its configuration.",
                id="mailqueue.W022",
            )
        )
    return messages


_QUESTION = """
SELECT current_setting('server_version_num')::int / 10000, pg_is_in_recovery(), current_setting('synchronous_commit'),
    array(SELECT name FROM unnest(ARRAY['fsync', 'full_page_writes']) name WHERE current_setting(name) = 'off'),
    clock_timestamp()
"""


def _ask_database() -> Database:
    with connection.cursor() as cursor:
        before = datetime.now(UTC)
        cursor.execute(_QUESTION)
        version, is_standby, synchronous_commit, unsafe, clock = cursor.fetchone()
        return Database(
            version, is_standby, synchronous_commit, unsafe, _ahead(before, clock, datetime.now(UTC))
        )


def _ahead(before: datetime, clock: datetime, after: datetime) -> float:
    """Seconds; none where the clock says a time between question and answer, however long that took."""
    if clock > after:
        return (clock - after).total_seconds()
    return min((clock - before).total_seconds(), 0.0)


ALL = (database, broker)
