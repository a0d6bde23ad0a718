"""What the query of a list, and the filter of a deed in bulk, mean."""

from typing import Any

from django.db.models import Q
from rest_framework.pagination import Cursor
from rest_framework.request import Request

from accounts.api.paging import NewestFirst
from tasks.models import MailTaskQuerySet
from tasks.states import Status

#: Rows that one page looks through at most where no index leads to what is asked for.
LOOKED_AT = 20_000


def narrowed(tasks: MailTaskQuerySet, asked: dict[str, Any]) -> MailTaskQuerySet:
    """Those that indexes lead to."""
    tasks = tasks.created_between(asked.get("created_after"), asked.get("created_before"))
    if "tag" in asked:
        tasks = tasks.tagged(asked["tag"])
    if "recipient" in asked:
        tasks = tasks.filter(recipient=asked["recipient"])
    if asked.get("status", Status.SUCCESS) != Status.SUCCESS:
        tasks = tasks.in_status(asked["status"])
    return tasks


def picked(tasks: MailTaskQuerySet, asked: dict[str, Any]) -> MailTaskQuerySet:
    """Of these, those that have to be looked for one by one; the very same if nothing asks for that."""
    if "lane" in asked:
        tasks = tasks.filter(lane=asked["lane"])
    if asked.get("status") == Status.SUCCESS:
        tasks = tasks.in_status(Status.SUCCESS)
    if "q" in asked:
        tasks = tasks.mentioning(asked["q"])
    return tasks


class Stretches(NewestFirst):
    """Pages of a list that no index leads to: each looks through LOOKED_AT rows at most, so that it takes the same
    time whatever is asked for. A page may so be short, or empty, though there is a `next`.
    """

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> list[Any] | None:
        rows = view.looked_through
        cursor = self.decode_cursor(request) if rows is not None else None
        edge = None if rows is None else _edge(rows, cursor)
        is_reverse = cursor is not None and cursor.reverse
        if edge is not None:
            queryset = queryset.filter(Q(id__lte=edge) if is_reverse else Q(id__gte=edge))
        page: list[Any] | None = super().paginate_queryset(queryset, request, view)
        # The library goes on from the last row of a page, and from this position only where there is none.
        goes_on_at = "0" if page else str(edge)
        if edge is not None and is_reverse and not self.has_previous:
            self.has_previous, self.previous_position = True, goes_on_at
        elif edge is not None and not is_reverse and not self.has_next:
            self.has_next, self.next_position = True, goes_on_at
        if cursor is not None and cursor.position and not page:
            # The row that it came from lies the other way, though the library would begin beyond it.
            came_from = int(cursor.position)
            if is_reverse:
                self.next_position = str(came_from + 1)
            else:
                self.previous_position = str(came_from - 1)
        return page


def _edge(rows: MailTaskQuerySet, cursor: Cursor | None) -> int | None:
    """The last row to look at from here on; None if there are not that many."""
    if cursor is not None and cursor.position is not None:
        at = int(cursor.position)
        rows = rows.filter(id__gt=at) if cursor.reverse else rows.filter(id__lt=at)
    in_order = rows.order_by("id" if cursor is not None and cursor.reverse else "-id")
    ids = list(in_order.values_list("id", flat=True)[LOOKED_AT - 1 : LOOKED_AT + 1])
    return ids[0] if len(ids) == 2 else None
