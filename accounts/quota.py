"""How many mails a user may hand over on one UTC day. Counted for those alone who have a quota."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from django.conf import settings
from django.db import connection, models, transaction
from django.utils import timezone

if TYPE_CHECKING:
    from accounts.models import User


class DailyUse(models.Model):
    """What a user has handed over on the last day on which they did; a new day writes over the old one."""

    owner = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, primary_key=True, related_name="daily_use"
    )
    day = models.DateField()
    accepted = models.PositiveBigIntegerField()

    def __str__(self) -> str:
        return f"{self.accepted} on {self.day}"


class QuotaExceededError(Exception):
    """So many more would be too many today."""

    def __init__(self, standing: "Quota") -> None:
        super().__init__(standing)
        self.standing = standing


class Quota(NamedTuple):
    """What there is a day, what of it is left today, and in how many seconds today ends."""

    per_day: int
    left: int
    reset: int


def quota_of(user: "User") -> int | None:
    """Mails a day; None is no quota."""
    return settings.MAIL_DAILY_QUOTA or None if user.daily_quota is None else user.daily_quota


# A process whose clock is a little behind at midnight counts for the new day.
_COUNT = """
INSERT INTO accounts_dailyuse AS today (owner_id, day, accepted)
SELECT %(owner)s::bigint, %(day)s::date, %(count)s::bigint WHERE %(count)s::bigint <= %(quota)s::bigint
ON CONFLICT (owner_id) DO UPDATE SET
    day = GREATEST(today.day, excluded.day),
    accepted = CASE WHEN today.day < excluded.day THEN 0 ELSE today.accepted END + excluded.accepted
WHERE CASE WHEN today.day < excluded.day THEN 0 ELSE today.accepted END + excluded.accepted <= %(quota)s::bigint
RETURNING accepted
"""


@contextmanager
def counted(user: "User", count: int) -> Iterator[Quota | None]:
    """What is kept inside counts, in the same transaction: an error leaves nothing behind. Costs nothing without a
    quota; QuotaExceededError where it does not reach for all `count`."""
    per_day = quota_of(user)
    if per_day is None or not count:
        yield None
        return
    now = timezone.now()
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(
                _COUNT, {"owner": user.pk, "day": f"{now:%Y-%m-%d}", "count": count, "quota": per_day}
            )
            row = cursor.fetchone()
        if row is None:
            raise QuotaExceededError(
                Quota(per_day, max(0, per_day - used_today(user, now)), _until_midnight(now))
            )
        yield Quota(per_day, per_day - row[0], _until_midnight(now))


def used_today(user: "User", now: datetime) -> int:
    today = DailyUse.objects.filter(owner_id=user.pk, day__gte=now.date()).first()
    return today.accepted if today else 0


def _until_midnight(now: datetime) -> int:
    tomorrow = datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), UTC)
    return math.ceil((tomorrow - now).total_seconds())
