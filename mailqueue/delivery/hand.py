"""What a courier keeps count of: the mails in its hand by owner, its leases, and what a drain did."""

from collections import deque
from dataclasses import astuple, dataclass, field

from mailqueue.delivery.routes import Route
from tasks.ledger import Claimed
from tasks.states import Lane, Status

#: Mails of one owner in hand: first, and at most once they prove to go out within a second.
FIRST_HAND, LARGEST_HAND = 50, 400
#: One-time passwords of one owner in hand, beside what else is.
URGENT_HAND = 20


@dataclass
class Report:
    """What a drain did; kept as its Celery result."""

    claimed: int = 0
    sent: int = 0
    put_off: int = 0
    cancelled: int = 0
    uncertain: int = 0

    def __add__(self, other: "Report") -> "Report":
        return Report(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def count(self, status: Status) -> None:
        if status == Status.SUCCESS:
            self.sent += 1
        elif status == Status.CANCELLED:
            self.cancelled += 1
        elif status == Status.UNCERTAIN:
            self.uncertain += 1
        else:
            self.put_off += 1


@dataclass(eq=False)
class Hand:
    """The mails of one owner that this process holds, and the sessions that send them."""

    owner_id: int
    route: Route
    mails: deque[Claimed] = field(default_factory=deque)
    held: int = 0
    held_urgent: int = 0
    sessions: int = 0
    allowance: int = FIRST_HAND
    filled_at: float = 0.0
    #: The filling whose pace has been looked at.
    judged_at: float = 0.0

    def room(self) -> int:
        """How many more to claim; none until half is free, so that claims stay groups."""
        free = self.allowance - self.held
        return free if free * 2 >= self.allowance else 0

    def urgent_room(self) -> int:
        """How many more one-time passwords, whatever else is in hand; the relay that hangs must not get all of it."""
        return max(0, URGENT_HAND - self.held_urgent)

    def take(self, mail: Claimed) -> None:
        self.mails.append(mail)
        self.held += 1
        self.held_urgent += mail.lane == Lane.OTP

    def drop(self, mail: Claimed) -> None:
        self.held -= 1
        self.held_urgent -= mail.lane == Lane.OTP

    def hurry(self) -> None:
        """The more urgent lanes first; within a lane as they came."""
        self.mails = deque(sorted(self.mails, key=lambda mail: mail.lane))

    def adapt(self, now: float) -> None:
        """More for who goes fast, less for who hangs, so that a slow relay holds few mails. Each of the owner's
        sessions finds the hand empty; it counts once."""
        if self.judged_at == self.filled_at:
            return
        took, self.judged_at = now - self.filled_at, self.filled_at
        if took < 1:
            self.allowance = min(self.allowance * 2, LARGEST_HAND)
        elif took > 5:
            self.allowance = max(self.allowance // 2, 2 * self.route.max_connections)


@dataclass
class Lease:
    """One claim's token: how many mails it still covers, and until when (monotonic seconds) it is ours."""

    mails: int
    until: float
