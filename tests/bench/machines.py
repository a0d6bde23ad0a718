"""One and two worker machines: network namespaces, each with its own address, host name and journal, and nothing
else of the workers shared than what machines share: PostgreSQL, Redis and the relay.

Processors they must share here, so a machine is bound by what binds one in life: its connections, and the time that
a relay takes to answer. What two could still take from each other is then at PostgreSQL: claims, locks, commits.
"""

import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from mailqueue.embedded.parts import all_parts
from mailqueue.embedded.process import CannotStartError
from mailqueue.embedded.redis import executable
from tests.bench.ground import Figures, Ground, Row
from tests.bench.process import NotMeasuredError, free_port, run, running, wait_until_logged, wait_until_open
from tests.bench.service import ROOT, Service
from tests.bench.sink import Sink

#: Set apart for measuring how networks do (RFC 2544), so no real network is hidden by it.
_NETWORK = "198.18.0.0/15"
#: The account is paused until all machines are up, for each goes to work as soon as it is.
_LATER = "2999-01-01T00:00:00Z"


def missing() -> str:
    """What is lacking to make namespaces here, or nothing."""
    if os.geteuid() != 0 or any(shutil.which(tool) is None for tool in ("ip", "unshare", "hostname")):
        return "needs root and ip netns"
    return ""


@contextmanager
def machine(number: int) -> Iterator[tuple[str, str]]:
    """The name of a namespace, and the address under which it sees this machine. Its network goes with it."""
    name = f"bench{os.getpid()}-{number}"
    here, there = (f"198.18.{os.getpid() % 256}.{4 * number + host}" for host in (1, 2))
    outer, inner = f"mb{os.getpid()}-{number}", "eth0"
    with ExitStack() as stack:
        stack.callback(_delete, name)  # first, for the next line may have been interrupted in its middle
        for command in (
            f"netns add {name}",
            f"link add {outer} type veth peer name {inner} netns {name}",
            f"addr add {here}/30 dev {outer}",
            f"link set {outer} up",
            f"-n {name} addr add {there}/30 dev {inner}",
            f"-n {name} link set lo up",
            f"-n {name} link set {inner} up",
            f"-n {name} route add default via {here}",
        ):
            try:
                run(["ip", *command.split()])
            except NotMeasuredError as error:
                raise NotMeasuredError(f"not measured: needs root and ip netns ({error})") from error
        yield name, here


def _delete(name: str) -> None:
    if Path("/run/netns", name).exists():
        run(["ip", "netns", "delete", name])


class Machines:
    """Drained by the workers of so many machines, two processes each."""

    mails_each = 5_000
    #: Of each process, as accounts have by default: 500 mails/s at best, so that the processors have to spare.
    connections = 10
    milliseconds_a_reply = 20

    def __init__(self, count: int) -> None:
        self.count = count
        self.name = f"ours-machines-{count}"
        self.title = f"this service on {count} worker machine{'s' * (count > 1)}, relay of 20 ms"

    def measure(self, ground: Ground) -> Figures:
        if lacking := missing():
            raise NotMeasuredError(f"not measured: {lacking}")
        if not _by_socket(ground.database_url):
            raise NotMeasuredError(
                "not measured: a unix socket is the only way to PostgreSQL from a namespace"
            )
        mails = ground.scaled(self.mails_each) * self.count
        with ExitStack() as stack:
            machines = [stack.enter_context(machine(number)) for number in range(1, self.count + 1)]
            address = machines[0][1]  # the others reach it by their own cable
            sink = stack.enter_context(self._sink(ground, address))
            account = {"host": address, "max_connections": str(self.connections), "paused_until": _LATER}
            service = Service.prepared(ground, sink.port, mails, account)
            service.env |= {
                "SMTP_ALLOWED_NETWORKS": _NETWORK,
                "WORKER_CONNECTIONS": str(self.connections),
                "REDIS_URL": stack.enter_context(_redis(ground, address)),
            }
            with ExitStack() as workers:
                for name, _ in machines:
                    workers.enter_context(_worker(service, ground.scratch / name, name))
                service.execute("UPDATE accounts_smtpaccount SET paused_until = NULL")
                service.ring()
                sink.watch(mails)
                service.expect_successes(mails)
            if sink.count() != mails:
                raise NotMeasuredError(f"the sink accepted {sink.count()} mails, but there were only {mails}")
        shares = service.shares()
        if len(shares) != self.count:
            raise NotMeasuredError(f"{len(shares)} of {self.count} machines sent")
        return {"mails/s": mails / service.seconds_of_sending(), "least share": min(shares) / mails}

    @contextmanager
    def _sink(self, ground: Ground, address: str) -> Iterator[Sink]:
        port, counters = free_port(), ground.scratch / "slow_sink.counters"
        where = [address, str(port), str(self.milliseconds_a_reply)]
        command = [sys.executable, "-m", "tests.bench.slow_sink", *where]
        with running(command, counters, cwd=ROOT) as process:
            wait_until_open(port, process, counters, address=address)
            yield Sink(port, counters)


@contextmanager
def _redis(ground: Ground, address: str) -> Iterator[str]:
    """One that listens where the machines can reach it, and nowhere else."""
    port, password, log = free_port(), secrets.token_hex(16), ground.scratch / "redis.log"
    options = f"--bind {address} --port {port} --requirepass {password} --appendonly yes"
    folder = ground.scratch / "redis-of-machines"
    folder.mkdir(exist_ok=True)
    try:
        command = [executable(), *options.split(), "--save", ""]
    except CannotStartError as error:
        raise NotMeasuredError(f"not measured: {error}") from error
    with running(command, log, cwd=folder) as process:
        wait_until_open(port, process, log, address=address)
        yield f"redis://:{password}@{address}:{port}/0"


@contextmanager
def _worker(service: Service, data: Path, name: str) -> Iterator[None]:
    """The delivery worker of one machine, by the command that `make run` starts it with, once it is ready."""
    data.mkdir(exist_ok=True)
    env = service.env | {"DATA_DIR": str(data)}
    part = next(part for part in all_parts(env, "") if part.name == "worker")
    as_machine = f"ip netns exec {name} unshare --uts sh -c".split()
    as_machine += ['hostname "$0" && exec "$@"', name]
    log = data / "worker.log"
    with running([*as_machine, *part.command], log, env=env, cwd=ROOT) as process:
        wait_until_logged(part.greeting, process, log)
        yield


def _by_socket(database_url: str) -> bool:
    return parse_qs(urlsplit(database_url).query).get("host", [""])[0].startswith("/")


MACHINES: list[Row] = [Machines(1), Machines(2)]
