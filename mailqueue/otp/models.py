"""What is kept of a one-time password: by what it is recognised, and how often somebody has tried."""

from django.db import models
from django.db.models import Q

from accounts.models import User


class Code(models.Model):
    """One code for one recipient of one owner. The code itself is in the mail alone."""

    id = models.BigAutoField(primary_key=True)
    owner = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+", db_index=False)
    #: In small letters, its domain in A-labels.
    recipient = models.CharField(max_length=320)
    #: accounts.sealing.mark of owner, recipient and code.
    mark = models.BinaryField()
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    #: How often it was asked for, whatever the answer was; not counted beyond one too many.
    attempts = models.SmallIntegerField(default=0)
    used_at = models.DateTimeField(null=True)
    #: When a newer one took its place.
    voided_at = models.DateTimeField(null=True)
    #: The mail that brings it.
    task_id = models.BigIntegerField()

    class Meta:
        indexes = [
            # How many a recipient has had lately (issue).
            models.Index("owner", "recipient", "created_at", name="otp_recent"),
            # What is old enough to leave (prune).
            models.Index("created_at", name="otp_age"),
        ]
        constraints = [
            # The one that counts (verify); there is never a second.
            models.UniqueConstraint(
                fields=["owner", "recipient"], condition=Q(voided_at=None), name="otp_newest"
            )
        ]

    def __str__(self) -> str:
        return f"for {self.recipient}"
