"""One Celery task for each mail, as most applications write it."""

import os

from celery import Celery, Task
from django.conf import settings
from django.core.mail import EmailMessage, get_connection
from django.utils import timezone

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")

app = Celery("plain")
app.config_from_object("django.conf:settings", namespace="CELERY")
if settings.KEEP_DATABASE_CONNECTIONS:
    app.conf.CELERY_DB_REUSE_MAX = 1_000_000


@app.task(bind=True, max_retries=3)
def send(self: Task, mail_id: int) -> None:
    from plain.models import Mail  # models can be imported once Django is set up

    mail = Mail.objects.get(id=mail_id)
    relay = get_connection("django.core.mail.backends.smtp.EmailBackend")
    try:
        EmailMessage(mail.subject, mail.body, to=[mail.recipient], connection=relay).send()
    except OSError as error:
        raise self.retry(exc=error) from error
    mail.status, mail.sent_at = "sent", timezone.now()
    mail.save(update_fields=["status", "sent_at"])
