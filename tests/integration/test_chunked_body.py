"""A body sent in chunks has no Content-Length; it counts all the same."""

import io
import json

import pytest
from django.test import RequestFactory

from config.wsgi import application

pytestmark = pytest.mark.django_db


def _post(body: bytes) -> tuple[str, dict]:
    """Through the WSGI door, as a server hands over a chunked body."""
    environ = RequestFactory()._base_environ(
        REQUEST_METHOD="POST", PATH_INFO="/api/v1/login", CONTENT_TYPE="application/json"
    )
    environ |= {"wsgi.input": io.BytesIO(body), "wsgi.input_terminated": True}
    environ.pop("CONTENT_LENGTH", None)
    statuses: list[str] = []
    answer = b"".join(application(environ, lambda status, _headers: statuses.append(status)))
    return statuses[0], json.loads(answer)


def test_a_chunked_body_is_read(settings):
    settings.ALLOWED_HOSTS = ["*"]
    status, answer = _post(b'{"email": "nobody@example.com"}')
    assert status[:3] == "400"
    assert [error["field"] for error in answer["errors"]] == ["password"]


def test_a_chunked_body_above_the_limit_is_refused(settings):
    settings.ALLOWED_HOSTS = ["*"]
    settings.MAX_REQUEST_BYTES = 100
    status, answer = _post(b'{"email": "%s"}' % (b"x" * 1000))
    assert (status[:3], answer["code"]) == ("413", "too_large")
