"""What the commands that put load on a running stack have in common."""

import logging
import os
from statistics import quantiles
from typing import Any

import httpx
from django.core.management.base import BaseCommand, CommandError, CommandParser

from mailqueue.load import Load, Outcome, Plan, bars


class LoadCommand(BaseCommand):
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--url", default=f"http://127.0.0.1:{os.environ.get('PORT', '8000')}")

    def fare(self, url: str, plan: Plan) -> Outcome:
        """Carries the plan out, with bars; CommandError says what is in the way."""
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells every call
        try:
            with Load(url.rstrip("/"), plan) as load, bars() as progress:
                return load.run(progress)
        except KeyboardInterrupt:
            raise CommandError("stopped; what was accepted is sent all the same", returncode=130) from None
        except httpx.ConnectError as error:
            raise CommandError(f"Nothing answers at {url}: start it with `make run`.") from error
        except httpx.HTTPStatusError as error:
            raise CommandError(f"{error.request.url} answered {error.response.text}") from error
        except (httpx.TransportError, RuntimeError) as error:
            raise CommandError(str(error) or repr(error)) from error

    def show_rates(self, outcome: Outcome) -> None:
        count, sent, seconds = len(outcome.fates), len(outcome.sent()), outcome.sending_seconds()
        handed_over = f"{count} in {outcome.seconds:.1f} s, {count / outcome.seconds:.0f}/s over HTTP"
        self.stdout.write(f"enqueued  {handed_over}")
        self.stdout.write(f"sent      {sent} in {seconds:.1f} s, {sent / max(seconds, 0.001):.0f}/s")

    def show_waits(self, title: str, waits: list[float]) -> None:
        if len(waits) > 1:
            cuts: Any = quantiles(waits, n=100, method="inclusive")
            said = f"p50 {cuts[49]:.0f} ms, p95 {cuts[94]:.0f} ms, p99 {cuts[98]:.0f} ms (accepted to sent)"
            self.stdout.write(f"{title:9} {said}")
