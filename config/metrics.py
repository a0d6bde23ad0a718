"""`GET /metrics`, and the calls over HTTP that are counted for it.

The processes of one web share their counts in files (prometheus_client's multiprocess mode), so that it does not
matter which of them answers, and one that is started again goes on counting; config/wsgi.py makes the folder. The
ledger's figures need no file.
"""

import os
import time
from collections.abc import Callable

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from accounts.api.problems import unavailable
from mailqueue.metrics import Ledger

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

disable_created_metrics()  # type: ignore[no-untyped-call]
_HTTP, _LEDGER = CollectorRegistry(), CollectorRegistry()
_LEDGER.register(Ledger())
_REQUESTS = Counter(
    "mailqueue_http_requests", "Calls answered.", ["method", "route", "status"], registry=_HTTP
)
_SECONDS = Histogram(
    "mailqueue_http_request_seconds",
    "What answers took.",
    ["method", "route"],
    buckets=_BOUNDS,
    registry=_HTTP,
)
#: By which a cluster scales them (deployment/).
LIVE_STREAMS = Gauge(
    "mailqueue_live_streams",
    "Live streams that are open.",
    registry=_HTTP,
    multiprocess_mode="livesum",
)


class CountingMiddleware:
    """Counts each call by its route, never by its address: that may have anything in it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        began = time.perf_counter()
        response = self._get_response(request)
        method = request.method if request.method in _METHODS else "other"
        route = f"/{request.resolver_match.route}" if request.resolver_match else "unknown"
        if route.startswith("/^"):  # the last route of all, for what is at no address
            route = "unknown"
        _SECONDS.labels(method, route).observe(time.perf_counter() - began)
        _REQUESTS.labels(method, route, str(response.status_code)).inc()
        return response


def metrics(_request: HttpRequest) -> HttpResponse:
    """Prometheus's text format."""
    http = _HTTP
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        http = CollectorRegistry()
        MultiProcessCollector(http)  # type: ignore[no-untyped-call]
    try:
        text = generate_latest(_LEDGER) + generate_latest(http)
    except (OperationalError, InterfaceError):
        return unavailable()
    return HttpResponse(text, content_type=CONTENT_TYPE_LATEST)
