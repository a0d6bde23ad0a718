from django.apps import AppConfig


class SandboxConfig(AppConfig):
    name = "mailqueue.sandbox"
    verbose_name = "Sandbox inbox"

    def ready(self) -> None:
        from mailqueue.delivery import magic  # noqa: PLC0415 -- models load after the apps
        from mailqueue.sandbox.inbox import keep_magic  # noqa: PLC0415

        magic.taken.connect(keep_magic, dispatch_uid="sandbox.keep_magic")
