"""Prepares one measurement of ours: `python -m tests.bench.fill SMTP_PORT COUNT ACCOUNT` with the body on stdin.

Makes a user whose relay is the sink, and COUNT waiting mails as the API would have stored them. ACCOUNT: what
else is special about the SMTP account, as JSON.
"""

import json
import sys

import django

django.setup()

from accounts.models import User  # noqa: E402 -- Django first
from tasks import submission  # noqa: E402
from tasks.models import MailContent, MailTask  # noqa: E402
from tests.bench.client import EMAIL, PASSWORD  # noqa: E402

CHUNK = 5_000


def sender(port: int, account: dict[str, str]) -> User:
    user = User.objects.create_user(EMAIL, PASSWORD)
    for name, value in ({"host": "127.0.0.1", "port": port, "security": "none"} | account).items():
        setattr(user.smtp, name, value)
    user.smtp.save()
    return user


def fill(user: User, count: int, body: str) -> None:
    account = user.smtp
    for start in range(0, count, CHUNK):
        numbers = range(start, min(start + CHUNK, count))
        composed = [
            submission._compose(
                user,
                submission.NewMail(
                    recipient=f"someone{n}@example.com", subject=f"Benchmark mail {n}", text=body
                ),
                account,
            )
            for n in numbers
        ]
        tasks = MailTask.objects.bulk_create(task for task, _ in composed)
        MailContent.objects.bulk_create(
            MailContent(task=task, raw=raw) for task, (_, raw) in zip(tasks, composed, strict=True)
        )


if __name__ == "__main__":
    fill(sender(int(sys.argv[1]), json.loads(sys.argv[3])), int(sys.argv[2]), sys.stdin.read())
