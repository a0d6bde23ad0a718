"""What an API key may do. A view says it in `scopes = {"GET": "read", …}`; what it leaves out is closed to keys."""

from typing import Any

from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from accounts.keys import ApiKey, Scope


def scope_of(view: Any, method: str) -> Scope | None:
    """What a key needs for this call; None where keys have no business."""
    declared: dict[str, str] = getattr(view, "scopes", {})
    found = declared.get("GET" if method == "HEAD" else method)
    return Scope(found) if found else None


def require_login(request: Request, deed: str) -> None:
    """PermissionDenied for a key: it could give itself by this what it was not given."""
    if isinstance(request.auth, ApiKey):
        raise PermissionDenied(f"An API key cannot {deed}; log in.", "insufficient_scope")


class WithinScopes(BasePermission):
    """Access tokens may do everything, keys what their scopes name."""

    def has_permission(self, request: Request, view: Any) -> bool:
        # OPTIONS tells no more than the schema tells anybody.
        if not isinstance(request.auth, ApiKey) or request.method == "OPTIONS":
            return True
        needed = scope_of(view, request.method or "")
        if needed is None:
            require_login(request, "do this")
        elif needed not in request.auth.scopes:
            raise PermissionDenied(
                f"This takes an API key with the scope {needed.value}.", "insufficient_scope"
            )
        return True
