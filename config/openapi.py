"""The OpenAPI document, made anew for each who asks, and its page."""

from threading import Lock
from typing import Any

from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.options import OptionsInJSON

#: The library resolves what it extends when it is first asked, and breaks where two ask at once: that was a 500.
_one_at_a_time = Lock()


class SchemaView(OptionsInJSON, SpectacularAPIView):
    """What the API is, for programs."""

    def _get_schema_response(self, request: Request) -> Response:
        with _one_at_a_time:
            answer: Any = super()._get_schema_response(request)  # type: ignore[no-untyped-call]
        return answer  # type: ignore[no-any-return]


class DocsView(OptionsInJSON, SpectacularSwaggerView):
    """What the API is, for people."""
