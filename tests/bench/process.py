"""Starts the programs that are measured, and ends each of them whatever happens."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

GRACE_SECONDS = 20


class NotMeasuredError(Exception):
    """A row has no figure; the text is the sentence that is shown instead."""


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def last_words(log: Path) -> str:
    """The last line that says something, for the sentence of a row that failed."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"


@contextmanager
def running(
    command: Sequence[str | Path], log: Path, *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The program in a session of its own, its output in `log`; ended with its children on the way out."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Asks the leader to finish, then makes sure that nothing of its session is left."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    deadline = time.monotonic() + 5
    with suppress(ProcessLookupError):  # that nobody is left is what we want to hear
        while time.monotonic() < deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.poll()
            time.sleep(0.02)
    process.wait()


def wait_until_logged(word: str, process: subprocess.Popen[bytes], log: Path, patience: float = 60) -> None:
    """Until `word` stands in the log: how a Celery worker says that it is ready."""
    deadline = time.monotonic() + patience
    while word not in log.read_text(errors="replace"):
        if process.poll() is not None:
            raise NotMeasuredError(f"{log.stem} ended at once: {last_words(log)}")
        if time.monotonic() > deadline:
            raise NotMeasuredError(f"{log.stem} was not ready after {patience:.0f} s: {last_words(log)}")
        time.sleep(0.05)


def wait_until_open(
    port: int,
    process: subprocess.Popen[bytes],
    log: Path,
    patience: float = 60,
    address: str = "127.0.0.1",
) -> None:
    """Until somebody listens on the port."""
    deadline = time.monotonic() + patience
    while True:
        with suppress(OSError), socket.create_connection((address, port), timeout=1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise NotMeasuredError(f"{log.stem} never listened on port {port}: {last_words(log)}")
        time.sleep(0.05)


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    given: str = "",
    patience: float = 600,
) -> str:
    """The output of a program that has to succeed; `given` is its standard input."""
    words = " ".join(map(str, command[:4]))
    try:
        done = subprocess.run(
            [str(part) for part in command],
            input=given,
            capture_output=True,
            text=True,
            env=env,
            cwd=cwd,
            timeout=patience,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NotMeasuredError(f"{words} took longer than {patience:.0f} s") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise NotMeasuredError(f"{words} failed: {said[:200]}")
    return done.stdout
