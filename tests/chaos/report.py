"""The table of the fault suite."""

import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from tests.chaos.checker import Verdict
from tests.chaos.run import Case

Say = Callable[[str], None]
_LINE = "{:<4} {:<34} {:>5} {:>8} {:>9} {:>9} {:>5} {:>5} {:>4} {:>12} {:>9} {:>6}"
_HEAD = _LINE.format(
    "", "fault", "times", "accepted", "delivered", "cancelled", "held", "twice", "lost", "recovered s", "accepts s",
    "took s",
)  # fmt: skip
_LEGEND = """\
twice: arrivals beyond the first; recovered: seconds from a fault's end until all that was due before it had arrived,
usual / longest; accepts: seconds from a fault's end until a mail was accepted, longest"""


class Line(NamedTuple):
    """A case that was run; `logs` is the folder that was kept, if any."""

    case: Case
    verdict: Verdict
    seconds: float
    logs: str

    @property
    def is_well(self) -> bool:
        """All promises were kept; or, with a guard taken out, it was noticed."""
        return not self.verdict.is_failure and bool(self.verdict.broken) == self.case.must_break


def row(line: Line) -> str:
    of = line.verdict
    figures = (
        of.faults, of.accepted, of.delivered, of.cancelled, of.held, of.duplicates, of.lost,
        f"{of.usual_recovery:.1f} / {of.slowest_recovery:.1f}", f"{max(of.accepts_again, default=0):.1f}",
        f"{line.seconds:.0f}",
    )  # fmt: skip
    return _LINE.format(line.case.name, line.case.title, *figures) + _remark(line)


def _remark(line: Line) -> str:
    broken = len(line.verdict.broken)
    if line.case.must_break:
        return (
            f"  red, as it must be: {broken}" if line.is_well else "  NOT RED: the suite has noticed nothing"
        )
    return "" if line.is_well else f"  BROKEN: {broken}, logs in {line.logs}"


def table(lines: Sequence[Line], seed: int, scale: float) -> str:
    """What docs/reliability.md explains."""
    bad = [line for line in lines if not line.is_well]
    ending = f"not well: {', '.join(line.case.name for line in bad)}" if bad else "all promises were kept"
    broken = [f"{line.case.name}: {sentence}" for line in bad for sentence in line.verdict.broken]
    heading = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.machine()}, scale {scale:g}, seed {seed}"
    return "\n".join([heading, _HEAD, *map(row, lines), _LEGEND, ending, *broken[:200], ""])
