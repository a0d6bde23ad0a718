"""Many mails through the API of a running stack, and how they fared: what `demo` and `loadtest` share."""

import itertools
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

import httpx
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

#: Nothing more is waited for when nothing has come to its end for so long (seconds).
PATIENCE = 60.0
_A_PAGE = 200


@dataclass(frozen=True)
class Plan:
    """What is to be sent: `rate` in mails a second, 0 for as fast as it goes; `lanes` with their shares; `batch`
    mails a call; `size` characters of text."""

    count: int
    owners: int = 1
    rate: float = 0.0
    lanes: Mapping[str, int] = field(default_factory=lambda: {"default": 1})
    callers: int = 4
    batch: int = 1
    size: int = 200


@dataclass(frozen=True)
class Fate:
    """One mail's, as the queue shows it in the end."""

    lane: str
    status: str
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True)
class Outcome:
    """`seconds` is what handing over took; `refusals` are answers 429, after which the call was made again."""

    seconds: float
    refusals: int
    fates: Sequence[Fate]

    def sent(self) -> list[Fate]:
        return [fate for fate in self.fates if fate.status == "success"]

    def sending_seconds(self) -> float:
        """From the first acceptance to the last final dot."""
        ends = [fate.finished_at for fate in self.sent() if fate.finished_at]
        return (max(ends) - min(fate.created_at for fate in self.fates)).total_seconds() if ends else 0.0

    def waits(self, lane: str | None = None) -> list[float]:
        """Milliseconds from acceptance to the final dot, in order."""
        return sorted(
            (fate.finished_at - fate.created_at).total_seconds() * 1000
            for fate in self.sent()
            if fate.finished_at and lane in (None, fate.lane)
        )


class Load:
    """Registers its owners without a relay of their own, so that their mail goes to the default one."""

    def __init__(self, url: str, plan: Plan) -> None:
        self.plan = plan
        self._api = httpx.Client(
            base_url=f"{url}/api/v1", timeout=30, limits=httpx.Limits(max_connections=None)
        )
        self._refusals = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._api.close()

    def run(self, progress: Progress) -> Outcome:
        """httpx.HTTPStatusError for an answer that nobody expects."""
        tokens = [self._fresh_owner() for _ in range(self.plan.owners)]
        began = time.perf_counter()
        self._enqueue(tokens, progress)
        seconds = time.perf_counter() - began
        self._wait(tokens, progress)
        fates = [fate for token in tokens for fate in self._fates(token)]
        return Outcome(seconds, self._refusals, fates)

    def _fresh_owner(self) -> dict[str, str]:
        """Headers that speak for a new user."""
        login = {"email": f"load-{secrets.token_hex(4)}@example.com", "password": secrets.token_urlsafe(16)}
        self._call("POST", "/register", json=login)
        return {"Authorization": f"Bearer {self._call('POST', '/login', json=login)['token']}"}

    def _enqueue(self, tokens: Sequence[dict[str, str]], progress: Progress) -> None:
        bar = progress.add_task("enqueued", total=self.plan.count)
        starts = range(0, self.plan.count, self.plan.batch)
        began = time.monotonic()

        def hand_over(start: int) -> None:
            if self.plan.rate:
                time.sleep(max(0.0, began + start / self.plan.rate - time.monotonic()))
            end = min(start + self.plan.batch, self.plan.count)
            headers = tokens[start // self.plan.batch % len(tokens)]
            mails = [self._mail(number) for number in range(start, end)]
            if self.plan.batch == 1:
                self._call("POST", "/task/enqueue", headers=headers, json=mails[0])
            else:
                answer = self._call("POST", "/task/enqueue/batch", headers=headers, json={"messages": mails})
                refused = [result["error"] for result in answer["results"] if "error" in result]
                if refused:
                    raise RuntimeError(f"A mail of a batch was refused: {refused[0]['detail']}")
            progress.advance(bar, end - start)

        with ThreadPoolExecutor(self.plan.callers) as callers:
            try:
                for _ in callers.map(hand_over, starts):
                    pass
            except BaseException:
                callers.shutdown(cancel_futures=True)
                raise

    def _mail(self, number: int) -> dict[str, str]:
        lanes = [lane for lane, share in self.plan.lanes.items() for _ in range(share)]
        text = (
            f"This is mail {number + 1} of {self.plan.count}.\n\nAccepted over HTTP, kept, sent by SMTP. ✓\n"
        )
        return {
            "recipient_email": f"reader-{number + 1}@example.com",
            "subject": f"Load {number + 1} of {self.plan.count}",
            "body": text + "." * (self.plan.size - len(text)),
            "lane": lanes[number % len(lanes)],
        }

    def _wait(self, tokens: Sequence[dict[str, str]], progress: Progress) -> None:
        """Until all have come to their end, or nothing has for PATIENCE."""
        bar = progress.add_task("sent", total=self.plan.count)
        last_news, fewest = time.monotonic(), self.plan.count + 1
        while True:
            began = time.monotonic()
            left = sum(self._unfinished(token) for token in tokens)
            progress.update(bar, completed=self.plan.count - left)
            now = time.monotonic()
            if left < fewest:
                last_news, fewest = now, left
            if not left or now - last_news > PATIENCE:
                return
            time.sleep(max(0.5, 2 * (now - began)))  # asking must not slow the answer

    def _unfinished(self, token: dict[str, str]) -> int:
        question = {"action": "cancel", "filter": {"all": True}, "dry_run": True}
        waiting: int = self._call("POST", "/task/bulk", headers=token, json=question)["matched"]
        return waiting + sum(1 for _ in self._listed(token, status="processing"))

    def _fates(self, token: dict[str, str]) -> Iterator[Fate]:
        for task in self._listed(token):
            finished = task["finished_at"]
            yield Fate(
                task["lane"],
                task["status"],
                datetime.fromisoformat(task["created_at"]),
                datetime.fromisoformat(finished) if finished else None,
            )

    def _listed(self, token: dict[str, str], **wanted: str) -> Iterator[dict[str, Any]]:
        page = self._call("GET", "/task/queue", headers=token, params={**wanted, "limit": _A_PAGE})
        yield from page["results"]
        while page["next"]:
            page = self._call("GET", page["next"], headers=token)
            yield from page["results"]

    def _call(self, method: str, path: str, **call: Any) -> dict[str, Any]:
        """The answer; who is asked to wait waits."""
        for _ in itertools.count():
            response = self._api.request(method, path, **call)
            if response.status_code != httpx.codes.TOO_MANY_REQUESTS:
                break
            with self._lock:
                self._refusals += 1
            time.sleep(float(response.headers.get("Retry-After", 1)))
        answer: dict[str, Any] = response.raise_for_status().json()
        return answer


def bars() -> Progress:
    return Progress(
        TextColumn("{task.description:9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )
