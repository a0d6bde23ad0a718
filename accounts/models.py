"""Who may use the service, and through which relay their mail goes."""

from datetime import datetime
from typing import Any, ClassVar, Self

from django.contrib.auth.models import AbstractBaseUser, BaseUserManager, PermissionsMixin
from django.db import models, transaction
from django.dispatch import Signal
from django.utils import timezone

from accounts.keys import ApiKey
from accounts.quota import DailyUse
from accounts.sealing import seal, unseal

__all__ = ["ApiKey", "DailyUse"]  # Django looks for models here

#: How many events of an account are kept, and how many its owner is shown.
KEPT_EVENTS, SHOWN_EVENTS = 50, 10

#: Sent inside the transaction that closes an account; what waits in the ledger is cancelled by its receiver.
account_closed = Signal()


class UserManager(BaseUserManager["User"]):
    def create_user(self, email: str, password: str, **fields: Any) -> "User":
        """A user who can send through the default relay at once."""
        user = self.model(email=email.lower(), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str, **fields: Any) -> "User":
        return self.create_user(email, password, is_staff=True, is_superuser=True, **fields)

    def get_by_natural_key(self, username: str | None) -> "User":
        return self.get(email=(username or "").lower())


class User(AbstractBaseUser, PermissionsMixin):
    """Logs in with an e-mail address, kept in lower case."""

    email = models.EmailField(unique=True)
    is_active = models.BooleanField(default=True)
    is_staff = models.BooleanField(default=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    daily_quota = models.PositiveIntegerField(
        null=True,
        blank=True,
        help_text="Mails that may be handed over on one UTC day. Empty: MAIL_DAILY_QUOTA. 0: none.",
    )

    objects: ClassVar[UserManager] = UserManager()

    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"

    def __str__(self) -> str:
        return self.email

    def clean(self) -> None:
        super().clean()
        self.email = self.email.lower()

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Every user has an SMTP account from the start, whichever door they came in by."""
        is_new = self._state.adding
        with transaction.atomic():
            super().save(*args, **kwargs)
            if is_new:
                SmtpAccount.objects.create(owner=self, from_email=self.email)

    def close(self) -> None:
        """Deactivates for good; call inside a transaction. What waits is cancelled by the ledger."""
        self.is_active = False
        self.save(update_fields=["is_active"])
        ApiKey.objects.filter(owner=self).delete()
        account_closed.send(sender=User, user=self)


class Security(models.TextChoices):
    """How the connection to the relay is protected."""

    AUTO = "auto", "auto: TLS on 465, else STARTTLS"
    TLS = "tls", "implicit TLS"
    STARTTLS = "starttls", "STARTTLS required"
    NONE = "none", "none (allowed networks only)"


class AccountState(models.TextChoices):
    """Whether mail goes out. Moved by the courier, by the SMTP test, and by a change of the settings."""

    UNVERIFIED = "unverified", "unverified"  # no relay has taken these settings yet; mail is tried
    ACTIVE = "active", "active"  # the relay has taken them
    PAUSED = "paused", "paused"  # the breaker is open: mail waits, no try is used up


class SmtpAccount(models.Model):
    """One relay for each user. An empty host means the default relay (DEFAULT_SMTP_URL)."""

    #: What `manage.py rotate_credentials` seals again.
    SEALED = ("sealed_password",)

    owner = models.OneToOneField(User, on_delete=models.CASCADE, primary_key=True, related_name="smtp")
    host = models.CharField(max_length=253, blank=True)
    port = models.PositiveIntegerField(default=587)
    username = models.CharField(max_length=254, blank=True)
    sealed_password = models.TextField(blank=True, editable=False)
    security = models.CharField(max_length=8, choices=Security, default=Security.AUTO)
    from_email = models.EmailField()
    max_connections = models.PositiveSmallIntegerField(default=10)
    state = models.CharField(max_length=10, choices=AccountState, default=AccountState.UNVERIFIED)
    reason = models.CharField(max_length=500, blank=True)
    #: Until then nothing of this account is claimed; afterwards one probe is.
    paused_until = models.DateTimeField(null=True, blank=True)
    per_second = models.PositiveIntegerField(null=True, blank=True)
    per_minute = models.PositiveIntegerField(null=True, blank=True)
    per_hour = models.PositiveIntegerField(null=True, blank=True)
    per_day = models.PositiveIntegerField(null=True, blank=True)
    #: The limits above allow the next mail then; written by the courier.
    limited_until = models.DateTimeField(null=True, blank=True, editable=False)
    #: Account faults in a row; the pause doubles with each.
    faults = models.PositiveSmallIntegerField(default=0)
    #: Failed connections in a row, over all workers. Written when one fails, and once when the relay answers again.
    missed = models.PositiveSmallIntegerField(default=0, db_default=0)

    #: What reopen() changes.
    REOPENED = ("state", "reason", "paused_until", "faults", "missed")

    class Meta:
        verbose_name = "SMTP account"
        # Which account at its limit may go on next (the courier, when it finds nothing to send).
        indexes = [
            models.Index(
                fields=["limited_until"],
                name="account_limited",
                condition=models.Q(limited_until__isnull=False),
            )
        ]

    def __str__(self) -> str:
        return f"{self.username or 'anonymous'} at {self.host or 'the default relay'}"

    @property
    def password(self) -> str:
        return unseal(self.sealed_password)

    @password.setter
    def password(self, secret: str) -> None:
        self.sealed_password = seal(secret)

    @property
    def uses_default_relay(self) -> bool:
        return not self.host

    @property
    def history(self) -> "list[AccountEvent]":
        """When it was paused and resumed, the newest first."""
        return list(self.events.all()[:SHOWN_EVENTS])

    def reopen(
        self,
        why: str = "The SMTP settings were changed.",
        state: AccountState = AccountState.UNVERIFIED,
    ) -> Self:
        """Forgets what went wrong: everything may be tried, and by itself nothing is proven. The caller saves
        REOPENED, in the same transaction."""
        was_paused = self.paused_until is not None
        self.state, self.reason, self.paused_until, self.faults, self.missed = state, "", None, 0, 0
        if was_paused:
            self.note(AccountChange.RESUMED, why)
        return self

    def note(self, what: "AccountChange", reason: str, until: datetime | None = None) -> None:
        """Writes it into the account's history, and lets go of what is too old to be shown to anybody."""
        self.events.create(what=what, reason=reason[:500], until=until)
        self.events.filter(id__in=list(self.events.values_list("id", flat=True)[KEPT_EVENTS:])).delete()


class AccountChange(models.TextChoices):
    PAUSED = "paused", "paused"  # the breaker opened, or stays open after a probe that failed
    RESUMED = "resumed", "resumed"  # the breaker closed


class AccountEvent(models.Model):
    """One opening or closing of an account's breaker, for its owner to read."""

    id = models.BigAutoField(primary_key=True)
    account = models.ForeignKey(SmtpAccount, on_delete=models.CASCADE, related_name="events", db_index=False)
    at = models.DateTimeField(default=timezone.now)
    what = models.CharField(max_length=10, choices=AccountChange)
    #: What was wrong, or what has mended it.
    reason = models.CharField(max_length=500)
    #: The end of the pause.
    until = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-id"]
        # GET /user/{id} and the admin: an account's newest.
        indexes = [models.Index("account", models.F("id").desc(), name="account_history")]

    def __str__(self) -> str:
        return f"{self.what} at {self.at:%Y-%m-%d %H:%M}"
