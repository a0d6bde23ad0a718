"""How long PostgreSQL takes over what the service asks it all the time: `python -m tests.bench.questions`.

Answers, as JSON, with the milliseconds of each, medians of many. What Python adds is the same at any size, and would
hide growth; and the wall clock shows what else runs here. So the time is what the server's process took of a
processor for a call of the real code; of a server elsewhere, which cannot be asked that, it is the clock's.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import django

django.setup()

from django.conf import settings  # noqa: E402 -- Django first
from django.db import connection, transaction  # noqa: E402
from django.test import Client  # noqa: E402

from accounts.models import User  # noqa: E402
from mailqueue import upkeep  # noqa: E402
from mailqueue.delivery import ledger_threads  # noqa: E402
from tasks import ledger  # noqa: E402
from tasks.ledger import Settlement  # noqa: E402
from tasks.states import Outcome, Phase, Status  # noqa: E402
from tests.bench.client import EMAIL, PASSWORD  # noqa: E402

CALLS = 25
#: A claim that is rolled back leaves its dead rows behind, which weigh more in a small table: few of them.
CLAIMS = 12
GROUP, ROOM = 200, 50
#: Calls until PostgreSQL keeps a plan, and some more.
FEW = 8


def _clock() -> float:
    """Seconds that the server's process of this connection has run so far (proc(5), schedstat counts nanoseconds)."""
    process = Path("/proc", str(connection.connection.info.backend_pid))
    try:
        is_here = (process / "comm").read_text() == "postgres\n"
        return int((process / "schedstat").read_text().split()[0]) / 1e9 if is_here else time.perf_counter()
    except OSError:
        return time.perf_counter()


def milliseconds(ask: Callable[[], object], calls: int = CALLS) -> float:
    took = []
    ask()  # warms the caches
    for _ in range(calls):
        began = _clock()
        ask()
        took.append((_clock() - began) * 1000)
    return statistics.median(took)


@contextmanager
def with_a_workers_settings() -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute(ledger_threads.SETTINGS)
    yield
    with connection.cursor() as cursor:
        cursor.execute("RESET plan_cache_mode; RESET enable_seqscan")


def claim() -> None:
    with transaction.atomic():
        if len(ledger.claim(GROUP, 60, token=uuid4(), room=ROOM)) != GROUP:
            raise SystemExit(f"a claim did not find {GROUP} mails, so claims cannot be compared")
        transaction.set_rollback(True)


def as_a_worker() -> dict[str, float]:
    """Claims and their results, committed: after a rollback psycopg prepares anew, and PostgreSQL plans a prepared
    statement for its first five calls anew too, which of a worker's thousands are none."""
    took: dict[str, list[float]] = {"steady claim": [], "steady results": []}
    accepted: dict[str, Any] = {
        "outcome": Outcome.ACCEPTED,
        "phase": Phase.REPLY,
        "code": 250,
        "reply": "250 ok",
    }
    for _ in range(FEW + CALLS):
        began = _clock()
        mails = ledger.claim(GROUP, 60, token=uuid4(), room=ROOM)
        claimed = _clock()
        results = [Settlement(mail.id, mail.token, Status.SUCCESS, **accepted) for mail in mails]
        before = _clock()
        if len(ledger.settle(results, "benchmark")) != GROUP:
            raise SystemExit(f"a claim did not find {GROUP} mails, so claims cannot be compared")
        took["steady claim"].append((claimed - began) * 1000)
        took["steady results"].append((_clock() - before) * 1000)
    return {name: statistics.median(times[FEW:]) for name, times in took.items()}


def sweep() -> None:
    if upkeep.sweep() != upkeep.BITE:
        raise SystemExit(f"a sweep did not find {upkeep.BITE} mails, so sweeps cannot be compared")


def answers() -> dict[str, float]:
    settings.SWEEP_AFTER_SECONDS = 0  # whatever is due counts as forgotten, so that it has its hands full
    user = User.objects.get(email=EMAIL)
    User.objects.filter(pk=user.pk).update(is_staff=True, is_superuser=True)
    web = Client(SERVER_NAME="localhost", headers={"X-Forwarded-Proto": "https"})
    said = web.post("/api/v1/login", {"email": EMAIL, "password": PASSWORD}, "application/json")
    bearer = {"Authorization": f"Bearer {said.json()['token']}"}
    web.force_login(user)

    def show(path: str, headers: dict[str, str] | None = None) -> None:
        if (status := web.get(path, headers=headers).status_code) != 200:
            raise SystemExit(f"GET {path} answered {status}")

    with with_a_workers_settings():
        claims = as_a_worker() if "--steady" in sys.argv else {}
        claims["claim"] = milliseconds(claim, CLAIMS)
    return claims | {
        "dispatch": milliseconds(upkeep.dispatch_due),
        "sweep": milliseconds(sweep),
        "page": milliseconds(lambda: show("/api/v1/task/queue", bearer)),
        "admin": milliseconds(lambda: show("/admin/tasks/mailtask/")),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(answers()))
