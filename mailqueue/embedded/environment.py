"""The environment that every part is started with. What the user has set always wins."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from environs import EnvError, FileAwareEnv

from mailqueue.embedded import secrets
from mailqueue.embedded.process import CannotStartError


class Busy(Exception):  # noqa: N818 -- an answer, not a mishap
    """Another runner holds this data; the message is its process id."""


def data_dir() -> Path:
    return Path(os.environ.get("DATA_DIR") or ".local").resolve()


def given(name: str) -> bool:
    """Whether the user has set it, in either form."""
    return bool(os.environ.get(name) or os.environ.get(f"{name}_FILE"))


def complete(data: Path) -> dict[str, str]:
    """os.environ and what it lacks, but for DATABASE_URL and REDIS_URL; CannotStartError on nonsense."""
    env = FileAwareEnv(strip_whitespace=True)
    try:
        ports = {
            "PORT": env.int("PORT", 8000),
            "FLOWER_PORT": env.int("FLOWER_PORT", 5555),
            "SANDBOX_SMTP_PORT": env.int("SANDBOX_SMTP_PORT", 1025),
        }
        concurrency = env.int("WORKER_CONCURRENCY", 2)
    except (EnvError, ValueError) as error:
        raise CannotStartError(f"The environment is not usable. {error}") from error
    defaults = {name: str(port) for name, port in ports.items()} | {
        "WORKER_CONCURRENCY": str(concurrency),
        "ADMIN_EMAIL": "admin@example.com",
        "LOG_FORMAT": "text",
        "HEARTBEAT_DIR": str(data),
        "ALLOWED_HOSTS": "localhost,127.0.0.1,[::1]",
        "DEFAULT_SMTP_URL": f"smtp://127.0.0.1:{ports['SANDBOX_SMTP_PORT']}",
        "PUBLIC_URL": f"http://127.0.0.1:{ports['PORT']}",
        # A test suite may register a user for each test.
        "THROTTLE_REGISTER": "1000/h",
        "SMTP_ALLOWED_NETWORKS": "127.0.0.0/8,::1/128",
        **{name: secrets.kept(data / "secrets" / name) for name in secrets.GENERATED},
    }
    missing = {name: value for name, value in defaults.items() if not given(name)}
    return dict(os.environ) | missing | {"DATA_DIR": str(data), "PYTHONUNBUFFERED": "1"}


def value(env: dict[str, str], name: str) -> str:
    """A value that may have been mounted as a file."""
    file = os.environ.get(f"{name}_FILE")
    return Path(file).read_text().strip() if file else env[name]


@contextmanager
def held(data: Path) -> Iterator[None]:
    """Nobody else runs on this data meanwhile; raises Busy if somebody does."""
    data.mkdir(parents=True, exist_ok=True)
    with (data / "lock").open("a+") as lock:
        lock.seek(0)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(lock.read().strip()) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def publish(data: Path, env: dict[str, str]) -> None:
    """Notes where the services of a running stack are, for `exec` and `demo` to join."""
    file = data / "services.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps({name: env[name] for name in ("DATABASE_URL", "REDIS_URL", "PORT")}))


def unpublish(data: Path) -> None:
    (data / "services.json").unlink(missing_ok=True)


def published(data: Path) -> dict[str, str]:
    """What the user has set wins here too."""
    try:
        found: dict[str, str] = json.loads((data / "services.json").read_text())
    except FileNotFoundError:
        raise CannotStartError(
            f"Something uses {data} that is not a running stack, or not yet; try again."
        ) from None
    return {name: address for name, address in found.items() if not given(name)}
