"""The address guard: public addresses pass, everything else needs the operator's word."""

import ipaddress
import socket
import threading

import pytest

from accounts import guard

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))

FORBIDDEN = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",  # metadata: AWS, GCP, Azure
    "100.100.100.200",  # metadata: Alibaba, inside CGNAT
    "192.0.0.192",  # metadata: Oracle Cloud Classic
    "168.63.129.16",  # metadata: Azure, globally routed
    "100.64.0.1",
    "100.127.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.9",
    "192.88.99.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::127.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::8.8.8.8",
    "2002:7f00:1::",
    "2002:808:808::1",
    "2001:0:7f00:1::",
    "2001:db8::1",
    "3fff::1",
    "fc00::1",
    "fd00:ec2::254",  # metadata: AWS
    "fe80::1",
    "fe80::1%1",
    "fec0::1",
    "ff02::1",
    "100::1",
]
ALLOWED = [
    "8.8.8.8",
    "100.63.255.255",
    "100.128.0.1",
    "172.32.0.1",
    "2606:4700:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
]
LOOPBACK_SPELLINGS = [
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "017700000001",
    "0177.0.0.1",
    "127.1",
    "localhost",
]


@pytest.fixture(autouse=True)
def _nothing_is_allowed(settings):
    settings.SMTP_ALLOWED_NETWORKS = ()
    settings.SMTP_ALLOWED_PORTS = [25, 465, 587, 2525]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_an_address_that_is_not_public_is_refused(address):
    assert not guard.is_allowed(address)
    with pytest.raises(guard.ForbiddenAddressError):
        guard.resolve(address)


@pytest.mark.parametrize("address", ALLOWED)
def test_a_public_address_passes(address):
    assert guard.is_allowed(address)


@pytest.mark.parametrize("host", LOOPBACK_SPELLINGS)
def test_another_spelling_is_judged_by_what_it_resolves_to(host):
    with pytest.raises(guard.ForbiddenAddressError):
        guard.resolve(host)


@pytest.mark.parametrize("host", [*LOOPBACK_SPELLINGS, "127.0.0.1", "::1"])
def test_an_allowed_network_lets_its_hosts_through(settings, host):
    settings.SMTP_ALLOWED_NETWORKS = LOOPBACK
    assert guard.in_allowed_networks(guard.resolve(host))


def test_an_allowed_network_holds_for_its_mapped_form_too(settings):
    settings.SMTP_ALLOWED_NETWORKS = LOOPBACK
    assert guard.is_allowed("::ffff:127.0.0.1")


def test_an_allowed_network_does_not_reach_through_a_translator(settings):
    settings.SMTP_ALLOWED_NETWORKS = LOOPBACK
    assert not guard.is_allowed("64:ff9b::127.0.0.1")


@pytest.mark.parametrize("host", ["no..name", "a" * 64 + ".example.com", "nul\0.example.com", "host.invalid"])
def test_a_host_without_an_address_does_not_resolve(host):
    with pytest.raises(guard.UnresolvableError):
        guard.resolve(host)


def _resolver(*answers: list[str]):
    """A resolver that answers each question differently; the last answer stays."""
    asked: list[str] = []

    def getaddrinfo(host, *_args, **_kwargs):
        asked.append(host)
        return [(2, 1, 6, "", (address, 0)) for address in answers[min(len(asked), len(answers)) - 1]]

    return getaddrinfo, asked


def test_one_forbidden_address_among_good_ones_forbids_the_host(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", _resolver(["8.8.8.8", "127.0.0.1"])[0])
    with pytest.raises(guard.ForbiddenAddressError):
        guard.resolve("relay.example.com")


def test_a_resolver_that_changes_its_answer_is_asked_once_only(monkeypatch):
    resolver, asked = _resolver(["8.8.8.8"], ["127.0.0.1"])
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    assert guard.resolve("relay.example.com") == [ipaddress.ip_address("8.8.8.8")]
    assert asked == ["relay.example.com"]


def test_a_resolver_that_hangs_counts_as_unresolvable(monkeypatch):
    release = threading.Event()

    def hang(*_args, **_kwargs):
        release.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with pytest.raises(guard.UnresolvableError):
        guard.resolve_within("relay.example.com", 0.05)
    release.set()


def test_what_the_bounded_way_refuses_it_refuses_alike():
    with pytest.raises(guard.ForbiddenAddressError):
        guard.resolve_within("127.0.0.1", 60)


@pytest.mark.parametrize("port", [25, 465, 587, 2525])
def test_ports_for_mail_are_open(port):
    guard.check_port(port, [ipaddress.ip_address("8.8.8.8")])


@pytest.mark.parametrize("port", [22, 80, 6379, 5432, 1025])
def test_other_ports_are_not(port):
    with pytest.raises(guard.ForbiddenPortError):
        guard.check_port(port, [ipaddress.ip_address("8.8.8.8")])


def test_any_port_is_open_where_all_addresses_are_allowed(settings):
    settings.SMTP_ALLOWED_NETWORKS = LOOPBACK
    guard.check_port(1025, [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")])
    with pytest.raises(guard.ForbiddenPortError):
        guard.check_port(1025, [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("8.8.8.8")])


def test_no_address_at_all_is_not_an_allowed_network(settings):
    settings.SMTP_ALLOWED_NETWORKS = LOOPBACK
    assert not guard.in_allowed_networks([])
