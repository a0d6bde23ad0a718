"""What the values of the environment may be; a complaint says what to write instead."""

import ipaddress
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import dj_database_url
from cryptography.fernet import Fernet
from marshmallow import ValidationError, validate

Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
#: How many within how many seconds; None is no limit.
Pace = tuple[int, int] | None


def networks(value: str) -> Networks:
    """CIDRs, comma separated."""
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in value.split(",") if part.strip())
    except ValueError as error:
        raise ValidationError(f"{error}.") from error


def rates(value: str) -> dict[str, tuple[int, int]]:
    """gmail.com=20/s, example.com=1000/h: how many mails within how many seconds, by recipient domain."""
    found: dict[str, tuple[int, int]] = {}
    for part in filter(None, map(str.strip, value.split(","))):
        rate = re.fullmatch(r"([a-z0-9.-]+)=([1-9][0-9]{0,8})/([smhd])", part.lower())
        if rate is None:
            raise ValidationError(f"{part} is not of the form domain=20/s (or /m, /h, /d).")
        found[rate[1]] = (int(rate[2]), {"s": 1, "m": 60, "h": 3600, "d": 86_400}[rate[3]])
    return found


def pace(value: str) -> Pace:
    """5/5m is five within five minutes; 1000/s, 20/h; off."""
    found = re.fullmatch(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,4})?([smhd])", value.lower())
    if found:
        return int(found[1]), int(found[2] or 1) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[found[3]]
    if value.lower() != "off":
        raise ValidationError(f"{value} is not of the form 5/5m (or s, h, d), nor off.")
    return None


def home(value: str) -> str:
    """An address to put paths behind, without a slash at its end; or nothing."""
    if value and not re.fullmatch(r"https?://[^\s/?#<>@]+(/[^\s?#<>]*)?", value):
        raise ValidationError(f"{value} is not an address such as https://mail.example.com.")
    return value.rstrip("/")


def ports(value: str) -> list[int]:
    """25,587; none at all is none."""
    ports = _numbers(value, "ports, such as 25,587")
    if not all(1 <= port <= 65535 for port in ports):
        raise ValidationError("A port is a number from 1 to 65535.")
    return ports


def waits(value: str) -> list[int]:
    """60,300,900."""
    waits = _numbers(value, "seconds, such as 60,300,900")
    if not waits:
        raise ValidationError("Needs one wait at least, such as 60.")
    return waits


def _numbers(value: str, of_what: str) -> list[int]:
    parts = [part for each in value.split(",") if (part := each.strip())]
    for part in parts:
        if not re.fullmatch("[0-9]{1,9}", part, re.ASCII):
            raise ValidationError(f"{part!r} is no number: write {of_what}.")
    return [int(part) for part in parts]


def hosts(value: str) -> list[str]:
    """As Django compares them: without a port."""
    names = [name for part in value.split(",") if (name := part.strip())]
    for name in names:
        if (
            name != "*"
            and not re.fullmatch(r"\.?[\w-]+(\.[\w-]+)*\.?", name)
            and not _is_ip(name.strip("[]"))
        ):
            raise ValidationError(f"{name!r} is no name: write mail.example.com,localhost (without a port).")
    return names


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


# Of what may hold a password no complaint shows anything.


def postgresql(value: str) -> dict[str, Any]:
    complaint = "Is not the address of a PostgreSQL, such as postgres://user:password@host:5432/name."
    try:
        found: dict[str, Any] = dict(dj_database_url.parse(value))
    except ValueError:
        raise ValidationError(complaint) from None
    is_named = found["NAME"] or "service=" in value  # of pg_service.conf
    if found["ENGINE"] != "django.db.backends.postgresql" or not is_named:
        raise ValidationError(complaint)
    return found


def redis(value: str) -> None:
    try:
        parts = urlsplit(value)
        fits = parts.scheme == "unix" or (parts.port != 0 and re.fullmatch("/?[0-9]*", parts.path))
    except ValueError:
        fits = False
    if not fits or not re.match("(rediss?|unix)://.", value):
        raise ValidationError("Is not an address such as redis://:password@host:6379/0.")


def relay(value: str) -> None:
    """As accounts/relays.py reads it; or nothing."""
    try:
        parts = urlsplit(value)
        security = parse_qs(parts.query).get("security", ["auto"])[-1]
        fits = (
            parts.scheme in ("smtp", "smtps")
            and re.fullmatch(r"[^\s]+", parts.hostname or "")
            and parts.port != 0
            and security in ("auto", "tls", "starttls", "none")
        )
    except ValueError:
        fits = False
    if value and not fits:
        raise ValidationError(
            "Is not the address of a relay, such as smtp://user:password@host:587, or smtps:// for TLS from the"
            " start; ?security= is auto, tls, starttls or none."
        )


def email(value: str) -> None:
    if value:
        validate.Email(error="Is not an address such as admin@example.com.")(value)


def log_file(value: str) -> None:
    """Beside it stand its lock and those that were rotated."""
    path = Path(value)
    if value and (not os.access(path.parent, os.W_OK | os.X_OK) or path.is_dir()):
        raise ValidationError("Cannot be written: name a file in a folder that exists and may be written to.")
    if value and path.exists() and not os.access(path, os.W_OK):
        raise ValidationError("Cannot be written: name a file that may be.")


def fernet_keys(keys: list[str]) -> None:
    if not keys:
        raise ValidationError("Needs one key at least.")
    for number, key in enumerate(keys, 1):
        try:
            Fernet(key)
        except ValueError as error:  # which shows nothing of the key, nor do we
            raise ValidationError(f"Key {number} is not a Fernet key.") from error
