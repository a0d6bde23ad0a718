"""TLS, login and refusals at a relay that nobody here wrote: Postfix, with SASL by Dovecot.

Each mail goes the whole way: HTTP, PostgreSQL, a real worker, Postfix, and the relay behind it.
"""

import contextlib
import os
import socket
import socketserver
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from email import message_from_bytes, policy
from pathlib import Path
from typing import Self

import psycopg
import pytest

from tests import postfix
from tests.machine import Machine, Sender, until
from tests.postfix import BAD_CERTIFICATES, PASSWORD, SIZE_LIMIT, USER, Postfix
from tests.relay import Relay

pytestmark = pytest.mark.postfix


@pytest.fixture(scope="module")
def relay(destination: Relay, certificates: Path) -> Iterator[Postfix]:
    if lacking := postfix.missing():
        # In CI a skipped test would be one that nobody runs.
        pytest.fail(lacking) if os.environ.get("CI") else pytest.skip(lacking)
    with Postfix(destination.port, certificates) as running:
        yield running


@pytest.fixture(scope="module")
def machine(relay: Postfix, trusting_machine: Machine) -> Machine:
    return trusting_machine.start_all()


def sender_at(machine: Machine, port: int, security: str = "starttls", password: str = PASSWORD) -> Sender:
    return machine.user(port, "localhost", USER, password, security)


def arrived(destination: Relay, message_id: str) -> list[bytes]:
    """The mail as it came out of Postfix, once or more often."""
    return until(lambda: destination.passed_on(message_id), "Postfix passes it on")


# Login ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way",
    [
        ("starttls", "starttls", "PLAIN"),  # offers PLAIN, LOGIN and CRAM-MD5
        ("starttls", "auto", "PLAIN"),
        ("login", "starttls", "LOGIN"),
        ("cram-md5", "starttls", "CRAM-MD5"),
        ("cram-md5-or-login", "starttls", "LOGIN"),
        ("smtps", "tls", "PLAIN"),
        ("clear", "none", "PLAIN"),  # within SMTP_ALLOWED_NETWORKS, and only because the settings say so
    ],
    ids="-".join,
)
def test_it_logs_in_and_the_mail_arrives_as_it_was_stored(
    relay: Postfix, destination: Relay, machine: Machine, way: tuple[str, str, str]
) -> None:
    service, security, method = way
    before = len(relay.logins(service))
    sender = sender_at(machine, relay.ports[service], security)
    pk = sender.enqueue("reader1@example.com")
    task = sender.until(pk, "success")
    assert arrived(destination, task["message_id"]) == [machine.stored(pk)]
    assert relay.logins(service)[before:] == [method]
    assert sender.account()["state"] == "active"


def test_without_a_login_and_without_tls_within_allowed_networks(
    relay: Postfix, destination: Relay, machine: Machine
) -> None:
    sender = machine.user(relay.ports["open"], security="none")
    task = sender.until(sender.enqueue("reader1@example.com"), "success")
    assert len(arrived(destination, task["message_id"])) == 1
    assert not relay.logins("open")


@pytest.mark.parametrize("service", ["starttls", "login", "cram-md5"])
def test_a_wrong_password_pauses_the_account_until_it_is_put_right_and_tested(
    relay: Postfix, destination: Relay, machine: Machine, service: str
) -> None:
    sender = sender_at(machine, relay.ports[service], password="wrong")
    pk = sender.enqueue("reader1@example.com")
    assert sender.until_paused()["reason"].startswith("535 5.7.8 ")
    sender.assert_it_waits_untried(pk)

    tried = sender.try_relay()
    assert (tried["ok"], tried["phase"], tried["code"]) == (False, "auth", 535)
    sender.change(**{"smtp-password": PASSWORD})
    assert sender.try_relay() == {"ok": True, "phase": "auth", "code": None, "reply": ""}
    task = sender.until(pk, "success")
    assert (task["try_count"], len(arrived(destination, task["message_id"]))) == (1, 1)
    assert sender.account()["state"] == "active"


# Certificates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("certificate", BAD_CERTIFICATES)
def test_a_bad_certificate_pauses_the_account_and_the_password_is_kept(
    relay: Postfix, machine: Machine, certificate: str, implicit: bool
) -> None:
    service = f"{certificate}-smtps" if implicit else certificate
    sender = sender_at(machine, relay.ports[service], "tls" if implicit else "starttls")
    pk = sender.enqueue("reader1@example.com")
    account = sender.until_paused()
    said = {"self-signed": "self-signed", "expired": "expired", "other-name": "localhost"}[certificate]
    assert account["reason"].startswith("the relay's certificate is not valid")
    assert said in account["reason"]
    sender.assert_it_waits_untried(pk)
    assert sender.try_relay()["phase"] == "tls"
    until(lambda: relay.said(f"{service}/").count("SSL_accept error") >= 2, "Postfix writes of both")
    assert not [session for session in relay.sessions(service) if "auth" in session or "mail" in session]


class Stripper(socketserver.ThreadingTCPServer):
    """A man in the middle: passes everything on, but for the line that offers STARTTLS."""

    #: A worker may keep its connection for a while; nobody waits for that.
    daemon_threads, block_on_close = True, False

    def __init__(self, target: int) -> None:
        super().__init__(("127.0.0.1", 0), _Stripped)
        self.target = target
        self.port: int = self.server_address[1]
        self.heard = b""

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="stripper")
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Stripped(socketserver.StreamRequestHandler):
    server: Stripper

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.target)) as relay:
            answering = threading.Thread(target=self._answer, args=(relay,))
            answering.start()
            for line in self.rfile:
                self.server.heard += line
                relay.sendall(line)
            relay.shutdown(socket.SHUT_WR)
            answering.join()

    def _answer(self, relay: socket.socket) -> None:
        with contextlib.suppress(OSError), relay.makefile("rb") as lines:
            for line in lines:
                if b"STARTTLS" not in line or b"530" in line:
                    self.wfile.write(line)


@pytest.mark.parametrize(
    ("service", "security", "said"),
    [
        ("starttls", "starttls", "offers no STARTTLS"),
        ("clear", "starttls", "offers no STARTTLS"),
        # `auto` goes without TLS inside allowed networks, but takes no password along; Postfix minds.
        ("starttls", "auto", "530 5.7.0 Must issue a STARTTLS command first"),
    ],
)
def test_where_starttls_was_stripped_the_password_is_kept(
    relay: Postfix, machine: Machine, service: str, security: str, said: str
) -> None:
    with Stripper(relay.ports[service]) as stripper:
        sender = sender_at(machine, stripper.port, security)
        pk = sender.enqueue("reader1@example.com")
        assert said in sender.until_paused()["reason"]
        sender.assert_it_waits_untried(pk)
        assert b"EHLO" in stripper.heard
        assert b"AUTH" not in stripper.heard.upper()


# Refusals -------------------------------------------------------------------------------------------


@pytest.fixture
def sender(relay: Postfix, machine: Machine) -> Sender:
    return sender_at(machine, relay.ports["starttls"])


def test_an_unknown_recipient_is_cancelled_at_once(sender: Sender) -> None:
    task = sender.until(sender.enqueue("nobody@example.com"), "cancelled")
    assert (task["cancel_reason"], task["try_count"]) == ("rejected", 1)
    (attempt,) = task["attempts"]
    assert (attempt["outcome"], attempt["phase"], attempt["code"]) == ("rejected", "rcpt", 550)
    assert attempt["reply"].startswith("550 5.1.1 ")
    assert sender.account()["state"] != "paused"


def test_a_greylisted_mail_waits_five_minutes(sender: Sender) -> None:
    task = sender.until(sender.enqueue("grey@example.com"), "failed")
    (attempt,) = task["attempts"]
    assert (attempt["outcome"], attempt["phase"], attempt["code"]) == ("temporary", "rcpt", 450)
    assert task["waiting"]["reason"] == "retry"
    assert "Greylisted" in task["waiting"]["detail"]
    failed, again = map(datetime.fromisoformat, (attempt["at"], task["next_attempt_at"]))
    assert 300 <= (again - failed).total_seconds() < 400  # the schedule of these tests says a second


def test_a_refusal_for_now_is_tried_again_by_the_schedule_and_holds_up_nothing(
    relay: Postfix, sender: Sender
) -> None:
    sender.change(max_connections=1)
    pk = sender.enqueue("busy@example.com", max_tries=2)
    task = sender.until(pk, "cancelled")
    assert (task["cancel_reason"], [one["code"] for one in task["attempts"]]) == ("exhausted", [451, 451])
    sender.until(sender.enqueue("reader1@example.com"), "success")  # after RSET


def test_a_mail_larger_than_the_relay_takes_is_refused_unsent(
    relay: Postfix, destination: Relay, sender: Sender
) -> None:
    pk = sender.enqueue("reader1@example.com", body="x" * 60 + "\n" + ("y" * 60 + "\n") * (SIZE_LIMIT // 60))
    task = sender.until(pk, "cancelled")
    assert task["cancel_reason"] == "rejected"
    (attempt,) = task["attempts"]
    assert (attempt["outcome"], attempt["phase"], attempt["code"]) == ("rejected", "mail", None)
    assert str(SIZE_LIMIT) in attempt["reply"]
    assert "message file too big" not in relay.said()
    assert task["message_id"] not in relay.said()


# Content --------------------------------------------------------------------------------------------

TEXTS = {
    "ASCII": "Hello\n",
    "Unicode": "Grüße 🙂 \u202eright to left\u202c ñ 漢字\n",
    "dots": ".\n..\n...\n.x\n\n.",
    "long lines": "wörter " * 400 + "\n" + "words " * 400,
    "blanks at the ends": "  before \t\nafter  \t\n\n\n",
    "From": "From here on\n>From there\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_content_comes_out_of_the_relay_byte_for_byte(
    destination: Relay, machine: Machine, sender: Sender, text: str
) -> None:
    pk = sender.enqueue(
        "reader1@example.com",
        subject="Grüße 🙂 " * 12,
        body=text,
        html_body=f"<p>{text}</p>",
        from_name="Äda",
    )
    task = sender.until(pk, "success")
    (raw,) = arrived(destination, task["message_id"])
    assert raw == machine.stored(pk)
    mail = message_from_bytes(raw, policy=policy.default)
    body = mail.get_body(("plain",))
    assert body is not None
    assert mail["Subject"] == ("Grüße 🙂 " * 12)
    assert body.get_content().replace("\r\n", "\n").rstrip("\n") == text.rstrip("\n")


def test_eight_bit_content_comes_out_of_the_relay_byte_for_byte(
    destination: Relay, machine: Machine, sender: Sender
) -> None:
    """What is built here has seven bits; nothing on the way may depend on that."""
    pk = sender.enqueue("reader1@example.com", scheduled_at="2099-01-01T00:00:00Z")
    head, _, _ = machine.stored(pk).partition(b"\r\n\r\n")
    body = "Grüße 🙂\r\n.\r\n..ende".encode() + bytes(range(0xA0, 0x100)) + b"\r\n"
    raw = head.replace(b"base64", b"8bit") + b"\r\n\r\n" + body
    with psycopg.connect(machine.database) as database:
        database.execute("UPDATE tasks_mailcontent SET raw = %s WHERE task_id = %s", (raw, pk))
        database.execute("UPDATE tasks_due SET due_at = now() WHERE task_id = %s", (pk,))
    task = sender.until(pk, "success")
    assert arrived(destination, task["message_id"]) == [raw]


# Many -----------------------------------------------------------------------------------------------


def test_many_mails_go_over_few_connections_and_arrive_once_each(
    relay: Postfix, destination: Relay, machine: Machine
) -> None:
    mails, connections = 450, 2
    sender = sender_at(machine, relay.ports["counted"], "tls")
    sender.change(max_connections=connections)
    ids = [sender.task(sender.enqueue(f"reader{n}@example.com"))["message_id"] for n in range(mails)]

    def came() -> Counter[str]:
        return Counter(mail.message_id for mail in destination.accepted)

    until(lambda: all(came()[message_id] for message_id in ids), "all have arrived")
    machine.terminate("worker")  # says goodbye, so that Postfix tells what each connection carried
    machine.start_worker()
    machine.until_ready("worker")
    assert {came()[message_id] for message_id in ids} == {1}

    def carried() -> list[int]:
        return [int(session.get("data", "0").split("/")[0]) for session in relay.sessions("counted")]

    until(lambda: sum(carried()) == mails, "Postfix has written of every connection's end")
    assert max(carried()) == 100
    assert len(carried()) < mails / 10
    assert len(relay.logins("counted")) == mails
    assert {session["auth"] for session in relay.sessions("counted")} == {"1"}
