"""Where events may be sent: the shape of an address, and whom it leads to."""

import ipaddress

import pytest

from accounts import guard
from mailqueue.webhooks import places
from mailqueue.webhooks.places import BadUrlError, ForbiddenPlaceError, Place

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
PUBLIC = [ipaddress.ip_address("93.184.216.34")]


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://example.com", ("https", "example.com", 443, "example.com", "/")),
        (
            "https://Example.com:8443/a/b?c=d&e=%20",
            ("https", "example.com", 8443, "Example.com:8443", "/a/b?c=d&e=%20"),
        ),
        ("http://[::1]:9000/x;y", ("http", "::1", 9000, "[::1]:9000", "/x;y")),
        ("http://127.0.0.1?x", ("http", "127.0.0.1", 80, "127.0.0.1", "/?x")),
        ("https://a_b.example.com/", ("https", "a_b.example.com", 443, "a_b.example.com", "/")),
    ],
)
def test_an_address_is_taken_apart(url, place):
    assert Place.of(url) == place


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "ftp://example.com",
        "file:///etc/passwd",
        "HTTPS://example.com",
        "https://",
        "https:///x",
        "https://:443/",
        "https://user:password@example.com/",
        "https://user@example.com/",
        "https://example.com/#part",
        "https://example.com:0/",
        "https://example.com:99999/",
        "https://example.com:port/",
        "https://exa mple.com/",
        "https://example.com/a b",
        "https://example.com/\r\nHost: x",
        "https://example.com/x\n",
        "https://example.com\\@127.0.0.1/",
        "https://example.com/\\x",
        "https://münchen.example/",
        "https://[::1/",
        "https://[v1.x]/",
        "https://-a.example.com/",
        "https://example.com/" + "x" * 2000,
        "https://" + "a" * 300 + "/",
        "https://]example.com[/",
    ],
)
def test_what_servers_could_read_in_two_ways_is_no_address(url):
    with pytest.raises(BadUrlError):
        Place.of(url)


def refused(url: str, addresses=PUBLIC) -> str | None:
    try:
        Place.of(url).check(addresses)
    except ForbiddenPlaceError as error:
        return error.code
    return None


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://example.com/", None),
        ("https://example.com:8443/", None),
        ("https://example.com:1024/", None),
        ("http://example.com/", "forbidden_scheme"),
        ("http://example.com:8080/", "forbidden_scheme"),
        ("https://example.com:25/", "forbidden_port"),
        ("https://example.com:1023/", "forbidden_port"),
    ],
)
def test_outside_it_is_https_on_a_port_for_it(url, code):
    assert refused(url) == code


def test_in_allowed_networks_anything_goes_and_only_there(settings):
    settings.SMTP_ALLOWED_NETWORKS = LOOPBACK
    inside = [ipaddress.ip_address("127.0.0.1")]
    assert refused("http://example.com:25/", inside) is None
    assert refused("http://example.com/", inside + PUBLIC) == "forbidden_scheme"
    assert refused("http://example.com/", []) == "forbidden_scheme"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "169.254.169.254",
        "10.0.0.1",
        "[::1]",
        "[::ffff:10.0.0.1]",
        "2130706433",
        "0x7f.1",
        "100.64.0.1",
    ],
)
def test_the_guard_is_asked(settings, host):
    settings.SMTP_ALLOWED_NETWORKS = ()
    with pytest.raises(ForbiddenPlaceError) as refusal:
        places.resolve(Place.of(f"https://{host}/"), 5)
    assert refusal.value.code == "forbidden_address"


def test_a_name_without_an_address_is_told_apart(monkeypatch):
    def nobody(host: str) -> list[guard.Address]:
        raise guard.UnresolvableError(host)

    monkeypatch.setattr(guard, "resolve", nobody)
    with pytest.raises(guard.UnresolvableError):
        places.resolve(Place.of("https://nobody.example.com/"), 5)
