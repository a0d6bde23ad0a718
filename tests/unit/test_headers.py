"""Headers, names, replies-to and attachments arrive as they were given, and bring nothing along."""

import re
from email import message_from_bytes
from email.header import decode_header, make_header
from email.message import EmailMessage
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import headers
from tasks.message import Attachment
from tests.unit.test_message import assert_fit_for_the_wire, body, build, parse


def attached(parsed: EmailMessage) -> list[tuple[str | None, str, bytes]]:
    return [
        (part.get_filename(), part.get_content_type(), part.get_payload(decode=True))
        for part in parsed.iter_attachments()
    ]


def mailbox(raw: bytes, name: str) -> tuple[str, str]:
    """Name and address. Python's newer parser keeps the spaces between encoded words, against RFC 2047 6.2."""
    value = message_from_bytes(raw)[name].replace("\r\n", "")
    phrase, _, address = value.rpartition(" <")
    if phrase.startswith('"'):
        return re.sub(r"\\(.)", r"\1", phrase[1:-1]), address.rstrip(">")
    return str(make_header(decode_header(phrase))), address.rstrip(">")


def the_only(parsed: EmailMessage, name: str) -> Any:
    (value,) = parsed.get_all(name)
    return value


# The sender's name and the reply's way ----------------------------------------------------------------

NAMES = [
    "Ada", "Ada Lovelace", "Lovelace, Ada", 'Ada "Countess" Lovelace', "back\\slash", "Ärzte & Co.",
    "日本語" * 40, "ü" * 200,
    "a" * 200, "=?utf-8?q?x=0D=0ABcc:_eve@example.com?=", "<eve@example.com>", "ada@example.com",
    "a (comment)", "x;y:z",
    "🙂", "two  spaces", "end\\", '"', "a\tb", "Ada <eve@example.com>,",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("header", ["From", "Reply-To"])
def test_a_name_stands_beside_its_address(name: str, header: str) -> None:
    raw = build(from_name=name, reply_to=(name, "ada@example.com"))
    assert_fit_for_the_wire(raw)
    (address,) = the_only(parse(raw), header).addresses
    assert address.addr_spec == "ada@example.com"
    assert mailbox(raw, header) == (name, "ada@example.com")


def test_encoded_names_are_folded() -> None:
    header = build(from_name="ü" * 200).partition(b"\r\n\r\n")[0]
    assert max(map(len, header.split(b"\r\n"))) <= 78


def test_a_mail_without_them_has_none() -> None:
    assert parse(build())["Reply-To"] is None


# Headers of one's own ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "simple", "Grüße", "日本語" * 100, "<https://example.com/u?" + "x" * 800 + ">", "word " * 390 + "end",
        "y" * 950,
        "<mailto:off@example.com>, <https://example.com/?a=?b>", "two  spaces   inside", "=?utf-8?q?kept?=",
        "a=?b?=c", "a\tb",
    ],
)  # fmt: skip
def test_a_header_arrives_as_it_was_given(value: str) -> None:
    raw = build(own_headers={"X-Own": value, "x" * headers.LONGEST_NAME: value})
    assert_fit_for_the_wire(raw)
    parsed = parse(raw)
    assert the_only(parsed, "X-Own") == value
    assert the_only(parsed, "x" * headers.LONGEST_NAME) == value


def test_a_long_word_is_not_encoded() -> None:
    """Mail programs do not look for encoded words in a List-Unsubscribe."""
    url = "<https://example.com/unsubscribe/" + "x" * 300 + ">"
    assert f"List-Unsubscribe: {url}\r\n".encode() in build(own_headers={"List-Unsubscribe": url})


@pytest.mark.parametrize(
    "name", ["X-Own", "List-Unsubscribe", "In-Reply-To", "x", "!#$%&'*+-.^_`|~", "Reply-To"]
)
def test_these_names_may_be_used(name: str) -> None:
    headers.check_name(name)


OWNED = [
    "From", "To", "Cc", "Bcc", "Sender", "Date", "Subject", "Message-ID", "Content-Type", "Content-Anything",
    "MIME-Version",
    "DKIM-Signature", "Return-Path", "Received", "Authentication-Results",
]  # fmt: skip


@pytest.mark.parametrize("name", [form for name in OWNED for form in (name, name.lower(), name.upper())])
def test_what_we_write_ourselves_is_refused(name: str) -> None:
    with pytest.raises(ValidationError) as refused:
        headers.check_name(name)
    assert refused.value.code == "reserved_header"


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "X Own",
        "X-Own:",
        "X-Own\n",
        "X-Own\r\nBcc",
        "X\0",
        "X-Öwn",
        "\u017f",
        "x" * 77,
        "X\t",
        "X\x7f",
    ],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError) as refused:
        headers.check_name(name)
    assert refused.value.code == "invalid_header_name"


# Attachments ------------------------------------------------------------------------------------------

FILE_NAMES = [
    "report.pdf", "Bericht für Jürgen.pdf", "日本語.txt", "two  spaces.txt", 'quo"ted.txt',
    "semi;colon, and = more.txt", "100%.txt",
    "=?utf-8?q?x.exe?=", "no-extension", "ü" * 127, "a" * 255, ".hidden", "it's.txt", "x''y.txt", "🙂.png",
    "a.tar.gz", "* <b>.txt",
]  # fmt: skip


@pytest.mark.parametrize("name", FILE_NAMES)
def test_a_file_arrives_under_its_name(name: str) -> None:
    headers.check_file_name(name)
    raw = build(attachments=[Attachment(name, "application/pdf", b"%PDF\0\r\n.\r\n")])
    assert_fit_for_the_wire(raw)
    parsed = parse(raw)
    assert attached(parsed) == [(name, "application/pdf", b"%PDF\0\r\n.\r\n")]
    assert not any(part.defects for part in parsed.walk())


def test_a_name_beyond_ascii_has_a_fallback() -> None:
    raw = build(attachments=[Attachment("Größe/x.pdf".replace("/", " "), "application/pdf", b"x")])
    assert b'name="Groe x.pdf"' in raw
    assert b"filename*=utf-8''Gr%C3%B6%C3%9Fe%20x.pdf" in raw


@pytest.mark.parametrize(
    "name",
    [
        "a/b",
        "..",
        ".",
        "a\\b",
        "a\r\nb",
        "a\0",
        "a\tb",
        "a\x1b",
        "exe\u202egpj",
        "a\u2028b",
        "ü" * 128,
        "x" * 256,
    ],
)
def test_a_bad_file_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        headers.check_file_name(name)


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/pdf", "image/svg+xml", "text/csv; charset=utf-8",
     "text/calendar;charset=utf-8; method=REQUEST",
     "application/vnd.openxmlformats-officedocument.wordprocessingml.document"],
)  # fmt: skip
def test_a_content_type_is_kept(kind: str) -> None:
    headers.check_content_type(kind)
    (part,) = parse(build(attachments=[Attachment("x", kind, b"x")])).iter_attachments()
    assert part.get_content_type() == kind.partition(";")[0]
    assert not part.defects


@pytest.mark.parametrize(
    "kind",
    ["", "text", "text/", "/plain", "text/plain\r\nX: y", "text/plain; name=x.exe", "text/plain; boundary=x",
     "te xt/plain",
     'text/plain; charset="x"', "text/plain;", "text/plain; charset=a\r\nb", "text/plain\n", "téxt/plain",
     "text/\u017ftyle",
     "message/rfc822", "MESSAGE/RFC822", "multipart/mixed", "Multipart/x", "text/plain/x", "text/" + "x" * 200],
)  # fmt: skip
def test_a_bad_content_type_is_refused(kind: str) -> None:
    with pytest.raises(ValidationError):
        headers.check_content_type(kind)


@pytest.mark.parametrize("html", ["", "<p>rich ü</p>"])
def test_files_come_after_the_bodies(html: str) -> None:
    files = [Attachment("a.txt", "text/plain", b"not the body"), Attachment("b.html", "text/html", b"<b>")]
    parsed = parse(build(text="plain ü", html=html, attachments=files))
    assert parsed.get_content_type() == "multipart/mixed"
    first = next(parsed.iter_parts())
    assert first.get_content_type() == ("multipart/alternative" if html else "text/plain")
    assert body(parsed).strip() == "plain ü"
    assert [name for name, _, _ in attached(parsed)] == ["a.txt", "b.html"]
    if html:
        assert body(parsed, "html").strip() == html


# Whatever goes in -------------------------------------------------------------------------------------

_PRINTABLE = st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])
_TEXTS = st.text(_PRINTABLE, min_size=1, max_size=200).map(str.strip).filter(bool)
_NAMING = st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"], exclude_characters="/\\")
_FILE_NAMES = st.text(_NAMING, min_size=1, max_size=60).map(str.strip)
#: The parser that reads them back takes <name> for an address, and gives back what is in it.
_FILE_NAMES = _FILE_NAMES.filter(lambda name: name not in ("", ".", "..") and name[0] + name[-1] != "<>")
_HEADER_NAMES = st.from_regex(r"X-[!-9;-~]{1,70}", fullmatch=True)


@given(
    name=_TEXTS,
    own=st.dictionaries(_HEADER_NAMES, _TEXTS, max_size=4),
    files=st.lists(st.tuples(_FILE_NAMES, st.binary(max_size=300)), max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_whatever_goes_in_comes_out(name: str, own: dict[str, str], files: list[tuple[str, bytes]]) -> None:
    own = {key: value for key, value in own.items() if [k.lower() for k in own].count(key.lower()) == 1}
    attachments = [Attachment(file, "application/octet-stream", content) for file, content in files]
    raw = build(from_name=name, own_headers=own, attachments=attachments)
    assert_fit_for_the_wire(raw)
    parsed = parse(raw)
    assert the_only(parsed, "From").addresses[0].addr_spec == "ada@example.com"
    assert mailbox(raw, "From") == (name, "ada@example.com")
    assert {key: the_only(parsed, key) for key in own} == own
    assert [(file, content) for file, _, content in attached(parsed)] == files
    expected = ["From", "To", "Subject", "Date", "Message-ID", "MIME-Version", *own, "Content-Type"]
    assert parsed.keys()[: len(expected)] == expected
