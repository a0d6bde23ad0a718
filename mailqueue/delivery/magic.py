"""Magic addresses: at sandbox.invalid the local part names what becomes of the mail, whatever the owner's relay.

Answered in this process, for then they work in production as on a laptop, need no relay or sandbox that runs,
and cannot leave the house, whatever DNS or an allowed network may say. What is taken is announced by a signal,
and the sandbox keeps it for its inbox.
"""

import asyncio
from dataclasses import dataclass

from django.dispatch import Signal

from accounts.addresses import MAGIC_DOMAIN
from mailqueue.delivery.replies import Answer, Fault
from tasks.states import Phase

#: How long (seconds) slow@ takes.
SLOW = 5.0

#: Sent, in a thread that may use the database, with `sender`, `recipient` and `raw` of a mail that was taken.
taken = Signal()

TAKEN = Answer(Phase.REPLY, 250, "2.0.0 Taken by the sandbox")


@dataclass(frozen=True, slots=True)
class Fate:
    """`once`: the next try is taken. `after` is in seconds."""

    answer: Answer
    once: bool = False
    after: float = 0


FATES = {
    "ok": Fate(TAKEN),
    "tempfail": Fate(Answer(Phase.RCPT, 451, "4.3.0 Magic: it always fails for now")),
    "greylist": Fate(Answer(Phase.RCPT, 451, "4.7.1 Magic: greylisted, come again"), once=True),
    "reject": Fate(Answer(Phase.RCPT, 550, "5.1.1 Magic: no such mailbox")),
    "block": Fate(Answer(Phase.RCPT, 554, "5.7.1 Magic: refused by policy")),
    "slow": Fate(TAKEN, after=SLOW),
    "drop": Fate(Answer(Phase.REPLY, text="Magic", fault=Fault.LOST)),
    "full": Fate(Answer(Phase.RCPT, 452, "4.2.2 Magic: the mailbox is full")),
}


def is_magic(recipient: str) -> bool:
    return recipient.rpartition("@")[2].lower() == MAGIC_DOMAIN


def fate_of(recipient: str) -> Fate:
    """By the local part, in any case and without its +tag; a name that means nothing is taken like ok@."""
    name = recipient.rpartition("@")[0].partition("+")[0].lower()
    return FATES.get(name, FATES["ok"])


async def answer(recipient: str, tries: int) -> Answer:
    """How the transaction ends; `tries` counts this one."""
    fate = fate_of(recipient)
    await asyncio.sleep(fate.after)
    return TAKEN if fate.once and tries > 1 else fate.answer


def announce(sender: str, recipient: str, raw: bytes) -> None:
    """Errors are the caller's: a mail that could not be kept was not taken."""
    taken.send(None, mail_from=sender, recipient=recipient, raw=raw)
