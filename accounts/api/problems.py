"""Every error of the API as RFC 9457 problem+json: type, title, status, detail, code, and the bad fields.

`type` is always about:blank (RFC 9457, section 4.2.1: the title is the status phrase);
what a program should branch on is `code`.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from http import HTTPStatus
from typing import Any

from django.core.exceptions import SuspiciousOperation
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.views import defaults
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.utils import OpenApiResponse
from drf_standardized_errors.formatter import flatten_errors
from drf_standardized_errors.handler import ExceptionHandler
from drf_standardized_errors.types import ExceptionHandlerContext
from rest_framework import exceptions, serializers
from rest_framework.renderers import JSONRenderer
from rest_framework.response import Response
from rest_framework.settings import api_settings

CONTENT_TYPE = "application/problem+json"
#: For people in browsers, who keep Django's own error pages; everything else is for programs.
PAGES = ("/admin/", "/sandbox/", "/static/")


class BadRequest(exceptions.APIException):
    """Django does not read it: thousands of query parameters, and the like."""

    status_code = 400
    default_code = "bad_request"
    default_detail = "This request cannot be read."


class Conflict(exceptions.APIException):
    """The state of things does not allow it."""

    status_code = 409
    default_code = "conflict"


class ServiceUnavailable(exceptions.APIException):
    """The database does not answer. `wait` becomes Retry-After, in seconds."""

    status_code = 503
    default_code = "unavailable"
    default_detail = "The database does not answer just now; try again in a moment."
    wait = 5


class BadField(serializers.Serializer[Any]):
    """One complaint about the request; `field` is null when it concerns the whole."""

    field = serializers.CharField(allow_null=True)
    code = serializers.CharField()
    detail = serializers.CharField()


class Problem(serializers.Serializer[Any]):
    """The shape of every error (RFC 9457). Branch on `code`."""

    type = serializers.CharField()
    title = serializers.CharField()
    status = serializers.IntegerField()
    detail = serializers.CharField()
    code = serializers.CharField()
    errors = BadField(many=True, required=False)  # type: ignore[assignment]


def problem(status: int, detail: str, code: str, errors: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    return body | {"errors": list(errors)} if errors else body


def describe(error: exceptions.APIException) -> dict[str, Any]:
    """The problem that an API exception is; for single answers and for the parts of a batch."""
    found = flatten_errors(error.detail)
    if isinstance(error, exceptions.UnsupportedMediaType):
        return problem(415, f"{found[0].detail} Send it with Content-Type: application/json.", found[0].code)
    if not isinstance(error, exceptions.ValidationError):
        return problem(error.status_code, found[0].detail, found[0].code)
    errors = [{"field": _field(each.attr), "code": each.code, "detail": each.detail} for each in found]
    if len(errors) == 1:
        only = errors[0]
        detail = f"{only['field']}: {only['detail']}" if only["field"] else str(only["detail"])
    else:
        names = dict.fromkeys(str(each["field"] or "request") for each in errors)
        detail = f"Not valid: {', '.join(names)}."
    return problem(error.status_code, detail, "invalid", errors)


def _field(name: str | None) -> str | None:
    whole = api_settings.NON_FIELD_ERRORS_KEY
    return None if name is None or name == whole else name.removesuffix(f".{whole}")


class ProblemHandler(ExceptionHandler):
    """What goes wrong inside a view. The unforeseen is logged with its traceback, and answered without."""

    def convert_known_exceptions(self, exc: Exception) -> Exception:
        if isinstance(exc, OperationalError | InterfaceError):
            return ServiceUnavailable()
        if isinstance(exc, SuspiciousOperation):
            return BadRequest()
        return super().convert_known_exceptions(exc)

    def should_not_handle(self, exc: Exception) -> bool:
        # Django's debug page would answer with a traceback and the request's body in it.
        return False

    def convert_unhandled_exceptions(self, exc: Exception) -> exceptions.APIException:
        if isinstance(exc, exceptions.APIException):
            return exc
        return exceptions.APIException("Something went wrong on our side; it is in the log.", "server_error")

    def format_exception(self, exc: exceptions.APIException) -> dict[str, Any]:
        return describe(exc)

    def get_response(self, exc: exceptions.APIException, data: dict[str, Any]) -> Response:
        headers = self.get_headers(exc)
        # Whatever the view answers in: the schema is YAML, its page HTML.
        request: Any = self.context["request"]
        request.accepted_renderer, request.accepted_media_type = JSONRenderer(), JSONRenderer.media_type
        return Response(data, status=exc.status_code, headers=headers, content_type=CONTENT_TYPE)


def problem_handler(exc: Exception, context: ExceptionHandlerContext) -> Response | None:
    """REST_FRAMEWORK["EXCEPTION_HANDLER"]."""
    return ProblemHandler(exc, context).run()


def _answer(status: int, detail: str, code: str) -> JsonResponse:
    return JsonResponse(problem(status, detail, code), status=status, content_type=CONTENT_TYPE)


def unavailable() -> HttpResponse:
    """For a view that is not of the API, when the database does not answer."""
    answer = _answer(503, str(ServiceUnavailable.default_detail), ServiceUnavailable.default_code)
    answer["Retry-After"] = str(ServiceUnavailable.wait)
    return answer


@csrf_exempt
def unknown_route(_request: HttpRequest) -> HttpResponse:
    """The last route: a 404 for programs, also where DEBUG would show a page of routes."""
    return _answer(404, "There is nothing at this address.", "not_found")


def reads_only(view: Callable[[HttpRequest], HttpResponseBase]) -> Callable[[HttpRequest], HttpResponseBase]:
    """For what is not of the API: a 405 for all but GET and HEAD, rather than CSRF's page."""

    @csrf_exempt
    @wraps(view)
    def guarded(request: HttpRequest) -> HttpResponseBase:
        if request.method in ("GET", "HEAD"):
            return view(request)
        refused = _answer(405, f'Method "{request.method}" not allowed.', "method_not_allowed")
        refused["Allow"] = "GET, HEAD"
        return refused

    return guarded


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponseBase:
    """handler400: what does not come as far as a view, such as a strange `Host`."""
    if _is_page(request):
        return defaults.bad_request(request, exception)
    return _answer(400, str(BadRequest.default_detail), BadRequest.default_code)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponseBase:
    """handler404."""
    return defaults.page_not_found(request, exception) if _is_page(request) else unknown_route(request)


def server_error(request: HttpRequest) -> HttpResponseBase:
    """handler500."""
    if _is_page(request):
        return defaults.server_error(request)
    return _answer(500, "Something went wrong on our side; it is in the log.", "server_error")


def _is_page(request: HttpRequest) -> bool:
    return request.path.startswith(PAGES)


def documented(*statuses: int) -> dict[tuple[int, str], OpenApiResponse]:
    """These problems as responses of an `extend_schema`."""
    return {
        (status, CONTENT_TYPE): OpenApiResponse(Problem, description=HTTPStatus(status).phrase)
        for status in statuses
    }
