"""The volume of secrets of docker-compose.yml: made once, what is given wins, and each only for those who need it."""

import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from mailqueue.embedded import secrets

NAMES = [*secrets.GENERATED, "POSTGRES_PASSWORD", "DATABASE_URL", "REDIS_URL"]


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def files(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_what_is_not_given_is_made_once(tmp_path: Path) -> None:
    secrets.complete(tmp_path)
    first = files(tmp_path)
    assert first.keys() == {*NAMES, "redis.conf"}
    assert all(first.values())
    assert len(set(first.values())) == len(first)
    secrets.complete(tmp_path)
    assert files(tmp_path) == first


def test_what_is_given_wins_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets.complete(tmp_path)
    made = files(tmp_path)
    monkeypatch.setenv("SECRET_KEY", " given \n")
    monkeypatch.setenv("DATABASE_URL", "postgres://u:p@managed.example/mail")
    secrets.complete(tmp_path)
    assert files(tmp_path) == made | {
        "SECRET_KEY": "given",
        "DATABASE_URL": "postgres://u:p@managed.example/mail",
    }
    monkeypatch.delenv("SECRET_KEY")
    secrets.complete(tmp_path)
    assert files(tmp_path)["SECRET_KEY"] == "given"


def test_passwords_of_any_letters_come_through_addresses_and_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = 'p/a@s:s"w\\ö rd#%'
    monkeypatch.setenv("POSTGRES_PASSWORD", odd)
    monkeypatch.setenv("REDIS_PASSWORD", odd)
    secrets.complete(tmp_path)
    found = files(tmp_path)
    for name, host in (("DATABASE_URL", "postgres"), ("REDIS_URL", "redis")):
        address = urlsplit(found[name])
        assert (unquote(address.password or ""), address.hostname) == (odd, host)
    (line,) = found["redis.conf"].splitlines()
    word, _, quoted = line.partition(" ")
    assert word == "requirepass"
    assert bytes.fromhex(quoted.strip('"').replace("\\x", "")).decode() == odd


def test_servers_may_read_their_passwords_and_nothing_else(tmp_path: Path) -> None:
    secrets.complete(tmp_path)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    by_group = {name for name, mode in modes.items() if mode & stat.S_IRGRP}
    assert by_group == {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "redis.conf", "ADMIN_PASSWORD"}
    assert not any(mode & stat.S_IRWXO for mode in modes.values())
