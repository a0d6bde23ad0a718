"""What stands between a password and somebody who listens: a relay whose TLS is not as it must be gets none.

Each bad certificate by each way in, and each way to talk a client out of TLS. The relay sees no AUTH and no MAIL; the
account is paused and says why; the mail waits, untried. (Against Postfix: tests/acceptance/test_real_relays.py.)
"""

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from accounts.models import AccountState, Security, SmtpAccount
from mailqueue.delivery import handshake
from mailqueue.delivery.courier import Courier
from tasks.models import MailTask
from tasks.states import Status
from tests.certificates import make_certificates
from tests.factories import MailFactory, sending_user, with_login
from tests.relay import Relay

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["accounts", "tasks"])

BAD = ("self-signed", "expired", "other-name")
WAYS = {"tls": (Security.TLS, True), "starttls": (Security.STARTTLS, False), "auto": (Security.AUTO, False)}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(autouse=True)
def _its_authority_is_trusted(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "authority.pem"))
    handshake._tls_context.cache_clear()
    yield
    handshake._tls_context.cache_clear()


def with_certificate(certificates: Path, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / f"{name}.pem")
    return context


def mail_to(port: int, security: Security) -> MailTask:
    owner = with_login(sending_user(port), "ada", "right", security)
    SmtpAccount.objects.filter(owner=owner).update(host="localhost")
    mail: MailTask = MailFactory(owner=owner)
    return mail


def deliver() -> None:
    courier = Courier("worker:1").start()
    courier.drain(30)
    courier.stop(5)


def assert_kept_back(mail: MailTask, why: str) -> None:
    mail.refresh_from_db()
    assert (mail.status, mail.try_count, mail.attempts.count()) == (Status.QUEUED, 0, 0)
    account = SmtpAccount.objects.get(owner=mail.owner_id)
    assert account.state == AccountState.PAUSED
    assert why in account.reason


def assert_told_nothing(relay: Relay) -> None:
    # Where TLS comes first, a handshake that fails is no session.
    assert relay.sessions or relay.implicit_tls, "somebody did call"
    assert {command.split()[0] for command in relay.commands()} <= {"EHLO", "STARTTLS", "QUIT"}
    assert not [log for log in relay.sessions if log.logins]
    assert relay.accepted == []


@pytest.mark.parametrize("way", WAYS)
def test_with_a_good_certificate_it_logs_in_and_sends(certificates: Path, way: str) -> None:
    """The control."""
    security, implicit = WAYS[way]
    good = with_certificate(certificates, "good")
    with Relay(users={"ada": "right"}, certificate=good, implicit_tls=implicit) as relay:
        mail = mail_to(relay.port, security)
        deliver()
        mail.refresh_from_db()
        assert mail.status == Status.SUCCESS
        assert [log.auth_in_clear for log in relay.sessions if log.logins] == [False]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BAD)
def test_a_bad_certificate_gets_no_password(certificates: Path, name: str, way: str) -> None:
    security, implicit = WAYS[way]
    bad = with_certificate(certificates, name)
    with Relay(users={"ada": "right"}, certificate=bad, implicit_tls=implicit) as relay:
        mail = mail_to(relay.port, security)
        deliver()
        assert_kept_back(mail, "certificate")
        assert_told_nothing(relay)


def test_an_older_tls_gets_no_password(certificates: Path) -> None:
    old = with_certificate(certificates, "good")
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with Relay(users={"ada": "right"}, certificate=old) as relay:
        mail = mail_to(relay.port, Security.STARTTLS)
        deliver()
        mail.refresh_from_db()
        assert mail.status != Status.SUCCESS
        assert_told_nothing(relay)


# Talked out of TLS ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "refusal", ["454 4.7.0 not now", "500 5.5.1 what?", "502 5.5.1 no TLS here", "221 bye"]
)
@pytest.mark.parametrize("security", [Security.STARTTLS, Security.AUTO])
def test_an_offer_that_is_taken_back_does_not_open_the_way_in_clear(
    certificates: Path, security: Security, refusal: str
) -> None:
    good = with_certificate(certificates, "good")
    with Relay(users={"ada": "right"}, certificate=good).on("starttls", *[refusal] * 9) as relay:
        mail = mail_to(relay.port, security)
        deliver()
        mail.refresh_from_db()
        assert mail.status != Status.SUCCESS
        assert_told_nothing(relay)


@pytest.mark.parametrize(
    ("security", "why"), [(Security.STARTTLS, "STARTTLS"), (Security.TLS, ""), (Security.AUTO, "530")]
)
def test_where_the_offer_is_stripped_the_password_is_kept(security: Security, why: str) -> None:
    """`auto` inside allowed networks goes on in clear, but takes no password along; the relay minds."""
    with Relay(users={"ada": "right"}) as relay:
        mail = mail_to(relay.port, security)
        deliver()
        mail.refresh_from_db()
        assert mail.status != Status.SUCCESS
        assert why in SmtpAccount.objects.get(owner=mail.owner_id).reason
        assert not [log for log in relay.sessions if log.logins]
        assert "AUTH" not in {command.split()[0] for command in relay.commands()}


@contextmanager
def somebody_in_the_middle(certificate: ssl.SSLContext, injected: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Puts replies of their own behind the 220 to STARTTLS, in clear; the rest is the relay's (CVE-2011-0411)."""
    heard: list[bytes] = []

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(b"220 relay.test ESMTP\r\n")
            await reader.readline()
            writer.write(b"250-relay.test\r\n250 STARTTLS\r\n")
            await reader.readline()
            writer.write(b"220 go on\r\n" + injected)
            await writer.start_tls(certificate)
            while line := await reader.readline():
                heard.append(line)
                reply = b"250 relay.test\r\n" if line.startswith(b"EHLO") else b"221 2.0.0 bye\r\n"
                writer.write(reply)
        except (ConnectionError, EOFError, ssl.SSLError):
            pass
        finally:
            writer.transport.abort()

    loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    ports: list[int] = []

    async def serve() -> None:
        server = await asyncio.start_server(converse, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        await stop.wait()
        server.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    thread = threading.Thread(target=lambda: (loop.run_until_complete(serve()), loop.close()))
    thread.start()
    ready.wait(10)
    try:
        yield ports[0], heard
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


@pytest.mark.parametrize(
    "injected", [b"250-relay.test\r\n250 AUTH PLAIN LOGIN\r\n", b"235 2.7.0 welcome\r\n"]
)
def test_what_was_said_in_clear_before_tls_counts_for_nothing_within(
    certificates: Path, injected: bytes
) -> None:
    with somebody_in_the_middle(with_certificate(certificates, "good"), injected) as (port, heard):
        mail = mail_to(port, Security.STARTTLS)
        deliver()
    mail.refresh_from_db()
    assert mail.status != Status.SUCCESS
    verbs = {line.split()[0] for line in heard}
    assert verbs >= {b"EHLO"}
    assert verbs <= {b"EHLO", b"QUIT"}
