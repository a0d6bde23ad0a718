"""Seals SMTP passwords, and marks what need only be recognised. The only place that touches cryptography."""

import hmac
import json
from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings


class UnreadableSecretError(Exception):
    """A sealed value cannot be opened with any of CREDENTIAL_KEYS."""


@lru_cache
def _keys(keys: tuple[str, ...]) -> MultiFernet:
    return MultiFernet([Fernet(key) for key in keys])


def _ring() -> MultiFernet:
    return _keys(tuple(settings.CREDENTIAL_KEYS))


def seal(secret: str) -> str:
    """Encrypts with the newest key; the empty string stays empty, for it is no secret."""
    return _ring().encrypt(secret.encode()).decode() if secret else ""


def unseal(sealed: str) -> str:
    """The secret again; UnreadableSecretError if its key is gone."""
    if not sealed:
        return ""
    try:
        return _ring().decrypt(sealed.encode()).decode()
    except InvalidToken as error:
        raise UnreadableSecretError from error


def reseal(sealed: str) -> str:
    """The same secret under the newest key; UnreadableSecretError if its key is gone."""
    try:
        return _ring().rotate(sealed.encode()).decode() if sealed else ""
    except InvalidToken as error:
        raise UnreadableSecretError from error


def mark(purpose: str, *parts: str) -> bytes:
    """What these are recognised by, and cannot be guessed from: an HMAC-SHA256 under a key of this purpose alone."""
    return _mark(settings.CREDENTIAL_KEYS[0], purpose, parts)


def is_marked(kept: bytes, purpose: str, *parts: str) -> bool:
    """Whether `mark` made it of these, with whichever of the keys; takes the same time in any case."""
    found = [hmac.compare_digest(_mark(key, purpose, parts), kept) for key in settings.CREDENTIAL_KEYS]
    return any(found)


def _mark(key: str, purpose: str, parts: tuple[str, ...]) -> bytes:
    own = hmac.digest(key.encode(), purpose.encode(), "sha256")
    return hmac.digest(own, json.dumps(parts).encode(), "sha256")
