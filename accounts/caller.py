"""The address that a call comes from: behind proxies it is in a header, which only TRUSTED_PROXIES may write."""

import ipaddress

from django.conf import settings
from django.http import HttpRequest

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def address_of(request: HttpRequest) -> str:
    """What limits count by: an IPv4 address, or the /64 of an IPv6 one, of which whoever has it has all.

    X-Forwarded-For is read from its end: the last proxy's word first, and no further than to the first address that
    is no proxy of ours. What stands before it anybody may have written.
    """
    peer = _parsed(request.META.get("REMOTE_ADDR", ""))
    for word in reversed(request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")):
        before = _parsed(word)
        if peer is None or before is None or not _is_trusted(peer):
            break
        peer = before
    return _counted(peer) if peer else ""


def _parsed(text: str) -> Address | None:
    """Some proxies write a port behind it: 192.0.2.1:4711, [2001:db8::1]:4711."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_trusted(address: Address) -> bool:
    return any(address in network for network in settings.TRUSTED_PROXIES)


def _counted(address: Address) -> str:
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False))


def is_this_machine(request: HttpRequest) -> bool:
    """Whether the call comes over loopback from the caller. A proxy on this machine, trusted or not, has the same
    address, so what names another caller in any way does not come from here."""
    peer = _parsed(request.META.get("REMOTE_ADDR", ""))
    return peer is not None and peer.is_loopback and not any(name in request.META for name in _FORWARDED)


_FORWARDED = (
    "HTTP_X_FORWARDED_FOR",
    "HTTP_FORWARDED",
    "HTTP_X_REAL_IP",
    "HTTP_X_FORWARDED_PROTO",
    "HTTP_VIA",
)
