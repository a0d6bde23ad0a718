"""API keys: for programs, each with only the rights that it needs. The key itself is seen once, by its owner."""

import hashlib
import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import ClassVar, Self

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.utils import timezone

#: By this a key is told from an access token, by us and by those who search sources for leaked secrets.
MARK = "mq_"
#: So much of a key is kept and shown, to know it by: 48 of its 256 bits.
SHOWN = len(MARK) + 8
KEYS_PER_OWNER = 100
#: `last_used_at` is written at most so often.
NOTE_USE_EVERY = timedelta(minutes=1)


class Scope(models.TextChoices):
    """What a key is good for; none includes another. Each view names the one it takes (accounts/api/scopes.py)."""

    SEND = "send", "hand over mail"
    READ = "read", "read tasks and settings"
    MANAGE = "manage", "cancel, retry, resolve, change settings and keys"


def digest_of(secret: str) -> str:
    """SHA-256, once: of 256 random bits there is nothing to guess, and a slow hash would be paid by each call."""
    return hashlib.sha256(secret.encode()).hexdigest()


class ApiKeyQuerySet(models.QuerySet["ApiKey"]):
    def behind(self, secret: str) -> "ApiKey | None":
        """The key with its owner and their account, in one query; it may have expired."""
        return self.select_related("owner__smtp").filter(digest=digest_of(secret)).first()

    def note_use(self, key: "ApiKey") -> None:
        """Writes when it was used, unless somebody did within the minute."""
        now = timezone.now()
        if key.last_used_at is not None and key.last_used_at > now - NOTE_USE_EVERY:
            return
        key.last_used_at = now
        before = models.Q(last_used_at=None) | models.Q(last_used_at__lte=now - NOTE_USE_EVERY)
        self.filter(before, pk=key.pk).update(last_used_at=now)


class ApiKey(models.Model):
    """Who has the secret acts for the owner, within the scopes. Revoking is deleting: nothing of it is left."""

    id = models.BigAutoField(primary_key=True)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=100)
    prefix = models.CharField(max_length=SHOWN, editable=False)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    scopes = ArrayField(models.CharField(max_length=10, choices=Scope))
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects: ClassVar[ApiKeyQuerySet] = ApiKeyQuerySet.as_manager()  # type: ignore[assignment]

    class Meta:
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    @classmethod
    def mint(
        cls, owner: models.Model, name: str, scopes: Iterable[str], expires_at: datetime | None = None
    ) -> tuple[Self, str]:
        """A new key, and its secret, which cannot be had again."""
        secret = MARK + secrets.token_urlsafe(32)
        key = cls(owner=owner, name=name, scopes=sorted(set(scopes)), expires_at=expires_at)
        key.prefix, key.digest = secret[:SHOWN], digest_of(secret)
        key.save(force_insert=True)
        return key, secret

    def has_expired(self, now: datetime) -> bool:
        return self.expires_at is not None and self.expires_at <= now
