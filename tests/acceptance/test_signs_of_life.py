"""Real workers and a real beat show that they live, with the broker and without, and a stopped one does not."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mailqueue import alive
from mailqueue.embedded.process import ROOT
from tests.machine import Machine, own_database, until


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with own_database() as database, Machine(database, tmp_path_factory.mktemp("machine")) as machine:
        yield machine


def probe(machine: Machine, program: str) -> int:
    command = [sys.executable, "-m", "mailqueue.alive", program]
    return subprocess.run(
        command, cwd=ROOT, env=machine.env, stdout=subprocess.DEVNULL, check=False
    ).returncode


def until_it_shows_itself_anew(machine: Machine, program: str, times: int = 2) -> None:
    """The file's time moves on, which it only does when the program moves it."""
    file = alive.file_of(program, machine.folder)
    seen: set[int] = {file.stat().st_mtime_ns} if file.exists() else set()
    awaited = len(seen) + times

    def shown() -> bool:
        if file.exists():
            seen.add(file.stat().st_mtime_ns)
        return len(seen) >= awaited

    until(shown, f"{program} shows that it lives")


def test_each_shows_that_it_lives_and_goes_on_while_the_broker_is_away(machine: Machine) -> None:
    machine.start_worker()
    machine.start_upkeep()
    machine.start_beat()
    for program in alive.PROGRAMS:
        until_it_shows_itself_anew(machine, program)
        assert probe(machine, program) == 0
    machine.redis.stop()
    try:
        for program in alive.PROGRAMS:
            until_it_shows_itself_anew(machine, program, times=4)
            assert probe(machine, program) == 0
        machine.kill("beat")
        alive.file_of("beat", machine.folder).unlink()
        machine.start_beat()  # without a broker it never comes to its first tick
        until_it_shows_itself_anew(machine, "beat")
    finally:
        machine.redis.start()
    for program in alive.PROGRAMS:
        until_it_shows_itself_anew(machine, program, times=4)


def test_a_worker_that_stands_still_shows_nothing(machine: Machine) -> None:
    if "worker" not in machine.running:
        machine.start_worker()
    until_it_shows_itself_anew(machine, "worker")
    worker, file = machine.running["worker"], alive.file_of("worker", machine.folder)
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        # Its time in the file is what the probe reads: put back it stays so, for nobody is there to move it.
        stood = file.stat().st_mtime - alive.LIMIT - 1
        os.utime(file, (stood, stood))
        assert probe(machine, "worker") == 1
        assert file.stat().st_mtime == stood
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    until_it_shows_itself_anew(machine, "worker")
    assert probe(machine, "worker") == 0
