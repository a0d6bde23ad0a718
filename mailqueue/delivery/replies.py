"""What a relay's answer, or its silence, means for a mail. A table; delivery.md and docs/lifecycle.md explain it.

The enhanced code (RFC 3463) counts before the basic one (RFC 5321), the text before neither.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from tasks.states import FULL_MAILBOX_TRIES, Phase

#: A greylisting relay is not asked again before this (seconds).
GREYLIST_WAIT = 300
#: A relay's word is untrusted: it may put a mail off for a day and no longer (seconds).
LONGEST_ASKED_WAIT = 86_400
_TRY_AGAIN = re.compile(r"try (?:again|later) in (\d{1,6}) ?(second|minute|hour|s\b|m\b|h\b)", re.IGNORECASE)
_UNITS = {"s": 1, "m": 60, "h": 3600}
_RATE = re.compile(r"\b(rate|throttl\w*|too many|quota exceeded)\b", re.IGNORECASE)
_ENHANCED = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})\b")


class Meaning(Enum):
    ACCEPTED = "accepted"
    TEMPORARY = "temporary"  # try again by schedule
    REJECTED = "rejected"  # cancelled at once
    UNCERTAIN = "uncertain"  # nobody can know
    THROTTLED = "throttled"  # the whole account waits, no try is used up
    ACCOUNT = "account"  # the breaker opens, no try is used up


class Fault(Enum):
    """What went wrong where the relay said nothing."""

    LOST = "the connection was lost"
    TIMEOUT = "the relay did not answer in time"
    UNREACHABLE = "the relay cannot be reached"
    UNRESOLVED = "the relay's name does not resolve"
    FORBIDDEN = "the relay's address is not allowed"
    CERTIFICATE = "the relay's certificate is not valid"
    NO_TLS = "the relay offers no STARTTLS"
    NO_AUTH = "the relay offers no way to log in that we know"
    GARBAGE = "the relay does not speak SMTP"
    TOO_BIG = "the mail is larger than the relay takes"
    NO_SMTPUTF8 = "the relay takes only ASCII before the @ of an address"
    UNREADABLE_PASSWORD = "the stored password cannot be read with CREDENTIAL_KEYS"  # noqa: S105


_OF_THE_ACCOUNT = {
    Fault.UNRESOLVED,
    Fault.FORBIDDEN,
    Fault.CERTIFICATE,
    Fault.NO_TLS,
    Fault.NO_AUTH,
    Fault.UNREADABLE_PASSWORD,
}
#: These say whom it is about by themselves.
_OF_THE_ACCOUNT_BY_CODE = {421, 432, 454, 530, 534, 535, 538}


class Answer(NamedTuple):
    """How a transaction ended: the phase it reached and the relay's reply, or the fault in its place."""

    phase: Phase
    code: int | None = None
    text: str = ""
    fault: Fault | None = None

    @property
    def enhanced(self) -> str:
        """The enhanced status code, or the empty string."""
        found = _ENHANCED.match(self.text)
        return found.group() if found else ""

    def __str__(self) -> str:
        """For people: printable, at most 500 characters; a relay's text is untrusted."""
        said = f"{self.code} {self.text}" if self.code and self.text else f"{self.code or ''}{self.text}"
        if self.fault:
            said = f"{self.fault.value}{f' ({said})' if said else ''}"
        if not said.isprintable():
            said = "".join(char if char.isprintable() else " " for char in said)
        return said[:500]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do: `least_wait` in seconds, `most_tries` where the kind of failure has its own limit."""

    meaning: Meaning
    least_wait: float = 0
    most_tries: int | None = None
    suppress: bool = False


_ACCEPTED = Verdict(Meaning.ACCEPTED)
_TEMPORARY = Verdict(Meaning.TEMPORARY)
_GREYLISTED = Verdict(Meaning.TEMPORARY, least_wait=GREYLIST_WAIT)
_FULL = Verdict(Meaning.TEMPORARY, most_tries=FULL_MAILBOX_TRIES)
_REJECTED = Verdict(Meaning.REJECTED)
_NO_SUCH_MAILBOX = Verdict(Meaning.REJECTED, suppress=True)
_THROTTLED = Verdict(Meaning.THROTTLED)
_ACCOUNT = Verdict(Meaning.ACCOUNT)
_UNCERTAIN = Verdict(Meaning.UNCERTAIN)

type_rule = tuple[Callable[[int, str, Answer], bool], Verdict]

#: What is no success; first match wins: (reply code, enhanced code, answer) -> verdict.
RULES: list[type_rule] = [
    (lambda code, _e, _a: code in (530, 534, 535, 538), _ACCOUNT),
    # Refused before a mail was named, so it is not about the mail.
    (lambda code, _e, a: a.phase <= Phase.AUTH and 500 <= code < 600, _ACCOUNT),
    # Commands out of order: about the session, which is given up, and not about the mail.
    (lambda code, _e, _a: code == 503, _TEMPORARY),
    (lambda code, _e, a: code in (432, 454) or (code == 421 and bool(_RATE.search(a.text))), _THROTTLED),
    (
        lambda code, e, a: code == 421 and e.startswith("4.7.") and "greylist" not in a.text.lower(),
        _THROTTLED,
    ),
    (
        lambda code, e, a: (
            400 <= code < 500
            and (e.startswith("4.7.") or "greylist" in a.text.lower() or "graylist" in a.text.lower())
        ),
        _GREYLISTED,
    ),
    (lambda code, e, _a: 400 <= code < 500 and e == "4.2.2", _FULL),
    (lambda code, _e, _a: 400 <= code < 500, _TEMPORARY),
    # 5.1.7 and 5.1.8 are about the sender (RFC 3463), of whom many servers speak only now.
    (
        lambda code, e, a: (
            a.phase == Phase.RCPT and code >= 500 and e.startswith("5.1.") and e not in ("5.1.7", "5.1.8")
        ),
        _NO_SUCH_MAILBOX,
    ),
    (lambda code, _e, _a: 500 <= code < 600, _REJECTED),
]


def read(answer: Answer) -> Verdict:
    """The verdict on one transaction."""
    if answer.fault is not None:
        return _read_fault(answer.phase, answer.fault)
    if answer.phase == Phase.REPLY and answer.code is not None and 200 <= answer.code < 300:
        return _ACCEPTED
    code, enhanced = _code(answer), answer.enhanced
    verdict = next((verdict for applies, verdict in RULES if applies(code, enhanced, answer)), None)
    if verdict is None:  # a reply that fits no phase, such as 354 where 250 belongs
        return _UNCERTAIN if answer.phase == Phase.REPLY else _TEMPORARY
    if verdict.meaning is Meaning.TEMPORARY and (asked := _asked_wait(answer.text)):
        return Verdict(Meaning.TEMPORARY, max(verdict.least_wait, asked + 10), verdict.most_tries)
    return verdict


def _code(answer: Answer) -> int:
    """The reply code, of the enhanced code's class where the two disagree on temporary or permanent."""
    code, enhanced = answer.code or 0, answer.enhanced
    if code in _OF_THE_ACCOUNT_BY_CODE or not 400 <= code < 600 or enhanced[:1] not in ("4", "5"):
        return code
    return int(enhanced[0]) * 100 + code % 100


def _read_fault(phase: Phase, fault: Fault) -> Verdict:
    if fault in _OF_THE_ACCOUNT:
        return _ACCOUNT
    if fault in (Fault.TOO_BIG, Fault.NO_SMTPUTF8):
        return _REJECTED
    return _UNCERTAIN if phase == Phase.REPLY else _TEMPORARY


def _asked_wait(text: str) -> int:
    """Seconds the relay asked for, a day at most; 0 if it did not."""
    found = _TRY_AGAIN.search(text)
    return min(int(found.group(1)) * _UNITS[found.group(2)[0].lower()], LONGEST_ASKED_WAIT) if found else 0
