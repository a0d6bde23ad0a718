"""What becomes of a mail after an attempt: a pure function of verdict and tries. Nothing here sleeps."""

import random
from collections.abc import Sequence
from datetime import datetime, timedelta

from mailqueue.delivery.magic import is_magic
from mailqueue.delivery.replies import Answer, Meaning, Verdict
from tasks.ledger import Claimed, Settlement
from tasks.states import CancelReason, OnUncertain, Outcome, Status

JITTER = 0.2


def wait_after(tries: int, schedule: Sequence[int], *, dice: random.Random | None = None) -> float:
    """Seconds until the next try after `tries` of them; the schedule's last wait repeats; +-20 %."""
    base = schedule[min(tries, len(schedule)) - 1]
    return base * (dice or random).uniform(1 - JITTER, 1 + JITTER)


def conclude(
    mail: Claimed,
    answer: Answer,
    verdict: Verdict,
    *,
    now: datetime,
    schedule: Sequence[int],
    duration_ms: int,
) -> Settlement:
    """The settlement of one attempt. `now` is aware; the schedule is in seconds."""
    if verdict.meaning is Meaning.ACCEPTED:
        return accepted(mail, answer, duration_ms)
    status, outcome, wait, reason = _decide(mail, verdict, now, schedule)
    return Settlement(
        id=mail.id,
        token=mail.token,
        status=status,
        wait=wait,
        cancel_reason=reason,
        outcome=outcome,
        phase=answer.phase,
        code=answer.code,
        reply=str(answer),
        duration_ms=duration_ms,
        # A magic address is to be tried again and again.
        suppress=verdict.suppress and not is_magic(mail.recipient),
    )


def accepted(mail: Claimed, answer: Answer, duration_ms: int) -> Settlement:
    """The settlement of a success, which needs neither clock nor schedule."""
    return Settlement(
        id=mail.id,
        token=mail.token,
        status=Status.SUCCESS,
        outcome=Outcome.ACCEPTED,
        phase=answer.phase,
        code=answer.code,
        reply=str(answer),
        duration_ms=duration_ms,
    )


type_decision = tuple[Status, Outcome, float | None, CancelReason | None]


def _decide(mail: Claimed, verdict: Verdict, now: datetime, schedule: Sequence[int]) -> type_decision:
    if verdict.meaning is Meaning.REJECTED:
        return Status.CANCELLED, Outcome.REJECTED, None, CancelReason.REJECTED
    outcome = Outcome.TEMPORARY
    if verdict.meaning is Meaning.UNCERTAIN:
        outcome = Outcome.UNCERTAIN
        if mail.on_uncertain == OnUncertain.HOLD:
            return Status.UNCERTAIN, outcome, None, None
        if mail.on_uncertain == OnUncertain.ACCEPT:
            return Status.SUCCESS, outcome, None, None
    if mail.try_count >= min(mail.max_tries, verdict.most_tries or mail.max_tries):
        return Status.CANCELLED, outcome, None, CancelReason.EXHAUSTED
    wait = max(wait_after(mail.try_count, schedule), verdict.least_wait)
    if mail.expires_at is not None and now + timedelta(seconds=wait) >= mail.expires_at:
        return Status.CANCELLED, outcome, None, CancelReason.EXPIRED
    return Status.FAILED, outcome, wait, None
