"""The web process's door."""

import io
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from django.conf import settings
from django.core.wsgi import get_wsgi_application

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
_django = get_wsgi_application()


def application(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """Django takes a body without Content-Length (chunked) for an empty one, so it is measured first."""
    if not environ.get("CONTENT_LENGTH") and environ.get("wsgi.input_terminated"):
        # One byte too many is enough for the parser to answer 413.
        body = environ["wsgi.input"].read(settings.MAX_REQUEST_BYTES + 1)
        environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
    return _django(environ, start_response)
