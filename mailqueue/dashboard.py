"""The page at `/`: how the queue is at this moment, for staff who are logged in."""

from typing import Any

from django.contrib.auth.views import redirect_to_login
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import reverse

from accounts.api.problems import problem, unavailable
from mailqueue import metrics
from mailqueue.workers import Worker

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
#: Workers shown; more than these are told of by their number.
SHOWN = 50


def page(request: HttpRequest) -> HttpResponse:
    if not _is_staff(request):
        return redirect_to_login(request.get_full_path(), reverse("admin:login"))
    answer = render(request, "mailqueue/dashboard.html")
    answer["Content-Security-Policy"] = POLICY
    return answer


def figures(request: HttpRequest) -> HttpResponse:
    """What the page asks for every two seconds."""
    if not _is_staff(request):
        refused = problem(401, "Log in to the admin.", "not_authenticated")
        return JsonResponse(refused, status=401, content_type="application/problem+json")
    try:
        answer = JsonResponse({"stats": metrics.stats(), "curves": metrics.curves(), "workers": _workers()})
    except (OperationalError, InterfaceError):
        return unavailable()
    answer["Cache-Control"] = "no-store"
    return answer


def _is_staff(request: HttpRequest) -> bool:
    return request.user.is_active and request.user.is_staff


def _workers() -> list[dict[str, Any]]:
    """The gone first: that is what somebody should look after."""
    found = Worker.objects.delivering().with_state().gone_first()[:SHOWN]
    return [
        {
            "name": worker.name,
            "state": worker.state,
            "doing": worker.doing,
            "in_flight": worker.in_flight,
            "sent": worker.sent,
            "silent_seconds": max(0, round(worker.silence.total_seconds())),
        }
        for worker in found
    ]
