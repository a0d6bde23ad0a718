"""docker-compose.yml in real containers: mail goes through, workers come, go and are killed, and nothing is lost."""

import json
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Any

import httpx
import pytest

from mailqueue.embedded.redis import free_port
from tests.containers import engine as engines
from tests.containers.engine import Engine, compose_command
from tests.machine import PASSWORD, PATIENCE, until
from tests.relay import Relay

#: The host, as containers see it in the network of the sandbox: the relay of these tests listens there.
HOST = "10.213.65.1"
OURS = ("web", "stream", "worker", "upkeep", "beat", "flower", "sandbox", "inbox")
SERVERS = ("postgres", "redis", "proxy")
#: All that a container may take to come up on a machine that is busy with others (seconds).
STARTS_WITHIN = 300.0

pytestmark = pytest.mark.timeout(2400)


class Stack:
    """The containers of one project, seen from the host."""

    def __init__(self, engine: Engine, env: dict[str, str]) -> None:
        self.engine, self.env = engine, env
        self.home = f"http://127.0.0.1:{env['PORT']}"

    def compose(self, *command: str, seconds: float = 120) -> str:
        files = [word for file in self.engine.files for word in ("-f", file)]
        return engines.run(
            *compose_command(), *files, "--profile", "sandbox", *command, env=self.env, seconds=seconds
        )

    def containers(self, service: str) -> list[str]:
        """Ids of those that are there, running or not."""
        project = self.env["COMPOSE_PROJECT_NAME"]
        labels = (f"project={project}", f"service={service}", "oneoff=False")
        filters = [word for label in labels for word in ("--filter", f"label=com.docker.compose.{label}")]
        return self.engine.docker("ps", "--all", "--quiet", *filters).split()

    def state(self, container: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.engine.docker("inspect", "--format", "{{json .State}}", container)
        )
        return found

    def execute(self, service: str, *command: str, check: bool = True) -> str:
        return self.engine.docker("exec", self.containers(service)[0], *command, check=check)

    def query(self, sql: str) -> list[list[str]]:
        said = self.execute("postgres", "psql", "-U", "mailqueue", "-d", "mailqueue", "-AtF", "\t", "-c", sql)
        return [line.split("\t") for line in said.splitlines()]

    def until_healthy(self, *services: str) -> None:
        def are_healthy() -> bool:
            states = [self.state(each) for service in services for each in self.containers(service)]
            return all(state.get("Health", {}).get("Status") == "healthy" for state in states)

        until(are_healthy, f"{', '.join(services)} are healthy", STARTS_WITHIN)

    def scale(self, workers: int) -> None:
        self.compose("up", "-d", "--no-build", "--scale", f"worker={workers}", seconds=STARTS_WITHIN)
        self.until_healthy("worker")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    if lacking := engines.missing():
        if os.environ.get("CI"):
            pytest.fail(lacking)
        pytest.skip(lacking)
    with engines.engine() as engine:
        env = engine.env | {
            "COMPOSE_PROJECT_NAME": f"mailqueue{secrets.token_hex(3)}",
            "MAILQUEUE_IMAGE": "mailqueue-test/service",
            "PORT": str(free_port()),
            "MAIL_LEASE_SECONDS": "10",
            "MAIL_RETRY_SCHEDULE": "1,2",
            "SMTP_ALLOWED_NETWORKS": "10.213.65.0/24",
        }
        stack = Stack(engine, env)
        try:
            stack.compose("build", seconds=engines.BUILT_WITHIN)
            stack.compose("up", "-d", seconds=STARTS_WITHIN)
            stack.until_healthy(*OURS)
            yield stack
        finally:
            stack.compose("down", "--volumes", "--remove-orphans", seconds=300)


class Sender:
    """Somebody who has registered through the proxy."""

    def __init__(self, home: str, **smtp: Any) -> None:
        self.web = httpx.Client(base_url=home, timeout=60)
        login = {"email": f"{secrets.token_hex(6)}@example.com", "password": PASSWORD}
        user = self._post("/api/v1/register", login | smtp)
        self.pk = user["id"]
        self.web.headers["Authorization"] = f"Bearer {self._post('/api/v1/login', login)['token']}"

    def _post(self, path: str, body: Any) -> Any:
        return self.web.post(path, json=body).raise_for_status().json()

    def enqueue(self, recipient: str) -> int:
        mail = {"recipient_email": recipient, "subject": "Grüße", "body": "Hello ✓"}
        return int(self._post("/api/v1/task/enqueue", mail)["task_id"])

    def enqueue_many(self, count: int) -> list[int]:
        """Their ids: all of them were accepted."""
        mails = [
            {"recipient_email": f"reader{n}@example.com", "subject": "Hello", "body": "x" * 500}
            for n in range(count)
        ]
        found = self._post("/api/v1/task/enqueue/batch", {"messages": mails})["results"]
        return [result["task_id"] for result in found]


@contextmanager
def sender(stack: Stack, relay: Relay | None = None) -> Iterator[Sender]:
    """With the relay of the test, or with the default one: the sandbox."""
    smtp = (
        {"smtp_host": HOST, "smtp_port": relay.port, "smtp-username": "", "smtp-password": ""}
        if relay
        else {}
    )
    one = Sender(stack.home, **smtp)
    with closing(one.web):
        yield one


@pytest.fixture
def relay(stack: Stack) -> Iterator[Relay]:
    """On this machine, slow enough that something is under way whenever a test looks."""
    with Relay(delay=0.02, host=HOST) as relay:
        yield relay


def arrivals(relay: Relay) -> Counter[str]:
    return Counter(mail.message_id for mail in list(relay.accepted))


def until_all_are_sent(stack: Stack, relay: Relay, owner: Sender, count: int) -> Counter[str]:
    """How often each Message-ID has arrived, once every row says success."""
    of_owner = f"SELECT status, count(*) FROM tasks_mailtask WHERE owner_id = {owner.pk} GROUP BY status"
    until(lambda: stack.query(of_owner) == [["2", str(count)]], "every row says success", 240)
    stored = {
        found
        for (found,) in stack.query(f"SELECT message_id FROM tasks_mailtask WHERE owner_id = {owner.pk}")
    }
    arrived = arrivals(relay)
    assert set(arrived) == stored
    assert len(stored) == count
    return arrived


def until_event(stream: httpx.Response, event: str) -> str:
    """Its lines, as they come, up to this event; a quiet stream is not silent, so patience is counted here."""
    seen, deadline = "", time.monotonic() + PATIENCE
    for line in stream.raise_for_status().iter_lines():
        seen += f"{line}\n"
        assert time.monotonic() < deadline, seen
        if line == f"event: {event}":
            break
    return seen


def test_a_mail_goes_through_the_proxy_into_the_sandbox_and_is_followed_live(stack: Stack) -> None:
    with sender(stack) as ada:
        task = ada.enqueue("jane@example.com")
        with ada.web.stream("GET", f"/api/v1/task/{task}/events") as stream:
            assert "event: task.sent" in until_event(stream, "task.sent")
        inbox = ada.web.get("/sandbox/api/messages?recipient=jane@example.com").raise_for_status().json()
        assert [mail["subject"] for mail in inbox] == ["Grüße"]
        assert ada.web.get("/sandbox/").status_code == 200
        assert ada.web.get("/static/admin/css/base.css").status_code == 200
        assert ada.web.get("/healthz/ready").json() == {"status": "ok", "database": "up", "broker": "up"}


def test_streams_are_served_by_the_stream_and_calls_by_the_web(stack: Stack) -> None:
    def calls(host: str) -> str:
        ask = f"import urllib.request as u; print(u.urlopen('http://{host}:8000/metrics').read().decode())"
        return stack.execute("upkeep", "python", "-c", ask)

    with sender(stack) as ada:
        with ada.web.stream("GET", f"/api/v1/task/{ada.enqueue('ok@sandbox.invalid')}/events") as stream:
            until_event(stream, "task.sent")
        with ada.web.stream("GET", "/api/v1/task/events") as stream:
            assert next(stream.iter_lines())  # at once, whatever a proxy would like to gather first
    routes = {"web": 'route="/api/v1/task/enqueue"', "stream": '/events"'}
    for host, other in (("web", "stream"), ("stream", "web")):
        assert routes[host] in calls(host)
        assert routes[host] not in calls(other)


def test_figures_and_flower_are_not_for_outside(stack: Stack) -> None:
    def status(address: str) -> int:
        """As it is written: a better client would tidy it up."""
        with closing(HTTPConnection("127.0.0.1", int(stack.env["PORT"]), timeout=30)) as connection:
            connection.request("GET", address, headers={"X-Forwarded-For": "127.0.0.1"})
            return connection.getresponse().status

    for hidden in ("metrics", "stats", "health/metrics", "flower/metrics"):
        escaped = f"/%{ord(hidden[0]):x}{hidden[1:]}"
        for address in (
            f"/{hidden}",
            f"/{hidden}/",
            f"//{hidden}",
            f"/x/..%2f{hidden}",
            f"/x/../{hidden}",
            escaped,
        ):
            assert status(address) == 404, address
    assert status("/healthz/live") == 200
    with httpx.Client(base_url=stack.home, timeout=30) as web:
        assert web.get("/flower/").status_code == 401
        password = stack.execute("flower", "cat", "/run/mailqueue/ADMIN_PASSWORD")
        assert web.get("/flower/", auth=("admin@example.com", password)).status_code == 200
    for inside in ("http://web:8000/metrics", "http://flower:5555/flower/metrics"):
        ask = f"import urllib.request as u; print(u.urlopen('{inside}').status)"
        assert stack.execute("upkeep" if "web" in inside else "web", "python", "-c", ask).strip() == "200"


_CONFINED = """
import errno, os
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
assert os.getuid() == os.getgid() == 10001, os.getuid()
assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, status["CapBnd"]
assert status["NoNewPrivs"].strip() == "1"
for folder in ("/", "/app", "/opt/mailqueue", "/etc", "/run/mailqueue"):
    try:
        open(folder + "/written", "w")
    except OSError as error:
        assert error.errno in (errno.EROFS, errno.EACCES), error
    else:
        raise SystemExit(folder + " can be written")
assert any(line.split()[1] == "/" and "ro" in line.split()[3].split(",") for line in open("/proc/mounts"))
open("/tmp/written", "w").close()
print("confined")
"""


@pytest.mark.parametrize("service", OURS)
def test_a_program_is_nobody_special_and_writes_nowhere(stack: Stack, service: str) -> None:
    assert stack.execute(service, "python", "-c", _CONFINED).strip() == "confined"


@pytest.mark.parametrize("service", SERVERS)
def test_a_server_is_not_root_either(stack: Stack, service: str) -> None:
    status = stack.execute(service, "cat", "/proc/1/status")
    found = dict(line.split(":", 1) for line in status.splitlines())
    assert "0" not in found["Uid"].split()
    assert int(found["CapBnd"], 16) == 0
    assert "Read-only" in stack.execute(service, "sh", "-c", "touch /etc/written 2>&1", check=False)


def test_secrets_are_for_those_who_need_them(stack: Stack) -> None:
    assert "ermission denied" in stack.execute("redis", "cat", "/run/mailqueue/SECRET_KEY", check=False)
    assert "ermission denied" in stack.execute(
        "postgres", "cat", "/run/mailqueue/CREDENTIAL_KEYS", check=False
    )
    keys = {
        stack.execute("web", "cat", f"/run/mailqueue/{name}") for name in ("SECRET_KEY", "JWT_SIGNING_KEY")
    }
    assert len(keys) == 2
    stack.compose("up", "-d", "secrets")  # made once: a second start changes none
    assert {
        stack.execute("web", "cat", f"/run/mailqueue/{name}") for name in ("SECRET_KEY", "JWT_SIGNING_KEY")
    } == keys


def test_redis_keeps_what_it_has_and_asks_for_a_password(stack: Stack) -> None:
    assert "NOAUTH" in stack.execute("redis", "redis-cli", "ping", check=False)
    ask = 'REDISCLI_AUTH="$(cat /run/mailqueue/REDIS_PASSWORD)" redis-cli config get '
    assert "noeviction" in stack.execute("redis", "sh", "-c", f"{ask} maxmemory-policy")
    assert "yes" in stack.execute("redis", "sh", "-c", f"{ask} appendonly")


def test_a_backup_is_made_and_restored_with_what_the_image_has(stack: Stack) -> None:
    stack.query("CREATE DATABASE restored")
    script = """
    set -e
    python manage.py backup /tmp/copy
    DATABASE_URL=$(sed s,/mailqueue$,/restored, $DATABASE_URL_FILE) && export DATABASE_URL && unset DATABASE_URL_FILE
    python manage.py restore /tmp/copy --hold
    """
    try:
        stack.execute("web", "sh", "-c", script)
    finally:
        stack.query("DROP DATABASE restored WITH (FORCE)")


def test_a_worker_container_killed_among_three_loses_nothing(stack: Stack, relay: Relay) -> None:
    stack.scale(3)
    with sender(stack, relay) as ada:
        count = sum(len(ada.enqueue_many(1000)) for _ in range(3))
        busy = "SELECT host FROM mailqueue_worker WHERE in_flight > 0 ORDER BY heartbeat_at DESC LIMIT 1"
        until(lambda: len(relay.accepted) > 200, "mail is under way")
        ((host,),) = until(lambda: stack.query(busy), "a worker says that it sends")
        victim = next(each for each in stack.containers("worker") if each.startswith(host[:12]))
        stack.engine.docker("kill", victim)
        assert len(arrivals(relay)) < count, "the worker was killed too late to show anything"
        arrived = until_all_are_sent(stack, relay, ada, count)
        assert stack.state(victim)["ExitCode"] == 137
        # Twice only what was between the final dot and its reply, on connections of the one that died.
        assert sum(arrived.values()) - count <= 100
    stack.scale(3)


def test_workers_told_to_go_in_turn_under_load_lose_nothing_and_send_nothing_twice(
    stack: Stack, relay: Relay
) -> None:
    stack.scale(3)
    with sender(stack, relay) as ada:
        accepted: list[int] = []
        with load(
            lambda: accepted.extend(ada.enqueue_many(250)), lambda: len(accepted) - len(relay.accepted)
        ):
            for container in stack.containers("worker"):
                before = len(relay.accepted)
                until(lambda: len(relay.accepted) > before + 100, "mail flows")  # noqa: B023 -- it is asked here
                stack.engine.docker("stop", container, seconds=90)
                # By itself: who is still there after its grace is killed, and leaves with 137.
                assert stack.state(container)["ExitCode"] == 0
                stack.engine.docker("start", container)
        arrived = until_all_are_sent(stack, relay, ada, len(accepted))
        assert {message_id: times for message_id, times in arrived.items() if times > 1} == {}


@contextmanager
def load(more: Callable[[], Any], waiting: Callable[[], int]) -> Iterator[None]:
    """Keeps some mail waiting all the time."""
    over = threading.Event()
    errors: list[Exception] = []

    def feed() -> None:
        try:
            while not over.wait(0.1):
                if waiting() < 500:
                    more()
        except Exception as error:  # noqa: BLE001 -- it is raised below
            errors.append(error)

    feeder = threading.Thread(target=feed, name="feeder")
    feeder.start()
    try:
        yield
    finally:
        over.set()
        feeder.join()
    if errors:
        raise errors[0]
