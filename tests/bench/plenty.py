"""Fills a ledger fast, as `python -m tests.bench.plenty KIND ROWS OWNERS SMTP_PORT` with a mail's text on stdin.

KIND `due`: all of it waits and is due. `grown`: seventeen of twenty are history (most were sent), the rest is due.

A few mails are made by the service's own code, one for each state; PostgreSQL then copies their rows, and the rows
of every model that points to them. So a column or a table that is added needs no change here.
"""

import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

import django

django.setup()

from django.db import connection, models, transaction  # noqa: E402 -- Django first
from django.utils import timezone  # noqa: E402

from accounts.models import AccountState, Security, SmtpAccount, User  # noqa: E402
from tasks import ledger, submission  # noqa: E402
from tasks.ledger import Settlement  # noqa: E402
from tasks.models import MailTask  # noqa: E402
from tasks.states import CancelReason, Lane, Outcome, Phase, Status  # noqa: E402
from tests.bench.client import EMAIL, PASSWORD  # noqa: E402

CHUNK = 100_000
#: So many in a hundred of the history; what has come to its end is oldest there.
HISTORY = {"sent": 96, "refused": 2, "to be tried again": 1, "for later": 1}
DUE = {"due": 70, "due bulk": 30}
#: Later than any copy of it is older.
FAR = timedelta(days=120)
#: Every so many accounts one is paused, as in life some are.
PAUSED_EVERY = 50


def owners(count: int, port: int) -> list[int]:
    """Ids of users whose relay is the sink; the first can log in."""
    first = User.objects.create_user(EMAIL, PASSWORD)
    users = [first]
    users += User.objects.bulk_create(User(email=f"sender{n}@example.com") for n in range(1, count))
    SmtpAccount.objects.bulk_create(SmtpAccount(owner=user, from_email=user.email) for user in users[1:])
    SmtpAccount.objects.update(host="127.0.0.1", port=port, security=Security.NONE, state=AccountState.ACTIVE)
    return [user.pk for user in users]


def pause_some(ids: Sequence[int]) -> None:
    until = timezone.now() + FAR
    SmtpAccount.objects.filter(owner__in=ids[PAUSED_EVERY::PAUSED_EVERY]).update(
        state=AccountState.PAUSED, paused_until=until, reason="The relay refused the login."
    )


def patterns(text: str) -> dict[str, int]:
    """One mail for each state, by the ways that real ones take; their ids by the names above."""
    owner = User.objects.get(email=EMAIL)

    def submitted(lane: Lane = Lane.DEFAULT, wait: timedelta | None = None) -> int:
        at = timezone.now() + wait if wait else None
        mail = submission.NewMail("someone@example.com", "Benchmark mail", text, lane=lane, scheduled_at=at)
        return submission.submit(owner, mail).pk

    def concluded(status: Status, outcome: Outcome, said: str, **more: Any) -> int:
        submitted()
        (mail,) = ledger.claim(1, 60, token=uuid4(), room=1)
        of_relay: dict[str, Any] = {
            "phase": Phase.RCPT,
            "code": int(said[:3]),
            "reply": said,
            "outcome": outcome,
        }
        ledger.settle([Settlement(mail.id, mail.token, status, **of_relay, **more)], "benchmark")
        return mail.id

    return {
        "sent": concluded(Status.SUCCESS, Outcome.ACCEPTED, "250 2.0.0 ok"),
        "refused": concluded(Status.CANCELLED, Outcome.REJECTED, "550 5.1.1 no", cancel_reason=CancelReason.REJECTED),
        "to be tried again": concluded(Status.FAILED, Outcome.TEMPORARY, "451 4.3.0 no", wait=FAR.total_seconds()),
        "for later": submitted(wait=FAR),
        "due": submitted(),
        "due bulk": submitted(Lane.BULK),
    }  # fmt: skip


def copy(of: Mapping[str, int], mix: Mapping[str, int], numbers: range, ids: Sequence[int], age: str) -> None:
    """Adds a mail of each of these numbers. `age`: SQL, how much older than its pattern the mail `n` is."""
    picks = [of[name] for name, share in mix.items() for _ in range(share)]
    tables: list[type[models.Model]] = [MailTask]
    tables += [found.related_model for found in MailTask._meta.related_objects]
    chunk: dict[str, Any]
    for start in range(numbers.start, numbers.stop, CHUNK):
        chunk = {"first": start, "last": min(start + CHUNK, numbers.stop) - 1}
        chunk |= {"picks": picks, "owners": ids}
        with transaction.atomic(), connection.cursor() as cursor:
            for model in tables:
                cursor.execute(_copying(model, age), chunk)


def _age(oldest: str, numbers: range) -> str:
    return f"interval '{oldest}' * ({numbers.stop} - n) / {max(1, len(numbers))}"


def _copying(model: type[models.Model], age: str) -> str:
    """The statement that copies this model's rows of the patterns, for each number once."""
    columns = {
        str(field.column): _value(field, age)
        for field in model._meta.concrete_fields
        if model is MailTask or not isinstance(field, models.AutoField)
    }
    points = next((field.column for field in model._meta.concrete_fields if _is_task(field)), "id")
    return f"""
        INSERT INTO {model._meta.db_table} ({", ".join(columns)})
        SELECT {", ".join(columns.values())}
        FROM (SELECT n, %(owners)s::bigint[] AS owners, (%(picks)s::bigint[])[1 + n * 7919 %% 100] AS pick
              FROM generate_series(%(first)s::bigint, %(last)s) n OFFSET 0) one
        JOIN {model._meta.db_table} pattern ON pattern.{points} = one.pick"""


def _is_task(field: models.Field[object, object]) -> bool:
    return field.model is not MailTask and field.related_model is MailTask


def _value(field: models.Field[object, object], age: str) -> str:
    column = f"pattern.{field.column}"
    if _is_task(field) or (field.model is MailTask and field.primary_key):
        return "n"
    if field.related_model is User:  # every tenth mail belongs to one of them: owners differ in size
        return "owners[CASE WHEN n %% 10 = 0 THEN 1 ELSE 1 + n * 104729 %% cardinality(owners) END]"
    if isinstance(field, models.DateTimeField):
        return f"{column} - {age}"
    own = {"recipient": "'someone' || n || '@example.com'", "message_id": "'<' || n || '@example.com>'"}
    return own.get(field.name, column) if field.model is MailTask else column


def fill(kind: str, rows: int, ids: Sequence[int], text: str) -> None:
    made = patterns(text)
    first, history = max(made.values()) + 1, rows * 17 // 20 if kind == "grown" else 0
    past, due = range(first, first + history), range(first + history, first + rows)
    # Ids follow time: the history goes back three months, what is due came within minutes.
    copy(made, HISTORY, past, ids, _age("90 days", past))
    copy(made, DUE, due, ids, _age("4 minutes", due))
    MailTask.objects.filter(pk__in=made.values()).update(owner=ids[0])
    for name in ("due", "due bulk"):
        MailTask.objects.filter(pk=made[name]).delete()
    with connection.cursor() as cursor:
        table = MailTask._meta.db_table
        cursor.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}")
    if kind == "grown":
        pause_some(ids)


if __name__ == "__main__":
    fill(sys.argv[1], int(sys.argv[2]), owners(int(sys.argv[3]), int(sys.argv[4])), sys.stdin.read())
