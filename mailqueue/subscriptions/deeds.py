"""What owners and recipients do with subscriptions. Each deed holds the row, as the tick does while it makes mails.

Times are the database's, for the clocks of web processes may differ.
"""

from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models.functions import Now

from accounts.models import User
from mailqueue.done import DoneTask
from mailqueue.subscriptions import schedule
from mailqueue.subscriptions.models import Content, Occurrence, State, Subscription, SubscriptionQuerySet
from tasks import ledger, pruning
from tasks.models import MailTask
from tasks.states import CancelReason
from tasks.submission import AccountClosedError

#: Of an ended subscription, so many of the last mails are cancelled if they still wait.
_LAST_MAILS = 100


class EndedError(Exception):
    """It has ended: its recipient may have said so. To subscribe again is another call."""


def now() -> datetime:
    """The database's."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        found: datetime = cursor.fetchone()[0]
    return found


@transaction.atomic
def subscribe(owner: User, recipient: str, content_type: str, **wanted: Any) -> tuple[Subscription, bool]:
    """The subscription, active; False if there was one, which is changed to what is wanted: `line`, `zone`,
    `window`, `policy`, `max_tries`, `name`."""
    # One after the other: else two that subscribe the same would both find that there was none.
    if not User.objects.select_for_update(no_key=True).filter(pk=owner.pk, is_active=True).exists():
        raise AccountClosedError
    mine = Subscription.objects.owned_by(owner).to(recipient).filter(content_type=content_type)
    found = mine.select_for_update().first()
    subscription = found or Subscription(owner=owner, recipient=recipient, content_type=content_type)
    before = subscription.schedule, subscription.state
    for name, value in wanted.items():
        setattr(subscription, name, value)
    subscription.state = State.ACTIVE
    if found is None or before != (subscription.schedule, State.ACTIVE):
        subscription.next_at = schedule.following(subscription.schedule, now())
    subscription.save()
    return subscription, found is None


@transaction.atomic
def change(pk: int, **changes: Any) -> Subscription:
    """Another schedule, policy or number of tries. The next time is found anew if it is another schedule."""
    subscription = Subscription.objects.select_for_update().get(pk=pk)
    before = subscription.schedule
    for name, value in changes.items():
        setattr(subscription, name, value)
    if subscription.state == State.ACTIVE and subscription.schedule != before:
        subscription.next_at = schedule.following(subscription.schedule, now())
    subscription.save()
    return subscription


@transaction.atomic
def pause(pk: int) -> Subscription:
    """Makes no more mails until it is resumed; EndedError."""
    subscription = _held(pk)
    subscription.state, subscription.next_at = State.PAUSED, None
    subscription.save(update_fields=["state", "next_at"])
    return subscription


@transaction.atomic
def resume(pk: int) -> Subscription:
    """Goes on with the next time from now; what would have come meanwhile does not. EndedError."""
    subscription = _held(pk)
    if subscription.state == State.PAUSED:
        subscription.state = State.ACTIVE
        subscription.next_at = schedule.following(subscription.schedule, now())
        subscription.save(update_fields=["state", "next_at"])
    return subscription


def _held(pk: int) -> Subscription:
    subscription = Subscription.objects.select_for_update().get(pk=pk)
    if subscription.state == State.ENDED:
        raise EndedError
    return subscription


@transaction.atomic
def end(subscriptions: SubscriptionQuerySet) -> list[int]:
    """Ends them, and cancels their mails that still wait; the ids of those that had not ended."""
    running = list(subscriptions.exclude(state=State.ENDED).order_by("id").select_for_update(of=("self",)))
    ids = [each.pk for each in running]
    Subscription.objects.filter(id__in=ids).update(state=State.ENDED, next_at=None)
    for each in running:
        _cancel_mails(each)
    return ids


@transaction.atomic
def remove(subscription: Subscription) -> None:
    """With what is known of its times. A link in an old mail then leads nowhere, which its recipient is told."""
    _cancel_mails(Subscription.objects.select_for_update().get(pk=subscription.pk))
    subscription.delete()


def _cancel_mails(subscription: Subscription) -> None:
    made = Occurrence.objects.filter(subscription=subscription, task_id__isnull=False).order_by("-at")
    mails = MailTask.objects.filter(
        owner_id=subscription.owner_id, id__in=list(made.values_list("task_id", flat=True)[:_LAST_MAILS])
    )
    ledger.cancel(mails, CancelReason.USER)


@transaction.atomic
def forget_owner(user: User, **_signal: Any) -> None:
    """Receiver of account_closed, in its transaction."""
    theirs = Subscription.objects.owned_by(user)
    # Held first: the tick may just be writing an occurrence of one.
    ids = list(theirs.order_by("id").select_for_update().values_list("id", flat=True))
    pruning.delete_rows(Occurrence.objects.filter(subscription__in=ids))
    pruning.delete_rows(Subscription.objects.filter(id__in=ids))
    Content.objects.filter(owner=user).delete()
    pruning.delete_rows(DoneTask.objects.filter(owner=user))


def prune() -> int:
    """Lets go of occurrences that are older than their mails may be, in bites; how many."""
    old = Now() - timedelta(days=settings.MAIL_KEEP_DAYS)
    return pruning.prune(Occurrence.objects.filter(created_at__lt=old), "created_at")
