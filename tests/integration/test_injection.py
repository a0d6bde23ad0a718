"""Sixty payloads in every field that comes near a header or an envelope: refused by the field's name, or sent as what
they are, with no header and no recipient more. Through HTTP, PostgreSQL and the courier to a relay on a socket."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
from rest_framework.test import APIClient

from mailqueue.delivery.courier import Courier
from tasks.models import MailContent, MailTask
from tests.factories import client_of, sending_user
from tests.injections import PAYLOADS
from tests.relay import Accepted, Relay

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["accounts", "tasks"])

#: How a payload gets into a call, and how the field is called where it is refused. X-Case finds the mail again.
FIELDS: dict[str, tuple[Callable[[str], dict[str, Any]], str]] = {
    "subject": (lambda text: {"subject": f"Hello{text}"}, "subject"),
    "subject by template": (lambda text: {"template": "hello", "context": {"name": text}}, "context"),
    "from_name": (lambda text: {"from_name": f"Ada{text}"}, "from_name"),
    "reply_to name": (lambda text: {"reply_to": f"Ada{text} <support@example.com>"}, "reply_to"),
    "reply_to address": (lambda text: {"reply_to": f'"jane{text}"@example.com'}, "reply_to"),
    "recipient": (lambda text: {"recipient_email": f"jane{text}@example.com"}, "recipient_email"),
    "quoted recipient": (lambda text: {"recipient_email": f'"jane{text}"@example.com'}, "recipient_email"),
    "recipient's domain": (lambda text: {"recipient_email": f"jane@example.com{text}"}, "recipient_email"),
    "header's value": (lambda text: {"headers": {"X-Own": f"Hello{text}"}}, "headers"),
    "header's name": (lambda text: {"headers": {f"X-Own{text}": "x"}}, "headers"),
    "file name": (lambda text: a_file(filename=f"a{text}.txt"), "attachments"),
    "content type": (lambda text: a_file(content_type=f"text/plain{text}"), "attachments"),
    "tag": (lambda text: {"tags": [f"a{text}"]}, "tags"),
    "metadata": (lambda text: {"metadata": {f"a{text}": text}}, "metadata"),
}
#: These never leave the service, so that a line end in them is nobody's harm.
NEVER_SENT = {"metadata"}
ALWAYS = ["From", "To", "Subject", "Date", "Message-ID", "MIME-Version", "X-Case"]
OF_A_PART = {"Content-Type", "Content-Disposition", "Content-Transfer-Encoding"}


def a_file(**changes: str) -> dict[str, Any]:
    return {
        "attachments": [{"filename": "a.txt", "content_type": "text/plain", "content": "aGVsbG8="} | changes]
    }


def test_there_are_sixty_payloads_and_fourteen_places_for_them():
    assert len(PAYLOADS) == len(set(PAYLOADS)) == 60
    assert len(PAYLOADS) * len(FIELDS) == 840


@pytest.fixture
def sink() -> Iterator[Relay]:
    with Relay(smtputf8=True) as relay:  # so that nothing is refused for its letters
        yield relay


@pytest.fixture
def api(sink: Relay) -> APIClient:
    client = client_of(sending_user(sink.port))
    made = {"name": "hello", "subject": "Hello{{ name }}", "body": "{{ name }}"}
    assert client.post("/api/v1/templates", made, format="json").status_code == 201
    return client


@pytest.mark.parametrize("where", FIELDS)
def test_a_payload_is_refused_by_name_or_sent_as_what_it_is(api: APIClient, sink: Relay, where: str) -> None:
    asked, named = FIELDS[where]
    accepted = {}
    for number, payload in enumerate(PAYLOADS):
        call = with_case(asked(payload), number)
        answer = api.post("/api/v1/task/enqueue", json.dumps(call), content_type="application/json")
        if answer.status_code == 202:
            assert where in NEVER_SENT or not re.search(r"[\0\r\n\x0b\x85\u2028\u2029]", payload), payload
            accepted[str(number)] = call
        else:
            assert answer.status_code == 400, (payload, answer.content)
            errors = answer.json()["errors"]
            assert {re.split(r"[.\[]", each["field"])[0] for each in errors} == {named}, (payload, errors)
    assert len(accepted) == MailTask.objects.count() == MailContent.objects.count()

    courier = Courier("worker:1").start()
    report = courier.drain(60)
    courier.stop(5)
    assert (report.claimed, report.sent) == (len(accepted), len(accepted))
    arrived = {str(parsed(mail)["X-Case"]): mail for mail in sink.accepted}
    assert arrived.keys() == accepted.keys()
    for number, mail in arrived.items():
        assert_is_what_was_asked(mail, accepted[number])
    verbs = Counter(command.split()[0] for command in sink.commands())
    assert verbs.keys() <= {"EHLO", "MAIL", "RCPT", "DATA", "QUIT"}
    assert verbs["MAIL"] == verbs["RCPT"] == verbs["DATA"] == len(accepted)


def with_case(asked: dict[str, Any], number: int) -> dict[str, Any]:
    mail = {"recipient_email": "jane@example.com", "subject": "hello", "body": "Hello."}
    if "template" in asked:
        mail = {"recipient_email": "jane@example.com"}
    return mail | asked | {"headers": {"X-Case": str(number)} | asked.get("headers", {})}


def parsed(mail: Accepted) -> EmailMessage:
    found = message_from_bytes(mail.raw, policy=policy.SMTPUTF8)
    assert isinstance(found, EmailMessage)
    return found


def bare(address: str) -> str:
    """Without quotes, of which some are needed and some are not."""
    return address.replace('"', "").replace("\\", "")


def assert_is_what_was_asked(mail: Accepted, asked: dict[str, Any]) -> None:
    """Judged by the bytes, and then by what a reader of mail makes of them."""
    head = mail.raw.partition(b"\r\n\r\n")[0].decode()
    assert not re.search(
        r"[^\r\n -~]", head if mail.recipient.isascii() else head.replace(mail.recipient, "")
    )
    lines = re.sub(r"\r\n[ \t]", " ", head).split("\r\n")
    expected = [*ALWAYS, *(["Reply-To"] if "reply_to" in asked else [])]
    expected += [name for name in asked["headers"] if name != "X-Case"]
    names = [line.partition(":")[0] for line in lines if not line.startswith("Content-")]
    assert sorted(names) == sorted(expected)
    content = [line.partition(":")[0] for line in lines if line.startswith("Content-")]
    assert len(content) == len(set(content)) <= 2

    seen = parsed(mail)
    assert not seen.defects
    (sender,), (to,) = seen["From"].addresses, seen["To"].addresses
    assert sender.addr_spec == mail.sender
    # Python's reader leaves a blank between encoded words of a name.
    assert sender.display_name.replace(" ", "") == asked.get("from_name", "").replace(" ", "")
    assert bare(to.addr_spec) == bare(mail.recipient)
    if mail.recipient != "jane@example.com":
        assert mail.recipient == asked["recipient_email"]
    if "template" in asked:
        assert seen["Subject"] == f"Hello{asked['context']['name']}"
    else:
        assert seen["Subject"] == asked["subject"]
    for name, value in asked["headers"].items():
        assert seen.get_all(name) == [value]
    if "reply_to" in asked:
        (reply_to,) = seen["Reply-To"].addresses
        is_named = asked["reply_to"].endswith(" <support@example.com>")
        expected = "support@example.com" if is_named else asked["reply_to"]
        assert bare(reply_to.addr_spec) == bare(expected)
    files = list(seen.iter_attachments())
    assert [one.get_filename() for one in files] == [one["filename"] for one in asked.get("attachments", [])]
    assert all(set(one.keys()) == OF_A_PART and not one.defects for one in files)
