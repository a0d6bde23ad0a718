"""A Docker engine, and images for it where none can be pulled.

An engine that runs is used. Else one is started by hand, as root, and ends with the tests; it keeps its images in
$XDG_CACHE_HOME/mailqueue-containers, so that only the first run takes minutes. There the base is made by debootstrap,
with what this machine trusts and the package index that it uses, and PostgreSQL, Redis and nginx are Debian's.
"""

import configparser
import fcntl
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from mailqueue.embedded.process import ROOT
from tests.machine import until

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mailqueue-containers"
BASE, SERVERS = "mailqueue-test/base", "mailqueue-test/servers"
OFFICIAL = ("python:3.12-slim-bookworm", "postgres:17-bookworm", "redis:7.2-bookworm", "nginx:1.28-alpine")
#: Building everything anew, on a slow machine and over a slow network (seconds).
BUILT_WITHIN = 1500.0
_KEPT = ("PATH", "HOME", "LANG", "XDG_RUNTIME_DIR", "DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CONTEXT")
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


def missing() -> str:
    """A sentence about what these tests lack here; nothing if they can run."""
    if not compose_command():
        return "Neither docker compose nor docker-compose is here (Debian: docker-compose)."
    if _answers(dict(os.environ)):
        return ""
    if lacking := [
        name for name in ("docker", "dockerd", "docker-init", "debootstrap", "iptables") if not _which(name)
    ]:
        return f"No Docker engine runs, and to start one {', '.join(lacking)} is missing (Debian: docker.io)."
    if os.geteuid() != 0:
        return "No Docker engine runs, and only root may start one."
    return ""


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _answers(env: dict[str, str]) -> bool:
    docker = shutil.which("docker")
    return (
        docker is not None
        and not subprocess.run([docker, "info"], env=env, capture_output=True, check=False).returncode
    )


def compose_command() -> list[str]:
    """Compose 2 if it is there, else 1.29."""
    if (
        shutil.which("docker")
        and not subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode
    ):
        return ["docker", "compose"]
    found = shutil.which("docker-compose")
    return [found] if found else []


def run(
    *command: str, env: dict[str, str], seconds: float = 300, cwd: Path = ROOT, check: bool = True
) -> str:
    """What it says; AssertionError with that if it fails."""
    ran = subprocess.run(
        command, cwd=cwd, env=env, text=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert not check or ran.returncode == 0, f"{' '.join(command)}: {ran.returncode}\n{ran.stdout[-8000:]}"
    return ran.stdout


@dataclass
class Engine:
    """What docker and compose need to know of it, and of the images: `env` and compose's `files`."""

    env: dict[str, str]
    is_ours: bool
    files: list[str] = field(default_factory=lambda: ["docker-compose.yml"])

    def docker(self, *command: str, seconds: float = 120, check: bool = True) -> str:
        return run("docker", *command, env=self.env, seconds=seconds, check=check)

    def has(self, image: str) -> bool:
        return bool(self.docker("images", "--quiet", image).strip())

    def provide_images(self) -> Self:
        """The official ones where they can be pulled; else ones of the same shape, made from Debian's packages."""
        if not self.is_ours and all(self._pull(image) for image in OFFICIAL):
            return self
        if not self.has(BASE):
            self._import_base()
        if not self.has(SERVERS):
            servers = str(HERE / "Dockerfile.servers")
            self._build("--file", servers, "--build-arg", f"BASE={BASE}", "--tag", SERVERS, str(HERE))
        self.env["PYTHON_IMAGE"] = BASE
        self.files.append(str(HERE / "compose.override.yml"))
        return self

    def _pull(self, image: str) -> bool:
        return (
            self.has(image)
            or not subprocess.run(
                ["docker", "pull", "--quiet", image],
                env=self.env,
                capture_output=True,
                check=False,
                timeout=300,
            ).returncode
        )

    def _build(self, *options: str) -> None:
        self.docker("build", "--quiet", *options, seconds=BUILT_WITHIN)

    def _import_base(self) -> None:
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            root = Path(folder) / "root"
            quiet = {"env": self.env, "seconds": BUILT_WITHIN}
            wanted = "--include=ca-certificates,python3,python3-venv"
            run(
                _which("debootstrap") or "",
                "--variant=minbase",
                wanted,
                "bookworm",
                str(root),
                **quiet,
            )
            _teach(root)
            archive = Path(folder) / "base.tar"
            run(
                "tar",
                "-C",
                str(root),
                "--exclude=./var/cache/apt/archives/*.deb",
                "-cf",
                str(archive),
                ".",
                **quiet,
            )
            self.docker("import", str(archive), BASE, seconds=BUILT_WITHIN)
            run("rm", "-rf", str(root), **quiet)


def _teach(root: Path) -> None:
    """The base trusts whom this machine trusts, and installs from where it does."""
    trusted = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    bundle = "/etc/ssl/certs/ca-certificates.crt"
    if trusted:
        run("cp", trusted, f"{root}{bundle}", env=dict(os.environ))
    config = configparser.ConfigParser(interpolation=None)
    config["global"] = {"cert": bundle}
    for name in ("index-url", "extra-index-url"):
        ask = [sys.executable, "-m", "pip", "config", "get", f"global.{name}"]
        told = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()
        if value := os.environ.get(f"PIP_{name.replace('-', '_').upper()}") or told:
            config["global"][name] = value
    with tempfile.NamedTemporaryFile("w") as file:
        config.write(file)
        file.flush()
        run("install", "-m", "0644", file.name, f"{root}/etc/pip.conf", env=dict(os.environ))


@contextmanager
def engine() -> Iterator[Engine]:
    """One that runs, or one of our own for as long as the `with` lasts."""
    env = {
        name: os.environ[name] for name in _KEPT if name in os.environ
    }  # nothing of this test run's own service
    CACHE.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack, (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _answers(env):
            yield Engine(env, is_ours=False).provide_images()
        else:
            host = stack.enter_context(_dockerd())
            yield Engine(env | {"DOCKER_HOST": host}, is_ours=True).provide_images()


@contextmanager
def _dockerd() -> Iterator[str]:
    """Its address. It leaves nothing behind but its images."""
    forward = _FORWARD.read_text()
    with tempfile.TemporaryDirectory(prefix="mailqueue-docker-") as folder:
        address = f"unix://{folder}/socket"
        command = [
            _which("dockerd") or "", "--host", address, "--data-root", str(CACHE / "docker"),
            "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid", "--log-level", "warn",
            "--bip", "10.213.66.1/24", "--default-address-pool", "base=10.213.128.0/17,size=24",
        ]  # fmt: skip
        env = os.environ | {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
        with (CACHE / "dockerd.log").open("w") as log:
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            until(
                lambda: process.poll() is not None or _answers(env | {"DOCKER_HOST": address}),
                "the engine answers",
            )
            assert process.poll() is None, (CACHE / "dockerd.log").read_text()[-4000:]
            yield address
        finally:
            if process.poll() is None:
                pid = Path(f"{folder}/pid").read_text().strip()
                subprocess.run(["kill", f"-{signal.SIGTERM:d}", pid], check=False)
            process.wait(60)
            _forget_network(forward)
            subprocess.run(["rm", "-rf", f"{folder}/exec"], check=False)


def _forget_network(forward: str) -> None:
    """What an engine leaves in the kernel when it ends: a bridge, its chains, and that this machine forwards."""
    iptables = [_which("iptables") or ""]

    def quietly(*command: str) -> None:
        subprocess.run(command, capture_output=True, check=False)

    quietly("ip", "link", "delete", "docker0")
    for table in ("filter", "nat"):
        rules = subprocess.run([*iptables, "-t", table, "-S"], capture_output=True, text=True, check=False)
        lines = [line.split() for line in rules.stdout.splitlines()]
        for line in lines:
            if line[0] == "-A" and (
                "DOCKER" in " ".join(line) or "docker0" in line or "10.213.66.0/24" in line
            ):
                quietly(*iptables, "-t", table, "-D", *line[1:])
        for deed in ("-F", "-X"):
            for line in lines:
                if line[0] == "-N" and line[1].startswith("DOCKER"):
                    quietly(*iptables, "-t", table, deed, line[1])
    if forward.strip() == "0":
        quietly(*iptables, "-P", "FORWARD", "ACCEPT")
        quietly("sh", "-c", f"echo 0 > {_FORWARD}")
