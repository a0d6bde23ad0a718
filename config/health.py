"""Answers for probes. None of them asks for a token, none of them waits long."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Generic, TypeVar

from django.apps import apps
from django.conf import settings
from django.db import DatabaseError, InterfaceError, OperationalError, close_old_connections, connection
from django.http import HttpRequest, HttpResponse, JsonResponse

from accounts.api.problems import unavailable
from mailqueue.metrics import executed
from tasks import doorbell


def live(_request: HttpRequest) -> JsonResponse:
    """200 while the process serves."""
    return JsonResponse({"status": "ok", "version": settings.VERSION})


def ping(_request: HttpRequest) -> JsonResponse:
    return JsonResponse({"message": "pong"})


def metrics(_request: HttpRequest) -> HttpResponse:
    """What has been done, in three numbers."""
    try:
        return JsonResponse(executed())
    except (OperationalError, InterfaceError):
        return unavailable()


def ready(request: HttpRequest) -> JsonResponse:
    """503 without PostgreSQL, or before its migrations. Without Redis 200: the queue still works, only the bell is
    silent."""
    database, broker = request.META.get(ASKED) or (database_state(), doorbell.is_there())
    answer = {
        "status": "ok" if database == "up" else "unavailable",
        "database": "down" if database == "down" else "up",
        "broker": "up" if broker else "down",
    }
    if database == "pending":
        answer["migrations"] = "pending"
    return JsonResponse(answer, status=200 if database == "up" else 503)


def database_state() -> str:
    """up, down, or pending: there, and not migrated."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except (DatabaseError, InterfaceError):
        connection.close()
        return "down"
    return "up" if _is_migrated() else "pending"


# Beside an event loop, for which all else would wait ----------------------------------------------------

#: Where `ready` finds the answers of a `Readiness`.
ASKED = "mailqueue.asked"
#: Who has not answered by then is down (seconds).
DEADLINE = 3.0

T = TypeVar("T")


class Question(Generic[T]):
    """Asked in a thread of its own, one at a time: who comes before the answer waits for the same one, and not
    beyond the deadline of who came first."""

    def __init__(self, ask: Callable[[], T], unanswered: T) -> None:
        self._ask, self._unanswered = ask, unanswered
        self._thread = ThreadPoolExecutor(1, "question")
        self._answer: asyncio.Future[T] | None = None
        self._deadline = 0.0

    async def answer(self) -> T:
        if self._answer is None or self._answer.done():
            self._deadline = time.monotonic() + DEADLINE
            self._answer = asyncio.get_running_loop().run_in_executor(self._thread, self._ask)
        answer = self._answer
        await asyncio.wait([answer], timeout=max(0.0, self._deadline - time.monotonic()))
        return answer.result() if answer.done() else self._unanswered

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


class Readiness:
    """What `ready` tells of."""

    def __init__(self) -> None:
        self._database = Question(_database_state_anew, "down")
        self._broker = Question(doorbell.is_there, False)

    async def ask(self) -> tuple[str, bool]:
        return await asyncio.gather(self._database.answer(), self._broker.answer())

    def close(self) -> None:
        self._database.close()
        self._broker.close()


def _database_state_anew() -> str:
    """In a thread that no call begins or ends."""
    close_old_connections()
    return database_state()


_was_migrated = False


def _is_migrated() -> bool:
    """Whether all of this release's migrations are applied. Those of a newer one are none of its business, so that it
    stays ready while the next is rolled out; and what was once applied is not asked for again."""
    global _was_migrated  # noqa: PLW0603 -- once a process
    if not _was_migrated:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT app, name FROM django_migrations")
                _was_migrated = _of_this_release() <= set(cursor.fetchall())
        except DatabaseError:
            connection.close()
    return _was_migrated


@lru_cache
def _of_this_release() -> set[tuple[str, str]]:
    """By the names of their files. Django's loader imports them, which costs a process 2.4 MB and a third of a
    second."""
    return {
        (app.label, file.stem)
        for app in apps.get_app_configs()
        for file in (Path(app.path) / "migrations").glob("[!_]*.py")
    }
