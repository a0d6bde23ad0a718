from django.apps import AppConfig


class TasksConfig(AppConfig):
    name = "tasks"
    verbose_name = "Mail tasks"

    def ready(self) -> None:
        from accounts.models import account_closed  # noqa: PLC0415 -- models load after the apps
        from tasks.submission import cancel_what_waits  # noqa: PLC0415

        account_closed.connect(cancel_what_waits, dispatch_uid="tasks.cancel_what_waits")
