"""Twelve sequences that end a mail for some relay, in every text of it: one mail each, with its content as accepted.

Three relays judge: one that ends a mail at CRLF dot CRLF alone, one that takes bare CR and LF for line ends too, and
aiosmtpd. What goes over the socket is looked at by the byte as well. (BDAT is not used, and needs no dot.)
"""

import base64
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import Envelope

from mailqueue.delivery.courier import Courier
from mailqueue.embedded.redis import free_port
from tasks.models import MailTask
from tests.factories import client_of, sending_user
from tests.relay import Relay, _Conversation

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["accounts", "tasks"])

SEQUENCES = {
    "CRLF . CRLF": "\r\n.\r\n",
    "LF . LF": "\n.\n",
    "LF . CRLF": "\n.\r\n",
    "CR . CR": "\r.\r",
    "CRLF . LF": "\r\n.\n",
    "CRLF . CR": "\r\n.\r",
    "CR . CRLF": "\r.\r\n",
    "doubled CR": "\r\r\n.\r\r\n",
    "LF CR": "\n\r.\n\r",
    "NEL": "\x85.\x85",
    "line separators": "\u2028.\u2029",
    "long dots": "\r\n" + "." * 1_100 + "\r\n.\r\n",
}
SECOND = "MAIL FROM:<eve@example.com>\r\nRCPT TO:<eve@example.com>\r\nDATA\r\nSubject: smuggled\r\n\r\nx"


def in_attachment(text: str) -> dict[str, Any]:
    content = base64.b64encode(text.encode()).decode()
    return {"attachments": [{"filename": "a.eml.txt", "content_type": "text/plain", "content": content}]}


PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    "body": lambda text: {"body": text},
    "html_body": lambda text: {"html_body": text},
    "attachment": in_attachment,
    "template": lambda text: {"template": "x", "context": {"text": text}},
}


class Sink:
    """What a relay took: envelope and content of each mail, and every byte that came for it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.mails: list[tuple[str, list[str], bytes]] = []
        self.bytes = b""


@contextmanager
def ours(**traits: Any) -> Iterator[Sink]:
    with Relay(**traits) as relay:
        sink = Sink(relay.port)
        yield sink
    sink.mails = [(mail.sender, [mail.recipient], mail.raw) for mail in relay.accepted]


@contextmanager
def aiosmtpd() -> Iterator[Sink]:
    sink = Sink(free_port())

    class Keeper:
        async def handle_DATA(self, _server: Any, _session: Any, envelope: Envelope) -> str:  # noqa: N802
            assert isinstance(envelope.content, bytes)
            sink.mails.append((str(envelope.mail_from), envelope.rcpt_tos, envelope.content))
            return "250 taken"

    controller = Controller(Keeper(), hostname="127.0.0.1", port=sink.port)
    controller.start()
    try:
        yield sink
    finally:
        controller.stop()


SINKS: dict[str, Callable[[], Any]] = {
    "strict": ours,
    "strict, without pipelining": lambda: ours(pipelining=False),
    "lenient": lambda: ours(lenient=True),
    "aiosmtpd": aiosmtpd,
}


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> dict[int, bytes]:
    """Every byte that came to a relay of ours, by connection."""
    came: dict[int, bytes] = {}
    really = _Conversation._read_more

    async def noted(self: _Conversation) -> None:
        before = len(self.buffer)
        await really(self)
        came[self.log.number] = came.get(self.log.number, b"") + self.buffer[before:]

    monkeypatch.setattr(_Conversation, "_read_more", noted)
    return came


def test_there_are_twelve_sequences_in_four_places_at_four_relays() -> None:
    assert len(set(SEQUENCES.values())) == 12
    assert len(SEQUENCES) * len(PLACES) * len(SINKS) == 192


@pytest.mark.parametrize("relay", SINKS)
@pytest.mark.parametrize("place", PLACES)
def test_each_is_one_mail_with_its_content_as_accepted(
    heard: dict[int, bytes], relay: str, place: str
) -> None:
    with SINKS[relay]() as sink:
        api = client_of(sending_user(sink.port))
        made = {"name": "x", "subject": "hello", "body": "{{ text }}"}
        assert api.post("/api/v1/templates", made, format="json").status_code == 201
        asked = {}
        for number, sequence in enumerate(SEQUENCES.values()):
            text = asked[f"jane{number}@example.com"] = f"before{sequence}{SECOND}{sequence}after"
            mail = {"recipient_email": f"jane{number}@example.com", "subject": "hello", "body": "x"}
            if place == "template":
                mail = {"recipient_email": mail["recipient_email"]}
            call = json.dumps(mail | PLACES[place](text))
            answer = api.post("/api/v1/task/enqueue", call, content_type="application/json")
            assert answer.status_code == 202, answer.content
        courier = Courier("worker:1").start()
        assert courier.drain(60).sent == len(SEQUENCES)
        courier.stop(5)
    assert len(sink.mails) == len(SEQUENCES)
    assert {tuple(recipients) for _, recipients, _ in sink.mails} == {(address,) for address in asked}
    for task in MailTask.objects.select_related("content"):
        ((sender, raw),) = [(of, raw) for of, (to,), raw in sink.mails if to == task.recipient]
        assert (sender, raw) == (task.sender, bytes(task.content.raw))
        assert as_lines(read(raw, place)) == as_lines(asked[task.recipient])
    if relay != "aiosmtpd":
        assert_clean(b"".join(heard.values()), mails=len(SEQUENCES))


def read(raw: bytes, place: str) -> str:
    """The text as its reader finds it."""
    mail = message_from_bytes(raw, policy=policy.default)
    if place == "attachment":
        (attached,) = mail.iter_attachments()
        return str(attached.get_payload(decode=True).decode())
    part = mail.get_body(("html",) if place == "html_body" else ("plain",))
    return str(part.get_payload(decode=True).decode())  # type: ignore[union-attr]


def as_lines(text: str) -> str:
    """Which line end it was is kept in attachments alone, and texts get a last one."""
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")


def assert_clean(came: bytes, mails: int) -> None:
    """No line end but CRLF, no line that is too long (RFC 5321 4.5.3.1.6), and one lone dot for each mail."""
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)", came)
    lines = came.split(b"\r\n")
    assert max(map(len, lines)) <= 998
    assert lines.count(b".") == mails
    assert sum(line.startswith(b"RCPT TO:<jane") for line in lines) == mails
