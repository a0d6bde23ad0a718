"""Sender's name, reply-to, headers, attachments, tags and metadata on their way from the call to the wire."""

import base64
import json
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
from django.db import connection
from rest_framework.test import APIClient

from accounts.models import User
from tasks.models import MailContent, MailTask, Tag
from tests.factories import MailFactory, UserFactory, client_of
from tests.integration.test_enqueue import assert_refused, enqueue
from tests.integration.test_queue import FAIL, QUEUE, ids

pytestmark = pytest.mark.django_db
HEADERS = ["From", "To", "Subject", "Date", "Message-ID", "MIME-Version"]


@pytest.fixture
def owner() -> User:
    user: User = UserFactory(email="ada@example.com")
    return user


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def a_file(**changes: Any) -> dict[str, Any]:
    return {"filename": "x.txt", "content_type": "text/plain", "content": encoded(b"hello")} | changes


def wire() -> EmailMessage:
    (raw,) = MailContent.objects.values_list("raw", flat=True)
    parsed = message_from_bytes(bytes(raw), policy=policy.default)
    assert isinstance(parsed, EmailMessage)
    return parsed


# Taken, sent and shown --------------------------------------------------------------------------------


def test_everything_goes_on_the_wire_and_is_shown_again(api: APIClient) -> None:
    pdf = bytes(range(256)) * 10
    asked = {
        "from_name": "Ada, die Gräfin",
        "reply_to": "Büro <office@bücher.example>",
        "headers": {"X-Campaign": "Frühling", "List-Unsubscribe": "<https://example.com/u/1>"},
        "attachments": [
            {"filename": "Größe.pdf", "content_type": "application/pdf", "content": encoded(pdf)},
            {"filename": "b.bin", "content": ""},
        ],
        "tags": ["welcome", "größe", "a b"],
        "metadata": {"order": 4711, "deep": [{"ok": None}], "ü": 1.5, "big": 10**20},
    }
    answer = enqueue(api, **asked)
    assert answer.status_code == 202, answer.content
    parsed = wire()
    assert parsed["From"].addresses[0].display_name == "Ada, die Gräfin"
    assert parsed["From"].addresses[0].addr_spec == "ada@example.com"
    assert parsed["Reply-To"].addresses[0].addr_spec == "office@xn--bcher-kva.example"
    assert (parsed["X-Campaign"], parsed["List-Unsubscribe"]) == ("Frühling", "<https://example.com/u/1>")
    assert [(one.get_filename(), one.get_payload(decode=True)) for one in parsed.iter_attachments()] == [
        ("Größe.pdf", pdf),
        ("b.bin", b""),
    ]
    shown = api.get(answer["Location"]).json()
    assert {name: shown[name] for name in asked} == asked | {
        "reply_to": "Büro <office@xn--bcher-kva.example>",
        "attachments": [
            {"filename": "Größe.pdf", "content_type": "application/pdf", "size": len(pdf)},
            {"filename": "b.bin", "content_type": "application/octet-stream", "size": 0},
        ],
    }


def test_a_plain_mail_has_none_of_it_and_costs_nothing_more(api: APIClient) -> None:
    shown = api.get(enqueue(api)["Location"]).json()
    names = ("from_name", "reply_to", "headers", "attachments", "tags", "metadata")
    assert [shown[name] for name in names] == ["", "", {}, [], [], {}]
    assert wire().keys()[:6] == HEADERS
    assert MailContent.objects.get().details is None


def test_a_mail_whose_content_is_gone_is_still_shown(api: APIClient, owner: User) -> None:
    mail = MailFactory(owner=owner)
    MailContent.objects.all().delete()
    assert api.get(f"/api/v1/task/{mail.id}").json()["metadata"] == {}


def test_the_details_of_one_mail_are_read_without_its_megabytes(
    api: APIClient, django_assert_num_queries: Any
) -> None:
    where = enqueue(api, tags=["a"])["Location"]
    with django_assert_num_queries(4) as queries:
        assert api.get(where).status_code == 200
    assert not [query for query in queries.captured_queries if '"raw"' in query["sql"]]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("support@example.com", "support@example.com"),
        ("<support@example.com>", "support@example.com"),
        ("Support <support@example.com>", "Support <support@example.com>"),
        ('"Support, EU" <support@example.com>', "Support, EU <support@example.com>"),
        ("Support, EU <support@example.com>", "Support, EU <support@example.com>"),
    ],
)
def test_replies_go_to_one_mailbox(api: APIClient, given: str, shown: str) -> None:
    answer = enqueue(api, reply_to=given)
    assert api.get(answer["Location"]).json()["reply_to"] == shown
    (address,) = wire()["Reply-To"].addresses
    assert address.addr_spec == "support@example.com"


def test_ten_megabytes_of_attachments_are_taken(api: APIClient) -> None:
    half = 5 * 1024 * 1024
    files = [a_file(content=encoded(b"x" * half)), a_file(content=base64.encodebytes(b"y" * half).decode())]
    assert enqueue(api, attachments=files).status_code == 202
    assert [len(one.get_payload(decode=True)) for one in wire().iter_attachments()] == [half, half]


def test_a_byte_more_is_refused(api: APIClient) -> None:
    half = 5 * 1024 * 1024
    files = [a_file(content=encoded(b"x" * half)), a_file(content=encoded(b"y" * (half + 1)))]
    assert_refused(enqueue(api, attachments=files), field="attachments")


# Refused ----------------------------------------------------------------------------------------------

WRONG = [
    ("from_name", value, "from_name") for value in (7, ["Ada"], "a\r\nBcc: eve@example.com", "x" * 201, "a\0")
] + [
    ("reply_to", value, "reply_to")
    for value in (
        "", 7, "jane", "a@example.com, b@example.com", "a@example.com\r\nBcc: eve@example.com", "A <a@example.com> x",
        "A <a@example.com><b@example.com>", "jürgen@example.com", "A\r\nBcc: eve <a@example.com>", "<>",
        ["a@example.com"],
    )
] + [
    ("headers", value, field)
    for value, field in (
        ([], "headers"), ("X-A: b", "headers"), ({"X-A": 7}, "headers.X-A"), ({"X-A": ""}, "headers.X-A"),
        ({"X-A": None}, "headers.X-A"), ({"X-A": ["b"]}, "headers.X-A"), ({"Bcc": "eve@example.com"}, "headers.Bcc"),
        ({"content-type": "text/html"}, "headers.content-type"),
        ({"X A": "b"}, "headers.X A"), ({"": "b"}, "headers."),
        ({"X-A\r\nBcc": "b"}, "headers.X-A\r\nBcc"), ({"X-A": "b\r\nBcc: eve"}, "headers.X-A"),
        ({"X-A": "x" * 2001}, "headers.X-A"),
        ({"X-A": "1", "x-a": "2"}, "headers"),
        ({f"X-{n}": "v" for n in range(51)}, "headers"), ({"X-Ä": "b"}, "headers.X-Ä"),
    )
] + [
    ("attachments", value, field)
    for value, field in (
        ({}, "attachments"), ("x", "attachments"), ([a_file()] * 11, "attachments"), ([7], "attachments.0"),
        ([{}], "attachments.0.filename"), ([a_file(), {"filename": "x"}], "attachments.1.content"),
        ([a_file(content="not base64!")], "attachments.0.content"),
        ([a_file(content="aGVsbG8")], "attachments.0.content"),
        ([a_file(content="aGVs=bG8")], "attachments.0.content"), ([a_file(content=7)], "attachments.0.content"),
        ([a_file(content="ü")], "attachments.0.content"), ([a_file(content="_-__")], "attachments.0.content"),
        ([a_file(content="data:text/plain;base64,aGVsbG8=")], "attachments.0.content"),
        ([a_file(filename="../x")], "attachments.0.filename"), ([a_file(filename="")], "attachments.0.filename"),
        ([a_file(filename="a\r\nb")], "attachments.0.filename"), ([a_file(filename=None)], "attachments.0.filename"),
        ([a_file(content_type="message/rfc822")], "attachments.0.content_type"),
        ([a_file(content_type="text/plain\r\nX: y")], "attachments.0.content_type"),
    )
] + [
    ("tags", value, field)
    for value, field in (
        ("welcome", "tags"), ({}, "tags"), ([f"t{n}" for n in range(11)], "tags"), ([""], "tags.0"),
        (["a", 7], "tags.1"),
        (["x" * 65], "tags.0"), (["a\nb"], "tags.0"), ([None], "tags.0"), ([["a"]], "tags.0"),
    )
] + [
    ("metadata", value, "metadata") for value in ([], "a", 7, {"a": "x" * 4096}, {"\0": 1})
] + [
    ("metadata", value, "metadata.a") for value in ({"a": "\0"}, {"a": "\ud800"})
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "field"), WRONG)
def test_a_wrong_part_is_refused_and_named(api: APIClient, name: str, value: Any, field: str) -> None:
    assert_refused(enqueue(api, **{name: value}), field=field)
    assert not Tag.objects.exists()


def test_two_ways_of_reply_are_one_too_many(api: APIClient) -> None:
    asked = {"reply_to": "a@example.com", "headers": {"reply-to": "b@example.com"}}
    assert_refused(enqueue(api, **asked), field="headers")


ENDS = ["\r\n", "\n", "\r", "\r\n\r\n", "\n\n", "\0", "\u2028", "\u2029", "\x0b", "\x0c"]
EVIL = ["Bcc: eve@example.com", "RCPT TO:<eve@example.com>", ".", "DATA", "Content-Type: text/html", ""]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("evil", EVIL)
def test_no_injection_makes_a_header_or_an_envelope(api: APIClient, end: str, evil: str) -> None:
    payload = f"x{end}{evil}{end}y"
    for asked in (
        {"from_name": payload},
        {"reply_to": f"{payload} <a@example.com>"},
        {"reply_to": f"a@example.com{payload}"},
        {"headers": {payload: "x"}},
        {"headers": {"X-Own": payload}},
        {"attachments": [a_file(filename=payload)]},
        {"attachments": [a_file(content_type=f"text/{payload}")]},
        {"tags": [payload]},
    ):
        assert enqueue(api, **asked).status_code == 400, asked
    assert not MailTask.objects.exists()


@pytest.mark.parametrize("evil", EVIL)
def test_what_looks_like_an_injection_once_decoded_stays_text(api: APIClient, evil: str) -> None:
    word = "=?utf-8?b?" + encoded(f"x\r\n{evil}\r\n".encode()) + "?="
    asked = {
        "from_name": word,
        "subject": word,
        "headers": {"X-Own": word},
        "attachments": [a_file(filename=word.replace("/", "_"))],
    }
    assert enqueue(api, **asked).status_code == 202
    parsed = wire()
    assert parsed.keys() == [*HEADERS, "X-Own", "Content-Type"]
    assert (parsed["Subject"], parsed["X-Own"]) == (word, word)


def test_the_content_of_a_file_ends_no_part(api: APIClient) -> None:
    evil = b"\r\n--=_x\r\nContent-Type: text/html\r\n\r\n<b>\r\n.\r\nQUIT\r\n"
    assert enqueue(api, attachments=[a_file(content=encoded(evil))]).status_code == 202
    assert [part.get_content_type() for part in wire().walk()] == [
        "multipart/mixed",
        "text/plain",
        "text/plain",
    ]
    assert [one.get_payload(decode=True) for one in wire().iter_attachments()] == [evil]


# Addresses beyond ASCII -------------------------------------------------------------------------------


def test_a_recipient_beyond_ascii_is_taken(api: APIClient) -> None:
    enqueue(api, recipient_email="jürgen@bücher.example")
    assert MailTask.objects.get().recipient == "jürgen@xn--bcher-kva.example"
    assert "To: jürgen@xn--bcher-kva.example\r\n".encode() in bytes(MailContent.objects.get().raw)
    assert ids(api.get(QUEUE, {"recipient": "jürgen@bücher.example"})) == [MailTask.objects.get().pk]


# Tags -------------------------------------------------------------------------------------------------


def test_a_tag_finds_ones_own_mails_newest_first(api: APIClient) -> None:
    first, second, other = (
        enqueue(api, tags=tags).json()["task_id"] for tags in (["a", "b"], ["b", "a", "b"], ["c"])
    )
    enqueue(client_of(UserFactory()), tags=["a"])
    enqueue(api)
    assert ids(api.get(QUEUE, {"tag": "a"})) == [second, first]
    assert ids(api.get(QUEUE, {"tag": "c"})) == [other]
    assert ids(api.get(QUEUE, {"tag": "c", "status": "success"})) == []
    assert ids(api.get(QUEUE, {"tag": "A"})) == []
    assert ids(api.get(FAIL, {"tag": "a"})) == []
    shown = {task["task_id"]: task["tags"] for task in api.get(QUEUE).json()["results"]}
    assert [shown[pk] for pk in (first, second, other)] == [["a", "b"], ["b", "a"], ["c"]]


def test_pages_of_a_tag_follow_one_another(api: APIClient) -> None:
    tagged = [enqueue(api, tags=["a"]).json()["task_id"] for _ in range(5)]
    page = api.get(QUEUE, {"tag": "a", "limit": 2})
    seen = ids(page)
    while page.json()["next"]:
        page = api.get(page.json()["next"])
        seen += ids(page)
    assert seen == tagged[::-1]


def test_a_tag_is_found_by_its_index(owner: User) -> None:
    """An owner's newest of one tag: a walk along tag_newest, however many mails and tags there are."""
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        newest = MailTask.objects.owned_by(owner).tagged("a").order_by("-id")[:50]
        plan = newest.explain()
    assert "tag_newest" in plan
    assert "Sort" not in plan


def test_pruned_mails_take_their_tags_along(api: APIClient, settings: Any) -> None:
    from mailqueue import upkeep

    task = enqueue(api, tags=["a", "b"]).json()["task_id"]
    api.post(f"/api/v1/task/{task}/cancel")
    settings.MAIL_KEEP_DAYS = -1
    assert upkeep.prune() == 1
    assert not Tag.objects.exists()


def test_the_schema_names_the_parts() -> None:
    schema = json.loads(APIClient().get("/api/schema", HTTP_ACCEPT="application/json").content)
    asked = schema["components"]["schemas"]["EnqueueRequest"]["properties"]
    assert asked["attachments"]["items"]["$ref"].endswith("/AttachmentRequest")
    assert (asked["tags"]["type"], asked["headers"]["type"], asked["metadata"]["type"]) == (
        "array",
        "object",
        "object",
    )
    queue = schema["paths"]["/api/v1/task/queue"]["get"]["parameters"]
    assert "tag" in [parameter["name"] for parameter in queue]
