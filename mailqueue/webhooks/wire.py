"""One call of a receiver over HTTP: to the very address that the guard has judged, following nobody elsewhere."""

import asyncio
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import httpcore
from httpcore import AsyncHTTPConnection

from accounts import guard
from accounts.guard import Address
from mailqueue.webhooks import places
from mailqueue.webhooks.places import BadUrlError, ForbiddenPlaceError, Place
from mailqueue.webhooks.schedule import retry_after

CONNECT_SECONDS, TOTAL_SECONDS = 5.0, 15.0
#: So much of an answer is read, to go on with the connection; nobody looks at it (bytes).
READ_BYTES = 16_384
#: Idle connections are closed after this (seconds): a name that has moved is asked for anew.
KEEP_SECONDS = 10.0
#: How many of a host's addresses are tried.
TRIED_ADDRESSES = 3


class Answer(NamedTuple):
    """What came of it: the receiver's status, or what went wrong in a few words."""

    code: int | None
    error: str
    seconds: float
    retry_after: float = 0.0

    @property
    def is_taken(self) -> bool:
        return self.code is not None and 200 <= self.code < 300

    @property
    def is_gone(self) -> bool:
        """410: the receiver wants no more of them, ever."""
        return self.code == 410


class _Network(httpcore.AsyncNetworkBackend):
    """Resolves by the guard, and connects to what it got from there. TLS, above, knows the name alone."""

    def __init__(self, scheme: str) -> None:
        self._scheme = scheme
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 -- httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        place = Place(self._scheme, host, port, "", "")
        failed: Exception = httpcore.ConnectError("no address")
        async with asyncio.timeout(timeout):
            for address in (await _resolve(place))[:TRIED_ADDRESSES]:
                try:
                    return await self._network.connect_tcp(str(address), port, timeout)
                except httpcore.ConnectError as error:
                    failed = error
        raise failed

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def _resolve(place: Place) -> list[Address]:
    """In a thread of its own: a shared pool would let one slow resolver hold up all the others."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[Address]] = loop.create_future()

    def tell(found: list[Address] | Exception) -> None:
        if answer.done():
            return
        if isinstance(found, Exception):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    def ask() -> None:
        found: list[Address] | Exception
        try:
            found = places.resolve(place, CONNECT_SECONDS)
        except Exception as error:  # noqa: BLE001 -- it is raised where the answer is awaited
            found = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(tell, found)

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    return await answer


class Caller:
    """Keeps connections to receivers for a while; of one event loop. httpcore's own pool looks at all that it has
    several times for each call, which took most of the time."""

    def __init__(self) -> None:
        self._context = ssl.create_default_context()
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._networks = {scheme: _Network(scheme) for scheme in ("https", "http")}
        #: By webhook and place, with the time since when each is idle; the newest last.
        self._idle: dict[tuple[int, str, str], list[tuple[float, AsyncHTTPConnection]]] = defaultdict(list)
        self._sweeping: asyncio.Task[None] | None = None

    async def close(self) -> None:
        if self._sweeping:
            self._sweeping.cancel()
            await asyncio.wait([self._sweeping])
        await self._close_idle(time.monotonic())

    @asynccontextmanager
    async def _connection(self, webhook: int, place: Place) -> AsyncIterator[AsyncHTTPConnection]:
        known = (webhook, place.scheme, place.authority)
        connection = await self._kept(known) or AsyncHTTPConnection(
            httpcore.Origin(place.scheme.encode(), place.host.encode(), place.port),
            ssl_context=self._context,
            network_backend=self._networks[place.scheme],
        )
        try:
            yield connection
        finally:
            if connection.is_available():
                self._idle[known].append((time.monotonic(), connection))
                self._sweeping = self._sweeping or asyncio.create_task(self._sweep())
            else:
                await connection.aclose()

    async def _kept(self, known: tuple[int, str, str]) -> AsyncHTTPConnection | None:
        kept = self._idle.get(known, [])
        while kept:
            _, connection = kept.pop()
            if not connection.has_expired():  # the receiver has not closed it
                return connection
            await connection.aclose()
        return None

    async def _sweep(self) -> None:
        while self._idle:
            await asyncio.sleep(KEEP_SECONDS)
            await self._close_idle(time.monotonic() - KEEP_SECONDS)
        self._sweeping = None

    async def _close_idle(self, since: float) -> None:
        """Those that nobody has used since then."""
        for known, kept in list(self._idle.items()):
            old = [connection for at, connection in kept if at <= since]
            kept[:] = [each for each in kept if each[0] > since]
            if not kept:
                del self._idle[known]
            for connection in old:
                await connection.aclose()

    async def post(self, webhook: int, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Raises nothing but cancellation."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(TOTAL_SECONDS):
                code, asked = await self._post(webhook, Place.of(url), body, headers)
        except Exception as error:  # noqa: BLE001 -- whatever a receiver does is an answer
            return Answer(None, _in_words(error), time.monotonic() - began)
        seconds = time.monotonic() - began
        if 200 <= code < 300:
            return Answer(code, "", seconds)
        if 300 <= code < 400:
            return Answer(code, "It redirects, which is not followed.", seconds)
        asked = asked if code in (429, 503) else ""
        return Answer(code, f"HTTP {code}", seconds, retry_after(asked, datetime.now(UTC)))

    async def _post(
        self, webhook: int, place: Place, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, str]:
        """The status, and its Retry-After."""
        url = httpcore.URL(scheme=place.scheme, host=place.host, port=place.port, target=place.target)
        sent = [("Host", place.authority), *headers.items()]
        within = {"timeout": {"connect": CONNECT_SECONDS}}
        async with (
            self._connection(webhook, place) as connection,
            connection.stream("POST", url, headers=sent, content=body, extensions=within) as response,
        ):
            read = 0
            async for chunk in response.aiter_stream():
                read += len(chunk)
                if read > READ_BYTES:
                    break
            asked = next((value for name, value in response.headers if name.lower() == b"retry-after"), b"")
            return response.status, asked.decode("latin-1")


#: For the endpoint's owner; the first that is found, from the error down to its causes.
_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (guard.UnresolvableError, "The name of the host has no address."),
    (ssl.SSLCertVerificationError, "The certificate is not valid."),
    (ssl.SSLError, "TLS failed."),
    (TimeoutError, "It took too long."),
    (httpcore.TimeoutException, "It took too long."),
    (ConnectionRefusedError, "The connection was refused."),
    (httpcore.ProtocolError, "Its answer is not HTTP."),
    (httpcore.NetworkError, "The connection was lost, or none could be made."),
)


def _in_words(error: Exception) -> str:
    causes = list(_causes(error))
    for each in causes:
        if isinstance(each, ForbiddenPlaceError | BadUrlError):
            return str(each)
    found = (said for kind, said in _WORDS if any(isinstance(each, kind) for each in causes))
    return next(found, "It cannot be sent.")


def _causes(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
