"""Why is it waiting? A word, a time and a sentence for every unfinished task."""

import re
from datetime import datetime
from typing import TypedDict

from accounts.models import SmtpAccount
from tasks.models import MailTask
from tasks.states import FULL_MAILBOX_TRIES, WAITING, PutOff, Status


class Waiting(TypedDict):
    """`until` is None where nobody can say; `tries_left` counts the tries not used up, if they
    fail as the last one did."""

    reason: str
    until: datetime | None
    detail: str
    tries_left: int


#: A full mailbox, as mailqueue/delivery/replies.py reads it; tests/unit/test_retry.py holds the two together.
_FULL = re.compile(r"[45]\d\d 4\.2\.2\b(?!.*gr[ae]ylist)", re.IGNORECASE)


def explain(task: MailTask, account: SmtpAccount, now: datetime) -> Waiting | None:
    """None when it is in a worker's hands or at its end."""
    if task.status == Status.UNCERTAIN:
        return _waiting(
            task, "uncertain", None, f"It may have been sent; a person decides. {task.last_reply}".strip()
        )
    if task.status not in WAITING:
        return None
    if task.due_at > now and task.status == Status.SCHEDULED:
        return _waiting(task, "scheduled", task.due_at, "Its time has not come.")
    if task.due_at > now and task.put_off == PutOff.DOMAIN_LIMIT:
        domain = task.recipient.rpartition("@")[2]
        return _waiting(task, "domain_limit", task.due_at, f"No more mail may go to {domain} just now.")
    if task.due_at > now and task.status == Status.FAILED:
        return _waiting(task, "retry", task.due_at, task.last_reply)
    if account.paused_until is not None:
        why = f"The SMTP account is paused: {account.reason}. No try is used up; it goes on after that time, "
        return _waiting(
            task, "account_paused", account.paused_until, why + "or at once after a successful SMTP test."
        )
    if account.limited_until is not None and account.limited_until > now:
        return _waiting(
            task, "account_limit", account.limited_until, "The SMTP account is at its limit for now."
        )
    if task.due_at > now:
        return _waiting(task, "retry", task.due_at, task.last_reply)
    return _waiting(task, "backlog", None, "It waits for a free worker.")


def _waiting(task: MailTask, reason: str, until: datetime | None, detail: str) -> Waiting:
    return {"reason": reason, "until": until, "detail": detail, "tries_left": _tries_left(task)}


def _tries_left(task: MailTask) -> int:
    most = task.max_tries
    # A person's retry begins anew, whatever the reply before it was.
    if task.try_count and _FULL.match(task.last_reply):
        most = min(most, FULL_MAILBOX_TRIES)
    return max(0, most - task.try_count)
