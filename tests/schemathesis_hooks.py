"""What schemathesis has to know of this service; it loads this by SCHEMATHESIS_HOOKS, in a process of its own.

CALL_AS says who calls: `token`, `key`, or nobody. A caller who has closed the account, changed the password or
revoked the key is followed by another, or all further calls would answer 401 and show nothing. And of the calls
that name an object every second one names one that exists and is the caller's: made-up numbers only ever show 404.
"""

import os
import uuid
from collections.abc import Callable
from itertools import count
from typing import Any

import httpx
import schemathesis
from schemathesis.generation import GenerationMode

HOME, CALL_AS = os.environ["CALL_AT"], os.environ["CALL_AS"]
PASSWORD = "correct horse battery"
A_MAIL = {"recipient_email": "jane@sandbox.invalid", "subject": "Hello", "body": "Hello Jane."}
LATER = {"scheduled_at": "2090-01-31T09:30:00Z"}
RELAY = {"smtp_host": "127.0.0.1", "smtp_port": 587, "smtp-username": "", "smtp-password": ""}

#: Why a request may be refused that the schema lets pass: what it asks for hangs on more than its own fields.
BEYOND_SCHEMA = {
    "past": "the time",
    "before_scheduled_at": "another field",
    "after_expires_at": "a row",
    "not_with_others": "another field",
    "empty_filter": "another field",
    "duplicate_header": "another field, and upper or lower case",
    "reserved_header": "a list of names",
    "forbidden_address": "the resolver and SMTP_ALLOWED_NETWORKS",
    "forbidden_port": "SMTP_ALLOWED_PORTS",
    "forbidden_security": "SMTP_ALLOWED_NETWORKS",
    "forbidden_content_type": "a list of types",
    "invalid_address": "more rules than a format has; also beside a name, as in a Reply-To",
    "invalid_url": "hosts and ports, in all their forms",
    "forbidden_scheme": "the resolver and SMTP_ALLOWED_NETWORKS",
    "invalid_base64": "a format, which the schema names and validators pass over",
    "invalid_content_type": "RFC 2045",
    "invalid_file_name": "characters that look like others",
    "too_large": "bytes of UTF-8, or of what base64 stands for",
    "blank": "white space alone is nothing",
    "control_character": "text that is refused in every header",
    "null_characters_not_allowed": "the same, in a query",
    "unstorable": "text that is refused everywhere, in fields that nobody knows too",
    "idempotency_key_reused": "an earlier call",
    "unknown_template": "a row",
    "template_error": "a grammar",
    "invalid_cron": "a grammar",
    "unknown_timezone": "a list of names",
    "invalid_window": "two times, which differ",
}
#: The same, of fields whose code says less.
BEYOND_SCHEMA_IN = {
    ("cursor", "invalid"): "made by the service; nobody else can",
    ("body", "required"): "another field: a template has body, html_body, or both",
    ("template", "required"): "another field: a context is for a template",
    ("payload.frequency", "required"): "another field: frequency or cron",
    ("smtp_host", "invalid"): "a name or an address, in all their forms",
    ("smtp-username", "invalid"): "control characters",
    ("smtp_username", "invalid"): "control characters",
} | dict.fromkeys(
    [(name, "required") for name in ("smtp_host", "smtp_port", "smtp-username", "smtp-password")],
    "other fields, and the relay there is: all of them or none",
)

OF_A_TEMPLATE = [
    f"templates_{deed}" for deed in ("get", "change", "delete", "versions", "rollback", "preview")
]

_calls = count()
_caller: "Caller | None" = None


class Caller:
    """A user, and what they have."""

    def __init__(self) -> None:
        self.http = httpx.Client(base_url=f"{HOME}/api/v1", timeout=60)
        who = {"email": f"{uuid.uuid4().hex}@example.com", "password": PASSWORD}
        self.id = self.post("/register", who | RELAY)["id"]
        self.credential = self.post("/login", who)["token"]
        self.http.headers["Authorization"] = f"Bearer {self.credential}"
        if CALL_AS == "key":
            self.credential = self.key()["key"]

    def post(self, address: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.http.post(address, json=body)
        answer.raise_for_status()
        return dict(answer.json())

    def key(self) -> dict[str, Any]:
        return self.post("/keys", {"name": "fuzz", "scopes": ["send", "read", "manage"]})

    def mail(self, **more: str) -> int:
        return int(self.post("/task/enqueue", A_MAIL | more)["task_id"])

    def suppression(self) -> int:
        return int(self.post("/suppressions", {"address": f"{uuid.uuid4().hex}@example.com"})["id"])

    def cancelled(self) -> int:
        pk = self.mail()
        self.post(f"/task/{pk}/cancel", {})
        return pk

    def template(self) -> str:
        made = {"name": "fuzz", "subject": "Hello, {{ name }}", "body": "Hello."}
        self.http.post("/templates", json=made)  # 409 where it is there still
        return "fuzz"

    def webhook(self) -> int:
        """One of the caller's: a new one only where there is none, for there may be ten."""
        found = self.http.get("/webhooks").raise_for_status().json()["results"]
        active = [each["id"] for each in found if each["state"] == "active"]
        if not active:
            for each in found:
                self.http.delete(f"/webhooks/{each['id']}").raise_for_status()
        return int(active[0] if active else self.post("/webhooks", {"url": "http://127.0.0.1:9/hook"})["id"])

    def delivery(self, webhook: int) -> int:
        return int(self.post(f"/webhooks/{webhook}/test", {})["id"])

    def subscription(self) -> int:
        """The one there is, active again."""
        payload = {"userId": "jane@sandbox.invalid", "frequency": "@monthly", "content_type": "fuzz"}
        return int(self.post("/task/", {"type": "subscribe", "payload": payload})["subscription_id"])

    def own(self, operation: str) -> int | str:
        """The id, or the name, of something that the operation may be done to."""
        made: dict[str, Callable[[], int | str]] = {
            "keys_revoke": lambda: self.key()["id"],
            "get_task": self.mail,
            "cancel_task": self.mail,
            "reschedule_task": lambda: self.mail(**LATER),
            "resolve_task": self.mail,
            "retry_task": self.cancelled,
            "suppressions_remove": self.suppression,
            **dict.fromkeys(OF_A_TEMPLATE, self.template),
        }
        if operation.startswith("webhooks_"):
            return self.webhook()
        if operation.startswith("subscriptions_"):
            return self.subscription()
        return made[operation]() if operation in made else self.id

    def is_ended_by(self, operation: str, case: schemathesis.Case) -> bool:
        if operation == "user_change":
            return isinstance(case.body, dict) and "password" in case.body
        return operation in ("deregister", "user_close") or (operation == "keys_revoke" and CALL_AS == "key")


def caller() -> Caller:
    global _caller  # noqa: PLW0603 -- hooks have no other place
    _caller = _caller or Caller()
    return _caller


def operation_of(case: schemathesis.Case) -> str:
    return str(case.operation.definition.raw["operationId"])


def is_good(case: schemathesis.Case) -> bool:
    """Whether it was made to fit the schema."""
    return case.meta is not None and case.meta.generation.mode == GenerationMode.POSITIVE


if CALL_AS != "nobody":

    @schemathesis.auth(refresh_interval=None)
    class Authorization:
        """Asked before each call."""

        def get(self, _case: schemathesis.Case, _context: schemathesis.AuthContext) -> str:
            return caller().credential

        def set(self, case: schemathesis.Case, data: str, _context: schemathesis.AuthContext) -> None:
            case.headers["Authorization"] = f"Bearer {data}"

    @schemathesis.hook
    def map_case(_context: schemathesis.HookContext, case: schemathesis.Case) -> schemathesis.Case:
        name = next((name for name in ("id", "name", "entry") if name in case.path_parameters), None)
        if name and is_good(case) and next(_calls) % 2 == 0:
            case.path_parameters[name] = caller().own(operation_of(case))
            if "delivery_id" in case.path_parameters:
                case.path_parameters["delivery_id"] = caller().delivery(case.path_parameters["id"])
        return case

    @schemathesis.hook
    def after_call(
        _context: schemathesis.HookContext, case: schemathesis.Case, response: schemathesis.Response
    ) -> None:
        global _caller  # noqa: PLW0603
        if response.status_code < 300 and caller().is_ended_by(operation_of(case), case):
            _caller = None


@schemathesis.check
def good_requests_are_refused_for_good_reasons(
    _context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """Takes the place of positive_data_acceptance where that is told to let a 400 or 422 pass."""
    if response.status_code not in (400, 422) or not is_good(case):
        return
    problem = response.json()
    reasons = {(each["field"], each["code"]) for each in problem.get("errors", [])} or {
        (None, problem["code"])
    }
    strange = {each for each in reasons if each not in BEYOND_SCHEMA_IN and each[1] not in BEYOND_SCHEMA}
    assert not strange, f"This fits the schema, and was refused: {sorted(strange, key=str)}"


@schemathesis.check
def every_error_is_a_problem(
    _context: schemathesis.CheckContext, response: schemathesis.Response, _case: schemathesis.Case
) -> None:
    """Those that are documented are looked at by other checks; this is for the rest, such as 404, 405 and 406."""
    if response.status_code < 400:
        return
    assert response.headers["content-type"] == ["application/problem+json"], response.headers["content-type"]
    if response.request.method != "HEAD":
        problem = response.json()
        assert problem["status"] == response.status_code
        assert {"type", "title", "detail", "code"} <= problem.keys()
    assert "allow" in response.headers or response.status_code != 405
