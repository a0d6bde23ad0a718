"""PostgreSQL and Redis alone, for tests and for one command."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mailqueue.embedded import environment
from mailqueue.embedded.postgres import Postgres
from mailqueue.embedded.process import CannotStartError, Server
from mailqueue.embedded.redis import Redis


def needed(env: dict[str, str], data: Path, *, durable: bool = True) -> list[Server]:
    """The servers that the user has not named an address for; their addresses are put into `env`."""
    servers: list[Server] = []
    for name, make in (
        ("DATABASE_URL", lambda: Postgres(data / "postgres", durable=durable)),
        ("REDIS_URL", lambda: Redis(data / "redis", env["REDIS_PASSWORD"])),
    ):
        if not environment.given(name):
            servers.append(make())
            env[name] = servers[-1].url
    return servers


@contextmanager
def services(*, temporary: bool = False, data: Path | None = None) -> Iterator[dict[str, str]]:
    """The whole environment of a command, with PostgreSQL and Redis behind it.

    `temporary`: new ones, in a folder that goes away, without fsync. Otherwise those of the stack that runs
    on `data` (DATA_DIR), or ones started on it for this while.
    """
    with ExitStack() as stack:
        if temporary:
            data = Path(tempfile.mkdtemp(prefix="mailqueue-"))
            stack.callback(shutil.rmtree, data, ignore_errors=True)
        data = data or environment.data_dir()
        try:
            stack.enter_context(environment.held(data))
        except environment.Busy:
            yield environment.complete(data) | environment.published(data)
            return
        env = environment.complete(data)
        for server in needed(env, data, durable=not temporary):
            stack.callback(server.stop)
            server.start()
        yield env


def execute(command: Sequence[str], *, temporary: bool) -> int:
    """Runs a command among the services; returns its exit code as a shell would."""
    with services(temporary=temporary) as env:
        # Ctrl-C reaches the command through the terminal; here it must only not interrupt the clean-up.
        signal.signal(signal.SIGINT, lambda *_: None)
        try:
            child = subprocess.Popen(command, env={"DEBUG": "false"} | env)  # noqa: S603 -- the user's own command
        except OSError as error:
            raise CannotStartError(f"{command[0]}: {os.strerror(error.errno or 0)}") from error
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        code = child.wait()
    return 128 - code if code < 0 else code
