"""Whom an owner's mail does not go to any more. tasks/statements.py looks here when a mail is accepted or retried,
and writes here when a relay has said that there is no such mailbox."""

from typing import ClassVar, Self

from django.db import models
from django.db.models import F, Value
from django.db.models.functions import Lower
from django.utils import timezone

from accounts.models import User


class Cause(models.IntegerChoices):
    """Why an address is on the list."""

    HARD_BOUNCE = 0, "hard_bounce"  # a relay refused it for good: 5xx to RCPT with 5.1.x
    MANUAL = 1, "manual"  # its owner put it there


class SuppressionQuerySet(models.QuerySet["Suppression"]):
    def owned_by(self, owner: User) -> Self:
        return self.filter(owner=owner)

    def of(self, address: str) -> Self:
        """By the wire form of an address, in any case."""
        return self.filter(address=Lower(Value(address)))

    def add(self, owner: User, address: str) -> "tuple[Suppression, bool]":
        """Puts the wire form of an address on the owner's list. The row, and False if it was there before."""
        wanted = Suppression(owner=owner, address=Lower(Value(address)), reason=Cause.MANUAL)
        while True:
            self.bulk_create([wanted], ignore_conflicts=True)
            # Of two that come together one is told that it was there; who takes it off in between is passed by.
            if found := self.owned_by(owner).of(address).first():
                return found, found.created_at == wanted.created_at


class Suppression(models.Model):
    """An address in its wire form and in small letters, as PostgreSQL's lower() has them everywhere: that mailboxes
    differ by case alone is allowed (RFC 5321 2.4) and not seen. Deleted, it may be written to again."""

    id = models.BigAutoField(primary_key=True)
    # No foreign key in the database: the statement that settles a mail writes this too, and knows the owner.
    owner = models.ForeignKey(
        User, on_delete=models.CASCADE, related_name="+", db_index=False, db_constraint=False
    )
    #: Compared byte by byte: a language's order would take a batch's thousand comparisons twice as long.
    address = models.CharField(max_length=320, db_collation="C")
    reason = models.SmallIntegerField(choices=Cause)
    #: What the relay said; printable, 500 characters.
    reply = models.CharField(max_length=500, default="")
    #: The mail that led to it, which may be gone by now.
    task_id = models.BigIntegerField(null=True)
    created_at = models.DateTimeField(default=timezone.now)

    objects: ClassVar[SuppressionQuerySet] = SuppressionQuerySet.as_manager()  # type: ignore[assignment]

    class Meta:
        indexes = [
            # GET /suppressions: an owner's newest, all or of one reason.
            models.Index("owner", F("id").desc(), name="suppression_newest"),
            models.Index("owner", "reason", F("id").desc(), name="suppression_reason"),
        ]
        constraints = [
            # Also what acceptance and retry look up.
            models.UniqueConstraint(fields=["owner", "address"], name="suppression_address"),
            models.CheckConstraint(
                name="suppression_reason_known", condition=models.Q(reason__in=Cause.values)
            ),
        ]

    def __str__(self) -> str:
        return self.address
