"""Secrets that others know, could guess, or get two things with. No message shows anything of one."""

import base64
import re
import zlib
from collections import defaultdict
from typing import Any
from urllib.parse import unquote, urlsplit

from django.conf import settings
from django.contrib.auth.password_validation import get_password_validators, validate_password
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004 -- Django's name for it
from django.core.exceptions import ValidationError

from accounts.models import User

#: What examples call their secrets. By chance a generated one has none of these in it.
_EXAMPLE = re.compile(
    r"insecure|(change|replace)[-_ ]?(me|this|it)|example|development|placeholder", re.IGNORECASE
)
_OBVIOUS = re.compile(
    r"(admin|mailqueue|postgres|redis|root|test|guest|flower|letmein|pass(word)?|secret([-_ ]?key)?)[\d!]*",
    re.IGNORECASE,
)
#: Bytes that are left of a key when its repetitions are taken out: 32 hexadecimal digits leave 27 at the least.
LEAST_SUBSTANCE = 24
_NOTHING = len(zlib.compress(b""))
#: For doors that the internet may reach, and that a person types a password at.
_VALIDATORS = get_password_validators(
    [
        {
            "NAME": "django.contrib.auth.password_validation.MinimumLengthValidator",
            "OPTIONS": {"min_length": 12},
        },
        {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
        {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
        {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    ]
)
_OF_ONE_PERSON = {"ADMIN_PASSWORD", "FLOWER_BASIC_AUTH"}
_NEW_KEY = 'python -c "import secrets; print(secrets.token_urlsafe(50))"'


def known_secrets(**_: Any) -> list[CheckMessage]:
    """Those of examples and of DEBUG: they stand in public."""
    known = [name for name, value in _all_secrets() if value and _is_known(value)]
    if not known:
        return []
    return [
        Error(
            f"{_and(known)}: a value that is no secret, as examples have it.",
            hint=f"Make a new one: {_NEW_KEY}; for CREDENTIAL_KEYS see docs/operations.md, Rotate keys.",
            id="mailqueue.E001",
        )
    ]


def weak_keys(**_: Any) -> list[CheckMessage]:
    weak = [
        name
        for name, value in (("SECRET_KEY", settings.SECRET_KEY), ("JWT_SIGNING_KEY", _jwt_key()))
        if len(zlib.compress(value.encode())) - _NOTHING < LEAST_SUBSTANCE
    ]
    if any(_is_typed(key) for key in settings.CREDENTIAL_KEYS):
        weak.append("CREDENTIAL_KEYS")
    if not weak:
        return []
    return [
        Warning(
            f"{_and(weak)}: too short, or the same over and over, and so to be guessed.",
            hint=f"Make a new one: {_NEW_KEY}; for CREDENTIAL_KEYS see docs/operations.md, Rotate keys.",
            id="mailqueue.W004",
        )
    ]


def shared_secrets(**_: Any) -> list[CheckMessage]:
    """Whoever learns one should not have the other. One person may have the admin and Flower with the same password,
    as `make run` has it."""
    names = defaultdict(list)
    for name, value in _all_secrets():
        if value:
            names[value].append(name)
    return [
        Warning(
            f"{_and(same)} have the same value: whoever learns one has the other.",
            hint="Give each a value of its own.",
            id="mailqueue.W005",
        )
        for same in names.values()
        if len(same) > 1 and set(same) != _OF_ONE_PERSON
    ]


def admin_password(**_: Any) -> list[CheckMessage]:
    password = settings.ADMIN_PASSWORD
    if not password or not (why := _why_weak(password, settings.ADMIN_EMAIL)):
        return []
    return [
        Warning(
            f"ADMIN_PASSWORD, with which `prepare` makes the superuser, is weak. {why}",
            hint="Set a longer one, and change the superuser's in the admin or with `manage.py changepassword`,"
            " for `prepare` leaves one that is there as it is.",
            id="mailqueue.W006",
        )
    ]


def flower_login(**_: Any) -> list[CheckMessage]:
    """Flower shows every job, and can end workers."""
    if not settings.FLOWER_BASIC_AUTH:
        why = "is not set: Flower would be open to whoever reaches it"
    else:
        logins = [login.partition(":") for login in settings.FLOWER_BASIC_AUTH.split(",")]
        weak = [f"{_why_weak(password, user) or 'No password.'}" for user, _colon, password in logins
                if not password or _why_weak(password, user)]  # fmt: skip
        if not weak:
            return []
        why = f"has a weak password. {weak[0]}"
    return [
        Warning(
            f"FLOWER_BASIC_AUTH {why}",
            hint="Set it to user:password, with a generated password; where no Flower runs, or another login stands"
            " in front of it, name this in SILENCED_SYSTEM_CHECKS.",
            id="mailqueue.W007",
        )
    ]


def _all_secrets() -> list[tuple[str, str]]:
    database = settings.DATABASES["default"].get("PASSWORD") or ""
    return [
        ("SECRET_KEY", settings.SECRET_KEY),
        ("JWT_SIGNING_KEY", _jwt_key()),
        *(("CREDENTIAL_KEYS", key) for key in settings.CREDENTIAL_KEYS),
        ("ADMIN_PASSWORD", settings.ADMIN_PASSWORD),
        ("the password in DATABASE_URL", database),
        ("the password in REDIS_URL", unquote(urlsplit(settings.REDIS_URL).password or "")),
        *(("FLOWER_BASIC_AUTH", login.partition(":")[2]) for login in settings.FLOWER_BASIC_AUTH.split(",")),
    ]


def _jwt_key() -> str:
    return str(settings.SIMPLE_JWT["SIGNING_KEY"])


def _is_known(value: str) -> bool:
    return value in settings.ONLY_FOR_DEBUG or bool(_OBVIOUS.fullmatch(value) or _EXAMPLE.search(value))


def _is_typed(key: str) -> bool:
    """32 random bytes are never all of them letters, digits and signs; what a person has put into base64 is. Nor do
    they repeat themselves."""
    raw = base64.urlsafe_b64decode(key)
    return (raw.isascii() and raw.decode().isprintable()) or len(set(raw)) < LEAST_SUBSTANCE // 2


def _why_weak(password: str, of: str) -> str:
    try:
        validate_password(password, User(email=of), _VALIDATORS)
    except ValidationError as error:
        return " ".join(error.messages)
    return ""


def _and(names: list[str]) -> str:
    return " and ".join(dict.fromkeys(names))


ALL = (known_secrets, weak_keys, shared_secrets, admin_password, flower_login)
