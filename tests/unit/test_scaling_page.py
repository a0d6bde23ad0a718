"""The tables of docs/scaling.md follow from the costs at its top."""

import re

from mailqueue.embedded.process import ROOT

PAGE = (ROOT / "docs" / "scaling.md").read_text()
LOADS = {"1,000": 1e3, "1 million": 1e6, "100 million": 1e8, "1,000 million": 1e9}
PEAK, BUSY, KEPT_DAYS = 3, 0.6, 7
CONNECTIONS, REACHED = 250, 0.75
#: EUR for a core and month, for a GB of disk and month (kept twice), for a thousand mails at a relay.
CORE, GIGABYTE, THOUSAND = 20, 0.10 * 2, 0.10


def shown(value: float) -> str:
    if value < 0.01:
        return "< 0.01"
    return f"{value:,.2f}" if value < 10 else f"{value:,.0f}"


def row(name: str, *values: float) -> str:
    return f"| {name} | {' | '.join(map(shown, values))} |"


def tables(cost: dict[str, float]) -> list[str]:
    lines = []
    for name, a_day in LOADS.items():
        peak = a_day / 86_400 * PEAK

        def cores(*milliseconds: str, peak: float = peak) -> float:
            return peak * sum(cost[one] for one in milliseconds) / 1000 / BUSY

        disk = a_day * (cost["disk_content"] + cost["disk_task"] + cost["disk_attempt"]) / 1e9
        lines += [
            row(
                name,
                a_day / 86_400,
                peak,
                cores("web_single"),
                cores("web_batch"),
                cores("pg_single", "pg_drain"),
                cores("pg_batch", "pg_drain"),
                cores("redis_single"),
                cores("worker"),
            ),
            row(
                name,
                peak * (cost["wal_single"] + cost["wal_drain"]) / 1e6,
                peak * (cost["wal_batch"] + cost["wal_drain"]) / 1e6,
                a_day * (cost["wal_batch"] + cost["wal_drain"]) / 1e9,
                disk,
                disk * KEPT_DAYS,
                peak * (cost["rows_single"] + cost["rows_drain"]),
                peak * (cost["commits_single"] + cost["commits_drain"]),
                peak * (cost["commits_single"] / 1000 + cost["commits_drain"]),
            ),
            row(
                name,
                cores("worker"),
                *(peak * 2 * reply / (CONNECTIONS * REACHED) for reply in (0.02, 0.1, 0.3)),
            ),
            row(
                name,
                CORE * cores("web_batch", "pg_batch", "pg_drain", "worker"),
                CORE * cores("web_single", "pg_single", "pg_drain", "redis_single", "worker"),
                GIGABYTE * disk * KEPT_DAYS,
                THOUSAND * a_day * 30 / 1000,
            ),
        ]
    return lines


def test_the_tables_follow_from_the_costs() -> None:
    cost = {
        name: float(value) for name, value in re.findall(r"^\| (\w+_?\w*) \| ([\d.]+) \|", PAGE, re.MULTILINE)
    }
    computed = tables(cost)
    assert len(computed) == 16
    assert [line for line in computed if line not in PAGE.splitlines()] == []
