"""The stress script: as many mails, as fast, of as many owners and in such lanes as one likes."""

import argparse
from collections import Counter
from typing import Any

from django.core.management.base import CommandParser

from mailqueue.load import Plan
from mailqueue.management.load_command import LoadCommand
from tasks.states import Lane


class Command(LoadCommand):
    help = (
        "Puts load on a running stack over HTTP, waits until all of it is sent, and sums up. The owners are new, "
        "without a relay of their own: their mail goes to the default one, to readers at example.com."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--count", type=_positive, default=10_000, help="mails (default: 10,000)")
        parser.add_argument(
            "--rate", type=float, default=0, help="mails a second (default: as fast as it goes)"
        )
        parser.add_argument("--owners", type=_positive, default=1, help="who send in turns (default: 1)")
        parser.add_argument(
            "--lanes",
            type=_lanes,
            default={"default": 1},
            help="with their shares, such as otp=1,default=8,bulk=1 (default: default)",
        )
        parser.add_argument("--batch", type=_batch, default=1, help="mails a call, up to 1,000 (default: 1)")
        parser.add_argument(
            "--callers", type=_positive, default=4, help="calls at the same time (default: 4)"
        )
        parser.add_argument(
            "--size", type=_positive, default=1000, help="characters of text (default: 1,000)"
        )

    def handle(self, **options: Any) -> None:
        names = ("count", "rate", "owners", "lanes", "batch", "callers", "size")
        plan = Plan(**{name: options[name] for name in names})
        outcome = self.fare(options["url"], plan)
        self.show_rates(outcome)
        for lane in plan.lanes:
            self.show_waits(lane, outcome.waits(lane))
        became = Counter(fate.status for fate in outcome.fates)
        self.stdout.write(f"became    {', '.join(f'{status} {n}' for status, n in became.most_common())}")
        if outcome.refusals:
            self.stdout.write(f"429       {outcome.refusals} calls were asked to wait, and were made again")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _batch(text: str) -> int:
    number = _positive(text)
    if number > 1000:
        raise argparse.ArgumentTypeError("a batch has 1,000 mails at most")
    return number


def _lanes(text: str) -> dict[str, int]:
    lanes = {}
    for each in text.split(","):
        name, _, share = each.partition("=")
        if name not in Lane.labels:
            raise argparse.ArgumentTypeError(f"{name!r} is no lane: {', '.join(Lane.labels)}")
        lanes[name] = _positive(share or "1")
    return lanes
