"""The table of docs/lifecycle.md, a row a test: what a relay's answer means for a mail."""

import pytest

from mailqueue.delivery.replies import Answer, Fault, Meaning, Verdict, read
from tasks.states import Phase

ACCEPTED = Verdict(Meaning.ACCEPTED)
TEMPORARY = Verdict(Meaning.TEMPORARY)
GREYLISTED = Verdict(Meaning.TEMPORARY, least_wait=300)
FULL = Verdict(Meaning.TEMPORARY, most_tries=3)
REJECTED = Verdict(Meaning.REJECTED)
SUPPRESSED = Verdict(Meaning.REJECTED, suppress=True)
THROTTLED = Verdict(Meaning.THROTTLED)
ACCOUNT = Verdict(Meaning.ACCOUNT)
UNCERTAIN = Verdict(Meaning.UNCERTAIN)


def wait(seconds: float) -> Verdict:
    return Verdict(Meaning.TEMPORARY, least_wait=seconds)


REPLIES = [
    # accepted
    ("reply", "250 2.0.0 Ok: queued as 4ZC1", ACCEPTED),
    ("reply", "250", ACCEPTED),
    ("reply", "251 User not local; will forward", ACCEPTED),
    ("reply", "252 2.1.5 Cannot VRFY, but will take it", ACCEPTED),
    # 421, 4yz: by schedule
    ("mail", "421 4.3.2 Service shutting down", TEMPORARY),
    ("rcpt", "421 Closing", TEMPORARY),
    ("rcpt", "450 4.2.1 Mailbox busy", TEMPORARY),
    ("reply", "451 4.3.0 Local error", TEMPORARY),
    ("reply", "452 4.3.1 Insufficient system storage", TEMPORARY),
    ("data", "451", TEMPORARY),
    ("banner", "421 4.3.2 Too busy just now", TEMPORARY),
    # greylisting: not before 300 s
    ("rcpt", "450 4.7.1 Come back later", GREYLISTED),
    ("rcpt", "451 4.7.0 Not yet", GREYLISTED),
    ("rcpt", "451 Greylisted, please wait", GREYLISTED),
    ("rcpt", "450 You have been graylisted", GREYLISTED),
    # the relay names a time
    ("rcpt", "450 4.3.0 Please try again in 30 seconds", wait(40)),
    ("rcpt", "450 4.3.0 Try again in 2 minutes", wait(130)),
    ("rcpt", "450 4.3.0 try later in 1 hour", wait(3610)),
    ("rcpt", "451 4.7.1 Greylisted, try again in 30 seconds", GREYLISTED),
    ("rcpt", "451 4.7.1 Greylisted, try again in 20 minutes", wait(1210)),
    ("rcpt", "450 4.3.0 try again in 999999 hours", wait(86_410)),
    # mailbox full: three tries at most
    ("rcpt", "452 4.2.2 Mailbox full", FULL),
    ("reply", "452 4.2.2 Over quota", FULL),
    # the account is throttled
    ("auth", "454 4.7.0 Temporary authentication failure", THROTTLED),
    ("auth", "432 4.7.12 A password transition is needed", THROTTLED),
    ("mail", "454 Throttling failure: maximum sending rate exceeded", THROTTLED),
    ("mail", "421 4.7.0 Too many messages, slow down", THROTTLED),
    ("rcpt", "421 4.7.28 Rate limit", THROTTLED),
    ("banner", "421 Too many connections", THROTTLED),
    # the account is not let in
    ("mail", "530 5.7.0 Authentication required", ACCOUNT),
    ("auth", "534 5.7.9 Mechanism is too weak", ACCOUNT),
    ("auth", "535 5.7.8 Bad credentials", ACCOUNT),
    ("auth", "538 5.7.11 Encryption required", ACCOUNT),
    ("auth", "550 5.7.1 You are blocked", ACCOUNT),
    ("banner", "554 5.7.1 No SMTP service for you", ACCOUNT),
    ("tls", "502 5.5.1 STARTTLS not implemented", ACCOUNT),
    # the recipient does not exist
    ("rcpt", "550 5.1.1 No such user", SUPPRESSED),
    ("rcpt", "553 5.1.3 Bad address syntax", SUPPRESSED),
    ("rcpt", "550 5.1.8 <ada@nowhere.example>: Sender address rejected: Domain not found", REJECTED),
    ("rcpt", "553 5.1.7 Sender address has bad syntax", REJECTED),
    # policy: rejected, not suppressed
    ("rcpt", "550 5.7.1 Relaying denied", REJECTED),
    ("reply", "554 5.7.1 On a block list", REJECTED),
    ("reply", "550 5.1.1 No such user, said late", REJECTED),
    # out of step: about the session, not the mail
    ("mail", "503 5.5.1 Error: nested MAIL command", TEMPORARY),
    ("rcpt", "503 sender not yet given", TEMPORARY),
    ("data", "503 Valid RCPT command must precede DATA", TEMPORARY),
    ("reply", "503", TEMPORARY),
    # too big, other 5yz
    ("mail", "552 5.3.4 Message too big", REJECTED),
    ("rcpt", "550 No such user, and no enhanced code", REJECTED),
    ("reply", "554 Transaction failed", REJECTED),
    ("mail", "501 5.1.7 Bad sender", REJECTED),
    # the enhanced code counts before the basic one
    ("rcpt", "550 4.2.1 Mailbox disabled for now", TEMPORARY),
    ("rcpt", "550 4.7.1 Come back later", GREYLISTED),
    ("reply", "451 5.7.1 Content refused", REJECTED),
    ("rcpt", "450 5.1.1 No such user", SUPPRESSED),
    # after the dot a reply of no meaning leaves it open; before, the mail is surely not sent
    ("reply", "354 Again?", UNCERTAIN),
    ("mail", "354 What?", TEMPORARY),
]


@pytest.mark.parametrize(("phase", "reply", "verdict"), REPLIES)
def test_a_reply_means(phase: str, reply: str, verdict: Verdict) -> None:
    code, _, text = reply.partition(" ")
    assert read(Answer(Phase[phase.upper()], int(code), text)) == verdict


FAULTS = [
    (Fault.UNRESOLVED, "connect", ACCOUNT),
    (Fault.FORBIDDEN, "connect", ACCOUNT),
    (Fault.CERTIFICATE, "tls", ACCOUNT),
    (Fault.NO_TLS, "tls", ACCOUNT),
    (Fault.NO_AUTH, "auth", ACCOUNT),
    (Fault.UNREADABLE_PASSWORD, "auth", ACCOUNT),
    (Fault.UNREACHABLE, "connect", TEMPORARY),
    (Fault.LOST, "connect", TEMPORARY),
    (Fault.LOST, "rcpt", TEMPORARY),
    (Fault.LOST, "data", TEMPORARY),
    (Fault.LOST, "body", TEMPORARY),
    (Fault.TIMEOUT, "banner", TEMPORARY),
    (Fault.TIMEOUT, "body", TEMPORARY),
    (Fault.GARBAGE, "mail", TEMPORARY),
    (Fault.LOST, "reply", UNCERTAIN),
    (Fault.TIMEOUT, "reply", UNCERTAIN),
    (Fault.GARBAGE, "reply", UNCERTAIN),
    (Fault.NO_SMTPUTF8, "mail", REJECTED),
    (Fault.TOO_BIG, "mail", REJECTED),
]


@pytest.mark.parametrize(("fault", "phase", "verdict"), FAULTS)
def test_silence_means(fault: Fault, phase: str, verdict: Verdict) -> None:
    assert read(Answer(Phase[phase.upper()], fault=fault)) == verdict


def test_every_fault_is_in_the_table() -> None:
    assert {fault for fault, _, _ in FAULTS} == set(Fault)


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase < Phase.REPLY])
@pytest.mark.parametrize("code", [250, 354, 421, 451, 550])
def test_before_the_final_dot_nothing_is_ever_accepted_or_uncertain(phase: Phase, code: int) -> None:
    assert read(Answer(phase, code)).meaning not in (Meaning.ACCEPTED, Meaning.UNCERTAIN)


def test_a_relays_text_is_shown_printable_and_short() -> None:
    shown = str(Answer(Phase.RCPT, 550, "no\r\n\x1b[31m\u202eway\0" + "x" * 10_000))
    assert shown.isprintable()
    assert len(shown) == 500
    assert shown.startswith("550 no")


def test_a_fault_is_told_in_words() -> None:
    told = str(Answer(Phase.CONNECT, text="smtp.example.com", fault=Fault.UNRESOLVED))
    assert told == "the relay's name does not resolve (smtp.example.com)"
