"""The settings, in one file. What an operator may change comes from config/env.py."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import django_stubs_ext
from celery.schedules import crontab
from django.templatetags.static import static
from django.urls import reverse_lazy

from config import env as environment
from config.logging import dict_config

django_stubs_ext.monkeypatch()

ENV = environment.read()
BASE_DIR = Path(__file__).resolve().parent.parent
VERSION = "0.1.0"

DEBUG = ENV.debug
SECRET_KEY = ENV.secret_key
#: Secrets that stand in public, for mailqueue/checks.
ONLY_FOR_DEBUG = environment.FOR_DEBUG
LOG_LEVEL = ENV.log_level
ALLOWED_HOSTS = ENV.allowed_hosts
LOGGING = dict_config(text=ENV.log_format == "text", level=ENV.log_level, file=ENV.log_file)
ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"

INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "rest_framework",
    "rest_framework_simplejwt",
    "rest_framework_simplejwt.token_blacklist",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "drf_standardized_errors",
    "django_celery_beat",
    "django_celery_results",
    "django_structlog",
    "accounts",
    "tasks",
    "mailqueue",
    "mailqueue.sandbox",
    "mailqueue.webhooks",
    "mailqueue.otp",
    "mailqueue.subscriptions",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "config.logging.RequestIdMiddleware",
    "config.metrics.CountingMiddleware",
    "config.pages.PageSessions",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "config.pages.PageAuthentication",
    "config.pages.PageMessages",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

# PostgreSQL -----------------------------------------------------------------------------------------
# Connections are kept: opening one per request measured 182 enqueues/s against 600.
DATABASES = {
    "default": ENV.database
    | {
        "ENGINE": "config.postgresql",
        "CONN_MAX_AGE": None,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {"connect_timeout": 5, "prepare_threshold": 5} | ENV.database.get("OPTIONS", {}),
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Users ----------------------------------------------------------------------------------------------
AUTH_USER_MODEL = "accounts.User"
LOGIN_REDIRECT_URL = "/admin/"
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [{"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"}]
CREDENTIAL_KEYS = ENV.credential_keys
ADMIN_EMAIL, ADMIN_PASSWORD = ENV.admin_email, ENV.admin_password
FLOWER_BASIC_AUTH = ENV.flower_basic_auth

# HTTP -----------------------------------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["accounts.api.authentication.BearerAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": [
        "rest_framework.permissions.IsAuthenticated",
        "accounts.api.scopes.WithinScopes",
    ],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["accounts.api.parsing.BoundedJSONParser"],
    "DEFAULT_PAGINATION_CLASS": "accounts.api.paging.NewestFirst",
    "DEFAULT_SCHEMA_CLASS": "accounts.api.schema.ScopedSchema",
    "EXCEPTION_HANDLER": "accounts.api.problems.problem_handler",
    "UNAUTHENTICATED_USER": None,
}
# Attachments of 10 MB grow by a third as base64; the mail's text and the JSON around them need the rest.
MAX_REQUEST_BYTES = 15 * 1024 * 1024
SIMPLE_JWT = {
    "SIGNING_KEY": ENV.jwt_signing_key,
    "ACCESS_TOKEN_LIFETIME": timedelta(hours=1),
    "REFRESH_TOKEN_LIFETIME": timedelta(days=14),
    "CHECK_REVOKE_TOKEN": True,  # a changed password ends every token that was made with the old one
}
THROTTLE_LOGIN = ENV.throttle_login
THROTTLE_LOGIN_ADDRESS = ENV.throttle_login_address
THROTTLE_REGISTER = ENV.throttle_register
THROTTLE_SMTP_TEST = ENV.throttle_smtp_test
THROTTLE_ENQUEUE = ENV.throttle_enqueue
TRUSTED_PROXIES = ENV.trusted_proxies
WEB_PROCESSES = ENV.web_processes
SPECTACULAR_SETTINGS = {
    "TITLE": "mailqueue",
    "DESCRIPTION": "Hand over a mail with one call; it is kept, sent through your own SMTP account, and followed.",
    "VERSION": VERSION,
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SERVE_AUTHENTICATION": [],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": True,
    "COMPONENT_SPLIT_PATCH": False,  # each serializer of a PATCH says itself what it requires
    "ENUM_NAME_OVERRIDES": {
        "WebhookStateEnum": [("active", "active"), ("disabled", "disabled")],
        "SubscriptionStateEnum": [("active", "active"), ("paused", "paused"), ("ended", "ended")],
    },
}
APPEND_SLASH = True
# Contract addresses of the API have no trailing slash; the admin's do.

STATIC_URL = "/static/"
# Served from the packages themselves: no collectstatic step to forget. An image has them collected and compressed.
STATIC_ROOT = ENV.static_root
WHITENOISE_USE_FINDERS = STATIC_ROOT is None

USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-gb"
FORMAT_MODULE_PATH = "config.formats"

if not DEBUG:
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_HSTS_SECONDS = 31_536_000
    SECURE_HSTS_INCLUDE_SUBDOMAINS = True
    SECURE_HSTS_PRELOAD = True
SECURE_REDIRECT_EXEMPT = [r"^healthz?/"]
# TLS ends at the ingress, which redirects; probes and neighbours inside the cluster speak plain HTTP.
SILENCED_SYSTEM_CHECKS = ["security.W008", *ENV.silenced_checks]


# The admin ------------------------------------------------------------------------------------------
def _page(title: str, icon: str, link: Any) -> dict[str, Any]:
    return {"title": title, "icon": icon, "link": link}


_SANDBOX = [_page("Sandbox inbox", "inbox", "/sandbox/")] if DEBUG else []
_FLOWER = [_page("Flower", "monitoring", f"http://localhost:{ENV.flower_port}")] if DEBUG else []
UNFOLD = {
    "SITE_TITLE": "mailqueue",
    "SITE_HEADER": "mailqueue",
    "SITE_SYMBOL": "mail",
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": lambda _request: static("sandbox/icon.svg")},
    ],
    "SITE_URL": None,
    "COLORS": {
        "primary": {
            "50": "#f0fdfa",
            "100": "#ccfbf1",
            "200": "#99f6e4",
            "300": "#5eead4",
            "400": "#2dd4bf",
            "500": "#14b8a6",
            "600": "#0f766e",
            "700": "#115e59",
            "800": "#134e4a",
            "900": "#103f3c",
            "950": "#042f2e",
        }
    },
    "SIDEBAR": {
        "navigation": [
            {
                "title": "Mail",
                "items": [
                    # Its address begins every other, which would all be taken for it.
                    _page("Live", "monitor_heart", "/") | {"active": lambda _request: False},
                    _page("Mail tasks", "outgoing_mail", reverse_lazy("admin:tasks_mailtask_changelist")),
                    _page("Suppressions", "block", reverse_lazy("admin:tasks_suppression_changelist")),
                    _page("Templates", "draft", reverse_lazy("admin:tasks_mailtemplate_changelist")),
                    _page(
                        "Subscriptions",
                        "event_repeat",
                        reverse_lazy("admin:subscriptions_subscription_changelist"),
                    ),
                    _page("Contents", "article", reverse_lazy("admin:subscriptions_content_changelist")),
                    _page("Users", "group", reverse_lazy("admin:accounts_user_changelist")),
                    _page("SMTP accounts", "dns", reverse_lazy("admin:accounts_smtpaccount_changelist")),
                    _page("API keys", "key", reverse_lazy("admin:accounts_apikey_changelist")),
                    _page("Webhooks", "webhook", reverse_lazy("admin:webhooks_endpoint_changelist")),
                    _page("Webhook deliveries", "send", reverse_lazy("admin:webhooks_delivery_changelist")),
                ],
            },
            {
                "title": "Machine",
                "items": [
                    _page(
                        "Periodic tasks",
                        "schedule",
                        reverse_lazy("admin:django_celery_beat_periodictask_changelist"),
                    ),
                    _page(
                        "Results",
                        "task_alt",
                        reverse_lazy("admin:django_celery_results_taskresult_changelist"),
                    ),
                    *_FLOWER,
                ],
            },
            {
                "title": "To try it out",
                "items": [*_SANDBOX, _page("API docs", "api", reverse_lazy("docs"))],
            },
        ],
    },
}

# Mail -----------------------------------------------------------------------------------------------
DEFAULT_SMTP_URL = ENV.default_smtp_url
SMTP_ALLOWED_NETWORKS = ENV.smtp_allowed_networks
SMTP_ALLOWED_PORTS = ENV.smtp_allowed_ports
MAIL_MAX_TRIES = ENV.max_tries
MAIL_RETRY_SCHEDULE = ENV.retry_schedule
MAIL_LEASE_SECONDS = ENV.lease_seconds
SWEEP_AFTER_SECONDS = ENV.sweep_after_seconds
SWEEP_INTERVAL_SECONDS = ENV.sweep_interval_seconds
MAIL_DOMAIN_LIMITS = ENV.domain_limits
MAIL_DAILY_QUOTA = ENV.daily_quota
MAIL_KEEP_DAYS = ENV.keep_days
OTP_TTL_SECONDS = ENV.otp_ttl_seconds
PUBLIC_URL = ENV.public_url
WORKER_CONCURRENCY = ENV.worker_concurrency
WORKER_CONNECTIONS = ENV.worker_connections
WORKER_MAILS_PER_CONNECTION = ENV.worker_mails_per_connection
SANDBOX_SMTP_HOST = ENV.sandbox_smtp_host
SANDBOX_SMTP_PORT = ENV.sandbox_smtp_port
#: What each worker knows and the ledger does not yet; docs/lifecycle.md, "When a worker dies".
JOURNAL_DIR = ENV.data_dir.resolve() / "journal"
#: What web processes share of the calls that they have counted.
METRICS_DIR = ENV.data_dir.resolve() / "metrics"
#: Where programs without a port show that they work (mailqueue/alive.py).
HEARTBEAT_DIR = ENV.heartbeat_dir

# Celery ---------------------------------------------------------------------------------------------
# The bell may be lost at any time; these keep a lost or frozen Redis from blocking anyone
# (figures in docs/lifecycle.md). Redis pops before it notes, so acks_late would save nothing; and kombu 5.7 takes a
# worker down that acknowledges what it has worked on over a connection that was lost meanwhile.
REDIS_URL = ENV.redis_url
CELERY_BROKER_URL = ENV.redis_url
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": 300,
    "unacked_restore_interval": 10,
    "unacked_restore_throttle": 1,
    "global_keyprefix": "mailqueue:",
    "socket_timeout": 1,
    "socket_connect_timeout": 1,
    "health_check_interval": 25,
}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_BROKER_POOL_ACQUIRE_TIMEOUT = 1
CELERY_TASK_PUBLISH_RETRY = False
CELERY_TASK_ACKS_LATE = False
CELERY_TASK_SERIALIZER = CELERY_RESULT_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = CELERY_RESULT_ACCEPT_CONTENT = ["json"]
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_SEND_TASK_EVENTS = True  # costs 40 % a message; a message moves hundreds of mails
# A pool process that takes longer to come up is killed, and the next one too: on a busy machine that would be all.
CELERY_WORKER_PROC_ALIVE_TIMEOUT = 60.0
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_TASK_DEFAULT_QUEUE = "drain"
CELERY_TASK_ROUTES = {
    "mailqueue.drain": {"queue": "drain"},
    "mailqueue.*": {"queue": "upkeep"},
    "celery.*": {"queue": "upkeep"},
}
CELERY_RESULT_BACKEND = "config.results.Results"
CELERY_RESULT_EXPIRES = timedelta(days=1)
CELERY_RESULT_EXTENDED = True
CELERY_TIMEZONE = "UTC"
CELERY_BEAT_SCHEDULER = "mailqueue.beat:Scheduler"
CELERY_BEAT_SCHEDULE = {
    "dispatch what is due": {"task": "mailqueue.dispatch_due", "schedule": 1.0},
    "send events to webhooks": {"task": "mailqueue.webhooks", "schedule": 1.0},
    "make mails of subscriptions": {"task": "mailqueue.subscriptions", "schedule": 1.0},
    "rescue what a dead worker held": {"task": "mailqueue.rescue", "schedule": 30.0},
    "FindUnprocessedTasksAndEnqueue": {
        "task": "mailqueue.sweep",
        "schedule": float(SWEEP_INTERVAL_SECONDS),
    },
    "make partitions ahead": {"task": "mailqueue.partitions", "schedule": 600.0},
    # By the clock: a day that is counted from beat's start never ends where beat is started anew each day.
    "prune what is old": {"task": "mailqueue.prune", "schedule": crontab(hour="3", minute="17")},
}
#: What Celery is given (config/celery.py).
CELERY = {
    name.removeprefix("CELERY_").lower(): value
    for name, value in dict(globals()).items()
    if name.startswith("CELERY_")
}
