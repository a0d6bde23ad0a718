"""One-time passwords: `issue` mails one, `verify` takes it back, once.

Times are the database's, for the clocks of web processes may differ. Nothing here logs.
"""

import math
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models.functions import Now

from accounts import sealing
from accounts.models import User
from accounts.throttle import Limit, Standing
from mailqueue.otp.letter import written
from mailqueue.otp.models import Code
from tasks import ledger, submission
from tasks.models import MailTask
from tasks.states import CancelReason, Lane

SHORTEST, LONGEST, USUAL = 4, 8, 6
#: After so many attempts a code is locked, even for the right one.
ATTEMPTS = 5
#: Codes of one owner for one recipient.
LIMITS = (Limit("otp-minute", 1, 60), Limit("otp-hour", 5, 3600))
#: How long a code is kept after it was made: longer than any limit looks back.
KEPT = timedelta(days=1)

_PURPOSE = "one-time password"
#: Two calls for the same recipient go one after the other; else both would find that there was none before.
_TAKE_TURN = "SELECT pg_advisory_xact_lock(hashtextextended('one-time password ' || %s || ' ' || %s, 0))"
# What the code is like makes no difference to the work, so an answer's time tells nothing of it.
_ATTEMPT = """
UPDATE otp_code SET attempts = least(attempts + 1, %(most)s + 1)
WHERE owner_id = %(owner_id)s AND recipient = %(recipient)s AND voided_at IS NULL
RETURNING id, mark, used_at IS NULL AND expires_at > clock_timestamp() AND attempts <= %(most)s
"""
_USE = "UPDATE otp_code SET used_at = clock_timestamp() WHERE id = %s AND used_at IS NULL RETURNING id"


class TooManyCodesError(Exception):
    """This recipient has had enough of them; the next one may go in `wait` seconds."""

    def __init__(self, wait: int, standings: Sequence[Standing]) -> None:
        super().__init__(wait, standings)
        self.wait, self.standings = wait, standings


@transaction.atomic
def issue(
    owner: User,
    recipient: str,
    length: int = USUAL,
    *,
    max_tries: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> tuple[MailTask, list[Standing]]:
    """Mails a new code of so many digits, which makes the recipient's older ones void; the mail, and what is left of
    LIMITS. TooManyCodesError; PartError of tasks.templates where the owner's own template does not do."""
    known_as = recipient.lower()
    now = _take_turn(owner, known_as)
    standings = _within_limits(owner, known_as, now)
    _void_older(owner, known_as, now)
    code, expires_at = _new(length), now + timedelta(seconds=settings.OTP_TTL_SECONDS)
    said = written(owner, recipient, code)
    mail = submission.NewMail(
        recipient=recipient,
        subject=said.subject,
        text=said.text,
        html=said.html,
        expires_at=expires_at,
        max_tries=max_tries,
        lane=Lane.OTP,
        metadata=metadata or {},
    )
    task = submission.submit(owner, mail, secret=code)
    Code.objects.create(
        owner=owner,
        recipient=known_as,
        mark=sealing.mark(_PURPOSE, str(owner.pk), known_as, code),
        created_at=now,
        expires_at=expires_at,
        task_id=task.pk,
    )
    return task, standings


def verify(owner: User, recipient: str, code: str) -> bool:
    """Whether this is the code that the owner has sent to them last, in time, for the first time, and within so many
    attempts, each of which counts."""
    known_as = recipient.lower()
    asked: dict[str, str | int] = {"owner_id": owner.pk, "recipient": known_as, "most": ATTEMPTS}
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_ATTEMPT, asked)
        pk, mark, is_open = cursor.fetchone() or (0, bytes(32), False)
        is_right = sealing.is_marked(bytes(mark), _PURPOSE, str(owner.pk), known_as, code)
        if not (is_right and is_open):
            return False
        cursor.execute(_USE, [pk])
        return cursor.fetchone() is not None


def prune() -> int:
    """Lets go of old ones; how many."""
    gone, _ = Code.objects.filter(created_at__lt=Now() - KEPT).delete()
    return gone


def _new(length: int) -> str:
    """No zero in front: who takes it for a number loses nothing."""
    first = 10 ** (length - 1)
    return str(first + secrets.randbelow(9 * first))


def _take_turn(owner: User, known_as: str) -> datetime:
    """The time from which on this recipient is ours."""
    with connection.cursor() as cursor:
        cursor.execute(_TAKE_TURN, [str(owner.pk), known_as])
        cursor.execute("SELECT clock_timestamp()")
        now: datetime = cursor.fetchone()[0]
    return now


def _within_limits(owner: User, known_as: str, now: datetime) -> list[Standing]:
    """What is left with one more."""
    longest = timedelta(seconds=max(limit.window for limit in LIMITS))
    lately = Code.objects.filter(owner=owner, recipient=known_as, created_at__gt=now - longest)
    ages = sorted((now - at).total_seconds() for at in lately.values_list("created_at", flat=True))
    standings, wait = [], 0
    for limit in LIMITS:
        counted = [age for age in ages if age < limit.window]
        reset = math.ceil(limit.window - min(counted, default=0))
        standings.append(Standing(limit, max(0, limit.quota - len(counted) - 1), reset))
        if len(counted) >= limit.quota:
            wait = max(wait, math.ceil(limit.window - counted[limit.quota - 1]))
    if wait:
        raise TooManyCodesError(wait, standings)
    return standings


def _void_older(owner: User, known_as: str, now: datetime) -> None:
    """And cancels the mail that would still bring it."""
    older = Code.objects.filter(owner=owner, recipient=known_as, voided_at=None)
    tasks = list(older.values_list("task_id", flat=True))
    if tasks:
        older.update(voided_at=now)
        ledger.cancel(MailTask.objects.owned_by(owner).filter(id__in=tasks), CancelReason.EXPIRED)
