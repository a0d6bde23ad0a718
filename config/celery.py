"""The Celery application; its entry points are in mailqueue/jobs.py."""

import os

from celery import Celery
from kombu.transport.redis import Channel

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = Celery("mailqueue")
# Its own settings and no others: workers tell theirs to whoever inspects them, over Redis, and Flower shows them. By
# Celery's own names, for only by those does it know that the broker's address has a password in it.
app.config_from_object("config.settings:CELERY")
# Celery's Django fixup closes the database connection around every task unless told otherwise
# (342 against 152 mails/s); it reads this name from the app's own configuration only.
app.conf.CELERY_DB_REUSE_MAX = 1_000_000
app.autodiscover_tasks(["mailqueue"], related_name="jobs")
# kombu 5.7 would put messages that it holds back into Redis when it has lost the connection, fails at that, and takes
# the worker down with it. A message is only a bell, and the table is looked at without one.
Channel.do_restore = False
# Delivery goes on while the broker is away. By name, for only workers need Celery's worker in their memory.
app.steps["worker"].add("mailqueue.standby:StandbyStep")
app.steps["worker"].add("mailqueue.pulse:PulseStep")
