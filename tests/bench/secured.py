"""What STARTTLS and AUTH cost: into a sink that has both or neither, and into a Postfix with SASL by Dovecot."""

import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from tests import postfix
from tests.bench import login_sink
from tests.bench.ground import Figures, Ground
from tests.bench.process import NotMeasuredError, free_port, running, wait_until_open
from tests.bench.service import ROOT, Service
from tests.bench.sink import Sink
from tests.certificates import make_certificates
from tests.relay import Relay


def _account(user: str, password: str, security: str) -> dict[str, str]:
    return {"host": "localhost", "username": user, "password": password, "security": security}


class SecuredDrain:
    """The row `ours`, into a sink of our own, so that with and without differ in nothing else."""

    mails = 40_000

    def __init__(self, name: str, title: str, *, secured: bool) -> None:
        self.name, self.title, self.secured = name, title, secured

    def measure(self, ground: Ground) -> Figures:
        mails = ground.scaled(self.mails)
        port, counters = free_port(), ground.scratch / "login_sink.counters"
        with TemporaryDirectory(dir=ground.scratch) as folder:
            certificates = make_certificates(Path(folder))
            command = [sys.executable, "-m", "tests.bench.login_sink", str(port)]
            command += [str(certificates / "good.pem")] if self.secured else []
            with running(command, counters, cwd=ROOT) as process:
                wait_until_open(port, process, counters)
                return self._drain(ground, Sink(port, counters), certificates, mails)

    def _drain(self, ground: Ground, sink: Sink, certificates: Path, mails: int) -> Figures:
        account = (
            _account(login_sink.USER, login_sink.PASSWORD, "starttls")
            if self.secured
            else _account("", "", "none")
        )
        service = Service.prepared(ground, sink.port, mails, account, certificates / "authority.pem")
        with service.worker():
            service.ring()
            window = sink.watch(mails)
            service.expect_successes(mails)
        if sink.count() != mails:
            raise NotMeasuredError(f"the sink accepted {sink.count()} mails, but there were only {mails}")
        return {"mails/s": mails / (window.last_at - service.first_claim())}


class PostfixDrain:
    """Into a real relay. Each mail must come out of it once, counted by Message-ID; it sets the pace."""

    mails = 10_000

    def __init__(self, name: str, title: str, *, secured: bool) -> None:
        self.name, self.title, self.secured = name, title, secured

    def measure(self, ground: Ground) -> Figures:
        if lacking := postfix.missing():
            raise NotMeasuredError(f"not measured: {lacking}")
        mails = ground.scaled(self.mails)
        with TemporaryDirectory(dir=ground.scratch) as folder, Relay() as destination:
            certificates = make_certificates(Path(folder))
            # Otherwise it makes senders wait a second where more comes in than goes out.
            with postfix.Postfix(destination.port, certificates, in_flow_delay="0") as relay:
                return self._drain(ground, relay, destination, mails)

    def _drain(self, ground: Ground, relay: postfix.Postfix, destination: Relay, mails: int) -> Figures:
        name = "starttls" if self.secured else "open"
        account = (
            _account(postfix.USER, postfix.PASSWORD, "starttls") if self.secured else _account("", "", "none")
        )
        authority = relay.certificates / "authority.pem"
        service = Service.prepared(ground, relay.ports[name], mails, account, authority)
        with service.worker():
            service.ring()
            service.expect_successes(mails, patience=600)
        _expect_once_each(destination, mails)
        sessions = relay.sessions(name)
        if self.secured and len(relay.logins(name)) != mails:
            raise NotMeasuredError(f"{len(relay.logins(name))} of {mails} mails came with a login")
        return {"mails/s": mails / service.seconds_of_sending(), "connections": float(len(sessions))}


def _expect_once_each(destination: Relay, mails: int, patience: float = 300) -> None:
    deadline = time.monotonic() + patience
    while len(destination.accepted) < mails and time.monotonic() < deadline:
        time.sleep(0.2)
    counted = Counter(mail.message_id for mail in destination.accepted)
    if len(counted) != mails or counted.total() != mails:
        raise NotMeasuredError(f"{len(counted)} of {mails} mails came, {counted.total()} times in all")


SECURED = [
    SecuredDrain("ours-clear", "this service, into our sink, no TLS, no AUTH", secured=False),
    SecuredDrain("ours-tls", "this service, into our sink, STARTTLS + AUTH", secured=True),
    PostfixDrain("postfix-clear", "this service, into Postfix, no TLS, no AUTH", secured=False),
    PostfixDrain("postfix-tls", "this service, into Postfix, STARTTLS + SASL", secured=True),
]
