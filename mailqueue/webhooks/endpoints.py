"""What is done with endpoints, by their owners, by staff and by the sender. Whoever changes which of an owner's are
active holds the owner's row, so that their events are written exactly while one of them is."""

import logging
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from accounts.models import User
from mailqueue.webhooks.models import Delivery, Endpoint
from mailqueue.webhooks.signing import new_secret
from tasks import events, pruning
from tasks.submission import AccountClosedError

logger = logging.getLogger(__name__)

ENDPOINTS_PER_OWNER = 10


class TooManyEndpointsError(Exception):
    """The owner has ENDPOINTS_PER_OWNER of them."""


@transaction.atomic
def make(owner: User, url: str, names: list[str], description: str) -> tuple[Endpoint, str]:
    """A new endpoint, and its secret, which is shown this once; AccountClosedError, TooManyEndpointsError."""
    if not User.objects.select_for_update().filter(pk=owner.pk, is_active=True).exists():
        raise AccountClosedError
    if Endpoint.objects.owned_by(owner).count() >= ENDPOINTS_PER_OWNER:
        raise TooManyEndpointsError
    secret = new_secret()
    endpoint = Endpoint(owner=owner, url=url, events=names, description=description)
    endpoint.keep_secret(secret)
    endpoint.save()
    events.listen(owner.pk)
    return endpoint, secret


@transaction.atomic
def change(endpoint: Endpoint, **changes: Any) -> None:
    """`url`, `events`, `description`, `is_active`, `reason`. Switched on again, it begins with a clean slate."""
    User.objects.select_for_update().get(pk=endpoint.owner_id)
    if changes.get("is_active") or "url" in changes:
        changes |= {"failing_since": None, "last_failed_at": None}
    Endpoint.objects.filter(pk=endpoint.pk).update(**changes)
    listen_if_needed(endpoint.owner_id)


def disable(endpoint: Endpoint, reason: str) -> bool:
    """Whether it was active until now. What waits for it stays, and goes on when it is active again."""
    with transaction.atomic():
        User.objects.select_for_update().get(pk=endpoint.owner_id)
        active = Endpoint.objects.active().filter(pk=endpoint.pk)
        was_active = bool(active.update(is_active=False, reason=reason[:200]))
        listen_if_needed(endpoint.owner_id)
    if was_active:
        logger.warning("webhook disabled", extra={"endpoint": endpoint.pk, "reason": reason})
    return was_active


@transaction.atomic
def remove(endpoint: Endpoint) -> None:
    """With all that waits for it, and all that went there."""
    User.objects.select_for_update().get(pk=endpoint.owner_id)
    endpoint.delete()
    listen_if_needed(endpoint.owner_id)


@transaction.atomic
def rotate(endpoint: Endpoint, grace: timedelta) -> tuple[Endpoint, str]:
    """The endpoint with another secret, which is shown this once; the old one signs too for so long."""
    locked = Endpoint.objects.select_for_update().get(pk=endpoint.pk)
    secret = new_secret()
    locked.keep_secret(secret, timezone.now() + grace if grace else None)
    locked.save(update_fields=["sealed_secret", "sealed_old_secret", "old_secret_until"])
    return locked, secret


def listen_if_needed(owner_id: int) -> None:
    """In a transaction that holds the owner's row."""
    if Endpoint.objects.active().filter(owner_id=owner_id).exists():
        events.listen(owner_id)
    else:
        events.unlisten(owner_id)


def forget_owner(user: User, **_signal: Any) -> None:
    """Receiver of account_closed, in its transaction."""
    Endpoint.objects.owned_by(user).delete()
    events.unlisten(user.pk)


def prune() -> int:
    """Lets go of what is older than KEPT, in bites; how many deliveries."""
    return pruning.prune(Delivery.objects.filter(created_at__lt=Now() - KEPT), "created_at")


#: A delivery may be looked at and replayed for so long from its event on. Its tries end long before.
KEPT = timedelta(days=14)
