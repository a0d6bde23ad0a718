"""The limits that no sender on this machine can pass: smtp-source against the sinks."""

import os
import time

from tests.bench.ground import Figures, Ground
from tests.bench.process import run
from tests.bench.sink import postfix_tool, smtp_sink
from tests.bench.stamps import stamping_sink

SESSIONS = 10


def _source(port: int, mails: int, *options: str) -> float:
    """Seconds that smtp-source needs for so many mails of 1 KB."""
    began = time.perf_counter()
    run([postfix_tool("smtp-source"), "-4", "-s", str(SESSIONS), "-l", "1024", "-m", str(mails), *options,
         f"127.0.0.1:{port}"])  # fmt: skip
    return time.perf_counter() - began


class Limit:
    """smtp-source to smtp-sink."""

    def __init__(self, name: str, title: str, mails: int, *options: str) -> None:
        self.name, self.title, self.mails, self.options = name, title, mails, options

    def measure(self, ground: Ground) -> Figures:
        mails = ground.scaled(self.mails)
        with smtp_sink(ground.scratch) as sink:
            seconds = _source(sink.port, mails, *self.options)
            return {"mails/s": sink.watch(mails).last_count / seconds}


class StampLimit:
    """smtp-source to the sink that the latency is read from, so that nobody takes its limit for ours."""

    name = "stamp-limit"
    title = "smtp-source to the sink of the latency row"

    def measure(self, ground: Ground) -> Figures:
        mails = ground.scaled(10_000)
        with stamping_sink() as sink:
            return {"mails/s": mails / _source(sink.port, mails, "-d")}


class Disk:
    """What one commit after the other can reach: everything that answers 202 waits for such a write."""

    name = "disk"
    title = "the disk: 8 KB written and flushed"

    def measure(self, ground: Ground) -> Figures:
        flushes = ground.scaled(1_000)
        with (ground.scratch / "disk").open("wb", buffering=0) as file:
            began = time.perf_counter()
            for _ in range(flushes):
                file.write(bytes(8192))
                os.fdatasync(file.fileno())
            return {"flushes/s": flushes / (time.perf_counter() - began)}


LIMITS = [
    Disk(),
    Limit("limit-kept", f"smtp-source, {SESSIONS} kept sessions", 100_000, "-d"),
    Limit("limit-connect", "smtp-source, a connection per mail", 20_000),
    StampLimit(),
]
