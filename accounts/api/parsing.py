"""Reads a JSON body of bounded size, and refuses what could not be stored."""

import json
import math
from collections.abc import Mapping
from typing import IO, Any

from django.conf import settings
from rest_framework.exceptions import APIException, ParseError, ValidationError
from rest_framework.parsers import BaseParser

#: Deeper than any message needs, far above where Python's own recursion ends.
MAX_DEPTH = 32


class PayloadTooLarge(APIException):
    """The body is larger than MAX_REQUEST_BYTES."""

    status_code = 413
    default_code = "too_large"


class BoundedJSONParser(BaseParser):
    """An object in UTF-8 of at most MAX_REQUEST_BYTES: 413 above that, 400 for anything else."""

    media_type = "application/json"

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        declared = (parser_context or {})["request"].META.get("CONTENT_LENGTH") or 0
        data = _decode(_read(stream, int(declared)))
        if not isinstance(data, dict):
            raise ParseError("The body must be a JSON object: {...}.", "not_an_object")
        self.check(data)
        return data

    def check(self, data: dict[str, Any]) -> None:
        """ValidationError if the object cannot be taken as it is."""
        refuse_unstorable(data)


def refuse_unstorable(data: Mapping[str, Any]) -> None:
    """ValidationError that names every field which the database could not keep; of an object, its own field."""
    unstorable = [
        f"{key}.{inner}" if inner else key
        for key, value in data.items()
        if _is_unstorable(key) or _is_unstorable(value)
        for inner in (_fields_at_fault(value) or [""])
    ]
    if unstorable:
        complaint = "Must not hold NUL characters, unpaired surrogates, or deep nesting."
        raise ValidationError({printable(key): [complaint] for key in unstorable}, "unstorable")


def _fields_at_fault(value: Any) -> list[str]:
    """Those of an object; none where it is one of their names, which could not be shown as a path."""
    if not isinstance(value, dict) or any(_is_unstorable(name) for name in value):
        return []
    return [name for name, each in value.items() if _is_unstorable(each)]


def printable(text: str) -> str:
    """The text as it can be shown: what UTF-8 cannot carry becomes an escape."""
    return text.replace("\0", "\\u0000").encode("utf-8", "backslashreplace").decode()


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can carry it: no unpaired surrogates."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(stream: IO[Any], declared: int) -> bytes:
    limit = settings.MAX_REQUEST_BYTES
    # The declared size first: nothing is read of a body that will not be taken.
    body: bytes = b"" if declared > limit else stream.read(limit + 1)
    if declared > limit or len(body) > limit:
        raise PayloadTooLarge(f"The body is larger than {limit} bytes.")
    return body


def _decode(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise ParseError("The body is not UTF-8.", "not_utf8") from error
    except RecursionError as error:
        raise ParseError("The body is nested too deeply.", "too_deep") from error
    except ValueError as error:  # besides JSONDecodeError: NaN, and integers of thousands of digits
        raise ParseError(f"The body is not valid JSON: {error}.", "not_json") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError("a number is too large")
    return number


def _is_unstorable(value: Any) -> bool:
    """NUL and lone surrogates (which PostgreSQL text refuses), or deeper than MAX_DEPTH."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for each in level:
            if isinstance(each, str):
                if "\0" in each or not is_unicode(each):
                    return True
            elif isinstance(each, dict):
                below += each.keys()
                below += each.values()
            elif isinstance(each, list):
                below += each
        if not below:
            return False
        level = below
    return True
