"""Reads the environment once and fails with one sentence that names everything wrong in it.

Every name has a NAME_FILE form: the path of a file (a mounted secret) that holds the value.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from environs import EnvValidationError, FileAwareEnv
from marshmallow import validate

from config import values
from mailqueue import alive

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
    smtp_allowed_networks: values.Networks
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
    throttle_login: values.Pace
    throttle_login_address: values.Pace
    throttle_register: values.Pace
    throttle_smtp_test: values.Pace
    throttle_enqueue: values.Pace
    daily_quota: int
    otp_ttl_seconds: int
    public_url: str
    trusted_proxies: values.Networks
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


def read() -> Environment:
    """The environment as typed values, or BadEnvironmentError with every complaint in it."""
    env = _Reader()
    env.add_parser("networks", values.networks)
    env.add_parser("rates", values.rates)
    env.add_parser("pace", values.pace)
    env.add_parser("home", values.home)
    env.add_parser("ports", values.ports)
    env.add_parser("waits", values.waits)
    env.add_parser("hosts", values.hosts)
    env.add_parser("postgresql", values.postgresql)
    positive = validate.Range(min=1)
    a_port = validate.Range(min=1, max=65535)
    debug = bool(env.bool("DEBUG", False))

    def secret(name: str, fallback: str) -> Any:
        # Outside DEBUG there is no default, so a missing secret stops the start by name.
        return env.str(name, fallback) if debug else env.str(name, validate=validate.Length(min=1))

    def secrets(name: str, fallback: str) -> Any:
        return (
            env.list(name, [fallback], validate=values.fernet_keys)
            if debug
            else env.list(name, validate=values.fernet_keys)
        )

    found: dict[str, Any] = {
        "debug": debug,
        "secret_key": secret("SECRET_KEY", ONLY_FOR_DEBUG),
        "jwt_signing_key": secret("JWT_SIGNING_KEY", FOR_DEBUG[1]),
        "credential_keys": secrets("CREDENTIAL_KEYS", ONLY_FOR_DEBUG_FERNET),
        "allowed_hosts": env.hosts("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]"),
        "database": env.postgresql("DATABASE_URL"),
        "redis_url": env.str("REDIS_URL", validate=values.redis),
        "data_dir": env.path("DATA_DIR", Path(".local")),
        "heartbeat_dir": env.path("HEARTBEAT_DIR", None) or alive.default_dir(),
        "static_root": env.path("STATIC_ROOT", None),
        "port": env.int("PORT", 8000, validate=a_port),
        "flower_port": env.int("FLOWER_PORT", 5555, validate=a_port),
        "sandbox_smtp_host": env.str("SANDBOX_SMTP_HOST", "127.0.0.1", validate=validate.Length(min=1)),
        "sandbox_smtp_port": env.int("SANDBOX_SMTP_PORT", 1025, validate=a_port),
        "default_smtp_url": env.str("DEFAULT_SMTP_URL", "", validate=values.relay),
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
        "log_file": env.str("LOG_FILE", "", validate=values.log_file),
        "log_format": env.str("LOG_FORMAT", "json", validate=validate.OneOf(["json", "text"])),
        "admin_email": env.str("ADMIN_EMAIL", "", validate=values.email),
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
