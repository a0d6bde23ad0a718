"""What keeps the ledger moving when a bell was lost, a worker died or time has passed. All of it may run
twice, on two machines, at any moment: each deed looks at the table and changes what it names."""

import logging
from datetime import timedelta

from django.conf import settings
from django.db.models.functions import Now
from rest_framework_simplejwt.token_blacklist.models import OutstandingToken

from tasks import counters, doorbell, events, idempotency, ledger, partitions, pruning
from tasks.models import Attempt, IdempotencyKey, MailContent, MailTask, OneTime, Tag
from tasks.states import FINAL

logger = logging.getLogger(__name__)

#: Rows looked at in one bite; the next tick takes the next.
BITE = 1000
#: A mail may stay longer by this, until all of its partition may go; then it goes alone.
BESIDE_PARTITIONS = 1.1


def dispatch_due() -> dict[str, int]:
    """Cancels what expired, adds up what was counted, and calls a worker if anything is due, which is free where none
    is needed."""
    doorbell.tick()
    counters.fold()
    expired = expire()
    due = ledger.is_anything_due()
    if due:
        doorbell.call()
    return {"expired": expired, "rang": int(due)}


def expire() -> int:
    """Cancels what waited beyond its time; how many. Empties what has served once, such as a mail with a one-time
    password, which thereby is kept for a second or so after it was sent."""
    expired = ledger.expire(BITE)
    ledger.blank(BITE)
    return expired


def rescue() -> int:
    """Takes back what dead workers held; how many."""
    total = 0
    while rescued := ledger.rescue():
        total += rescued
    if total:
        doorbell.call()
    return total


def sweep() -> int:
    """The last net (FindUnprocessedTasksAndEnqueue): due and untouched for SWEEP_AFTER_SECONDS, though nothing
    holds it back. Clears a bell that may be stuck. How many were found, 1,000 at most."""
    found = ledger.forgotten(settings.SWEEP_AFTER_SECONDS, BITE)
    if found:
        counters.add("swept", found)
        doorbell.answer()
        doorbell.call()
    return found


def prune() -> int:
    """Deletes what came to its end MAIL_KEEP_DAYS ago, in bites or by whole partitions; how many mails."""
    keep, total = timedelta(days=settings.MAIL_KEEP_DAYS), 0
    if partitions.partitions():
        total = drop_partitions(keep)
        keep *= BESIDE_PARTITIONS
    old = Now() - keep
    ended = MailTask.objects.filter(created_at__lt=old, finished_at__lt=old, status__in=FINAL)
    for ids in pruning.bites(ended, "created_at"):
        for rows in (Attempt, MailContent, OneTime, Tag):
            pruning.delete_rows(rows.objects.filter(task_id__in=ids))
        ledger.forget(ids)
        total += len(ids)
    events.prune()
    counters.prune()
    if wrong := counters.recount():
        logger.warning("counters_mended", extra={"mails": wrong})
    IdempotencyKey.objects.filter(created_at__lt=Now() - idempotency.KEPT).delete()
    OutstandingToken.objects.filter(expires_at__lt=Now()).delete()
    return total


def drop_partitions(keep: timedelta) -> int:
    """Drops those in which all came to its end so long ago; how many mails went with them."""
    gone = 0
    try:
        while (left := partitions.drop_oldest(keep)) is not None:
            gone += left
    except partitions.BusyError as error:
        logger.warning("partitions_busy", extra={"detail": str(error)})
    partitions.analyze()
    return gone


def make_partitions() -> int:
    """The next ones, before they are needed; how many. Without them mail goes into the last, which takes all."""
    try:
        return partitions.keep_ahead()
    except partitions.BusyError as error:
        logger.warning("partitions_busy", extra={"detail": str(error)})
        return 0
