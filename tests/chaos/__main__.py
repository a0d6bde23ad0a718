"""The fault suite: `make chaos`, or python -m tests.chaos [--only C1 --only C8] [--scale 0.05] [--seed 7].

Prints a table and writes it to a file; the exit code is 1 if a promise was broken. docs/reliability.md explains it.
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from mailqueue.embedded.process import ROOT
from tests.chaos import report
from tests.chaos.cases import CASES, MUTANTS, OVER_TIME
from tests.chaos.checker import Verdict
from tests.chaos.run import Case, Run
from tests.chaos.sink import running_sink
from tests.chaos.stage import Stage

#: The sink's longest pause before each of its two slow replies (seconds).
SINK_DELAY = 0.1


def main() -> int:
    arguments = _arguments()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    known = {case.name: case for case in (*CASES, OVER_TIME, *MUTANTS)}
    if unknown := set(arguments.only) - known.keys():
        sys.exit(f"There is no {', '.join(sorted(unknown))}; there are {', '.join(known)}.")
    chosen = [case for name, case in known.items() if not arguments.only or name in arguments.only]
    done: list[report.Line] = []
    console = Console()
    console.print(f"seed {seed}, scale {arguments.scale:g}")
    columns = (SpinnerColumn(), TextColumn("{task.fields[case]:<4} {task.description}"), TimeElapsedColumn())
    for case in chosen:
        with Progress(*columns, console=console, transient=True) as progress:
            say = partial(
                _show, progress, progress.add_task("starts the service", case=case.name, total=None)
            )
            run = _run_over_time if case is OVER_TIME else _run
            line = run(case, arguments, seed, say)
        done.append(line)
        console.print(report.row(line), markup=False, highlight=False, soft_wrap=True)
        for sentence in line.verdict.broken[: 3 if line.is_well else 20]:
            console.print(f"     {sentence}", markup=False, highlight=False, soft_wrap=True)
        arguments.out.write_text(report.table(done, seed, arguments.scale))
    console.print()
    console.print(report.table(done, seed, arguments.scale), markup=False, highlight=False, soft_wrap=True)
    return int(not all(line.is_well for line in done))


def _show(progress: Progress, bar: TaskID, said: str) -> None:
    progress.update(bar, description=said)


def _run(case: Case, arguments: argparse.Namespace, seed: int, say: report.Say) -> report.Line:
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    began = time.monotonic()
    try:
        with running_sink(folder, SINK_DELAY) as sink, Stage(folder, **case.stage) as stage:
            stage.until_up()
            with Run(case, stage, sink, scale=arguments.scale, seed=seed, say=say) as run:
                case.do(run)
                verdict = run.finish()
    except Exception as error:  # noqa: BLE001 -- the next case must have its turn; this one is broken
        verdict = Verdict.of_failure(f"{error!r} {' '.join(getattr(error, '__notes__', ()))}")
    line = report.Line(case, verdict, time.monotonic() - began, str(folder))
    if line.is_well and not arguments.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return line


def _run_over_time(case: Case, arguments: argparse.Namespace, seed: int, say: report.Say) -> report.Line:
    """S1 is a test like others, in another size."""
    say(f"{case.times * arguments.scale:.0f} runs of 50 steps")
    began = time.monotonic()
    size = {"CHAOS_SCALE": f"{arguments.scale:g}", "CHAOS_SEED": str(seed)}
    command = [sys.executable, "-m", "pytest", "-q", "-s", "tests/integration/test_ledger_over_time.py"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | size, capture_output=True, text=True, check=False
    )
    runs = re.search(r"^(\d+) runs to the end", done.stdout, re.MULTILINE)
    verdict = Verdict(faults=int(runs[1]) if runs else 0)
    if done.returncode:
        verdict.broken.append(done.stdout[-4000:])
    return report.Line(case, verdict, time.monotonic() - began, "")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--only", action="append", default=[], metavar="CASE", help="one case; may be repeated"
    )
    parser.add_argument(
        "--scale", type=float, default=float(os.environ.get("SCALE") or 1), help="1 is the full size"
    )
    parser.add_argument("--seed", type=int, help="the dice of an earlier run")
    parser.add_argument("--keep", action="store_true", help="keep the logs of cases that went well, too")
    parser.add_argument("--out", type=Path, default=Path("chaos.txt"), help="where the table is written")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
