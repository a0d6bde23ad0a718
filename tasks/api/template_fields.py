"""Fields of templates, and their complaints as the API makes them."""

import json
import re
from collections.abc import Mapping
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from accounts.api.serializers import Text
from tasks.template_language import Allowance
from tasks.templates import NAME, Filled, PartError, TemplateVersion

_REFERENCE = re.compile(rf"({NAME.pattern})(?:@([1-9][0-9]{{0,8}}))?")
#: Bytes of a context as JSON.
MOST_CONTEXT = 65_536


@extend_schema_field({"type": "string", "pattern": f"^{NAME.pattern}$"})
class TemplateName(Text):
    def to_internal_value(self, data: Any) -> str:
        name = super().to_internal_value(data)
        if not NAME.fullmatch(name):
            complaint = (
                "Up to 64 small letters, digits, dots, dashes and underscores; the first a letter or digit."
            )
            raise serializers.ValidationError(complaint, "invalid_name")
        return name


@extend_schema_field({"type": "string", "pattern": f"^{_REFERENCE.pattern}$"})
class TemplateReference(serializers.Field[tuple[str, int | None], Any, Any, Any]):
    """A name, or name@version; an id does as well. It becomes the two, with None for the newest version."""

    def to_internal_value(self, data: Any) -> tuple[str, int | None]:
        is_id = isinstance(data, int) and not isinstance(data, bool)
        found = _REFERENCE.fullmatch(str(data)) if is_id or isinstance(data, str) else None
        if found is None:
            raise serializers.ValidationError(
                "Must be the name of a template, or name@version.", "invalid_name"
            )
        return found[1], int(found[2]) if found[2] else None


@extend_schema_field({"type": "object", "additionalProperties": {}})
class TemplateContext(serializers.Field[dict[str, Any], Any, Any, Any]):
    """Plain JSON values by name."""

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise serializers.ValidationError("Must be an object.", code="invalid")
        if len(json.dumps(data, ensure_ascii=False).encode()) > MOST_CONTEXT:
            raise serializers.ValidationError(f"May have {MOST_CONTEXT:,} bytes as JSON.", code="too_large")
        return data


def filled_in(
    version: TemplateVersion,
    context: dict[str, Any],
    allowance: Allowance,
    instead: Mapping[str, str] | None = None,
) -> Filled:
    """ValidationError of the field `context` names the part, its line and what is wrong."""
    try:
        return version.fill_in(context, allowance, instead)
    except PartError as error:
        raise serializers.ValidationError({"context": [f"{error.part}: {error}"]}, error.code) from error
