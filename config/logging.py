"""Logs: a line of JSON for each event (LOG_FORMAT=text for people), with the request's id.

Nobody logs bodies or passwords; the processors below keep them out where a library would.
"""

import logging
import re
import time
import uuid
from collections.abc import Callable
from typing import Any

import structlog
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from structlog.types import EventDict, Processor, WrappedLogger

HEADER = "X-Request-ID"
LOG_FILE_BYTES = 50 * 1024 * 1024
LOG_FILES = 5

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_ROW_VALUES = re.compile(
    r"^DETAIL:.*?(?=^(?:HINT|CONTEXT|QUERY|SCHEMA NAME):|^$|\Z)", re.MULTILINE | re.DOTALL
)

logger = structlog.stdlib.get_logger("mailqueue.request")


class RequestIdMiddleware:
    """Takes a sane X-Request-ID or makes one, echoes it, and puts it on every log line of the request."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        offered = request.headers.get(HEADER, "")
        request_id = offered if _SANE_ID.fullmatch(offered) else uuid.uuid4().hex
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        began = time.perf_counter()
        response = self.get_response(request)
        response[HEADER] = request_id
        # The path without its query, in which recipients are searched for.
        logger.log(
            logging.DEBUG if request.path.startswith("/health") else logging.INFO,
            "request",
            method=request.method,
            path=request.path,
            status=response.status_code,
            duration_ms=round((time.perf_counter() - began) * 1000, 1),
        )
        structlog.contextvars.clear_contextvars()
        return response


def dict_config(*, text: bool, level: str, file: str) -> dict[str, Any]:
    """Django's LOGGING; also points structlog at it. `text` is for people; files and machines get JSON."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_request,
        structlog.processors.format_exc_info,
        _without_row_values,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    # Plain tracebacks: the fancy ones print local variables, and those hold passwords.
    console = structlog.dev.ConsoleRenderer(
        exception_formatter=structlog.dev.plain_traceback, colors=False, pad_event_to=0
    )
    handlers: dict[str, dict[str, Any]] = {
        "stdout": {
            "class": "logging.StreamHandler",
            "stream": "ext://sys.stdout",
            "formatter": "text" if text else "json",
        }
    }
    if file:
        handlers["file"] = {
            "class": "concurrent_log_handler.ConcurrentRotatingFileHandler",  # several processes write to it
            "filename": file,
            "maxBytes": LOG_FILE_BYTES,
            "backupCount": LOG_FILES,
            "encoding": "utf-8",
            "formatter": "json",
        }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            name: {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": shared,
                "processors": [strip, *renderers],
            }
            for name, renderers in (
                ("json", [structlog.processors.JSONRenderer()]),
                ("text", [_short, console]),
            )
        },
        "handlers": handlers,
        "root": {"level": level, "handlers": list(handlers)},
        "loggers": {
            # Named without handlers, so that Django's own handlers go and all passes through the root.
            "django": {"level": level},
            "django.server": {"level": level, "handlers": [], "propagate": True},
            # Flower asks workers that are still starting; they tell it of themselves when they are up.
            "flower.inspector": {"level": "ERROR"},
            # Would tell of receivers' addresses and of signatures.
            "httpcore": {"level": "WARNING"},
            # Each request already has its line; only what raised has more to say.
            "django.request": {"level": "ERROR"},
            # Jobs say what they did; Celery's own two lines would come for each tick, once a second.
            "celery.worker.strategy": {"level": "WARNING"},
            "celery.app.trace": {"level": "WARNING"},
        },
    }


def _short(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """For people: the time is beside the line already, and the id is for following a request in JSON."""
    for name in ("timestamp", "request_id"):
        event.pop(name, None)
    return event


def _without_request(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Django hands its request object to the log; its description shows the query."""
    event.pop("request", None)
    return event


def _without_row_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """PostgreSQL explains a refused row by quoting it: that is mail and sealed passwords."""
    if "exception" in event:
        event["exception"] = _ROW_VALUES.sub("DETAIL: left out\n", str(event["exception"]))
    return event
