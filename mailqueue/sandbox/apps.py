from django.apps import AppConfig


class SandboxConfig(AppConfig):
    name = "mailqueue.sandbox"
    verbose_name = "Sandbox inbox"
