"""Templates over HTTP: kept by name, changed as new versions, tried out by a preview."""

from typing import Any, cast

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.generics import ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.api.problems import Conflict, documented
from accounts.api.serializers import Text
from tasks.api.serializers import WholeNumber
from tasks.api.template_fields import TemplateContext, TemplateName, filled_in
from tasks.api.views import owner_of
from tasks.template_language import Allowance
from tasks.templates import (
    LONGEST_PART,
    LONGEST_SUBJECT,
    TEMPLATES_PER_OWNER,
    MailTemplate,
    NameTakenError,
    PartError,
    TemplateVersion,
    TooManyTemplatesError,
    check,
    make,
)

from tasks import headers  # isort: skip

PARTS = {
    "subject": "Welcome, {{ name }}",
    "html_body": "<p>Hello {{ name }},</p>{% for book in books %}<p>{{ book.title }}</p>{% endfor %}",
}
A_TEMPLATE = OpenApiExample("A template", {"name": "welcome", **PARTS}, request_only=True)
A_CHANGE = OpenApiExample("A change", PARTS, request_only=True)
A_CONTEXT = OpenApiExample(
    "A context", {"context": {"name": "Jane", "books": [{"title": "Emma"}]}}, request_only=True
)
VERSION = OpenApiParameter("version", int, description="an older version; the newest if left out")


class PartsSerializer(serializers.Serializer[Any]):
    subject = Text(
        max_length=LONGEST_SUBJECT, trim_whitespace=False, validators=[headers.refuse_control_characters]
    )
    body = Text(
        max_length=LONGEST_PART,
        trim_whitespace=False,
        required=False,
        allow_blank=True,
        help_text="the text; made from html_body if left out",
    )
    html_body = Text(max_length=LONGEST_PART, trim_whitespace=False, required=False, allow_blank=True)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if not (attrs.get("body") or attrs.get("html_body")):
            raise serializers.ValidationError({"body": ["Give body, html_body, or both."]}, "required")
        try:
            check({part: attrs.get(part, "") for part in ("subject", "body", "html_body")})
        except PartError as error:
            raise serializers.ValidationError({error.part: [str(error)]}, error.code) from error
        return attrs


class NewTemplateSerializer(PartsSerializer):
    name = TemplateName()


class ListedTemplateSerializer(serializers.Serializer[MailTemplate]):
    name = serializers.CharField()
    version = serializers.IntegerField(help_text="the newest")
    created_at = serializers.DateTimeField()
    updated_at = serializers.DateTimeField()


class TemplateSerializer(serializers.Serializer[TemplateVersion]):
    name = serializers.CharField(source="template.name")
    version = serializers.IntegerField(source="number")
    subject = serializers.CharField()
    body = serializers.CharField(allow_blank=True)
    html_body = serializers.CharField(allow_blank=True)
    created_at = serializers.DateTimeField(help_text="of this version")


class PreviewSerializer(serializers.Serializer[Any]):
    context = TemplateContext(required=False)  # type: ignore[assignment]
    version = WholeNumber(min_value=1, max_value=2**31 - 1, required=False)


class FilledSerializer(serializers.Serializer[Any]):
    version = serializers.IntegerField()
    subject = serializers.CharField()
    body = serializers.CharField()
    html_body = serializers.CharField(allow_blank=True)


class VersionFilterSerializer(serializers.Serializer[Any]):
    version = serializers.IntegerField(min_value=1, max_value=2**31 - 1, required=False)


class TemplatesView(ListAPIView[MailTemplate]):
    scopes = {"GET": "read", "POST": "manage"}
    serializer_class = ListedTemplateSerializer
    queryset = MailTemplate.objects.none()

    def get_queryset(self) -> QuerySet[MailTemplate]:
        return MailTemplate.objects.filter(owner=owner_of(self.request))

    @extend_schema(
        operation_id="templates_list",
        responses={200: ListedTemplateSerializer(many=True)} | documented(400, 401, 503),
        tags=["templates"],
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Your templates, newest first."""
        return super().get(request, *args, **kwargs)

    @extend_schema(
        operation_id="templates_make",
        request=NewTemplateSerializer,
        responses={201: TemplateSerializer} | documented(400, 401, 409, 413, 415, 503),
        examples=[A_TEMPLATE],
        tags=["templates"],
    )
    def post(self, request: Request) -> Response:
        """A new template, its version 1."""
        wanted = NewTemplateSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        name = wanted.validated_data.pop("name")
        try:
            made = make(owner_of(request), name, wanted.validated_data)
        except NameTakenError as error:
            raise Conflict("There is a template of this name; PUT changes it.", "name_taken") from error
        except TooManyTemplatesError as error:
            complaint = f"There are {TEMPLATES_PER_OWNER} templates already; delete one first."
            raise Conflict(complaint, "too_many_templates") from error
        return Response(TemplateSerializer(made).data, 201)


def _own(request: Request, name: str) -> MailTemplate:
    return get_object_or_404(MailTemplate, owner=owner_of(request), name=name.replace("\0", ""))


def _version(template: MailTemplate, number: int | None) -> TemplateVersion:
    return get_object_or_404(template.versions, number=number or template.version)


class TemplateView(APIView):
    scopes = {"GET": "read", "PUT": "manage", "DELETE": "manage"}

    @extend_schema(
        operation_id="templates_get",
        parameters=[VERSION],
        responses={200: TemplateSerializer} | documented(400, 401, 404, 503),
        tags=["templates"],
    )
    def get(self, request: Request, name: str) -> Response:
        """The newest version of a template, or an older one."""
        asked = VersionFilterSerializer(data=request.query_params.dict())
        asked.is_valid(raise_exception=True)
        found = _version(_own(request, name), asked.validated_data.get("version"))
        return Response(TemplateSerializer(found).data)

    @extend_schema(
        operation_id="templates_change",
        request=PartsSerializer,
        responses={200: TemplateSerializer} | documented(400, 401, 404, 413, 415, 503),
        examples=[A_CHANGE],
        tags=["templates"],
    )
    def put(self, request: Request, name: str) -> Response:
        """A new version, with all its parts. Mails from now on are made from it; those that are accepted stay."""
        template = _own(request, name)
        wanted = PartsSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        try:
            made = template.change(cast("dict[str, str]", wanted.validated_data))
        except MailTemplate.DoesNotExist as error:
            raise NotFound from error
        return Response(TemplateSerializer(made).data)

    @extend_schema(
        operation_id="templates_delete",
        responses={204: OpenApiResponse(description="Deleted, with all its versions")}
        | documented(401, 404, 503),
        tags=["templates"],
    )
    def delete(self, request: Request, name: str) -> Response:
        """Deletes a template with all its versions. Mails that are accepted stay."""
        _own(request, name).delete()
        return Response(status=204)


class PreviewView(APIView):
    scopes = {"POST": "read"}

    @extend_schema(
        operation_id="templates_preview",
        request=PreviewSerializer,
        responses={200: FilledSerializer} | documented(400, 401, 404, 413, 415, 503),
        examples=[A_CONTEXT],
        tags=["templates"],
    )
    def post(self, request: Request, name: str) -> Response:
        """What a mail from this template would say. Nothing is kept or sent."""
        template = _own(request, name)
        asked = PreviewSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        # Read past `context`, which is what a serializer calls something of its own.
        version = _version(template, asked.validated_data.get("version"))
        parts = filled_in(version, asked.validated_data.get("context", {}), Allowance())
        said = {
            "version": version.number,
            "subject": parts.subject,
            "body": parts.text,
            "html_body": parts.html,
        }
        return Response(FilledSerializer(said).data)
