"""What a courier does in the ledger, in a thread beside its loop: claims what may go, settles what became of it."""

import logging
import uuid

from django.db import DatabaseError, InterfaceError, OperationalError

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


class Clerk:
    """One courier's. Its methods are called from the courier's ledger threads, `claim` from one at a time."""

    def __init__(self, worker: str, journal: Journal) -> None:
        self._worker = worker
        self._journal = journal
        #: What the next claim holds its mails under; a claim that finds nothing leaves it to the one after.
        self._token = uuid.uuid4()
        #: Of claims that came to nothing here, while the database may have committed them.
        self._doubtful: list[uuid.UUID] = []

    def claim(
        self, limit: int, lease_seconds: float, rooms: dict[int, tuple[int, int]], after: int
    ) -> tuple[list[Claimed], dict[int, Route], float | None]:
        """The mails that may go now, their owners' routes, and after how many seconds an account opens that is at
        its limit. What may not go is back in the ledger, its account closed first so that nobody claims it again at
        once."""
        while True:
            self._put_back_doubtful()
            # The token is in the journal before the claim: no mail is ever held under one that no journal knows.
            self._journal.claimed(self._token)
            try:
                claimed = ledger.claim(
                    limit, lease_seconds, token=self._token, room=FIRST_HAND, rooms=rooms, after=after
                )
                if not claimed:
                    return [], {}, limits.next_opening()
                wanted = self._end_suppressed(claimed)
                admitted, found, opens_in = self._admit(wanted)
            except BaseException:
                # Before the answer or after it: nobody will send what the database may hold under this token.
                self._doubtful.append(self._token)
                self._token = uuid.uuid4()
                raise
            if not admitted:
                self._journal.released(self._token)
            self._token = uuid.uuid4()
            if wanted:  # else it is claimed again: for the courier nothing would mean that nothing is due
                return admitted, found, opens_in

    def _end_suppressed(self, claimed: list[Claimed]) -> list[Claimed]:
        """Brings those to their end whose recipient was suppressed while they waited; the others."""
        ended = [ledger.suppressed(mail) for mail in claimed if mail.is_suppressed]
        if ended:
            ledger.settle(ended, self._worker)
        return [mail for mail in claimed if not mail.is_suppressed] if ended else claimed

    def _admit(self, claimed: list[Claimed]) -> tuple[list[Claimed], dict[int, Route], float | None]:
        accounts = accounts_of(mail.owner_id for mail in claimed)
        admission = limits.admit(claimed, accounts)
        limits.close_accounts(admission.closed)
        if admission.put_off:
            ledger.settle(admission.put_off, self._worker)
        owners = {mail.owner_id for mail in admission.admitted}
        found = {owner_id: route(accounts[owner_id]) for owner_id in owners}
        return admission.admitted, found, min(admission.closed.values(), default=None)

    def _put_back_doubtful(self) -> None:
        """What is held under them nobody sends, and it need not wait for its lease."""
        if not self._doubtful:
            return
        why = "Its worker was interrupted when it had claimed it."
        unsent = [ledger.put_back(mail, why) for mail in ledger.held(self._doubtful)]
        if unsent:
            ledger.settle(unsent, self._worker)
        for token in self._doubtful:
            self._journal.released(token)
        self._doubtful.clear()

    def release(self) -> None:
        """Lets the token go that was meant for the next claim."""
        self._journal.released(self._token)
        self._token = uuid.uuid4()

    def settle(self, batch: list[Settlement]) -> set[int]:
        """All at once; if the database refuses one of them, each by itself, so that it stops no other."""
        try:
            return ledger.settle(batch, self._worker)
        except (OperationalError, InterfaceError):
            raise
        except DatabaseError:
            logger.exception("settlement_refused", extra={"task_ids": [one.id for one in batch]})
            if len(batch) == 1:
                return _settle_plainly(batch[0], self._worker)
            return set().union(*(self.settle([one]) for one in batch))


def _settle_plainly(refused: Settlement, worker: str) -> set[int]:
    """The verdict without anything that the relay has said; if that is refused too, a person decides.

    Left in process it would be rescued, sent and refused again, for ever.
    """
    why = "The database refused what the relay said; the log has it."
    plain = refused._replace(
        wait=refused.wait and UNWRITTEN_WAIT, phase=None, code=None, reply=why, duration_ms=0
    )
    held = Settlement(refused.id, refused.token, Status.UNCERTAIN, outcome=Outcome.UNCERTAIN, reply=why)
    try:
        return ledger.settle([plain], worker)
    except (OperationalError, InterfaceError):
        raise
    except DatabaseError:
        logger.exception("settlement_refused", extra={"task_ids": [refused.id]})
        return ledger.settle([held], worker)
