"""Wrong passwords are counted, by account and address and by address alone: after a few the next one has to wait."""

from django.conf import settings

from accounts import throttle
from accounts.throttle import Limit, Use, Verdict


def begin(email: str, address: str) -> Verdict:
    """Whether a password may be tried. It counts as wrong until `succeeded`, so that of many at once only so many as
    the limit allows are looked at. Nothing here knows whether there is such an account.
    """
    uses = [*_of_account(email, address), *(use._replace(amount=0) for use in _of_address(address))]
    return throttle.spend(*uses) if uses else Verdict(granted=True, standings=[])


def failed(address: str) -> None:
    """Counts for the address afterwards, since right ones of others come from there too."""
    for use in _of_address(address):
        throttle.spend(use)


def succeeded(email: str, address: str) -> None:
    for use in _of_account(email, address):
        throttle.forget(use)


def _of_account(email: str, address: str) -> list[Use]:
    pace = settings.THROTTLE_LOGIN
    return [Use(Limit("login", *pace), f"{email.strip().lower()} {address}")] if pace else []


def _of_address(address: str) -> list[Use]:
    pace = settings.THROTTLE_LOGIN_ADDRESS
    return [Use(Limit("login-address", *pace), address)] if pace else []
