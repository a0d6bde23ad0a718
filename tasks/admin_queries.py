"""What the admin's list asks of the ledger, in ways that stay fast at millions of rows."""

import re
from datetime import datetime, timedelta
from typing import Any, Self

from django.core.paginator import Paginator
from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import cached_property
from unfold.views import ChangeList

from tasks import message
from tasks.models import MailTask, MailTaskQuerySet

_LARGEST_ID = 2**63 - 1
#: The id is made a moment after `created_at`; clocks may be set in between.
_AROUND = timedelta(seconds=5)


class ListedTasks(MailTaskQuerySet):
    def found_by(self, term: str) -> Self:
        """An id, a Message-ID, or a recipient or how it begins, letter by letter: what an index can answer."""
        term = term.strip().replace("\0", "")
        if re.fullmatch(r"[0-9]{1,19}", term):
            return self.filter(pk=min(int(term), _LARGEST_ID))
        made_at = message.made_at(f"<{term.strip('<>')}>")
        if made_at:  # task_created leads to its moment, so Message-IDs need no index of their own
            around = (made_at - _AROUND, made_at + _AROUND)
            return self.filter(created_at__range=around, message_id=f"<{term.strip('<>')}>")
        return self.filter(recipient__startswith=term.strip("<>"))

    def datetimes(self, field_name: str, kind: str, *_: Any, **__: Any) -> Any:
        """The years, months or days that have mail, for the date hierarchy.

        Django's own is a DISTINCT over all rows; this goes from one to the next along task_created.
        """
        found: list[datetime] = []
        later = self.order_by(field_name).values_list(field_name, flat=True)
        while first := later.first():
            found.append(_beginning(timezone.localtime(first), kind))
            later = later.filter(**{f"{field_name}__gte": _following(found[-1], kind)})
        return found


def _beginning(at: datetime, kind: str) -> datetime:
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    return {"year": midnight.replace(month=1, day=1), "month": midnight.replace(day=1), "day": midnight}[kind]


def _following(beginning: datetime, kind: str) -> datetime:
    days = {"year": 366, "month": 31, "day": 1}[kind]
    return _beginning(beginning + timedelta(days=days), kind)


class TaskChangeList(ChangeList):
    def get_results(self, request: HttpRequest) -> None:
        """The page has its rows then; only the date hierarchy asks this list's queryset for more.

        It is given all mail of the year and month that are chosen. Whether a filter leaves some of a day's
        mail over is not asked: where it rarely does, that scans the table.
        """
        super().get_results(request)
        all_mail = ListedTasks(MailTask)
        year, month = (self.params.get(f"created_at__{unit}") for unit in ("year", "month"))
        if year:
            kind = "month" if month else "year"
            begins = datetime(int(year), int(month or 1), 1, tzinfo=timezone.get_current_timezone())
            all_mail = all_mail.filter(created_at__gte=begins, created_at__lt=_following(begins, kind))
        self.queryset = all_mail


class AtLeast(int):
    """A number that was not counted further."""

    def __str__(self) -> str:
        return f"{int(self) - 1:,}+"


class BoundedPaginator(Paginator[MailTask]):
    """Counts as far as anybody turns pages; counting a million rows takes longer than showing fifty."""

    most = 10_000

    @cached_property
    def count(self) -> int:
        listed: MailTaskQuerySet = self.object_list  # type: ignore[assignment]
        found = listed.order_by()[: self.most + 1].count()
        return AtLeast(found) if found > self.most else found
