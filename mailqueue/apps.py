from django.apps import AppConfig


class MailqueueConfig(AppConfig):
    name = "mailqueue"
    verbose_name = "Mail queue"

    def ready(self) -> None:
        from mailqueue import checks  # noqa: PLC0415 -- settings and models are there by then

        checks.register()
