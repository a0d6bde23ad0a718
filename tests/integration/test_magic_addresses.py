"""At sandbox.invalid the local part names what becomes of a mail, whatever the owner's relay."""

from collections.abc import Iterator
from typing import Any

import pytest

from accounts.models import SmtpAccount, User
from mailqueue.delivery import magic
from mailqueue.delivery.courier import Courier
from mailqueue.delivery.hand import Report
from mailqueue.sandbox import inbox
from mailqueue.sandbox.models import SandboxMail
from tasks.states import CancelReason, OnUncertain, Outcome, Status
from tests.factories import MailFactory, make_due, sending_user
from tests.relay import Relay

pytestmark = pytest.mark.django_db(
    transaction=True, available_apps=["accounts", "tasks", "mailqueue", "mailqueue.sandbox"]
)
LONG = 30.0
FOR_NOW, REFUSED = (Status.FAILED, None), (Status.CANCELLED, CancelReason.REJECTED)


@pytest.fixture
def courier() -> Iterator[Courier]:
    courier = Courier("worker:1").start()
    yield courier
    courier.stop(5)


def whose_relay_is_gone() -> User:
    with Relay() as gone:
        return sending_user(gone.port, max_connections=2)


@pytest.fixture
def owner() -> User:
    return whose_relay_is_gone()


def account_of(owner: User) -> dict[str, Any]:
    return SmtpAccount.objects.filter(owner=owner).values().get()


def drain(courier: Courier) -> Report:
    make_due()
    return courier.drain(LONG)


@pytest.mark.parametrize(
    ("local", "end", "said", "least_wait"),
    [
        ("ok", (Status.SUCCESS, None), (Outcome.ACCEPTED, 250), 0),
        ("anything else", (Status.SUCCESS, None), (Outcome.ACCEPTED, 250), 0),
        ("tempfail", FOR_NOW, (Outcome.TEMPORARY, 451), 45),
        ("greylist", FOR_NOW, (Outcome.TEMPORARY, 451), 299),
        ("full", FOR_NOW, (Outcome.TEMPORARY, 452), 45),
        ("reject", REFUSED, (Outcome.REJECTED, 550), 0),
        ("block", REFUSED, (Outcome.REJECTED, 554), 0),
        ("Reject+17", REFUSED, (Outcome.REJECTED, 550), 0),
        ("drop", (Status.UNCERTAIN, None), (Outcome.UNCERTAIN, None), 0),
    ],
)
def test_the_local_part_decides_and_the_account_knows_nothing_of_it(
    courier: Courier, local: str, end: Any, said: Any, least_wait: float
) -> None:
    owner = whose_relay_is_gone()
    before = account_of(owner)
    mail = MailFactory(owner=owner, recipient=f"{local}@Sandbox.invalid", on_uncertain=OnUncertain.HOLD)
    courier.drain(LONG)
    mail.refresh_from_db()
    assert ((mail.status, mail.cancel_reason), mail.try_count) == (end, 1)
    assert [(one.outcome, one.code) for one in mail.attempts.all()] == [said]
    assert not least_wait or (mail.due_at - mail.moved_at).total_seconds() >= least_wait
    kept = SandboxMail.objects.values_list("sender", "recipients", "subject", "raw")
    expected = (mail.sender, [mail.recipient], "hello", bytes(mail.content.raw))
    assert [(*row[:3], bytes(row[3])) for row in kept] == [expected] * (mail.status == Status.SUCCESS)
    assert account_of(owner) == before


def test_a_greylisted_mail_is_taken_the_second_time(courier: Courier, owner: User) -> None:
    mail = MailFactory(owner=owner, recipient="greylist@sandbox.invalid")
    assert drain(courier) == Report(claimed=1, put_off=1)
    assert drain(courier) == Report(claimed=1, sent=1)
    mail.refresh_from_db()
    assert (mail.status, mail.try_count) == (Status.SUCCESS, 2)
    assert SandboxMail.objects.count() == 1


@pytest.mark.parametrize(("local", "tries"), [("tempfail", 5), ("full", 3), ("drop", 5)])
def test_what_always_fails_is_given_up_after_its_tries(
    courier: Courier, owner: User, local: str, tries: int
) -> None:
    mail = MailFactory(owner=owner, recipient=f"{local}@sandbox.invalid", max_tries=5)
    for _ in range(5):
        drain(courier)
    mail.refresh_from_db()
    assert (mail.status, mail.cancel_reason) == (Status.CANCELLED, CancelReason.EXHAUSTED)
    assert mail.attempts.count() == tries
    assert not SandboxMail.objects.exists()


def test_slow_takes_its_time_and_is_taken(
    courier: Courier, owner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert magic.fate_of("slow@sandbox.invalid").after == 5
    monkeypatch.setitem(magic.FATES, "slow", magic.Fate(magic.TAKEN, after=0.3))
    mail = MailFactory(owner=owner, recipient="slow@sandbox.invalid")
    assert courier.drain(LONG) == Report(claimed=1, sent=1)
    assert mail.attempts.get().duration_ms >= 300


def test_a_failing_relay_and_magic_mails_do_not_mix(courier: Courier, owner: User) -> None:
    """Between failed connections a taken magic mail is no answer of the relay, and a failing one no failure."""
    for _ in range(4):
        MailFactory(owner=owner)
        MailFactory(owner=owner, recipient="ok@sandbox.invalid")
        MailFactory(owner=owner, recipient="tempfail@sandbox.invalid", max_tries=1)
    drain(courier)
    assert (account_of(owner)["missed"], account_of(owner)["state"]) == (4, "unverified")
    MailFactory(owner=owner)
    drain(courier)
    assert account_of(owner)["state"] == "paused"


@pytest.mark.parametrize(
    "recipient", ["reject@sandbox.invalid.example.com", "reject@example.com", "sandbox.invalid@example.com"]
)
def test_other_addresses_are_sent_as_ever(courier: Courier, relay: Relay, recipient: str) -> None:
    MailFactory(owner=sending_user(relay.port), recipient=recipient)
    assert courier.drain(LONG) == Report(claimed=1, sent=1)
    assert [mail.recipient for mail in relay.accepted] == [recipient]


def test_no_magic_mail_reaches_a_relay(courier: Courier, relay: Relay) -> None:
    owner = sending_user(relay.port)
    for local in ("ok", "tempfail", "drop"):
        MailFactory(owner=owner, recipient=f"{local}@sandbox.invalid")
    courier.drain(LONG)
    assert not relay.sessions


def test_a_mail_that_could_not_be_kept_was_not_taken(
    courier: Courier, owner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(inbox, "received", broken)
    mail = MailFactory(owner=owner, recipient="ok@sandbox.invalid")
    assert courier.drain(LONG) == Report(claimed=1, put_off=1)
    mail.refresh_from_db()
    assert mail.status == Status.FAILED


def test_the_inbox_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    pruned: list[int] = []
    monkeypatch.setattr(inbox, "PRUNE_EVERY", 3)
    monkeypatch.setattr(type(SandboxMail.objects), "prune", lambda *_: pruned.append(1))
    for _ in range(7):
        magic.announce("ada@example.com", "ok@sandbox.invalid", b"Subject: hello\r\n\r\n")
    assert 2 <= len(pruned) <= 3
