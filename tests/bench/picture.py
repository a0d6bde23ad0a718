"""The main comparison as a picture: `python -m tests.bench.picture results.json docs/bench.png`."""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tests.bench.report import Score

#: The rows that are drawn, and how they are called there.
BARS = {
    "limit-kept": "smtp-source to smtp-sink, the limit",
    "ours": "mailqueue",
    "post-office": "django-post-office, 2 x 5, batch 1,000",
    "celery-kept": "Celery task per mail, connections kept",
    "django-mailer": "django-mailer",
    "celery": "Celery task per mail",
}
#: Readable on white and on GitHub's dark #0d1117, for the picture has no ground of its own.
TEXT, OURS, OTHERS, LIMIT = "#7d8590", "#2da44e", "#8c959f", "#8c959f55"


def _rates(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Median mails a second by name, of the rows that are drawn and were measured; the fastest first."""
    scores = [Score(row["name"], row["title"], row["rounds"]) for row in rows]
    medians = {score.name: score.median("mails/s") for score in scores}
    rates = {name: rate for name in BARS if (rate := medians.get(name))}
    return dict(sorted(rates.items(), key=lambda of: -of[1]))


def draw(results: dict[str, Any], to: Path) -> None:
    rates, machine = _rates(results["rows"]), results["machine"]
    figure = Figure(figsize=(8, 0.8 + 0.36 * len(rates)), layout="constrained")
    axes = figure.subplots()
    colours = {"ours": OURS, "limit-kept": LIMIT}
    bars = axes.barh(
        [BARS[name] for name in rates],
        list(rates.values()),
        color=[colours.get(name, OTHERS) for name in rates],
        height=0.62,
    )
    axes.bar_label(bars, [f"{rate:,.0f}" for rate in rates.values()], padding=4, color=TEXT, fontsize=10)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=TEXT, labelsize=10)
    axes.xaxis.set_visible(False)
    for label, name in zip(axes.get_yticklabels(), rates, strict=True):
        label.set_fontweight("bold" if name == "ours" else "normal")
        label.set_color(OURS if name == "ours" else TEXT)
    cores = f"{machine['processors']} cores that sender, servers and sink share"
    figure.suptitle(f"Mails a second: 1 KB, no TLS, {cores}", color=TEXT, fontsize=11, x=0.01, ha="left")
    figure.savefig(to, dpi=160, transparent=True, bbox_inches="tight", pad_inches=0.12)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
