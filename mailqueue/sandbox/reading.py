"""Reads a mail for people. Any bytes at all give a Reading: a sandbox is where broken mails turn up."""

import base64
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.errors import MessageError
from email.message import Message
from functools import cached_property
from html.parser import HTMLParser
from mimetypes import guess_extension

#: What email and codecs are known to raise on broken input; the parser promises defects, not silence.
GARBAGE = (MessageError, LookupError, ValueError, TypeError, AttributeError, AssertionError, RecursionError)

_SUBJECT = re.compile(rb"^subject:[ \t]*(.*(?:\r?\n[ \t].*)*)", re.IGNORECASE | re.MULTILINE)
_HEADERS_END = re.compile(rb"\r?\n\r?\n")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+", re.ASCII)
_CID = re.compile(r"cid:([^\"'\s)>]+)", re.IGNORECASE)
_LINK = re.compile(r"https?://[^\s<>\"']{1,2000}")
MAX_LINKS = 50


def printable(text: str) -> str:
    """Storable in PostgreSQL and safe to show: no lone surrogates, no control characters but TAB and LF."""
    whole = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", whole.replace("\r\n", "\n").replace("\r", "\n"))


def subject_of(raw: bytes) -> str:
    """The decoded subject without parsing the mail: it is asked for while the sender waits."""
    end = _HEADERS_END.search(raw)
    found = _SUBJECT.search(raw, 0, end.start() if end else len(raw))
    value = " ".join(found[1].decode("utf-8", "replace").split()) if found else ""
    if "=?" in value:
        with suppress(*GARBAGE):  # an encoded word too broken to decode is shown as it came
            value = str(policy.default.header_factory("Subject", value))
    return printable(value)


@dataclass(frozen=True)
class Attachment:
    filename: str
    content_type: str
    content: bytes
    content_id: str = ""

    @property
    def size(self) -> int:
        return len(self.content)


class Reading:
    """One mail, taken apart as far as it lets itself."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        try:
            # compat32 keeps headers raw; they are decoded one by one, so that one bad header spoils no other.
            self._message: Message = message_from_bytes(raw)
            self._parts = list(_leaves(self._message))
        except GARBAGE:
            self._message, self._parts = Message(), []

    @cached_property
    def headers(self) -> list[tuple[str, str]]:
        return [(printable(name), _decoded(str(value))) for name, value in self._message.raw_items()]

    @cached_property
    def text(self) -> str | None:
        if not self._parts:
            return self.source
        part = self._body("text/plain")
        return _text(part) if part else None

    @cached_property
    def html(self) -> str | None:
        """With inline pictures (cid:) put in as data: URLs, since the frame may load nothing."""
        part = self._body("text/html")
        if part is None:
            return None
        inline = {
            found.content_id: found for found in self.attachments if found.content_type.startswith("image/")
        }

        def picture(match: re.Match[str]) -> str:
            found = inline.get(match[1])
            if not found:
                return match[0]
            return f"data:{found.content_type};base64,{base64.b64encode(found.content).decode()}"

        return _CID.sub(picture, _text(part)) if inline else _text(part)

    @cached_property
    def source(self) -> str:
        return printable(self.raw.decode("utf-8", "replace"))

    @cached_property
    def attachments(self) -> list[Attachment]:
        bodies = (self._body("text/plain"), self._body("text/html"))
        return [_attachment(part, number) for number, part in enumerate(self._parts) if part not in bodies]

    @cached_property
    def links(self) -> list[str]:
        """Where the mail wants its reader to go, for the frame lets nobody click."""
        collector = _Links()
        if self.html is not None:
            with suppress(*GARBAGE):  # the links up to there
                collector.feed(self.html)
        found = collector.found or _LINK.findall(self.text or "")
        return list(dict.fromkeys(link.rstrip(".,;:!?)") for link in found))[:MAX_LINKS]

    def _body(self, content_type: str) -> Message | None:
        return next((part for part in self._parts if _is_body(part, content_type)), None)


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name == "href" and value and _LINK.fullmatch(value)]


def _leaves(message: Message) -> Iterator[Message]:
    """The parts that carry something; an attached mail is one part, not its insides."""
    payload = message.get_payload()
    if isinstance(payload, list) and message.get_content_maintype() != "message":
        for part in payload:
            if isinstance(part, Message):
                yield from _leaves(part)
    else:
        yield message


def _is_body(part: Message, content_type: str) -> bool:
    try:
        named = part.get_content_disposition() == "attachment" or part.get_filename()
        return part.get_content_type() == content_type and not named
    except GARBAGE:
        return False


def _decoded(value: str) -> str:
    try:
        raw = value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        unfolded = re.sub(r"\r?\n(?=[ \t])", "", raw)
        return printable(str(policy.default.header_factory("Subject", unfolded)) if "=?" in raw else unfolded)
    except GARBAGE:
        return printable(value)


def _content(part: Message) -> bytes:
    try:
        payload = part.get_payload()
        if isinstance(payload, list):  # message/*: the mail inside
            return b"\r\n".join(inner.as_bytes() for inner in payload if isinstance(inner, Message))
        decoded = part.get_payload(decode=True)
    except GARBAGE:
        return b""
    return decoded if isinstance(decoded, bytes) else b""


def _text(part: Message) -> str:
    content = _content(part)
    try:
        text = content.decode(part.get_content_charset("utf-8"), "replace")
    except GARBAGE:  # no such charset
        text = content.decode("utf-8", "replace")
    return printable(text)


def _attachment(part: Message, number: int) -> Attachment:
    try:
        filename = _decoded(part.get_filename() or "")
        content_type, content_id = (
            part.get_content_type(),
            str(part.get("Content-ID", "")).strip().strip("<>"),
        )
    except GARBAGE:
        filename, content_type, content_id = "", "", ""
    if not _TYPE.fullmatch(content_type):
        content_type = "application/octet-stream"
    filename = (
        re.sub(r"[\\/\n\t]", "_", filename).strip()
        or f"part-{number + 1}{guess_extension(content_type) or ''}"
    )
    return Attachment(filename[:200], content_type, _content(part), content_id)
