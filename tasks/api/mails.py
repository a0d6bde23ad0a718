"""The shapes in which mails are handed over."""

import re
from functools import lru_cache
from typing import Any

from django.core.exceptions import ValidationError as DjangoValidationError
from django.utils import timezone
from drf_spectacular.utils import PolymorphicProxySerializer, extend_schema_field
from rest_framework import serializers

from accounts.addresses import LONGEST, LONGEST_LOCAL, checked_address
from accounts.api.parsing import is_unicode
from accounts.api.serializers import Text
from accounts.models import User
from tasks import headers
from tasks.api.fields import LONGEST_BODY, NOT_A_TIME, MailAddress, WholeNumber, Word
from tasks.api.parts import Attachments, Headers, Mailbox, Metadata, Tags
from tasks.api.template_fields import TemplateContext, TemplateReference, filled_in
from tasks.states import Lane, OnUncertain
from tasks.submission import NewMail
from tasks.template_language import Allowance
from tasks.templates import PARTS, MailTemplate, TemplateVersion

#: Messages of a batch.
MOST_MESSAGES = 1_000


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


class InPlaceOfTheTemplates(Text):
    """A text of the mail's own, as it is; left out, empty or null it is the template's."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(
            trim_whitespace=False,
            required=False,
            allow_blank=True,
            allow_null=True,
            help_text="as it is, in place of the template's",
            **limits,
        )


class TemplatedMailSerializer(EnqueueSerializer):
    """A mail made from a template: its subject and its texts are the template's, as far as it brings none itself."""

    subject = InPlaceOfTheTemplates(max_length=998, validators=[headers.refuse_control_characters])
    body = InPlaceOfTheTemplates(max_length=LONGEST_BODY)
    html_body = InPlaceOfTheTemplates(max_length=LONGEST_BODY)
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
    if not address or len(recipient) > LONGEST or address.start("domain") > LONGEST_LOCAL + 1:
        return None
    if not _is_domain(address["domain"]):
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
