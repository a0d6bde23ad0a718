"""Sends many small mails into the sandbox through the API of a running stack, and measures how they fared."""

from typing import Any

from django.core.management.base import CommandError, CommandParser

from mailqueue.load import PATIENCE, Plan
from mailqueue.management.load_command import LoadCommand


class Command(LoadCommand):
    help = "Enqueues mails over HTTP into the sandbox inbox and shows the rate and the latencies."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--count", type=int, default=1000, help="how many mails (default: 1000)")

    def handle(self, **options: Any) -> None:
        count, url = max(options["count"], 2), options["url"].rstrip("/")
        outcome = self.fare(url, Plan(count))
        left = count - len(outcome.sent())
        if left:
            raise CommandError(f"{left} of {count} were not sent, and none came for {PATIENCE:.0f} s.")
        self.show_rates(outcome)
        self.show_waits("latency", outcome.waits())
        self.stdout.write(f"read them {url}/sandbox/")
