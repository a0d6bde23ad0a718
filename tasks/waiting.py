"""Why is it waiting? A word, a time and a sentence for every unfinished task."""

from datetime import datetime
from typing import TypedDict

from accounts.models import SmtpAccount
from tasks.models import MailTask
from tasks.states import WAITING, PutOff, Status


class Waiting(TypedDict):
    """`until` is None where nobody can say; `tries_left` counts the tries not used up."""

    reason: str
    until: datetime | None
    detail: str
    tries_left: int


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
    return {"reason": reason, "until": until, "detail": detail, "tries_left": task.tries_left}
