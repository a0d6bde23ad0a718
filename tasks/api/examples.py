"""Examples for the schema that several operations show."""

from typing import Any

from drf_spectacular.utils import OpenApiExample

_LISTED: dict[str, Any] = {
    "task_id": 4711,
    "status": "failed",
    "cancel_reason": None,
    "recipient_email": "jane@example.com",
    "subject": "Your invoice",
    "lane": "default",
    "try_count": 1,
    "max_tries": 8,
    "created_at": "2030-01-31T09:30:00Z",
    "scheduled_at": None,
    "expires_at": None,
    "started_at": "2030-01-31T09:30:01Z",
    "finished_at": None,
    "next_attempt_at": "2030-01-31T09:31:04Z",
    "waiting": {
        "reason": "retry",
        "until": "2030-01-31T09:31:04Z",
        "detail": "451 4.7.1 try again later",
        "tries_left": 7,
    },
    "tags": ["invoice"],
    "last_reply": "451 4.7.1 try again later",
}
_WHOLE: dict[str, Any] = _LISTED | {
    "sender_email": "ada@example.com",
    "message_id": "<0194b8f1c5d8762084eda09af0b5b5de@example.com>",
    "on_uncertain": "retry",
    "from_name": "Ada's Bookshop",
    "reply_to": "Support <support@example.com>",
    "headers": {"List-Unsubscribe": "<https://example.com/unsubscribe/42>"},
    "attachments": [{"filename": "invoice.txt", "content_type": "text/plain; charset=utf-8", "size": 7}],
    "metadata": {"invoice": 4711},
    "template": {"name": "invoice", "version": 3},
    "attempts": [
        {
            "number": 1,
            "at": "2030-01-31T09:30:01Z",
            "outcome": "temporary",
            "phase": "rcpt",
            "code": 451,
            "reply": "451 4.7.1 try again later",
            "duration_ms": 84,
            "worker": "drain@mail-1",
        }
    ],
}
A_LISTED_TASK = OpenApiExample("Tried once", _LISTED, response_only=True, status_codes=["200"])
A_WHOLE_TASK = OpenApiExample("Tried once", _WHOLE, response_only=True, status_codes=["200"])
AN_ANSWER = OpenApiExample(
    "Accepted", {"task_id": 4711, "status": "queued"}, response_only=True, status_codes=["202"]
)
A_DRY_RUN = OpenApiExample(
    "A dry run",
    {
        "mail": {
            "headers": [
                {"name": "From", "value": "ada@example.com"},
                {"name": "To", "value": "jane@example.com"},
                {"name": "Subject", "value": "Grüße"},
            ],
            "parts": [
                {"content_type": "text/plain", "filename": None, "size": 23, "text": "Hello Jane,\nit works."}
            ],
            "source": "From: ada@example.com\r\nTo: jane@example.com\r\nSubject: =?utf-8?b?R3LDvMOfZQ==?=\r\n…",
        },
        "route": {"relay": "own", "host": "smtp.example.com", "port": 587, "security": "auto"},
        "plan": {
            "status": "queued",
            "cancel_reason": None,
            "due_at": "2030-01-31T09:30:00Z",
            "expires_at": None,
            "lane": "default",
            "max_tries": 8,
            "retry_after_seconds": [60, 300, 900, 1800, 3600, 7200, 14400],
            "on_uncertain": "retry",
            "waiting": None,
        },
    },
    response_only=True,
    status_codes=["200"],
)
