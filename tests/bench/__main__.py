"""Measures every row turn by turn and shows the medians side by side.

SCALE=0.1 in the environment makes everything a tenth as large.
"""

import argparse
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from tests.bench import report
from tests.bench.batches import BATCHES
from tests.bench.cost import COST
from tests.bench.crowd import CROWD
from tests.bench.ground import Ground, Row, grounded
from tests.bench.growth import GROWTH, Growth
from tests.bench.limits import LIMITS
from tests.bench.live import LIVE
from tests.bench.machines import MACHINES
from tests.bench.others import PEERS
from tests.bench.ours import OURS, Drain
from tests.bench.partitioned import PARTITIONED
from tests.bench.process import NotMeasuredError
from tests.bench.secured import SECURED
from tests.bench.singles import SINGLES
from tests.bench.slow import SLOW
from tests.bench.subscribers import SubscribersAtOnce
from tests.bench.times import TIMES

ROWS: list[Row] = [
    *LIMITS,
    *PEERS,
    *OURS,
    *SINGLES,
    *BATCHES,
    *SECURED,
    *SLOW,
    *CROWD,
    SubscribersAtOnce(),
    *TIMES,
    *MACHINES,
    *LIVE,
    *COST,
    *GROWTH,
    *PARTITIONED,
]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--count", type=int, help=f"mails that ours drains ({Drain.mails:,}); others in proportion"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of every row; the median counts")
    parser.add_argument("--rows", type=int, default=Growth.rows, help="of the row `growth`")
    parser.add_argument(
        "--only", action="append", choices=[row.name for row in ROWS], help="this row; repeatable"
    )
    default = Path("bench-results") / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    parser.add_argument("--json", type=Path, default=default, help="where the figures go")
    return parser.parse_args()


def _measure(row: Row, ground: Ground, score: report.Score, console: Console) -> None:
    score.idle.append(report.idle_share())
    try:
        figures = row.measure(ground)
    except Exception as error:  # noqa: BLE001 -- whatever it is, the other rows are measured
        score.rounds.append(None)
        score.why = said = str(error) if isinstance(error, NotMeasuredError) else repr(error)
    else:
        score.rounds.append(figures)
        said = ", ".join(f"{unit} {report.number(value)}" for unit, value in figures.items())
    console.print(f"  {row.title}: {said}", highlight=False, markup=False, soft_wrap=True)


def main() -> int:
    asked = _arguments()
    scale = float(os.environ.get("SCALE") or 1) * (asked.count or Drain.mails) / Drain.mails
    Growth.rows = asked.rows
    rows = [row for row in ROWS if not asked.only or row.name in asked.only]
    console = Console(stderr=True)
    scores = {row.name: report.Score(row.name, row.title) for row in rows}
    with grounded(scale) as ground:
        machine = report.conditions(ground)
        for turn in range(asked.rounds):
            console.print(f"round {turn + 1} of {asked.rounds}", style="bold")
            for row in rows:
                _measure(row, ground, scores[row.name], console)
    report.show(scores, machine)
    report.write(asked.json, scores, machine)
    console.print(f"written to {asked.json}")
    return 0 if all(score.rounds and any(score.rounds) for score in scores.values()) else 1


def _end(*_signal: object) -> None:
    """Ctrl-C or SIGTERM, once: a second one must not interrupt the ending of what was started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)
    try:
        sys.exit(main())
    except NotMeasuredError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
