"""Users: register, log in, and what everybody may do with their own account."""

from typing import Any

from django.contrib.auth import authenticate
from django.contrib.auth.models import update_last_login
from django.db import IntegrityError, transaction
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, extend_schema
from rest_framework.exceptions import AuthenticationFailed, NotFound
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework_simplejwt.exceptions import TokenError

from accounts import login
from accounts.api.authentication import CHALLENGE, SingleUseToken, forget, owner_of
from accounts.api.problems import Conflict, documented
from accounts.api.relay import check_relay
from accounts.api.scopes import require_login
from accounts.api.serializers import (
    ChangeSerializer,
    LoggedInSerializer,
    LoginSerializer,
    RefreshSerializer,
    RegisteredSerializer,
    RegisterSerializer,
    TokensSerializer,
    UserSerializer,
    require_password_for_new_host,
)
from accounts.api.throttling import RegisterThrottle, TooManyRequests, announce
from accounts.caller import address_of
from accounts.models import SmtpAccount, User

EXAMPLE_RELAY = {
    "smtp_host": "smtp.example.com",
    "smtp_port": 587,
    "smtp-username": "ada@example.com",
}
EXAMPLE_REGISTER = {
    "email": "ada@example.com",
    "password": "correct horse battery",
    **EXAMPLE_RELAY,
    "smtp-password": "the relay's password",
}
EXAMPLE_USER = {
    "id": 1,
    "email": "ada@example.com",
    **EXAMPLE_RELAY,
    "smtp_security": "auto",
    "from_email": "ada@example.com",
    "max_connections": 10,
    "limits": {"per_second": 5, "per_minute": None, "per_hour": None, "per_day": 2000},
    "account": {
        "state": "active",
        "reason": "",
        "until": None,
        "history": [
            {
                "at": "2030-01-31T12:20:00Z",
                "what": "resumed",
                "reason": "The SMTP test succeeded.",
                "until": None,
            },
            {
                "at": "2030-01-31T12:10:00Z",
                "what": "paused",
                "reason": "535 5.7.8 wrong name or password",
                "until": "2030-01-31T12:25:00Z",
            },
        ],
    },
    "created_at": "2030-01-31T12:00:00Z",
}
#: A change of these has to prove itself to the relay again.
RELAY_FIELDS = {"host", "port", "username", "password", "security"}
LIMITS = {"per_second", "per_minute", "per_hour", "per_day"}


class OpenView(APIView):
    """Answers without a token; a stale one does no harm."""

    authentication_classes = []
    permission_classes = [AllowAny]

    def get_authenticate_header(self, request: Request) -> str:
        return CHALLENGE


class RegisterView(OpenView):
    throttle_classes = [RegisterThrottle]

    @extend_schema(
        operation_id="register",
        tags=["users"],
        request=RegisterSerializer,
        responses={201: RegisteredSerializer} | documented(400, 409, 413, 415, 503),
        examples=[
            OpenApiExample("own relay", EXAMPLE_REGISTER, request_only=True),
            OpenApiExample(
                "registered", {"id": 1, "email": "ada@example.com", **EXAMPLE_RELAY}, response_only=True
            ),
        ],
    )
    def post(self, request: Request) -> Response:
        """Registers a user with the relay their mail goes through. Without the four SMTP fields it is the
        default relay, where there is one. `smtp_username` and `smtp_password` are understood too.
        """
        wanted = RegisterSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        user = register(**wanted.validated_data)
        headers = {"Location": f"/api/v1/user/{user.pk}"}
        return Response(RegisteredSerializer(user).data, status=201, headers=headers)


def register(email: str, password: str, smtp: dict[str, Any]) -> User:
    """A new user with their relay; Conflict if the address is taken."""
    relay = SmtpAccount(**smtp)
    if relay.host:
        check_relay(relay.host, relay.port, relay.security)
    try:
        with transaction.atomic():
            user = User.objects.create_user(email, password)
            relay.owner = user
            relay.save()
    except IntegrityError as error:
        raise Conflict("This e-mail address is taken.", "email_taken") from error
    return user


class LoginView(OpenView):
    @extend_schema(
        operation_id="login",
        tags=["users"],
        request=LoginSerializer,
        responses={200: LoggedInSerializer} | documented(400, 401, 413, 415, 429, 503),
        examples=[
            OpenApiExample(
                "login", {"email": "ada@example.com", "password": "correct horse battery"}, request_only=True
            ),
            OpenApiExample("tokens", {"id": 1, "token": "eyJh…", "refresh": "eyJh…"}, response_only=True),
        ],
    )
    def post(self, request: Request) -> Response:
        """An access token for an hour, and a refresh token that works once. After some wrong passwords the next
        attempt has to wait, be it right or wrong.
        """
        given = LoginSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        email, address = given.validated_data["email"], address_of(request._request)  # noqa: SLF001 -- DRF's own name
        verdict = login.begin(email, address)
        if not verdict.granted:
            announce(self, verdict.standings)
            raise TooManyRequests(verdict.wait)
        # For an unknown address Django hashes all the same, so that the time tells nothing.
        user = authenticate(username=email, password=given.validated_data["password"])
        if not isinstance(user, User):
            login.failed(address)
            raise AuthenticationFailed("Wrong e-mail address or password.", "wrong_credentials")
        login.succeeded(email, address)
        update_last_login(User, user)
        return Response({"id": user.pk} | _tokens(user))


class RefreshView(OpenView):
    @extend_schema(
        operation_id="token_refresh",
        tags=["users"],
        request=RefreshSerializer,
        responses={200: TokensSerializer} | documented(400, 401, 413, 415, 503),
        examples=[
            OpenApiExample("refresh", {"refresh": "eyJh…"}, request_only=True),
            OpenApiExample("tokens", {"token": "eyJh…", "refresh": "eyJh…"}, response_only=True),
        ],
    )
    def post(self, request: Request) -> Response:
        """A new pair of tokens for a refresh token, which thereby is used up."""
        given = RefreshSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        try:
            old = SingleUseToken(given.validated_data["refresh"])
            user = owner_of(old)
            is_first = old.use()
        except TokenError:
            is_first = False
        if not is_first:
            raise AuthenticationFailed(
                "The refresh token is not valid, has expired, or was used before.", "token_not_valid"
            )
        return Response(_tokens(user))


def _tokens(user: User) -> dict[str, str]:
    refresh = SingleUseToken.for_user(user)
    return {"token": str(refresh.access_token), "refresh": str(refresh)}


class UserView(APIView):
    """One's own account; everybody else's does not exist."""

    scopes = {"GET": "read", "PATCH": "manage", "DELETE": "manage"}

    @extend_schema(
        operation_id="user_read",
        tags=["users"],
        responses={200: UserSerializer} | documented(401, 404, 503),
        examples=[OpenApiExample("user", EXAMPLE_USER, response_only=True)],
    )
    def get(self, request: Request, pk: int) -> Response:
        """The account as it is now, and whether its mail goes out."""
        return Response(UserSerializer(_own(request, pk)).data)

    @extend_schema(
        operation_id="user_change",
        tags=["users"],
        request=ChangeSerializer,
        responses={200: UserSerializer} | documented(400, 401, 404, 413, 415, 503),
        examples=[
            OpenApiExample("another port", {"smtp_port": 465}, request_only=True),
            OpenApiExample("user", EXAMPLE_USER, response_only=True),
        ],
    )
    def patch(self, request: Request, pk: int) -> Response:
        """Changes what is given. New SMTP settings make the account `unverified` and its mail is tried again;
        a new password, for which an API key is not enough, ends all tokens but no keys; an empty `smtp_host` goes
        back to the default relay. Another `smtp_host` takes `smtp-password` along, where one is stored: it is not
        told to another host.
        """
        wanted = ChangeSerializer(_own(request, pk), data=request.data, partial=True)
        wanted.is_valid(raise_exception=True)
        if "password" in wanted.validated_data:
            require_login(request, "change the password")
        _check_change(wanted.instance.smtp, wanted.validated_data["smtp"])
        _change(pk, **wanted.validated_data)
        forget(pk)
        return Response(UserSerializer(_own(request, pk)).data)

    @extend_schema(
        operation_id="user_close",
        tags=["users"],
        responses={204: OpenApiResponse(description="Closed")} | documented(401, 404, 503),
    )
    def delete(self, request: Request, pk: int) -> Response:
        """Closes the account for good: its tokens and API keys end, and what waits is cancelled."""
        _own(request, pk)
        with transaction.atomic():
            User.objects.select_for_update().get(pk=pk).close()
        forget(pk)
        return Response(status=204)


def _own(request: Request, pk: int) -> User:
    """Read anew: the user that authentication keeps may be some seconds old."""
    user = User.objects.select_related("smtp").filter(pk=pk, is_active=True).first()
    if user is None or user != request.user:
        raise NotFound("There is no such user.")
    return user


def _check_change(account: SmtpAccount, smtp: dict[str, Any]) -> None:
    host = smtp.get("host", account.host)
    if host and smtp.keys() & RELAY_FIELDS:
        check_relay(host, smtp.get("port", account.port), smtp.get("security", account.security))
        require_password_for_new_host(account, smtp)


@transaction.atomic
def _change(pk: int, smtp: dict[str, Any], password: str | None = None) -> None:
    # Locked, for the courier writes the account's state meanwhile.
    account = SmtpAccount.objects.select_for_update().get(pk=pk)
    for name, value in smtp.items():
        setattr(account, name, value)
    changed = {"sealed_password" if name == "password" else name for name in smtp}
    if smtp.keys() & LIMITS:
        account.limited_until = None
        changed.add("limited_until")
    if smtp.keys() & RELAY_FIELDS:
        account.reopen()
        changed.update(SmtpAccount.REOPENED)
    if changed:
        account.save(update_fields=changed)
    if password is not None:
        user = account.owner
        user.set_password(password)
        user.save(update_fields=["password"])
