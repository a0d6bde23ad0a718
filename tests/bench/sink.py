"""Where every mail of the benchmarks ends: postfix's smtp-sink, whose own counter is the measure."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.process import NotMeasuredError, free_port, last_words, running, wait_until_open

POLL_SECONDS = 0.005
#: One that is whole: the last one may just be being written.
_COUNT = re.compile(rb"mesg=(\d+)\r")
_SESSIONS = re.compile(rb"sess=(\d+) ")
#: No mail for this long, and the sender is taken to have stopped.
STALL_SECONDS = 30


def postfix_tool(name: str) -> str:
    """The path of smtp-source or smtp-sink; Debian keeps them in sbin, which is not on everybody's PATH."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if not found:
        raise NotMeasuredError("not measured: install postfix")
    return found


@dataclass(frozen=True)
class Window:
    """What the counter said, and when, in seconds since the epoch."""

    first_count: int
    first_at: float
    last_count: int
    last_at: float

    @property
    def rate(self) -> float:
        """Mails a second between the first look that saw any and the look that saw the last one."""
        return (self.last_count - self.first_count) / (self.last_at - self.first_at)


@dataclass
class Sink:
    port: int
    counters: Path

    def count(self) -> int:
        """Mails accepted so far.

        `smtp-sink -c` writes `mesg=N` and a carriage return whenever a mail is accepted. Into a file that
        costs it about 7 % of its own limit; a dump of the mails would cost it far more.
        """
        with self.counters.open("rb") as written:
            written.seek(max(0, written.seek(0, os.SEEK_END) - 200))
            counts = _COUNT.findall(written.read())
        return int(counts[-1]) if counts else 0

    def sessions(self) -> int:
        """Connections that have ended so far; smtp-sink alone counts them."""
        return int(_SESSIONS.findall(self.counters.read_bytes())[-1])

    def watch(
        self, expected: int, sender: subprocess.Popen[bytes] | None = None, patience: float = 60
    ) -> Window:
        """Watches until `expected` mails were accepted. `patience` is for the first one, in seconds."""
        seen, first_count, first_at = 0, 0, 0.0
        deadline = time.monotonic() + patience
        while seen < expected:
            time.sleep(POLL_SECONDS)
            count, now = self.count(), time.time()
            if count > seen:
                if not first_count:
                    first_count, first_at = count, now
                seen, deadline = count, time.monotonic() + STALL_SECONDS
            elif time.monotonic() > deadline or (sender and sender.poll()):
                raise NotMeasuredError(f"the sink saw {seen} of {expected} mails, then no more")
        return Window(first_count, first_at, seen, now)


@contextmanager
def smtp_sink(scratch: Path, *options: str) -> Iterator[Sink]:
    """A fresh smtp-sink on a loopback port: PIPELINING offered, no TLS, no AUTH needed."""
    port, counters = free_port(), scratch / "sink.counters"
    command = [postfix_tool("smtp-sink"), "-4", "-c", "-m", "1000", *options]
    if os.geteuid() == 0:
        command += ["-u", "nobody"]  # as root it insists on somebody to become
    with running([*command, f"127.0.0.1:{port}", "1000"], counters) as process:
        wait_until_open(port, process, counters)
        if process.poll() is not None:
            raise NotMeasuredError(f"smtp-sink ended at once: {last_words(counters)}")
        yield Sink(port, counters)
