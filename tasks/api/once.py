"""Idempotency-Key: a call that is made again, because nobody knows whether the first one arrived, is done once.

After draft-ietf-httpapi-idempotency-key-header: the key is an RFC 8941 string, or bare as most send it.
"""

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any, cast

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework.exceptions import APIException, ParseError, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.problems import Conflict
from accounts.models import User
from tasks import idempotency

LONGEST_KEY = 255
_BARE = re.compile(r"[!#-~]+")
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_ESCAPED = re.compile(r"\\(.)")

ONCE = [
    OpenApiParameter(
        "Idempotency-Key",
        {
            "type": "string",
            "pattern": rf'^([!#-~]{{1,{LONGEST_KEY}}}|"([ !#-\[\]-~]|\\["\\]){{1,{LONGEST_KEY}}}")$',
        },
        OpenApiParameter.HEADER,
        description=f"Up to {LONGEST_KEY} visible ASCII characters of your own, bare or quoted. The same call with "
        "the same key is done once: for 24 hours every further one gets the first one's answer.",
    ),
    OpenApiParameter(
        "Idempotency-Replayed",
        OpenApiTypes.BOOL,
        OpenApiParameter.HEADER,
        response=[202, 207],
        description="true where this is the answer of an earlier call with the same key.",
    ),
]


class KeyInUse(Conflict):
    """The first call with this key is not done yet."""

    default_code = "idempotency_key_in_use"
    default_detail = "A call with this Idempotency-Key is being worked on; ask again in a moment."
    #: Becomes Retry-After, in seconds.
    wait = 1


class KeyReused(APIException):
    """The key belongs to another call."""

    status_code = 422
    default_code = "idempotency_key_reused"
    default_detail = "This Idempotency-Key was used for another call; give each call a key of its own."


def refuse_bad_key(request: Request) -> None:
    """ValidationError for a key that would be refused; where nothing is done, and so nothing to do once."""
    header = request.META.get("HTTP_IDEMPOTENCY_KEY")
    if header is not None:
        _key(header)


def once(request: Request, act: Callable[[], dict[str, Any]], status: int) -> Response:
    """The answer to what `act` does; where the caller gave a key that was used for the same call before, the answer
    it had. What `act` raises leaves nothing behind, and its key free."""
    header = request.META.get("HTTP_IDEMPOTENCY_KEY")
    if header is None:
        return Response(act(), status)
    try:
        answer, is_replayed = idempotency.once(
            cast(User, request.user).pk, _key(header), _fingerprint(request), lambda: json.dumps(act())
        )
    except idempotency.StillRunningError as error:
        raise KeyInUse from error
    except idempotency.AnotherCallError as error:
        raise KeyReused from error
    headers = {"Idempotency-Replayed": "true"} if is_replayed else None
    return Response(json.loads(answer), status, headers=headers)


def _key(header: str) -> str:
    quoted = _QUOTED.fullmatch(header.strip())
    key = _ESCAPED.sub(r"\1", quoted[1]) if quoted else header.strip()
    if not 0 < len(key) <= LONGEST_KEY or not (quoted or _BARE.fullmatch(key)):
        complaint = (
            f"Must have 1 to {LONGEST_KEY} visible ASCII characters, bare or as a quoted string (RFC 8941)."
        )
        raise ValidationError({"Idempotency-Key": [complaint]}, "invalid_idempotency_key")
    return key


def _fingerprint(request: Request) -> bytes:
    """The same for the same call, in whatever order its fields come."""
    try:
        body = json.dumps(request.data, sort_keys=True, ensure_ascii=False)
    except RecursionError as error:
        raise ParseError("The body is nested too deeply.", "too_deep") from error
    # A body of a batch may hold what UTF-8 does not; its messages are looked at one by one.
    return hashlib.sha256(f"{request.path}\n{body}".encode("utf-8", "surrogatepass")).digest()
