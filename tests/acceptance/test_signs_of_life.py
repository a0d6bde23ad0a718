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


def start_worker(machine: Machine) -> None:
    """Unless the other test has."""
    if "worker" not in machine.running:
        machine.start_worker()


def probe(machine: Machine, program: str) -> int:
    command = [sys.executable, "-m", "mailqueue.alive", program]
    return subprocess.run(
        command, cwd=ROOT, env=machine.env, stdout=subprocess.DEVNULL, check=False
    ).returncode


def until_they_show_themselves_anew(machine: Machine, *programs: str) -> None:
    """The files' times move on twice, which they only do when the programs move them."""
    files = {alive.file_of(program, machine.folder): set[int]() for program in programs}
    for file, seen in files.items():
        if file.exists():
            seen.add(file.stat().st_mtime_ns)
    awaited = {file: len(seen) + 2 for file, seen in files.items()}

    def have_shown() -> bool:
        for file, seen in files.items():
            if file.exists():
                seen.add(file.stat().st_mtime_ns)
        return all(len(seen) >= awaited[file] for file, seen in files.items())

    until(have_shown, f"{', '.join(programs)} show that they live")


def test_each_shows_that_it_lives_and_goes_on_while_the_broker_is_away(machine: Machine) -> None:
    start_worker(machine)
    machine.start_upkeep()
    machine.start_beat()
    until_they_show_themselves_anew(machine, *alive.PROGRAMS)
    assert [probe(machine, program) for program in alive.PROGRAMS] == [0, 0, 0]
    machine.redis.stop()
    try:
        until(lambda: "broker_away" in machine.said("worker"), "the worker has noticed")
        until_they_show_themselves_anew(machine, *alive.PROGRAMS)
        until_they_show_themselves_anew(machine, *alive.PROGRAMS)
        machine.kill("beat")
        alive.file_of("beat", machine.folder).unlink()
        machine.start_beat()  # without a broker it never comes to its first tick
        until_they_show_themselves_anew(machine, "beat")
        assert [probe(machine, program) for program in alive.PROGRAMS] == [0, 0, 0]
    finally:
        machine.redis.start()
    until_they_show_themselves_anew(machine, *alive.PROGRAMS)


def test_a_worker_that_stands_still_shows_nothing(machine: Machine) -> None:
    start_worker(machine)
    until_they_show_themselves_anew(machine, "worker")
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
    until_they_show_themselves_anew(machine, "worker")
    assert probe(machine, "worker") == 0
