"""API keys over HTTP: list, make, revoke."""

from datetime import datetime
from typing import Any, cast

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.exceptions import AuthenticationFailed, NotFound, PermissionDenied, ValidationError
from rest_framework.generics import ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.api.authentication import forget
from accounts.api.problems import Conflict, documented
from accounts.api.serializers import Text
from accounts.keys import KEYS_PER_OWNER, ApiKey, Scope
from accounts.models import User

A_KEY = {
    "id": 7,
    "name": "shop",
    "prefix": "mq_1x8Zk0aQ",
    "scopes": ["send"],
    "created_at": "2030-01-31T12:00:00Z",
    "expires_at": None,
    "last_used_at": "2030-01-31T12:34:00Z",
}
NOT_A_TIME: dict[str, Any] = {"invalid": "Must be a time as in ISO 8601, such as 2030-01-31T09:30:00Z."}


class KeySerializer(serializers.Serializer[ApiKey]):
    id = serializers.IntegerField()
    name = serializers.CharField()
    prefix = serializers.CharField(help_text="how the key begins, to know it by")
    scopes = serializers.ListField(child=serializers.ChoiceField(Scope.choices))
    created_at = serializers.DateTimeField()
    expires_at = serializers.DateTimeField(allow_null=True)
    last_used_at = serializers.DateTimeField(allow_null=True, help_text="to the minute")


class MadeKeySerializer(KeySerializer):
    key = serializers.CharField(help_text="shown this once, and kept nowhere")


class NewKeySerializer(serializers.Serializer[Any]):
    name = Text(max_length=100)
    scopes = serializers.ListField(
        child=serializers.ChoiceField(Scope.choices), allow_empty=False, min_length=1, max_length=len(Scope)
    )
    expires_at = serializers.DateTimeField(
        error_messages=NOT_A_TIME,
        required=False,
        allow_null=True,
        help_text="good until then; left out, until it is revoked",
    )

    def validate_expires_at(self, value: datetime | None) -> datetime | None:
        if value is not None and value <= timezone.now():
            raise serializers.ValidationError("This time has passed.", "past")
        return value


class KeysView(ListAPIView[ApiKey]):
    scopes = {"GET": "read", "POST": "manage"}
    serializer_class = KeySerializer
    queryset = ApiKey.objects.none()

    def get_queryset(self) -> QuerySet[ApiKey]:
        return ApiKey.objects.filter(owner=cast(User, self.request.user))

    @extend_schema(
        operation_id="keys_list",
        tags=["keys"],
        responses={200: KeySerializer(many=True)} | documented(400, 401, 503),
        examples=[OpenApiExample("key", A_KEY, response_only=True)],
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Your API keys, newest first; of each only how it begins."""
        return super().get(request, *args, **kwargs)

    @extend_schema(
        operation_id="keys_make",
        tags=["keys"],
        request=NewKeySerializer,
        responses={201: MadeKeySerializer} | documented(400, 401, 409, 413, 415, 503),
        examples=[
            OpenApiExample("may send", {"name": "shop", "scopes": ["send"]}, request_only=True),
            OpenApiExample(
                "made",
                {**A_KEY, "last_used_at": None, "key": "mq_1x8Zk0aQ…"},
                response_only=True,
                status_codes=["201"],
            ),
        ],
    )
    def post(self, request: Request) -> Response:
        """A new API key. It is in this answer and never again; only its hash is stored. A key makes none that may do
        more, or lives longer, than itself.
        """
        wanted = NewKeySerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        if isinstance(request.auth, ApiKey):
            _keep_within(request.auth, wanted.validated_data)
        key, secret = _make(cast(User, request.user), **wanted.validated_data)
        return Response({**KeySerializer(key).data, "key": secret}, 201)


class KeyView(APIView):
    scopes = {"DELETE": "manage"}

    @extend_schema(
        operation_id="keys_revoke",
        tags=["keys"],
        responses={204: OpenApiResponse(description="Revoked")} | documented(401, 404, 503),
    )
    def delete(self, request: Request, pk: int) -> Response:
        """Revokes a key: it is refused from now on, by other processes of the service within 5 seconds."""
        owner = cast(User, request.user)
        gone, _ = ApiKey.objects.filter(owner=owner, pk=pk).delete()
        if not gone:
            raise NotFound("There is no such key.")
        forget(owner.pk)
        return Response(status=204)


def _keep_within(maker: ApiKey, wanted: dict[str, Any]) -> None:
    missing, expires_at = sorted(set(wanted["scopes"]) - set(maker.scopes)), wanted.get("expires_at")
    if missing:
        raise PermissionDenied(
            f"An API key cannot make one with a scope it has not: {', '.join(missing)}.", "insufficient_scope"
        )
    if maker.expires_at is not None and (expires_at is None or expires_at > maker.expires_at):
        complaint = f"Not after {maker.expires_at:%Y-%m-%dT%H:%M:%SZ}, when the key that makes it expires."
        raise ValidationError({"expires_at": [complaint]}, "outlives_its_maker")


@transaction.atomic
def _make(
    owner: User, name: str, scopes: list[str], expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    # One at a time, so that nobody gets past the limit, and none is made while the account closes.
    if not User.objects.select_for_update().filter(pk=owner.pk, is_active=True).exists():
        raise AuthenticationFailed("The account is closed.", "user_inactive")
    if ApiKey.objects.filter(owner=owner).count() >= KEYS_PER_OWNER:
        raise Conflict(f"There are {KEYS_PER_OWNER} keys already; revoke one first.", "too_many_keys")
    return ApiKey.mint(owner, name, scopes, expires_at)
