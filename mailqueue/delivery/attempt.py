"""One attempt: a mail goes to its relay over a kept connection, and what came of it is read and told."""

import logging
import time
from functools import partial

from mailqueue.delivery import magic, replies
from mailqueue.delivery.handshake import Relay, SessionError
from mailqueue.delivery.journal import Journal, UnwritableError
from mailqueue.delivery.ledger_threads import LedgerThreads
from mailqueue.delivery.pool import Pool
from mailqueue.delivery.replies import Answer, Fault, Meaning, Verdict
from tasks import ledger
from tasks.ledger import Claimed
from tasks.states import Phase

logger = logging.getLogger(__name__)

#: Attempts that went well are told at INFO up to so many a second, so that a call can be followed to its mail; beyond
#: that, where there are thousands, at DEBUG.
TOLD_A_SECOND = 20


class Attempts:
    """One courier's, in its loop."""

    def __init__(self, pool: Pool, journal: Journal, threads: LedgerThreads) -> None:
        self._pool, self._journal, self._threads = pool, journal, threads
        #: A second, and how many attempts that went well it has had.
        self._told = (0, 0)

    async def make(self, mail: Claimed, relay: Relay | None, ends_at: float) -> tuple[Answer, Verdict, int]:
        """What came of it, and how long it took (ms); it is over by `ends_at` (the loop's seconds).

        UnwritableError if the dot could not be noted, and so was not sent. Whatever else is raised counts as put off.
        """
        started = time.monotonic()
        try:
            is_magic = magic.is_magic(mail.recipient)
            answer = await (self._conjure(mail) if is_magic else self._transact(relay, mail, ends_at))
            verdict = replies.read(answer)
        except UnwritableError:
            raise
        except Exception:
            # Put off and counted first, so that a mail that makes us raise stops nobody, then told.
            logger.exception("delivery_raised", extra={"task_id": mail.id})
            answer = Answer(Phase.CONNECT, text="The service failed while sending; its log says why.")
            verdict = Verdict(Meaning.TEMPORARY)
        duration_ms = int((time.monotonic() - started) * 1000)
        self._tell(mail, answer, verdict, duration_ms)
        return answer, verdict, duration_ms

    async def _transact(self, relay: Relay | None, mail: Claimed, ends_at: float) -> Answer:
        """One transaction; a kept connection that turns out to be dead is replaced once."""
        if relay is None:
            return Answer(Phase.AUTH, fault=Fault.UNREADABLE_PASSWORD)
        while True:
            try:
                session = await self._pool.take(relay, ends_at)
            except SessionError as error:
                return error.answer
            was_kept = session.transactions > 0
            try:
                raw = await self._content(mail)
                answer = await session.send(
                    mail.sender,
                    mail.recipient,
                    raw,
                    before_dot=partial(self._journal.dot, mail),
                    ends_at=ends_at,
                )
            finally:
                self._pool.give(relay, session)
            is_gone = answer.fault is Fault.LOST or answer.code == 421
            if not (was_kept and is_gone and answer.phase in (Phase.MAIL, Phase.RCPT)):
                self._note_reply(mail, answer)
                return answer

    async def _content(self, mail: Claimed) -> bytes:
        """A large mail is read when a session has come to it, so that memory holds as many as there are sessions."""
        return mail.raw if mail.raw is not None else await self._threads.persistently(ledger.content, mail.id)

    def _note_reply(self, mail: Claimed, answer: Answer) -> None:
        """A disk that is full now must not cost us the answer, which we have."""
        try:
            self._journal.reply(mail, answer)
        except UnwritableError:
            logger.exception("journal_unwritable", extra={"task_id": mail.id})

    async def _conjure(self, mail: Claimed) -> Answer:
        """What the magic address says, which is nothing about the account; taken means kept in the sandbox."""
        answer = await magic.answer(mail.recipient, mail.try_count)
        if answer is magic.TAKEN:
            raw = await self._content(mail)
            await self._threads.persistently(magic.announce, mail.sender, mail.recipient, raw)
        return answer

    def _tell(self, mail: Claimed, answer: Answer, verdict: Verdict, duration_ms: int) -> None:
        """To the log, with the id of the call that handed the mail over; what the relay said is on the task, for its
        owner to read."""
        level = logging.DEBUG if verdict.meaning is Meaning.ACCEPTED and self._is_a_flood() else logging.INFO
        if logger.isEnabledFor(level):
            tried = {"task_id": mail.id, "request_id": mail.request_id, "number": mail.try_count}
            came = {"meaning": verdict.meaning.name.lower(), "phase": answer.phase.label, "code": answer.code}
            logger.log(level, "attempt", extra=tried | came | {"duration_ms": duration_ms})

    def _is_a_flood(self) -> bool:
        """Whether this second has had its TOLD_A_SECOND of what went well."""
        second = int(time.monotonic())
        self._told = (second, self._told[1] + 1 if self._told[0] == second else 1)
        return self._told[1] > TOLD_A_SECOND
