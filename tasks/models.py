"""The ledger: one narrow row for each mail, its content beside it, its attempts behind it."""

from typing import Any, ClassVar, Self

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils import timezone

from accounts.models import User
from tasks.states import CancelReason, Lane, OnUncertain, Outcome, Phase, PutOff, Status

_IS_WAITING = Q(status__in=[Status.QUEUED, Status.FAILED, Status.SCHEDULED])


class MailTaskQuerySet(models.QuerySet["MailTask"]):
    def owned_by(self, owner: User) -> Self:
        return self.filter(owner=owner)

    def waiting(self) -> Self:
        """Not in anybody's hands and not at its end."""
        return self.filter(_IS_WAITING)

    def due(self) -> Self:
        """Its time has come, and its account is neither paused nor at its limit."""
        open_account = Q(owner__smtp__paused_until=None) | Q(owner__smtp__paused_until__lte=Now())
        free_account = Q(owner__smtp__limited_until=None) | Q(owner__smtp__limited_until__lte=Now())
        return self.waiting().filter(open_account, free_account, due_at__lte=Now())

    def tagged(self, tag: str) -> Self:
        """With the owner named on both sides, so that an owner's newest of one tag are a walk along tag_newest."""
        return self.filter(tags__tag=tag, tags__owner=F("owner"))

    def failures(self) -> Self:
        """Waiting for another try, or cancelled after failing: the dead-letter list."""
        gave_up = Q(
            status=Status.CANCELLED, cancel_reason__in=[CancelReason.EXHAUSTED, CancelReason.REJECTED]
        )
        expired_trying = Q(status=Status.CANCELLED, cancel_reason=CancelReason.EXPIRED, try_count__gt=0)
        return self.filter(Q(status=Status.FAILED) | gave_up | expired_trying)


class MailTask(models.Model):
    """One mail to one recipient. Only tasks/ledger.py changes `status`, each time naming the old one."""

    id = models.BigAutoField(primary_key=True)
    owner = models.ForeignKey(User, on_delete=models.PROTECT, related_name="tasks", db_index=False)
    status = models.SmallIntegerField(choices=Status, default=Status.QUEUED)
    lane = models.SmallIntegerField(choices=Lane, default=Lane.DEFAULT)
    try_count = models.SmallIntegerField(default=0)
    max_tries = models.SmallIntegerField()
    cancel_reason = models.SmallIntegerField(choices=CancelReason, null=True)
    on_uncertain = models.SmallIntegerField(choices=OnUncertain, default=OnUncertain.RETRY)
    put_off = models.SmallIntegerField(choices=PutOff, null=True)
    #: How often a worker died with it in hand.
    lost_count = models.SmallIntegerField(default=0)
    #: From then on a worker may take it: the acceptance, the schedule or the next attempt.
    due_at = models.DateTimeField()
    created_at = models.DateTimeField(default=timezone.now)
    #: The last change of state.
    moved_at = models.DateTimeField(default=timezone.now)
    scheduled_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(null=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    lease_until = models.DateTimeField(null=True)
    claim_token = models.UUIDField(null=True)
    sender = models.CharField(max_length=320)
    recipient = models.CharField(max_length=320)
    subject = models.CharField(max_length=998)
    message_id = models.CharField(max_length=200)
    #: The last thing a relay (or its absence) said about this mail; printable, 500 characters.
    last_reply = models.CharField(max_length=500, default="")

    objects: ClassVar[MailTaskQuerySet] = MailTaskQuerySet.as_manager()  # type: ignore[assignment]

    class Meta:
        verbose_name = "mail task"
        indexes = [
            # The claim: lane by lane, owner by owner, in the order of time.
            models.Index("lane", "owner", "due_at", name="task_claim", condition=_IS_WAITING),
            # Is anything due (dispatch), since when (metrics), and what was forgotten (sweep).
            models.Index("due_at", name="task_due", condition=_IS_WAITING),
            # What a dead worker held (rescue).
            models.Index("lease_until", name="task_lease", condition=Q(status=Status.PROCESSING)),
            # What waits beyond its expiry (expire).
            models.Index(
                "expires_at", name="task_expiry", condition=_IS_WAITING & Q(expires_at__isnull=False)
            ),
            # GET /queue: an owner's newest.
            models.Index("owner", F("id").desc(), name="task_newest"),
            # GET /queue/fail.
            models.Index(
                "owner",
                F("id").desc(),
                name="task_failures",
                condition=Q(status__in=[Status.FAILED, Status.CANCELLED]),
            ),
            # What a person has to decide (the admin's filter).
            models.Index("id", name="task_uncertain", condition=Q(status=Status.UNCERTAIN)),
            # What is old enough to leave (prune); the admin's date hierarchy.
            models.Index("created_at", name="task_created"),
            # The admin's search: a recipient, or how it begins (LIKE 'x%' needs the operator class).
            models.Index(fields=["recipient"], name="task_recipient", opclasses=["varchar_pattern_ops"]),
        ]
        constraints = [
            models.CheckConstraint(name="task_status_known", condition=Q(status__in=Status.values)),
            models.CheckConstraint(name="task_lane_known", condition=Q(lane__in=Lane.values)),
            models.CheckConstraint(
                name="task_tries_within_maximum",
                condition=Q(try_count__gte=0) & Q(try_count__lte=F("max_tries")),
            ),
            models.CheckConstraint(
                name="task_lease_while_processing_only",
                condition=Q(status=Status.PROCESSING, lease_until__isnull=False, claim_token__isnull=False)
                | (~Q(status=Status.PROCESSING) & Q(lease_until=None, claim_token=None)),
            ),
            models.CheckConstraint(
                name="task_cancelled_with_reason_only",
                condition=Q(status=Status.CANCELLED, cancel_reason__isnull=False)
                | (~Q(status=Status.CANCELLED) & Q(cancel_reason=None)),
            ),
            models.CheckConstraint(
                name="task_finished_when_final_only",
                condition=Q(status__in=[Status.SUCCESS, Status.CANCELLED], finished_at__isnull=False)
                | (~Q(status__in=[Status.SUCCESS, Status.CANCELLED]) & Q(finished_at=None)),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.pk} to {self.recipient}"

    @property
    def tries_left(self) -> int:
        return self.max_tries - self.try_count

    @property
    def details(self) -> dict[str, Any]:
        """See MailContent; nothing once the content has been pruned."""
        content = getattr(self, "content", None)
        return (content and content.details) or {}


class MailContent(models.Model):
    """The mail as it goes over the wire (RFC 5322, CRLF line ends, not dot-stuffed), built at acceptance."""

    task = models.OneToOneField(MailTask, on_delete=models.CASCADE, primary_key=True, related_name="content")
    raw = models.BinaryField()
    #: What is shown again of it, as far as given: from_name, reply_to, headers, attachments (no content), metadata.
    details = models.JSONField(null=True)

    def __str__(self) -> str:
        return f"content of {self.pk}"


class Tag(models.Model):
    """A word of the owner's on one of their mails. Rows of their own, so that untagged mail pays nothing for them."""

    pk = models.CompositePrimaryKey("task_id", "position")
    task = models.ForeignKey(
        MailTask, on_delete=models.CASCADE, related_name="tags", db_index=False, db_constraint=False
    )
    position = models.SmallIntegerField()
    owner = models.ForeignKey(
        User, on_delete=models.CASCADE, related_name="+", db_index=False, db_constraint=False
    )
    tag = models.CharField(max_length=64)

    class Meta:
        ordering = ["task_id", "position"]
        # GET /queue?tag=: an owner's newest with this tag.
        indexes = [models.Index("owner", "tag", "task", name="tag_newest")]

    def __str__(self) -> str:
        return self.tag


class Attempt(models.Model):
    """One try at a mail that got as far as a verdict, or was lost with its worker."""

    id = models.BigAutoField(primary_key=True)
    # No foreign key in the database: attempts are inserted by the statement that moved their task.
    task = models.ForeignKey(
        MailTask, on_delete=models.CASCADE, related_name="attempts", db_index=False, db_constraint=False
    )
    number = models.SmallIntegerField()
    at = models.DateTimeField()
    outcome = models.SmallIntegerField(choices=Outcome)
    phase = models.SmallIntegerField(choices=Phase, null=True)
    #: The relay's reply code (RFC 5321), if it gave one.
    code = models.SmallIntegerField(null=True)
    reply = models.CharField(max_length=500, default="")
    duration_ms = models.IntegerField(default=0)
    worker = models.CharField(max_length=120, default="")

    class Meta:
        ordering = ["id"]
        # The history of one task, in order. Not unique: a lost attempt gives its number back.
        indexes = [models.Index("task", "id", name="attempt_history")]

    def __str__(self) -> str:
        return f"attempt {self.number}"
