"""The web process's door."""

import io
import os
import socket
import sys
from collections.abc import Iterable
from shutil import rmtree
from typing import TYPE_CHECKING

from django.conf import settings
from django.core.wsgi import get_wsgi_application

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")


def _share_counts() -> None:
    """Names the folder where the processes of this web share what they count (config/metrics.py): by their common
    parent, so that each start of the whole begins anew, which Prometheus understands, and one process's does not.
    Where there can be none, each tells of its own calls.
    """
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ or "prometheus_client" in sys.modules:
        return  # the library looks when it is imported
    host = socket.gethostname()
    try:
        for folder in settings.METRICS_DIR.glob(f"{host}:*"):
            if not _lives(folder.name.rpartition(":")[2]):
                rmtree(folder, ignore_errors=True)
        ours = settings.METRICS_DIR / f"{host}:{os.getppid()}"
        ours.mkdir(mode=0o700, parents=True, exist_ok=True)
        # What one counted that has died counts on, but nothing of it lives any more.
        for gauge in ours.glob("gauge_live*_*.db"):
            if not _lives(gauge.stem.rpartition("_")[2]):
                gauge.unlink(missing_ok=True)
    except OSError:
        return
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(ours)


def _lives(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


_share_counts()
_django = get_wsgi_application()


def application(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """Django takes a body without Content-Length (chunked) for an empty one, so it is measured first."""
    if not environ.get("CONTENT_LENGTH") and environ.get("wsgi.input_terminated"):
        # One byte too many is enough for the parser to answer 413.
        body = environ["wsgi.input"].read(settings.MAX_REQUEST_BYTES + 1)
        environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
    return _django(environ, start_response)
