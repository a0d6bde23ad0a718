"""GET /metrics, /stats and /health/metrics: what the contract names, who may see it, and that it is true."""

import os
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError
from django.test import Client
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families
from rest_framework.test import APIClient

from accounts.keys import ApiKey
from mailqueue import workers
from mailqueue.embedded.process import ROOT
from mailqueue.workers import Worker
from tasks import counters, ledger
from tasks.ledger import Settlement
from tasks.states import Outcome, Phase, Status
from tests.factories import UserFactory, claim_one, client_of, make_due

pytestmark = pytest.mark.django_db

LEDGER = {
    "mailqueue_tasks",
    "mailqueue_due",
    "mailqueue_oldest_due_age_seconds",
    "mailqueue_deliveries_total",
    "mailqueue_delivery_seconds",
    "mailqueue_smtp_seconds",
    "mailqueue_rescued_total",
    "mailqueue_swept_total",
    "mailqueue_uncertain_total",
    "mailqueue_late_results_total",
    "mailqueue_doorbell_failures_total",
    "mailqueue_workers",
}
A_MAIL = {"recipient_email": "jane@example.com", "subject": "Hello", "body": "Hello Jane."}


@pytest.fixture(autouse=True)
def nobody_yet(db: None) -> None:
    """Whom another test has killed may have left a heartbeat."""
    Worker.objects.all().delete()


@pytest.fixture
def sent() -> list[int]:
    """Two that were taken, one that was refused, one that is to be tried again; and one in each other state."""
    client = client_of(UserFactory())
    ids = [client.post("/api/v1/task/enqueue", A_MAIL, format="json").json()["task_id"] for _ in range(6)]
    make_due()
    ends = [
        (Status.SUCCESS, Outcome.ACCEPTED),
        (Status.SUCCESS, Outcome.ACCEPTED),
        (Status.CANCELLED, Outcome.REJECTED),
        (Status.FAILED, Outcome.TEMPORARY),
    ]
    for status, outcome in ends:
        mail = claim_one()
        reason = 1 if status == Status.CANCELLED else None
        ledger.settle(
            [
                Settlement(
                    mail.id,
                    mail.token,
                    status,
                    wait=3600.0 if status == Status.FAILED else None,
                    cancel_reason=reason,
                    outcome=outcome,
                    phase=Phase.REPLY,
                    duration_ms=20,
                )
            ],
            "worker:1",
        )
    claim_one()
    client.post("/api/v1/task/enqueue", A_MAIL | {"scheduled_at": "2090-01-31T09:30:00Z"}, format="json")
    return ids


def samples() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = Client().get("/metrics")
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.content.decode())
        for sample in family.samples
    }


# Prometheus -------------------------------------------------------------------------------------------


def test_prometheus_finds_every_metric_of_the_contract(sent: list[int]) -> None:
    families = text_string_to_metric_families(Client().get("/metrics").content.decode())
    found = {f"{each.name}_total" if each.type == "counter" else each.name: each.type for each in families}
    assert found.keys() >= LEDGER
    assert found["mailqueue_delivery_seconds"] == found["mailqueue_smtp_seconds"] == "histogram"


def test_there_is_a_figure_for_each_state_and_outcome_before_anything_was_sent() -> None:
    found = samples()
    assert {labels for name, labels in found if name == "mailqueue_tasks"} == {
        (("status", status.label),) for status in Status
    }
    assert {labels for name, labels in found if name == "mailqueue_deliveries_total"} == {
        (("outcome", outcome.label),) for outcome in Outcome
    }
    assert found["mailqueue_delivery_seconds_count", ()] == 0
    assert found["mailqueue_workers", ()] == 0


def test_the_figures_are_those_of_the_ledger(sent: list[int]) -> None:
    found = samples()
    states = {status.label: found["mailqueue_tasks", (("status", status.label),)] for status in Status}
    assert states == {
        "queued": 1,
        "processing": 1,
        "success": 2,
        "failed": 1,
        "cancelled": 1,
        "scheduled": 1,
        "uncertain": 0,
    }
    assert found["mailqueue_deliveries_total", (("outcome", "accepted"),)] == 2
    assert found["mailqueue_deliveries_total", (("outcome", "rejected"),)] == 1
    assert found["mailqueue_delivery_seconds_count", ()] == 2
    assert found["mailqueue_smtp_seconds_count", (("phase", "reply"),)] == 4
    assert found["mailqueue_smtp_seconds_sum", (("phase", "reply"),)] == pytest.approx(0.08)
    buckets = [
        count
        for (name, labels), count in found.items()
        if name == "mailqueue_smtp_seconds_bucket" and ("phase", "reply") in labels
    ]
    assert buckets == sorted(buckets)  # each holds those below it
    assert buckets[-1] == 4
    assert found["mailqueue_smtp_seconds_bucket", (("le", "0.025"), ("phase", "reply"))] == 4
    assert found["mailqueue_smtp_seconds_bucket", (("le", "0.01"), ("phase", "reply"))] == 0


def test_calls_are_counted_by_route_and_never_by_what_somebody_types() -> None:
    client, before = APIClient(), samples()
    route = (("method", "GET"), ("route", "/api/v1/task/<int:pk>"), ("status", "401"))
    for number in (17, 18):
        client.get(f"/api/v1/task/{number}")
    client.get("/no/such/zebra")
    client.generic("BREW", "/healthz/live")
    after = samples()
    name = "mailqueue_http_requests_total"
    assert after[name, route] - before.get((name, route), 0) == 2
    assert after[name, (("method", "GET"), ("route", "unknown"), ("status", "404"))] > 0
    assert after[name, (("method", "other"), ("route", "/healthz/live"), ("status", "405"))] > 0
    assert "zebra" not in str(after)
    seconds = (("method", "GET"), ("route", "/api/v1/task/<int:pk>"))
    assert after["mailqueue_http_request_seconds_count", seconds] >= 2


def test_without_the_database_it_is_a_503(monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise OperationalError("away")

    monkeypatch.setattr(counters, "figures", away)
    for address in ("/metrics", "/health/metrics"):
        answer = Client().get(address)
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert answer["Retry-After"]


_A_WEB_PROCESS = """
import os, sys
os.getppid = lambda: int(sys.argv[1])
from config.wsgi import application
from django.conf import settings
from django.test import RequestFactory
from config.metrics import CountingMiddleware
from django.http import HttpResponse
counting = CountingMiddleware(lambda request: HttpResponse())
for _ in range(int(sys.argv[2])):
    request = RequestFactory().get("/")
    request.resolver_match = None
    counting(request)
from config import metrics
metrics.LIVE_STREAMS.inc()
from prometheus_client import generate_latest, CollectorRegistry
metrics._LEDGER = CollectorRegistry()  # no database in here
print(metrics.metrics(None).content.decode())
sys.stdout.flush()
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def web_process(tmp_path: Path) -> Any:
    def run(parent: int, calls: int, name: str = "mailqueue_http_requests_total") -> float:
        """What a process of that parent, with a live stream, tells after so many calls; then it is killed."""
        env = os.environ | {"DATA_DIR": str(tmp_path), "DEBUG": "true"}
        env.pop("PROMETHEUS_MULTIPROC_DIR", None)
        command = [sys.executable, "-c", _A_WEB_PROCESS, str(parent), str(calls)]
        done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=False)
        found = [
            sample.value
            for family in text_string_to_metric_families(done.stdout)
            for sample in family.samples
            if sample.name == name
        ]
        assert len(found) == 1, done.stdout
        return found[0]

    return run


def test_processes_of_one_web_tell_of_all_its_calls_the_killed_ones_too(web_process: Any) -> None:
    alive = os.getpid()
    assert web_process(alive, 3) == 3
    assert web_process(alive, 4) == 7


def test_live_streams_of_a_killed_process_are_over(web_process: Any) -> None:
    alive = os.getpid()
    for _ in range(2):
        assert web_process(alive, 1, "mailqueue_live_streams") == 1


def test_a_web_that_starts_anew_counts_anew(web_process: Any, tmp_path: Path) -> None:
    gone = 2**22 + 1  # beyond the largest process id
    assert web_process(gone, 3) == 3
    assert web_process(os.getpid(), 1) == 1
    assert [path.name.rpartition(":")[2] for path in (tmp_path / "metrics").iterdir()] == [str(os.getpid())]


# Three numbers ----------------------------------------------------------------------------------------


def test_jobs_are_counted_in_three_numbers(sent: list[int]) -> None:
    assert Client().get("/health/metrics").json() == {
        "status": True,
        "Total Jobs Executed": 4,
        "Jobs Successful": 2,
        "Jobs Failed": 2,
    }


# Stats ------------------------------------------------------------------------------------------------

ELSEWHERE = {"REMOTE_ADDR": "203.0.113.7"}


def test_stats_tell_of_the_whole_system(sent: list[int]) -> None:
    workers.beat("host:1", "idle", 0, 0, timezone.now())
    stats = Client().get("/stats").json()
    assert stats["pending"] == 3
    assert (stats["processing"], stats["dead_letter"], stats["success"], stats["failed"]) == (1, 1, 2, 1)
    assert stats["cancelled"] == 1
    assert stats["uncertain"] == 0
    assert stats["attempts"] == {"accepted": 2, "temporary": 1, "rejected": 1, "uncertain": 0, "lost": 0}
    assert stats["workers"] == 1
    assert stats["rate"] > 0
    assert 0 < stats["latency_p50_seconds"] <= stats["latency_p95_seconds"]
    assert stats["oldest_due_age_seconds"] > 0


def test_stats_of_an_empty_system_are_zeros_and_no_latency() -> None:
    stats = Client().get("/stats").json()
    assert (stats["pending"], stats["processing"], stats["dead_letter"], stats["rate"]) == (0, 0, 0, 0)
    assert stats["latency_p50_seconds"] is None


def staff() -> Any:
    return UserFactory(is_staff=True)


def session(user: Any) -> Client:
    client = Client()
    client.force_login(user)
    return client


def with_key(user: Any, *scopes: str) -> APIClient:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {ApiKey.mint(user, 'x', scopes)[1]}")
    return client


@pytest.mark.parametrize(
    ("client", "status", "code"),
    [
        (Client, 401, "not_authenticated"),
        (lambda: client_of(UserFactory()), 403, "staff_only"),
        (lambda: session(UserFactory()), 401, "not_authenticated"),
        (lambda: with_key(UserFactory(), "read"), 403, "staff_only"),
        (lambda: with_key(staff(), "send"), 403, "insufficient_scope"),
        (lambda: session(UserFactory(is_staff=True, is_active=False)), 401, "not_authenticated"),
        (lambda: client_of(staff()), 200, None),
        (lambda: session(staff()), 200, None),
        (lambda: with_key(staff(), "read"), 200, None),
    ],
)
def test_from_elsewhere_stats_are_for_staff(client: Any, status: int, code: str | None) -> None:
    answer = client().get("/stats", **ELSEWHERE)
    assert answer.status_code == status
    assert answer.json().get("code") == code
    assert status == 200 or answer["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
def test_the_machine_itself_needs_no_login(address: str) -> None:
    assert Client().get("/stats", REMOTE_ADDR=address).status_code == 200


@pytest.mark.parametrize("proxies", [(), ("127.0.0.0/8", "10.0.0.0/8")])
@pytest.mark.parametrize(
    ("peer", "headers"),
    [
        ("203.0.113.7", {"HTTP_X_FORWARDED_FOR": "127.0.0.1"}),
        ("10.0.0.1", {"HTTP_X_FORWARDED_FOR": "127.0.0.1"}),
        ("127.0.0.1", {"HTTP_X_FORWARDED_FOR": "203.0.113.7"}),
        ("127.0.0.1", {"HTTP_X_FORWARDED_FOR": "127.0.0.1"}),
        ("127.0.0.1", {"HTTP_X_FORWARDED_FOR": ""}),
        ("127.0.0.1", {"HTTP_FORWARDED": "for=203.0.113.7"}),
        ("127.0.0.1", {"HTTP_X_REAL_IP": "203.0.113.7"}),
        ("", {}),
        ("::2", {}),
    ],
)
def test_nobody_becomes_the_machine_itself_through_a_proxy(
    settings: Any, proxies: tuple[str, ...], peer: str, headers: dict[str, str]
) -> None:
    settings.TRUSTED_PROXIES = tuple(map(ip_network, proxies))
    assert Client().get("/stats", REMOTE_ADDR=peer, **headers).status_code == 401
