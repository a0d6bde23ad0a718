"""Mails handed over one by one, beside a view as most would write it. No worker runs in either."""

from pathlib import Path

from tests.bench import client
from tests.bench.ground import BODY, Figures, Ground, Row
from tests.bench.others import PROJECT, PYTHON, VENV, environment, install
from tests.bench.process import free_port, run, running, wait_until_open
from tests.bench.service import Service

MAILS, CONNECTIONS = 6_000, 8
#: Handed over before the clock starts: each process has met its first.
WARM_UP = 200
#: Nobody sends here.
NO_RELAY = 9


class Enqueue:
    name = "enqueue"
    title = "this service, POST /enqueue one by one, no worker"

    def measure(self, ground: Ground) -> Figures:
        mails = ground.scaled(MAILS)
        service = Service.prepared(ground, NO_RELAY)
        with service.web() as port:
            token = client.log_in(port)
            client.enqueue_all(port, token, WARM_UP, CONNECTIONS)
            return {"requests/s": mails / client.enqueue_all(port, token, mails, CONNECTIONS)}


class StockView:
    """Django REST framework with a ModelSerializer, a token, and `delay()`; under the same server as ours, with the
    database connection kept."""

    name = "stock-view"
    title = "a stock DRF view with delay()"

    def measure(self, ground: Ground) -> Figures:
        install()
        mails = ground.scaled(MAILS)
        env = environment(ground, NO_RELAY, keep_connections=True)
        run([PYTHON, "-m", "django", "migrate", "--run-syncdb", "-v0"], env=env, cwd=PROJECT)
        make_user = f"import django; django.setup(); from plain.api import make_user; make_user{_LOGIN!r}"
        run([PYTHON, "-c", make_user], env=env, cwd=PROJECT)
        port, log = free_port(), ground.scratch / "stock-view.log"
        with running(_server(port), log, env=env, cwd=PROJECT) as server:
            wait_until_open(port, server, log)
            token = _token(port)
            client.enqueue_all(port, token, WARM_UP, CONNECTIONS, _hand_over)
            return {"requests/s": mails / client.enqueue_all(port, token, mails, CONNECTIONS, _hand_over)}


_LOGIN = (client.EMAIL, client.PASSWORD)


def _server(port: int) -> list[str | Path]:
    options = ["--interface", "wsgi", "--workers", "2", "--blocking-threads", "1", "--no-ws"]
    return [VENV / "bin" / "granian", *options, "--host", "127.0.0.1", "--port", str(port), "web:application"]


def _token(port: int) -> str:
    email, password = _LOGIN
    return str(client.Client(port).post("/login", {"username": email, "password": password}, 200)["access"])


def _hand_over(caller: client.Client, number: int) -> None:
    mail = {"recipient": f"someone{number}@example.com", "subject": f"Benchmark mail {number}", "body": BODY}
    caller.post("/mails", mail, 201)


SINGLES: list[Row] = [Enqueue(), StockView()]
