"""What may stand in a mail's header, and how it is written there (RFC 5322, 2047, 2231)."""

import re
import unicodedata
from email.header import Header
from urllib.parse import quote

from django.core.exceptions import ValidationError

#: A user's own headers, and the characters of their names and values.
MOST_HEADERS, LONGEST_NAME, LONGEST_VALUE = 50, 76, 2_000
#: We write these, or the relays do.
OWNED = frozenset(
    {"from", "to", "cc", "bcc", "sender", "date", "subject", "message-id", "mime-version"}
    | {"dkim-signature", "return-path", "received", "authentication-results"}
)
#: Needs no encoding: ASCII that fits a line, keeps its ends, and is not taken for an encoded word.
_PLAIN = re.compile(r"(?! )(?!.*=\?)[ -~]{0,66}(?<! )")
_ASCII = re.compile(r"[ -~]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\u0085\u2028\u2029]")
#: They turn the direction of writing, so that gpj.exe reads exe.jpg.
_TURNING = re.compile(r"[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_NAME = re.compile(r"[!-9;-~]+")
_SINGLE_SPACE = re.compile(r"(?<=[^ ]) (?=[^ ])")
#: RFC 2045 5.1. Of the parameters only those that say how to read the content.
_CONTENT_TYPE = re.compile(
    r"[a-z0-9][a-z0-9!#$&^_.+-]{0,62}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}"
    r"(?:; ?(?:charset|method)=[a-z0-9_.:-]{1,40}){0,2}",
    re.IGNORECASE | re.ASCII,
)
_PLAIN_FILE_NAME = re.compile(r"(?!.*=\?)(?!.*  )[A-Za-z0-9 !#$&()+,.;=@\[\]^_`{}~'-]{1,60}")
_NOT_FALLBACK = re.compile(r"[^A-Za-z0-9 ._-]")


def refuse_control_characters(value: str) -> None:
    """A header's value must stay one header: CR, LF, NUL and their kin are refused, never stripped."""
    if _CONTROL.search(value):
        raise ValidationError(
            "Must not contain line breaks or other control characters.", code="control_character"
        )


def check_name(name: str) -> None:
    """ValidationError if a user's own header may not be called so."""
    if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise ValidationError(
            f"A header's name has up to {LONGEST_NAME} visible ASCII characters and no colon.",
            code="invalid_header_name",
        )
    if name.lower() in OWNED or name.lower().startswith("content-"):
        raise ValidationError("This header is written by the service.", code="reserved_header")


def check_file_name(name: str) -> None:
    """ValidationError if an attachment may not be called so."""
    refuse_control_characters(name)
    if re.search(r"[/\\\t]", name) or _TURNING.search(name) or name in (".", ".."):
        raise ValidationError(
            "Must be a file's name without path, tabs or invisible characters.", code="invalid_file_name"
        )
    if len(name.encode()) > 255:
        raise ValidationError("Must not be longer than 255 bytes.", code="max_length")


def check_content_type(value: str) -> None:
    """ValidationError if an attachment may not be of this type."""
    if not _CONTENT_TYPE.fullmatch(value):
        raise ValidationError(
            "Must be a type such as application/pdf; charset and method are the only parameters.",
            code="invalid_content_type",
        )
    if value.lower().startswith(("message/", "multipart/")):
        # RFC 2046 5.1 and 5.2: they may not be base64, and their insides could break the lines of ours.
        raise ValidationError(
            "Mails and multiparts cannot be attached as such; use application/octet-stream.",
            code="forbidden_content_type",
        )


def subject(value: str) -> str:
    """As it is when short and ASCII, else folded and in encoded words (RFC 2047)."""
    if _PLAIN.fullmatch(value):
        return value
    can_fold = value == value.strip() and all(map(_PLAIN.fullmatch, value.split(" ")))
    return _encoded(value, "us-ascii" if can_fold else "utf-8")


def field(name: str, value: str) -> str:
    """A user's own header, whole.

    ASCII is left as it is and folded between words only, for encoded words would spoil the address in a
    List-Unsubscribe; other text becomes encoded words.
    """
    words = _SINGLE_SPACE.split(value)
    is_plain = _ASCII.fullmatch(value) and not ("=?" in value and "?=" in value)
    if not is_plain or max(map(len, words)) > 900:  # a line has 998 at most
        return f"{name}: {_encoded(value)}"
    lines = [f"{name}: {words[0]}"]
    for word in words[1:]:
        if len(lines[-1]) + 1 + len(word) <= 78:
            lines[-1] += f" {word}"
        else:
            lines.append(f" {word}")
    return "\r\n".join(lines)


def mailbox(name: str, address: str) -> str:
    """An address with the name of whom it belongs to (RFC 5322 3.4)."""
    if not name:
        return address
    if _PLAIN.fullmatch(name):
        escaped = name.replace("\\", r"\\").replace('"', r"\"")
        phrase = f'"{escaped}"'
    else:
        phrase = _encoded(name)
    fits = len(phrase) + len(address) <= 66
    return f"{phrase}{' ' if fits else chr(13) + chr(10) + ' '}<{address}>"


def attachment(file_name: str, content_type: str) -> str:
    """Content-Type and Content-Disposition. What is not plain goes by RFC 2231, and in ASCII for old readers."""
    if _PLAIN_FILE_NAME.fullmatch(file_name):
        return f'Content-Type: {content_type}\r\nContent-Disposition: attachment;\r\n filename="{file_name}"'
    ascii_name = unicodedata.normalize("NFKD", file_name).encode("ascii", "ignore").decode()
    stem, dot, extension = _NOT_FALLBACK.sub("_", ascii_name).rpartition(".")
    fallback = f"{stem.strip(' ._')[:50] or 'attachment'}{dot}{extension[:10]}"
    return (
        f'Content-Type: {content_type};\r\n name="{fallback}"\r\n'
        f"Content-Disposition: attachment;\r\n filename*=utf-8''{quote(file_name, safe='')}"
    )


def _encoded(value: str, charset: str = "utf-8") -> str:
    """Folded, and in encoded words if it must be. Behind a long name the first line has more than 78, as it may."""
    return Header(value, charset, header_name="Reply-To", maxlinelen=76).encode(linesep="\r\n")
