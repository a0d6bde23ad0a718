"""Prepares one measurement of ours: `python -m tests.bench.fill SMTP_PORT COUNT ACCOUNT` with the body on stdin.

Makes a user whose relay is the sink, and COUNT waiting mails as the API would have stored them. ACCOUNT: what
else is special about the SMTP account, as JSON.
"""

import json
import sys
from typing import Any

import django

django.setup()

from django.db import connection  # noqa: E402 -- Django first

from accounts.models import User  # noqa: E402
from tasks import ledger, submission  # noqa: E402
from tasks.models import MailTask  # noqa: E402
from tasks.states import Lane  # noqa: E402
from tests.bench.client import EMAIL, PASSWORD  # noqa: E402

# Composed one by one, 200,000 mails would take minutes. Each has a recipient and, in the last eight of its
# hexadecimal digits, a Message-ID of its own, as the sinks that count them expect.
_MULTIPLY = """
WITH one AS (SELECT * FROM tasks_mailtask t JOIN tasks_mailcontent c ON c.task_id = t.id WHERE t.id = %(id)s),
copies AS (
    INSERT INTO tasks_mailtask ({columns}, recipient, message_id)
    SELECT {columns}, 'someone' || n || '@example.com',
           overlay(message_id PLACING lpad(to_hex(n), 8, '0') FROM 26 FOR 8)
    FROM one, generate_series(1, %(more)s) n RETURNING *
),
waiting AS (
    INSERT INTO tasks_due (task_id, owner_id, lane, due_at, expires_at)
    SELECT id, owner_id, lane, due_at, expires_at FROM copies
)
INSERT INTO tasks_mailcontent (task_id, raw)
SELECT copies.id, convert_to(replace(replace(convert_from(one.raw, 'UTF8'), one.recipient, copies.recipient),
                                     one.message_id, copies.message_id), 'UTF8')
FROM copies, one
"""


def sender(port: int, account: dict[str, Any], email: str = EMAIL) -> User:
    user = User.objects.create_user(email, PASSWORD)
    for name, value in ({"host": "127.0.0.1", "port": port, "security": "none"} | account).items():
        setattr(user.smtp, name, value)
    user.smtp.save()
    return user


def fill(user: User, count: int, body: str, lane: Lane = Lane.DEFAULT) -> None:
    """One mail by the service's own door, the others after its likeness."""
    if not count:
        return
    mail = submission.NewMail("someone0@example.com", "Benchmark mail", body, lane=lane)
    task, raw = submission._compose(user, mail, user.smtp.from_email)
    ledger.enter(task, raw, from_email=user.smtp.from_email)
    own = ("id", "recipient", "message_id")
    columns = ", ".join(
        f"{field.column}" for field in MailTask._meta.concrete_fields if field.name not in own
    )
    with connection.cursor() as cursor:
        cursor.execute(_MULTIPLY.format(columns=columns), {"id": task.pk, "more": count - 1})


if __name__ == "__main__":
    fill(sender(int(sys.argv[1]), json.loads(sys.argv[3])), int(sys.argv[2]), sys.stdin.read())
