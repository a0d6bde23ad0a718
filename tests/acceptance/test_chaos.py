"""The fault suite of `make chaos`, a twentieth of its size: the cases that are marked for it, on one stage.

CHAOS_SEED repeats a run's dice.
"""

import os
import random
import sys
from collections.abc import Iterator

import pytest

from tests.chaos import report
from tests.chaos.cases import CASES
from tests.chaos.run import Case, Run
from tests.chaos.sink import Sink, running_sink
from tests.chaos.stage import Stage

SCALE = float(os.environ.get("CHAOS_SCALE", "0.05"))
SEED = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))
STARRED = [case for case in CASES if case.in_ci]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("chaos"), mortal=True) as stage:
        yield stage


@pytest.fixture(scope="module")
def sink(stage: Stage) -> Iterator[Sink]:
    with running_sink(stage.folder, longest_delay=0.1) as sink:
        yield sink


@pytest.mark.timeout(400 + 2000 * SCALE)
@pytest.mark.parametrize("case", STARRED, ids=[f"{case.name}-{case.do.__name__}" for case in STARRED])
def test_what_was_promised_is_kept(
    stage: Stage, sink: Sink, capsys: pytest.CaptureFixture[str], case: Case
) -> None:
    stage.until_up()
    with Run(case, stage, sink, scale=SCALE, seed=SEED) as run:
        case.do(run)
        verdict = run.finish()
    with capsys.disabled():
        sys.stdout.write(f"\n{report.row(report.Line(case, verdict, 0, str(stage.folder)))}\n")
    assert verdict.broken == [], f"seed {SEED}"
    assert verdict.accepted >= run.mails
