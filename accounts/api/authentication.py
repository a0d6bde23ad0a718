"""Who is asking: bearer tokens and API keys, checked without a query where that is safe.

Each process keeps a user, and a key with its user, for up to KEEP_SECONDS, which saves a query per call and
still puts a closed account or a revoked key out within that time. A refusal is never taken from what was kept,
so new tokens and keys work at once.
"""

import re
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Self

import structlog
from django.db.models import QuerySet
from django.utils import timezone
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request
from rest_framework_simplejwt.authentication import JWTAuthentication
from rest_framework_simplejwt.exceptions import InvalidToken, TokenError
from rest_framework_simplejwt.settings import api_settings
from rest_framework_simplejwt.token_blacklist.models import BlacklistedToken, OutstandingToken
from rest_framework_simplejwt.tokens import BlacklistMixin, RefreshToken, Token
from rest_framework_simplejwt.utils import aware_utcnow, datetime_from_epoch, get_md5_hash_password

from accounts.keys import MARK, ApiKey, digest_of
from accounts.models import User

KEEP_SECONDS = 5.0
KEEP_USERS = 10_000
KEEP_TOKENS = 1_000  # about 2 KB each
CHALLENGE = 'Bearer realm="api"'
#: As the library makes them (uuid4).
_OWN_ID = re.compile(r"[0-9a-f]{32}")

_kept: dict[int, tuple[float, User]] = {}
_kept_keys: dict[str, tuple[float, ApiKey]] = {}  # by digest: the keys themselves are kept nowhere


class BearerAuthentication(JWTAuthentication):
    """`Authorization: Bearer <access token or API key>`. `request.user` comes with `smtp`, both up to 5 s old:
    read from them, but change only rows fetched anew. `request.auth` is the token, or the ApiKey.
    """

    def authenticate(self, request: Request) -> tuple[User, Token | ApiKey] | None:  # type: ignore[override]
        header = self.get_header(request)
        sent = self.get_raw_token(header) if header else None
        if sent is None:
            return None
        found: Token | ApiKey
        if sent.startswith(MARK.encode()):
            found = _key_behind(sent.decode("latin-1"))
            user = found.owner
            structlog.contextvars.bind_contextvars(user_id=user.pk, key_id=found.pk)
        else:
            found = self.get_validated_token(sent)
            user = self.get_user(found)
        return user, found

    def get_raw_token(self, header: bytes) -> bytes | None:
        """Any case of the scheme will do (RFC 9110, 11.1); the library's own reading takes one alone."""
        words = header.split()
        if not words or words[0].lower() != b"bearer":
            return None
        if len(words) != 2:
            raise AuthenticationFailed(
                "Authorization must be `Bearer`, a space, and a token.", "token_not_valid"
            )
        return words[1]

    def get_validated_token(self, raw_token: bytes) -> Token:
        try:
            token = _verified(raw_token)
            token.check_exp(current_time=aware_utcnow())
        except (InvalidToken, TokenError) as error:
            raise AuthenticationFailed(
                "The access token is not valid, or has expired.", "token_not_valid"
            ) from error
        return token

    def get_user(self, validated_token: Token) -> User:  # type: ignore[override]
        user = _recall(validated_token) or self._look_up(validated_token)
        structlog.contextvars.bind_contextvars(user_id=user.pk)
        return user

    def _look_up(self, token: Token) -> User:
        user = owner_of(token)
        if len(_kept) >= KEEP_USERS:
            _kept.clear()
        _kept[user.pk] = time.monotonic() + KEEP_SECONDS, user
        return user


@lru_cache(maxsize=KEEP_TOKENS)
def _verified(raw_token: bytes) -> Token:
    """These very bytes bore our signature, which stays so; whether they have expired is asked each time."""
    return JWTAuthentication().get_validated_token(raw_token)


def _key_behind(secret: str) -> ApiKey:
    """The key that is good now, with its owner; AuthenticationFailed if it is not."""
    digest = digest_of(secret)
    until, key = _kept_keys.get(digest, (0.0, None))
    if key is None or time.monotonic() >= until:
        key = _look_up_key(secret)
        if len(_kept_keys) >= KEEP_USERS:
            _kept_keys.clear()
        _kept_keys[digest] = time.monotonic() + KEEP_SECONDS, key
    if key.has_expired(timezone.now()):
        raise _no_key()
    return key


def _look_up_key(secret: str) -> ApiKey:
    key = ApiKey.objects.behind(secret)
    if key is None or key.has_expired(timezone.now()):
        raise _no_key()
    if not key.owner.is_active:
        raise _closed()
    ApiKey.objects.note_use(key)
    return key


def forget(user_id: int) -> None:
    """Makes this process ask the database next time; call after changing one, or one's keys."""
    _kept.pop(user_id, None)
    for digest, (_, key) in list(_kept_keys.items()):
        if key.owner_id == user_id:
            _kept_keys.pop(digest, None)


def ended(credentials: Iterable[Token | ApiKey]) -> list[Token | ApiKey]:
    """Those of them that let nobody in any more, by two queries for however many: long calls ask now and then."""
    given = list(credentials)
    keys = ApiKey.objects.select_related("owner").in_bulk(
        {each.pk for each in given if isinstance(each, ApiKey)}
    )
    users = User.objects.in_bulk({_user_id(each) for each in given if not isinstance(each, ApiKey)})
    return [each for each in given if not _is_good(each, keys, users)]


def _is_good(credential: Token | ApiKey, keys: dict[Any, ApiKey], users: dict[Any, User]) -> bool:
    if isinstance(credential, ApiKey):
        key = keys.get(credential.pk)
        return key is not None and key.owner.is_active and not key.has_expired(timezone.now())
    user = users.get(_user_id(credential))
    try:
        credential.check_exp(current_time=aware_utcnow())
    except TokenError:
        return False
    return user is not None and user.is_active and _fits(credential, user)


def _no_key() -> AuthenticationFailed:
    return AuthenticationFailed("The API key is unknown, was revoked, or has expired.", "key_not_valid")


def _closed() -> AuthenticationFailed:
    return AuthenticationFailed("This account does not exist or is closed.", "user_inactive")


def owner_of(token: Token) -> User:
    """The active user a token was made for, with its present password; AuthenticationFailed otherwise."""
    user = _with_account().filter(pk=_user_id(token)).first()
    if user is None or not user.is_active:
        raise _closed()
    if not _fits(token, user):
        raise AuthenticationFailed("The password was changed; log in again.", "password_changed")
    return user


def _with_account() -> QuerySet[User]:
    return User.objects.select_related("smtp")


def _recall(token: Token) -> User | None:
    until, user = _kept.get(_user_id(token), (0.0, None))
    return user if user is not None and time.monotonic() < until and _fits(token, user) else None


def _user_id(token: Token) -> int:
    """0, which nobody has, where the token names nobody: others may sign with the same key."""
    try:
        return int(token.get(api_settings.USER_ID_CLAIM) or 0)
    except (TypeError, ValueError, OverflowError):
        return 0


def _fits(token: Token, user: User) -> bool:
    return bool(token.get(api_settings.REVOKE_TOKEN_CLAIM) == get_md5_hash_password(user.password))


class SingleUseToken(RefreshToken):
    """A refresh token that is noted when it is used, not when it is made.

    So no live token is ever stored, and a login writes nothing but the token's own use.
    """

    @classmethod
    def for_user(cls, user: User) -> Self:  # type: ignore[override]
        # Past the mixin of the library, which would store the whole token.
        return super(BlacklistMixin, cls).for_user(user)

    def check_blacklist(self) -> None:
        """Also that there is something to note: the library takes the id for granted."""
        if not _OWN_ID.fullmatch(str(self.payload.get(api_settings.JTI_CLAIM))):
            raise TokenError("The token has no id of ours.")
        super().check_blacklist()

    def use(self) -> bool:
        """True for exactly one caller: a unique key of the database decides who is first. Its id is noted; the
        library would keep the token too, which is somebody's though it is used up.
        """
        noted, _ = OutstandingToken.objects.get_or_create(
            jti=self[api_settings.JTI_CLAIM],
            defaults={
                "user_id": _user_id(self),
                "created_at": self.current_time,
                "expires_at": datetime_from_epoch(self["exp"]),
            },
        )
        return BlacklistedToken.objects.get_or_create(token=noted)[1]
