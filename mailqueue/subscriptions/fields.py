"""What goes in and out of the API of subscriptions and their contents, and its examples."""

from datetime import datetime
from typing import Any

from drf_spectacular.utils import OpenApiExample, extend_schema_field
from rest_framework import serializers

from accounts.api.serializers import Text
from mailqueue.kinds import MOST_RETRIES, OneWord, ToSomebody, TypedTask
from mailqueue.subscriptions import deeds
from mailqueue.subscriptions.models import (
    LONGEST_TYPE,
    ContentVersion,
    Occurrence,
    Outcome,
    Policy,
    State,
    Subscription,
)
from mailqueue.subscriptions.schedule import FREQUENCIES, LONGEST_CRON, BadScheduleError, Schedule, check
from tasks import headers
from tasks.api.fields import LONGEST_BODY, WholeNumber, Word

A_SUBSCRIBE = OpenApiExample(
    "A subscription",
    {
        "task": "newsletter",
        "type": "subscribe",
        "retries": 3,
        "payload": {"userId": "jane@example.com", "frequency": "@weekly", "content_type": "news"},
    },
    request_only=True,
)
A_CRON_LINE = OpenApiExample(
    "A subscription by a cron line",
    {
        "type": "subscribe",
        "payload": {
            "userId": "jane@example.com",
            "cron": "30 8 * * MON-FRI",
            "timezone": "Europe/Berlin",
            "policy": "skip",
            "content_type": "news",
        },
    },
    request_only=True,
)
AN_UNSUBSCRIBE = OpenApiExample(
    "Its end",
    {"type": "unsubscribe", "payload": {"userId": "jane@example.com", "content_type": "news"}},
    request_only=True,
)
SUBSCRIBED = OpenApiExample(
    "Subscribed",
    {"status": True, "msg": "Subscribed.", "task_id": 4712, "subscription_id": 12},
    response_only=True,
    status_codes=["202"],
)
_CONTENT = {"content_type": "news", "subject": "The week", "content": "<p>What was new this week.</p>"}
A_CONTENT = OpenApiExample("A content", _CONTENT, request_only=True)
_KEPT: dict[str, Any] = {"id": 5, "version": 1, **_CONTENT, "created_at": "2030-01-31T09:30:00Z"}
MADE_CONTENT = OpenApiExample("Made", _KEPT, response_only=True, status_codes=["201"])
KEPT_CONTENT = OpenApiExample("A content", _KEPT, response_only=True, status_codes=["200"])
_SUBSCRIPTION: dict[str, Any] = {
    "id": 12,
    "recipient": "jane@example.com",
    "content_type": "news",
    "task": "newsletter",
    "frequency": "@weekly",
    "cron": None,
    "timezone": "UTC",
    "window": "",
    "policy": "last",
    "retries": 3,
    "state": "active",
    "next_times": ["2030-02-03T00:00:00Z", "2030-02-10T00:00:00Z"],
    "created_at": "2030-01-31T09:30:00Z",
}
A_SUBSCRIPTION = OpenApiExample("A subscription", _SUBSCRIPTION, response_only=True)
A_WHOLE_SUBSCRIPTION = OpenApiExample(
    "A subscription",
    _SUBSCRIPTION | {"occurrences": [{"at": "2030-01-27T00:00:00Z", "outcome": "queued", "task_id": 4711}]},
    response_only=True,
)
A_CHANGE = OpenApiExample("Another time", {"cron": "0 9 * * *", "timezone": "Asia/Tokyo"}, request_only=True)


class ContentType(Text):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=LONGEST_TYPE, validators=[headers.refuse_control_characters], **kwargs)


class PlanSerializer(serializers.Serializer[Any]):
    """When mails are made; both `frequency` and `cron` would be one too many."""

    frequency = serializers.ChoiceField(
        list(FREQUENCIES), required=False, help_text="as cron has it: @daily is at midnight of `timezone`"
    )
    cron = Text(
        max_length=LONGEST_CRON,
        required=False,
        help_text="in place of `frequency`: five fields, such as 30 8 * * MON-FRI",
    )
    timezone = Text(max_length=64, required=False, help_text="of the IANA database; UTC if left out")
    window = Text(
        max_length=11,
        required=False,
        allow_blank=True,
        help_text="such as 08:00-18:00: what falls outside of it waits until it opens; empty for none",
    )
    policy = Word(
        Policy, required=False, help_text="of those that were missed, send the `last`; or `skip` them all"
    )

    def planned(self, given: dict[str, Any], before: Schedule) -> dict[str, Any]:
        """The columns that are given; ValidationError where the schedule does not come to anything."""
        if "frequency" in given and "cron" in given:
            raise serializers.ValidationError({"cron": ["Give frequency or cron."]}, "not_with_others")
        wanted = Schedule(
            given.get("frequency") or " ".join(given.get("cron", "").upper().split()) or before.line,
            given.get("timezone", before.zone),
            given.get("window", before.window),
        )
        try:
            check(wanted, deeds.now())
        except BadScheduleError as error:
            raise serializers.ValidationError({error.field: [str(error)]}, error.code) from error
        policy = {"policy": given["policy"]} if "policy" in given else {}
        return {"line": wanted.line, "zone": wanted.zone, "window": wanted.window} | policy


class SubscribePayload(PlanSerializer, ToSomebody):
    content_type = ContentType(help_text="what they subscribe to")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "frequency" not in attrs and "cron" not in attrs:
            raise serializers.ValidationError({"frequency": ["This field is required."]}, "required")
        columns = {"policy": Policy.LAST} | self.planned(attrs, Schedule(""))
        return {"userId": attrs["userId"], "content_type": attrs["content_type"], "columns": columns}


class SubscribeTask(TypedTask):
    """Mails of a content type, again and again. Subscribing again changes the subscription there is."""

    type = OneWord("subscribe")
    payload = SubscribePayload()


class UnsubscribePayload(ToSomebody):
    content_type = ContentType(required=False, help_text="left out, all of theirs")


class UnsubscribeTask(TypedTask):
    """The end of a recipient's subscriptions, and of their mails that still wait."""

    type = OneWord("unsubscribe")
    payload = UnsubscribePayload()


class OccurrenceSerializer(serializers.Serializer[Occurrence]):
    at = serializers.DateTimeField()
    outcome = Word(Outcome)
    task_id = serializers.IntegerField(allow_null=True)


class SubscriptionSerializer(serializers.Serializer[Subscription]):
    id = serializers.IntegerField()
    recipient = serializers.CharField()
    content_type = serializers.CharField()
    task = serializers.CharField(source="name", allow_blank=True)
    frequency = serializers.ChoiceField(list(FREQUENCIES), allow_null=True)
    cron = serializers.CharField(allow_null=True)
    timezone = serializers.CharField(source="zone")
    window = serializers.CharField(allow_blank=True)
    policy = Word(Policy)
    retries = serializers.SerializerMethodField()
    state = Word(State)
    next_times = serializers.SerializerMethodField(help_text="when the next five mails are made")
    created_at = serializers.DateTimeField()

    def get_retries(self, subscription: Subscription) -> int | None:
        return None if subscription.max_tries is None else subscription.max_tries - 1

    def get_next_times(self, subscription: Subscription) -> list[datetime]:
        shown = serializers.DateTimeField().to_representation
        return [shown(at) for at in subscription.next_times()]  # type: ignore[misc]


class WholeSubscriptionSerializer(SubscriptionSerializer):
    occurrences = serializers.SerializerMethodField(help_text="the last ten times at which it was due")

    @extend_schema_field(OccurrenceSerializer(many=True))
    def get_occurrences(self, subscription: Subscription) -> list[dict[str, Any]]:
        made = subscription.occurrences.order_by("-at")[:10]
        return [OccurrenceSerializer(each).data for each in made]


class SubscriptionFilterSerializer(serializers.Serializer[Any]):
    """The query of the list."""

    state = Word(State, required=False)
    recipient = Text(max_length=320, required=False)
    content_type = ContentType(required=False)


class SubscriptionChangeSerializer(PlanSerializer):
    retries = WholeNumber(min_value=0, max_value=MOST_RETRIES, required=False)
    state = serializers.ChoiceField(
        ["active", "paused"], required=False, help_text="as `/pause` and `/resume` do"
    )


class ContentSerializer(serializers.Serializer[Any]):
    content_type = ContentType(help_text="what subscriptions name")
    subject = Text(max_length=998, trim_whitespace=False, validators=[headers.refuse_control_characters])
    content = Text(
        max_length=LONGEST_BODY,
        trim_whitespace=False,
        help_text="plain text, or HTML, of which a plain text is made to go beside it",
    )


class ShownContentSerializer(serializers.Serializer[ContentVersion]):
    id = serializers.IntegerField(source="content_of_id")
    content_type = serializers.CharField(source="content_of.content_type")
    version = serializers.IntegerField(source="number")
    subject = serializers.CharField()
    content = serializers.CharField()
    created_at = serializers.DateTimeField(help_text="of this version")


class ContentFilterSerializer(serializers.Serializer[Any]):
    """The query of the list."""

    content_type = ContentType(required=False, help_text="this one alone")
