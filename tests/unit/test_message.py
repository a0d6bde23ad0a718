"""The mail on the wire says what was asked for, and nothing an attacker added."""

from datetime import UTC, datetime
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import headers, message

DATE = datetime(2030, 1, 31, 12, 0, tzinfo=UTC)


def build(**changes: Any) -> bytes:
    mail: dict[str, Any] = {
        "sender": "ada@example.com",
        "recipient": "jane@example.com",
        "subject": "Hello",
        "text": "Hello Jane,\nit works.\n",
        "html": "",
        "message_id": "<1@example.com>",
        "date": DATE,
    }
    return message.build(**mail | changes)


def parse(raw: bytes) -> EmailMessage:
    parsed = BytesParser(policy=policy.default).parsebytes(raw)
    assert isinstance(parsed, EmailMessage)
    assert not parsed.defects
    return parsed


def body(parsed: EmailMessage, kind: str = "plain") -> str:
    part = parsed.get_body((kind,))
    assert part is not None
    assert not part.defects
    return str(part.get_content())


def assert_fit_for_the_wire(raw: bytes) -> None:
    assert raw.isascii()
    assert raw.endswith(b"\r\n")
    lines = raw.split(b"\r\n")
    assert not [line for line in lines if b"\r" in line or b"\n" in line]
    assert max(map(len, lines)) <= 998


def test_a_simple_mail_is_what_it_says() -> None:
    parsed = parse(build())
    assert parsed["From"] == "ada@example.com"
    assert parsed["To"] == "jane@example.com"
    assert parsed["Subject"] == "Hello"
    assert parsed["Date"].datetime == DATE
    assert parsed["Message-ID"] == "<1@example.com>"
    assert body(parsed).splitlines() == ["Hello Jane,", "it works."]


@pytest.mark.parametrize(
    "subject",
    [
        "Grüße aus Köln",
        "日本語の件名がここにあります。" * 20,
        "🙂" * 60,
        "word " * 150 + "end",
        "x" * 998,
        "ü" * 998,
        "a " + "y" * 500 + " b",
        "two  spaces   inside",
        " leading and trailing ",
        "=?utf-8?q?not_encoded?=",
        "look: =?utf-8?b?SGVsbG8=?= at this",
        "a\ttab",
        "مرحبا hello שלום",
        "-- ...",
    ],
)
def test_a_subject_arrives_as_it_was_given(subject: str) -> None:
    raw = build(subject=subject)
    assert_fit_for_the_wire(raw)
    assert parse(raw)["Subject"] == subject


@pytest.mark.parametrize("subject", ["word " * 150 + "end", "Grüße " * 80])
def test_a_long_subject_is_folded(subject: str) -> None:
    header = build(subject=subject).partition(b"\r\n\r\n")[0]
    assert max(map(len, header.split(b"\r\n"))) <= 78


@pytest.mark.parametrize(
    "text",
    [
        "Grüße, Jane ✓\n",
        "x" * 5000 + "\n",
        "ü" * 5000 + "\n",
        "\n.\n..\n. \nFrom here\n",
        "bare\rreturns\rhere\n",
        "mixed\r\nends\nof\rlines\n",
        "\n\n\n",
        "no end of line",
        "tabs\tand\x0bother\x0ccontrols\x01\n",
        "line \u2028 separators \u0085 are \u2029 text\n",
    ],
)
def test_a_body_arrives_as_it_was_given(text: str) -> None:
    raw = build(text=text)
    assert_fit_for_the_wire(raw)
    assert _unix(body(parse(raw))) == _unix(text)


def test_html_comes_last_beside_the_text() -> None:
    parsed = parse(build(text="plain ü", html="<p>rich ü</p>"))
    assert parsed.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in parsed.iter_parts()] == ["text/plain", "text/html"]
    assert body(parsed).strip() == "plain ü"
    assert body(parsed, "html").strip() == "<p>rich ü</p>"


@pytest.mark.parametrize(
    "text",
    [
        "\r\n.\r\nMAIL FROM:<evil@example.com>\r\n",
        "\n.\nMAIL FROM:<evil@example.com>\n",
        "\r.\rMAIL FROM:<evil@example.com>\r",
        "\n.\r\nMAIL FROM:<evil@example.com>",
        "\r\n.\nMAIL FROM:<evil@example.com>",
        "\r.\r\nDATA",
        "\r\n.\rDATA",
        "x\r\r\n.\r\r\nDATA",
        "x\n\r.\n\rDATA",
    ],
)
def test_no_line_end_but_crlf_is_left_in_a_body(text: str) -> None:
    for raw in (build(text=text), build(text="t", html=text), build(text="ü" + text)):
        assert_fit_for_the_wire(raw)


CONTROL_CHARACTERS = [
    "\r\n",
    "\n",
    "\r",
    "\0",
    "\x0b",
    "\x0c",
    "\x1b",
    "\x7f",
    "\x85",
    "\u2028",
    "\u2029",
    "\x1c",
]


@pytest.mark.parametrize("character", CONTROL_CHARACTERS)
@pytest.mark.parametrize("where", ["{}Bcc: eve@example.com", "Hello{}Bcc: eve@example.com", "Hello{}"])
def test_a_control_character_is_refused_in_a_header(character: str, where: str) -> None:
    with pytest.raises(ValidationError):
        headers.refuse_control_characters(where.format(character))


@pytest.mark.parametrize("value", ["Grüße", "a\ttab", "🙂", "", "=?utf-8?q?=0D=0ABcc:_eve?="])
def test_what_is_harmless_is_not_refused(value: str) -> None:
    headers.refuse_control_characters(value)


def test_an_encoded_line_break_adds_no_header() -> None:
    parsed = parse(build(subject="=?utf-8?q?x=0D=0ABcc:_eve@example.com?="))
    assert parsed["Bcc"] is None


def test_a_message_id_is_new_each_time_and_of_the_senders_domain() -> None:
    made = {message.new_message_id("ada@example.com") for _ in range(100)}
    assert len(made) == 100
    assert all(one.startswith("<") and one.endswith("@example.com>") for one in made)


_SUBJECTS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=300)
_BODIES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3000)


@given(subject=_SUBJECTS, text=_BODIES, html=_BODIES)
@settings(max_examples=200, deadline=None)
def test_whatever_goes_in_comes_out(subject: str, text: str, html: str) -> None:
    raw = build(subject=subject, text=text, html=html)
    assert_fit_for_the_wire(raw)
    parsed = parse(raw)
    assert parsed["Subject"] == subject
    assert _unix(body(parsed)) == _unix(text)
    if html:
        assert _unix(body(parsed, "html")) == _unix(html)


def _unix(text: str) -> str:
    """Line ends are not kept as they were, and a last one is added."""
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
