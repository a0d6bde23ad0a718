"""What is open that should not be: pages, hosts, networks, and lines that anybody on the way can read."""

import ipaddress
import os
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004 -- Django's name for it

from accounts import guard
from accounts.models import Security
from accounts.relays import address_of

#: How the names of Kubernetes end that lead to a neighbour; docker compose has names without a dot.
_NEIGHBOURS = (".svc", ".cluster.local")
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _networks(*cidrs: str) -> tuple[_Network, ...]:
    return tuple(ipaddress.ip_network(cidr) for cidr in cidrs)


#: Loopback, and link-local with the clouds' metadata in it.
_THIS_MACHINE = _networks("127.0.0.0/8", "169.254.0.0/16", "::1/128", "fe80::/10")
_INSIDE = _networks("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
_ENCRYPTED = {"require", "verify-ca", "verify-full"}


def debug(**_: Any) -> list[CheckMessage]:
    if not settings.DEBUG:
        return []
    return [
        Error(
            "DEBUG is on: errors show the program's inside, and /sandbox/ is open to everybody.",
            hint="Leave DEBUG out of the environment.",
            id="mailqueue.E002",
        )
    ]


def any_host(**_: Any) -> list[CheckMessage]:
    if "*" not in settings.ALLOWED_HOSTS:
        return []
    return [
        Warning(
            "ALLOWED_HOSTS has *: links and redirects are made with whatever host a caller names.",
            hint="List the names under which the web is reached, and those that probes and Prometheus use.",
            id="mailqueue.W008",
        )
    ]


def public_url(**_: Any) -> list[CheckMessage]:
    if settings.PUBLIC_URL.startswith("https://"):
        return []
    return [
        Warning(
            "PUBLIC_URL is not https: mail programs offer one-click unsubscribing over https only (RFC 8058)."
            if settings.PUBLIC_URL
            else "PUBLIC_URL is not set: mails of subscriptions carry no link to unsubscribe.",
            hint="Set it to the address under which recipients reach this service: https://mail.example.com",
            id="mailqueue.W009",
        )
    ]


def networks_of_relays(**_: Any) -> list[CheckMessage]:
    """One address that is named is a relay of the operator's. Whole networks, and this machine, are a door."""
    wide = [
        str(network)
        for network in settings.SMTP_ALLOWED_NETWORKS
        if _overlaps(network, _THIS_MACHINE) or (network.num_addresses > 1 and _overlaps(network, _INSIDE))
    ]
    if not wide:
        return []
    return [
        Warning(
            f"SMTP_ALLOWED_NETWORKS has {', '.join(wide)}: whoever registers may have workers call any port there.",
            hint="Name the addresses of your relays one by one, such as 10.1.2.3/32.",
            id="mailqueue.W010",
        )
    ]


def trusted_proxies(**_: Any) -> list[CheckMessage]:
    if not any(network.prefixlen == 0 for network in settings.TRUSTED_PROXIES):
        return []
    return [
        Warning(
            "TRUSTED_PROXIES has everybody: a caller may write any address into X-Forwarded-For, and so passes every"
            " limit that counts by address.",
            hint="Name the networks of your proxies only.",
            id="mailqueue.W011",
        )
    ]


def unlimited_logins(**_: Any) -> list[CheckMessage]:
    off = [name for name in ("THROTTLE_LOGIN", "THROTTLE_LOGIN_ADDRESS") if not getattr(settings, name)]
    if not off:
        return []
    return [
        Warning(
            f"{' and '.join(off)}: off, so that passwords may be tried without end.",
            hint="Leave it out of the environment, or set a pace such as 5/5m.",
            id="mailqueue.W012",
        )
    ]


def verbose_log(**_: Any) -> list[CheckMessage]:
    if settings.LOG_LEVEL != "DEBUG":
        return []
    return [
        Warning(
            "LOG_LEVEL is DEBUG: a line for every attempt, and all that libraries have to say.",
            hint="Set it to INFO; attempts that relays did not take are told there too.",
            id="mailqueue.W013",
        )
    ]


def default_relay(**_: Any) -> list[CheckMessage]:
    """Elsewhere TLS is asked for in any case; within SMTP_ALLOWED_NETWORKS only if the relay offers it."""
    if not settings.DEFAULT_SMTP_URL:
        return []
    try:
        host, _port, security = address_of(settings.DEFAULT_SMTP_URL)
    except ValueError:
        host = ""
    if not host:
        return [
            Error(
                "DEFAULT_SMTP_URL is not the address of a relay: no mail of users without their own goes out.",
                hint="smtp://user:password@host:587, or smtps:// for TLS from the start; ?security= is auto, tls,"
                " starttls or none.",
                id="mailqueue.E008",
            )
        ]
    if _is_here(host) or not (security == Security.NONE or (security == Security.AUTO and _is_exempt(host))):
        return []
    return [
        Warning(
            "DEFAULT_SMTP_URL: mail, and its login, may go to this relay without TLS.",
            hint="Use smtps://, or ?security=starttls; without ?security=none.",
            id="mailqueue.W014",
        )
    ]


def database_line(**_: Any) -> list[CheckMessage]:
    database = settings.DATABASES["default"]
    options = database.get("OPTIONS", {})
    hosts = str(options.get("host") or database.get("HOST") or "").split(",")
    mode = options.get("sslmode") or os.environ.get("PGSSLMODE", "prefer")
    if mode in _ENCRYPTED or all(_is_near(host) for host in hosts):
        return []
    return [
        Warning(
            f"DATABASE_URL: mails go to {', '.join(hosts)} without TLS, or with it only if the server likes"
            f" (sslmode={mode}).",
            hint="Add ?sslmode=verify-full&sslrootcert=/path (or require, which does not ask who answers). On a line"
            " that nobody else can read, name this in SILENCED_SYSTEM_CHECKS.",
            id="mailqueue.W015",
        )
    ]


def broker_line(**_: Any) -> list[CheckMessage]:
    url = urlsplit(settings.REDIS_URL)
    if url.scheme != "redis" or _is_near(url.hostname or ""):
        return []
    return [
        Warning(
            f"REDIS_URL: the password goes to {url.hostname} without TLS.",
            hint="Use rediss://. On a line that nobody else can read, name this in SILENCED_SYSTEM_CHECKS.",
            id="mailqueue.W016",
        )
    ]


def broker_password(**_: Any) -> list[CheckMessage]:
    url = urlsplit(settings.REDIS_URL)
    if url.scheme == "unix" or url.password or dict(parse_qsl(url.query)).get("password"):
        return []
    return [
        Warning(
            "REDIS_URL has no password: who reaches Redis can stop workers and end the counts of wrong passwords.",
            hint="Set requirepass there, and redis://:password@host:6379/0 here.",
            id="mailqueue.W017",
        )
    ]


def _overlaps(network: _Network, others: tuple[_Network, ...]) -> bool:
    return any(network.version == other.version and network.overlaps(other) for other in others)


def _is_exempt(host: str) -> bool:
    """Only of addresses, for a name may mean another one tomorrow."""
    try:
        return guard.in_allowed_networks([ipaddress.ip_address(host)])
    except ValueError:
        return False


def _is_here(host: str) -> bool:
    """Never leaves the machine."""
    if host in {"", "localhost"} or host.startswith("/"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_near(host: str) -> bool:
    """Nor the network that containers of one host or cluster have to themselves: there the operator's NetworkPolicy
    says who listens. An address could be anywhere, private or not."""
    return _is_here(host) or host.endswith(_NEIGHBOURS) or not set(host) & set(".:")


ALL = (
    debug,
    any_host,
    public_url,
    networks_of_relays,
    trusted_proxies,
    unlimited_logins,
    verbose_log,
    default_relay,
    database_line,
    broker_line,
    broker_password,
)
