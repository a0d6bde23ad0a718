"""Templates over HTTP: kept by name, changed as new versions, tried out by a preview."""

from typing import Any, cast

from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.generics import ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.api.problems import Conflict, documented
from accounts.api.serializers import Text
from accounts.api.throttling import EnqueueThrottle
from tasks import headers
from tasks.api.fields import WholeNumber
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

PARTS = {
    "subject": "Welcome, {{ name }}",
    "html_body": "<p>Hello {{ name }},</p>{% for book in books %}<p>{{ book.title }}</p>{% endfor %}",
}
A_TEMPLATE = OpenApiExample("A template", {"name": "welcome", **PARTS}, request_only=True)
A_CHANGE = OpenApiExample("A change", PARTS, request_only=True)
A_CONTEXT = OpenApiExample(
    "A context", {"context": {"name": "Jane", "books": [{"title": "Emma"}]}}, request_only=True
)
_SINCE = {"version": 1, "created_at": "2030-01-31T09:30:00Z"}
_KEPT = {"id": 7, "name": "welcome", **_SINCE, "body": "", **PARTS}
MADE = OpenApiExample("Made", _KEPT, response_only=True, status_codes=["201"])
KEPT = OpenApiExample("A template", _KEPT, response_only=True, status_codes=["200"])
LISTED = OpenApiExample(
    "A template",
    {"id": 7, "name": "welcome", **_SINCE, "updated_at": "2030-01-31T09:30:00Z"},
    response_only=True,
)
LISTED_VERSION = OpenApiExample("A version", {**_SINCE, "subject": PARTS["subject"]}, response_only=True)
FILLED = OpenApiExample(
    "Filled in",
    {
        "version": 1,
        "subject": "Welcome, Jane",
        "body": "Hello Jane,\n\nEmma\n",
        "html_body": "<p>Hello Jane,</p><p>Emma</p>",
    },
    response_only=True,
)
NAME = OpenApiParameter("name", str, OpenApiParameter.PATH, description="its name; its id does as well")


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
            check(attrs)
        except PartError as error:
            raise serializers.ValidationError({error.part: [str(error)]}, error.code) from error
        return attrs


class NewTemplateSerializer(PartsSerializer):
    name = TemplateName()


class ListedTemplateSerializer(serializers.Serializer[MailTemplate]):
    id = serializers.IntegerField()
    name = serializers.CharField()
    version = serializers.IntegerField(help_text="the newest")
    created_at = serializers.DateTimeField()
    updated_at = serializers.DateTimeField()


class TemplateSerializer(serializers.Serializer[TemplateVersion]):
    id = serializers.IntegerField(source="template_id")
    name = serializers.CharField(source="template.name")
    version = serializers.IntegerField(source="number")
    subject = serializers.CharField()
    body = serializers.CharField(allow_blank=True)
    html_body = serializers.CharField(allow_blank=True)
    created_at = serializers.DateTimeField(help_text="of this version")


class PreviewSerializer(serializers.Serializer[Any]):
    context = TemplateContext(required=False, allow_null=True)  # type: ignore[assignment]
    version = WholeNumber(min_value=1, max_value=2**31 - 1, required=False)


class ListedVersionSerializer(serializers.Serializer[TemplateVersion]):
    version = serializers.IntegerField(source="number")
    subject = serializers.CharField()
    created_at = serializers.DateTimeField()


class RollbackSerializer(serializers.Serializer[Any]):
    version = WholeNumber(min_value=1, max_value=2**31 - 1, help_text="whose parts the new version takes")


class FilledSerializer(serializers.Serializer[Any]):
    version = serializers.IntegerField()
    subject = serializers.CharField()
    body = serializers.CharField()
    html_body = serializers.CharField(allow_blank=True)


class VersionFilterSerializer(serializers.Serializer[Any]):
    version = serializers.IntegerField(
        min_value=1, max_value=2**31 - 1, required=False, help_text="an older one; the newest if left out"
    )


class TemplatesView(ListAPIView[MailTemplate]):
    scopes = {"GET": "read", "POST": "manage"}
    serializer_class = ListedTemplateSerializer
    queryset = MailTemplate.objects.none()

    def get_queryset(self) -> QuerySet[MailTemplate]:
        return MailTemplate.objects.filter(owner=owner_of(self.request))

    @extend_schema(
        operation_id="templates_list",
        responses={200: ListedTemplateSerializer(many=True)} | documented(400, 401),
        examples=[LISTED],
        tags=["templates"],
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Your templates, newest first."""
        return super().get(request, *args, **kwargs)

    @extend_schema(
        operation_id="templates_make",
        request=NewTemplateSerializer,
        responses={201: TemplateSerializer} | documented(400, 401, 409, 413, 415),
        examples=[A_TEMPLATE, MADE],
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
    found = MailTemplate.objects.of(owner_of(request), name.replace("\0", ""))
    if found is None:
        raise NotFound
    return found


def _version(template: MailTemplate, number: int | None) -> TemplateVersion:
    found: TemplateVersion | None = template.at(number)
    if found is None:
        raise NotFound
    return found


def _changed(template: MailTemplate, parts: dict[str, str]) -> TemplateVersion:
    try:
        made: TemplateVersion = template.change(parts)
    except MailTemplate.DoesNotExist as error:  # deleted meanwhile
        raise NotFound from error
    return made


class TemplateView(APIView):
    scopes = {"GET": "read", "PUT": "manage", "DELETE": "manage"}

    @extend_schema(
        operation_id="templates_get",
        parameters=[NAME, VersionFilterSerializer],
        responses={200: TemplateSerializer} | documented(400, 401, 404),
        examples=[KEPT],
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
        parameters=[NAME],
        request=PartsSerializer,
        responses={200: TemplateSerializer} | documented(400, 401, 404, 413, 415),
        examples=[A_CHANGE, KEPT],
        tags=["templates"],
    )
    def put(self, request: Request, name: str) -> Response:
        """A new version, with all its parts. Mails from now on are made from it; those that are accepted stay."""
        template = _own(request, name)
        wanted = PartsSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        made = _changed(template, cast("dict[str, str]", wanted.validated_data))
        return Response(TemplateSerializer(made).data)

    @extend_schema(
        operation_id="templates_delete",
        parameters=[NAME],
        responses={204: OpenApiResponse(description="Deleted, with all its versions")} | documented(401, 404),
        tags=["templates"],
    )
    def delete(self, request: Request, name: str) -> Response:
        """Deletes a template with all its versions. Mails that are accepted stay."""
        _own(request, name).delete()
        return Response(status=204)


class VersionsView(ListAPIView[TemplateVersion]):
    scopes = {"GET": "read"}
    serializer_class = ListedVersionSerializer
    queryset = TemplateVersion.objects.none()

    def get_queryset(self) -> QuerySet[TemplateVersion]:
        return _own(self.request, self.kwargs["name"]).versions.all()

    @extend_schema(
        operation_id="templates_versions",
        parameters=[NAME],
        responses={200: ListedVersionSerializer(many=True)} | documented(400, 401, 404),
        examples=[LISTED_VERSION],
        tags=["templates"],
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """The versions of a template that are kept, newest first."""
        return super().get(request, *args, **kwargs)


class RollbackView(APIView):
    scopes = {"POST": "manage"}

    @extend_schema(
        operation_id="templates_rollback",
        parameters=[NAME],
        request=RollbackSerializer,
        responses={200: TemplateSerializer} | documented(400, 401, 404, 413, 415),
        examples=[OpenApiExample("To the first", {"version": 1}, request_only=True), KEPT],
        tags=["templates"],
    )
    def post(self, request: Request, name: str) -> Response:
        """A new version that says what an older one said."""
        template = _own(request, name)
        asked = RollbackSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        older = _version(template, asked.validated_data["version"])
        return Response(TemplateSerializer(_changed(template, older.parts())).data)


class PreviewView(APIView):
    scopes = {"POST": "read"}
    throttle_classes = [EnqueueThrottle]  # it takes as long as a mail

    @extend_schema(
        operation_id="templates_preview",
        parameters=[NAME],
        request=PreviewSerializer,
        responses={200: FilledSerializer} | documented(400, 401, 404, 413, 415),
        examples=[A_CONTEXT, FILLED],
        tags=["templates"],
    )
    def post(self, request: Request, name: str) -> Response:
        """What a mail from this template would say. Nothing is kept or sent."""
        template = _own(request, name)
        asked = PreviewSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        # Read past `context`, which is what a serializer calls something of its own.
        version = _version(template, asked.validated_data.get("version"))
        parts = filled_in(version, asked.validated_data.get("context") or {}, Allowance())
        said = {
            "version": version.number,
            "subject": parts.subject,
            "body": parts.text,
            "html_body": parts.html,
        }
        return Response(FilledSerializer(said).data)
