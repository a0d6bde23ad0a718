"""The Celery application; its entry points are in mailqueue/jobs.py."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = Celery("mailqueue")
app.config_from_object("django.conf:settings", namespace="CELERY")
# Celery's Django fixup closes the database connection around every task unless told otherwise
# (342 against 152 mails/s); it reads this name from the app's own configuration only.
app.conf.CELERY_DB_REUSE_MAX = 1_000_000
app.autodiscover_tasks(["mailqueue"], related_name="jobs")
# Delivery goes on while the broker is away. By name, for only workers need Celery's worker in their memory.
app.steps["worker"].add("mailqueue.standby:StandbyStep")
