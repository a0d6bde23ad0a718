"""What a courier does in the ledger, in a thread beside its loop: claims what may go, settles what became of it."""

import logging
import uuid
from dataclasses import replace

from django.db import DatabaseError, InterfaceError, OperationalError, transaction

from mailqueue.delivery import limits
from mailqueue.delivery.hand import FIRST_HAND
from mailqueue.delivery.journal import Journal
from mailqueue.delivery.routes import Route, accounts_of, route
from tasks import ledger
from tasks.ledger import Claimed, Settlement
from tasks.states import Outcome, Status

logger = logging.getLogger(__name__)

#: A mail to be tried again whose settlement could not be written as it was waits this long (seconds).
UNWRITTEN_WAIT = 3600.0


def claim(
    limit: int, lease_seconds: float, rooms: dict[int, int], after: int, *, worker: str, noted: Journal
) -> tuple[list[Claimed], dict[int, Route], float | None]:
    """The mails that may go now, their owners' routes, and after how many seconds an account opens that is at its
    limit. What may not go is back in the ledger, its account closed first so that nobody claims it again at once."""
    claimed = _claim_and_note(limit, lease_seconds, rooms, after, noted)
    if not claimed:
        return [], {}, limits.next_opening()
    accounts = accounts_of(mail.owner_id for mail in claimed)
    admission = limits.admit(claimed, accounts)
    limits.close_accounts(admission.closed)
    if admission.put_off:
        ledger.settle(admission.put_off, worker)
    for token in {mail.token for mail in claimed} - {mail.token for mail in admission.admitted}:
        noted.released(token)
    owners = {mail.owner_id for mail in admission.admitted}
    found = {owner_id: route(accounts[owner_id]) for owner_id in owners}
    return admission.admitted, found, min(admission.closed.values(), default=None)


def _claim_and_note(
    limit: int, lease_seconds: float, rooms: dict[int, int], after: int, noted: Journal
) -> list[Claimed]:
    tokens: set[uuid.UUID] = set()
    try:
        # Noted before the commit, so that no mail is ever held under a token that no journal knows.
        with transaction.atomic():
            claimed = ledger.claim(limit, lease_seconds, room=FIRST_HAND, rooms=rooms, after=after)
            tokens = {mail.token for mail in claimed}
            for token in tokens:
                noted.claimed(token)
    except BaseException:
        for token in tokens:
            noted.released(token)
        raise
    return claimed


def settle(batch: list[Settlement], worker: str) -> set[int]:
    """All at once; if the database refuses one of them, each by itself, so that it stops no other."""
    try:
        return ledger.settle(batch, worker)
    except (OperationalError, InterfaceError):
        raise
    except DatabaseError:
        logger.exception("settlement_refused", extra={"task_ids": [one.id for one in batch]})
        if len(batch) == 1:
            return _settle_plainly(batch[0], worker)
        return set().union(*(settle([one], worker) for one in batch))


def _settle_plainly(refused: Settlement, worker: str) -> set[int]:
    """The verdict without anything that the relay has said; if that is refused too, a person decides.

    Left in process it would be rescued, sent and refused again, for ever.
    """
    why = "The database refused what the relay said; the log has it."
    plain = replace(
        refused, wait=refused.wait and UNWRITTEN_WAIT, phase=None, code=None, reply=why, duration_ms=0
    )
    held = Settlement(refused.id, refused.token, Status.UNCERTAIN, outcome=Outcome.UNCERTAIN, reply=why)
    try:
        return ledger.settle([plain], worker)
    except (OperationalError, InterfaceError):
        raise
    except DatabaseError:
        logger.exception("settlement_refused", extra={"task_ids": [refused.id]})
        return ledger.settle([held], worker)
