"""OPTIONS where a view answers in something else than JSON."""

from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.views import APIView


class OptionsInJSON(APIView):
    """The view's own renderer may be for its pages or its streams alone: what OPTIONS says was a 500 there."""

    def perform_content_negotiation(self, request: Request, force: bool = False) -> tuple[BaseRenderer, str]:
        if request.method == "OPTIONS":
            return JSONRenderer(), JSONRenderer.media_type
        return super().perform_content_negotiation(request, force)
