"""Reads the environment once and fails with one sentence that names everything wrong in it.

Every name has a NAME_FILE form: the path of a file (a mounted secret) that holds the value.
"""

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import dj_database_url
from cryptography.fernet import Fernet
from environs import EnvValidationError, FileAwareEnv
from marshmallow import ValidationError, validate

from mailqueue import alive

type_networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
#: How many within how many seconds; None is no limit.
pace = tuple[int, int] | None

ONLY_FOR_DEBUG = "insecure-development-key-never-for-production"
ONLY_FOR_DEBUG_FERNET = "ZGV2ZWxvcG1lbnQtb25seS1rZXktMzItYnl0ZXMhISE="
#: All that have stood here or in a page.
FOR_DEBUG = (ONLY_FOR_DEBUG, f"{ONLY_FOR_DEBUG}-jwt", ONLY_FOR_DEBUG_FERNET)


class BadEnvironmentError(SystemExit):
    """The environment does not describe a service that could run."""


@dataclass(frozen=True)
class Environment:
    """The settings of contract.md; times are in seconds."""

    debug: bool
    secret_key: str
    jwt_signing_key: str
    credential_keys: list[str]
    allowed_hosts: list[str]
    database: dict[str, Any]
    redis_url: str
    data_dir: Path
    heartbeat_dir: Path
    static_root: Path | None
    port: int
    flower_port: int
    sandbox_smtp_host: str
    sandbox_smtp_port: int
    default_smtp_url: str
    smtp_allowed_networks: type_networks
    smtp_allowed_ports: list[int]
    max_tries: int
    retry_schedule: list[int]
    lease_seconds: int
    sweep_interval_seconds: int
    sweep_after_seconds: int
    domain_limits: dict[str, tuple[int, int]]
    keep_days: int
    worker_connections: int
    worker_mails_per_connection: int
    worker_concurrency: int
    throttle_login: pace
    throttle_login_address: pace
    throttle_register: pace
    throttle_smtp_test: pace
    throttle_enqueue: pace
    daily_quota: int
    otp_ttl_seconds: int
    public_url: str
    trusted_proxies: type_networks
    web_processes: int
    log_level: str
    log_file: str
    log_format: str
    admin_email: str
    admin_password: str
    flower_basic_auth: str
    silenced_checks: list[str]


class _Reader(FileAwareEnv):
    """Tells of a NAME_FILE that cannot be read as of what else is wrong."""

    def __init__(self) -> None:
        super().__init__(eager=False, strip_whitespace=True)
        self.unreadable: set[str] = set()

    def _get_value(self, env_key: str, default: Any) -> Any:
        try:
            return super()._get_value(env_key, default)
        except (OSError, ValueError):  # ValueError: what the library makes of most, and what is no text
            self.unreadable.add(env_key)
            return default


def _networks(value: str) -> type_networks:
    """CIDRs, comma separated."""
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in value.split(",") if part.strip())
    except ValueError as error:
        raise ValidationError(f"{error}.") from error


def _rates(value: str) -> dict[str, tuple[int, int]]:
    """gmail.com=20/s, example.com=1000/h: how many mails within how many seconds, by recipient domain."""
    found: dict[str, tuple[int, int]] = {}
    for part in filter(None, map(str.strip, value.split(","))):
        rate = re.fullmatch(r"([a-z0-9.-]+)=([1-9][0-9]{0,8})/([smhd])", part.lower())
        if rate is None:
            raise ValidationError(f"{part} is not of the form domain=20/s (or /m, /h, /d).")
        found[rate[1]] = (int(rate[2]), {"s": 1, "m": 60, "h": 3600, "d": 86_400}[rate[3]])
    return found


def _pace(value: str) -> pace:
    """5/5m is five within five minutes; 1000/s, 20/h; off."""
    found = re.fullmatch(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,4})?([smhd])", value.lower())
    if found:
        return int(found[1]), int(found[2] or 1) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[found[3]]
    if value.lower() != "off":
        raise ValidationError(f"{value} is not of the form 5/5m (or s, h, d), nor off.")
    return None


def _home(value: str) -> str:
    """An address to put paths behind, without a slash at its end; or nothing."""
    if value and not re.fullmatch(r"https?://[^\s/?#<>@]+(/[^\s?#<>]*)?", value):
        raise ValidationError(f"{value} is not an address such as https://mail.example.com.")
    return value.rstrip("/")


def _ports(value: str) -> list[int]:
    """25,587; none at all is none."""
    ports = _numbers(value, "ports, such as 25,587")
    if not all(1 <= port <= 65535 for port in ports):
        raise ValidationError("A port is a number from 1 to 65535.")
    return ports


def _waits(value: str) -> list[int]:
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


def _hosts(value: str) -> list[str]:
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


def _postgresql(value: str) -> dict[str, Any]:
    complaint = "Is not the address of a PostgreSQL, such as postgres://user:password@host:5432/name."
    try:
        found: dict[str, Any] = dict(dj_database_url.parse(value))
    except ValueError:
        raise ValidationError(complaint) from None
    is_named = found["NAME"] or "service=" in value  # of pg_service.conf
    if found["ENGINE"] != "django.db.backends.postgresql" or not is_named:
        raise ValidationError(complaint)
    return found


def _redis(value: str) -> None:
    try:
        parts = urlsplit(value)
        fits = parts.scheme == "unix" or (parts.port != 0 and re.fullmatch("/?[0-9]*", parts.path))
    except ValueError:
        fits = False
    if not fits or not re.match("(rediss?|unix)://.", value):
        raise ValidationError("Is not an address such as redis://:password@host:6379/0.")


def _relay(value: str) -> None:
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


def _email(value: str) -> None:
    if value:
        validate.Email(error="Is not an address such as admin@example.com.")(value)


def _log_file(value: str) -> None:
    """Beside it stand its lock and those that were rotated."""
    path = Path(value)
    if value and (not os.access(path.parent, os.W_OK | os.X_OK) or path.is_dir()):
        raise ValidationError("Cannot be written: name a file in a folder that exists and may be written to.")
    if value and path.exists() and not os.access(path, os.W_OK):
        raise ValidationError("Cannot be written: name a file that may be.")


def _fernet_keys(keys: list[str]) -> None:
    if not keys:
        raise ValidationError("Needs one key at least.")
    for number, key in enumerate(keys, 1):
        try:
            Fernet(key)
        except ValueError as error:  # which shows nothing of the key, nor do we
            raise ValidationError(f"Key {number} is not a Fernet key.") from error


def read() -> Environment:
    """The environment as typed values, or BadEnvironmentError with every complaint in it."""
    env = _Reader()
    env.add_parser("networks", _networks)
    env.add_parser("rates", _rates)
    env.add_parser("pace", _pace)
    env.add_parser("home", _home)
    env.add_parser("ports", _ports)
    env.add_parser("waits", _waits)
    env.add_parser("hosts", _hosts)
    env.add_parser("postgresql", _postgresql)
    positive = validate.Range(min=1)
    a_port = validate.Range(min=1, max=65535)
    debug = bool(env.bool("DEBUG", False))

    def secret(name: str, fallback: str) -> Any:
        # Outside DEBUG there is no default, so a missing secret stops the start by name.
        return env.str(name, fallback) if debug else env.str(name, validate=validate.Length(min=1))

    def secrets(name: str, fallback: str) -> Any:
        return (
            env.list(name, [fallback], validate=_fernet_keys)
            if debug
            else env.list(name, validate=_fernet_keys)
        )

    found: dict[str, Any] = {
        "debug": debug,
        "secret_key": secret("SECRET_KEY", ONLY_FOR_DEBUG),
        "jwt_signing_key": secret("JWT_SIGNING_KEY", FOR_DEBUG[1]),
        "credential_keys": secrets("CREDENTIAL_KEYS", ONLY_FOR_DEBUG_FERNET),
        "allowed_hosts": env.hosts("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]"),
        "database": env.postgresql("DATABASE_URL"),
        "redis_url": env.str("REDIS_URL", validate=_redis),
        "data_dir": env.path("DATA_DIR", Path(".local")),
        "heartbeat_dir": env.path("HEARTBEAT_DIR", None) or alive.default_dir(),
        "static_root": env.path("STATIC_ROOT", None),
        "port": env.int("PORT", 8000, validate=a_port),
        "flower_port": env.int("FLOWER_PORT", 5555, validate=a_port),
        "sandbox_smtp_host": env.str("SANDBOX_SMTP_HOST", "127.0.0.1", validate=validate.Length(min=1)),
        "sandbox_smtp_port": env.int("SANDBOX_SMTP_PORT", 1025, validate=a_port),
        "default_smtp_url": env.str("DEFAULT_SMTP_URL", "", validate=_relay),
        "smtp_allowed_networks": env.networks("SMTP_ALLOWED_NETWORKS", ""),
        "smtp_allowed_ports": env.ports("SMTP_ALLOWED_PORTS", "25,465,587,2525"),
        "max_tries": env.int("MAIL_MAX_TRIES", 8, validate=validate.Range(min=1, max=20)),
        "retry_schedule": env.waits("MAIL_RETRY_SCHEDULE", "60,300,900,1800,3600,7200,14400"),
        "lease_seconds": env.int("MAIL_LEASE_SECONDS", 120, validate=positive),
        "sweep_interval_seconds": env.int("SWEEP_INTERVAL_SECONDS", 300, validate=positive),
        "sweep_after_seconds": env.int("SWEEP_AFTER_SECONDS", 300, validate=positive),
        "domain_limits": env.rates("MAIL_DOMAIN_LIMITS", ""),
        "keep_days": env.int("MAIL_KEEP_DAYS", 90, validate=positive),
        "worker_connections": env.int("WORKER_CONNECTIONS", 250, validate=positive),
        "worker_mails_per_connection": env.int("WORKER_MAILS_PER_CONNECTION", 100, validate=positive),
        "worker_concurrency": env.int("WORKER_CONCURRENCY", 2, validate=positive),
        "throttle_login": env.pace("THROTTLE_LOGIN", "5/5m"),
        "throttle_login_address": env.pace("THROTTLE_LOGIN_ADDRESS", "30/m"),
        "throttle_register": env.pace("THROTTLE_REGISTER", "100/h"),
        "throttle_smtp_test": env.pace("THROTTLE_SMTP_TEST", "10/m"),
        "throttle_enqueue": env.pace("THROTTLE_ENQUEUE", "off"),
        "daily_quota": env.int("MAIL_DAILY_QUOTA", 0, validate=validate.Range(min=0)),
        "otp_ttl_seconds": env.int("OTP_TTL_SECONDS", 300, validate=positive),
        "public_url": env.home("PUBLIC_URL", ""),
        "trusted_proxies": env.networks("TRUSTED_PROXIES", ""),
        "web_processes": env.int("WEB_PROCESSES", 2, validate=positive),
        "log_level": env.str(
            "LOG_LEVEL", "INFO", validate=validate.OneOf(["DEBUG", "INFO", "WARNING", "ERROR"])
        ),
        "log_file": env.str("LOG_FILE", "", validate=_log_file),
        "log_format": env.str("LOG_FORMAT", "json", validate=validate.OneOf(["json", "text"])),
        "admin_email": env.str("ADMIN_EMAIL", "", validate=_email),
        "admin_password": env.str("ADMIN_PASSWORD", ""),
        "flower_basic_auth": env.str("FLOWER_BASIC_AUTH", ""),
        "silenced_checks": env.list(
            "SILENCED_SYSTEM_CHECKS",
            [],
            validate=lambda ids: [validate.Regexp(r"[a-z_]+\.[EWIC]?\d+")(one) for one in ids],
        ),
    }
    why_by_name: dict[str, list[str]] = {}
    try:
        env.seal()
    except EnvValidationError as error:
        why_by_name = dict(error.error_messages)  # type: ignore[arg-type]
    for name in env.unreadable:
        why_by_name.pop(name, None)
        why_by_name[f"{name}_FILE"] = ["Is not a file of text that can be read."]
    if why_by_name:
        complaints = "; ".join(f"{name}: {' '.join(map(str, why))}" for name, why in why_by_name.items())
        raise BadEnvironmentError(f"The environment is not usable. {complaints}")
    # Mail programs post to it, and nobody should have to say it twice.
    if (host := urlsplit(found["public_url"]).hostname) and "*" not in found["allowed_hosts"]:
        found["allowed_hosts"] = list(dict.fromkeys([*found["allowed_hosts"], host]))
    return Environment(**found)
