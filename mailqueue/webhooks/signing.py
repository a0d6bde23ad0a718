"""Signatures and secrets of Standard Webhooks (https://www.standardwebhooks.com), by the project's own library."""

import base64
import secrets
from collections.abc import Iterable
from datetime import datetime

from standardwebhooks import Webhook

#: The specification allows 24 to 64 bytes.
SECRET_BYTES = 32


def new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def headers(message_id: str, payload: str, now: datetime, keys: Iterable[str]) -> dict[str, str]:
    """What a receiver verifies. One signature for each secret, so that it may know either; `now` in UTC."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(Webhook(key).sign(message_id, now, payload) for key in keys),
    }
