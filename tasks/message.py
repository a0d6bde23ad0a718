"""Builds the mail as it goes over the wire, once, at acceptance.

Django's EmailMessage costs 120 us a mail; what we need of RFC 5322 and 2045 is small. The result is 7-bit
clean (so no relay needs 8BITMIME), has CRLF line ends and no line over 998 bytes.
How headers are written is in tasks/headers.py.
"""

import base64
import os
import re
import time
import uuid
from binascii import b2a_base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache

from tasks import headers

#: A body line may have 998 bytes (RFC 5321 4.5.3.1.6) and should stay readable.
_LONGEST_LINE = 900
#: Of a batch all mails have the same date, and to write it takes as long as half the rest.
_written = lru_cache(maxsize=4)(format_datetime)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file to go along. Name and type have passed the rules of tasks/headers.py."""

    filename: str
    content_type: str
    content: bytes


def new_message_id(sender: str) -> str:
    """One for the mail's whole life, whatever happens to it. Begins with its time, see made_at."""
    milliseconds = time.time_ns() // 1_000_000
    return f"<{milliseconds:012x}{os.urandom(10).hex()}@{sender.rpartition('@')[2]}>"


def made_at(message_id: str) -> datetime | None:
    """When new_message_id made it; None if it did not."""
    found = re.match(r"<([0-9a-f]{12})[0-9a-f]{20}@", message_id)
    milliseconds = int(found[1], 16) if found else 0
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if 0 < milliseconds < 2**42 else None


def build(
    *,
    sender: str,
    recipient: str,
    subject: str,
    text: str,
    html: str,
    message_id: str,
    date: datetime,
    from_name: str = "",
    reply_to: tuple[str, str] | None = None,
    own_headers: Mapping[str, str] | None = None,
    attachments: Sequence[Attachment] = (),
) -> bytes:
    """The whole mail: header and body, CRLF line ends, not dot-stuffed. `date` is aware, `reply_to` name and address.

    A recipient beyond ASCII makes its header UTF-8 (RFC 6532); nothing else does.
    """
    header = [
        f"From: {headers.mailbox(from_name, sender)}",
        f"To: {recipient}",
        f"Subject: {headers.subject(subject)}",
        f"Date: {_written(date)}",
        f"Message-ID: {message_id}",
        "MIME-Version: 1.0",
    ]
    if reply_to:
        header.append(f"Reply-To: {headers.mailbox(*reply_to)}")
    if own_headers:
        header += [headers.field(name, value) for name, value in own_headers.items()]
    body = _part("plain", text) if not html else _alternative(text, html)
    if attachments:
        body = _multipart("mixed", [body, *map(_attached, attachments)])
    return "\r\n".join([*header, body]).encode()


def _part(subtype: str, content: str) -> str:
    """Header and body of one text part."""
    content = content.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")
    if not content.endswith("\r\n"):
        content += "\r\n"
    if content.isascii() and max(map(len, content.split("\r\n"))) <= _LONGEST_LINE:
        encoding = "7bit"
    else:
        encoding = "base64"
        encoded = base64.encodebytes(content.encode()).decode("ascii")
        content = encoded.replace("\n", "\r\n")
    charset = "us-ascii" if encoding == "7bit" else "utf-8"
    kind = f'Content-Type: text/{subtype}; charset="{charset}"'
    return f"{kind}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n{content}"


def _alternative(text: str, html: str) -> str:
    """Both forms, the richer one last (RFC 2046 5.1.4)."""
    return _multipart("alternative", [_part("plain", text), _part("html", html)])


def _attached(attachment: Attachment) -> str:
    encoded = b2a_base64(attachment.content, newline=False).decode("ascii")
    # A third of encodebytes' time, which counts at 10 MB.
    lines = "\r\n".join([encoded[start : start + 76] for start in range(0, len(encoded), 76)])
    header = headers.attachment(attachment.filename, attachment.content_type)
    return f"{header}\r\nContent-Transfer-Encoding: base64\r\n\r\n{lines}\r\n"


def _multipart(subtype: str, parts: Sequence[str]) -> str:
    """Each part brings its header and ends with a line end. No part can hold the boundary: it is new and random."""
    boundary = f"=_{uuid.uuid4().hex}"
    inner = "".join(f"--{boundary}\r\n{part}" for part in parts)
    return f'Content-Type: multipart/{subtype}; boundary="{boundary}"\r\n\r\n{inner}--{boundary}--\r\n'
