"""The demonstration: against the stack that runs on DATA_DIR, or one that is started for it."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mailqueue.embedded import environment
from mailqueue.embedded.process import ROOT, CannotStartError
from mailqueue.embedded.services import services


def run(arguments: list[str]) -> int:
    """Passes the arguments on to `manage.py demo`; returns its exit code."""
    data = environment.data_dir()
    try:
        if _runs_already(data):
            return _demo(arguments)
        with _stack(data / "demo.log"):
            code = _demo(arguments)
            if code == 0 and sys.stdin.isatty():
                input("The stack was started for this. Press Enter to stop it. ")
            return code
    except KeyboardInterrupt:
        return 130  # as shells say it


def _runs_already(data: Path) -> bool:
    try:
        with environment.held(data):
            return False
    except environment.Busy:
        return True


def _demo(arguments: list[str]) -> int:
    with services() as env:
        command = [sys.executable, "manage.py", "demo", *arguments]
        return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode  # noqa: S603 -- our own


@contextmanager
def _stack(log: Path) -> Iterator[None]:
    """A stack that is ready; stopped at the end. What it says goes into the file."""
    sys.stdout.write(f"no stack runs; starting one (it logs to {log})\n")
    sys.stdout.flush()
    command = [sys.executable, "-m", "mailqueue.embedded", "run"]
    with log.open("w+") as said:
        # In a session of its own: Ctrl-C ends the demonstration first, and the stack through us.
        stack = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, start_new_session=True)  # noqa: S603
        try:
            while "\nready: " not in log.read_text():
                if stack.poll() is not None:
                    raise CannotStartError(f"No stack ran, and none could be started:\n{log.read_text()}")
                time.sleep(0.2)
            yield
        finally:
            stack.send_signal(signal.SIGTERM)
            stack.wait()
