"""`make demo` and `make loadtest` against a running stack: what they say is what became of the mail."""

import re
import subprocess
import sys
from typing import Any

import pytest

from mailqueue.embedded.process import ROOT
from tests.acceptance.conftest import Stack

RUNNER = [sys.executable, "-m", "mailqueue.embedded"]


def typed(stack: Stack, *command: str) -> subprocess.CompletedProcess[str]:
    everything: dict[str, Any] = {"cwd": ROOT, "env": stack.env, "capture_output": True, "text": True}
    return subprocess.run([*RUNNER, *command], check=False, timeout=120, **everything)


def loadtest(stack: Stack, *options: str) -> subprocess.CompletedProcess[str]:
    return typed(stack, "exec", "--", sys.executable, "manage.py", "loadtest", *options)


def test_the_demonstration_sends_its_mails_and_says_where_to_read_them(stack: Stack) -> None:
    done = typed(stack, "demo", "--count", "30")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^enqueued +30 in [\d.]+ s, \d+/s over HTTP$", done.stdout, re.MULTILINE)
    assert re.search(r"^sent +30 in [\d.]+ s, \d+/s$", done.stdout, re.MULTILINE)
    assert re.search(r"^latency +p50 \d+ ms, p95 \d+ ms", done.stdout, re.MULTILINE)
    assert f"read them {stack.home}/sandbox/" in done.stdout


@pytest.mark.parametrize("batch", ["1", "10"])
def test_load_of_several_owners_and_lanes_is_sent_and_summed_up(stack: Stack, batch: str) -> None:
    options = ["--count", "55", "--owners", "3", "--lanes", "otp=1,default=3,bulk=1", "--batch", batch]
    done = loadtest(stack, *options)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^sent +55 in ", done.stdout, re.MULTILINE)
    assert re.search(r"^became +success 55$", done.stdout, re.MULTILINE)
    assert re.findall(r"^(\w+) +p50 \d+ ms", done.stdout, re.MULTILINE) == ["otp", "default", "bulk"]


def test_a_rate_is_kept(stack: Stack) -> None:
    done = loadtest(stack, "--count", "21", "--rate", "10")
    took = re.search(r"^enqueued +21 in ([\d.]+) s", done.stdout, re.MULTILINE)
    assert took, done.stderr
    assert float(took[1]) >= 1.9
