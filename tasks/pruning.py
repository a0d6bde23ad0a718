"""How old rows leave: in bites, each a statement of its own, so that nobody waits for a long one."""

from collections.abc import Iterator
from typing import Any

from django.db.models import QuerySet

#: Rows of one bite.
BITE = 1000


def bites(old: QuerySet[Any], by: str) -> Iterator[list[int]]:
    """The ids of what is old, the oldest by that column first. Who takes a bite deletes it before asking for more."""
    while ids := list(old.order_by(by).values_list("pk", flat=True)[:BITE]):
        yield ids


def delete_rows(rows: QuerySet[Any]) -> int:
    """Without looking for what Django would delete along with them; how many."""
    gone: int = rows._raw_delete(using="default")  # noqa: SLF001 -- the public way reads the rows first
    return gone


def prune(old: QuerySet[Any], by: str) -> int:
    """Deletes what is old, of which nothing else hangs; how many."""
    return sum(delete_rows(old.model.objects.filter(pk__in=ids)) for ids in bites(old, by))
