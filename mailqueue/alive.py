"""Whether a program without a port still does its work: `python -m mailqueue.alive worker|upkeep|beat`.

Exits with 0 or 1, and says why in a sentence. For probes, which ask often, so it imports neither Django nor Celery,
and asks neither database nor broker: it looks how old a file is. Who keeps the file young: pulse.py and beat.py.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

PROGRAMS = ("worker", "upkeep", "beat")
#: A program whose file is older than this (seconds) has stopped working. Beat waits up to 30 between two attempts to
#: reach a broker that was away when it was started.
LIMIT = 60.0


def default_dir() -> Path:
    return Path(tempfile.gettempdir())


def file_of(program: str, folder: Path) -> Path:
    return folder / f"mailqueue-{program}.alive"


def touch(program: str, folder: Path) -> None:
    """The program works. OSError if that cannot be noted."""
    # Where everybody may write, somebody might have laid a link there.
    fd = os.open(file_of(program, folder), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.utime(fd)
    finally:
        os.close(fd)


def judge(program: str, folder: Path) -> tuple[bool, str]:
    """Whether it is alive, and the sentence that says so."""
    file = file_of(program, folder)
    try:
        age = time.time() - file.stat().st_mtime
    except OSError as error:
        return False, f"{program} has not started: {file}: {error.strerror}"
    # A file from the future is of a clock that was put back; who lives has put that right within seconds.
    if abs(age) > LIMIT:
        return False, f"{program} was last alive {age:.0f} s ago, and {LIMIT:.0f} s are allowed ({file})"
    return True, f"{program} was alive {age:.0f} s ago"


def _folder() -> Path:
    """HEARTBEAT_DIR, as config/env.py reads it, which takes most of a second to import."""
    named = os.environ.get("HEARTBEAT_DIR_FILE")
    text = Path(named).read_text().strip() if named else os.environ.get("HEARTBEAT_DIR", "").strip()
    return Path(text) if text else default_dir()


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in PROGRAMS:
        sys.stderr.write(f"Which program? python -m mailqueue.alive {'|'.join(PROGRAMS)}\n")
        return 1
    is_alive, sentence = judge(arguments[0], _folder())
    sys.stdout.write(sentence + "\n")
    return 0 if is_alive else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
