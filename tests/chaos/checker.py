"""What was promised, checked from outside, by the client's 202s, the sink's log and the final rows alone.

The promises I1 to I7 are in docs/reliability.md.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from tasks.states import CancelReason, Outcome, Status
from tests.chaos.client import Call
from tests.chaos.sink import Taken

#: Around a fault that ends a sender or PostgreSQL (seconds): what was answered within may not have been noted.
IN_DOUBT = 1.0
#: I7: the longest call while Redis is at its worst (seconds).
LONGEST_CALL = 3.0

#: Kinds of mail that end cancelled, and why.
_CANCELLED_AS = {"no550": CancelReason.REJECTED, "expires": CancelReason.EXPIRED}

type_rows = list[tuple[Any, ...]]

ROWS = """
SELECT t.id, t.recipient, t.status, t.cancel_reason, t.try_count, t.max_tries, t.message_id, t.on_uncertain = 1,
       t.due_at <= now(),
       (SELECT count(*) FROM tasks_attempt a WHERE a.task_id = t.id AND a.outcome = 0)
FROM tasks_mailtask t
"""
_ENDS = (Status.SUCCESS, Status.CANCELLED, Status.UNCERTAIN)
UNFINISHED = (
    f"SELECT count(*) FROM tasks_mailtask WHERE status NOT IN ({', '.join(map(str, map(int, _ENDS)))})"
)
assert Outcome.ACCEPTED == 0


@dataclass(frozen=True)
class Row:
    """The end of a task, as the ledger tells it."""

    id: int
    recipient: str
    status: int
    cancel_reason: int | None
    try_count: int
    max_tries: int
    message_id: str
    holds: bool
    is_due: bool
    #: Attempts that were accepted.
    successes: int


@dataclass(frozen=True)
class Fault:
    """Something that was done; `until` is when it was over. Times are seconds since the epoch."""

    what: str
    at: float
    until: float
    #: Whether a sender or PostgreSQL was ended, or held for longer than its lease.
    cuts_off: bool = False


@dataclass
class Verdict:
    """The figures of a case, and each promise that was broken, as a sentence."""

    accepted: int = 0
    delivered: int = 0
    cancelled: int = 0
    held: int = 0
    duplicates: int = 0
    lost: int = 0
    faults: int = 0
    recovered: list[float] = field(default_factory=list)
    accepts_again: list[float] = field(default_factory=list)
    longest_call: float = 0
    broken: list[str] = field(default_factory=list)
    is_failure: bool = False

    @classmethod
    def of_failure(cls, why: str) -> "Verdict":
        """Of a case that did not come to its end."""
        return cls(broken=[f"the case did not come to its end: {why}"], is_failure=True)

    @property
    def slowest_recovery(self) -> float:
        return max(self.recovered, default=0)

    @property
    def usual_recovery(self) -> float:
        return median(self.recovered or [0])


class Evidence:
    """The logs and rows of one run, sorted by recipient: each mail has one of its own."""

    def __init__(
        self, calls: Sequence[Call], taken: Iterable[Taken], rows: Iterable[Row], faults: Sequence[Fault]
    ) -> None:
        self.calls, self.faults = calls, faults
        self.accepted = [call for call in calls if call.task_id is not None]
        self.rows = {row.recipient: row for row in rows}
        self.arrivals: dict[str, list[Taken]] = defaultdict(list)
        for mail in taken:
            self.arrivals[mail.recipient].append(mail)

    def ended(self, status: Status) -> int:
        """How many of those that were accepted."""
        mine = (self.rows.get(call.recipient) for call in self.accepted)
        return sum(row is not None and row.status == status for row in mine)

    def lost(self) -> list[str]:
        """I1: accepted, and neither arrived nor cancelled nor held; I3: still waiting. A sentence for each."""
        found = []
        for call in self.accepted:
            row = self.rows.get(call.recipient)
            if row is None or row.id != call.task_id:
                found.append(f"I1: task {call.task_id} was accepted, and there is no row")
            elif row.status == Status.SUCCESS and call.recipient not in self.arrivals:
                found.append(f"I1: task {row.id} says success, and never arrived")
            elif row.status not in _ENDS:
                found.append(
                    f"I3: task {row.id} is still {Status(row.status).label}{', and due' * row.is_due}"
                )
        return found

    def wrong_ends(self, *, may_exhaust: bool) -> Iterator[str]:
        """I1: no mail is given up but for a reason of its own."""
        for row in self.rows.values():
            expected = _CANCELLED_AS.get(_kind(row.recipient))
            reason = CancelReason(row.cancel_reason or 0) if row.status == Status.CANCELLED else None
            if row.status == Status.UNCERTAIN and not row.holds:
                yield f"I1: task {row.id} is uncertain, and was not to be held"
            if reason not in (None, expected) and not (may_exhaust and reason == CancelReason.EXHAUSTED):
                yield f"I1: task {row.id} was cancelled: {reason.label}"

    def repeated(self, may_repeat: Sequence[str]) -> Iterator[str]:
        """I2: twice only what nobody could know of, and never what was to be held then."""
        for recipient, mails in self.arrivals.items():
            row = self.rows.get(recipient)
            if row is not None and row.holds and len(mails) > 1:
                yield f"I2: task {row.id} was to be held when in doubt, and went {len(mails)} times"
            for earlier, later in pairwise(mails):
                if _kind(recipient) not in may_repeat and not _is_in_doubt(earlier, later, self.faults):
                    yield f"I2: {recipient} got a mail at {later.at:.3f} whose answer of {earlier.at:.3f} was known"
        for row in self.rows.values():
            if row.successes > 1:
                yield f"I2: task {row.id} has {row.successes} attempts that were accepted"

    def uncalled_for(self) -> Iterator[str]:
        """I4: nothing that nobody handed over, and nothing before its time."""
        known = {call.recipient: call for call in self.calls}
        for recipient, mails in self.arrivals.items():
            due_at = known[recipient].due_at if recipient in known else None
            if recipient not in known or recipient not in self.rows:
                yield f"I4: {recipient} got a mail that nobody handed over, or of which there is no row"
            elif due_at is not None and mails[0].at < due_at:
                yield f"I4: {recipient} got a mail {due_at - mails[0].at:.3f} s early"

    def misnamed(self) -> Iterator[str]:
        """I5: tries within their number, and one Message-ID for life."""
        for recipient, row in self.rows.items():
            if row.try_count > row.max_tries:
                yield f"I5: task {row.id} was tried {row.try_count} of {row.max_tries} times"
            if {mail.message_id for mail in self.arrivals.get(recipient, ())} - {row.message_id}:
                yield f"I5: task {row.id} went under another Message-ID"

    def longest_call(self) -> float:
        return max((call.seconds for call in self.calls), default=0.0)

    def recovered(self, fault: Fault) -> float:
        """Seconds from the end of the fault until all that was due before it had arrived."""
        due = [call for call in self.accepted if (call.due_at or call.answered_at) <= fault.until]
        came = [self.arrivals[call.recipient][0].at for call in due if call.recipient in self.arrivals]
        return max([fault.until, *came]) - fault.until

    def accepts_again(self, fault: Fault) -> float:
        """Seconds from the end of the fault until a mail was accepted."""
        after = [call.answered_at for call in self.accepted if call.answered_at > fault.until]
        return min(after, default=fault.until) - fault.until


def judge(
    evidence: Evidence,
    *,
    may_repeat: Sequence[str] = (),
    bounds_calls: bool = False,
    may_exhaust: bool = False,
) -> Verdict:
    """`may_repeat` are kinds of mail whose first answer never came; with `bounds_calls` I7 holds; `may_exhaust` where
    a relay may be away for longer than all tries last."""
    lost, longest = evidence.lost(), evidence.longest_call()
    arrivals = evidence.arrivals
    return Verdict(
        accepted=len(evidence.accepted),
        delivered=sum(call.recipient in arrivals for call in evidence.accepted),
        cancelled=evidence.ended(Status.CANCELLED),
        held=evidence.ended(Status.UNCERTAIN),
        duplicates=sum(len(mails) - 1 for mails in arrivals.values()),
        lost=len(lost),
        faults=len(evidence.faults),
        recovered=[evidence.recovered(fault) for fault in evidence.faults],
        accepts_again=[evidence.accepts_again(fault) for fault in evidence.faults],
        longest_call=longest,
        broken=[
            *lost,
            *evidence.wrong_ends(may_exhaust=may_exhaust),
            *evidence.repeated(may_repeat),
            *evidence.uncalled_for(),
            *evidence.misnamed(),
            *([f"I7: a call took {longest:.1f} s"] if bounds_calls and longest > LONGEST_CALL else []),
        ],
    )


def _kind(recipient: str) -> str:
    return recipient.partition(".")[0]


def _is_in_doubt(earlier: Taken, later: Taken, faults: Sequence[Fault]) -> bool:
    """Whether whoever sent it again may not have known of the first time: the reply was not read before the second
    was taken, or whoever read it, or the ledger, was cut off in that moment."""
    if earlier.read_at is None or earlier.read_at >= later.at:
        return any(fault.cuts_off for fault in faults)
    return any(
        fault.cuts_off and fault.at - IN_DOUBT <= earlier.read_at <= fault.until + IN_DOUBT
        for fault in faults
    )


def secrets_shown(
    folder: Path, secrets: Iterable[str], redis: dict[str, bytes], results: type_rows
) -> list[str]:
    """I6: where a password, token or key of this run can be read that has no business there."""
    places = {str(path.name): path.read_bytes() for path in folder.glob("*.log")}
    places |= {f"Redis: {key}": value for key, value in redis.items()}
    places["task results"] = repr(results).encode()
    return [
        f"I6: a secret stands in {place}"
        for place, content in places.items()
        for secret in secrets
        if secret.encode() in content
    ]
