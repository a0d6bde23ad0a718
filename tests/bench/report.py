"""Medians, ratios and the machine's condition: as tables for people, as JSON for comparison."""

import json
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.ground import Figures, Ground


@dataclass
class Score:
    """What became of one row over all rounds. A round without a figure is None, its reason in `why`."""

    name: str
    title: str
    rounds: list[Figures | None] = field(default_factory=list)
    #: Before each round: what share of the processors nobody used.
    idle: list[float] = field(default_factory=list)
    why: str = ""

    def values(self, unit: str) -> list[float]:
        return [figures[unit] for figures in self.rounds if figures and unit in figures]

    def median(self, unit: str) -> float | None:
        values = self.values(unit)
        return statistics.median(values) if values else None


@dataclass(frozen=True)
class Target:
    """A line of "to reach": a quotient of two rows, or one row's figure. Less is better where the goal is below
    the gate."""

    title: str
    ours: str
    unit: str
    gate: float
    goal: float
    other: str = ""

    def reached(self, scores: dict[str, Score]) -> float | None:
        """Quotients are taken round by round, then the median: what slowed a round slowed both."""
        if not self.other:
            return scores[self.ours].median(self.unit) if self.ours in scores else None
        if self.ours not in scores or self.other not in scores:
            return None
        pairs = zip(scores[self.ours].rounds, scores[self.other].rounds, strict=True)
        quotients = [ours[self.unit] / other[self.unit] for ours, other in pairs if ours and other]
        return statistics.median(quotients) if quotients else None

    def verdict(self, reached: float) -> str:
        sign = 1 if self.goal > self.gate else -1
        passed = [bound for bound in (self.gate, self.goal) if sign * reached >= sign * bound]
        return ["missed", "gate", "goal"][len(passed)]


TARGETS = [
    Target("delivery / smtp-source, 10 kept sessions", "ours", "mails/s", 0.35, 0.60, "limit-kept"),
    Target("delivery / django-post-office", "ours", "mails/s", 4.5, 8, "post-office"),
    Target(
        "delivery / Celery task per mail, database connections kept", "ours", "mails/s", 25, 45, "celery-kept"
    ),
    Target("single enqueue / a stock DRF view with delay()", "enqueue", "requests/s", 1.8, 3, "stock-view"),
    Target("batches of 1,000 / INSERT of 100 rows", "batches", "messages/s", 0.4, 0.7, "limit-insert"),
    Target("delivery over STARTTLS + AUTH / same without", "ours-tls", "mails/s", 0.70, 0.85, "ours-clear"),
    Target("20 mails/s: enqueue to accepted, p50 ms", "latency", "p50 ms", 8, 4),
    Target("20 mails/s: enqueue to accepted, p95 ms", "latency", "p95 ms", 15, 6),
    Target(
        "a connection per mail / smtp-source doing so", "ours-connect", "mails/s", 0.55, 0.75, "limit-connect"
    ),
    Target("relay of 20 ms: of what its connections can", "slow-20", "of the possible", 0.75, 0.92),
    Target("relay of 100 ms: of what its connections can", "slow-100", "of the possible", 0.75, 0.92),
    Target("a code behind 100,000 bulk mails, p95 ms", "otp-bulk", "p95 ms", 300, 100),
    Target("the same, relay of 100 ms", "otp-bulk-slow", "p95 ms", 1000, 500),
    Target("another's relay hangs: p95 / unloaded", "neighbour", "default x unloaded", 2, 1.2),
    Target("another's relay hangs: a code's p95 / unloaded", "neighbour", "otp x unloaded", 2, 1.2),
    Target("a code while 100,000 subscriptions are due, p95 ms", "subscribers", "meanwhile p95 ms", 300, 100),
    Target("100 mails at 5 a second: s longer than that takes", "limited", "s too long", 3, 1),
    Target("scheduled mail: lateness p99, s", "scheduled", "p99 s", 2, 1),
    Target("two worker machines / one", "ours-machines-2", "mails/s", 1.6, 1.9, "ours-machines-1"),
    Target("what grows most, 1,000,000 rows / 10,000", "growth", "worst x at 1,000,000", 1.5, 1.2),
    Target("what grows most, 10,000,000 rows / 10,000", "growth", "worst x at 10,000,000", 2, 1.3),
    Target("1,000 live-status streams: single enqueue keeps", "live-streams", "of its rate", 0.9, 1.0),
    Target("commits for each mail on the worker's side", "commits", "commits a mail", 0.05, 0.01),
    Target("a worker process with 250 connections, PSS in MB", "memory-worker", "worker MB", 120, 90),
    Target("a web process, PSS in MB", "memory-web", "web MB", 90, 70),
]


def idle_share(seconds: float = 0.5) -> float:
    """How much of the processors nobody used just now, 0 to 1 (proc(5), the first line of /proc/stat)."""

    def ticks() -> tuple[int, int]:
        counted = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return counted[3] + counted[4], sum(counted)

    idle, total = ticks()
    time.sleep(seconds)
    idle_then, total_then = ticks()
    return (idle_then - idle) / max(1, total_then - total)


def conditions(ground: Ground) -> dict[str, Any]:
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "scale": ground.scale,
        **ground.versions(),
    }


def show(scores: dict[str, Score], machine: dict[str, Any]) -> None:
    console = Console(width=None if os.isatty(1) else 150)
    console.print(_rates(scores), _targets(scores))
    console.print(" ".join(f"{name}={value}" for name, value in machine.items()), highlight=False)
    console.print(
        "Sender, sink and servers shared the processors; `idle` is what others had left of them, at worst."
    )


def _rates(scores: dict[str, Score]) -> Table:
    table = Table(title="1 KB mails, no TLS and no AUTH unless it says so: medians", title_justify="left")
    table.add_column("what")
    for column in ("mails/s", "lowest", "highest", "of the limit", "ours is x times", "idle"):
        table.add_column(column, justify="right")
    table.add_column("also")
    limit, ours = (
        scores[name].median("mails/s") if name in scores else None for name in ("limit-kept", "ours")
    )
    for score in scores.values():
        rate, values = score.median("mails/s"), score.values("mails/s")
        cells = [f"{rate:,.0f}", f"{min(values):,.0f}", f"{max(values):,.0f}"] if rate else ["", "", ""]
        cells.append(f"{rate / limit:.3f}" if rate and limit else "")
        cells.append(f"{ours / rate:.2f}" if rate and ours and not score.name.startswith("ours") else "")
        cells.append(f"{min(score.idle):.0%}" if score.idle else "")
        table.add_row(score.title, *cells, _besides(score))
    return table


def _besides(score: Score) -> str:
    units = dict.fromkeys(
        unit for figures in score.rounds if figures for unit in figures if unit != "mails/s"
    )
    said = [f"{unit} {number(median)}" for unit in units if (median := score.median(unit)) is not None]
    return ", ".join([*said, score.why] if score.why else said)


def number(value: float) -> str:
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _targets(scores: dict[str, Score]) -> Table:
    table = Table(title="To reach (medians of each round's quotient)", title_justify="left")
    table.add_column("target")
    for column in ("reached", "gate", "goal", ""):
        table.add_column(column, justify="right")
    for target in TARGETS:
        reached = target.reached(scores)
        shown = (f"{reached:.2f}", target.verdict(reached)) if reached is not None else ("", "not measured")
        table.add_row(target.title, shown[0], f"{target.gate:g}", f"{target.goal:g}", shown[1])
    return table


def write(path: Path, scores: dict[str, Score], machine: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(score) for score in scores.values()]
    targets = [
        {"title": target.title, "reached": target.reached(scores), "gate": target.gate, "goal": target.goal}
        for target in TARGETS
    ]
    content = {"machine": machine, "rows": rows, "targets": targets}
    path.write_text(json.dumps(content, indent=1) + "\n")
