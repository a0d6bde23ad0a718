"""Tells drf-spectacular what holds for all calls: tokens, keys and scopes, limits, and what each may be refused with;
loaded when the app is ready.
"""

from http import HTTPStatus
from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import PolymorphicProxySerializer

from accounts.api.authentication import CHALLENGE, BearerAuthentication
from accounts.api.problems import CONTENT_TYPE, Problem, problem
from accounts.api.scopes import WithinScopes, scope_of

RETRY_AFTER = {"schema": {"type": "integer", "minimum": 1}, "description": "seconds until it may pass"}
RATE_LIMIT = {
    "RateLimit-Policy": {
        "schema": {"type": "string"},
        "example": '"register";q=100;w=3600',
        "description": "limits that hold for this call: so many (q) within so many seconds (w)",
    },
    "RateLimit": {
        "schema": {"type": "string"},
        "example": '"register";r=99;t=1260',
        "description": "what is left of them (r), and in how many seconds (t) all is there again",
    },
}
#: Beside those of the limits.
HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}, "example": CHALLENGE}},
    409: {"Retry-After": RETRY_AFTER | {"description": "with `idempotency_key_in_use`: seconds to wait"}},
    429: {"Retry-After": RETRY_AFTER},
    503: {"Retry-After": RETRY_AFTER},
}
_MISSING = "This field is required."
#: One problem for each status, to see the shape; docs/api.md has all codes.
EXAMPLES = {
    400: problem(
        400,
        f"recipient_email: {_MISSING}",
        "invalid",
        [{"field": "recipient_email", "code": "required", "detail": _MISSING}],
    ),
    401: problem(401, "The access token is not valid, or has expired.", "token_not_valid"),
    403: problem(403, "This takes an API key with the scope manage.", "insufficient_scope"),
    404: problem(404, "Not found.", "not_found"),
    409: problem(409, "This mail is already sent.", "not_cancellable"),
    413: problem(413, "The body is larger than 15728640 bytes.", "too_large"),
    415: problem(
        415,
        'Unsupported media type "text/plain" in request. Send it with Content-Type: application/json.',
        "unsupported_media_type",
    ),
    422: problem(
        422,
        "This Idempotency-Key was used for another call; give each call a key of its own.",
        "idempotency_key_reused",
    ),
    429: problem(429, "Too many of these; try again in 212 s.", "too_many_requests"),
    503: problem(503, "The database does not answer just now; try again in a moment.", "unavailable"),
}


class BearerScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = BearerAuthentication
    name = ["bearer", "apiKey"]

    def get_security_definition(self, auto_schema: Any) -> list[dict[str, str]]:
        return [
            {
                "type": "http",
                "scheme": "bearer",
                "bearerFormat": "JWT",
                "description": "An access token of `POST /api/v1/login`; it may do everything.",
            },
            {
                "type": "http",
                "scheme": "bearer",
                "bearerFormat": "mq_…",
                "description": "An API key of `POST /api/v1/keys`; it may do what its scopes name: "
                "`send`, `read`, `manage`.",
            },
        ]

    def get_security_requirement(self, auto_schema: Any) -> list[dict[str, list[Any]]]:
        needed = scope_of(auto_schema.view, auto_schema.method)
        either: list[dict[str, list[Any]]] = [{"bearer": []}]
        return [*either, {"apiKey": [needed.value]}] if needed else either


class ScopedSchema(AutoSchema):
    """Says at each operation which scope a key needs, what it is refused with, and in which headers to look."""

    def get_description(self) -> str:  # type: ignore[override]  # drf-spectacular takes no path here
        said = str(super().get_description())
        if not self._asks_for_scopes():
            return said
        needed = scope_of(self.view, self.method)
        rule = f"API keys need the scope `{needed}`." if needed else "Not for API keys."
        return f"{said}\n\n{rule}"

    def get_operation(self, *args: Any, **kwargs: Any) -> Any:
        operation = super().get_operation(*args, **kwargs)
        if operation is None:
            return None
        responses: dict[str, Any] = operation["responses"]
        for status in self._refusals(has_body="requestBody" in operation):
            responses.setdefault(str(status), {})
        operation["responses"] = {
            status: self._refused(int(status)) if status >= "400" else self._done(int(status), response)
            for status, response in sorted(responses.items())
        }
        return operation

    def _get_request_for_media_type(self, serializer: Any, direction: Any = "request") -> Any:
        """Of a body that may have one of several shapes drf-spectacular takes none to be wanted."""
        schema, is_required = super()._get_request_for_media_type(serializer, direction)  # type: ignore[no-untyped-call]
        return schema, is_required or isinstance(serializer, PolymorphicProxySerializer)

    def _refusals(self, *, has_body: bool) -> set[int]:
        """What may happen to any call of this kind, without the view's saying so."""
        found = {503}
        if has_body:
            found |= {400, 413, 415}
        if self._asks_for_scopes():
            found |= {401, 403}
        if "{" in self.path:
            found.add(404)
        if self.view.throttle_classes:
            found.add(429)
        return found

    def _done(self, status: int, response: dict[str, Any]) -> dict[str, Any]:
        limits = RATE_LIMIT if self.view.throttle_classes else {}
        headers = response.get("headers", {}) | limits
        said = response.get("description") or HTTPStatus(status).phrase
        return response | {"description": said} | ({"headers": headers} if headers else {})

    def _refused(self, status: int) -> dict[str, Any]:
        schema = self.resolve_serializer(Problem, "response").ref
        headers = HEADERS.get(status, {}) | (RATE_LIMIT if status == 429 else {})
        return {
            "description": HTTPStatus(status).phrase,
            "content": {CONTENT_TYPE: {"schema": schema, "example": EXAMPLES[status]}},
        } | ({"headers": headers} if headers else {})

    def _asks_for_scopes(self) -> bool:
        return any(isinstance(each, WithinScopes) for each in self.view.get_permissions())
