"""What a database that was set back to an earlier time needs before anybody works on it, however that was done: by
`manage.py restore`, from a snapshot of the disk, or to a point in time from archived WAL.

Nobody knows what happened after that time. Ids were given to mails, users and events that are gone, and must not be
given to others; mails may have been sent that the ledger still has waiting.
"""

from django.apps import apps
from django.db import connection, models, transaction
from psycopg.sql import SQL, Identifier, Literal

from accounts.models import User
from accounts.sealing import UnreadableSecretError, unseal
from tasks import counters, ledger

#: Ids passed over in each table: more than are given between two backups, and nothing of what there are.
SKIP = 10_000_000
BITE = 10_000
WHY = "The database was set back to an earlier copy."


def unreadable() -> dict[str, int]:
    """How many sealed secrets none of CREDENTIAL_KEYS opens, by what they are; nothing if all is well."""
    found: dict[str, int] = {}
    for model in apps.get_models():
        for field in getattr(model, "SEALED", ()):
            sealed = model._default_manager.exclude(**{field: ""}).values_list(field, flat=True)  # noqa: SLF001
            closed = sum(not _opens(each) for each in sealed.iterator())
            if closed:
                found[f"{model.__name__}.{field}"] = closed
    return found


def _opens(sealed: str) -> bool:
    try:
        unseal(sealed)
    except UnreadableSecretError:
        return False
    return True


def skip_ids(by: int = SKIP) -> None:
    """Whoever has kept an id of what is gone (a client its task, a token its user, a receiver its event) finds
    nothing by it, and not somebody else's."""
    own = {config.label for config in apps.get_app_configs() if config.name.split(".")[0] in _OURS}
    setval = SQL("SELECT setval({sequence}::regclass, last_value + {by}) FROM {name}")
    with transaction.atomic(), connection.cursor() as cursor:
        for model in apps.get_models():
            if model._meta.app_label in own and isinstance(model._meta.pk, models.BigAutoField):  # noqa: SLF001
                table, column = model._meta.db_table, model._meta.pk.column  # noqa: SLF001
                cursor.execute("SELECT pg_get_serial_sequence(%s, %s)", [table, column])
                (sequence,) = cursor.fetchone()
                name = SQL(".").join(Identifier(part.strip('"')) for part in sequence.split("."))
                cursor.execute(setval.format(sequence=Literal(sequence), by=Literal(by), name=name))


_OURS = {User._meta.app_config.name, "tasks", "mailqueue"} if User._meta.app_config else set()  # noqa: SLF001


def at_stake() -> int:
    """How many mails would be sent as soon as workers start, of which nobody knows whether they were sent already."""
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT (SELECT count(*) FROM tasks_due WHERE due_at <= now())
                + (SELECT coalesce(sum(held), 0) FROM tasks_claim)"""
        )
        (mails,) = cursor.fetchone()
    return int(mails)


def hold() -> int:
    """Makes these uncertain, for people to decide; how many."""
    total = 0
    while held := ledger.hold(WHY, BITE):
        total += held
    return total


def recount() -> int:
    return counters.recount()
