"""Tells drf-spectacular about our bearer tokens, keys and scopes; loaded when the app is ready."""

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.openapi import AutoSchema

from accounts.api.authentication import BearerAuthentication
from accounts.api.problems import CONTENT_TYPE, Problem
from accounts.api.scopes import WithinScopes, scope_of

RATE_LIMIT = {
    "Retry-After": {"schema": {"type": "integer"}, "description": "seconds until it may pass"},
    "RateLimit-Policy": {"schema": {"type": "string"}, "example": '"login";q=5;w=300'},
    "RateLimit": {"schema": {"type": "string"}, "example": '"login";r=0;t=212'},
}


class BearerScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = BearerAuthentication
    name = "bearer"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {
            "type": "http",
            "scheme": "bearer",
            "description": "An access token of `POST /api/v1/login`, or an API key of `POST /api/v1/keys`.",
        }


class ScopedSchema(AutoSchema):
    """Says at each operation which scope a key needs, and that it is refused without."""

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
        if self._asks_for_scopes():
            responses["403"] = self._refused("Forbidden")
        if "429" in responses or self.view.throttle_classes:
            responses["429"] = self._refused("Too Many Requests") | {"headers": RATE_LIMIT}
        return operation

    def _refused(self, why: str) -> dict[str, Any]:
        problem = self.resolve_serializer(Problem, "response").ref
        return {"description": why, "content": {CONTENT_TYPE: {"schema": problem}}}

    def _asks_for_scopes(self) -> bool:
        return any(isinstance(each, WithinScopes) for each in self.view.get_permissions())
