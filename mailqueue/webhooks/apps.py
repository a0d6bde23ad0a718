from django.apps import AppConfig


class WebhooksConfig(AppConfig):
    name = "mailqueue.webhooks"
    verbose_name = "Webhooks"

    def ready(self) -> None:
        from accounts.models import account_closed  # noqa: PLC0415 -- models load after the apps
        from mailqueue.webhooks.endpoints import forget_owner  # noqa: PLC0415

        account_closed.connect(forget_owner, dispatch_uid="webhooks.forget_owner")
