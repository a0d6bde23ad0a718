"""Endpoints that want to hear of events, and one row for each event that goes to one of them."""

from datetime import datetime
from typing import ClassVar, Self

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils import timezone

from accounts.models import User
from accounts.sealing import seal, unseal


class EndpointQuerySet(models.QuerySet["Endpoint"]):
    def owned_by(self, owner: User) -> Self:
        return self.filter(owner=owner)

    def active(self) -> Self:
        return self.filter(is_active=True)


class Endpoint(models.Model):
    """An address of a receiver, and what it wants to hear of."""

    #: What `manage.py rotate_credentials` seals again.
    SEALED = ("sealed_secret", "sealed_old_secret")

    id = models.BigAutoField(primary_key=True)
    owner = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+", db_index=False)
    url = models.CharField("URL", max_length=2000)
    #: Names of events; empty for all of them, those to come too.
    events = ArrayField(models.CharField(max_length=30), default=list, blank=True)
    description = models.CharField(max_length=200, blank=True)
    is_active = models.BooleanField(default=True)
    #: Why it is disabled, in a sentence.
    reason = models.CharField(max_length=200, blank=True)
    sealed_secret = models.TextField(editable=False)
    #: Signs too until then, so that the receiver has time to learn the new one.
    sealed_old_secret = models.TextField(blank=True, editable=False)
    old_secret_until = models.DateTimeField(null=True, editable=False)
    #: Every attempt has failed since then; null once one is taken.
    failing_since = models.DateTimeField(null=True, editable=False)
    last_failed_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects: ClassVar[EndpointQuerySet] = EndpointQuerySet.as_manager()  # type: ignore[assignment]

    class Meta:
        verbose_name = "webhook"
        indexes = [
            # GET /webhooks: an owner's newest; and whose events go where.
            models.Index("owner", F("id").desc(), name="endpoint_newest"),
        ]

    def __str__(self) -> str:
        return f"webhook {self.pk}"

    @property
    def state(self) -> str:
        return "active" if self.is_active else "disabled"

    def wants(self, event: str) -> bool:
        return not self.events or event in self.events

    def keep_secret(self, secret: str, old_until: datetime | None = None) -> None:
        """Gives it another secret; the one before goes on signing until then. The caller saves."""
        self.sealed_old_secret = self.sealed_secret if old_until else ""
        self.old_secret_until = old_until
        self.sealed_secret = seal(secret)

    def secrets(self, now: datetime) -> list[str]:
        """Those that sign now, the newest first; UnreadableSecretError."""
        valid = [self.sealed_secret]
        if self.old_secret_until is not None and self.old_secret_until > now:
            valid.append(self.sealed_old_secret)
        return [unseal(each) for each in valid if each]


class State(models.IntegerChoices):
    """Where a delivery stands. A crash leaves none behind in SENDING for longer than its lease."""

    PENDING = 0, "pending"  # to be sent at next_attempt_at; the sender moves it on
    SENDING = 1, "sending"  # a sender holds it until lease_until
    DELIVERED = 2, "delivered"  # the receiver has answered 2xx
    FAILED = 3, "failed"  # the schedule is used up, or the receiver said that it is gone


ENDED = (State.DELIVERED, State.FAILED)


class DeliveryQuerySet(models.QuerySet["Delivery"]):
    def newest(self) -> Self:
        """Without what was sent: a page stays small."""
        return self.order_by("-id").defer("payload")

    def ended(self) -> Self:
        return self.filter(state__in=ENDED)


class Delivery(models.Model):
    """One event for one endpoint. It keeps what is sent, for it may be tried for longer than the event is kept."""

    id = models.BigAutoField(primary_key=True)
    endpoint = models.ForeignKey(
        Endpoint, on_delete=models.CASCADE, related_name="deliveries", db_index=False
    )
    #: `webhook-id`: the same at every try and replay, for the receiver to know it by.
    message_id = models.CharField(max_length=64)
    event = models.CharField(max_length=30)
    #: The body, byte by byte, as it is signed.
    payload = models.TextField()
    state = models.SmallIntegerField(choices=State, default=State.PENDING)
    tries = models.SmallIntegerField(default=0)
    next_attempt_at = models.DateTimeField(db_default=Now())
    claim_token = models.UUIDField(null=True)
    lease_until = models.DateTimeField(null=True)
    #: Of the last try: the receiver's status, what went wrong, and how long it took.
    code = models.SmallIntegerField(null=True)
    error = models.CharField(max_length=200, default="")
    duration_ms = models.IntegerField(null=True)
    last_attempt_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(db_default=Now())
    finished_at = models.DateTimeField(null=True)

    objects: ClassVar[DeliveryQuerySet] = DeliveryQuerySet.as_manager()  # type: ignore[assignment]

    class Meta:
        verbose_name_plural = "deliveries"
        indexes = [
            # The list of an endpoint, its newest first.
            models.Index("endpoint", F("id").desc(), name="delivery_newest"),
            # The claim: which endpoints have something due, and what.
            models.Index(
                "endpoint", "next_attempt_at", "id", name="delivery_due", condition=Q(state=State.PENDING)
            ),
            # The claim and the rescue: what is in somebody's hands.
            models.Index("endpoint", "lease_until", name="delivery_held", condition=Q(state=State.SENDING)),
            # Prune.
            models.Index("created_at", name="delivery_old"),
        ]
        constraints = [
            # However often an event is read, it goes to an endpoint once.
            models.UniqueConstraint(fields=["endpoint", "message_id"], name="delivery_once"),
            models.CheckConstraint(name="delivery_state_known", condition=Q(state__in=State.values)),
            models.CheckConstraint(
                name="delivery_held_by_one",
                condition=Q(state=State.SENDING, claim_token__isnull=False, lease_until__isnull=False)
                | Q(~Q(state=State.SENDING), claim_token=None, lease_until=None),
            ),
            models.CheckConstraint(
                name="delivery_ended",
                condition=Q(state__in=ENDED, finished_at__isnull=False)
                | Q(~Q(state__in=ENDED), finished_at=None),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.event} {self.message_id}"


class EventCursor(models.Model):
    """One row: up to where events have been read. Whoever reads holds its lock."""

    id = models.SmallIntegerField(primary_key=True)
    position = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return str(self.position)
