"""What must be done once is noted with its answer, in the transaction that does it."""

from collections.abc import Callable
from datetime import timedelta

from django.db import transaction

from tasks import ledger
from tasks.models import IdempotencyKey

#: An answer is replayed for so long; after that its key is free again.
KEPT = timedelta(hours=24)
#: How long (seconds) the second call waits for the first to commit. It holds up a web process meanwhile.
PATIENCE = 2.0


class StillRunningError(Exception):
    """The call that came first with this key is not done yet."""


class AnotherCallError(Exception):
    """The key was used for a call that asked for something else."""


@transaction.atomic
def once(owner_id: int, key: str, fingerprint: bytes, act: Callable[[], str]) -> tuple[str, bool]:
    """What `act` answers, or what it answered to the first call with this key; and whether that is so.

    Of calls at the same time the database's unique key lets one through; the others wait for its commit. If it fails
    the next of them acts.
    """
    try:
        is_first = ledger.take_key(owner_id, key, fingerprint, KEPT, PATIENCE)
    except ledger.KeyHeldError as error:
        raise StillRunningError from error
    if is_first:
        answer = act()
        ledger.keep_answer(owner_id, key, answer)
        return answer, False
    # It cannot be pruned meanwhile: take_key has locked it.
    kept = IdempotencyKey.objects.get(owner_id=owner_id, key=key)
    if bytes(kept.fingerprint) != fingerprint:
        raise AnotherCallError
    return kept.answer, True
