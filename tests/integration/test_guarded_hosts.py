"""Hosts that no user's mail may reach: each refused where it is registered, where it is changed, and once more
where a connection would be made, whatever it said before. The resolver is the system's own, names apart."""

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient

from accounts.models import SmtpAccount, User
from mailqueue.delivery import handshake
from mailqueue.delivery.handshake import Relay, SessionError
from mailqueue.delivery.replies import Fault
from tasks.states import Phase
from tests.factories import PASSWORD, UserFactory, client_of

pytestmark = pytest.mark.django_db

#: Each with the address that is behind it.
HOSTS = [
    # as addresses are written
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.254", "192.168.1.1",
    "169.254.1.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    # carrier-grade NAT
    "100.64.0.1", "100.127.255.254",
    # where clouds tell their secrets
    "169.254.169.254", "100.100.100.200", "168.63.129.16", "fd00:ec2::254",
    # one number, octal, hexadecimal, fewer parts, and other notations that C libraries understand
    "2130706433", "3232235777", "017700000001", "0177.0.0.1", "0x7f000001", "0x7f.0.0.1", "0x7f.1", "127.1", "0",
    "0xA9FEA9FE", "2852039166", "0251.0376.0251.0376",
    # IPv6: its own, mapped, compatible, NAT64, 6to4, Teredo, with a scope
    "::", "::1", "fc00::1", "fe80::1", "::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "::127.0.0.1", "64:ff9b::7f00:1",
    "64:ff9b::169.254.169.254", "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:7f00:1::1",
    "ff02::1", "2001:db8::1", "fe80::1%1", "::1%1",
    # names
    "localhost", "LOCALHOST",
]  # fmt: skip
#: What is not even the name of a host: letters that some resolvers fold to digits and dots, brackets, ports.
NO_HOSTS = [
    "127\u30020\u30020\u30021", "127\uff0e0\uff0e0\uff0e1", "\u2460\u2461\u2466.0.0.1", "\uff11\uff12\uff17.0.0.1",
    "\u217cocalhost", "[::1]", "[::]", "127.0.0.1:25", "user@127.0.0.1", "//127.0.0.1",
    "127.0.0.1/", "127.0.0.1#", "127.0.0.1\\@8.8.8.8",
]  # fmt: skip
#: Names that anybody may point anywhere.
NAMES = {
    "localhost.": ["127.0.0.1"],  # not every resolver knows it
    "metadata.google.internal": ["169.254.169.254"],
    "127.0.0.1.nip.io": ["127.0.0.1"],
    "relay.example.com": ["8.8.8.8", "10.0.0.1"],
    "relay.example.com.": ["fd00::1"],
    "xn--bcher-kva.example": ["::ffff:192.168.0.1"],
}
ALL = [*HOSTS, *NAMES]


@pytest.fixture(autouse=True)
def _only_the_public(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.SMTP_ALLOWED_NETWORKS = ()
    settings.DEFAULT_SMTP_URL = "smtp://relay.example.org:587"
    ask = socket.getaddrinfo

    def answer(host: str, *args: Any, **kwargs: Any) -> Any:
        if host not in NAMES:
            return ask(host, *args, **kwargs)
        return [answered(address) for address in NAMES[host]]

    monkeypatch.setattr(socket, "getaddrinfo", answer)


def answered(address: str) -> Any:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return (family, socket.SOCK_STREAM, 6, "", (address, 0))


def relay_at(host: str) -> dict[str, Any]:
    return {"smtp_host": host, "smtp_port": 587, "smtp-username": "ada", "smtp-password": "secret"}


def assert_the_host_is_refused(answer: Any, code: str) -> None:
    assert answer.status_code == 400, answer.content
    assert [(each["field"], each["code"]) for each in answer.json()["errors"]] == [("smtp_host", code)]


def register(host: str) -> Any:
    who = {"email": "ada@example.com", "password": PASSWORD}
    return APIClient(raise_request_exception=False).post(
        "/api/v1/register", who | relay_at(host), format="json"
    )


def change(user: User, host: str) -> Any:
    return client_of(user).patch(f"/api/v1/user/{user.pk}", relay_at(host), format="json")


def test_there_are_more_than_forty_hosts_at_three_doors() -> None:
    assert len(set(HOSTS)) == len(HOSTS) >= 40
    assert 3 * len(ALL) + 2 * len(NO_HOSTS) >= 180


@pytest.mark.parametrize("host", ALL)
def test_it_cannot_be_registered(host: str) -> None:
    assert_the_host_is_refused(register(host), "forbidden_address")
    assert not User.objects.exists()


@pytest.mark.parametrize("host", ALL)
def test_no_account_can_be_moved_there(host: str) -> None:
    user = UserFactory()
    assert_the_host_is_refused(change(user, host), "forbidden_address")
    assert SmtpAccount.objects.get(owner=user).uses_default_relay


@pytest.mark.parametrize("host", NO_HOSTS)
def test_what_is_no_host_is_refused_at_both_doors(host: str) -> None:
    assert_the_host_is_refused(register(host), "invalid")
    assert_the_host_is_refused(change(UserFactory(), host), "invalid")


# Where a connection would be made ---------------------------------------------------------------------


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Whom a socket was connected to; nobody answers."""
    addresses: list[tuple[str, int]] = []

    async def connect(_loop: Any, _sock: Any, address: tuple[str, int]) -> None:
        addresses.append(address)
        raise ConnectionRefusedError(111, "refused")

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", connect)
    return addresses


def fault_at(host: str, port: int = 587) -> tuple[Phase, Fault | None]:
    """How far a connection to it comes."""
    with pytest.raises(SessionError) as failed:
        asyncio.run(handshake.open_session(Relay(host, port)))
    return failed.value.answer.phase, failed.value.answer.fault


@pytest.mark.parametrize("host", ALL)
def test_no_socket_is_connected_there(called: list[Any], host: str) -> None:
    assert fault_at(host) == (Phase.CONNECT, Fault.FORBIDDEN)
    assert called == []


@pytest.mark.parametrize("host", NO_HOSTS)
def test_nor_to_what_is_no_host_though_it_were_stored(called: list[Any], host: str) -> None:
    assert fault_at(host)[1] in (Fault.FORBIDDEN, Fault.UNRESOLVED)
    assert called == []


def test_a_public_address_is_connected_to(called: list[Any]) -> None:
    """The control: what holds up the others is the guard."""
    assert fault_at("8.8.8.8") == (Phase.CONNECT, Fault.UNREACHABLE)
    assert called == [("8.8.8.8", 587)]


# A resolver that changes its answer -------------------------------------------------------------------

ATTACKER = "relay.attacker.example"
Answers = Callable[..., list[str]]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Makes the resolver answer each question differently; the last answer stays. Returns who was asked for."""

    def given(*each: list[str]) -> list[str]:
        asked: list[str] = []
        ask = socket.getaddrinfo

        def resolve(host: str, *args: Any, **kwargs: Any) -> Any:
            if host != ATTACKER:  # Redis is asked for as well
                return ask(host, *args, **kwargs)
            asked.append(host)
            return [answered(address) for address in each[min(len(asked), len(each)) - 1]]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        return asked

    return given


@pytest.mark.parametrize("later", ["127.0.0.1", "169.254.169.254", "::1", "64:ff9b::a00:1", "100.64.0.1"])
def test_a_name_that_was_public_at_the_door_is_judged_anew_at_each_connection(
    answers: Answers, called: list[Any], later: str
) -> None:
    answers(["8.8.8.8"], [later])
    assert register(ATTACKER).status_code == 201
    assert fault_at(ATTACKER) == (Phase.CONNECT, Fault.FORBIDDEN)
    assert called == []


@pytest.mark.parametrize("later", ["127.0.0.1", "169.254.169.254", "::1", "64:ff9b::a00:1", "100.64.0.1"])
def test_between_judging_and_connecting_the_resolver_is_not_asked_again(
    answers: Answers, called: list[Any], later: str
) -> None:
    asked = answers(["8.8.8.8"], [later])
    assert fault_at(ATTACKER) == (Phase.CONNECT, Fault.UNREACHABLE)
    assert asked == [ATTACKER]
    assert called == [("8.8.8.8", 587)]


@pytest.mark.parametrize("bad", ["127.0.0.1", "fe80::1", "::ffff:10.0.0.1", "2002:7f00:1::"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_bad_address_among_good_ones_spoils_them_all(
    answers: Answers, called: list[Any], bad: str, place: int
) -> None:
    found = ["8.8.8.8", "1.1.1.1"]
    found.insert(place, bad)
    answers(found)
    assert_the_host_is_refused(register(ATTACKER), "forbidden_address")
    assert fault_at(ATTACKER) == (Phase.CONNECT, Fault.FORBIDDEN)
    assert called == []


@pytest.mark.parametrize("host", ["8.8.8.8", "127.0.0.1", "10.1.2.3"])
def test_an_allowed_network_opens_itself_and_nothing_else(
    settings: Any, called: list[Any], host: str
) -> None:
    settings.SMTP_ALLOWED_NETWORKS = (ipaddress.ip_network("127.0.0.0/8"),)
    settings.SMTP_ALLOWED_PORTS = [587]
    fault = {"8.8.8.8": Fault.FORBIDDEN, "127.0.0.1": Fault.UNREACHABLE, "10.1.2.3": Fault.FORBIDDEN}[host]
    assert fault_at(host, port=6379) == (Phase.CONNECT, fault)
    assert called == ([("127.0.0.1", 6379)] if host == "127.0.0.1" else [])
