"""The OpenAPI document: well formed, with an example for whatever is sent and answered, and each example fits."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.validation import validate_schema
from rest_framework.test import APIClient

#: As the service answers it, in JSON; nobody is asked who they are for it.
SCHEMA: dict[str, Any] = json.loads(json.dumps(SchemaGenerator().get_schema(public=True), default=str))
OPERATIONS = {
    operation["operationId"]: operation
    for operations in SCHEMA["paths"].values()
    for operation in operations.values()
}


def contents(operation: dict[str, Any]) -> list[dict[str, Any]]:
    """All that is sent and answered, as JSON or as a problem."""
    bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
    return [content for body in bodies for content in body.get("content", {}).values()]


def test_it_is_openapi_3_1():
    assert SCHEMA["openapi"].startswith("3.1.")
    validate_schema(SCHEMA)


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_sent_and_answered_has_examples_that_fit_the_schema(name):
    for content in contents(OPERATIONS[name]):
        examples = [each["value"] for each in content.get("examples", {}).values()]
        examples += [content["example"]] if "example" in content else []
        assert examples, content
        whole = content["schema"] | {"components": SCHEMA["components"]}
        for each in examples:
            jsonschema.Draft202012Validator(whole).validate(each)


def test_a_body_is_wanted_where_something_in_it_is():
    optional = {
        name
        for name, each in OPERATIONS.items()
        if "requestBody" in each and not each["requestBody"].get("required")
    }
    assert optional == {"user_change", "templates_preview", "webhooks_change", "webhooks_rotate"} | {
        "subscriptions_change"
    }


def test_a_key_may_do_what_its_scopes_say_and_some_calls_are_open():
    needed = {name: operation["security"] for name, operation in OPERATIONS.items()}
    assert needed["enqueue"] == [{"bearer": []}, {"apiKey": ["send"]}]
    assert needed["list_queue"] == [{"bearer": []}, {"apiKey": ["read"]}]
    assert needed["bulk"] == [{"bearer": []}, {"apiKey": ["manage"]}]
    assert {name for name, each in needed.items() if each == [{}]} == {
        "register",
        "signup",
        "login",
        "token_refresh",
    }
    assert {each["scheme"] for each in SCHEMA["components"]["securitySchemes"].values()} == {"bearer"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_call_says_what_it_may_be_refused_with(name):
    operation = OPERATIONS[name]
    documented = operation["responses"].keys()
    assert "503" in documented
    if operation["security"] != [{}]:
        assert {"401", "403"} <= documented
    if "requestBody" in operation:
        assert {"400", "413", "415"} <= documented
    if any(each["in"] == "path" for each in operation.get("parameters", [])):
        assert "404" in documented
    for status in documented - {"200", "201", "202", "204", "207"}:
        assert list(operation["responses"][status]["content"]) == ["application/problem+json"]
    assert "Retry-After" in operation["responses"]["503"]["headers"]


@pytest.mark.parametrize("name", ["enqueue", "enqueue_batch", "typed_task"])
def test_handing_over_mail_names_its_headers(name):
    operation = OPERATIONS[name]
    sent = {each["name"] for each in operation["parameters"] if each["in"] == "header"}
    assert sent == {"Idempotency-Key"}
    accepted = operation["responses"]["207" if name == "enqueue_batch" else "202"]["headers"]
    assert {"Idempotency-Replayed", "RateLimit", "RateLimit-Policy"} <= accepted.keys()
    assert {"RateLimit", "RateLimit-Policy", "Retry-After"} <= operation["responses"]["429"]["headers"].keys()
    assert "Retry-After" in operation["responses"]["409"]["headers"]


def test_two_who_ask_for_it_at_once_wait_for_each_other(monkeypatch):
    # drf-spectacular resolves its extensions at the first call, and a second one in between was a 500.
    inside: list[None] = []
    most: list[int] = []

    def slow(*_args: Any, **_kwargs: Any) -> dict[str, Any]:
        inside.append(None)
        most.append(len(inside))
        threading.Event().wait(0.05)
        inside.pop()
        return {}

    monkeypatch.setattr(SchemaGenerator, "get_schema", slow)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: APIClient().get("/api/schema?format=json").status_code, range(4)))
    assert answers == [200] * 4
    assert max(most) == 1
