"""Who gets what and when; what each of them is sent; and one row for each time at which it was."""

from datetime import datetime
from typing import ClassVar, Self

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Lower
from django.db.models.lookups import Exact
from django.utils import timezone

from accounts.models import User
from mailqueue.subscriptions import schedule
from mailqueue.subscriptions.schedule import Schedule
from tasks.versions import Versioned

LONGEST_TYPE = 100


class Content(Versioned):
    """What subscribers of one content type are sent. A change is a new version; the older ones stay to be read."""

    id = models.BigAutoField(primary_key=True)
    owner = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+", db_index=False)
    content_type = models.CharField(max_length=LONGEST_TYPE)

    class Meta:
        indexes = [models.Index("owner", F("id").desc(), name="content_newest")]
        constraints = [models.UniqueConstraint(fields=["owner", "content_type"], name="content_of_type")]

    def __str__(self) -> str:
        return self.content_type


class ContentVersion(models.Model):
    """What a content said from one change to the next. Never changed itself."""

    id = models.BigAutoField(primary_key=True)
    content_of = models.ForeignKey(Content, on_delete=models.CASCADE, related_name="versions", db_index=False)
    number = models.IntegerField()
    subject = models.TextField()
    content = models.TextField()
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["content_of", "number"], name="content_version")]

    def __str__(self) -> str:
        return f"version {self.number}"


class State(models.IntegerChoices):
    """Where a subscription stands."""

    ACTIVE = 0, "active"  # next_at says when the next mail is made
    PAUSED = 1, "paused"  # by its owner; what would have come meanwhile does not come later
    ENDED = 2, "ended"  # unsubscribed, by its owner or by its recipient; subscribing again makes it active


class Policy(models.IntegerChoices):
    """What becomes of those that were missed, because nothing ran when they were due."""

    LAST = 0, "last"  # the last of them is sent, late
    SKIP = 1, "skip"  # none is sent, beyond a few minutes


class SubscriptionQuerySet(models.QuerySet["Subscription"]):
    def owned_by(self, owner: User) -> Self:
        return self.filter(owner=owner)

    def to(self, recipient: str) -> Self:
        """By the wire form of an address, in any case."""
        return self.filter(Exact(Lower("recipient"), Lower(models.Value(recipient))))

    def due(self, now: datetime) -> Self:
        return self.filter(state=State.ACTIVE, next_at__lte=now)


class Subscription(models.Model):
    """One recipient of one content type of one owner."""

    id = models.BigAutoField(primary_key=True)
    owner = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+", db_index=False)
    recipient = models.CharField(max_length=320)
    content_type = models.CharField(max_length=LONGEST_TYPE)
    #: What its owner calls it; in the metadata of its mails.
    name = models.CharField(max_length=200, blank=True)
    #: One of schedule.FREQUENCIES, or a cron line.
    line = models.CharField("schedule", max_length=schedule.LONGEST_CRON)
    zone = models.CharField("time zone", max_length=64, default="UTC")
    window = models.CharField(max_length=11, blank=True)
    policy = models.SmallIntegerField(choices=Policy, default=Policy.LAST)
    #: Tries of each mail; null for the service's.
    max_tries = models.SmallIntegerField(null=True)
    state = models.SmallIntegerField(choices=State, default=State.ACTIVE)
    #: When the next mail is made. Only ever moves on, in the transaction that makes the mail.
    next_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(default=timezone.now)

    objects: ClassVar[SubscriptionQuerySet] = SubscriptionQuerySet.as_manager()  # type: ignore[assignment]

    class Meta:
        indexes = [
            # GET /subscriptions: an owner's newest.
            models.Index("owner", F("id").desc(), name="subscription_newest"),
            # The tick.
            models.Index("next_at", "id", name="subscription_due", condition=Q(state=State.ACTIVE)),
        ]
        constraints = [
            # To subscribe again changes the one there is.
            models.UniqueConstraint(
                "owner", Lower("recipient"), "content_type", name="subscription_of_recipient"
            ),
            models.CheckConstraint(
                name="subscription_next_while_active_only",
                condition=Q(state=State.ACTIVE, next_at__isnull=False)
                | (~Q(state=State.ACTIVE) & Q(next_at=None)),
            ),
            models.CheckConstraint(name="subscription_policy_known", condition=Q(policy__in=Policy.values)),
        ]

    def __str__(self) -> str:
        return f"{self.content_type} to {self.recipient}"

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.line, self.zone, self.window)

    @property
    def frequency(self) -> str | None:
        return self.line if self.line in schedule.FREQUENCIES else None

    @property
    def cron(self) -> str | None:
        return None if self.line in schedule.FREQUENCIES else self.line

    def next_times(self, count: int = 5) -> list[datetime]:
        if self.next_at is None:
            return []
        return [self.next_at, *schedule.next_times(self.schedule, self.next_at, count - 1)]


class Outcome(models.IntegerChoices):
    """What came of an occurrence."""

    QUEUED = 0, "queued"  # a mail was made: task_id
    NO_CONTENT = 1, "no_content"  # there was nothing to send
    MISSED = 2, "missed"  # too late for the policy `skip`
    OVER_QUOTA = 3, "over_quota"  # the owner had no more mails that day


class Occurrence(models.Model):
    """A time at which a subscription was due. Written in the transaction that makes its mail and moves `next_at`, so
    that there is one mail for each, whatever dies when."""

    id = models.BigAutoField(primary_key=True)
    subscription = models.ForeignKey(
        Subscription, on_delete=models.CASCADE, related_name="occurrences", db_index=False
    )
    at = models.DateTimeField()
    outcome = models.SmallIntegerField(choices=Outcome)
    task_id = models.BigIntegerField(null=True)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        indexes = [
            # What is old enough to leave (prune).
            models.Index("created_at", name="occurrence_age"),
        ]
        constraints = [
            # A subscription's newest too.
            models.UniqueConstraint(fields=["subscription", "at"], name="occurrence_once"),
        ]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M}"
