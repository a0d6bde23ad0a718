"""What goes in and out of the webhooks' API, and its examples."""

from datetime import timedelta
from typing import Any

from drf_spectacular.utils import OpenApiExample, extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ValidationError

from accounts import guard
from accounts.api.keys import NOT_A_TIME
from accounts.api.serializers import Flag, Text
from mailqueue.webhooks import places
from mailqueue.webhooks.models import Delivery, Endpoint, State
from mailqueue.webhooks.places import BadUrlError, ForbiddenPlaceError, Place
from tasks.api.fields import WholeNumber, Word
from tasks.events import NAMES

#: Longer than a healthy resolver takes, short enough for a call that somebody waits for (seconds).
RESOLVE_SECONDS = 2.0
LONGEST_GRACE = timedelta(days=7)
GRACE = timedelta(hours=24)

_ENDPOINT: dict[str, Any] = {
    "id": 3,
    "url": "https://shop.example.com/hooks/mail",
    "events": ["task.sent", "task.failed"],
    "description": "the shop",
    "state": "active",
    "reason": "",
    "created_at": "2030-01-31T12:00:00Z",
    "failing_since": None,
    "old_secret_until": None,
}
_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 -- the specification's own example
_DELIVERY: dict[str, Any] = {
    "id": 92,
    "webhook_id": "evt_7401",
    "event": "task.sent",
    "state": "pending",
    "tries": 1,
    "next_attempt_at": "2030-01-31T12:05:06Z",
    "last_attempt_at": "2030-01-31T12:05:01Z",
    "code": 500,
    "error": "HTTP 500",
    "duration_ms": 84,
    "created_at": "2030-01-31T12:05:01Z",
    "finished_at": None,
}
AN_ENDPOINT = OpenApiExample("A webhook", _ENDPOINT, response_only=True)
A_NEW_ENDPOINT = OpenApiExample(
    "Two events",
    {"url": _ENDPOINT["url"], "events": _ENDPOINT["events"], "description": "the shop"},
    request_only=True,
)
A_SHOWN_SECRET = OpenApiExample(
    "A webhook with its secret", _ENDPOINT | {"secret": _SECRET}, response_only=True
)
A_DELIVERY = OpenApiExample("Tried once", _DELIVERY, response_only=True)
A_FRESH_DELIVERY = OpenApiExample(
    "To be sent",
    _DELIVERY | {"tries": 0, "last_attempt_at": None, "code": None, "error": "", "duration_ms": None},
    response_only=True,
    status_codes=["202"],
)


@extend_schema_field(
    {"type": "string", "format": "uri", "pattern": places.PATTERN, "maxLength": places.LONGEST}
)
class ReceiverUrl(Text):
    """Asks the resolver: call it outside any transaction. A host that does not resolve just now passes with https;
    it is judged again at each connection."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=places.LONGEST, trim_whitespace=False, **kwargs)

    def to_internal_value(self, data: Any) -> str:
        url = super().to_internal_value(data)
        try:
            place = Place.of(url)
        except BadUrlError as error:
            raise ValidationError(str(error), "invalid_url") from error
        try:
            self._check(place)
        except ForbiddenPlaceError as error:
            raise ValidationError(str(error), error.code) from error
        return url

    @staticmethod
    def _check(place: Place) -> None:
        try:
            places.resolve(place, RESOLVE_SECONDS)
        except guard.UnresolvableError:
            place.check([])


class EventNames(serializers.ListField):
    """Empty in the database means all, and is not to be had by an empty list."""

    def __init__(self, **kwargs: Any) -> None:
        names = serializers.ChoiceField(NAMES)
        super().__init__(child=names, allow_empty=False, min_length=1, max_length=len(NAMES), **kwargs)

    def to_internal_value(self, data: Any) -> list[str]:
        if isinstance(data, list) and len(data) > len(NAMES):
            self.fail("max_length", max_length=len(NAMES))
        chosen = set(super().to_internal_value(data))
        return [name for name in NAMES if name in chosen]


class EndpointSerializer(serializers.Serializer[Endpoint]):
    id = serializers.IntegerField()
    url = serializers.CharField()
    events = serializers.SerializerMethodField()
    description = serializers.CharField()
    state = serializers.ChoiceField(["active", "disabled"])
    reason = serializers.CharField(help_text="why it is disabled")
    created_at = serializers.DateTimeField()
    failing_since = serializers.DateTimeField(
        allow_null=True, help_text="every attempt has failed since then; after 5 days it is disabled"
    )
    old_secret_until = serializers.DateTimeField(
        allow_null=True, help_text="the secret before signs too until then"
    )

    @extend_schema_field(serializers.ListField(child=serializers.ChoiceField(NAMES)))
    def get_events(self, endpoint: Endpoint) -> list[str]:
        return endpoint.events or list(NAMES)


class ShownEndpointSerializer(EndpointSerializer):
    secret = serializers.CharField(help_text="shown this once; verify signatures with it")


class NewEndpointSerializer(serializers.Serializer[Any]):
    url = ReceiverUrl()
    events = EventNames(required=False, help_text="those you want to hear of; left out, all of them")
    description = Text(max_length=200, required=False, allow_blank=True)


class EndpointChangeSerializer(serializers.Serializer[Any]):
    url = ReceiverUrl(required=False)
    events = EventNames(required=False)
    description = Text(max_length=200, required=False, allow_blank=True)
    state = serializers.ChoiceField(["active", "disabled"], required=False)


class RotationSerializer(serializers.Serializer[Any]):
    grace_seconds = WholeNumber(
        min_value=0,
        max_value=int(LONGEST_GRACE.total_seconds()),
        required=False,
        help_text="for so long the old secret signs too: 24 hours if left out, 7 days at most",
    )


class DeliverySerializer(serializers.Serializer[Delivery]):
    id = serializers.IntegerField()
    webhook_id = serializers.CharField(source="message_id", help_text="the header `webhook-id` of every try")
    event = serializers.CharField()
    state = Word(State)
    tries = serializers.IntegerField(help_text="since it was queued or replayed")
    next_attempt_at = serializers.SerializerMethodField()
    last_attempt_at = serializers.DateTimeField(allow_null=True)
    code = serializers.IntegerField(allow_null=True, help_text="the receiver's status at the last try")
    error = serializers.CharField(help_text="what went wrong at the last try; empty if nothing did")
    duration_ms = serializers.IntegerField(allow_null=True)
    created_at = serializers.DateTimeField()
    finished_at = serializers.DateTimeField(allow_null=True)

    @extend_schema_field(serializers.DateTimeField(allow_null=True))
    def get_next_attempt_at(self, delivery: Delivery) -> str | None:
        if delivery.state != State.PENDING:
            return None
        return str(serializers.DateTimeField().to_representation(delivery.next_attempt_at))


class DeliveryFilterSerializer(serializers.Serializer[Any]):
    """The query of the list."""

    state = Word(State, required=False)


class ReplaySerializer(serializers.Serializer[Any]):
    since = serializers.DateTimeField(
        error_messages=NOT_A_TIME, help_text="what was queued then or later; 14 days are kept"
    )
    only_failed = Flag(required=False, help_text="not what was delivered")


class ReplayedSerializer(serializers.Serializer[Any]):
    replayed = serializers.IntegerField()
    next_since = serializers.DateTimeField(
        allow_null=True, help_text="null when all was seen; else ask again with it as `since`"
    )
