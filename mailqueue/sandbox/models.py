"""The mails the sandbox took, the newest of them, for somebody to look at."""

from typing import ClassVar, Self

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Func, Q, Value

#: How many mails are kept.
KEEP = 10_000


def _storable(text: str) -> str:
    """PostgreSQL knows no NUL."""
    return text.replace("\0", "")


class SandboxMailQuerySet(models.QuerySet["SandboxMail"]):
    def newest(self) -> Self:
        """Without the mails themselves: a page of the list stays small however large they are."""
        return self.order_by("-id").defer("raw")

    def to(self, recipient: str) -> Self:
        return self.filter(recipients__contains=[_storable(recipient)])

    def matching(self, words: str) -> Self:
        """Recipient or subject contains it. A scan, over KEEP rows at most."""
        words = _storable(words)
        in_a_row = Func("recipients", Value(" "), function="array_to_string", output_field=models.TextField())
        return self.alias(addressed=in_a_row).filter(
            Q(addressed__icontains=words) | Q(subject__icontains=words)
        )

    def prune(self, keep: int = KEEP) -> int:
        """Deletes all but the newest; returns how many went. One walk along the primary key."""
        oldest_to_go = self.order_by("-id").values_list("id", flat=True)[keep : keep + 1].first()
        return self.filter(id__lte=oldest_to_go).delete()[0] if oldest_to_go else 0


class SandboxMail(models.Model):
    """One mail as it came over SMTP: the envelope, and the bytes after DATA."""

    received_at = models.DateTimeField()
    sender = models.TextField()
    recipients = ArrayField(models.TextField())
    #: Decoded, for the list.
    subject = models.TextField()
    size = models.IntegerField()
    raw = models.BinaryField()

    objects: ClassVar[SandboxMailQuerySet] = SandboxMailQuerySet.as_manager()  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"{self.subject} to {', '.join(self.recipients)}"
