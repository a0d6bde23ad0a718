"""The list of suppressions over HTTP: look, put somebody on it, take somebody off."""

from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.generics import ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.addresses import checked_address
from accounts.api.problems import documented
from tasks import submission
from tasks.api.fields import MailAddress, Word
from tasks.api.views import owner_of
from tasks.suppressions import Cause, Suppression

A_SUPPRESSION = {
    "id": 12,
    "address": "jane@example.com",
    "reason": "hard_bounce",
    "reply": "550 5.1.1 No such user here",
    "task_id": 4711,
    "created_at": "2030-01-31T12:00:00Z",
}
BY_HAND = A_SUPPRESSION | {"reason": "manual", "reply": "", "task_id": None}


ENTRY = OpenApiParameter("entry", str, OpenApiParameter.PATH, description="the entry's id, or its address")


class SuppressionSerializer(serializers.Serializer[Suppression]):
    id = serializers.IntegerField()
    address = serializers.CharField(help_text="in small letters, its domain in A-labels")
    reason = Word(Cause)
    reply = serializers.CharField(help_text="what the relay said; empty where a person decided")
    task_id = serializers.IntegerField(allow_null=True, help_text="the mail that led to it")
    created_at = serializers.DateTimeField()


class NewSuppressionSerializer(serializers.Serializer[Any]):
    address = MailAddress(
        max_length=254,
        help_text="whom your mail is not to go to any more; `email` and `recipient_email` are taken too",
    )

    def to_internal_value(self, data: Any) -> Any:
        other = next((name for name in ("email", "recipient_email") if name in data), None)
        if other and "address" not in data:
            data = {**data, "address": data[other]}
        return super().to_internal_value(data)


class SuppressionFilterSerializer(serializers.Serializer[Any]):
    """The query of the list."""

    address = MailAddress(required=False, help_text="this one, in any case")
    reason = Word(Cause, required=False)


class SuppressionsView(ListAPIView[Suppression]):
    scopes = {"GET": "read", "POST": "manage"}
    serializer_class = SuppressionSerializer
    queryset = Suppression.objects.none()

    def get_queryset(self) -> QuerySet[Suppression]:
        asked = SuppressionFilterSerializer(data=self.request.query_params.dict())
        asked.is_valid(raise_exception=True)
        found = Suppression.objects.owned_by(owner_of(self.request))
        if "address" in asked.validated_data:
            found = found.of(asked.validated_data["address"])
        if "reason" in asked.validated_data:
            found = found.filter(reason=asked.validated_data["reason"])
        return found

    @extend_schema(
        operation_id="suppressions_list",
        parameters=[SuppressionFilterSerializer],
        responses={200: SuppressionSerializer(many=True)} | documented(400, 401),
        examples=[OpenApiExample("suppression", A_SUPPRESSION, response_only=True)],
        tags=["suppressions"],
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Whom your mail does not go to any more, newest first."""
        return super().get(request, *args, **kwargs)

    @extend_schema(
        operation_id="suppressions_add",
        request=NewSuppressionSerializer,
        responses={
            200: OpenApiResponse(SuppressionSerializer, description="The address was there before."),
            201: SuppressionSerializer,
        }
        | documented(400, 401, 413, 415),
        examples=[
            OpenApiExample("one address", {"address": "jane@example.com"}, request_only=True),
            OpenApiExample("added", BY_HAND, response_only=True, status_codes=["201"]),
            OpenApiExample("there before", A_SUPPRESSION, response_only=True, status_codes=["200"]),
        ],
        tags=["suppressions"],
    )
    def post(self, request: Request) -> Response:
        """Puts an address on the list: mail to it that waits is cancelled, and mail from now on as it is accepted."""
        wanted = NewSuppressionSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        found, is_new = submission.suppress(owner_of(request), wanted.validated_data["address"])
        return Response(SuppressionSerializer(found).data, 201 if is_new else 200)


def _wire(text: str) -> str:
    """An address as it stands in the list, its case apart; what is none stands nowhere."""
    try:
        return checked_address(text, international=True)
    except ValidationError:
        return ""


class SuppressionView(APIView):
    scopes = {"DELETE": "manage"}

    @extend_schema(
        operation_id="suppressions_remove",
        parameters=[ENTRY],
        responses={204: OpenApiResponse(description="Off the list")} | documented(401, 404),
        tags=["suppressions"],
    )
    def delete(self, request: Request, entry: str) -> Response:
        """Takes an address off the list: mail to it is sent again. What was cancelled meanwhile can be retried."""
        own = Suppression.objects.owned_by(owner_of(request))
        is_id = entry.isascii() and entry.isdecimal() and len(entry) < 19
        found = own.filter(pk=int(entry)) if is_id else own.of(_wire(entry))
        if not found.delete()[0]:
            raise NotFound("There is no such suppression.")
        return Response(status=204)
