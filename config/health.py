"""Answers for probes. None of them asks for a token, none of them waits long."""

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
    """503 without PostgreSQL. Without Redis 200: the queue still works, only the bell is silent."""
    database, broker = _database_answers(), doorbell.is_there()
    return JsonResponse(
        {
            "status": "ok" if database else "unavailable",
            "database": "up" if database else "down",
            "broker": "up" if broker else "down",
        },
        status=200 if database else 503,
    )


def _database_answers() -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        connection.close()
        return False
    return True
