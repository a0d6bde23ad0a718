"""Which relay an owner's mail goes through."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote, urlsplit

from django.conf import settings

from accounts.models import AccountState, Security, SmtpAccount
from accounts.relays import address_of
from accounts.sealing import UnreadableSecretError
from mailqueue.delivery.handshake import Relay
from tasks import prepared


@dataclass(frozen=True, slots=True)
class Route:
    """A relay, how many connections to it, and whether its first success is news. No relay: unreadable password.

    `has_missed`: connections failed of late, so that any answer of the relay is news.
    """

    relay: Relay | None
    max_connections: int
    is_unproven: bool
    has_missed: bool = False


def accounts_of(owners: Iterable[int]) -> dict[int, SmtpAccount]:
    """The owners' accounts, read anew so that a change counts from the next claim on."""
    rows = prepared.rows(_READ, {"owners": list(set(owners))})
    accounts = (SmtpAccount(**dict(zip(_COLUMNS, row, strict=True))) for row in rows)
    return {account.owner_id: account for account in accounts}


#: What a route and limits are made of. The ORM takes 0.45 ms for the same, as long as a small claim; this a third.
_COLUMNS = (
    "owner_id", "host", "port", "username", "sealed_password", "security", "max_connections", "state", "paused_until",
    "missed", "per_second", "per_minute", "per_hour", "per_day",
)  # fmt: skip
_READ = f"SELECT {', '.join(_COLUMNS)} FROM accounts_smtpaccount WHERE owner_id = ANY(%(owners)s::bigint[])"  # noqa: S608 -- names of ours


def route(account: SmtpAccount) -> Route:
    unproven = account.state != AccountState.ACTIVE or account.paused_until is not None
    return Route(relay_of(account), max(1, account.max_connections), unproven, account.missed > 0)


def relay_of(account: SmtpAccount) -> Relay | None:
    """None if the password cannot be read with CREDENTIAL_KEYS."""
    if account.uses_default_relay:
        return default_relay(settings.DEFAULT_SMTP_URL)
    try:
        password = account.password
    except UnreadableSecretError:
        return None
    return Relay(account.host, account.port, account.username, password, Security(account.security))


@lru_cache
def default_relay(url: str) -> Relay:
    """See accounts/relays.py for what such a URL says."""
    parts, (host, port, security) = urlsplit(url), address_of(url)
    return Relay(host, port, unquote(parts.username or ""), unquote(parts.password or ""), security)
