"""The courier against a relay on a real socket: what it writes about each mail, and what the relay saw of it."""

import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Thread
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.utils import timezone

from accounts.models import AccountState, Security, SmtpAccount, User
from mailqueue.delivery import clerk, handshake, smtp
from mailqueue.delivery.clerk import Clerk
from mailqueue.delivery.courier import Courier
from mailqueue.delivery.hand import FIRST_HAND, Report
from tasks import ledger
from tasks.models import MailTask
from tasks.states import CancelReason, Lane, OnUncertain, Outcome, Phase, Status
from tests.factories import (
    MailFactory,
    UserFactory,
    claim_one,
    end_leases,
    make_due,
    sending_user,
    with_login,
)
from tests.relay import HANG, RESET, TAKE_AND_RESET, Relay

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["accounts", "tasks", "mailqueue"])
LONG = 30.0
#: Shorter than the deadline of any phase (seconds).
SHORT_LEASE = 2.0


@pytest.fixture
def courier() -> Iterator[Courier]:
    courier = Courier("worker:1").start()
    yield courier
    courier.stop(5)


@pytest.fixture
def courier_with_short_lease(settings: Any) -> Iterator[Courier]:
    settings.MAIL_LEASE_SECONDS = SHORT_LEASE
    courier = Courier("worker:1").start()
    yield courier
    courier.stop(5)


def mail_for(relay: Relay, owner: User | None = None, **changes: Any) -> MailTask:
    mail: MailTask = MailFactory(owner=owner or sending_user(relay.port), **changes)
    return mail


def now_as(mail: MailTask) -> MailTask:
    mail.refresh_from_db()
    return mail


def words(mail: MailTask) -> list[tuple[str, str | None, int | None]]:
    """Its history: outcome, phase, code."""
    return [
        (Outcome(one.outcome).label, one.phase if one.phase is None else Phase(one.phase).label, one.code)
        for one in mail.attempts.all()
    ]


def verbs(relay: Relay) -> Counter[str]:
    return Counter(command.split()[0] for command in relay.commands())


def until(condition: Callable[[], bool], seconds: float = LONG) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


# Accepted -------------------------------------------------------------------------------------------


def test_a_mail_arrives_byte_for_byte(relay: Relay, courier: Courier) -> None:
    raw = b"Subject: hello\r\n\r\nHello.\r\n"
    mail = mail_for(relay, raw=raw)
    assert courier.drain(LONG) == Report(claimed=1, sent=1)
    (got,) = relay.accepted
    assert (got.sender, got.recipient, got.raw) == (mail.sender, mail.recipient, raw)
    assert (now_as(mail).status, mail.try_count) == (Status.SUCCESS, 1)
    assert words(mail) == [("accepted", "reply", 250)]
    assert mail.attempts.get().worker == "worker:1"


def test_the_first_success_proves_the_account(relay: Relay, courier: Courier) -> None:
    mail = mail_for(relay)
    courier.drain(LONG)
    assert SmtpAccount.objects.get(owner=mail.owner_id).state == AccountState.ACTIVE


def test_a_large_mail_comes_without_its_content_and_arrives_whole(relay: Relay, courier: Courier) -> None:
    raw = b"Subject: large\r\n\r\n" + (b"x" * 900 + b"\r\n") * 1200
    mail = mail_for(relay, raw=raw)
    claimed = claim_one()
    assert claimed.raw is None
    assert ledger.take_back([claimed], "") == 1
    assert courier.drain(LONG) == Report(claimed=1, sent=1)
    assert relay.accepted[0].raw == raw
    assert now_as(mail).status == Status.SUCCESS


@pytest.mark.parametrize("pipelining", [True, False])
def test_many_mails_go_over_few_kept_connections(courier: Courier, pipelining: bool) -> None:
    with Relay(pipelining=pipelining) as relay:
        owner = sending_user(relay.port, max_connections=2)
        MailFactory.create_batch(60, owner=owner)
        assert courier.drain(LONG) == Report(claimed=60, sent=60)
        assert len({mail.message_id for mail in relay.accepted}) == len(relay.accepted) == 60
        assert 1 <= len(relay.sessions) <= 2
        assert sum(log.early for log in relay.sessions) == (2 * 60 if pipelining else 0)


def test_what_ends_while_a_claim_finds_nothing_is_followed_by_another_claim(
    courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim took the hand for full; that it is empty by now tells nothing about the table."""
    claim = Clerk.claim

    def slow(*args: Any) -> Any:
        found = claim(*args)
        if not found[0]:
            until(lambda: not courier._in_hand)
        return found

    monkeypatch.setattr(Clerk, "claim", slow)
    with Relay(delay=0.01) as relay:
        MailFactory.create_batch(FIRST_HAND + 10, owner=sending_user(relay.port, max_connections=10))
        assert courier.drain(LONG).sent == FIRST_HAND + 10


def test_a_connection_is_kept_from_one_drain_to_the_next(relay: Relay, courier: Courier) -> None:
    owner = sending_user(relay.port)
    for _ in range(3):
        mail_for(relay, owner)
        courier.drain(LONG)
    assert (len(relay.accepted), len(relay.sessions)) == (3, 1)


def test_a_connection_takes_so_many_mails_and_is_then_replaced(
    relay: Relay, courier: Courier, settings: Any
) -> None:
    settings.WORKER_MAILS_PER_CONNECTION = 2
    owner = sending_user(relay.port, max_connections=1)
    MailFactory.create_batch(5, owner=owner)
    courier.drain(LONG)
    assert len(relay.accepted) == 5
    assert Counter(mail.session for mail in relay.accepted).most_common() == [(0, 2), (1, 2), (2, 1)]
    until(lambda: verbs(relay)["QUIT"] == 2)


def test_the_courier_says_goodbye(relay: Relay) -> None:
    courier = Courier("worker:1").start()
    mail_for(relay)
    courier.drain(LONG)
    courier.stop(5)
    until(lambda: not relay.sessions[0].is_open)
    assert relay.commands()[-1] == "QUIT"


@pytest.mark.parametrize("text", ["250-first\n250-second\n250 2.0.0 third", "250", "252 2.0.0 as you wish"])
def test_a_good_reply_of_any_shape_is_a_success(relay: Relay, courier: Courier, text: str) -> None:
    relay.on("rcpt", text).on("dot", text)
    mail = mail_for(relay)
    courier.drain(LONG)
    assert now_as(mail).status == Status.SUCCESS


# One mail is one mail -------------------------------------------------------------------------------

SMUGGLED = [
    b"\r\n.\r\n", b"\n.\n", b"\r.\r", b"\n.\r\n", b"\r\n.\n", b"\r.\r\n", b"\r\n.\r", b"\n.\r", b"\r.\n",
    b"\r\n..\r\n", b"\r\r\n.\r\r\n", b"\n\r.\n\r",
]  # fmt: skip


@pytest.mark.parametrize("sequence", SMUGGLED)
def test_the_end_of_a_mail_cannot_be_smuggled_in(courier: Courier, sequence: bytes) -> None:
    """Through the whole way: what the API builds of such a text is one mail, even at a lenient relay."""
    from tasks.submission import NewMail, submit

    attack = sequence.decode() + "MAIL FROM:<eve@example.com>\r\nRCPT TO:<eve@example.com>\r\nDATA\r\nx"
    for lenient in (False, True):
        with Relay(lenient=lenient) as relay:
            owner = sending_user(relay.port)
            task = submit(
                owner, NewMail("jane@example.com", "hello", f"before{attack}{sequence.decode()}after")
            )
            courier.drain(LONG)
            (got,) = relay.accepted
            assert got.recipient == "jane@example.com"
            assert got.raw == bytes(task.content.raw)
            assert got.raw.rstrip().endswith(b"after")


@pytest.mark.parametrize("raw", [b".\r\n", b"..\r\n.\r\n", b"A: b\r\n\r\n.\r\n..\r\n...\r\n.x\r\n\r\n."])
def test_dots_arrive_as_they_were(relay: Relay, courier: Courier, raw: bytes) -> None:
    mail_for(relay, raw=raw)
    courier.drain(LONG)
    assert [mail.raw for mail in relay.accepted] == [raw if raw.endswith(b"\r\n") else raw + b"\r\n"]


# Refused --------------------------------------------------------------------------------------------


def test_451_twice_and_then_250_makes_three_attempts(relay: Relay, courier: Courier) -> None:
    mail = mail_for(relay)
    relay.on("rcpt", "451 4.3.0 later", "451 4.3.0 later", to=mail.recipient)
    for tries, shortest, longest in ((1, 48, 72), (2, 240, 360)):
        assert courier.drain(LONG) == Report(claimed=1, put_off=1)
        assert (now_as(mail).status, mail.try_count) == (Status.FAILED, tries)
        assert shortest <= (mail.due_at - mail.moved_at).total_seconds() <= longest
        assert mail.last_reply == "451 4.3.0 later"
        make_due()
    courier.drain(LONG)
    assert now_as(mail).status == Status.SUCCESS
    assert words(mail) == [("temporary", "rcpt", 451), ("temporary", "rcpt", 451), ("accepted", "reply", 250)]
    assert [one.number for one in mail.attempts.all()] == [1, 2, 3]


def test_after_the_last_try_it_is_cancelled(relay: Relay, courier: Courier) -> None:
    mail = mail_for(relay, max_tries=2)
    relay.always("rcpt", "450 4.2.1 never", to=mail.recipient)
    for _ in range(2):
        courier.drain(LONG)
        make_due()
    assert courier.drain(LONG).claimed == 0
    assert (now_as(mail).status, mail.cancel_reason) == (Status.CANCELLED, CancelReason.EXHAUSTED)
    assert mail in MailTask.objects.failures()


@pytest.mark.parametrize("step", ["rcpt", "data", "dot"])
def test_a_refusal_for_good_cancels_at_once(relay: Relay, courier: Courier, step: str) -> None:
    mail = mail_for(relay)
    relay.on(step, "550 5.7.1 not here", to=mail.recipient)
    assert courier.drain(LONG) == Report(claimed=1, cancelled=1)
    assert (now_as(mail).status, mail.cancel_reason) == (Status.CANCELLED, CancelReason.REJECTED)
    assert words(mail) == [("rejected", {"dot": "reply"}.get(step, step), 550)]
    assert not relay.accepted


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("step", ["mail", "rcpt", "data", "dot"])
def test_after_a_refusal_the_connection_is_reset_and_used_again(
    courier: Courier, pipelining: bool, step: str
) -> None:
    with Relay(pipelining=pipelining) as relay:
        owner = sending_user(relay.port, max_connections=1)
        first = mail_for(relay, owner)
        relay.on(step, "451 4.3.0 not now")
        courier.drain(LONG)
        second = mail_for(relay, owner)
        courier.drain(LONG)
        assert now_as(first).status == Status.FAILED
        assert now_as(second).status == Status.SUCCESS
        assert [mail.recipient for mail in relay.accepted] == [second.recipient]
        assert len(relay.sessions) == 1
        assert verbs(relay)["RSET"] == 1


@pytest.mark.parametrize("pipelining", [True, False])
def test_a_mail_kept_back_does_not_hide_the_refusal_before_it(courier: Courier, pipelining: bool) -> None:
    """The relay is told nothing of it, so it still waits for what was refused to be reset."""
    with Relay(size=100, pipelining=pipelining) as relay:
        owner = sending_user(relay.port, max_connections=1)
        relay.on("rcpt", "451 4.3.0 not now")
        refused = mail_for(relay, owner)
        courier.drain(LONG)
        mail_for(relay, owner, raw=b"x" * 99 + b"\r\n")
        courier.drain(LONG)
        mail_for(relay, owner, recipient="jürgen@example.com")
        courier.drain(LONG)
        last = mail_for(relay, owner)
        courier.drain(LONG)
        assert now_as(refused).status == Status.FAILED
        assert words(last) == [("accepted", "reply", 250)]
        assert len(relay.sessions) == 1
        assert verbs(relay)["RSET"] == 1


def test_a_session_out_of_step_is_left_and_the_mail_tried_again(relay: Relay, courier: Courier) -> None:
    """503 speaks of the commands' order; it says nothing against the mail."""
    owner = sending_user(relay.port, max_connections=1)
    mail = mail_for(relay, owner)
    relay.on("mail", "503 5.5.1 nested MAIL command")
    courier.drain(LONG)
    make_due()
    courier.drain(LONG)
    assert words(mail) == [("temporary", "mail", 503), ("accepted", "reply", 250)]
    assert len(relay.sessions) == 2


def test_a_relay_that_refuses_the_recipient_and_takes_the_content_gets_none(
    relay: Relay, courier: Courier
) -> None:
    """With pipelining DATA has gone out already; an empty mail must not follow."""
    owner = sending_user(relay.port, max_connections=1)
    mail = mail_for(relay, owner)
    relay.on("rcpt", b"550 5.1.1 no such user\r\n354 go on all the same\r\n")
    courier.drain(LONG)
    assert (now_as(mail).status, mail.cancel_reason) == (Status.CANCELLED, CancelReason.REJECTED)
    mail_for(relay, owner)
    courier.drain(LONG)
    assert len(relay.accepted) == 1
    assert len(relay.sessions) == 2


def test_a_mail_too_big_for_the_relay_is_rejected_unsent(courier: Courier) -> None:
    with Relay(size=100) as relay:
        owner = sending_user(relay.port)
        big = mail_for(relay, owner, raw=b"x" * 98 + b"\r\n\r\n")
        fits = mail_for(relay, owner, raw=b"x" * 98 + b"\r\n")
        courier.drain(LONG)
        assert (now_as(big).status, big.cancel_reason) == (Status.CANCELLED, CancelReason.REJECTED)
        assert now_as(fits).status == Status.SUCCESS
        assert [command for command in relay.commands() if command.startswith("MAIL")] == [
            "MAIL FROM:<ada@example.com> SIZE=100"
        ]


@pytest.mark.parametrize("pipelining", [True, False])
def test_a_recipient_beyond_ascii_gets_his_mail_where_the_relay_can(
    courier: Courier, pipelining: bool
) -> None:
    raw = "To: jürgen@example.com\r\n\r\nHello.\r\n".encode()
    with Relay(smtputf8=True, size=1000, pipelining=pipelining) as relay:
        owner = sending_user(relay.port)
        mail = mail_for(relay, owner, recipient="jürgen@example.com", raw=raw)
        plain = mail_for(relay, owner)
        courier.drain(LONG)
        assert (now_as(mail).status, now_as(plain).status) == (Status.SUCCESS, Status.SUCCESS)
        assert [got.raw for got in relay.accepted_for("jürgen@example.com")] == [raw]
        declared = {
            c.partition("SIZE=")[2].partition(" ")[2] for c in relay.commands() if c.startswith("MAIL")
        }
        assert declared == {"BODY=8BITMIME SMTPUTF8", ""}


def test_a_recipient_beyond_ascii_is_rejected_where_the_relay_cannot(relay: Relay, courier: Courier) -> None:
    owner = sending_user(relay.port)
    mail, plain = mail_for(relay, owner, recipient="jürgen@example.com"), mail_for(relay, owner)
    courier.drain(LONG)
    assert (now_as(mail).status, mail.cancel_reason) == (Status.CANCELLED, CancelReason.REJECTED)
    assert words(mail) == [("rejected", "mail", None)]
    assert mail.last_reply == "the relay takes only ASCII before the @ of an address (5.6.7)"
    assert now_as(plain).status == Status.SUCCESS
    assert verbs(relay)["MAIL"] == 1


# Lost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["connect", "ehlo", "mail", "rcpt", "data"])
def test_a_connection_lost_before_the_dot_is_tried_again(relay: Relay, courier: Courier, step: str) -> None:
    mail = mail_for(relay, on_uncertain=OnUncertain.HOLD)
    relay.on(step, RESET)
    assert courier.drain(LONG) == Report(claimed=1, put_off=1)
    assert (now_as(mail).status, mail.try_count) == (Status.FAILED, 1)
    make_due()
    courier.drain(LONG)
    assert now_as(mail).status == Status.SUCCESS
    assert len(relay.accepted) == 1


@pytest.mark.parametrize(
    ("policy", "status"),
    [
        (OnUncertain.RETRY, Status.FAILED),
        (OnUncertain.HOLD, Status.UNCERTAIN),
        (OnUncertain.ACCEPT, Status.SUCCESS),
    ],
)
@pytest.mark.parametrize("deed", [RESET, TAKE_AND_RESET, b"what?\r\n"])
def test_lost_after_the_dot_goes_by_the_policy(
    relay: Relay, courier: Courier, policy: OnUncertain, status: Status, deed: Any
) -> None:
    mail = mail_for(relay, on_uncertain=policy)
    relay.on("dot", deed, to=mail.recipient)
    courier.drain(LONG)
    assert now_as(mail).status == status
    assert words(mail) == [("uncertain", "reply", None)]


def test_an_uncertain_mail_goes_again_with_the_same_message_id(relay: Relay, courier: Courier) -> None:
    mail = mail_for(relay)
    relay.on("dot", TAKE_AND_RESET, to=mail.recipient)
    courier.drain(LONG)
    make_due()
    courier.drain(LONG)
    assert now_as(mail).status == Status.SUCCESS
    assert [got.message_id for got in relay.accepted] == [mail.message_id] * 2


@pytest.mark.parametrize("pipelining", [True, False])
def test_a_stale_connection_is_replaced_and_the_mail_sent_once(courier: Courier, pipelining: bool) -> None:
    with Relay(pipelining=pipelining) as relay:
        owner = sending_user(relay.port)
        mail_for(relay, owner)
        courier.drain(LONG)
        relay.on("mail", RESET)  # the relay had tired of us: nobody sees it before the next command
        mail = mail_for(relay, owner)
        assert courier.drain(LONG) == Report(claimed=1, sent=1)
        assert (now_as(mail).try_count, len(words(mail))) == (1, 1)
        assert len(relay.accepted_for(mail.recipient)) == 1
        assert len(relay.sessions) == 2


def test_a_relay_that_says_421_on_a_kept_connection_costs_no_try(relay: Relay, courier: Courier) -> None:
    owner = sending_user(relay.port)
    mail_for(relay, owner)
    courier.drain(LONG)
    relay.on("mail", "421 4.3.2 closing, you were idle")
    mail = mail_for(relay, owner)
    courier.drain(LONG)
    assert (now_as(mail).status, mail.try_count) == (Status.SUCCESS, 1)


def test_after_a_restart_of_the_relay_mail_goes_on(relay: Relay, courier: Courier) -> None:
    owner = sending_user(relay.port)
    MailFactory.create_batch(5, owner=owner)
    courier.drain(LONG)
    relay.hang_up()
    MailFactory.create_batch(5, owner=owner)
    assert courier.drain(LONG) == Report(claimed=5, sent=5)
    assert len(relay.accepted) == 10


@pytest.mark.parametrize(
    "garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x16\x03\x01\x02\r\n", b"999 what\r\n"]
)
def test_what_does_not_speak_smtp_is_tried_again_later(
    relay: Relay, courier: Courier, garbage: bytes
) -> None:
    relay.on("connect", garbage)
    mail = mail_for(relay)
    courier.drain(LONG)
    assert now_as(mail).status == Status.FAILED


@pytest.mark.parametrize(
    ("step", "status"), [("connect", "failed"), ("rcpt", "failed"), ("dot", "uncertain")]
)
def test_a_relay_that_falls_silent_is_given_up(
    relay: Relay, courier: Courier, monkeypatch: pytest.MonkeyPatch, step: str, status: str
) -> None:
    monkeypatch.setattr(smtp, "DEADLINES", dict.fromkeys(Phase, 0.3))
    relay.on(step, HANG)
    mail = mail_for(relay, on_uncertain=OnUncertain.HOLD)
    courier.drain(LONG)
    assert now_as(mail).get_status_display() == status
    assert "in time" in mail.last_reply


@pytest.mark.parametrize(
    ("step", "word"),
    [
        ("connect", ("temporary", "banner", None)),
        ("ehlo", ("temporary", "banner", None)),
        ("rcpt", ("temporary", "rcpt", None)),
        ("data", ("temporary", "data", None)),
        ("dot", ("uncertain", "reply", None)),
    ],
)
def test_a_transaction_ends_with_the_lease_that_it_began_with(
    relay: Relay, courier_with_short_lease: Courier, step: str, word: tuple[str, str, None]
) -> None:
    relay.on(step, HANG)
    mail = mail_for(relay, on_uncertain=OnUncertain.HOLD)
    courier_with_short_lease.drain(8)  # the shortest deadline is 10
    assert words(now_as(mail)) == [word]
    assert "in time" in mail.last_reply


@pytest.mark.parametrize("session", ["new", "kept"])
def test_a_relay_that_drips_along_within_each_deadline_is_given_up_all_the_same(
    courier_with_short_lease: Courier, monkeypatch: pytest.MonkeyPatch, session: str
) -> None:
    """Each reply comes in time, but six of them (or four, in a kept session) do not come within the lease."""
    courier = courier_with_short_lease
    with Relay(pipelining=False) as relay:
        owner = sending_user(relay.port, max_connections=1)
        if session == "kept":
            mail_for(relay, owner)
            courier.drain(LONG)
        relay.delay = SHORT_LEASE / 3
        monkeypatch.setattr(smtp, "DEADLINES", dict.fromkeys(Phase, SHORT_LEASE * 0.9))
        mail = mail_for(relay, owner)
        courier.drain(8)
        ((outcome, phase, _),) = words(now_as(mail))
        assert outcome == "temporary"
        assert phase in {"new": ("banner", "mail"), "kept": ("rcpt", "data")}[session]
        assert "in time" in mail.last_reply


def test_where_nobody_listens_it_is_tried_again(courier: Courier) -> None:
    with Relay() as gone:
        mail = mail_for(gone)
    courier.drain(LONG)
    assert words(now_as(mail)) == [("temporary", "connect", None)]
    assert "cannot be reached" in mail.last_reply


# The account is at fault ----------------------------------------------------------------------------


def assert_parked(mail: MailTask, said: str, state: AccountState = AccountState.PAUSED) -> SmtpAccount:
    """It waits with its tries, and the account says why."""
    assert (now_as(mail).status, mail.try_count) == (Status.QUEUED, 0)
    assert not mail.attempts.exists()
    account = SmtpAccount.objects.get(owner=mail.owner_id)
    assert account.state == state
    assert said in account.reason
    assert account.paused_until is not None
    assert account.paused_until > timezone.now()
    return account


def test_a_wrong_password_parks_the_account_and_uses_no_try(courier: Courier) -> None:
    with Relay(users={"ada": "right"}) as relay:
        owner = with_login(sending_user(relay.port), "ada", "wrong")
        mails = [mail_for(relay, owner) for _ in range(15)]
        courier.drain(LONG)
        for mail in mails:
            assert_parked(mail, "535")
        calls = len(relay.sessions)
        assert calls <= owner.smtp.max_connections
        assert courier.drain(LONG).claimed == 0
        assert len(relay.sessions) == calls


def test_new_settings_set_the_mail_free(courier: Courier) -> None:
    with Relay(users={"ada": "right"}) as relay:
        owner = with_login(sending_user(relay.port), "ada", "wrong")
        mail = mail_for(relay, owner)
        courier.drain(LONG)
        account = assert_parked(mail, "535")
        account.password = "right"
        account.reopen().save()
        assert courier.drain(LONG) == Report(claimed=1, sent=1)
        account.refresh_from_db()
        assert (account.state, account.reason, account.paused_until) == (AccountState.ACTIVE, "", None)
        assert relay.sessions[-1].logins == [("ada", "right")]


def test_after_the_pause_one_probe_goes_and_the_pause_doubles(courier: Courier) -> None:
    with Relay(users={"ada": "right"}) as relay:
        owner = with_login(sending_user(relay.port, max_connections=1), "ada", "wrong")
        MailFactory.create_batch(10, owner=owner)
        courier.drain(LONG)
        first = SmtpAccount.objects.get(owner=owner)
        SmtpAccount.objects.update(paused_until=timezone.now() - timedelta(seconds=1))
        calls = len(relay.sessions)
        assert courier.drain(LONG) == Report(claimed=1, put_off=1)
        assert len(relay.sessions) == calls + 1
        second = SmtpAccount.objects.get(owner=owner)
        assert (first.faults, second.faults) == (1, 2)


def test_a_probe_that_succeeds_opens_the_account_for_all(relay: Relay, courier: Courier) -> None:
    owner = sending_user(
        relay.port, state="paused", paused_until=timezone.now() - timedelta(seconds=1), faults=3
    )
    MailFactory.create_batch(10, owner=owner)
    assert courier.drain(LONG) == Report(claimed=10, sent=10)
    account = SmtpAccount.objects.get(owner=owner)
    assert (account.state, account.paused_until, account.faults) == (AccountState.ACTIVE, None, 0)


def test_a_name_that_does_not_resolve_parks_the_mail_and_leaves_the_account_unverified(
    courier: Courier,
) -> None:
    owner = UserFactory()
    SmtpAccount.objects.filter(owner=owner).update(host="smtp.invalid", port=587)
    mail = MailFactory(owner=owner)
    courier.drain(LONG)
    assert_parked(mail, "does not resolve", AccountState.UNVERIFIED)


def test_a_forbidden_address_is_never_called(relay: Relay, courier: Courier, settings: Any) -> None:
    settings.SMTP_ALLOWED_NETWORKS = ()
    mail = mail_for(relay)
    courier.drain(LONG)
    assert_parked(mail, "not allowed")
    assert not relay.sessions


def test_a_relay_that_throttles_makes_the_whole_account_wait(relay: Relay, courier: Courier) -> None:
    owner = sending_user(relay.port, max_connections=1)
    mails = [mail_for(relay, owner) for _ in range(3)]
    relay.always("mail", "421 4.7.0 Too many messages, slow down")
    courier.drain(LONG)
    for mail in mails:
        account = assert_parked(mail, "slow down")
    wait = (account.paused_until - timezone.now()).total_seconds()  # type: ignore[operator]
    assert 30 < wait <= 60


def test_an_account_at_fault_holds_up_nobody_else(relay: Relay, courier: Courier) -> None:
    broken = UserFactory()
    SmtpAccount.objects.filter(owner=broken).update(host="smtp.invalid", port=587)
    MailFactory.create_batch(20, owner=broken)
    mail = mail_for(relay)
    courier.drain(LONG)
    assert now_as(mail).status == Status.SUCCESS


# Login and TLS --------------------------------------------------------------------------------------


@pytest.fixture
def trusted(
    certificate: tuple[ssl.SSLContext, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[ssl.SSLContext]:
    """The certificate of "localhost", and a client that trusts its maker."""
    context, maker = certificate
    monkeypatch.setenv("SSL_CERT_FILE", maker)
    handshake._tls_context.cache_clear()
    yield context
    handshake._tls_context.cache_clear()


def to_localhost(relay: Relay, security: Security) -> User:
    owner = with_login(sending_user(relay.port), "ada", "right", security)
    SmtpAccount.objects.filter(owner=owner).update(host="localhost")
    return owner


@pytest.mark.parametrize("methods", [["PLAIN"], ["LOGIN"], ["LOGIN", "PLAIN", "CRAM-MD5"]])
def test_it_logs_in(courier: Courier, methods: list[str]) -> None:
    with Relay(users={"ada": "right"}, auth=methods) as relay:
        mail = mail_for(relay, with_login(sending_user(relay.port), "ada", "right"))
        courier.drain(LONG)
        assert now_as(mail).status == Status.SUCCESS
        assert relay.sessions[0].logins == [("ada", "right")]


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("pipelining", [True, False])
def test_over_tls_it_logs_in_and_sends(
    courier: Courier, trusted: ssl.SSLContext, implicit: bool, pipelining: bool
) -> None:
    with Relay(
        users={"ada": "right"}, certificate=trusted, implicit_tls=implicit, pipelining=pipelining
    ) as relay:
        owner = to_localhost(relay, Security.TLS if implicit else Security.STARTTLS)
        mail = mail_for(relay, owner, raw=b"Subject: big\r\n\r\n" + b"x" * 70 + b"\r\n" * 30_000)
        courier.drain(LONG)
        assert now_as(mail).status == Status.SUCCESS
        (log,) = [log for log in relay.sessions if log.commands]
        assert (log.is_protected, log.auth_in_clear) == (True, False)
        assert relay.accepted[0].raw == bytes(mail.content.raw)


@pytest.mark.parametrize("implicit", [True, False])
def test_a_certificate_nobody_vouches_for_is_refused_and_the_password_kept(
    courier: Courier, certificate: tuple[ssl.SSLContext, str], implicit: bool
) -> None:
    with Relay(users={"ada": "right"}, certificate=certificate[0], implicit_tls=implicit) as relay:
        mail = mail_for(relay, to_localhost(relay, Security.TLS if implicit else Security.STARTTLS))
        courier.drain(LONG)
        assert_parked(mail, "certificate")
        assert not [log for log in relay.sessions if log.logins]


def test_a_certificate_of_another_name_is_refused(courier: Courier, trusted: ssl.SSLContext) -> None:
    with Relay(users={"ada": "right"}, certificate=trusted) as relay:
        mail = mail_for(relay, with_login(sending_user(relay.port), "ada", "right", Security.STARTTLS))
        courier.drain(LONG)  # the account says 127.0.0.1, the certificate localhost
        assert_parked(mail, "certificate")
        assert not [log for log in relay.sessions if log.logins]


def test_without_the_starttls_it_must_have_it_sends_nothing(courier: Courier) -> None:
    with Relay(users={"ada": "right"}) as relay:
        mail = mail_for(relay, with_login(sending_user(relay.port), "ada", "right", Security.STARTTLS))
        courier.drain(LONG)
        assert_parked(mail, "STARTTLS")
        assert "AUTH" not in verbs(relay)


def test_in_clear_it_never_logs_in_by_itself(courier: Courier) -> None:
    """`auto` in an allowed network goes without TLS if none is offered, and then without the password too."""
    with Relay(users={"ada": "right"}) as relay:
        mail = mail_for(relay, with_login(sending_user(relay.port), "ada", "right", Security.AUTO))
        courier.drain(LONG)
        assert_parked(mail, "530")
        assert not [log for log in relay.sessions if log.auth_in_clear]


def test_a_password_that_cannot_be_read_parks_the_account(relay: Relay, courier: Courier) -> None:
    owner = with_login(sending_user(relay.port), "ada", "right")
    SmtpAccount.objects.filter(owner=owner).update(sealed_password="gAAAAA-of-another-key")
    mail = mail_for(relay, owner)
    courier.drain(LONG)
    assert_parked(mail, "CREDENTIAL_KEYS")


# Nobody stops the others ----------------------------------------------------------------------------


def test_a_mail_that_makes_the_code_raise_is_put_off_and_the_others_go_on(
    relay: Relay, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = sending_user(relay.port, max_connections=1)
    poison = mail_for(relay, owner, recipient="poison@example.com")
    envelope = smtp.Session._envelope

    def raise_at_poison(session: smtp.Session, sender: str, recipient: str, size: int) -> Any:
        """Stands for whatever we did not foresee."""
        if recipient == poison.recipient:
            raise RuntimeError("poison")
        return envelope(session, sender, recipient, size)

    monkeypatch.setattr(smtp.Session, "_envelope", raise_at_poison)
    others = [mail_for(relay, owner) for _ in range(5)]
    assert courier.drain(LONG) == Report(claimed=6, sent=5, put_off=1)
    assert (now_as(poison).status, poison.try_count) == (Status.FAILED, 1)
    assert "log" in poison.last_reply
    assert {now_as(mail).status for mail in others} == {Status.SUCCESS}


def test_a_relay_that_hangs_holds_up_no_other_owner(relay: Relay, courier: Courier) -> None:
    with Relay() as hanging:
        hanging.always("connect", HANG)
        stuck = sending_user(hanging.port, max_connections=3)
        MailFactory.create_batch(30, owner=stuck)
        mails = [mail_for(relay) for _ in range(3)]
        courier.drain(1)
        assert {now_as(mail).status for mail in mails} == {Status.SUCCESS}
        assert len(hanging.sessions) == 3


def test_more_owners_than_connections_all_get_their_turn(
    relay: Relay, courier: Courier, settings: Any
) -> None:
    settings.WORKER_CONNECTIONS = 2
    for _ in range(7):
        MailFactory.create_batch(2, owner=sending_user(relay.port))
    assert courier.drain(LONG) == Report(claimed=14, sent=14)


def test_one_owners_many_mails_do_not_keep_the_last_connection(courier: Courier, settings: Any) -> None:
    settings.WORKER_CONNECTIONS = 1
    with Relay(delay=0.02) as relay:
        big = sending_user(relay.port)
        MailFactory.create_batch(40, owner=big)
        small = mail_for(relay)
        courier.drain(LONG)
        assert len(relay.accepted) == 41
        assert [mail.recipient for mail in relay.accepted].index(small.recipient) < 10


def test_a_code_overtakes_the_bulk_mail_that_its_owners_worker_has_in_hand(courier: Courier) -> None:
    with Relay(delay=0.02) as relay:
        owner = sending_user(relay.port, max_connections=1)
        MailFactory.create_batch(20, owner=owner, lane=Lane.BULK)
        drain = Thread(target=courier.drain, args=[LONG])
        drain.start()
        until(lambda: bool(relay.accepted))
        code = mail_for(relay, owner, lane=Lane.OTP)
        drain.join()
        assert len(relay.accepted) == 21
        assert relay.accepted[-1].recipient != code.recipient


def test_an_account_gets_no_more_connections_than_it_may(courier: Courier) -> None:
    with Relay(delay=0.02) as relay:
        MailFactory.create_batch(40, owner=sending_user(relay.port, max_connections=3))
        courier.drain(LONG)
        assert len(relay.accepted) == 40
        assert len(relay.sessions) == 3


# Time -----------------------------------------------------------------------------------------------


def test_a_slice_that_ends_leaves_what_hangs_to_go_on_by_itself(relay: Relay, courier: Courier) -> None:
    relay.delay = 0.2
    mail = mail_for(relay)
    courier.drain(0.1)
    until(lambda: now_as(mail).status == Status.SUCCESS)


def test_a_lease_is_renewed_while_mails_wait_for_their_turn(courier_with_short_lease: Courier) -> None:
    with Relay(delay=0.05) as relay:
        owner = sending_user(relay.port, max_connections=1)
        MailFactory.create_batch(30, owner=owner)  # 0.2 s each: the last one's turn comes after three leases
        courier_with_short_lease.drain(0.1)
        rescued = 0

        def all_are_sent() -> bool:
            nonlocal rescued
            rescued += ledger.rescue()
            return MailTask.objects.filter(status=Status.SUCCESS).count() == 30

        until(all_are_sent)
        assert rescued == 0
        assert not MailTask.objects.filter(lost_count__gt=0).exists()
        assert len(relay.accepted) == 30


def test_told_to_stop_it_finishes_what_is_under_way_and_puts_back_the_rest(settings: Any) -> None:
    settings.WORKER_CONNECTIONS = 2
    with Relay(delay=0.1) as relay:
        owner = sending_user(relay.port, max_connections=2)
        MailFactory.create_batch(40, owner=owner)
        courier = Courier("worker:1").start()
        courier.drain(0.5)
        courier.stop(20)
        sent = MailTask.objects.filter(status=Status.SUCCESS).count()
        assert 0 < sent == len(relay.accepted) < 40
        assert MailTask.objects.filter(status=Status.QUEUED, try_count=0).count() == 40 - sent


def test_a_result_that_comes_too_late_is_told_and_changes_nothing(
    courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    with Relay(delay=0.3) as relay:
        mail = mail_for(relay)
        courier.drain(0.1)
        end_leases()
        assert ledger.rescue() == 1
        until(lambda: "late_result" in caplog.text)
        assert now_as(mail).status == Status.QUEUED
        assert words(mail) == [("lost", None, None)]
        courier.drain(LONG)
        assert now_as(mail).status == Status.SUCCESS


# A database that refuses ----------------------------------------------------------------------------


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """The database takes no task for which this holds."""
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE tasks_mailtask ADD CONSTRAINT refusing CHECK (NOT ({what})) NOT VALID")
        try:
            yield
        finally:
            cursor.execute("ALTER TABLE tasks_mailtask DROP CONSTRAINT refusing")


@pytest.mark.parametrize(
    ("said", "status"), [("250 2.0.0 poison", Status.SUCCESS), ("451 4.3.0 poison", Status.FAILED)]
)
def test_a_verdict_that_cannot_be_written_with_its_words_is_written_without(
    relay: Relay, courier: Courier, caplog: pytest.LogCaptureFixture, said: str, status: Status
) -> None:
    owner = sending_user(relay.port)
    mail, others = mail_for(relay, owner), [mail_for(relay, owner) for _ in range(3)]
    relay.always("dot", said, to=mail.recipient)
    with refusing("last_reply LIKE '%poison%'"):
        courier.drain(LONG)
    assert (now_as(mail).status, mail.try_count) == (status, 1)
    assert "database refused" in mail.last_reply
    assert mail.attempts.count() == 1
    assert status == Status.SUCCESS or mail.due_at > timezone.now() + timedelta(minutes=30)
    assert {now_as(other).status for other in others} == {Status.SUCCESS}
    assert "settlement_refused" in caplog.text
    assert "late_result" not in caplog.text


def test_a_verdict_that_cannot_be_written_at_all_is_held_for_a_person(relay: Relay, courier: Courier) -> None:
    mail = mail_for(relay)
    with refusing(f"status = {Status.SUCCESS:d}"):
        courier.drain(LONG)
        assert now_as(mail).status == Status.UNCERTAIN
        assert ledger.rescue() == 0
        assert courier.drain(LONG).claimed == 0
    assert len(relay.accepted) == 1


def claim_whose_answer_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL has committed it when the connection breaks; the next one is answered."""
    really = ledger.claim

    def claim(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(ledger, "claim", really)
        really(*args, **kwargs)
        raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(ledger, "claim", claim)


def claim_that_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection breaks when it has been answered and the accounts are looked up; then it is there again."""
    really = clerk.accounts_of

    def accounts_of(owner_ids: Any) -> Any:
        monkeypatch.setattr(clerk, "accounts_of", really)
        raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(clerk, "accounts_of", accounts_of)


@pytest.mark.parametrize("breaks", [claim_whose_answer_is_lost, claim_that_is_interrupted])
def test_a_claim_that_breaks_off_does_not_wait_for_its_lease(
    relay: Relay,
    courier: Courier,
    monkeypatch: pytest.MonkeyPatch,
    breaks: Callable[[pytest.MonkeyPatch], None],
) -> None:
    mails = [mail_for(relay, sending_user(relay.port)) for _ in range(3)]
    breaks(monkeypatch)
    assert courier.drain(LONG) == Report(claimed=3, sent=3)
    assert [(now_as(mail).try_count, mail.lost_count, len(words(mail))) for mail in mails] == [(1, 0, 1)] * 3
    assert len(relay.accepted) == 3


def test_whoever_dies_before_it_has_looked_again_leaves_that_claim_to_the_next(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail = mail_for(relay)
    first = Courier("worker:1").start()
    claim_whose_answer_is_lost(monkeypatch)
    with pytest.raises(OperationalError):
        first._clerk.claim(10, LONG, {}, 0)
    first.stop(5)
    assert now_as(mail).status == Status.PROCESSING
    second = Courier("worker:2").start()
    try:
        assert second.drain(LONG) == Report(claimed=1, sent=1)
    finally:
        second.stop(5)
    assert len(relay.accepted) == 1
