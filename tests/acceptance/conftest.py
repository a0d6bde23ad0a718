"""One whole stack for the tests that only use it, as `make run` starts it, on free ports; and what those share that
send through a relay which nobody here wrote."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mailqueue.embedded.process import ROOT
from mailqueue.embedded.redis import free_port
from tests.certificates import make_certificates
from tests.machine import Machine, own_database
from tests.relay import Relay

#: Longer than a slow machine takes to start everything (seconds).
STARTS_WITHIN = 120


@dataclass(frozen=True)
class Stack:
    """A running service. `env` is what it was started with: ports, DATA_DIR, ADMIN_PASSWORD."""

    home: str
    env: dict[str, str]
    log: Path


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Shared: make users of your own, and kill nothing."""
    folder = tmp_path_factory.mktemp("stack")
    ports = {name: str(free_port()) for name in ("PORT", "FLOWER_PORT", "SANDBOX_SMTP_PORT")}
    # Nothing of this test run's own services.
    env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    env |= ports | {"DATA_DIR": str(folder / "data"), "ADMIN_PASSWORD": "the admin's password"}
    log = folder / "stack.log"
    command = [sys.executable, "-m", "mailqueue.embedded", "run"]
    with (
        log.open("w") as said,
        subprocess.Popen(command, cwd=ROOT, env=env, stdout=said, stderr=subprocess.STDOUT) as process,
    ):
        try:
            _until_ready(process, log)
            yield Stack(f"http://127.0.0.1:{ports['PORT']}", env, log)
        finally:
            process.terminate()
            process.wait()


def _until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while "\nready: " not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"The stack did not start:\n{log.read_text()}")
        time.sleep(0.1)


@pytest.fixture(scope="module")
def destination() -> Iterator[Relay]:
    """Where a real relay brings what it accepted."""
    with Relay() as relay:
        yield relay


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def trusting_machine(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A service, to be started, that trusts the authority of the good certificate, and no other."""
    settings = {
        "SSL_CERT_FILE": str(certificates / "authority.pem"),
        "SSL_CERT_DIR": str(certificates / "none"),
        "SMTP_ALLOWED_NETWORKS": "127.0.0.0/8,::1/128",  # what "localhost" may stand for
    }
    with (
        own_database() as database,
        Machine(database, tmp_path_factory.mktemp("machine"), **settings) as machine,
    ):
        yield machine
