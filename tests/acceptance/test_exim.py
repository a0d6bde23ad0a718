"""TLS, login and refusals at a second relay that nobody here wrote: Exim, whose replies have no enhanced codes.

Each mail goes the whole way: HTTP, PostgreSQL, a real worker, Exim, and the relay behind it.
"""

import os
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests import exim
from tests.exim import PASSWORD, SIZE_LIMIT, USER, Exim
from tests.machine import Machine, Sender, until
from tests.relay import Relay

pytestmark = pytest.mark.exim


@pytest.fixture(scope="module")
def relay(destination: Relay, certificates: Path) -> Iterator[Exim]:
    if lacking := exim.missing():
        # In CI a skipped test would be one that nobody runs.
        pytest.fail(lacking) if os.environ.get("CI") else pytest.skip(lacking)
    with Exim(destination.port, certificates) as running:
        yield running


@pytest.fixture(scope="module")
def machine(relay: Exim, trusting_machine: Machine) -> Machine:
    return trusting_machine.start_all()


@pytest.fixture
def sender(relay: Exim, machine: Machine) -> Sender:
    return sender_at(machine, relay.ports["starttls"])


def sender_at(machine: Machine, port: int, security: str = "starttls", password: str = PASSWORD) -> Sender:
    return machine.user(port, "localhost", USER, password, security)


def arrived(destination: Relay, message_id: str) -> list[bytes]:
    """The mail as it came out of Exim, once or more often."""
    return until(lambda: destination.passed_on(message_id), "Exim passes it on")


TEXT = "Grüße 🙂 ñ 漢字\n.\n..\n.x\n\n" + "wörter " * 400 + "\nFrom here on  \t\n\n."


@pytest.mark.parametrize(
    "way",
    [
        ("starttls", "starttls", "plain"),  # offers PLAIN, LOGIN and CRAM-MD5
        ("starttls", "auto", "plain"),
        ("login", "starttls", "login"),
        ("cram-md5", "starttls", "cram"),
        ("smtps", "tls", "plain"),
    ],
    ids="-".join,
)
def test_it_logs_in_and_the_mail_comes_out_byte_for_byte(
    relay: Exim, destination: Relay, machine: Machine, way: tuple[str, str, str]
) -> None:
    service, security, method = way
    before = len(relay.logins(service))
    sender = sender_at(machine, relay.ports[service], security)
    pk = sender.enqueue(
        "reader1@example.com", subject="Grüße 🙂 " * 12, body=TEXT, html_body=f"<p>{TEXT}</p>"
    )
    task = sender.until(pk, "success")
    assert arrived(destination, task["message_id"]) == [machine.stored(pk)]
    assert relay.logins(service)[before:] == [method]
    assert sender.account()["state"] == "active"


@pytest.mark.parametrize("service", ["starttls", "smtps", "login", "cram-md5"])
def test_a_wrong_password_pauses_the_account_until_it_is_put_right_and_tested(
    relay: Exim, destination: Relay, machine: Machine, service: str
) -> None:
    security = "tls" if service == "smtps" else "starttls"
    sender = sender_at(machine, relay.ports[service], security, password="wrong")
    pk = sender.enqueue("reader1@example.com")
    assert sender.until_paused()["reason"].startswith("535 ")
    sender.assert_it_waits_untried(pk)

    tried = sender.try_relay()
    assert (tried["ok"], tried["phase"], tried["code"]) == (False, "auth", 535)
    sender.change(**{"smtp-password": PASSWORD})
    assert sender.try_relay() == {"ok": True, "phase": "auth", "code": None, "reply": ""}
    task = sender.until(pk, "success")
    assert (task["try_count"], len(arrived(destination, task["message_id"]))) == (1, 1)
    assert sender.account()["state"] == "active"


def test_an_unknown_recipient_is_cancelled_at_once_and_the_connection_goes_on(
    relay: Exim, destination: Relay, sender: Sender
) -> None:
    sender.change(max_connections=1)
    task = sender.until(sender.enqueue("nobody@example.com"), "cancelled")
    assert (task["cancel_reason"], task["try_count"]) == ("rejected", 1)
    (attempt,) = task["attempts"]
    assert (attempt["outcome"], attempt["phase"], attempt["code"]) == ("rejected", "rcpt", 550)
    assert "Nobody of that name" in attempt["reply"]
    task = sender.until(sender.enqueue("reader1@example.com"), "success")
    assert len(arrived(destination, task["message_id"])) == 1
    assert sender.account()["state"] == "active"


def test_a_greylisted_mail_waits_five_minutes(sender: Sender) -> None:
    task = sender.until(sender.enqueue("grey@example.com"), "failed")
    (attempt,) = task["attempts"]
    assert (attempt["outcome"], attempt["phase"], attempt["code"]) == ("temporary", "rcpt", 451)
    failed, again = map(datetime.fromisoformat, (attempt["at"], task["next_attempt_at"]))
    assert 300 <= (again - failed).total_seconds() < 400  # the schedule of these tests says a second


def test_a_mail_larger_than_the_relay_takes_is_refused_unsent(relay: Exim, sender: Sender) -> None:
    task = sender.until(sender.enqueue("reader1@example.com", body="y" * SIZE_LIMIT), "cancelled")
    assert task["cancel_reason"] == "rejected"
    (attempt,) = task["attempts"]
    assert (attempt["outcome"], attempt["phase"], attempt["code"]) == ("rejected", "mail", None)
    assert str(SIZE_LIMIT) in attempt["reply"]
    assert task["message_id"] not in relay.said()


def test_many_mails_go_through_once_each(relay: Exim, destination: Relay, machine: Machine) -> None:
    mails = 120  # more than go over one connection
    sender = sender_at(machine, relay.ports["smtps"], "tls")
    sender.change(max_connections=1)
    before = len(relay.logins("smtps"))
    ids = [sender.task(sender.enqueue(f"reader{n}@example.com"))["message_id"] for n in range(mails)]

    def came() -> Counter[str]:
        return Counter(mail.message_id for mail in destination.accepted)

    until(lambda: all(came()[message_id] for message_id in ids), "all have come")
    assert {came()[message_id] for message_id in ids} == {1}
    assert len(relay.logins("smtps")) - before == mails
