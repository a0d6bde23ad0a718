"""The questions of growth.py, and claims and results of a worker at work: in partitions against one table."""

import json
import statistics

from tests.bench.ground import Figures, Ground, Row
from tests.bench.growth import TEXT
from tests.bench.service import Service


class Partitioned:
    """How many times as long each takes; `worst` is the one that lost most. Kept over the rounds."""

    name = "partitions"
    title = "this service in 20 partitions / in one table"
    rows = 1_000_000
    parts = 20
    turns = 3

    def __init__(self) -> None:
        self.kept: list[Service] = []

    def measure(self, ground: Ground) -> Figures:
        rows = ground.scaled(self.rows)
        self.kept = self.kept or [self._filled(ground, rows, parts) for parts in (0, self.parts)]
        for service in self.kept:
            ground.settle(service.env["DATABASE_URL"])
        said = [[self._ask(service) for service in self.kept] for _ in range(self.turns)]
        whole, parts = [
            {name: statistics.median(answer[name] for answer in answers) for name in answers[0]}
            for answers in zip(*said, strict=True)
        ]
        times = {f"{name} x": parts[name] / whole[name] for name in whole}
        took = {f"{name} ms": parts[name] for name in whole}
        return {f"worst x at {rows:,}": max(times.values())} | times | took

    def _filled(self, ground: Ground, rows: int, parts: int) -> Service:
        service = Service.empty(ground, database=f"bench_{parts}_partitions")
        if parts:
            apply = f"partitions.apply({rows // parts}, ahead={parts - 2})"
            service.python("-c", f"import django; django.setup(); from tasks import partitions; {apply}")
        service.plenty("grown", rows, max(100, rows // 1_000), 9, TEXT)
        return service

    def _ask(self, service: Service) -> dict[str, float]:
        said = service.python("-m", "tests.bench.questions", "--steady")
        return dict(json.loads(said.splitlines()[-1]))


PARTITIONED: list[Row] = [Partitioned()]
