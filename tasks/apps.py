from django.apps import AppConfig
from django.db.models.signals import post_save


class TasksConfig(AppConfig):
    name = "tasks"
    verbose_name = "Mail tasks"

    def ready(self) -> None:
        from accounts.models import AccountEvent, account_closed  # noqa: PLC0415 -- models load after the apps
        from tasks.events import tell_of_account  # noqa: PLC0415
        from tasks.submission import cancel_what_waits  # noqa: PLC0415

        post_save.connect(tell_of_account, sender=AccountEvent, dispatch_uid="tasks.tell_of_account")
        account_closed.connect(cancel_what_waits, dispatch_uid="tasks.cancel_what_waits")
