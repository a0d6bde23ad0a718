"""Lists, newest first, page by page; a page never counts and never skips rows."""

from typing import Any

from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.pagination import Cursor, CursorPagination
from rest_framework.request import Request

LARGEST_PAGE = 200


class NewestFirst(CursorPagination):
    """`{next, previous, results}`; `?limit=` defaults to 50 and ends at 200."""

    ordering = "-id"
    page_size = 50
    page_size_query_param = "limit"
    max_page_size = LARGEST_PAGE
    page_size_query_description = "Results on a page, 1 to 200 (more is taken as 200)."
    cursor_query_description = "Where the page begins: what stands in `next` and `previous`."

    def get_page_size(self, request: Request) -> int:
        asked = request.query_params.get("limit")
        if asked is None:
            return self.page_size
        # isdecimal alone takes other scripts' digits; the length keeps int() from a megabyte of them.
        if not (asked.isascii() and asked.isdecimal() and asked.strip("0")):
            raise ValidationError({"limit": ["Must be a whole number from 1 to 200."]}, "invalid")
        return LARGEST_PAGE if len(asked) > 9 else min(int(asked), LARGEST_PAGE)

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        parameters: list[dict[str, Any]] = super().get_schema_operation_parameters(view)
        for each in parameters:
            if each["name"] == self.page_size_query_param:
                each["schema"] |= {"minimum": 1, "default": self.page_size}
        return parameters

    def decode_cursor(self, request: Request) -> Cursor | None:
        """The library lets any text through as the position, and the database would choke on it."""
        try:
            cursor: Any = super().decode_cursor(request)
        except NotFound as error:
            raise _bad_cursor() from error
        position = cursor.position if cursor else None
        if position is not None and not (position.isascii() and position.isdecimal() and len(position) < 19):
            raise _bad_cursor()
        return cursor  # type: ignore[no-any-return]


def _bad_cursor() -> ValidationError:
    return ValidationError({"cursor": ["Not a cursor of this list; follow `next`."]}, "invalid")
