"""`python -m mailqueue.alive` looks at a file's age, and the worker keeps that file young for good reasons only."""

import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from config import env
from mailqueue import alive, pulse
from mailqueue.embedded.process import ROOT
from mailqueue.embedded.redis import free_port
from tasks import doorbell


def probe(program: str, folder: Path, **more: str) -> tuple[int, str]:
    """As a container's health check runs it, with nothing else in the environment."""
    command = [sys.executable, "-m", "mailqueue.alive", *program.split()]
    environment = {"HEARTBEAT_DIR": str(folder)} | more
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout + ran.stderr


def seconds_ago(program: str, folder: Path, seconds: float) -> None:
    alive.touch(program, folder)
    then = time.time() - seconds
    os.utime(alive.file_of(program, folder), (then, then))


@pytest.mark.parametrize("program", alive.PROGRAMS)
def test_who_has_just_shown_it_is_alive(program: str, tmp_path: Path) -> None:
    alive.touch(program, tmp_path)
    code, said = probe(program, tmp_path)
    assert (code, said.startswith(f"{program} was alive ")) == (0, True), said


@pytest.mark.parametrize("age", [alive.LIMIT + 1, -3600.0])
def test_who_has_not_shown_it_for_a_minute_is_not(age: float, tmp_path: Path) -> None:
    seconds_ago("worker", tmp_path, age)
    code, said = probe("worker", tmp_path)
    assert code == 1
    assert "worker was last alive" in said


def test_who_never_did_has_not_started_whatever_others_do(tmp_path: Path) -> None:
    alive.touch("worker", tmp_path)
    code, said = probe("beat", tmp_path)
    assert code == 1
    assert "beat has not started" in said


@pytest.mark.parametrize("arguments", ["", "web", "worker beat"])
def test_a_program_that_it_does_not_know_is_not_alive(arguments: str, tmp_path: Path) -> None:
    alive.touch("worker", tmp_path)
    code, said = probe(arguments, tmp_path)
    assert code == 1
    assert "worker|upkeep|beat" in said


def test_an_old_sign_is_made_young_again(tmp_path: Path) -> None:
    seconds_ago("beat", tmp_path, 3600)
    alive.touch("beat", tmp_path)
    assert probe("beat", tmp_path)[0] == 0


def test_a_link_that_somebody_laid_there_is_not_followed(tmp_path: Path) -> None:
    alive.file_of("worker", tmp_path).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        alive.touch("worker", tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_the_probe_imports_nothing_large() -> None:
    loaded = "import sys, mailqueue.alive; print(*{name.partition('.')[0] for name in sys.modules})"
    ran = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"django", "celery", "environs", "config", "redis"} & set(ran.stdout.split())


def test_probe_and_service_mean_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mounted").write_text(f"{tmp_path}\n")
    for given in ({}, {"HEARTBEAT_DIR": str(tmp_path)}, {"HEARTBEAT_DIR_FILE": str(tmp_path / "mounted")}):
        with monkeypatch.context() as environment:
            environment.delenv("HEARTBEAT_DIR", raising=False)
            for name, value in given.items():
                environment.setenv(name, value)
            folder = env.read().heartbeat_dir
            assert folder == (tmp_path if given else alive.default_dir())
            assert alive._folder() == folder


# A page ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (302, 1)])
def test_a_page_that_answers_200_is_alive_and_no_other(status: int, code: int) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz/live" else 404)
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            """Says nothing."""

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/healthz/live"
        assert probe(address, Path()) == (code, f"{address} answers {status}\n")
        thread.join()


def test_a_page_that_nobody_serves_is_not_alive() -> None:
    code, said = probe(f"http://127.0.0.1:{free_port()}/healthz/live", Path())
    assert code == 1
    assert "does not answer" in said


# What keeps a worker's sign young -----------------------------------------------------------------------


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pulse, "time", clock)
    return clock


def pulse_step(monkeypatch: pytest.MonkeyPatch, *, broker: bool) -> pulse.PulseStep:
    monkeypatch.setattr(doorbell, "is_there", lambda: broker)
    return pulse.PulseStep(SimpleNamespace())


def test_a_loop_that_turns_is_well(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    step = pulse_step(monkeypatch, broker=True)
    for _ in range(100):
        clock.now += pulse.EVERY
        step.turn()
        assert step.is_well()


def test_a_loop_that_stands_while_the_broker_answers_is_stuck(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = pulse_step(monkeypatch, broker=True)
    clock.now += pulse.PATIENCE - 1
    assert step.is_well()
    clock.now += 2
    assert not step.is_well()
    step.turn()
    assert step.is_well()


def test_a_loop_that_waits_for_the_broker_is_well_and_has_time_to_come_back(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = pulse_step(monkeypatch, broker=False)
    for _ in range(1000):
        clock.now += pulse.EVERY
        assert step.is_well()
    monkeypatch.setattr(doorbell, "is_there", lambda: True)
    clock.now += 32  # and it was looked at within the last ten
    assert step.is_well()
    clock.now += pulse.PATIENCE
    assert not step.is_well()


def test_a_sign_that_cannot_be_given_stops_nothing(tmp_path: Path, settings: SimpleNamespace) -> None:
    settings.HEARTBEAT_DIR = tmp_path / "missing"
    pulse.touch("worker")
    assert not alive.judge("worker", settings.HEARTBEAT_DIR)[0]
