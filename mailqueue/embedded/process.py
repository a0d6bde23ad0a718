"""Child processes: each leads a session of its own, is ended as a whole, and never outlives its parent."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO

import psutil

Child = subprocess.Popen[bytes]
Output = int | IO[bytes] | None

#: The project's folder; everything is started there.
ROOT = Path(__file__).resolve().parent.parent.parent

#: In the environment of each part, so that what an earlier runner left behind can be found.
MARK = "MAILQUEUE_STACK"


class CannotStartError(Exception):
    """The message says why, to whoever typed the command."""


_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    user: str | None = None,
    stop_signal: signal.Signals = signal.SIGTERM,
    output: Output = None,
) -> Child:
    """Starts a program that gets `stop_signal` when the thread that called this dies (Linux)."""
    # One call into libc, after the change of user (which would reset it) and before the exec.
    with_parent = (
        partial(_libc.prctl, _PR_SET_PDEATHSIG, int(stop_signal)) if sys.platform == "linux" else None
    )
    return subprocess.Popen(  # noqa: S603 -- our own command lines
        command,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        start_new_session=True,
        preexec_fn=with_parent,  # noqa: PLW1509 -- see above
        user=user,
        group=user,
        extra_groups=[] if user else None,
    )


def kill_group(child: Child) -> None:
    """Ends whatever is left of a child's session, such as the processes of a pool."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def end(child: Child, stop_signal: signal.Signals, seconds: float) -> int:
    """Asks the leader, waits at most `seconds`, then kills all of it. Returns the exit code."""
    if child.poll() is None:
        child.send_signal(stop_signal)
        with suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
    kill_group(child)
    return child.wait()


def end_leftovers(data: Path, seconds: float = 10) -> list[str]:
    """Ends the parts of a runner that was killed on the same data. Returns what was found, for people."""
    found = [process for process in psutil.process_iter(["name"]) if _is_part(process, data)]
    for process in found:
        with suppress(psutil.Error):
            process.terminate()
    _, stubborn = psutil.wait_procs(found, timeout=seconds)
    for process in stubborn:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(stubborn, timeout=seconds)
    return [f"{process.info['name']} ({process.pid})" for process in found]


def _is_part(process: psutil.Process, data: Path) -> bool:
    try:
        return process.pid != os.getpid() and bool(process.environ().get(MARK) == str(data))
    except (psutil.Error, OSError):
        return False


class Server(ABC):
    """A program that is started, asked until it answers, and stopped: PostgreSQL or Redis."""

    name: str
    url: str
    stop_signal = signal.SIGTERM

    def __init__(self) -> None:
        self.child: Child | None = None

    @abstractmethod
    def prepare(self) -> None:
        """Makes what must be there before the program starts."""

    @abstractmethod
    def spawn(self, output: Output = None, env: Mapping[str, str] | None = None) -> Child:
        """Starts the program."""

    @abstractmethod
    def answers(self) -> bool:
        """True once it takes requests."""

    def tidy(self) -> None:  # noqa: B027 -- most leave nothing behind
        """Takes away what is of no use once it is down."""

    def start(self, output: Output = subprocess.DEVNULL, seconds: float = 60) -> None:
        """Returns when it answers; CannotStartError when it does not in time."""
        self.prepare()
        self.child = self.spawn(output)
        deadline = time.monotonic() + seconds
        while not self.answers():
            if self.child.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise CannotStartError(f"{self.name} did not start")
            time.sleep(0.02)

    def stop(self, seconds: float = 10) -> None:
        if self.child is not None:
            end(self.child, self.stop_signal, seconds)
        self.tidy()

    def kill(self) -> None:
        """As a crash would."""
        if self.child is not None:
            self.child.kill()
            end(self.child, signal.SIGKILL, 10)
