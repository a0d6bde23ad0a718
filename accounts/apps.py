from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "accounts"
    verbose_name = "Accounts"

    def ready(self) -> None:
        from accounts.api import schema  # noqa: F401, PLC0415 -- registers itself; DRF loads after the apps
