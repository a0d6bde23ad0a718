"""The ledger: a row for each mail, its content beside it, its attempts behind it, and two narrow tables that lead
a worker to what it may take (Due) and everybody to what workers hold (Claim)."""

from datetime import datetime, timedelta
from typing import Any, ClassVar, Self

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Func, Q, Subquery
from django.db.models.functions import Coalesce
from django.utils import timezone

from accounts.models import User
from tasks.counters import Line, Minute, Total
from tasks.events import EventRow, Listener
from tasks.states import FINAL, WAITING, CancelReason, Lane, OnUncertain, Outcome, Phase, PutOff, Status
from tasks.suppressions import Suppression
from tasks.templates import MailTemplate, TemplateVersion

__all__ = [
    "EventRow",
    "Line",
    "Listener",
    "MailTemplate",
    "Minute",
    "Suppression",
    "TemplateVersion",
    "Total",
]  # Django looks for models here

#: The machines' clocks, and a mail's way from its acceptance into the ledger, differ by less.
CLOCKS_APART = timedelta(minutes=10)
_BEYOND_ALL = 2**63 - 1


class MailTaskQuerySet(models.QuerySet["MailTask"]):
    def owned_by(self, owner: User) -> Self:
        return self.filter(owner=owner)

    def in_status(self, status: int) -> Self:
        """Those in this state, along an index that leads to them where they are few among many."""
        return self.filter(status=status).filter(_way_to(Status(status)))

    def tagged(self, tag: str) -> Self:
        """With the owner named on both sides, so that an owner's newest of one tag are a walk along tag_newest."""
        return self.filter(tags__tag=tag, tags__owner=F("owner"))

    def created_between(self, after: datetime | None, before: datetime | None) -> Self:
        """Accepted at or after the one time and before the other. Ids follow time, so a walk by id begins and ends
        where it may: two looks into task_created instead of a million rows passed by."""
        found = self
        if after is not None:
            earlier = MailTask.objects.filter(created_at__lt=_apart(after, -CLOCKS_APART)).order_by(
                "-created_at"
            )
            found = found.filter(
                created_at__gte=after, id__gt=Coalesce(Subquery(earlier.values("id")[:1]), 0)
            )
        if before is not None:
            later = MailTask.objects.filter(created_at__gt=_apart(before, CLOCKS_APART)).order_by(
                "created_at"
            )
            found = found.filter(
                created_at__lt=before, id__lt=Coalesce(Subquery(later.values("id")[:1]), _BEYOND_ALL)
            )
        return found

    def mentioning(self, text: str) -> Self:
        """With this in the subject or the recipient, in any case. No index knows: only for few rows at a time."""
        return self.filter(Q(subject__icontains=text) | Q(recipient__icontains=text))

    def waiting(self) -> Self:
        """Those that can be cancelled."""
        return self.filter(status__in=WAITING, due__isnull=False)

    def retryable(self) -> Self:
        return self.filter(status__in=[Status.FAILED, Status.CANCELLED, Status.UNCERTAIN])

    def failures(self) -> Self:
        """Waiting for another try, or cancelled after failing: the dead-letter list."""
        gave_up = Q(
            status=Status.CANCELLED, cancel_reason__in=[CancelReason.EXHAUSTED, CancelReason.REJECTED]
        )
        expired_trying = Q(status=Status.CANCELLED, cancel_reason=CancelReason.EXPIRED, try_count__gt=0)
        return self.filter(Q(status=Status.FAILED) | gave_up | expired_trying, has_failed=True)


def _apart(at: datetime, by: timedelta) -> datetime:
    try:
        return at + by
    except OverflowError:  # at one end of the calendar
        return at


def _way_to(status: Status) -> Q:
    """What is true of every mail in this state, and known to a narrow table or index."""
    if status in WAITING:
        return Q(due__isnull=False)
    if status == Status.PROCESSING:
        return Q(id__in=Claim.objects.annotate(task=Func(F("task_ids"), function="unnest")).values("task"))
    if status == Status.CANCELLED:
        return Q(has_failed=True)
    return Q(is_uncertain=True) if status == Status.UNCERTAIN else Q()


class MailTask(models.Model):
    """One mail to one recipient. Only tasks/ledger.py changes `status`, each time naming the old one.

    What changes on the way from claim to success is in no index here, nor in the condition of one: PostgreSQL then
    writes the new version beside the old and touches no index (a HOT update), which halves what a mail costs.
    """

    id = models.BigAutoField(primary_key=True)
    owner = models.ForeignKey(User, on_delete=models.PROTECT, related_name="tasks", db_index=False)
    status = models.SmallIntegerField(choices=Status, default=Status.QUEUED)
    lane = models.SmallIntegerField(choices=Lane, default=Lane.DEFAULT)
    try_count = models.SmallIntegerField(default=0)
    max_tries = models.SmallIntegerField()
    cancel_reason = models.SmallIntegerField(choices=CancelReason, null=True)
    on_uncertain = models.SmallIntegerField(choices=OnUncertain, default=OnUncertain.RETRY)
    put_off = models.SmallIntegerField(choices=PutOff, null=True)
    #: FAILED or CANCELLED, or in a worker's hands again after that.
    has_failed = models.BooleanField(default=False)
    #: As the status says; here for its index.
    is_uncertain = models.BooleanField(default=False)
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
            # GET /queue: an owner's newest.
            models.Index("owner", F("id").desc(), name="task_newest"),
            # GET /queue/fail.
            models.Index("owner", F("id").desc(), name="task_failures", condition=Q(has_failed=True)),
            # What a person has to decide (the admin's filter).
            models.Index("id", name="task_uncertain", condition=Q(is_uncertain=True)),
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
                name="task_claimed_while_processing_only",
                condition=Q(status=Status.PROCESSING, claim_token__isnull=False)
                | (~Q(status=Status.PROCESSING) & Q(claim_token=None)),
            ),
            models.CheckConstraint(
                name="task_failure_marked",
                condition=Q(status__in=[Status.FAILED, Status.CANCELLED], has_failed=True)
                | Q(status=Status.PROCESSING)
                | (~Q(status__in=[Status.FAILED, Status.CANCELLED]) & Q(has_failed=False)),
            ),
            models.CheckConstraint(
                name="task_uncertain_marked",
                condition=Q(status=Status.UNCERTAIN, is_uncertain=True)
                | (~Q(status=Status.UNCERTAIN) & Q(is_uncertain=False)),
            ),
            models.CheckConstraint(
                name="task_cancelled_with_reason_only",
                condition=Q(status=Status.CANCELLED, cancel_reason__isnull=False)
                | (~Q(status=Status.CANCELLED) & Q(cancel_reason=None)),
            ),
            models.CheckConstraint(
                name="task_finished_when_final_only",
                condition=Q(status__in=FINAL, finished_at__isnull=False)
                | (~Q(status__in=FINAL) & Q(finished_at=None)),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.pk} to {self.recipient}"

    @property
    def details(self) -> dict[str, Any]:
        """See MailContent; nothing once the content has been pruned."""
        content = getattr(self, "content", None)
        return (content and content.details) or {}


class Due(models.Model):
    """A mail that waits, with what a worker chooses by. Whoever deletes this row is the one that may move the mail on
    from its waiting state; whoever makes a mail wait writes it. Both in the statement that changes the mail."""

    task = models.OneToOneField(
        MailTask, on_delete=models.CASCADE, primary_key=True, related_name="due", db_constraint=False
    )
    owner = models.ForeignKey(
        User, on_delete=models.CASCADE, related_name="+", db_index=False, db_constraint=False
    )
    lane = models.SmallIntegerField(choices=Lane)
    due_at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True)

    class Meta:
        indexes = [
            # The claim: lane by lane, owner by owner, in the order of time. There is none by time alone, which the
            # planner might take for the shorter way, and so pass a million mails of one owner to find another's.
            models.Index("lane", "owner", "due_at", name="due_claim"),
            # What waits beyond its expiry (expire).
            models.Index("expires_at", name="due_expiry", condition=Q(expires_at__isnull=False)),
        ]

    def __str__(self) -> str:
        return f"{self.task_id} from {self.due_at} on"


class Claim(models.Model):
    """What a worker has claimed at once and holds under one token, until its lease ends. Gone with the last of it."""

    token = models.UUIDField(primary_key=True)
    lease_until = models.DateTimeField()
    #: How many of `task_ids` are still in process.
    held = models.SmallIntegerField()
    task_ids = ArrayField(models.BigIntegerField())
    #: Whose they are, each once.
    owner_ids = ArrayField(models.BigIntegerField())

    def __str__(self) -> str:
        return f"{self.held} of {len(self.task_ids)} mails until {self.lease_until}"


class MailContent(models.Model):
    """The mail as it goes over the wire (RFC 5322, CRLF line ends, not dot-stuffed), built at acceptance."""

    # No foreign key in the database, nor in the tables beside it: the statement that writes the mail writes this
    # too, and to look each up once more takes a sixth of what a batch costs PostgreSQL.
    task = models.OneToOneField(
        MailTask, on_delete=models.CASCADE, primary_key=True, related_name="content", db_constraint=False
    )
    raw = models.BinaryField()
    #: What is shown again of it, as far as given: from_name, reply_to, headers, attachments (no content), metadata.
    details = models.JSONField(null=True)
    #: X-Request-ID of the call that handed it over, for the log of its attempts.
    request_id = models.CharField(max_length=128, default="", db_default="")

    def __str__(self) -> str:
        return f"content of {self.pk}"


class OneTime(models.Model):
    """A mail that serves once and soon, such as one with a one-time password. What it says is for its recipient
    alone: its content goes as soon as it is sent, cancelled or void, and after that no retry sends it again."""

    task = models.OneToOneField(
        MailTask, on_delete=models.CASCADE, primary_key=True, related_name="one_time", db_constraint=False
    )
    is_blanked = models.BooleanField(default=False)

    class Meta:
        # Whose content is still there (blank).
        indexes = [models.Index("task", name="one_time_unblanked", condition=Q(is_blanked=False))]

    def __str__(self) -> str:
        return f"{self.pk}, once"


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


class IdempotencyKey(models.Model):
    """A call that must be done once: what it asked for, and what it was answered. Written in the transaction that did
    it, so that there is neither without the other; see tasks/idempotency.py."""

    pk = models.CompositePrimaryKey("owner_id", "key")
    owner = models.ForeignKey(
        User, on_delete=models.CASCADE, related_name="+", db_index=False, db_constraint=False
    )
    key = models.CharField(max_length=255)
    #: SHA-256 of the address and the body.
    fingerprint = models.BinaryField()
    created_at = models.DateTimeField(default=timezone.now)
    #: JSON, as text: jsonb would change the order of its fields.
    answer = models.TextField(default="")

    class Meta:
        # What is old enough to leave (prune).
        indexes = [models.Index("created_at", name="idempotency_age")]

    def __str__(self) -> str:
        return self.key


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
