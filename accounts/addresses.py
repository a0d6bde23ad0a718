"""One e-mail address, as people write it and as it goes over the wire."""

import re
import unicodedata

from django.core.exceptions import ValidationError
from django.core.validators import validate_email

#: RFC 5321 4.5.3.1.3, in bytes; and 4.5.3.1.1, before the @.
LONGEST, LONGEST_LOCAL = 254, 64
#: Mail to it never leaves the service (RFC 6761: there is no such domain).
MAGIC_DOMAIN = "sandbox.invalid"
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


def wire_address(address: str) -> str:
    """The address with its domain in A-labels (RFC 5890); ValueError if the domain has no such form."""
    local, _, domain = address.rpartition("@")
    return address if domain.isascii() else f"{local}@{domain.encode('idna').decode()}"


def checked_address(text: str, *, international: bool = False) -> str:
    """The wire form of one address; ValidationError if it is none.

    `international` lets other letters than ASCII stand before the @ (RFC 6531), which takes a relay with SMTPUTF8.
    """
    try:
        address = wire_address(text)
    except ValueError as error:
        raise _no_address() from error
    local, at, domain = address.rpartition("@")
    # Django's rule ignores case, so letters such as U+017F pass for ASCII there: ASCII is looked at by itself.
    if not local.isascii() and not (international and _is_plain(local)):
        raise _no_address()
    # It lets control characters into quotes too, which RFC 5321 (4.1.2) does not: some readers end a line at them.
    if not local.isprintable():
        raise _no_address()
    try:
        validate_email(_NOT_ASCII.sub("x", local) + at + domain)
    except ValidationError as error:
        raise _no_address() from error
    if len(local.encode()) > LONGEST_LOCAL or len(address.encode()) > LONGEST:
        raise _no_address()
    return address


def must_be_sendable(text: str) -> None:
    """A validator: an address that may stand in MAIL FROM at any relay."""
    checked_address(text)


def _is_plain(local: str) -> bool:
    """Letters that are what they look like: nothing invisible, no compatibility forms."""
    return local.isprintable() and unicodedata.normalize("NFKC", local) == local


def _no_address() -> ValidationError:
    return ValidationError("Must be one e-mail address, such as jane@example.com.", code="invalid_address")
