from django.apps import AppConfig


class OtpConfig(AppConfig):
    name = "mailqueue.otp"
    verbose_name = "One-time passwords"
