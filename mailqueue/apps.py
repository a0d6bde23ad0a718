from django.apps import AppConfig
from django.core import checks


class MailqueueConfig(AppConfig):
    name = "mailqueue"
    verbose_name = "Mail queue"

    def ready(self) -> None:
        from mailqueue.checks import lease_outlasts_deadlines  # noqa: PLC0415 -- settings are read by then

        checks.register(lease_outlasts_deadlines)
