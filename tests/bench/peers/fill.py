"""Fills one peer's queue, unmeasured: `python fill.py post_office|mailer|plain COUNT`, the body on stdin."""

import os
import sys
from collections.abc import Iterator

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
django.setup()

from django.core.mail import EmailMessage  # noqa: E402 -- Django first
from mailer.models import Message  # noqa: E402
from plain.models import Mail  # noqa: E402
from plain.tasks import app, send  # noqa: E402
from post_office import mail as post_office  # noqa: E402
from post_office.models import Email  # noqa: E402


def addressed(count: int) -> Iterator[tuple[str, str]]:
    return ((f"someone{n}@example.com", f"Benchmark mail {n}") for n in range(count))


def fill_post_office(count: int, body: str) -> None:
    Email.objects.all().delete()
    post_office.send_many(
        [{"recipients": [to], "subject": subject, "message": body} for to, subject in addressed(count)]
    )


def fill_mailer(count: int, body: str) -> None:
    Message.objects.all().delete()
    messages = [
        Message(email=EmailMessage(subject, body, "sender@example.com", [to]))
        for to, subject in addressed(count)
    ]
    Message.objects.bulk_create(messages, batch_size=1000)


def fill_plain(count: int, body: str) -> None:
    Mail.objects.all().delete()
    mails = [Mail(recipient=to, subject=subject, body=body) for to, subject in addressed(count)]
    Mail.objects.bulk_create(mails, batch_size=1000)
    with app.pool.acquire(block=True) as connection, app.amqp.Producer(connection) as producer:
        for mail in mails:
            send.apply_async([mail.pk], producer=producer)


if __name__ == "__main__":
    {"post_office": fill_post_office, "mailer": fill_mailer, "plain": fill_plain}[sys.argv[1]](
        int(sys.argv[2]), sys.stdin.read()
    )
