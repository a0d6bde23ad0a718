"""What the ledger ought to say, told again in plain Python, and workers that can die between any two of its calls.

The model knows no SQL. It is told what somebody did and says what must have come of it, to the last column.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import connection

from mailqueue.delivery import replies, retry
from mailqueue.delivery.clerk import Clerk
from mailqueue.delivery.journal import Journal
from mailqueue.delivery.replies import Answer, Fault
from tasks import ledger
from tasks.ledger import Claimed, Settlement
from tasks.states import WAITING, CancelReason, OnUncertain, Outcome, Phase, Status

LEASE = 120.0


class Clock:
    """PostgreSQL's now() and Django's, as a test moves them.

    PostgreSQL looks for a function where search_path says, so one of that name in a schema before its own is the one
    that the statements call.
    """

    FUNCTIONS = """
        CREATE SCHEMA clock;
        CREATE FUNCTION clock.now() RETURNS timestamptz LANGUAGE sql STABLE
            AS $$ SELECT pg_catalog.current_setting('clock.now')::timestamptz $$;
        CREATE FUNCTION clock.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE
            AS $$ SELECT pg_catalog.current_setting('clock.now')::timestamptz $$;
    """

    def __init__(self) -> None:
        self.now = datetime(2031, 1, 1, tzinfo=UTC)

    def wind(self) -> None:
        """On this thread's connection; as long as that lives, it must be told each time."""
        with connection.cursor() as cursor:
            cursor.execute("SET search_path = clock, pg_catalog, public")
            # Nothing here waits for a lock as long as it does what it should; who is waited for would be ourselves.
            cursor.execute("SET lock_timeout = '20s'")
        self.tell()

    def tell(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('clock.now', %s, false)", [self.now.isoformat()])

    def pass_by(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.tell()


class Verdict(NamedTuple):
    """What becomes of a mail that was in process."""

    status: Status
    #: Of the attempt that is noted; None where there was none.
    outcome: Outcome | None
    wait: float | None = None
    reason: CancelReason | None = None
    is_given_back: bool = False
    is_lost: bool = False

    @classmethod
    def of(cls, one: Settlement) -> "Verdict":
        return cls(one.status, one.outcome, one.wait, one.cancel_reason, one.give_back, one.is_lost)


class Deed(NamedTuple):
    """What a relay does with a mail. `answer` is what the worker hears, `takes` whether it has the mail."""

    answer: Answer
    takes: bool = False

    @property
    def is_after_dot(self) -> bool:
        return self.answer.phase is Phase.REPLY

    @property
    def is_cut(self) -> bool:
        """Cut off between the final dot and its reply."""
        return self.is_after_dot and self.answer.fault is not None


DEEDS = {
    "takes": Deed(Answer(Phase.REPLY, 250, "2.0.0 taken"), takes=True),
    "takes, reply lost": Deed(Answer(Phase.REPLY, fault=Fault.LOST), takes=True),
    "cut off": Deed(Answer(Phase.REPLY, fault=Fault.LOST)),
    "not now": Deed(Answer(Phase.REPLY, 451, "4.3.0 later")),
    "never": Deed(Answer(Phase.RCPT, 550, "5.0.0 no")),
    "never, after the dot": Deed(Answer(Phase.REPLY, 554, "5.6.0 no")),
    "cut off before the dot": Deed(Answer(Phase.DATA, fault=Fault.LOST)),
    "wrong password": Deed(Answer(Phase.AUTH, 535, "5.7.8 wrong password")),
}
#: When the lease ends before the reply has come.
TOO_LATE = Answer(Phase.REPLY, fault=Fault.TIMEOUT)


@dataclass
class Mail:
    """A row as it must be, and what the ledger cannot know of the mail."""

    pk: int
    owner: int
    lane: int
    policy: OnUncertain
    max_tries: int
    due: datetime
    expires: datetime | None
    status: Status
    moved: datetime
    tries: int = 0
    lost: int = 0
    reason: CancelReason | None = None
    token: UUID | None = None
    attempts: int = 0
    #: Nothing may leave before; a person may say "now".
    not_before: datetime = field(init=False)
    #: How often somebody said that it shall be sent: whoever entered it, and people who looked at it since.
    words: int = 1
    #: What the relay took of it.
    copies: "list[Hand]" = field(default_factory=list)
    #: Taken as sent by its owner's policy or word, without a 250.
    is_believed: bool = False

    def __post_init__(self) -> None:
        self.not_before = self.due

    @property
    def waits(self) -> bool:
        return self.status in WAITING

    @property
    def row(self) -> tuple[Any, ...]:
        assert 0 <= self.tries <= self.max_tries
        counts = (self.status, self.tries, self.lost, self.reason, self.token)
        return (self.pk, self.owner, self.lane, *counts, self.due, self.expires, self.moved)

    @property
    def ticket(self) -> tuple[Any, ...]:
        """Its row in tasks_due: it has one while it waits, and nothing else has."""
        return (self.pk, self.owner, self.lane, self.due, self.expires) if self.waits else (None,) * 5


@dataclass(eq=False)
class Hand:
    """One mail in one worker's hand: an attempt, as far as it came."""

    mail: Claimed
    deed: Deed | None = None
    answer: Answer | None = None
    settlement: Settlement | None = None
    #: The final dot has left, and whoever could know what came of it does not.
    is_cut: bool = False

    @property
    def key(self) -> tuple[int, UUID]:
        return self.mail.id, self.mail.token

    @property
    def has_dotted(self) -> bool:
        return self.deed is not None and self.deed.is_after_dot


def verdict_on(mail: Claimed, answer: Answer, now: datetime) -> Verdict:
    """What docs/lifecycle.md says of an attempt that ended so; without jitter."""
    if answer.phase is Phase.REPLY and answer.code == 250:
        return Verdict(Status.SUCCESS, Outcome.ACCEPTED)
    if answer.phase is Phase.AUTH:
        return Verdict(_before(mail), None, is_given_back=True)
    if answer.code in (550, 554):
        return Verdict(Status.CANCELLED, Outcome.REJECTED, reason=CancelReason.REJECTED)
    in_doubt = answer.phase is Phase.REPLY and answer.code is None
    outcome = Outcome.UNCERTAIN if in_doubt else Outcome.TEMPORARY
    if in_doubt and mail.on_uncertain != OnUncertain.RETRY:
        return Verdict(_by_policy(mail.on_uncertain), outcome)
    if mail.try_count >= mail.max_tries:
        return Verdict(Status.CANCELLED, outcome, reason=CancelReason.EXHAUSTED)
    wait = settings.MAIL_RETRY_SCHEDULE[mail.try_count - 1]
    if mail.expires_at and now + timedelta(seconds=wait) >= mail.expires_at:
        return Verdict(Status.CANCELLED, outcome, reason=CancelReason.EXPIRED)
    return Verdict(Status.FAILED, outcome, wait=wait)


def verdict_on_unsent(mail: Claimed) -> Verdict:
    """Its worker is dead and had surely not sent it."""
    wait = _wait_after_deaths(mail.lost_count)
    return Verdict(_before(mail), None, wait=wait, is_given_back=True, is_lost=True)


def _before(mail: Claimed) -> Status:
    return Status.FAILED if mail.try_count > 1 else Status.QUEUED


def _by_policy(policy: int) -> Status:
    return {0: Status.QUEUED, 1: Status.UNCERTAIN, 2: Status.SUCCESS}[policy]


def _wait_after_deaths(lost: int) -> float | None:
    return 60.0 * lost if lost >= 3 else None


class Model:
    """The mails and the leases. Each method says what one call of the ledger's must do, and does it here."""

    def __init__(self, clock: Clock, owners: Iterable[int], seen: Counter[str]) -> None:
        self.clock, self.seen = clock, seen
        self.mails: dict[int, Mail] = {}
        self.leases: dict[UUID, datetime] = {}
        self.paused: dict[int, datetime | None] = dict.fromkeys(owners)
        #: Every attempt there ever was.
        self.hands: dict[tuple[int, UUID], Hand] = {}

    def held_under(self, token: UUID) -> list[Mail]:
        return [mail for mail in self.mails.values() if mail.token == token]

    def waiting(self) -> list[Mail]:
        return [mail for mail in self.mails.values() if mail.waits]

    def is_open(self, owner: int) -> bool:
        """Whether the owner's account may send. After a pause it sends one mail, and waits for it."""
        until = self.paused[owner]
        if until is None:
            return True
        is_busy = any(mail.token and mail.owner == owner for mail in self.mails.values())
        return until <= self.clock.now and not is_busy

    def due(self) -> list[Mail]:
        """What is due of accounts that may send; what has expired too, until somebody cancels it."""
        return [mail for mail in self.waiting() if mail.due <= self.clock.now and self.is_open(mail.owner)]

    def claimable(self) -> set[int]:
        return {one.pk for one in self.due() if one.expires is None or one.expires > self.clock.now}

    def expired(self) -> list[Mail]:
        return [mail for mail in self.waiting() if mail.expires and mail.expires <= self.clock.now]

    def forgotten(self, seconds: float) -> list[Mail]:
        since = self.clock.now - timedelta(seconds=seconds)
        return [
            mail
            for mail in self.waiting()
            if mail.due <= since
            and mail.moved <= since
            and ((until := self.paused[mail.owner]) is None or until <= self.clock.now)
        ]

    def claimed(
        self, found: list[Claimed], limit: int, may: set[int], *, is_alone: bool = True
    ) -> list[Hand]:
        """Whatever was found, each mail of it was there to be claimed, and its claim tells the truth."""
        assert len({one.id for one in found}) == len(found) <= limit
        assert {one.id for one in found} <= may
        probes = [one.owner_id for one in found if self.paused[one.owner_id] is not None]
        assert len(probes) == len(set(probes))
        if any(self.paused[self.mails[pk].owner] is None for pk in may) and is_alone:
            assert found  # else it would wait, though it is due and a worker is free
        self.seen["claimed"] += len(found)
        self.seen["probes"] += len(probes)
        for one in found:
            mail = self.mails[one.id]
            self._move(mail, Status.PROCESSING)
            mail.tries, mail.token, mail.reason = mail.tries + 1, one.token, None
            self.leases[one.token] = self.clock.now + timedelta(seconds=LEASE)
            told = (mail.owner, mail.lane, mail.tries, mail.max_tries, mail.lost, mail.policy, mail.expires)
            assert one[2:9] == told
            self.hands[one.id, one.token] = Hand(one)
        return [self.hands[one.id, one.token] for one in found]

    def take(self, hand: Hand) -> None:
        """The relay has it. The promises about what leaves the house."""
        mail = self.mails[hand.mail.id]
        assert self.clock.now >= mail.not_before, "sent before its time"
        assert (mail.status, mail.token) == (Status.PROCESSING, hand.mail.token), "sent without a right to"
        assert all(copy.is_cut for copy in mail.copies), "sent twice, though the first reply was known"
        mail.copies.append(hand)
        self.seen["sent twice"] += len(mail.copies) > 1
        if mail.policy != OnUncertain.RETRY:
            assert len(mail.copies) <= mail.words, "sent twice, though nobody wanted that"

    def settle(self, verdicts: dict[tuple[int, UUID], Verdict]) -> set[int]:
        """Who holds a mail may say what became of it, once; the ids that were moved."""
        moved = set()
        for (pk, token), verdict in verdicts.items():
            mail = self.mails[pk]
            if mail.token != token:
                self.seen["late results"] += 1
                continue
            self._move(mail, verdict.status)
            mail.token, mail.reason = None, verdict.reason
            mail.tries -= verdict.is_given_back
            mail.lost += verdict.is_lost
            mail.attempts += verdict.outcome is not None
            if verdict.wait is not None:
                mail.due = self.clock.now + timedelta(seconds=verdict.wait)
            mail.is_believed = verdict.status == Status.SUCCESS and verdict.outcome != Outcome.ACCEPTED
            moved.add(pk)
            if not self.held_under(token):
                del self.leases[token]
        return moved

    def renew(self, tokens: Iterable[UUID]) -> set[UUID]:
        renewed = self.leases.keys() & set(tokens)
        for token in renewed:
            self.leases[token] = self.clock.now + timedelta(seconds=LEASE)
        return renewed

    def holds(self, hand: Hand) -> bool:
        return self.mails[hand.mail.id].token == hand.mail.token

    def over(self) -> list[UUID]:
        """The claims that no lease protects any more, the longest over first."""
        over = [(until, token) for token, until in self.leases.items() if until < self.clock.now]
        return [token for _, token in sorted(over)]

    def rescue(self, tokens: Iterable[UUID]) -> int:
        """Whole claims: no worker keeps a part of what it held. Whose dot had left may be sent again now."""
        verdicts = {}
        for mail in [mail for token in tokens for mail in self.held_under(token)]:
            assert mail.token
            hand = self.hands[mail.pk, mail.token]
            hand.is_cut = hand.has_dotted
            wait = _wait_after_deaths(mail.lost) or 0.0
            status = _by_policy(mail.policy)
            verdicts[hand.key] = Verdict(status, Outcome.LOST, wait, is_given_back=True, is_lost=True)
        self.seen["rescued"] += len(verdicts)
        return len(self.settle(verdicts))

    def cancel(self, mails: Iterable[Mail], reason: CancelReason) -> int:
        chosen = [mail for mail in mails if mail.waits]
        for mail in chosen:
            self._move(mail, Status.CANCELLED)
            mail.reason = reason
        self.seen["cancelled"] += len(chosen)
        return len(chosen)

    def requeue(self, mails: Iterable[Mail]) -> int:
        may = (Status.FAILED, Status.CANCELLED, Status.UNCERTAIN)
        chosen = [mail for mail in mails if mail.status in may]
        for mail in chosen:
            self._move(mail, Status.QUEUED)
            mail.tries, mail.lost, mail.reason = 0, 0, None
            mail.due = mail.not_before = self.clock.now
            mail.expires = mail.expires if mail.expires and mail.expires > self.clock.now else None
            mail.words += 1
        self.seen["retried"] += len(chosen)
        return len(chosen)

    def accept(self, mails: Iterable[Mail]) -> int:
        chosen = [mail for mail in mails if mail.status == Status.UNCERTAIN]
        for mail in chosen:
            self._move(mail, Status.SUCCESS)
            mail.is_believed = True
        self.seen["taken as sent"] += len(chosen)
        return len(chosen)

    def _move(self, mail: Mail, status: Status) -> None:
        mail.status, mail.moved = status, self.clock.now


class Worker:
    """As much of a courier as concerns the ledger: a real clerk and journal, no loop and no connection."""

    def __init__(self, model: Model, folder: Path, number: int) -> None:
        self.model, self.name = model, f"worker:{number}"
        self.journal = Journal(folder, self.name)
        self.clerk = Clerk(self.name, self.journal)
        self.hands: list[Hand] = []
        #: Also those that it has let go: their lines are still in its journal.
        self.all_hands: list[Hand] = []
        #: What it thinks of its leases.
        self.until: dict[UUID, datetime] = {}

    def take_in_hand(self, hands: list[Hand]) -> None:
        self.hands += hands
        self.all_hands += hands
        for hand in hands:
            self.until[hand.mail.token] = self.model.clock.now + timedelta(seconds=LEASE)

    @property
    def unsent(self) -> list[Hand]:
        return [hand for hand in self.hands if hand.deed is None]

    @property
    def unanswered(self) -> list[Hand]:
        return [hand for hand in self.hands if hand.deed and not hand.settlement]

    @property
    def unsettled(self) -> list[Hand]:
        return [hand for hand in self.hands if hand.settlement]

    def send(self, hand: Hand, deed: Deed, *, dies_at_dot: bool = False) -> None:
        if self.until[hand.mail.token] <= self.model.clock.now:  # it slept
            self.drop(hand)
            return
        if deed.is_after_dot:
            self.journal.dot(hand.mail)
        hand.deed = deed
        if dies_at_dot:
            return
        hand.is_cut = deed.is_cut
        if deed.takes:
            self.model.take(hand)

    def hear(self, hand: Hand) -> None:
        """The end of the transaction, and what is to be written of it."""
        assert hand.deed
        answer, mail, now = hand.deed.answer, hand.mail, self.model.clock.now
        if hand.deed.is_after_dot and self.until[mail.token] <= now:
            answer, hand.is_cut = TOO_LATE, True
        self.journal.reply(mail, answer)
        verdict = replies.read(answer)
        if verdict.meaning is replies.Meaning.ACCOUNT:
            hand.settlement = ledger.put_back(mail, str(answer))
        else:
            schedule = settings.MAIL_RETRY_SCHEDULE
            hand.settlement = retry.conclude(mail, answer, verdict, now=now, schedule=schedule, duration_ms=7)
        hand.answer = answer
        assert Verdict.of(hand.settlement) == verdict_on(mail, answer, now)

    def settle(self, hands: list[Hand], *, is_forgotten: bool = False) -> None:
        """Writes them; with `is_forgotten` it never hears that they were written."""
        settlements = [hand.settlement for hand in hands if hand.settlement]
        ours = self.clerk.settle(settlements)
        assert ours == self.model.settle({(one.id, one.token): Verdict.of(one) for one in settlements})
        if not is_forgotten:
            for hand in hands:
                self.drop(hand)

    def renew(self) -> None:
        renewed = ledger.renew(list(self.until), LEASE)
        assert renewed == self.model.renew(self.until)
        for token in renewed:
            self.until[token] = self.model.clock.now + timedelta(seconds=LEASE)

    def drop(self, hand: Hand) -> None:
        self.journal.settled(hand.mail)
        self.hands.remove(hand)
        if not any(one.mail.token == hand.mail.token for one in self.hands):
            self.journal.released(hand.mail.token)
            self.until.pop(hand.mail.token)

    def die(self) -> Path | None:
        """Its journal, if it has one; the kernel lets go of its lock."""
        if self.journal._fd is None:
            return None
        os.close(self.journal._fd)
        self.journal._fd = None
        return self.journal._path


class Dead:
    """A dead worker's journal, as far as it came to the disk."""

    def __init__(self, worker: Worker, path: Path, *, lines_kept: int | None = None) -> None:
        """With `lines_kept` its machine died too, and no more lines than those came to the disk."""
        self.worker, self.path, self.is_whole = worker, path, lines_kept is None
        _, *lines = path.read_text().splitlines()
        if lines_kept is not None:
            lines = lines[:lines_kept]
            path.write_text("".join(f"{line}\n" for line in ["B another-start", *lines]))
        words = [line.split() for line in lines]
        self.tokens = {UUID(word[1]) for word in words if word[0] == "C"}
        self.known = {(int(word[1]), UUID(word[2])): word[0] for word in words if word[0] in "DR"}
        for hand in worker.all_hands:
            if worker.model.holds(hand) and hand.has_dotted and self.known.get(hand.key) != "R":
                hand.is_cut = True

    def verdicts(self) -> dict[tuple[int, UUID], Verdict]:
        """What the next worker must make of it, of mails that are still held under these tokens."""
        found: dict[tuple[int, UUID], Verdict] = {}
        now = self.worker.model.clock.now
        for hand in self.worker.all_hands:
            if hand.mail.token not in self.tokens:
                continue
            known = self.known.get(hand.key)
            if known == "R" and hand.answer:
                found[hand.key] = verdict_on(hand.mail, hand.answer, now)
            elif known == "D":
                found[hand.key] = verdict_on(hand.mail, TOO_LATE, now)
            elif self.is_whole:
                found[hand.key] = verdict_on_unsent(hand.mail)
        return found
