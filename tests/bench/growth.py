"""What the service asks of its tables all the time, at a million rows against ten thousand."""

import json
import statistics
from dataclasses import dataclass

from tests.bench.ground import Figures, Ground, Row
from tests.bench.service import Service

#: Short, for it is rows that grow here.
TEXT = "Hello, this is a mail of the benchmark.\n"


@dataclass
class Grown:
    """A filled database; kept over the rounds, for filling it takes longer than asking."""

    service: Service
    rows: int

    @classmethod
    def filled(cls, ground: Ground, rows: int) -> "Grown":
        service = Service.empty(ground, database=f"bench_rows_{rows}")
        # More mail comes from more senders. Nothing is sent here, so the relay's port is any.
        service.plenty("grown", rows, max(100, rows // 1_000), 9, TEXT)
        return cls(service, rows)

    def ask(self) -> dict[str, float]:
        said = self.service.python("-m", "tests.bench.questions")
        return dict(json.loads(said.splitlines()[-1]))


class Growth:
    """How many times as long each question takes, see questions.py; `worst` is the one that grew most."""

    name = "growth"
    title = "this service, a million rows / ten thousand"
    few = 10_000
    rows = 1_000_000  # `--rows` changes it
    turns = 3

    def __init__(self) -> None:
        self.kept: dict[int, Grown] = {}

    def measure(self, ground: Ground) -> Figures:
        rows = ground.scaled(self.rows)
        for size in (self.few, rows):
            if size not in self.kept:
                self.kept[size] = Grown.filled(ground, size)
        few, many = self._in_turns(ground, self.kept[self.few], self.kept[rows])
        times = {f"{name} x": many[name] / few[name] for name in many}
        took = {f"{name} ms": many[name] for name in many}
        return {f"worst x at {rows:,}": max(times.values())} | times | took

    def _in_turns(self, ground: Ground, *grown: Grown) -> list[dict[str, float]]:
        """The medians of each; in turns, so that what disturbs disturbs both."""
        for one in grown:
            ground.settle(one.service.env["DATABASE_URL"])
        said = [[one.ask() for one in grown] for _ in range(self.turns)]
        return [
            {name: statistics.median(answer[name] for answer in answers) for name in answers[0]}
            for answers in zip(*said, strict=True)
        ]


GROWTH: list[Row] = [Growth()]
