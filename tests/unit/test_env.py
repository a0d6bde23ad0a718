"""The environment is read once, and nonsense stops the start with a sentence that names it."""

import os
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path

import pytest

from config import env
from mailqueue.delivery.smtp import DEADLINES

ROOT = Path(__file__).resolve().parent.parent.parent
SECRETS = {
    "SECRET_KEY": "s" * 50,
    "JWT_SIGNING_KEY": "j" * 50,
    "CREDENTIAL_KEYS": "ZGV2ZWxvcG1lbnQtb25seS1rZXktMzItYnl0ZXMhISE=",
}
ADDRESSES = {"DATABASE_URL": "postgresql://u:p@db.example:5433/mail", "REDIS_URL": "redis://r.example:6379/0"}
ALL = SECRETS | ADDRESSES


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An empty one."""
    for name in list(os.environ):
        monkeypatch.delenv(name)
    return monkeypatch


def read(environment: pytest.MonkeyPatch, **values: str) -> env.Environment:
    for name, value in values.items():
        environment.setenv(name, value)
    return env.read()


def complaint(environment: pytest.MonkeyPatch, **values: str) -> str:
    with pytest.raises(env.BadEnvironmentError) as caught:
        read(environment, **values)
    return str(caught.value)


def test_the_defaults_are_those_of_the_contract(environment: pytest.MonkeyPatch) -> None:
    found = read(environment, **ALL)
    assert not found.debug
    assert (found.port, found.flower_port, found.sandbox_smtp_port) == (8000, 5555, 1025)
    assert found.max_tries == 8
    assert found.retry_schedule == [60, 300, 900, 1800, 3600, 7200, 14400]
    assert (found.lease_seconds, found.sweep_interval_seconds, found.sweep_after_seconds) == (120, 300, 300)
    assert found.smtp_allowed_ports == [25, 465, 587, 2525]
    assert found.smtp_allowed_networks == ()
    assert found.database["HOST"] == "db.example"
    assert found.database["PORT"] == 5433


@pytest.mark.parametrize("name", ALL)
def test_what_is_missing_outside_debug_is_named(environment: pytest.MonkeyPatch, name: str) -> None:
    said = complaint(environment, **{key: value for key, value in ALL.items() if key != name})
    assert name in said
    assert not [other for other in ALL if other != name and other in said]


@pytest.mark.parametrize("name", SECRETS)
def test_an_empty_secret_is_a_missing_one(environment: pytest.MonkeyPatch, name: str) -> None:
    assert name in complaint(environment, **ALL | {name: ""})


def test_debug_needs_no_secrets(environment: pytest.MonkeyPatch) -> None:
    assert read(environment, DEBUG="true", **ADDRESSES).secret_key == env.ONLY_FOR_DEBUG


@pytest.mark.parametrize("name", ["SECRET_KEY", "REDIS_URL", "MAIL_MAX_TRIES"])
def test_a_value_may_come_from_a_file(environment: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    value = ALL.get(name, "5")
    (tmp_path / "mounted").write_text(f"{value}\n")
    rest = {key: other for key, other in ALL.items() if key != name}
    found = read(environment, **rest, **{f"{name}_FILE": str(tmp_path / "mounted")})
    assert {"SECRET_KEY": found.secret_key, "REDIS_URL": found.redis_url, "MAIL_MAX_TRIES": found.max_tries}[
        name
    ] == (5 if name == "MAIL_MAX_TRIES" else value)


@pytest.mark.parametrize(
    ("name", "nonsense"),
    [
        ("PUBLIC_URL", "mail.example.com"),
        ("PUBLIC_URL", "ftp://mail.example.com"),
        ("PUBLIC_URL", "https://mail.example.com/?a=b"),
        ("PUBLIC_URL", "https://mail.example.com>"),
        ("PORT", "eighty"),
        ("PORT", "0"),
        ("PORT", "70000"),
        ("MAIL_MAX_TRIES", "0"),
        ("MAIL_MAX_TRIES", "21"),
        ("MAIL_RETRY_SCHEDULE", "60,soon"),
        ("MAIL_RETRY_SCHEDULE", "60,-1"),
        ("MAIL_RETRY_SCHEDULE", ""),
        ("MAIL_LEASE_SECONDS", "0"),
        ("SWEEP_INTERVAL_SECONDS", "-5"),
        ("SMTP_ALLOWED_NETWORKS", "127.0.0.1/99"),
        ("SMTP_ALLOWED_NETWORKS", "everywhere"),
        ("SMTP_ALLOWED_PORTS", "25,smtp"),
        ("CREDENTIAL_KEYS", "not-a-fernet-key"),
        ("DATABASE_URL", "nonsense://x"),
        ("REDIS_URL", "amqp://guest:guest@rabbit:5672//"),
        ("REDIS_URL", ""),
        ("SILENCED_SYSTEM_CHECKS", "everything"),
        ("DEBUG", "perhaps"),
        ("LOG_LEVEL", "LOUD"),
        ("WORKER_CONCURRENCY", "0"),
        ("WORKER_MAILS_PER_CONNECTION", "0"),
        ("DATABASE_URL", "mysql://x/y"),
        ("DATABASE_URL", "sqlite://:memory:"),
        ("DATABASE_URL", "postgres://u:p@db.example:abc/mail"),
        ("DATABASE_URL", "postgres://u:p@db.example"),
        ("DATABASE_URL", ""),
        ("REDIS_URL", "redis://h:abc/0"),
        ("REDIS_URL", "redis://h:70000/0"),
        ("REDIS_URL", "redis://h:6379/first"),
        ("DEFAULT_SMTP_URL", "nonsense"),
        ("DEFAULT_SMTP_URL", "smtp://h:abc"),
        ("DEFAULT_SMTP_URL", "smtp://h:0"),
        ("DEFAULT_SMTP_URL", "http://x"),
        ("DEFAULT_SMTP_URL", "smtp://"),
        ("DEFAULT_SMTP_URL", "smtp://a b:25"),
        ("DEFAULT_SMTP_URL", "smtp://h:25?security=perhaps"),
        ("SMTP_ALLOWED_PORTS", "0"),
        ("SMTP_ALLOWED_PORTS", "70000"),
        ("ADMIN_EMAIL", "nope"),
        ("ALLOWED_HOSTS", "a b"),
        ("ALLOWED_HOSTS", "https://mail.example.com"),
        ("ALLOWED_HOSTS", "mail.example.com:8000"),
        ("LOG_FILE", "/nonexistent/mailqueue.log"),
        ("LOG_FILE", "/"),
    ],
)
def test_nonsense_is_named(environment: pytest.MonkeyPatch, name: str, nonsense: str) -> None:
    assert f" {name}: " in complaint(environment, **ALL | {name: nonsense})


@pytest.mark.parametrize(
    ("name", "nonsense", "instead"),
    [
        ("MAIL_RETRY_SCHEDULE", "x", "'x' is no number: write seconds, such as 60,300,900."),
        ("SMTP_ALLOWED_PORTS", "x", "'x' is no number: write ports, such as 25,587."),
        ("SMTP_ALLOWED_PORTS", "25,abc", "'abc' is no number: write ports, such as 25,587."),
    ],
)
def test_a_complaint_says_what_to_write_instead(
    environment: pytest.MonkeyPatch, name: str, nonsense: str, instead: str
) -> None:
    assert complaint(environment, **ALL | {name: nonsense}).endswith(f" {name}: {instead}")


@pytest.mark.parametrize("name", ["SECRET_KEY", "DATABASE_URL", "DEBUG", "SMTP_ALLOWED_PORTS"])
@pytest.mark.parametrize("path", ["/nonexistent", "/", "/dev/null/x", "{no_text}"])
def test_a_mounted_file_that_cannot_be_read_is_named(
    environment: pytest.MonkeyPatch, tmp_path: Path, name: str, path: str
) -> None:
    (tmp_path / "no_text").write_bytes(b"\xff\xfe")
    rest = {key: value for key, value in ALL.items() if key != name}
    said = complaint(environment, **rest, **{f"{name}_FILE": path.format(no_text=tmp_path / "no_text")})
    assert f" {name}_FILE: " in said
    assert f" {name}: " not in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DEFAULT_SMTP_URL", ""),
        ("DEFAULT_SMTP_URL", "smtp://user:p%40ss@relay.example.com?security=starttls"),
        ("DEFAULT_SMTP_URL", "smtps://[2001:db8::1]:465"),
        ("DATABASE_URL", "postgresql://mail@/mail?host=%2Frun%2Fpostgresql"),
        ("DATABASE_URL", "postgres://u:p@a,b/mail?target_session_attrs=read-write"),
        ("REDIS_URL", "rediss://:secret@h:6380/1?ssl_cert_reqs=none"),
        ("REDIS_URL", "redis://h"),
        ("REDIS_URL", "unix:///run/redis.sock?db=1"),
        ("SMTP_ALLOWED_PORTS", "25, 587"),
        ("MAIL_RETRY_SCHEDULE", "0"),
        ("ADMIN_EMAIL", ""),
        ("ADMIN_EMAIL", "admin@localhost"),
        ("ALLOWED_HOSTS", "mail.example.com, .example.com,my_web,10.1.2.3,[::1],fd00::1,*"),
        ("LOG_FILE", ""),
        ("LOG_FILE", "mailqueue.log"),
    ],
)
def test_what_makes_sense_is_taken(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    read(environment, **ALL | {name: value})


def test_an_address_may_end_in_a_slash_that_is_left_out(environment: pytest.MonkeyPatch) -> None:
    given = {"PUBLIC_URL": "https://mail.example.com/queue/"}
    assert (
        read(environment, DEBUG="true", **ADDRESSES, **given).public_url == "https://mail.example.com/queue"
    )


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, ["localhost", "127.0.0.1", "[::1]"]),
        (
            {"PUBLIC_URL": "https://Mail.example.com:8443"},
            ["localhost", "127.0.0.1", "[::1]", "mail.example.com"],
        ),
        (
            {"PUBLIC_URL": "https://mail.example.com", "ALLOWED_HOSTS": "mail.example.com,a.example"},
            ["mail.example.com", "a.example"],
        ),
        ({"PUBLIC_URL": "https://mail.example.com", "ALLOWED_HOSTS": "*"}, ["*"]),
    ],
)
def test_the_web_answers_under_the_name_that_recipients_are_given(
    environment: pytest.MonkeyPatch, given: dict[str, str], names: list[str]
) -> None:
    assert read(environment, DEBUG="true", **ADDRESSES, **given).allowed_hosts == names


def test_all_complaints_come_in_one_sentence(environment: pytest.MonkeyPatch) -> None:
    wrong = {"PORT": "eighty", "MAIL_MAX_TRIES": "0", "SMTP_ALLOWED_NETWORKS": "everywhere"}
    said = complaint(environment, **SECRETS | {"DATABASE_URL": ADDRESSES["DATABASE_URL"]} | wrong)
    assert all(name in said for name in [*wrong, "REDIS_URL"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CREDENTIAL_KEYS", "canary-5f1e"),
        ("CREDENTIAL_KEYS", f"{SECRETS['CREDENTIAL_KEYS']},canary-5f1e"),
        ("DATABASE_URL", "nonsense://user:canary-5f1e@db.example/mail"),
        ("DATABASE_URL", "mysql://user:canary-5f1e@db.example/mail"),
        ("DATABASE_URL", "postgres://user:canary-5f1e@db.example:abc/mail"),
        ("REDIS_URL", "amqp://user:canary-5f1e@rabbit.example"),
        ("REDIS_URL", "redis://:canary-5f1e@rabbit.example:abc"),
        ("DEFAULT_SMTP_URL", "smtp://user:canary-5f1e@relay.example:abc"),
    ],
)
def test_a_complaint_never_shows_a_secret(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    said = complaint(environment, **ALL | {name: value})
    assert name in said
    assert "canary-5f1e" not in said


def test_a_lease_outlasts_the_longest_silence_of_a_relay(environment: pytest.MonkeyPatch) -> None:
    """It is renewed at every third of it as well."""
    assert read(environment, **ALL).lease_seconds > max(DEADLINES.values())


def test_networks_and_keys_are_lists(environment: pytest.MonkeyPatch) -> None:
    found = read(environment, **ALL, SMTP_ALLOWED_NETWORKS="127.0.0.0/8, ::1/128")
    assert found.smtp_allowed_networks == (ip_network("127.0.0.0/8"), ip_network("::1/128"))


def test_a_start_without_secrets_ends_with_a_sentence_and_no_traceback() -> None:
    environment = {"PATH": os.environ["PATH"], **ADDRESSES}
    done = subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "SECRET_KEY" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("value", "pace"),
    [("5/5m", (5, 300)), ("20/h", (20, 3600)), ("1000/s", (1000, 1)), ("7/2D", (7, 172_800)), ("off", None)],
)
def test_a_pace_is_so_many_within_so_long(
    environment: pytest.MonkeyPatch, value: str, pace: tuple[int, int] | None
) -> None:
    assert read(environment, **ALL, THROTTLE_LOGIN=value).throttle_login == pace


@pytest.mark.parametrize("value", ["5", "0/m", "5/0m", "5 per minute", "-5/m", "none", "5/w"])
def test_what_is_no_pace_is_named(environment: pytest.MonkeyPatch, value: str) -> None:
    assert "THROTTLE_REGISTER" in complaint(environment, **ALL, THROTTLE_REGISTER=value)


def test_limits_are_on_where_strangers_call_and_off_for_mail(environment: pytest.MonkeyPatch) -> None:
    found = read(environment, **ALL)
    assert (found.throttle_login, found.throttle_login_address) == ((5, 300), (30, 60))
    assert (found.throttle_register, found.throttle_smtp_test) == ((100, 3600), (10, 60))
    assert found.throttle_enqueue is None
    assert found.trusted_proxies == ()
