"""The address guard: a relay must live on the public internet, or where the operator allows.

A name is resolved once, every address of the answer is judged, and the caller connects to the very
addresses it got from here, so a resolver that changes its answer gains nothing.
"""

import ipaddress
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Final

from django.conf import settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: a public IPv4 address is inside
_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
#: Global by Python's tables, yet no place for a relay.
_REFUSED: Final = tuple(
    ipaddress.ip_network(cidr)
    for cidr in (
        "192.0.0.0/24",  # RFC 6890, of which older Pythons know a part; 192.0.0.192 was Oracle's metadata service
        "192.88.99.0/24",  # 6to4 relay anycast, RFC 7526
        "168.63.129.16/32",  # the metadata service of Azure
        "2002::/16",  # 6to4: an IPv4 address of any kind inside
        "2001::/32",  # Teredo: the same
        "3fff::/20",  # documentation, RFC 9637
    )
)


class ForbiddenAddressError(Exception):
    """The host has an address that mail may not be sent to."""


class ForbiddenPortError(Exception):
    """The port is none of SMTP_ALLOWED_PORTS, and the host is not in an allowed network."""


class UnresolvableError(Exception):
    """The name has no address just now."""


def is_allowed(ip: Address | str) -> bool:
    """Whether a connection to this address may be made."""
    address = _unmapped(ipaddress.ip_address(ip))
    return _in_allowed_networks(address) or _is_public(address)


def in_allowed_networks(addresses: Sequence[Address]) -> bool:
    """Whether all of it stays inside SMTP_ALLOWED_NETWORKS, where plain text and any port are accepted."""
    return bool(addresses) and all(_in_allowed_networks(_unmapped(address)) for address in addresses)


def check_port(port: int, addresses: Sequence[Address]) -> None:
    """ForbiddenPortError unless it is a port for mail, or everything stays in the allowed networks."""
    if port not in settings.SMTP_ALLOWED_PORTS and not in_allowed_networks(addresses):
        raise ForbiddenPortError(f"mail may not be sent to port {port}")


def resolve(host: str) -> list[Address]:
    """The addresses of a host, all of them allowed: connect to these, and ask no resolver again.

    Blocks as long as the resolver does. ForbiddenAddressError if a single address is not allowed, for
    the next connection could go there; UnresolvableError if there is none.
    """
    try:
        # The resolver, not our parser, decides what 2130706433 or 0x7f.1 means.
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:  # ValueError: labels too long or empty, NUL
        raise UnresolvableError(host) from error
    addresses = list(dict.fromkeys(ipaddress.ip_address(answer[4][0]) for answer in found))
    if not addresses:
        raise UnresolvableError(host)
    if not all(is_allowed(address) for address in addresses):
        raise ForbiddenAddressError(f"{host} has an address that mail may not be sent to")
    return addresses


def resolve_within(host: str, seconds: float) -> list[Address]:
    """The same for callers that cannot wait: a slow resolver counts as UnresolvableError."""
    answer: Future[list[Address]] = Future()

    def ask() -> None:
        try:
            answer.set_result(resolve(host))
        except Exception as error:  # noqa: BLE001 -- it is raised where the answer is awaited
            answer.set_exception(error)

    # A daemon, for getaddrinfo cannot be interrupted and must not hold up the end of the process.
    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        return answer.result(timeout=seconds)
    except TimeoutError as error:
        raise UnresolvableError(host) from error


def _unmapped(address: Address) -> Address:
    """::ffff:127.0.0.1 is the same place as 127.0.0.1."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _in_allowed_networks(address: Address) -> bool:
    return any(address in network for network in settings.SMTP_ALLOWED_NETWORKS)


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return _is_public(ipaddress.IPv4Address(address.packed[-4:]))
        if address not in _UNICAST:
            return False
    if any(address in network for network in _REFUSED):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)
