from django.apps import AppConfig
from django.core import checks


class MailqueueConfig(AppConfig):
    name = "mailqueue"
    verbose_name = "Mail queue"

    def ready(self) -> None:
        from mailqueue.checks import (  # noqa: PLC0415 -- settings are read by then
            lease_outlasts_deadlines,
            one_click_is_https,
        )

        checks.register(lease_outlasts_deadlines)
        checks.register(one_click_is_https, deploy=True)
