"""Plain rows, and clients that act as their owners."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import uuid4

import factory
from django.contrib.auth.hashers import make_password
from django.utils import timezone
from factory.django import DjangoModelFactory
from rest_framework.test import APIClient

from accounts.api.authentication import SingleUseToken
from accounts.models import Security, SmtpAccount, User
from tasks import ledger
from tasks.ledger import Claimed
from tasks.models import Claim, Due, MailContent, MailTask
from tasks.states import WAITING, CancelReason, Status

PASSWORD = "correct horse battery"


@lru_cache
def _hashed(password: str) -> str:
    """The real hash, made once: it is slow on purpose."""
    return make_password(password)


class UserFactory(DjangoModelFactory):
    """A user on the default relay; `user.smtp` is the account."""

    class Meta:
        model = User

    email = factory.Sequence(lambda number: f"user{number}@example.com")
    password = factory.LazyFunction(lambda: _hashed(PASSWORD))


def client_of(user: User) -> APIClient:
    """Calls the API with an access token of this user; a 500 is an answer, not an exception."""
    client = APIClient(raise_request_exception=False)
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {SingleUseToken.for_user(user).access_token}")
    return client


def sending_user(port: int, **account: Any) -> User:
    """A user whose mail goes to a relay on a loopback port."""
    user = UserFactory()
    SmtpAccount.objects.filter(owner=user).update(host="127.0.0.1", port=port, **account)
    user.smtp.refresh_from_db()
    return user


def with_login(user: User, name: str, password: str, security: Security = Security.NONE) -> User:
    """The same user with a name and a password at the relay."""
    user.smtp.username, user.smtp.password, user.smtp.security = name, password, security
    user.smtp.save()
    return user


RAW = b"Message-ID: <%s@example.com>\r\nSubject: hello\r\n\r\nHello.\r\n"


class MailFactory(DjangoModelFactory):
    """A queued mail that has been due for a minute; other states come with what the database wants of them."""

    class Meta:
        model = MailTask

    owner = factory.SubFactory(UserFactory)
    max_tries = 8
    due_at = factory.LazyFunction(lambda: timezone.now() - timedelta(minutes=1))
    sender = "ada@example.com"
    recipient = factory.Sequence(lambda number: f"reader{number}@example.com")
    subject = "hello"
    message_id = factory.LazyFunction(lambda: f"<{uuid4().hex}@example.com>")

    @classmethod
    def _create(cls, model_class: type[MailTask], *args: Any, **kwargs: Any) -> MailTask:
        raw, lease_until = kwargs.pop("raw", None), kwargs.pop("lease_until", None)
        needed = _needed_by(kwargs.get("status", Status.QUEUED))
        task = super()._create(model_class, *args, **needed | kwargs)
        hold_or_let_wait([task], lease_until)
        raw = raw if raw is not None else RAW % task.message_id[1:-13].encode()
        MailContent.objects.create(task=task, raw=raw)
        return task


def hold_or_let_wait(tasks: Iterable[MailTask], lease_until: datetime | None = None) -> None:
    """The rows of the narrow tables that the ledger would have written."""
    for task in tasks:
        if task.status in WAITING:
            Due.objects.create(
                task=task, owner=task.owner, lane=task.lane, due_at=task.due_at, expires_at=task.expires_at
            )
        elif task.status == Status.PROCESSING:
            Claim.objects.create(
                token=task.claim_token,
                lease_until=lease_until or timezone.now() + timedelta(minutes=1),
                held=1,
                task_ids=[task.pk],
                owner_ids=[task.owner_id],
            )


def make_due(at: datetime | None = None) -> None:
    """The time of whatever waits has come: a minute ago, or `at`."""
    due_at = at or timezone.now() - timedelta(minutes=1)
    MailTask.objects.filter(status__in=WAITING).update(due_at=due_at)
    Due.objects.update(due_at=due_at)


def claim_one(lease_seconds: float = 60) -> Claimed:
    """What a worker would get now, which must be one mail."""
    (mail,) = ledger.claim(1, lease_seconds, token=uuid4(), room=50)
    return mail


def end_leases() -> None:
    """Whoever holds a mail has let its lease run out."""
    Claim.objects.update(lease_until=timezone.now() - timedelta(minutes=1))


def _needed_by(status: Status) -> dict[str, Any]:
    now = timezone.now()
    needed: dict[Status, dict[str, Any]] = {
        Status.PROCESSING: {
            "claim_token": uuid4(),
            "try_count": 1,
            "started_at": now,
        },
        Status.SUCCESS: {"finished_at": now, "try_count": 1},
        Status.CANCELLED: {"finished_at": now, "cancel_reason": CancelReason.USER, "has_failed": True},
        Status.FAILED: {"try_count": 1, "last_reply": "451 4.3.0 later", "has_failed": True},
        Status.UNCERTAIN: {"try_count": 1, "is_uncertain": True},
        Status.SCHEDULED: {"scheduled_at": now},
    }
    return needed.get(status, {})
