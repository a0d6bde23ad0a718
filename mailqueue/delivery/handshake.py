"""Opens sessions with relays: connect, greet, protect, log in (RFC 5321, 3207, 4954); aiosmtplib does the talking.

The only module that opens sockets to relays.
"""

import asyncio
import math
import os
import socket
import ssl
from dataclasses import dataclass, field
from functools import lru_cache

import aiosmtplib

from accounts import guard
from accounts.models import Security
from mailqueue.delivery import smtp
from mailqueue.delivery.replies import Answer, Fault
from tasks.states import Phase

#: The first that the relay offers is used; CRAM-MD5 last, for it keeps passwords in clear at the relay.
AUTH_METHODS = ("plain", "login", "cram-md5")


@dataclass(frozen=True, slots=True)
class Relay:
    """Where and how to connect. Two accounts with an equal relay share its connections."""

    host: str
    port: int
    username: str = ""
    password: str = field(default="", repr=False)
    security: Security = Security.AUTO


class SessionError(Exception):
    """No session could be opened; `answer` says how far it came."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(str(answer))
        self.answer = answer


async def open_session(relay: Relay, ends_at: float = math.inf) -> smtp.Session:
    """A session ready for its first transaction; SessionError with phase and reason otherwise."""
    sock, is_local = await _connect(relay, ends_at)
    implicit_tls = relay.security == Security.TLS or (relay.security == Security.AUTO and relay.port == 465)
    client = aiosmtplib.SMTP(
        hostname=relay.host,
        sock=sock,
        use_tls=implicit_tls,
        start_tls=False,
        local_hostname=_local_name(),
        tls_context=_tls_context(),
        timeout=smtp.DEADLINES[Phase.BANNER],
    )
    phase = Phase.TLS if implicit_tls else Phase.BANNER
    try:
        async with asyncio.timeout(_left(ends_at)):
            await client.connect()
            phase = Phase.BANNER
            await client.ehlo()
            phase = Phase.TLS
            protected = implicit_tls or await _start_tls(client, relay, is_local=is_local)
            phase = Phase.AUTH
            await _authenticate(client, relay, protected=protected)
    except BaseException as error:
        client.close()
        sock.close()
        if isinstance(error, asyncio.CancelledError):
            raise
        raise SessionError(_explain(phase, error)) from error
    return _take_over(client)


def _left(ends_at: float, longest: float | None = None) -> float | None:
    """Seconds until then, at most `longest`; None, as asyncio has it, for ever."""
    left = min(ends_at - asyncio.get_running_loop().time(), longest or math.inf)
    return None if left == math.inf else left


async def _connect(relay: Relay, ends_at: float) -> tuple[socket.socket, bool]:
    """A connected socket to the very address that the guard has judged, and whether it is an allowed network's."""
    loop = asyncio.get_running_loop()
    try:
        addresses = await asyncio.wait_for(
            loop.run_in_executor(None, guard.resolve, relay.host),
            _left(ends_at, smtp.DEADLINES[Phase.CONNECT]),
        )
        guard.check_port(relay.port, addresses)
    except guard.ForbiddenAddressError as error:
        raise SessionError(Answer(Phase.CONNECT, text=str(error), fault=Fault.FORBIDDEN)) from error
    except guard.ForbiddenPortError as error:
        text = f"port {relay.port} is none of SMTP_ALLOWED_PORTS"
        raise SessionError(Answer(Phase.CONNECT, text=text, fault=Fault.FORBIDDEN)) from error
    except (guard.UnresolvableError, TimeoutError) as error:
        raise SessionError(Answer(Phase.CONNECT, text=relay.host, fault=Fault.UNRESOLVED)) from error
    is_local = guard.in_allowed_networks(addresses)
    if relay.security == Security.NONE and not is_local:
        text = "smtp_security none is for SMTP_ALLOWED_NETWORKS only"
        raise SessionError(Answer(Phase.CONNECT, text=text, fault=Fault.FORBIDDEN))
    reason = ""
    for address in addresses:
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.wait_for(
                loop.sock_connect(sock, (str(address), relay.port)),
                _left(ends_at, smtp.DEADLINES[Phase.CONNECT]),
            )
        except OSError as error:  # TimeoutError is one
            sock.close()
            why = os.strerror(error.errno).lower() if error.errno else "timed out"
            reason = f"{address} port {relay.port}: {why}"
        except BaseException:
            sock.close()
            raise
        else:
            return sock, is_local
    raise SessionError(Answer(Phase.CONNECT, text=reason, fault=Fault.UNREACHABLE))


async def _start_tls(client: aiosmtplib.SMTP, relay: Relay, *, is_local: bool) -> bool:
    """Upgrades where the settings ask for it or the relay offers it; whether the line is protected now."""
    if relay.security == Security.NONE:
        return False
    if not client.supports_extension("starttls"):
        if relay.security == Security.AUTO and is_local:
            return False
        raise SessionError(Answer(Phase.TLS, text=relay.host, fault=Fault.NO_TLS))
    await client.starttls()
    await client.ehlo()
    return True


async def _authenticate(client: aiosmtplib.SMTP, relay: Relay, *, protected: bool) -> None:
    """Logs in if there is a name to log in with. In clear only where `none` says so, within allowed networks."""
    if not relay.username:
        return
    if not protected and relay.security != Security.NONE:
        return  # a plain relay of the allowed networks: it says 530 if it wants a login
    offered = {method.lower() for method in client.supported_auth_methods}
    method = next((method for method in AUTH_METHODS if method in offered), None)
    if method is None:
        if relay.security == Security.NONE and not offered:
            return
        raise SessionError(Answer(Phase.AUTH, text=relay.host, fault=Fault.NO_AUTH))
    log_in = {"plain": client.auth_plain, "login": client.auth_login, "cram-md5": client.auth_crammd5}[method]
    await log_in(relay.username, relay.password)


def _take_over(client: aiosmtplib.SMTP) -> smtp.Session:
    """From here on the transactions are ours."""
    size = client.esmtp_extensions.get("size")
    connection = smtp.Connection()
    transport = client.transport
    assert transport is not None  # noqa: S101 -- connect() has returned
    connection.connection_made(transport)
    transport.set_protocol(connection)
    return smtp.Session(
        connection,
        pipelining=client.supports_extension("pipelining"),
        smtputf8=client.supports_extension("smtputf8"),
        size_limit=int(size) if size and size.isdigit() else (0 if size is not None else None),
    )


def _explain(phase: Phase, error: BaseException) -> Answer:
    """The answer that an exception of the handshake stands for."""
    if isinstance(error, SessionError):
        return error.answer
    if isinstance(error, aiosmtplib.SMTPResponseException):
        if error.code < 200:  # aiosmtplib's mark for what is no reply
            return Answer(phase, text=error.message, fault=Fault.GARBAGE)
        return Answer(phase, error.code, error.message)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
            why = getattr(cause, "verify_message", "") or cause.reason or str(cause)
            return Answer(Phase.TLS, text=why, fault=Fault.CERTIFICATE)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, TimeoutError):
        return Answer(phase, fault=Fault.TIMEOUT)
    if isinstance(error, OSError):
        return Answer(phase, fault=Fault.LOST)
    raise error


@lru_cache
def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@lru_cache
def _local_name() -> str:
    """What we say in EHLO. getfqdn() would ask a name server; the host's own name is enough for a submission."""
    return socket.gethostname() or "localhost"
