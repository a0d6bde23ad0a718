"""Objects in which a name that nobody knows is refused; elsewhere it is passed over."""

from typing import Any, ClassVar

from drf_spectacular.extensions import OpenApiSerializerExtension
from rest_framework import serializers

from accounts.api.parsing import printable


class KnownNames(serializers.Serializer[Any]):
    """For what would mean something else, or nothing, if a misspelt name in it were passed over."""

    #: What its fields are, and the code of a name that is none of them.
    of_what: ClassVar[str]
    code: ClassVar[str]

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict) and (names := sorted(data.keys() - self.fields.keys())):
            complaint = f"No such {self.of_what}; there are {', '.join(self.fields)}."
            raise serializers.ValidationError({printable(name): [complaint] for name in names}, self.code)
        return super().to_internal_value(data)


class KnownNamesSchema(OpenApiSerializerExtension):  # type: ignore[no-untyped-call]
    """Says so."""

    target_class = KnownNames
    match_subclasses = True

    def map_serializer(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        found = auto_schema._map_serializer(self.target, direction, bypass_extensions=True)  # noqa: SLF001 -- as its docs say
        return {**found, "additionalProperties": False}
