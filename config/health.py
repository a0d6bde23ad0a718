"""Answers for probes. None of them asks for a token, none of them waits long."""

from functools import lru_cache
from pathlib import Path

from django.apps import apps
from django.conf import settings
from django.db import DatabaseError, InterfaceError, OperationalError, connection
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


def ready(_request: HttpRequest) -> JsonResponse:
    """503 without PostgreSQL, or before its migrations. Without Redis 200: the queue still works, only the bell is
    silent."""
    database, broker = _database_answers(), doorbell.is_there()
    answer = {
        "status": "ok",
        "database": "up" if database else "down",
        "broker": "up" if broker else "down",
    }
    if database and not _is_migrated():
        answer |= {"status": "unavailable", "migrations": "pending"}
    elif not database:
        answer["status"] = "unavailable"
    return JsonResponse(answer, status=200 if answer["status"] == "ok" else 503)


def _database_answers() -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        connection.close()
        return False
    return True


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
