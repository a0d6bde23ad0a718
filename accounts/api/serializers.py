"""The shapes of users on the wire, hyphenated names included."""

import re
from typing import Any

from django.conf import settings
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError as DjangoValidationError
from django.core.validators import RegexValidator
from django.utils.ipv6 import is_valid_ipv6_address
from rest_framework import serializers
from rest_framework.fields import Field
from rest_framework.validators import ProhibitSurrogateCharactersValidator

from accounts.addresses import checked_address, must_be_sendable
from accounts.api.known_names import KnownNames
from accounts.api.parsing import is_unicode
from accounts.models import AccountChange, AccountEvent, AccountState, Security, SmtpAccount, User

#: The contract's own spelling; the form with underscores is taken too.
HYPHENATED = {"smtp_username": "smtp-username", "smtp_password": "smtp-password"}
#: Register wants all of these or none.
RELAY = {"smtp_host": "host", "smtp_port": "port", "smtp-username": "username", "smtp-password": "password"}

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9.])?")
_is_printable = RegexValidator(r"\A[^\x00-\x1f\x7f]*\Z", "Must not hold control characters.")


def _is_host(host: str) -> None:
    """A name or an address, also in its odd forms (2130706433, 0x7f.1): the guard judges what they mean."""
    if not (_NAME.fullmatch(host) or (":" in host and is_valid_ipv6_address(host))):
        raise serializers.ValidationError("Not the name or address of a host.", "invalid")


class _NoSurrogates(ProhibitSurrogateCharactersValidator):
    """The library's looks at each character in Python: 20 ms for a megabyte."""

    def __call__(self, value: Any) -> None:
        if not is_unicode(str(value)):  # a Mailbox is a pair by now
            super().__call__(value)


class Text(serializers.CharField):
    """A string and nothing else: a number is a mistake, not a text."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.validators = [
            _NoSurrogates() if isinstance(one, ProhibitSurrogateCharactersValidator) else one
            for one in self.validators
        ]

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return str(super().to_internal_value(data))


class Flag(serializers.BooleanField):
    """true or false in JSON; not "off" nor 0, of which one cannot be sure what was meant."""

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.fail("invalid", input=data)
        return data


class Password(Text):
    """Checked by AUTH_PASSWORD_VALIDATORS, never answered."""

    def __init__(self, **kwargs: Any) -> None:
        # The shortest length is for the schema: the validators below are asked first.
        super().__init__(min_length=8, max_length=256, trim_whitespace=False, write_only=True, **kwargs)

    def to_internal_value(self, data: Any) -> str:
        password = super().to_internal_value(data)
        try:
            validate_password(password)
        except DjangoValidationError as error:
            raise serializers.ValidationError(error.messages, "weak_password") from error
        return password


class HyphenatedSerializer(serializers.Serializer[Any]):
    def get_fields(self) -> dict[str, Field[Any, Any, Any, Any]]:
        return {HYPHENATED.get(name, name): field for name, field in super().get_fields().items()}

    def to_internal_value(self, data: Any) -> Any:
        underscored = {HYPHENATED[name]: value for name, value in data.items() if name in HYPHENATED}
        return super().to_internal_value(underscored | data)


class RelaySerializer(HyphenatedSerializer):
    """The settings of a relay, as far as given; `validated_data["smtp"]` names them as SmtpAccount does."""

    smtp_host = Text(source="smtp.host", max_length=253, required=False, validators=[_is_host])
    smtp_port = serializers.IntegerField(source="smtp.port", min_value=1, max_value=65535, required=False)
    smtp_username = Text(
        source="smtp.username", max_length=254, allow_blank=True, required=False, validators=[_is_printable]
    )
    smtp_password = Text(
        source="smtp.password",
        max_length=1000,
        allow_blank=True,
        required=False,
        trim_whitespace=False,
        write_only=True,
    )
    smtp_security = serializers.ChoiceField(source="smtp.security", choices=Security.choices, required=False)
    from_email = serializers.EmailField(
        source="smtp.from_email", max_length=254, required=False, validators=[must_be_sendable]
    )


class RegisterSerializer(RelaySerializer):
    # Unless told otherwise, mail comes from this address.
    email = serializers.EmailField(max_length=254, validators=[must_be_sendable])
    password = Password()

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        smtp = attrs.setdefault("smtp", {})
        email = attrs["email"] = attrs["email"].lower()
        if settings.DEFAULT_SMTP_URL and not smtp.keys() & RELAY.values():
            smtp.pop("security", None)
        else:
            _require_whole_relay(smtp)
            _require_username_with_password(smtp["username"], smtp["password"])
        smtp.setdefault("from_email", _first_address(smtp.get("username", ""), email))
        return attrs


class LimitsSerializer(KnownNames):
    """How many mails the account may send within any such time; null is no limit. Mail beyond it waits."""

    of_what = "limit"
    code = "unknown_limit"

    per_second = serializers.IntegerField(min_value=1, max_value=1_000_000, required=False, allow_null=True)
    per_minute = serializers.IntegerField(min_value=1, max_value=1_000_000, required=False, allow_null=True)
    per_hour = serializers.IntegerField(min_value=1, max_value=10_000_000, required=False, allow_null=True)
    per_day = serializers.IntegerField(min_value=1, max_value=100_000_000, required=False, allow_null=True)


class ChangeSerializer(RelaySerializer):
    """What PATCH may change; an empty host goes back to the default relay."""

    smtp_host = Text(
        source="smtp.host",
        max_length=253,
        required=False,
        allow_blank=True,
        allow_null=True,
        validators=[_is_host],
    )
    max_connections = serializers.IntegerField(
        source="smtp.max_connections", min_value=1, max_value=100, required=False
    )
    limits = LimitsSerializer(required=False)
    password = Password(required=False)

    instance: User

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        smtp, account = attrs.setdefault("smtp", {}), self.instance.smtp
        smtp |= attrs.pop("limits", {})
        if not smtp.get("host", "unchanged"):
            smtp |= _default_relay()
        elif account.uses_default_relay and smtp.keys() & RELAY.values():
            _require_whole_relay(smtp)
        _require_username_with_password(
            smtp.get("username", account.username), smtp.get("password", account.sealed_password)
        )
        return attrs


def _default_relay() -> dict[str, Any]:
    if not settings.DEFAULT_SMTP_URL:
        raise serializers.ValidationError({"smtp_host": ["There is no default relay here."]}, "required")
    return {"host": "", "port": 587, "username": "", "password": "", "security": Security.AUTO}


def _require_whole_relay(smtp: dict[str, Any]) -> None:
    missing = [name for name, key in RELAY.items() if key not in smtp]
    if missing:
        raise serializers.ValidationError({name: ["This field is required."] for name in missing}, "required")


def _require_username_with_password(username: str, password: str) -> None:
    """Both empty is a relay that asks for neither."""
    if bool(username) != bool(password):
        name = "smtp-password" if username else "smtp-username"
        complaint = "smtp-username and smtp-password go together; leave both empty for a relay without login."
        raise serializers.ValidationError({name: [complaint]}, "required")


def require_password_for_new_host(account: SmtpAccount, smtp: dict[str, Any]) -> None:
    """Else a stolen token could have the stored password told to a host of the thief's."""
    is_new = smtp.get("host", account.host).lower() != account.host.lower()
    if is_new and account.sealed_password and "password" not in smtp:
        complaint = (
            "The stored password is not told to another host: give smtp-password with a new smtp_host."
        )
        raise serializers.ValidationError({"smtp-password": [complaint]}, "required")


def _first_address(username: str, email: str) -> str:
    try:
        checked_address(username)
    except DjangoValidationError:
        return email
    return username


class RegisteredSerializer(HyphenatedSerializer):
    """The answer to register. The relay's fields are null on the default relay."""

    id = serializers.IntegerField()
    email = serializers.EmailField()
    smtp_host = serializers.CharField(source="smtp.host", allow_null=True)
    smtp_port = serializers.IntegerField(source="smtp.port", allow_null=True)
    smtp_username = serializers.CharField(source="smtp.username", allow_null=True)

    def to_representation(self, instance: User) -> dict[str, Any]:
        shown = super().to_representation(instance)
        if instance.smtp.uses_default_relay:
            shown |= dict.fromkeys(["smtp_host", "smtp_port", "smtp-username"])
        return shown


class AccountEventSerializer(serializers.Serializer[AccountEvent]):
    at = serializers.DateTimeField()
    what = serializers.ChoiceField(choices=AccountChange.choices)
    reason = serializers.CharField(help_text="what was wrong, or what has mended it")
    until = serializers.DateTimeField(allow_null=True, help_text="the end of the pause")


class AccountSerializer(serializers.Serializer[SmtpAccount]):
    """Whether mail goes out; if not, why and until when."""

    state = serializers.ChoiceField(choices=AccountState.choices)
    reason = serializers.CharField()
    until = serializers.DateTimeField(source="paused_until", allow_null=True)
    history = AccountEventSerializer(many=True, help_text="when it was paused and resumed, newest first")


class UserSerializer(RegisteredSerializer):
    smtp_security = serializers.ChoiceField(source="smtp.security", choices=Security.choices)
    from_email = serializers.EmailField(source="smtp.from_email")
    max_connections = serializers.IntegerField(source="smtp.max_connections")
    limits = LimitsSerializer(source="smtp")
    account = AccountSerializer(source="smtp")
    created_at = serializers.DateTimeField()


class LoginSerializer(serializers.Serializer[Any]):
    # Any text: what is no e-mail address is answered like one that nobody has.
    email = Text(max_length=254)
    password = Text(max_length=256, trim_whitespace=False, write_only=True)


class RefreshSerializer(serializers.Serializer[Any]):
    refresh = Text(max_length=2000)


class TokensSerializer(serializers.Serializer[Any]):
    token = serializers.CharField()
    refresh = serializers.CharField()


class LoggedInSerializer(TokensSerializer):
    id = serializers.IntegerField()
