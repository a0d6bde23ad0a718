"""Starts PostgreSQL and Redis for the whole run, before Django's settings are read.

With DATABASE_URL and REDIS_URL set, those are used. Under pytest-xdist the controller starts them, and each
worker inherits the environment, with a database of its own (pytest-django) and a Redis database of its own.
"""

import os
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import django
import pytest

from mailqueue.embedded.services import services
from tests.certificates import make_certificate
from tests.relay import Relay

_running = ExitStack()


def _enter_environment() -> None:
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker:
        own = urlsplit(os.environ["REDIS_URL"])._replace(path=f"/{int(worker.removeprefix('gw')) + 1}")
        os.environ["REDIS_URL"] = own.geturl()
    else:
        os.environ.update(_running.enter_context(services(temporary=True)))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")


_enter_environment()


def pytest_configure() -> None:
    django.setup()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Where pytest-django finds this it reads the settings before the lines above have given a worker its own."""
    os.environ.pop("DJANGO_SETTINGS_MODULE", None)


@pytest.hookimpl(trylast=True)  # after they have been shuffled
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first, so that no processor is left with one when the others have done all."""
    items.sort(key=lambda item: "acceptance" not in item.path.parts)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    _running.close()


@pytest.fixture
def relay() -> Iterator[Relay]:
    """A relay that behaves until told otherwise."""
    with Relay() as running:
        yield running


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, str]:
    """A server's TLS with a certificate for "localhost", and the file of the authority that vouches for it."""
    return make_certificate(tmp_path_factory.mktemp("tls"))
