"""The link by which a recipient unsubscribes, without a login: whoever has it may, and nobody can guess it."""

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode

from django.conf import settings

from accounts import sealing

_PURPOSE = "unsubscribe"


def token_of(pk: int) -> str:
    mark = urlsafe_b64encode(sealing.mark(_PURPOSE, str(pk))).decode().rstrip("=")
    return f"{pk}.{mark}"


def subscription_of(token: str) -> int | None:
    """The id of the subscription that it ends; None if we have not made it."""
    pk, _, mark = token.partition(".")
    if not (pk.isascii() and pk.isdecimal() and len(pk) < 19 and mark.isascii()):
        return None
    try:
        given = urlsafe_b64decode(f"{mark}=")
    except binascii.Error:
        return None
    return int(pk) if sealing.is_marked(given, _PURPOSE, pk) else None


def headers(pk: int) -> dict[str, str]:
    """RFC 8058: a mail program shows a button for it. Nothing without PUBLIC_URL, for nobody could get there."""
    if not settings.PUBLIC_URL:
        return {}
    return {
        "List-Unsubscribe": f"<{settings.PUBLIC_URL}/unsubscribe/{token_of(pk)}>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
    }
