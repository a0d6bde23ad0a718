"""What owners write and change: every change is a new version, and the last of them are kept."""

from typing import Any

from django.db import models, transaction
from django.utils import timezone

VERSIONS_KEPT = 50


class Versioned(models.Model):
    """Who it is, and how many versions it has had. What each said is a row of `versions`, with its `number`."""

    #: The manager of what points here.
    versions: Any

    version = models.IntegerField(default=1)
    created_at = models.DateTimeField(default=timezone.now)
    updated_at = models.DateTimeField(default=timezone.now)

    class Meta:
        abstract = True

    @transaction.atomic
    def change(self, parts: dict[str, str]) -> Any:
        """A new version; of the old ones the last VERSIONS_KEPT stay."""
        # One change after the other.
        locked = type(self)._base_manager.select_for_update().get(pk=self.pk)  # noqa: SLF001 -- Django's own name
        self.version, self.updated_at = locked.version + 1, timezone.now()
        self.save(update_fields=["version", "updated_at"])
        self.versions.filter(number__lte=self.version - VERSIONS_KEPT).delete()
        return self.versions.create(number=self.version, **parts)

    def at(self, number: int | None) -> Any:
        """One version, None if there is none; the newest for None."""
        return self.versions.filter(number=number or self.version).first()
