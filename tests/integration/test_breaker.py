"""The breaker of an account: failed connections open it, proof closes it, and its owner can read both."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from accounts.models import KEPT_EVENTS, SHOWN_EVENTS, AccountChange, AccountState, SmtpAccount, User
from mailqueue.delivery import breaker, smtp
from mailqueue.delivery.courier import Courier
from mailqueue.delivery.hand import Report
from mailqueue.delivery.replies import Answer, Fault, Meaning
from mailqueue.delivery.routes import relay_of
from tasks.models import MailTask
from tasks.states import Phase, Status
from tests.factories import MailFactory, UserFactory, client_of, make_due, sending_user, with_login
from tests.relay import HANG, RESET, TAKE_AND_RESET, Relay

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["accounts", "tasks", "mailqueue"])
LONG = 30.0
GONE = Answer(Phase.CONNECT, text="127.0.0.1 port 9", fault=Fault.UNREACHABLE)


@pytest.fixture
def courier() -> Iterator[Courier]:
    courier = Courier("worker:1").start()
    yield courier
    courier.stop(5)


def account_of(owner: User) -> SmtpAccount:
    return SmtpAccount.objects.get(owner=owner)


def events(owner: User) -> list[tuple[str, str]]:
    """What happened and why, in the order of time."""
    return [(event.what, event.reason) for event in account_of(owner).events.order_by("id")]


def tries(owner: User) -> list[int]:
    return sorted(MailTask.objects.filter(owner=owner).values_list("try_count", flat=True))


def a_while_later() -> None:
    """Pauses are over, and what waits for another try is due."""
    past = timezone.now() - timedelta(seconds=1)
    SmtpAccount.objects.exclude(paused_until=None).update(paused_until=past)
    make_due(past)


def miss(owner: User, times: int) -> list[bool]:
    """Failed connections, told one by one as any worker would; which of them opened the breaker."""
    relay = relay_of(account_of(owner))
    return [breaker.trip(owner.pk, relay, GONE, Meaning.TEMPORARY) for _ in range(times)]


# Relays that are away -------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "deed"), [("connect", RESET), ("mail", RESET), ("data", HANG)])
def test_five_failed_connections_in_a_row_open_the_breaker(
    relay: Relay, courier: Courier, monkeypatch: pytest.MonkeyPatch, step: str, deed: Any
) -> None:
    monkeypatch.setattr(smtp, "DEADLINES", dict.fromkeys(Phase, 0.3))
    relay.always(step, deed)
    owner = sending_user(relay.port, max_connections=1)
    MailFactory.create_batch(12, owner=owner)
    assert courier.drain(LONG) == Report(claimed=12, put_off=12)
    account = account_of(owner)
    assert (account.state, account.faults) == (AccountState.PAUSED, 1)
    assert 30 < (account.paused_until - timezone.now()).total_seconds() <= 60  # type: ignore[operator]
    assert tries(owner) == [0] * 8 + [1] * 4  # counted until the fifth, which waits with the rest
    assert len(relay.sessions) == 5


def test_the_count_holds_over_workers(courier: Courier) -> None:
    with Relay() as gone:
        owner = sending_user(gone.port)
    assert miss(owner, 3) == [False] * 3  # somebody else's
    MailFactory.create_batch(2, owner=owner)
    courier.drain(LONG)
    assert account_of(owner).state == AccountState.PAUSED
    assert tries(owner) == [0, 1]


@pytest.mark.parametrize("said", ["250 2.0.0 taken", "550 5.1.1 nobody", "451 4.3.0 later"])
def test_any_answer_of_the_relay_ends_the_row(relay: Relay, courier: Courier, said: str) -> None:
    owner = sending_user(relay.port)
    miss(owner, 4)
    relay.on("rcpt" if said[0] != "2" else "dot", said)
    MailFactory(owner=owner)
    courier.drain(LONG)
    assert account_of(owner).missed == 0
    assert miss(owner, 5) == [False] * 4 + [True]


def test_a_worker_notices_the_end_of_a_row_that_began_in_its_hands(relay: Relay, courier: Courier) -> None:
    relay.on("connect", RESET, RESET, RESET)
    owner = sending_user(relay.port, max_connections=1, state=AccountState.ACTIVE)
    MailFactory.create_batch(6, owner=owner)
    assert courier.drain(LONG) == Report(claimed=6, sent=3, put_off=3)
    assert account_of(owner).missed == 0


def test_a_good_connection_writes_nothing_about_the_account(
    relay: Relay, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("the breaker was told")

    for verb in ("trip", "close", "answered"):
        monkeypatch.setattr(breaker, verb, fail)
    relay.on("rcpt", "451 4.3.0 later")
    owner = sending_user(relay.port, state=AccountState.ACTIVE)
    MailFactory.create_batch(6, owner=owner)
    assert courier.drain(LONG) == Report(claimed=6, sent=5, put_off=1)


def test_lost_after_the_dot_is_the_mails_own_affair(relay: Relay, courier: Courier) -> None:
    relay.always("dot", TAKE_AND_RESET)
    owner = sending_user(relay.port, max_connections=1)
    MailFactory.create_batch(6, owner=owner)
    courier.drain(LONG)
    assert account_of(owner).missed == 0
    assert tries(owner) == [1] * 6


def test_a_probe_that_fails_doubles_the_pause_up_to_a_quarter_of_an_hour() -> None:
    owner = sending_user(9)
    miss(owner, 4)
    pauses = []
    for _ in range(6):
        before = timezone.now()
        assert miss(owner, 2) == [True, True]  # the second finds it open
        pauses.append(round((account_of(owner).paused_until - before).total_seconds(), -1))  # type: ignore[operator]
        a_while_later()
    assert pauses == [60, 120, 240, 480, 900, 900]


def test_a_probe_is_tried_once_whatever_was_wrong_before() -> None:
    owner = sending_user(9)
    relay = relay_of(account_of(owner))
    breaker.trip(owner.pk, relay, Answer(Phase.AUTH, 535, "5.7.8 no"), Meaning.ACCOUNT)
    a_while_later()
    assert miss(owner, 1) == [True]
    account = account_of(owner)
    assert (account.faults, account.missed) == (2, 0)
    assert account.paused_until > timezone.now()  # type: ignore[operator]


def test_one_probe_that_arrives_lets_all_go(courier: Courier) -> None:
    with Relay() as relay:
        port = relay.port
        owner = sending_user(port, max_connections=1)
    MailFactory.create_batch(10, owner=owner)
    courier.drain(LONG)
    assert account_of(owner).state == AccountState.PAUSED
    a_while_later()
    assert courier.drain(LONG) == Report(claimed=1, put_off=1)
    assert tries(owner) == [0] * 6 + [1] * 4  # the probe's try is not used up
    a_while_later()
    with Relay(port=port):
        assert courier.drain(LONG) == Report(claimed=10, sent=10)
    account = account_of(owner)
    assert (account.state, account.paused_until, account.missed) == (AccountState.ACTIVE, None, 0)


# Old settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [GONE, Answer(Phase.AUTH, 535, "5.7.8 wrong password")])
def test_a_mail_in_flight_does_not_pause_an_account_that_was_mended_meanwhile(answer: Answer) -> None:
    owner = with_login(sending_user(2525), "ada", "wrong")
    used = relay_of(account_of(owner))
    account = account_of(owner)
    account.password = "right"
    account.reopen().save()
    meaning = Meaning.TEMPORARY if answer is GONE else Meaning.ACCOUNT
    for _ in range(6):
        assert breaker.trip(
            owner.pk, used, answer, meaning
        )  # the mail goes back, to be tried with the new ones
    assert (account_of(owner).state, account_of(owner).missed) == (AccountState.UNVERIFIED, 0)
    assert breaker.trip(
        owner.pk, relay_of(account), Answer(Phase.AUTH, 535, "5.7.8 wrong password"), Meaning.ACCOUNT
    )
    assert account_of(owner).state == AccountState.PAUSED


def test_a_mail_in_flight_does_not_vouch_for_new_settings() -> None:
    owner = sending_user(2525)
    used = relay_of(account_of(owner))
    SmtpAccount.objects.filter(owner=owner).update(port=2526)
    breaker.close(owner.pk, used, "The relay took a mail.")
    assert account_of(owner).state == AccountState.UNVERIFIED
    breaker.close(owner.pk, relay_of(account_of(owner)), "The relay took a mail.")
    assert account_of(owner).state == AccountState.ACTIVE


def test_settings_mended_while_the_old_ones_hang_send_the_mail_at_once(
    relay: Relay, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smtp, "DEADLINES", dict.fromkeys(Phase, 1.0))
    with Relay() as hanging:
        hanging.always("connect", HANG)
        owner = sending_user(hanging.port)
        mail = MailFactory(owner=owner)
        courier.drain(0.2)
        SmtpAccount.objects.filter(owner=owner).update(port=relay.port)
        courier.drain(LONG)
    mail.refresh_from_db()
    assert (mail.status, mail.try_count) == (Status.SUCCESS, 1)


# The history ----------------------------------------------------------------------------------------


def test_pausing_and_resuming_are_kept_with_their_reasons(courier: Courier) -> None:
    with Relay(users={"ada": "right"}) as relay:
        owner = with_login(sending_user(relay.port), "ada", "wrong")
        MailFactory.create_batch(5, owner=owner)
        courier.drain(LONG)
        paused = account_of(owner)
        paused.password = "right"
        paused.save()
        SmtpAccount.objects.update(paused_until=timezone.now() - timedelta(seconds=1))
        courier.drain(LONG)
    said = "535 5.7.8 wrong name or password"
    assert events(owner) == [("paused", said), ("resumed", "The relay took a mail.")]
    first, second = account_of(owner).events.order_by("id")
    assert (first.until, second.until) == (paused.paused_until, None)


def test_the_owner_reads_the_newest(relay: Relay) -> None:
    owner = sending_user(relay.port)
    for number in range(SHOWN_EVENTS):
        owner.smtp.note(AccountChange.PAUSED, f"fault {number}", timezone.now())
    UserFactory().smtp.note(AccountChange.PAUSED, "somebody else's")
    assert (
        client_of(owner).get(f"/api/v1/user/{owner.pk}").json()["account"]["history"][0]["what"] == "paused"
    )
    SmtpAccount.objects.filter(owner=owner).update(state="paused", paused_until=timezone.now())
    assert client_of(owner).post(f"/api/v1/user/{owner.pk}/smtp/test").json()["ok"]
    account = client_of(owner).get(f"/api/v1/user/{owner.pk}").json()["account"]
    assert (account["state"], account["until"], len(account["history"])) == ("active", None, SHOWN_EVENTS)
    newest, before = account["history"][:2]
    assert newest | {"at": ""} == {
        "at": "",
        "what": "resumed",
        "reason": "The SMTP test succeeded.",
        "until": None,
    }
    assert (before["what"], before["reason"]) == ("paused", f"fault {SHOWN_EVENTS - 1}")
    assert before["until"]


def test_only_the_newest_are_kept() -> None:
    other, account = UserFactory().smtp, UserFactory().smtp
    other.note(AccountChange.RESUMED, "long ago")
    for number in range(KEPT_EVENTS + 5):
        account.note(AccountChange.PAUSED, str(number))
    assert [event.reason for event in account.events.order_by("id")] == [
        str(n) for n in range(5, KEPT_EVENTS + 5)
    ]
    assert other.events.count() == 1


def test_new_settings_are_a_resumption_only_of_what_was_paused(settings: Any) -> None:
    settings.DEFAULT_SMTP_URL = "smtp://127.0.0.1:1025"
    owner = UserFactory()
    miss(owner, 5)
    for change in ({"max_connections": 5}, {"smtp_host": ""}, {"smtp_host": ""}):
        assert client_of(owner).patch(f"/api/v1/user/{owner.pk}", change, format="json").status_code == 200
    assert [what for what, _ in events(owner)] == ["paused", "resumed"]
    assert events(owner)[-1] == ("resumed", "The SMTP settings were changed.")
