"""Signing up in one call, for programs: the answer is a key, and mail goes through the default relay."""

from typing import Any, cast

from django.conf import settings
from django.db import transaction
from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.addresses import must_be_sendable
from accounts.api.authentication import forget
from accounts.api.problems import documented
from accounts.api.serializers import Password
from accounts.api.throttling import RegisterThrottle
from accounts.api.views import OpenView, register
from accounts.keys import ApiKey, Scope
from accounts.models import User


class SignupSerializer(serializers.Serializer[Any]):
    id = serializers.EmailField(
        max_length=254, validators=[must_be_sendable], help_text="the e-mail address; mail comes from it"
    )
    password = Password()

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if not settings.DEFAULT_SMTP_URL:
            complaint = "There is no default relay here: use /api/v1/register, with SMTP settings."
            raise serializers.ValidationError(complaint, "no_default_relay")
        return attrs


class SignedUpSerializer(serializers.Serializer[Any]):
    apiKey = serializers.CharField(help_text="with all scopes; shown this once")  # noqa: N815 -- the contract's name


class DeregisteredSerializer(serializers.Serializer[Any]):
    status = serializers.BooleanField()
    msg = serializers.CharField()


class SignupView(OpenView):
    throttle_classes = [RegisterThrottle]

    @extend_schema(
        operation_id="signup",
        tags=["users"],
        request=SignupSerializer,
        responses={201: SignedUpSerializer} | documented(400, 409, 413, 415, 503),
        examples=[
            OpenApiExample(
                "sign up", {"id": "ada@example.com", "password": "correct horse battery"}, request_only=True
            ),
            OpenApiExample("signed up", {"apiKey": "mq_1x8Zk0aQ…"}, response_only=True),
        ],
    )
    def post(self, request: Request) -> Response:
        """Registers on the default relay and answers an API key with all scopes. The password is for
        `/api/v1/login`, with the `id` as `email`.
        """
        wanted = SignupSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        email = wanted.validated_data["id"].lower()
        with transaction.atomic():
            user = register(email, wanted.validated_data["password"], {"from_email": email})
            _, secret = ApiKey.mint(user, "signup", Scope.values)
        return Response({"apiKey": secret}, 201, headers={"Location": f"/api/v1/user/{user.pk}"})


class DeregisterView(APIView):
    scopes = {"POST": "manage"}

    @extend_schema(
        operation_id="deregister",
        tags=["users"],
        request=None,
        responses={200: DeregisteredSerializer} | documented(401, 503),
        examples=[
            OpenApiExample(
                "closed", {"status": True, "msg": "ada@example.com is closed."}, response_only=True
            )
        ],
    )
    def post(self, request: Request) -> Response:
        """Closes your account for good: its tokens and API keys end, and what waits is cancelled."""
        user = cast(User, request.user)
        with transaction.atomic():
            User.objects.select_for_update().get(pk=user.pk).close()
        forget(user.pk)
        return Response({"status": True, "msg": f"{user.email} is closed."})
