"""Where events may be sent: what an address may look like, and whom it may lead to."""

import ipaddress
import re
from collections.abc import Sequence
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from accounts import guard
from accounts.guard import Address

LONGEST = 2000
#: No spaces, no other letters than ASCII, nothing that servers read in different ways.
PATTERN = r"^https?://([A-Za-z0-9_][A-Za-z0-9._\-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?([/?][!-\[\]-~]*)?$"
_LONGEST_HOST = 253  # of a name, RFC 1035


class BadUrlError(ValueError):
    """It is no address of a receiver."""


class ForbiddenPlaceError(Exception):
    """Nothing may be sent there: its address, its port, or without TLS."""

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


class Place(NamedTuple):
    """A URL taken apart. `host` has no brackets; `authority` is what the Host header says."""

    scheme: str
    host: str
    port: int
    authority: str
    target: str

    @classmethod
    def of(cls, url: str) -> Self:
        """BadUrlError says what is wrong with it."""
        if len(url) > LONGEST or "#" in url or not re.fullmatch(PATTERN, url):
            raise BadUrlError(
                "Must be an address such as https://example.com/hooks, without name, password or #."
            )
        try:
            parts = urlsplit(url)
            port, host = parts.port, parts.hostname or ""
            if "[" in parts.netloc:
                ipaddress.IPv6Address(host)
        except ValueError as error:
            raise BadUrlError("Has no host or port that could be called.") from error
        if port == 0 or not 0 < len(host) <= _LONGEST_HOST:
            raise BadUrlError("Has no host or port that could be called.")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        default = 443 if parts.scheme == "https" else 80
        return cls(parts.scheme, host, port or default, parts.netloc, target)

    def check(self, addresses: Sequence[Address]) -> None:
        """ForbiddenPlaceError unless one may send to these, which the guard has let through."""
        if guard.in_allowed_networks(addresses):
            return
        if self.scheme != "https":
            raise ForbiddenPlaceError("Events go over https only.", "forbidden_scheme")
        # Below 1024 are other people's mail, shells and name servers.
        if self.port != 443 and self.port < 1024:
            raise ForbiddenPlaceError("Events go to port 443, or to one above 1023.", "forbidden_port")


def resolve(place: Place, seconds: float) -> list[Address]:
    """The addresses to connect to, all of them judged. Blocks; ForbiddenPlaceError, guard.UnresolvableError."""
    try:
        addresses = guard.resolve_within(place.host, seconds)
    except guard.ForbiddenAddressError as error:
        raise ForbiddenPlaceError(
            "Nothing may be sent to the address of this host.", "forbidden_address"
        ) from error
    place.check(addresses)
    return addresses
