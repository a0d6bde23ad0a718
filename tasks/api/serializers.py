"""The shapes in which tasks are answered, looked for and changed."""

from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from accounts.api.known_names import KnownNames, KnownNamesSchema
from accounts.api.problems import BadField
from accounts.api.serializers import Flag, Text
from accounts.models import Security
from tasks.api.fields import NOT_A_TIME, MailAddress, Word
from tasks.api.parts import LONGEST_TAG
from tasks.models import Attempt, MailTask
from tasks.states import WAITING, CancelReason, Lane, OnUncertain, Outcome, Phase, Status
from tasks.waiting import explain


class AcceptedSerializer(serializers.Serializer[MailTask]):
    task_id = serializers.IntegerField(source="pk")
    status = Word(Status)


class WaitingSerializer(serializers.Serializer[Any]):
    reason = serializers.ChoiceField(
        [
            "scheduled",
            "retry",
            "account_paused",
            "account_limit",
            "domain_limit",
            "lane_paused",
            "backlog",
            "uncertain",
        ]
    )
    until = serializers.DateTimeField(allow_null=True)
    detail = serializers.CharField()
    tries_left = serializers.IntegerField(
        help_text="tries not used up, if they fail as the last one did: a full mailbox has 3, whatever `max_tries`"
    )


class HeaderSerializer(serializers.Serializer[Any]):
    name = serializers.CharField()
    value = serializers.CharField(allow_blank=True, help_text="decoded")


class PartSerializer(serializers.Serializer[Any]):
    content_type = serializers.CharField()
    filename = serializers.CharField(allow_null=True)
    size = serializers.IntegerField(help_text="bytes")
    text = serializers.CharField(allow_null=True, help_text="null for attachments")


class RenderedSerializer(serializers.Serializer[Any]):
    headers = HeaderSerializer(many=True)
    parts = PartSerializer(many=True)
    source = serializers.CharField(  # type: ignore[assignment]
        help_text="the mail as it would go over the wire (RFC 5322)"
    )


class RouteSerializer(serializers.Serializer[Any]):
    relay = serializers.ChoiceField(
        ["own", "default", "none"], help_text="none: a magic address, whose mail never leaves the service"
    )
    host = serializers.CharField(allow_null=True)
    port = serializers.IntegerField(allow_null=True)
    security = serializers.ChoiceField(Security.values, allow_null=True)


class PlanSerializer(serializers.Serializer[Any]):
    status = Word(Status)
    cancel_reason = Word(CancelReason, allow_null=True, help_text="where it would not be sent at all")
    due_at = serializers.DateTimeField(help_text="a worker may take it from then on")
    expires_at = serializers.DateTimeField(allow_null=True)
    lane = Word(Lane)
    max_tries = serializers.IntegerField()
    retry_after_seconds = serializers.ListField(
        child=serializers.IntegerField(), help_text="the wait before each further try, give or take a fifth"
    )
    on_uncertain = Word(OnUncertain)
    waiting = WaitingSerializer(allow_null=True)


class DryRunSerializer(serializers.Serializer[Any]):
    """What would become of the mail."""

    mail = RenderedSerializer()
    route = RouteSerializer()
    plan = PlanSerializer()


class ComplaintSerializer(serializers.Serializer[Any]):
    """What is wrong with one message of a batch; as in a problem."""

    code = serializers.CharField()
    detail = serializers.CharField()
    errors = BadField(many=True)  # type: ignore[assignment]


class BatchResultSerializer(serializers.Serializer[Any]):
    """Either `task_id` and `status`, or `error`."""

    task_id = serializers.IntegerField(required=False)
    status = Word(Status, required=False)
    error = ComplaintSerializer(required=False)


class BatchResultsSerializer(serializers.Serializer[Any]):
    results = BatchResultSerializer(many=True, help_text="one for each message, in the order of the messages")


class AttemptSerializer(serializers.Serializer[Attempt]):
    number = serializers.IntegerField(
        help_text="which try it was in its round: they begin anew when a person retries the mail; `at` orders them"
    )
    at = serializers.DateTimeField()
    outcome = Word(Outcome)
    phase = Word(Phase, allow_null=True)
    code = serializers.IntegerField(allow_null=True, help_text="the relay's reply code (RFC 5321)")
    reply = serializers.CharField()
    duration_ms = serializers.IntegerField()
    worker = serializers.CharField()


class TaskSerializer(AcceptedSerializer):
    """A task as it stands in a list."""

    cancel_reason = Word(CancelReason, allow_null=True)
    recipient_email = serializers.CharField(source="recipient")
    subject = serializers.CharField()
    lane = Word(Lane)
    try_count = serializers.IntegerField()
    max_tries = serializers.IntegerField()
    created_at = serializers.DateTimeField()
    scheduled_at = serializers.DateTimeField(allow_null=True)
    expires_at = serializers.DateTimeField(allow_null=True)
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)
    next_attempt_at = serializers.SerializerMethodField()
    waiting = serializers.SerializerMethodField()
    tags = serializers.ListField(source="tags.all", child=serializers.CharField())
    last_reply = serializers.CharField(
        help_text="the last thing a relay, or its absence, said about this mail"
    )

    @extend_schema_field(serializers.DateTimeField(allow_null=True))
    def get_next_attempt_at(self, task: MailTask) -> Any:
        if task.status not in WAITING:
            return None
        paused_until = self.context["account"].paused_until
        return self.fields["created_at"].to_representation(max(task.due_at, paused_until or task.due_at))

    @extend_schema_field(WaitingSerializer(allow_null=True))
    def get_waiting(self, task: MailTask) -> Any:
        waiting = explain(task, self.context["account"], timezone.now())
        return None if waiting is None else WaitingSerializer(waiting).data


class AttachedSerializer(serializers.Serializer[Any]):
    filename = serializers.CharField()
    content_type = serializers.CharField()
    size = serializers.IntegerField(help_text="bytes")


class UsedTemplateSerializer(serializers.Serializer[Any]):
    name = serializers.CharField()
    version = serializers.IntegerField()


class TaskDetailSerializer(TaskSerializer):
    """Everything about a task."""

    sender_email = serializers.CharField(source="sender")
    message_id = serializers.CharField()
    on_uncertain = Word(OnUncertain)
    from_name = serializers.CharField(source="details.from_name", read_only=True, default="")
    reply_to = serializers.CharField(source="details.reply_to", read_only=True, default="")
    headers = serializers.DictField(
        source="details.headers", child=serializers.CharField(), read_only=True, default=dict
    )
    attachments = AttachedSerializer(source="details.attachments", many=True, read_only=True, default=list)
    metadata = serializers.DictField(source="details.metadata", read_only=True, default=dict)
    template = UsedTemplateSerializer(
        source="details.template", read_only=True, allow_null=True, default=None, help_text="it was made from"
    )
    attempts = AttemptSerializer(many=True)


class QueueFilterSerializer(serializers.Serializer[Any]):
    """The query of a list."""

    status = Word(Status, required=False)
    lane = Word(Lane, required=False)
    recipient = MailAddress(required=False)
    tag = Text(required=False, max_length=LONGEST_TAG)
    created_after = serializers.DateTimeField(
        error_messages=NOT_A_TIME, required=False, help_text="accepted at this time or later"
    )
    created_before = serializers.DateTimeField(
        error_messages=NOT_A_TIME, required=False, help_text="accepted before this time"
    )
    q = Text(
        required=False, max_length=200, help_text="stands in the subject or in the recipient, in any case"
    )


class BulkFilterSerializer(KnownNames, QueueFilterSerializer):
    """Which mails; as in the lists. Every mail must be asked for by name, with `all`."""

    of_what = "filter"
    code = "unknown_filter"

    all = Flag(required=False, help_text="true for every mail, and then nothing else")

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        asked = super().to_internal_value(data)
        is_all = asked.pop("all", False)
        if not asked and not is_all:
            complaint = 'An empty filter would mean every mail: say {"all": true} for that.'
            raise serializers.ValidationError(complaint, "empty_filter")
        if asked and is_all:
            complaint = "Either `all`, or other filters."
            raise serializers.ValidationError({"all": [complaint]}, "not_with_others")
        return dict(asked)


class BulkFilterSchema(KnownNamesSchema):  # type: ignore[no-untyped-call]
    """An empty one is refused too."""

    target_class = BulkFilterSerializer
    match_subclasses = False
    priority = 1

    def map_serializer(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        return {**super().map_serializer(auto_schema, direction), "minProperties": 1}


class BulkSerializer(serializers.Serializer[Any]):
    action = serializers.ChoiceField(["retry", "cancel"])
    filter = BulkFilterSerializer()
    dry_run = Flag(required=False, default=False, help_text="only count them")


class BulkDoneSerializer(serializers.Serializer[Any]):
    matched = serializers.IntegerField(help_text="mails that the filter means and that allow the action")
    changed = serializers.IntegerField(help_text="of these, how many were changed; 0 in a dry run")
    complete = serializers.BooleanField(
        help_text="false if time was over before all was seen: call again, and it goes on"
    )


class RescheduleSerializer(serializers.Serializer[Any]):
    scheduled_at = serializers.DateTimeField(
        error_messages=NOT_A_TIME, help_text="the new time; without an offset it is UTC; past means now"
    )


class ResolveSerializer(serializers.Serializer[Any]):
    """What a person decides about an uncertain mail."""

    action = serializers.ChoiceField(
        ["accept", "retry"], help_text="take it as sent; or send it again, with a fresh count"
    )
