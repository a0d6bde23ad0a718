"""Typed tasks that make no mail: done while their caller waits, and noted: each has an id to look it up by."""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models.functions import Now
from django.utils import timezone

from accounts.models import User
from tasks import ledger
from tasks.models import MailTask
from tasks.states import Status


class DoneTask(models.Model):
    """Who was subscribed, or unsubscribed, by whom and when. Written in the transaction that does so."""

    #: Drawn from where mails have theirs, so that GET /task/{id} means one thing.
    id = models.BigIntegerField(primary_key=True)
    owner = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+", db_index=False)
    #: As in POST /task/: its type, what its caller calls it, and the recipient in wire form.
    type = models.CharField(max_length=20)
    name = models.CharField(max_length=200, blank=True)
    recipient = models.CharField(max_length=320)
    #: Null where it was about none, or about more than one.
    subscription_id = models.BigIntegerField(null=True)
    max_tries = models.SmallIntegerField()
    done_at = models.DateTimeField(default=timezone.now)

    class Meta:
        indexes = [
            # What is old enough to leave (prune).
            models.Index("done_at", name="donetask_age"),
            # What leaves with its owner.
            models.Index("owner", name="donetask_owner"),
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.recipient}"

    def as_task(self) -> MailTask:
        """In the shape in which tasks are told of; never stored."""
        return MailTask(
            id=self.pk,
            owner=self.owner,
            status=Status.SUCCESS,
            max_tries=self.max_tries,
            created_at=self.done_at,
            started_at=self.done_at,
            finished_at=self.done_at,
            recipient=self.recipient,
        )

    def metadata(self) -> dict[str, str]:
        named = {"task": self.name} if self.name else {}
        about = {"subscription": str(self.subscription_id)} if self.subscription_id else {}
        return {**named, "type": self.type, **about}


def note(owner: User, asked: dict[str, Any], subscription_id: int | None) -> int:
    """Its id. `asked` is a valid TypedTask."""
    made = DoneTask.objects.create(
        id=ledger.next_id(),
        owner=owner,
        type=asked["type"],
        name=asked.get("task", ""),
        recipient=asked["payload"]["userId"],
        subscription_id=subscription_id,
        max_tries=asked["retries"] + 1 if "retries" in asked else settings.MAIL_MAX_TRIES,
    )
    return int(made.pk)


def old() -> "models.QuerySet[DoneTask]":
    """Those that are kept no longer."""
    return DoneTask.objects.filter(done_at__lt=Now() - timedelta(days=settings.MAIL_KEEP_DAYS))
