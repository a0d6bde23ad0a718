"""What a worker tells of its settings: anybody who reaches Redis may ask, and Flower shows it."""

from urllib.parse import urlsplit

import pytest
from celery.worker.control import conf
from django.conf import settings

from config.celery import app


class _State:
    app = app


@pytest.mark.parametrize("with_defaults", [False, True])
def test_it_is_celerys_settings_without_a_secret(with_defaults: bool) -> None:
    told = conf(_State, with_defaults=with_defaults)
    assert told["task_default_queue"] == "drain"
    assert "SECRET_KEY" not in told
    secrets = [settings.SECRET_KEY, settings.SIMPLE_JWT["SIGNING_KEY"], *settings.CREDENTIAL_KEYS]
    secrets += [urlsplit(settings.REDIS_URL).password, settings.DATABASES["default"]["PASSWORD"]]
    assert [secret for secret in secrets if secret and secret in str(told)] == []


def test_the_database_connection_outlives_a_task() -> None:
    """The fixup reads it from here; with a connection for each task half as many mails are sent."""
    assert app.conf.get("CELERY_DB_REUSE_MAX") == 1_000_000
