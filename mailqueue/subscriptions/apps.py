from django.apps import AppConfig


class SubscriptionsConfig(AppConfig):
    name = "mailqueue.subscriptions"
    verbose_name = "Subscriptions"

    def ready(self) -> None:
        from accounts.models import account_closed  # noqa: PLC0415 -- models load after the apps
        from mailqueue.subscriptions.deeds import forget_owner  # noqa: PLC0415

        account_closed.connect(forget_owner, dispatch_uid="subscriptions.forget_owner")
