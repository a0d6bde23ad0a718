"""The shapes of tasks on the wire."""

import re
from functools import lru_cache
from typing import Any

from django.core.exceptions import ValidationError as DjangoValidationError
from django.utils import timezone
from drf_spectacular.extensions import OpenApiSerializerExtension
from drf_spectacular.utils import PolymorphicProxySerializer, extend_schema_field
from rest_framework import serializers

from accounts.addresses import LONGEST, checked_address
from accounts.api.parsing import is_unicode, printable
from accounts.api.problems import BadField
from accounts.api.serializers import Flag, Text
from accounts.models import Security, User
from tasks import headers
from tasks.api.parts import LONGEST_TAG, Attachments, Headers, Mailbox, Metadata, Tags
from tasks.api.template_fields import TemplateContext, TemplateReference, filled_in
from tasks.models import Attempt, MailTask
from tasks.states import WAITING, CancelReason, Lane, OnUncertain, Outcome, Phase, Status
from tasks.submission import NewMail
from tasks.template_language import Allowance
from tasks.templates import PARTS, MailTemplate, TemplateVersion
from tasks.waiting import explain

#: Messages of a batch.
MOST_MESSAGES = 1_000
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


class EnqueueSerializer(serializers.Serializer[NewMail]):
    """A mail to be sent."""

    recipient_email = MailAddress(max_length=254, help_text="one recipient")
    subject = Text(max_length=998, trim_whitespace=False, validators=[headers.refuse_control_characters])
    body = Text(max_length=LONGEST_BODY, trim_whitespace=False, help_text="the mail as plain text")
    html_body = Text(max_length=LONGEST_BODY, trim_whitespace=False, required=False, allow_blank=True)
    from_name = Text(
        max_length=200,
        required=False,
        allow_blank=True,
        validators=[headers.refuse_control_characters],
        help_text="who it is from, beside the account's from_email",
    )
    reply_to = Mailbox(
        max_length=500, required=False, help_text="support@example.com or Support <support@example.com>"
    )
    headers = Headers(required=False)
    attachments = Attachments(required=False)
    tags = Tags(required=False)
    metadata = Metadata(required=False)
    scheduled_at = serializers.DateTimeField(
        error_messages=NOT_A_TIME,
        required=False,
        allow_null=True,
        help_text="not before this time; without an offset it is UTC; past means now",
    )
    expires_at = serializers.DateTimeField(
        error_messages=NOT_A_TIME,
        required=False,
        allow_null=True,
        help_text="not after this time: what waits then is cancelled",
    )
    max_tries = WholeNumber(min_value=1, max_value=20, required=False)
    lane = Word(Lane, required=False)
    on_uncertain = Word(
        OnUncertain, required=False, help_text="what to do when the connection is lost after the final dot"
    )

    def validate_expires_at(self, value: Any) -> Any:
        if value is not None and value <= timezone.now():
            raise serializers.ValidationError("Must be in the future.", code="past")
        return value

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        scheduled, expires = attrs.get("scheduled_at"), attrs.get("expires_at")
        if scheduled and expires and expires <= scheduled:
            raise serializers.ValidationError(
                {"expires_at": "Must be after scheduled_at."}, code="before_scheduled_at"
            )
        if "reply_to" in attrs and "reply-to" in map(str.lower, attrs.get("headers", ())):
            raise serializers.ValidationError(
                {"headers": "Reply-To is given twice."}, code="duplicate_header"
            )
        return attrs

    def mail(self, data: Any, owner: User, allowance: Allowance | None = None) -> NewMail:
        """What is asked for; ValidationError names every field that is wrong. What cannot be stored is not let in by
        the parser, nor by whoever reads a batch, whose mails share an `allowance` for their templates."""
        if isinstance(data, dict) and data.get("template") is not None:
            return _FROM_TEMPLATE.rendered_mail(data, owner, allowance or Allowance())
        if isinstance(data, dict) and data.get("context"):
            # Passed over, it would be a mail that greets {{ name }}.
            raise serializers.ValidationError({"template": ["A context is for a template."]}, "required")
        return plain_mail(data) or self._any_mail(data)

    def _any_mail(self, data: Any) -> NewMail:
        asked = self.run_validation(data)
        return NewMail(
            recipient=asked.pop("recipient_email"),
            text=asked.pop("body"),
            html=asked.pop("html_body", ""),
            **asked,
        )


_INSTEAD = "as it is, in place of the template's"


class TemplatedMailSerializer(EnqueueSerializer):
    """A mail made from a template: its subject and its texts are the template's, as far as it brings none itself."""

    subject = Text(
        max_length=998,
        trim_whitespace=False,
        required=False,
        allow_blank=True,
        allow_null=True,
        validators=[headers.refuse_control_characters],
        help_text=_INSTEAD,
    )
    body = Text(
        max_length=LONGEST_BODY,
        trim_whitespace=False,
        required=False,
        allow_blank=True,
        allow_null=True,
        help_text=_INSTEAD,
    )
    html_body = Text(
        max_length=LONGEST_BODY,
        trim_whitespace=False,
        required=False,
        allow_blank=True,
        allow_null=True,
        help_text=_INSTEAD,
    )
    template = TemplateReference(
        help_text="the name of one of your templates, for its newest version; or name@version"
    )
    context = TemplateContext(  # type: ignore[assignment]
        required=False, allow_null=True, help_text="what the template is filled in with"
    )

    def rendered_mail(self, data: Any, owner: User, allowance: Allowance) -> NewMail:
        asked = self.run_validation(data)
        reference, context = asked.pop("template"), asked.pop("context", None) or {}
        if reference not in allowance.read:
            allowance.read[reference] = _named(owner, *reference)
        template, found = allowance.read[reference]
        if found is None:
            complaint = "There is no such version of it." if template else "There is no such template."
            raise serializers.ValidationError({"template": [complaint]}, "unknown_template")
        parts = filled_in(found, context, allowance, {part: asked.pop(part, None) for part in PARTS})
        return NewMail(
            recipient=asked.pop("recipient_email"),
            subject=parts.subject,
            text=parts.text,
            html=parts.html,
            template=(template.name, found.number),
            **asked,
        )


_FROM_TEMPLATE = TemplatedMailSerializer()


def _named(owner: User, name: str, number: int | None) -> tuple[MailTemplate | None, TemplateVersion | None]:
    template = MailTemplate.objects.of(owner, name)
    return template, template.at(number) if template else None


#: Some addresses of which MailAddress would say the same, their domain apart.
_PLAIN_ADDRESS = re.compile(
    r"[A-Za-z0-9_+-]{1,64}(?:\.[A-Za-z0-9_+-]{1,64}){0,3}@(?P<domain>[a-z0-9.-]{1,60})"
)
_PLAIN_SUBJECT = re.compile(r"[ -~]{1,998}")
_PLAIN_FIELDS = {"recipient_email", "subject", "body"}, {"recipient_email", "subject", "body", "html_body"}


def plain_mail(data: Any) -> NewMail | None:
    """The mail that most are, read in a tenth of the serializer's time, of which a thousand in a batch would be half.
    None where it takes the serializer to say what is wrong, or to read it."""
    if not isinstance(data, dict) or data.keys() not in _PLAIN_FIELDS:
        return None
    recipient, subject, text, html = (
        data["recipient_email"], data["subject"], data["body"], data.get("html_body", ""),
    )  # fmt: skip
    if not (type(recipient) is type(subject) is type(text) is type(html) is str):
        return None
    address = _PLAIN_ADDRESS.fullmatch(recipient)
    if not address or len(recipient) > LONGEST or not _is_domain(address["domain"]):
        return None
    if not _PLAIN_SUBJECT.fullmatch(subject) or not 0 < len(text) <= LONGEST_BODY or len(html) > LONGEST_BODY:
        return None
    if "\0" in text or "\0" in html or not (is_unicode(text) and is_unicode(html)):
        return None
    return NewMail(recipient=recipient, subject=subject, text=text, html=html)


@lru_cache(maxsize=1_000)
def _is_domain(domain: str) -> bool:
    try:
        return checked_address(f"x@{domain}") == f"x@{domain}"
    except DjangoValidationError:
        return False


class ResolveSerializer(serializers.Serializer[Any]):
    """What a person decides about an uncertain mail."""

    action = serializers.ChoiceField(
        ["accept", "retry"], help_text="take it as sent; or send it again, with a fresh count"
    )


#: For the schema: one or the other.
ANY_MAIL = PolymorphicProxySerializer(
    "AnyMail", [EnqueueSerializer, TemplatedMailSerializer], resource_type_field_name=None
)


@extend_schema_field(
    PolymorphicProxySerializer(
        "AnyMail", [EnqueueSerializer, TemplatedMailSerializer], resource_type_field_name=None, many=True
    )
)
class Messages(serializers.ListField):
    """Read one by one, by whoever takes the batch."""


class BatchSerializer(serializers.Serializer[Any]):
    """For the schema: each message is read by itself, so that a bad one does not spoil the others."""

    messages = Messages(child=EnqueueSerializer(), min_length=1, max_length=MOST_MESSAGES)


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
    tries_left = serializers.IntegerField()


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
    number = serializers.IntegerField()
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


class BulkFilterSerializer(QueueFilterSerializer):
    """Which mails; as in the lists. Every mail must be asked for by name, with `all`."""

    all = Flag(required=False, help_text="true for every mail, and then nothing else")

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        # A misspelt name that is passed over would mean more mails than were meant.
        unknown = sorted(set(data) - set(self.fields)) if isinstance(data, dict) else []
        if unknown:
            known = ", ".join(self.fields)
            raise serializers.ValidationError(
                {printable(name): [f"No such filter; there are {known}."] for name in unknown},
                "unknown_filter",
            )
        asked = super().to_internal_value(data)
        is_all = asked.pop("all", False)
        if not asked and not is_all:
            complaint = 'An empty filter would mean every mail: say {"all": true} for that.'
            raise serializers.ValidationError(complaint, "empty_filter")
        if asked and is_all:
            complaint = "Either `all`, or other filters."
            raise serializers.ValidationError({"all": [complaint]}, "not_with_others")
        return dict(asked)


class BulkFilterSchema(OpenApiSerializerExtension):  # type: ignore[no-untyped-call]
    """Here, unlike elsewhere, a name that nobody knows is refused."""

    target_class = BulkFilterSerializer

    def map_serializer(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        found = auto_schema._map_serializer(self.target, direction, bypass_extensions=True)  # noqa: SLF001 -- as its docs say
        return {**found, "additionalProperties": False, "minProperties": 1}


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
