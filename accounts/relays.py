"""The address of a relay that is written as a URL."""

from urllib.parse import parse_qsl, urlsplit

from accounts.models import Security


def address_of(url: str) -> tuple[str, int, Security]:
    """Host, port and security of smtp[s]://user:password@host:port; `smtps` is TLS from the first byte, and
    ?security= is as for accounts."""
    parts = urlsplit(url)
    is_implicit = parts.scheme == "smtps"
    query = dict(parse_qsl(parts.query))
    security = Security(query.get("security", Security.TLS if is_implicit else Security.AUTO))
    return parts.hostname or "", parts.port or (465 if is_implicit else 587), security
