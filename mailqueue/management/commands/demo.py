"""Sends many small mails into the sandbox through the API of a running stack, and measures how they fared."""

import logging
import os
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from statistics import quantiles
from typing import Any

import httpx
from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

#: Calls at the same time; the web has two processes.
CALLERS = 4
#: The demonstration fails when nothing more arrives for this long (seconds).
PATIENCE = 60.0

Task = dict[str, Any]


class Command(BaseCommand):
    requires_system_checks = []
    help = "Enqueues mails over HTTP into the sandbox inbox and shows the rate and the latencies."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--count", type=int, default=1000, help="how many mails (default: 1000)")
        parser.add_argument("--url", default=f"http://127.0.0.1:{os.environ.get('PORT', '8000')}")

    def handle(self, **options: Any) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells every call
        count, url = max(options["count"], 2), options["url"].rstrip("/")
        try:
            with httpx.Client(base_url=f"{url}/api/v1", timeout=30) as api:
                api.headers["Authorization"] = f"Bearer {_fresh_user(api)}"
                began = time.perf_counter()
                with _progress() as progress:
                    _enqueue(api, count, progress)
                    enqueued = time.perf_counter() - began
                    sent = _sent(api, count, progress)
        except KeyboardInterrupt:
            raise CommandError("stopped; what was accepted is sent all the same", returncode=130) from None
        except httpx.ConnectError as error:
            raise CommandError(f"Nothing answers at {url}: start it with `make run`.") from error
        except httpx.HTTPStatusError as error:
            raise CommandError(f"{error.request.url} answered {error.response.text}") from error
        self._report(sent, enqueued, f"{url}/sandbox/")

    def _report(self, sent: list[Task], enqueued: float, inbox: str) -> None:
        created = [datetime.fromisoformat(task["created_at"]) for task in sent]
        finished = [datetime.fromisoformat(task["finished_at"]) for task in sent]
        seconds = (max(finished) - min(created)).total_seconds()
        waits = [(end - start).total_seconds() * 1000 for start, end in zip(created, finished, strict=True)]
        percentiles = quantiles(waits, n=100, method="inclusive")
        self.stdout.write(
            f"enqueued  {len(sent)} in {enqueued:.1f} s, {len(sent) / enqueued:.0f}/s over HTTP"
        )
        self.stdout.write(f"sent      {len(sent)} in {seconds:.1f} s, {len(sent) / seconds:.0f}/s")
        self.stdout.write(
            f"latency   p50 {percentiles[49]:.0f} ms, p95 {percentiles[94]:.0f} ms (accepted to sent)"
        )
        self.stdout.write(f"read them {inbox}")


def _fresh_user(api: httpx.Client) -> str:
    """Registered without a relay of its own, so that its mail goes to the default one: the sandbox."""
    login = {"email": f"demo-{secrets.token_hex(4)}@example.com", "password": secrets.token_urlsafe(16)}
    api.post("/register", json=login).raise_for_status()
    token: str = api.post("/login", json=login).raise_for_status().json()["token"]
    return token


def _enqueue(api: httpx.Client, count: int, progress: Progress) -> None:
    bar = progress.add_task("enqueued", total=count)

    def one(number: int) -> None:
        mail = {
            "recipient_email": f"reader-{number}@example.com",
            "subject": f"Demonstration {number} of {count}",
            "body": f"This is mail {number} of {count}.\n\nAccepted over HTTP, kept, sent by SMTP. ✓\n",
        }
        api.post("/task/enqueue", json=mail).raise_for_status()
        progress.advance(bar)

    with ThreadPoolExecutor(CALLERS) as callers:
        for _ in callers.map(one, range(1, count + 1)):
            pass


def _sent(api: httpx.Client, count: int, progress: Progress) -> list[Task]:
    """All of them once they are sent; CommandError if they do not come."""
    bar = progress.add_task("sent", total=count)
    last_news, known = time.monotonic(), -1
    while True:
        began = time.monotonic()
        sent = list(_with_status(api, "success"))
        progress.update(bar, completed=len(sent))
        if len(sent) >= count:
            return sent
        now = time.monotonic()
        if len(sent) > known:
            last_news, known = now, len(sent)
        elif now - last_news > PATIENCE:
            raise CommandError(
                f"{count - len(sent)} of {count} were not sent, and none came for {PATIENCE:.0f} s."
            )
        time.sleep(max(0.5, 2 * (now - began)))  # asking must not slow the answer


def _with_status(api: httpx.Client, status: str) -> Iterator[Task]:
    page = api.get("/task/queue", params={"status": status, "limit": 200}).raise_for_status().json()
    yield from page["results"]
    while page["next"]:
        page = api.get(page["next"]).raise_for_status().json()
        yield from page["results"]


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )
