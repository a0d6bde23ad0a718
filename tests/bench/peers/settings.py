"""The settings of a small Django project that sends mail as others do; run by tests/bench/others.py."""

import os

import dj_database_url

SECRET_KEY = "benchmark"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "post_office", "mailer", "plain"]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates"}]
LOGGING_CONFIG = None  # the cheapest logging is none
KEEP_DATABASE_CONNECTIONS = os.environ.get("BENCH_DB_REUSE") == "1"
DATABASES = {
    "default": dj_database_url.parse(os.environ["BENCH_DATABASE_URL"])
    | {"CONN_MAX_AGE": None if KEEP_DATABASE_CONNECTIONS else 0}
}

EMAIL_HOST = "127.0.0.1"
EMAIL_PORT = int(os.environ["BENCH_SMTP_PORT"])
DEFAULT_FROM_EMAIL = "sender@example.com"

# django-post-office as fast as it goes: large batches, five threads, no log rows.
EMAIL_BACKEND = "post_office.EmailBackend"
POST_OFFICE = {
    "BACKENDS": {"default": "django.core.mail.backends.smtp.EmailBackend"},
    "BATCH_SIZE": 1000,
    "THREADS_PER_PROCESS": 5,
    "LOG_LEVEL": 0,
}
MAILER_USE_FILE_LOCK = False

CELERY_BROKER_URL = os.environ["BENCH_REDIS_URL"]
CELERY_TASK_IGNORE_RESULT = True
CELERY_WORKER_HIJACK_ROOT_LOGGER = False

# The web of the plain peer.
ROOT_URLCONF = "plain.api"
ALLOWED_HOSTS = ["127.0.0.1"]
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["rest_framework_simplejwt.authentication.JWTAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
}
