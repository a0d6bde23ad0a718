"""Errors as problem+json, bodies as the parser takes them, pages; none of it needs the database."""

import base64
import io
import json

import pytest
from django.core.exceptions import TooManyFieldsSent
from django.db import OperationalError
from django.http import Http404
from rest_framework import serializers
from rest_framework.exceptions import Throttled
from rest_framework.response import Response
from rest_framework.test import APIClient, APIRequestFactory
from rest_framework.views import APIView

from accounts.api.problems import Conflict


class Inner(serializers.Serializer):
    size = serializers.IntegerField()


class Shape(serializers.Serializer):
    name = serializers.CharField()
    parts = Inner(many=True, required=False)

    def validate(self, attrs):
        if attrs["name"] == "bad":
            raise serializers.ValidationError("These do not fit together.", "misfit")
        return attrs


def call(body: bytes | str = b"{}", *, content_type="application/json", raising=None, **headers):
    """POSTs to a view that validates Shape, or raises."""

    class View(APIView):
        permission_classes = []
        authentication_classes = []

        def post(self, request):
            if raising:
                raise raising
            shape = Shape(data=request.data)
            shape.is_valid(raise_exception=True)
            return Response(shape.data)

    request = APIRequestFactory().generic("POST", "/api/v1/x", body, content_type, **headers)
    return View.as_view()(request).render()


def problem(response, status):
    """The problem in an answer that must be one."""
    assert response.status_code == status
    assert response["Content-Type"] == "application/problem+json"
    body = json.loads(response.content)
    assert body["status"] == status
    assert body["type"] == "about:blank"
    assert all(isinstance(body[key], str) and body[key] for key in ("title", "detail", "code"))
    return body


def test_a_good_body_passes():
    assert call('{"name": "é 😀 \\\\u0000"}').status_code == 200


def test_bad_fields_are_named():
    body = problem(call('{"parts": [{"size": 1}, {"size": "x"}]}'), 400)
    assert body["code"] == "invalid"
    assert [(error["field"], error["code"]) for error in body["errors"]] == [
        ("name", "required"),
        ("parts.1.size", "invalid"),
    ]
    assert body["detail"] == "Not valid: name, parts.1.size."


def test_a_single_bad_field_is_told_in_the_detail():
    assert problem(call("{}"), 400)["detail"] == "name: This field is required."


def test_a_complaint_about_the_whole_has_no_field():
    body = problem(call('{"name": "bad"}'), 400)
    assert body["errors"] == [{"field": None, "code": "misfit", "detail": "These do not fit together."}]
    assert body["detail"] == "These do not fit together."


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "not_json"),
        (b"nonsense", "not_json"),
        (b'{"name": NaN}', "not_json"),
        (b'{"name": Infinity}', "not_json"),
        (b'{"name": -Infinity}', "not_json"),
        (b'{"name": 1e999}', "not_json"),
        (b'{"name": ' + b"9" * 5000 + b"}", "not_json"),
        (b'{"name": "\xff"}', "not_utf8"),
        (b'{"name": "a\x00b"}', "not_json"),
        (b'{"a": 1}{"a": 1}', "not_json"),
        (b"[]", "not_an_object"),
        (b"5", "not_an_object"),
        (b"null", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"[" * 100_000, "too_deep"),
        (b'{"a":' * 100_000, "too_deep"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body, code):
    assert problem(call(body), 400)["code"] == code


@pytest.mark.parametrize(
    "value",
    [
        r'"a\u0000b"',
        r'"\ud800"',
        r'"\udfff tail"',
        r'["deep", {"in": "\u0000"}]',
        r'{"\ud800": 1}',
        "[" * 40 + "]" * 40,
    ],
)
def test_what_could_not_be_stored_is_refused_by_field(value):
    (error,) = problem(call(f'{{"name": "ok", "extra": {value}}}'), 400)["errors"]
    assert (error["field"], error["code"]) == ("extra", "unstorable")


def test_a_bad_name_of_a_field_is_refused_and_shown_escaped():
    (error,) = problem(call(r'{"\ud800\u0000": 1}'), 400)["errors"]
    assert error["field"] == r"\ud800\u0000"


def test_paired_surrogates_are_a_character():
    assert json.loads(call(r'{"name": "\ud83d\ude00"}').content) == {"name": "😀"}


def test_a_body_above_the_limit_is_refused(settings):
    settings.MAX_REQUEST_BYTES = 100
    assert call(b'{"name": "%s"}' % (b"x" * 88)).status_code == 200
    assert problem(call(b'{"name": "%s"}' % (b"x" * 89)), 413)["code"] == "too_large"


def test_a_declared_size_above_the_limit_is_refused_unread(settings):
    class Unreadable(io.BytesIO):
        def read(self, *_args):
            raise AssertionError("was read")

    response = call(b"{}", CONTENT_LENGTH=settings.MAX_REQUEST_BYTES + 1, **{"wsgi.input": Unreadable()})
    problem(response, 413)


def test_another_content_type_is_refused():
    problem(call(b"name=x", content_type="application/x-www-form-urlencoded"), 415)


def test_an_answer_nobody_can_make_is_refused():
    problem(call(b'{"name": "x"}', HTTP_ACCEPT="text/html"), 406)


def test_a_conflict_says_what_and_carries_its_code():
    body = problem(call(raising=Conflict("It is being sent just now.", code="in_flight")), 409)
    assert (body["title"], body["detail"], body["code"]) == (
        "Conflict",
        "It is being sent just now.",
        "in_flight",
    )


def test_a_limit_says_when_to_come_back():
    response = call(raising=Throttled(wait=7))
    problem(response, 429)
    assert response["Retry-After"] == "7"


def test_something_missing_is_a_404():
    assert problem(call(raising=Http404("SELECT secret")), 404)["code"] == "not_found"


def test_a_database_that_is_away_is_a_503_with_a_time():
    response = call(raising=OperationalError("connection to server at 10.0.0.5 failed"))
    assert "10.0.0.5" not in json.dumps(problem(response, 503))
    assert int(response["Retry-After"]) > 0


@pytest.mark.parametrize("debug", [True, False])
def test_an_unforeseen_error_tells_nothing_and_is_logged(settings, caplog, debug):
    settings.DEBUG = debug
    body = problem(call(raising=RuntimeError("the secret is 42")), 500)
    assert "42" not in json.dumps(body)
    assert "the secret is 42" in caplog.text


@pytest.mark.parametrize("debug", [True, False])
@pytest.mark.parametrize("method", ["get", "post", "put", "delete"])
@pytest.mark.parametrize(
    "path",
    [
        "/api",
        "/api/nothing",
        "/api/v1/register/",
        "/api/v1/user/abc",
        "/api/v1/user/%00",
        "/healthz/nothing",
        "/nothing/here",
        "//api/v1/login",
    ],
)
def test_an_unknown_route_for_programs_is_a_problem(settings, debug, method, path):
    settings.DEBUG = debug
    problem(getattr(APIClient(enforce_csrf_checks=True), method)(path), 404)


@pytest.mark.parametrize("path", ["/sandbox/nothing", "/static/nothing.js"])
def test_where_pages_are_a_missing_one_stays_a_page(path):
    response = APIClient().get(path)
    assert response.status_code == 404
    assert response["Content-Type"].startswith("text/html")


@pytest.mark.parametrize("path", ["/", "/healthz/live", "/healthz/ready", "/healthz/ping", "/health/ping"])
@pytest.mark.parametrize("method", ["POST", "PUT", "OPTIONS", "TRACE"])
def test_outside_of_the_api_too_a_wrong_method_names_the_right_ones(method, path):
    response = APIClient(enforce_csrf_checks=True).generic(method, path)
    assert problem(response, 405)["code"] == "method_not_allowed"
    assert response["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/api/schema", "/api/docs"])
def test_the_schema_and_its_page_answer_problems_as_json(path):
    assert problem(APIClient().post(path), 405)["code"] == "method_not_allowed"
    assert problem(APIClient().get(path, HTTP_ACCEPT="image/png"), 406)["code"] == "not_acceptable"


def test_a_query_of_thousands_of_parameters_is_a_bad_request():
    wanted = {"code": "bad_request", "status": 400}
    body = problem(call(raising=TooManyFieldsSent("1,001 of them")), 400)
    assert body | wanted == body


@pytest.mark.parametrize("path", ["/api/v1/login", "/nothing"])
def test_a_strange_host_is_a_problem(settings, path):
    settings.DEBUG, settings.ALLOWED_HOSTS = False, ["mail.example.com"]
    assert problem(APIClient().get(path, HTTP_HOST="evil.example"), 400)["code"] == "bad_request"


def test_a_wrong_method_is_a_problem_that_names_the_right_ones():
    response = APIClient().delete("/api/v1/login")
    problem(response, 405)
    assert "POST" in response["Allow"]


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer a b",
        "Bearer x.y.z",
        "Bearer \xff",
        "Basic Zm9vOmJhcg==",
        "Bearer " + "x" * 9000,
    ],
)
def test_no_usable_token_is_a_401_that_names_the_scheme(header):
    response = APIClient().get("/api/v1/user/1", HTTP_AUTHORIZATION=header)
    problem(response, 401)
    assert response["WWW-Authenticate"].startswith("Bearer")


def test_bearer_is_the_scheme_of_the_schema():
    response = APIClient().get("/api/schema", HTTP_ACCEPT="application/json")
    schema = json.loads(response.content)
    assert schema["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    register = schema["paths"]["/api/v1/register"]["post"]
    assert "security" not in register or {} in register["security"]
    properties = schema["components"]["schemas"]["RegisterRequest"]["properties"]
    assert {"smtp-username", "smtp-password"} <= properties.keys()
    assert "application/problem+json" in register["responses"]["409"]["content"]


@pytest.mark.parametrize("limit", ["0", "000", "-1", "x", "1.5", "", "٣"])
def test_a_nonsense_limit_names_the_field(limit):
    with pytest.raises(serializers.ValidationError) as refused:
        _pages(limit=limit)
    assert "limit" in refused.value.detail


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "é",
        base64.b64encode(b"p=abc").decode(),
        base64.b64encode(b"p=" + b"9" * 40).decode(),
        base64.b64encode(b"p=\x00").decode(),
    ],
)
def test_a_nonsense_cursor_names_the_field(cursor):
    with pytest.raises(serializers.ValidationError) as refused:
        _pages(cursor=cursor)
    assert "cursor" in refused.value.detail


def test_a_page_holds_50_unless_asked_and_200_at_most():
    assert [_pages(), _pages(limit="7"), _pages(limit="500"), _pages(limit="9" * 50)] == [50, 7, 200, 200]


def _pages(**query: str) -> int:
    from rest_framework.request import Request

    from accounts.api.paging import NewestFirst

    request = Request(APIRequestFactory().get("/", query))
    NewestFirst().decode_cursor(request)
    return NewestFirst().get_page_size(request)
