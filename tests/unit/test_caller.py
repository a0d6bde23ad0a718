"""Which address a call counts for, and who may say so."""

from ipaddress import ip_network
from typing import Any

import pytest
from django.test import RequestFactory

from accounts.caller import address_of

PROXIES = ("10.0.0.0/8", "fd00::/8")


@pytest.mark.parametrize(
    ("peer", "forwarded", "counted"),
    [
        ("203.0.113.7", None, "203.0.113.7"),
        ("203.0.113.7", "198.51.100.1", "203.0.113.7"),  # nobody's proxy
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "192.0.2.66, 198.51.100.1", "198.51.100.1"),  # the first is what the caller has written
        ("10.0.0.1", "192.0.2.66, 198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", "10.0.0.3,10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "nonsense", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.66, unknown", "10.0.0.1"),  # nothing before what cannot be read
        ("10.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
        ("10.0.0.1", "[2001:db8:1:2::9]:4711", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", None, "fe80::/64"),
        ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("::ffff:203.0.113.7", None, "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", None, "2001:db8:1:2::/64"),
        ("fd00::1", "2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("", "198.51.100.1", ""),  # a socket in the file system
    ],
)
def test_the_address_that_counts(settings: Any, peer: str, forwarded: str | None, counted: str) -> None:
    settings.TRUSTED_PROXIES = tuple(map(ip_network, PROXIES))
    headers = {} if forwarded is None else {"HTTP_X_FORWARDED_FOR": forwarded}
    assert address_of(RequestFactory().get("/", REMOTE_ADDR=peer, **headers)) == counted


def test_without_trusted_proxies_the_header_says_nothing(settings: Any) -> None:
    settings.TRUSTED_PROXIES = ()
    request = RequestFactory().get("/", REMOTE_ADDR="127.0.0.1", HTTP_X_FORWARDED_FOR="198.51.100.1")
    assert address_of(request) == "127.0.0.1"
