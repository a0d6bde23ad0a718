"""Judges relay settings before they are saved. The courier judges them again when it connects."""

from rest_framework.exceptions import ValidationError

from accounts import guard
from accounts.models import Security

#: Longer than a healthy resolver takes, short enough for a call that somebody waits for.
RESOLVE_SECONDS = 2.0


def check_relay(host: str, port: int, security: str) -> None:
    """ValidationError that names the field. Asks the resolver: call it outside any transaction.

    A host that does not resolve just now passes, on the usual ports and with TLS.
    """
    try:
        addresses = guard.resolve_within(host, RESOLVE_SECONDS)
    except guard.UnresolvableError:
        addresses = []
    except guard.ForbiddenAddressError as error:
        complaint = "This host has an address that mail may not be sent to."
        raise ValidationError({"smtp_host": [complaint]}, "forbidden_address") from error
    try:
        guard.check_port(port, addresses)
    except guard.ForbiddenPortError as error:
        complaint = "Mail may not be sent to this port."
        raise ValidationError({"smtp_port": [complaint]}, "forbidden_port") from error
    if security == Security.NONE and not guard.in_allowed_networks(addresses):
        complaint = "Unencrypted connections are only made to networks that the operator allows."
        raise ValidationError({"smtp_security": [complaint]}, "forbidden_security")
