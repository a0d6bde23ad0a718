"""System checks: what an operator is told. Each id has a case that fires it, and what is right is passed over."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.checks import CheckMessage, run_checks
from django.core.management import call_command

from config import env
from mailqueue import checks
from mailqueue.checks import servers, timing
from mailqueue.checks.servers import Database
from mailqueue.delivery import smtp
from mailqueue.embedded.process import ROOT
from mailqueue.embedded.redis import Redis
from tasks.states import Phase

KEY = "Vb3n-rQ8xkT0wYpL5sZc7uHdJm2aGfEiN4oXqB9tRyW6KvCgSj"
OTHER = "p7Xk2mQ9vLr4TzBw8NcYh5JdFs3GaEuKi6RoVxW0tMbZqHnCyD"
PASSWORD = "fierce-otter-87-umbrella"
NETWORKS = "SMTP_ALLOWED_NETWORKS"


def database(**other: Any) -> dict[str, Any]:
    return {
        "database": {"HOST": "db.example.net", "PASSWORD": "", "OPTIONS": {"sslmode": "verify-full"}} | other
    }


def networks(*cidrs: str) -> tuple[Any, ...]:
    return tuple(ip_network(cidr) for cidr in cidrs)


def jwt(key: str) -> dict[str, Any]:
    return {"SIMPLE_JWT": {"SIGNING_KEY": key}}


#: Nothing is wrong with this one.
SOUND: dict[str, Any] = {
    "DEBUG": False,
    "SECRET_KEY": KEY,
    "CREDENTIAL_KEYS": [Fernet.generate_key().decode() for _ in range(2)],
    "ALLOWED_HOSTS": ["mail.example.com"],
    "PUBLIC_URL": "https://mail.example.com",
    "ADMIN_EMAIL": "ada.lovelace@queue.test",
    "ADMIN_PASSWORD": PASSWORD,
    "FLOWER_BASIC_AUTH": "ops:brave-heron-21-lantern",
    NETWORKS: networks("10.1.2.3/32"),
    "TRUSTED_PROXIES": networks("10.0.0.0/8"),
    "THROTTLE_LOGIN": (5, 300),
    "THROTTLE_LOGIN_ADDRESS": (30, 60),
    "LOG_LEVEL": "INFO",
    "DEFAULT_SMTP_URL": "smtp://ada:x@relay.example.com:587",
    "REDIS_URL": "rediss://:Tk4-not-in-a-list@redis.example.net:6379/0",
    "MAIL_LEASE_SECONDS": 120,
    "SWEEP_INTERVAL_SECONDS": 300,
    "SWEEP_AFTER_SECONDS": 300,
    **jwt(OTHER),
    **database(),
}

#: What is said of each of these, all else being sound.
SAID: list[tuple[str, dict[str, Any]]] = [
    ("E001", {"SECRET_KEY": "django-insecure-" + KEY}),
    ("E001", {"SECRET_KEY": env.ONLY_FOR_DEBUG}),
    ("E001", jwt(env.FOR_DEBUG[1])),
    ("E001", jwt("change-me-" + KEY)),
    ("E001", {"ADMIN_PASSWORD": "Replace_this_one!42"}),
    ("E001", {"REDIS_URL": "rediss://:redis@redis.example.net"}),
    ("E001", {"REDIS_URL": "rediss://:pass%77ord123@redis.example.net"}),
    ("E001", database(PASSWORD="mailqueue")),
    ("E002", {"DEBUG": True}),
    ("W002", {"MAIL_LEASE_SECONDS": 901}),
    ("W001", {"MAIL_LEASE_SECONDS": 90}),
    ("W001", {"MAIL_LEASE_SECONDS": 4}),
    ("W003", {"SWEEP_INTERVAL_SECONDS": 3601}),
    ("W003", {"SWEEP_AFTER_SECONDS": 3601}),
    ("W003", {"SWEEP_AFTER_SECONDS": 29}),
    ("W004", {"SECRET_KEY": "s" * 50}),
    ("W004", {"SECRET_KEY": KEY[:20]}),
    ("W004", jwt("correcthorse" * 5)),
    ("W005", jwt(KEY)),
    ("W005", {"FLOWER_BASIC_AUTH": "ops:brave-heron-21-lantern,eve:" + KEY}),
    ("W005", database(PASSWORD="Tk4-not-in-a-list")),
    ("W005", {"CREDENTIAL_KEYS": SOUND["CREDENTIAL_KEYS"] * 2}),
    ("W006", {"ADMIN_PASSWORD": "k4Qz-7"}),
    ("W006", {"ADMIN_PASSWORD": "ada.lovelace@queue1"}),
    ("W006", {"ADMIN_PASSWORD": "836472910573"}),
    ("W007", {"FLOWER_BASIC_AUTH": ""}),
    ("W007", {"FLOWER_BASIC_AUTH": "ops"}),
    ("W007", {"FLOWER_BASIC_AUTH": "ops:"}),
    ("W007", {"FLOWER_BASIC_AUTH": "ops:brave-heron-21-lantern,eve:short"}),
    ("W008", {"ALLOWED_HOSTS": ["mail.example.com", "*"]}),
    ("W009", {"PUBLIC_URL": ""}),
    ("W009", {"PUBLIC_URL": "http://mail.example.com"}),
    ("W010", {NETWORKS: networks("10.1.2.0/24")}),
    ("W010", {NETWORKS: networks("10.1.2.3/32", "127.0.0.1/32")}),
    ("W010", {NETWORKS: networks("169.254.169.254/32")}),
    ("W010", {NETWORKS: networks("fd00::/8")}),
    ("W010", {NETWORKS: networks("0.0.0.0/0")}),
    ("W011", {"TRUSTED_PROXIES": networks("10.0.0.0/8", "0.0.0.0/0")}),
    ("W011", {"TRUSTED_PROXIES": networks("::/0")}),
    ("W012", {"THROTTLE_LOGIN": None}),
    ("W012", {"THROTTLE_LOGIN_ADDRESS": None}),
    ("W013", {"LOG_LEVEL": "DEBUG"}),
    ("W014", {"DEFAULT_SMTP_URL": "smtp://ada:x@relay.example.com:25?security=none"}),
    ("W014", {"DEFAULT_SMTP_URL": "smtp://10.1.2.3:25"}),
    ("E008", {"DEFAULT_SMTP_URL": "relay.example.com:25"}),
    ("E008", {"DEFAULT_SMTP_URL": "smtp://relay.example.com:99999"}),
    ("E008", {"DEFAULT_SMTP_URL": "smtp://relay.example.com?security=perhaps"}),
    ("W015", database(OPTIONS={})),
    ("W015", database(OPTIONS={"sslmode": "disable"})),
    ("W015", database(HOST="10.0.0.5", OPTIONS={})),
    ("W015", database(HOST="postgres,db.example.net", OPTIONS={})),
    ("W016", {"REDIS_URL": "redis://:Tk4-not-in-a-list@redis.example.net:6379/0"}),
    ("W017", {"REDIS_URL": "rediss://redis.example.net"}),
]
SILENT: list[dict[str, Any]] = [
    {},
    {"MAIL_LEASE_SECONDS": 91},
    {"MAIL_LEASE_SECONDS": 900},
    {"SWEEP_INTERVAL_SECONDS": 3600, "SWEEP_AFTER_SECONDS": 30},
    {"SECRET_KEY": "9f2c71d0b84ae65371c0d9fb248e6a13"},  # 32 hexadecimal digits: 128 bits
    {"ADMIN_EMAIL": "", "ADMIN_PASSWORD": ""},
    {"FLOWER_BASIC_AUTH": "ops:" + PASSWORD},  # the admin's: one person, two pages
    {NETWORKS: networks("203.0.113.7/32", "8.8.8.0/24", "fd00::1/128")},
    {"DEFAULT_SMTP_URL": ""},
    {"DEFAULT_SMTP_URL": "smtp://localhost:25?security=none"},
    {"DEFAULT_SMTP_URL": "smtps://10.1.2.3:465"},
    {"DEFAULT_SMTP_URL": "smtp://10.1.2.3:25?security=starttls"},
    database(OPTIONS={"sslmode": "require"}),
    *(database(HOST=host, OPTIONS={}) for host in ("", "localhost", "127.0.0.1", "::1", "postgres")),
    database(HOST="pg.mail.svc.cluster.local", OPTIONS={}),
    database(HOST="", OPTIONS={"host": "/run/postgresql"}),
    {"REDIS_URL": "redis://:Tk4-not-in-a-list@redis:6379/0"},
    {"REDIS_URL": "redis://:Tk4-not-in-a-list@[::1]:6379/0"},
    {"REDIS_URL": "unix:///run/redis.sock"},
]


@pytest.fixture
def sound(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the settings those above, and what else a test wants."""
    monkeypatch.delenv("PGSSLMODE", raising=False)

    def change(wrong: dict[str, Any]) -> None:
        wanted = SOUND | wrong
        for name, value in wanted.pop("database").items():  # the dict's own, for it may not be replaced
            monkeypatch.setitem(settings.DATABASES["default"], name, value)
        for name, value in wanted.items():
            setattr(settings, name, value)

    change({})
    return change


def told() -> list[str]:
    """The ids of our own checks of the settings, those that ask servers left out."""
    found: list[CheckMessage] = []
    for check in (*timing.ALL, *checks.passwords.ALL, *checks.exposure.ALL):
        found += check()
    return [str(message.id).removeprefix("mailqueue.") for message in found]


@pytest.mark.parametrize(("said", "wrong"), SAID)
def test_what_is_wrong_is_told_by_its_id_alone(
    sound: Callable[..., None], said: str, wrong: dict[str, Any]
) -> None:
    sound(wrong)
    # What an example calls its secret is often short too.
    assert said in told()
    assert set(told()) <= {said, "W004", "W006"}


@pytest.mark.parametrize("sound_too", SILENT)
def test_nothing_is_said_of_what_is_right(sound: Callable[..., None], sound_too: dict[str, Any]) -> None:
    sound(sound_too)
    assert told() == []


def test_a_key_for_credentials_that_somebody_typed_is_told(sound: Callable[..., None]) -> None:
    typed, same = (
        "dHlwZWQgYnkgYSBwZXJzb24sIG5vdCByYW5kb20hISE=",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    )
    for key in (typed, same):
        sound({"CREDENTIAL_KEYS": [Fernet.generate_key().decode(), key]})
        assert told() == ["W004"]
    sound({"CREDENTIAL_KEYS": [env.ONLY_FOR_DEBUG_FERNET]})
    assert told() == ["E001", "W004"]


@pytest.mark.django_db
def test_no_message_shows_a_secret(sound: Callable[..., None]) -> None:
    sound(
        {
            "SECRET_KEY": "canary" * 9,
            "ADMIN_PASSWORD": "canary",
            "FLOWER_BASIC_AUTH": "ops:canary",
            "REDIS_URL": "redis://:canary@redis.example.net",
            "DEFAULT_SMTP_URL": "smtp://ada:canary@relay.example.com:25?security=none",
            **jwt("canary" * 9),
            **database(PASSWORD="canary", OPTIONS={}),
        }
    )
    said = run_checks(include_deployment_checks=True)
    assert len(said) > 6
    assert "canary" not in str(
        [(message.msg, message.hint) for message in said if "mailqueue" in str(message.id)]
    )


def test_the_environment_of_libpq_counts_too(
    sound: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sound(database(OPTIONS={}))
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    assert told() == []


def test_the_longest_deadline_counts(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.MAIL_LEASE_SECONDS = 120
    monkeypatch.setitem(smtp.DEADLINES, Phase.REPLY, 600)
    (warning,) = timing.lease_outlasts_deadlines()
    assert "600 s" in warning.msg
    assert "900" in str(warning.hint)


# The servers -----------------------------------------------------------------------------------------

FINE = Database(version=17, is_standby=False, synchronous_commit="on", unsafe=[], ahead=0.0)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (FINE, []),
        (FINE._replace(version=14), []),
        (FINE._replace(version=13), ["E003"]),
        (FINE._replace(is_standby=True), ["E004"]),
        (FINE._replace(synchronous_commit="off"), ["E005"]),
        (FINE._replace(synchronous_commit="remote_apply"), []),
        (FINE._replace(unsafe=["fsync"]), ["E006"]),
        (FINE._replace(ahead=-0.9), []),
        (FINE._replace(ahead=1.1), ["W020"]),
        (FINE._replace(ahead=-1.1), ["W020"]),
    ],
)
def test_what_postgresql_says_of_itself_is_judged(found: Database, said: list[str]) -> None:
    assert [message.id for message in servers.judge_database(found)] == [f"mailqueue.{one}" for one in said]


@pytest.mark.django_db
def test_postgresql_is_asked() -> None:
    """The tests' own may forget a crash of its machine, and is sound otherwise."""
    from django.db import connection

    assert {message.id for message in servers.database()} <= {"mailqueue.E006"}
    with connection.cursor() as cursor:
        cursor.execute("SHOW fsync")
        assert bool(servers.database()) == (cursor.fetchone() == ("off",))
        cursor.execute("SET LOCAL synchronous_commit = off")
    assert "mailqueue.E005" in [message.id for message in servers.database()]


@pytest.mark.django_db
def test_a_database_that_does_not_answer_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    from django.db import connections
    from django.db.backends.postgresql.base import DatabaseWrapper

    away = DatabaseWrapper(
        connections["default"].settings_dict | {"HOST": "127.0.0.1", "PORT": 1, "OPTIONS": {}}
    )
    monkeypatch.setattr(servers, "connection", away)
    assert [message.id for message in servers.database()] == ["mailqueue.W018"]


@pytest.fixture
def own_redis(tmp_path: Path, settings: Any) -> Iterator[Redis]:
    server = Redis(tmp_path / "redis", "of-this-test-alone")
    server.start()
    settings.REDIS_URL = server.url
    try:
        yield server
    finally:
        server.stop()


def test_redis_is_asked(own_redis: Redis) -> None:
    import redis

    assert servers.broker() == []
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendonly", "no")
        assert [message.id for message in servers.broker()] == ["mailqueue.W021", "mailqueue.W022"]
        client.execute_command("ACL", "SETUSER", "default", "-info")
    assert [message.id for message in servers.broker()] == ["mailqueue.W019"]


def test_a_redis_that_does_not_answer_is_a_warning(own_redis: Redis) -> None:
    own_redis.stop()
    assert [message.id for message in servers.broker()] == ["mailqueue.W019"]


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({"redis_version": "6.0.16"}, ["mailqueue.E007"]),
        ({"redis_version": "6.2.0"}, []),
        ({"redis_version": "7.2.4", "valkey_version": "8.0.1"}, []),
        ({"redis_version": "10.0.0"}, []),
        ({}, []),
    ],
)
def test_redis_must_be_new_enough(info: dict[str, Any], said: list[str]) -> None:
    assert [message.id for message in servers.judge_broker(info)] == said


@pytest.mark.django_db
def test_prepare_tells_what_is_wrong_with_the_servers(
    own_redis: Redis, settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    import redis

    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendonly", "no")
    settings.SILENCED_SYSTEM_CHECKS = ["mailqueue.W022"]
    call_command("prepare")
    said = capsys.readouterr().err
    assert "mailqueue.W021" in said
    assert "mailqueue.W022" not in said
    assert "mailqueue.W007" not in said


# The command, the ids and their page ------------------------------------------------------------------


def production(**other: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": os.environ["DATABASE_URL"],
        "REDIS_URL": os.environ["REDIS_URL"],
        "SECRET_KEY": KEY,
        "JWT_SIGNING_KEY": OTHER,
        "CREDENTIAL_KEYS": SOUND["CREDENTIAL_KEYS"][0],
        "ALLOWED_HOSTS": "mail.example.com",
        "PUBLIC_URL": "https://mail.example.com",
        "FLOWER_BASIC_AUTH": "ops:" + PASSWORD,
    } | other


def deploy(environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING", *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_command_passes_a_sound_environment_and_names_what_is_wrong_with_another() -> None:
    """The tests' PostgreSQL is a throw-away one, which is silenced as an operator would."""
    done = deploy(production(SILENCED_SYSTEM_CHECKS="mailqueue.E006"))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    done = deploy(
        production(ALLOWED_HOSTS="*", SILENCED_SYSTEM_CHECKS="mailqueue.E006,mailqueue.W009", PUBLIC_URL="")
    )
    assert done.returncode == 1
    assert re.findall(r"mailqueue\.\w+", done.stderr) == ["mailqueue.W008"]


def test_postgresql_and_redis_of_make_run_are_sound(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mailqueue.embedded", "exec", "--"]
    check = [
        sys.executable,
        "manage.py",
        "check",
        "--deploy",
        "--tag",
        checks.SERVERS,
        "--fail-level",
        "WARNING",
    ]
    environment = {"PATH": os.environ["PATH"], "DATA_DIR": str(tmp_path / "data")}
    done = subprocess.run(
        [*command, *check], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "mailqueue." in done.stderr) == (0, False), done.stderr


@pytest.mark.django_db
def test_only_the_check_of_a_deployment_asks_servers(settings: Any) -> None:
    """Every command of manage.py runs the others."""
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    assert [str(message.id) for message in run_checks() if "mailqueue" in str(message.id)] == []
    assert "mailqueue.W019" in [message.id for message in run_checks(include_deployment_checks=True)]


def test_the_page_explains_every_id_and_each_has_a_case() -> None:
    code = "".join(file.read_text() for file in (ROOT / "mailqueue" / "checks").glob("*.py"))
    ids = re.findall(r'id="mailqueue\.(\w+)"', code)
    assert len(ids) == len(set(ids)) > 25
    page = (ROOT / "docs" / "checks.md").read_text()
    assert set(re.findall(r"^\| `mailqueue\.(\w+)` \|", page, re.MULTILINE)) == set(ids)
    this = Path(__file__).read_text()
    assert set(ids) <= set(re.findall(r"[EW]0\d\d", this))
