"""Every address of the API with the view behind it, for tests that leave none out."""

import re
from collections.abc import Iterator
from typing import Any

from django.urls import URLPattern, URLResolver, get_resolver
from rest_framework.views import APIView

METHODS = ("get", "post", "put", "patch", "delete")


def routes(patterns: list[Any] | None = None, prefix: str = "") -> Iterator[tuple[str, type[APIView]]]:
    """`/api/v1/task/1` and its view, with 1 for every number and name in the address."""
    for each in patterns if patterns is not None else get_resolver().url_patterns:
        address = prefix + re.sub(r"<\w+:\w+>", "1", str(each.pattern))
        if isinstance(each, URLResolver):
            yield from routes(each.url_patterns, address)
        elif isinstance(each, URLPattern):
            view = getattr(each.callback, "view_class", None)
            if view is not None and issubclass(view, APIView):
                yield f"/{address}", view


def calls() -> list[tuple[str, str, type[APIView]]]:
    """Every method of every address: ("POST", "/api/v1/task/enqueue", EnqueueView)."""
    return [
        (name.upper(), address, view) for address, view in routes() for name in METHODS if hasattr(view, name)
    ]
