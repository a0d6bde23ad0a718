"""The parts of a mail beyond its text, as they come over the wire.

Each is one field that looks inside only when it is given: nested serializers are built anew for every request.
"""

import json
import re
from binascii import a2b_base64
from collections.abc import Callable
from typing import Any

from django.core.exceptions import ValidationError as DjangoValidationError
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from accounts.addresses import checked_address
from accounts.api.serializers import Text
from tasks import headers
from tasks.message import Attachment

MOST_ATTACHMENTS = 10
#: Bytes of all attachments of a mail, decoded.
MOST_ATTACHED = 10 * 1024 * 1024
MOST_TAGS, LONGEST_TAG = 10, 64
#: Bytes of the metadata as JSON.
MOST_METADATA = 4_096

_MAILBOX = re.compile(r'(?P<name>"[^"]*" *|[^"<>]*)<(?P<address>[^<>]+)>')
_TAG = Text(max_length=LONGEST_TAG, validators=[headers.refuse_control_characters])
_HEADER_VALUE = Text(max_length=headers.LONGEST_VALUE, validators=[headers.refuse_control_characters])


class Mailbox(Text):
    """An address, or a name and an address in angle brackets; becomes both."""

    def to_internal_value(self, data: Any) -> tuple[str, str]:  # type: ignore[override]
        text = super().to_internal_value(data)
        found = _MAILBOX.fullmatch(text)
        name, address = (found["name"].strip().strip('"'), found["address"]) if found else ("", text)
        try:
            headers.refuse_control_characters(name)
            return name, checked_address(address)
        except DjangoValidationError as error:
            raise serializers.ValidationError(error.messages, code=error.code or "invalid") from error


@extend_schema_field(
    {
        "type": "object",
        "propertyNames": {"pattern": f"^[!-9;-~]{{1,{headers.LONGEST_NAME}}}$"},
        "additionalProperties": {"type": "string", "minLength": 1, "maxLength": headers.LONGEST_VALUE},
        "maxProperties": headers.MOST_HEADERS,
    }
)
class Headers(serializers.Field[dict[str, str], Any, Any, Any]):
    """Headers of the user's own, by name."""

    def to_internal_value(self, data: Any) -> dict[str, str]:
        given = _object(data, "Must be an object of names and values.")
        _at_most(headers.MOST_HEADERS, len(given), "headers")
        if len({name.lower() for name in given}) < len(given):
            raise serializers.ValidationError("A header is given twice.", code="duplicate_header")
        return _each(given, _header)


def _header(name: str, value: Any) -> str:
    headers.check_name(name)
    return str(_HEADER_VALUE.run_validation(value))


@extend_schema_field({"type": "string", "format": "byte"})
class Base64(serializers.Field[bytes, Any, Any, Any]):
    """Bytes. Not a CharField, whose validators go through megabytes letter by letter."""

    def to_internal_value(self, data: Any) -> bytes:
        try:
            return a2b_base64("".join(data.split()), strict_mode=True)  # line ends are usual in it
        except (AttributeError, ValueError) as error:  # binascii's own error is a ValueError
            raise serializers.ValidationError("Must be base64.", code="invalid_base64") from error


class AttachmentSerializer(serializers.Serializer[Attachment]):
    filename = Text(max_length=255, validators=[headers.check_file_name])
    content_type = Text(
        max_length=200,
        required=False,
        default="application/octet-stream",
        validators=[headers.check_content_type],
    )
    content = Base64(help_text="base64 (RFC 4648 section 4)")


@extend_schema_field(AttachmentSerializer(many=True))
class Attachments(serializers.Field[tuple[Attachment, ...], Any, Any, Any]):
    """Files to go along."""

    def to_internal_value(self, data: Any) -> tuple[Attachment, ...]:
        given = _list(data)
        _at_most(MOST_ATTACHMENTS, len(given), "attachments")
        wanted = AttachmentSerializer(data=given, many=True)
        wanted.is_valid(raise_exception=True)
        attached = tuple(Attachment(**one) for one in wanted.validated_data)
        if sum(len(one.content) for one in attached) > MOST_ATTACHED:
            raise serializers.ValidationError("All attachments together may have 10 MB.", code="too_large")
        return attached


@extend_schema_field(
    {
        "type": "array",
        "items": {"type": "string", "minLength": 1, "maxLength": LONGEST_TAG},
        "maxItems": MOST_TAGS,
    }
)
class Tags(serializers.Field[tuple[str, ...], Any, Any, Any]):
    """Words to find mails by, in the order given; a repeated one counts once."""

    def to_internal_value(self, data: Any) -> tuple[str, ...]:
        given = _list(data)
        _at_most(MOST_TAGS, len(given), "tags")
        checked = _each(
            {str(number): tag for number, tag in enumerate(given)}, lambda _, tag: _TAG.run_validation(tag)
        )
        return tuple(dict.fromkeys(checked.values()))


@extend_schema_field({"type": "object", "additionalProperties": {}})
class Metadata(serializers.Field[dict[str, Any], Any, Any, Any]):
    """An object of the user's own that is kept and answered, and looked at by nobody."""

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        given = _object(data, "Must be an object.")
        if len(json.dumps(given, ensure_ascii=False).encode()) > MOST_METADATA:
            raise serializers.ValidationError(f"May have {MOST_METADATA} bytes as JSON.", code="too_large")
        return given


def _object(data: Any, complaint: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise serializers.ValidationError(complaint, code="invalid")
    return data


def _list(data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise serializers.ValidationError("Must be a list.", code="invalid")
    return data


def _at_most(most: int, given: int, what: str) -> None:
    if given > most:
        raise serializers.ValidationError(f"No more than {most} {what}.", code="max_length")


def _each(given: dict[str, Any], check: Callable[[str, Any], str]) -> dict[str, str]:
    """All values checked, all complaints by name."""
    checked, errors = {}, {}
    for name, value in given.items():
        try:
            checked[name] = check(name, value)
        except serializers.ValidationError as error:
            errors[name] = error.detail
        except DjangoValidationError as error:
            errors[name] = serializers.ValidationError(error.messages, code=error.code or "invalid").detail
    if errors:
        raise serializers.ValidationError(errors)
    return checked
