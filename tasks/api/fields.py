"""Fields that tasks, templates and typed tasks share."""

from typing import Any

from django.core.exceptions import ValidationError as DjangoValidationError
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from accounts.addresses import LONGEST, checked_address
from accounts.api.serializers import Text

#: Characters of a text or HTML body.
LONGEST_BODY = 2_000_000
NOT_A_TIME: dict[str, Any] = {"invalid": "Must be a time as in ISO 8601, such as 2030-01-31T09:30:00Z."}


class Word(serializers.ChoiceField):
    """A word on the wire for a small integer in the ledger."""

    def __init__(self, choices: type[Any], **kwargs: Any) -> None:
        self.enum = choices
        super().__init__(choices=choices.labels, **kwargs)

    def to_internal_value(self, data: Any) -> Any:
        word = super().to_internal_value(data)
        return next(member for member in self.enum if member.label == word)

    def to_representation(self, value: Any) -> str:
        return str(self.enum(value).label)


class WholeNumber(serializers.IntegerField):
    """A JSON number without a fraction, which 5.0 is too; neither text nor true."""

    def to_internal_value(self, data: Any) -> int:
        if not isinstance(data, int | float) or isinstance(data, bool):
            self.fail("invalid")
        return int(super().to_internal_value(data))


@extend_schema_field({"type": "string", "format": "email", "maxLength": LONGEST})
class MailAddress(Text):
    """One address (RFC 5321, 6531), kept as it goes over the wire: its domain in A-labels."""

    def to_internal_value(self, data: Any) -> str:
        try:
            return checked_address(super().to_internal_value(data), international=True)
        except DjangoValidationError as error:
            raise serializers.ValidationError(error.messages, code="invalid_address") from error
