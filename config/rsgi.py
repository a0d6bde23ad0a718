"""The web process's door: calls, and live streams on the same address, all in one thread.

A call runs through WSGI in the event loop's own thread, so that all else waits for it, as another call would: each
takes milliseconds, and none waits for a PostgreSQL that hangs (config/postgresql). Handed to a thread, calls become
an eighth slower (measured: 0.84 to 0.88 of plain WSGI's rate; as here: 0.97 to 1.07). Only what waits for somebody
else's server does so in a thread beside it. What a view wants streamed gets its loop here; under plain WSGI such an
answer ends at once, and EventSource asks again.
"""

import asyncio
import contextvars
import io
import os
import re
import resource
import signal
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

# Django would not use its database in a thread with an event loop, lest two tasks share a connection by turns.
# Here nothing of Django's awaits.
os.environ.setdefault("DJANGO_ALLOW_ASYNC_UNSAFE", "true")

from django.conf import settings
from granian.rsgi import ProtocolClosed, ProtocolError  # type: ignore[attr-defined]  # RSGI's own names

from config.wsgi import application as wsgi  # isort: skip -- it says where metrics are counted, before they are
from config.health import ASKED, Readiness
from config.metrics import LIVE_STREAMS
from config.postgresql.base import DatabaseWrapper
from tasks.streams import STREAMS, LiveResponse

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: Larger bodies are read four at a time, or those who send them slowly would fill the memory (bytes).
LARGE = 256 * 1024
#: Sockets that a process may hold, if the system lets it.
OPEN_FILES = 8192
#: How long a call waits for one statement; all others wait with it (seconds).
DatabaseWrapper.patience = 20.0
#: What asks a relay, or for the addresses of a name; and what takes long on purpose, as a password's hash does.
_WAITS_FOR_OTHERS = re.compile(
    r"/api/v1/(login|register|auth/signup|user/[0-9]+(/smtp/test)?|webhooks(/[0-9]+)?)/?"
)
_ALWAYS = {
    "SCRIPT_NAME": "",
    "SERVER_SOFTWARE": "Granian",
    "wsgi.version": (1, 0),
    "wsgi.errors": sys.stderr,
    "wsgi.multithread": True,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
}

Headers = list[tuple[str, str]]


class Answer:
    """What came of one call."""

    def __init__(self, environ: "WSGIEnvironment") -> None:
        self.status, self.headers = 500, Headers()
        found: Iterable[bytes] = wsgi(environ, self._start)
        try:
            #: All of it: the largest are the files of the pages.
            self.body = b"".join(found)
        finally:
            if hasattr(found, "close"):
                found.close()
        self.live = found if isinstance(found, LiveResponse) else None

    def _start(self, status: str, headers: Headers, _error: Any = None, /) -> Any:
        self.status, self.headers = int(status[:3]), headers


class Application:
    """As RSGI has it: https://github.com/emmett-framework/granian/blob/master/docs/spec/RSGI.md."""

    def __init__(self) -> None:
        self._large = asyncio.Semaphore(4)
        # One for all calls: beside an event loop Django keeps a connection for each context, each task has its own.
        self._context = contextvars.Context()
        self._aside = ThreadPoolExecutor(4, "aside")
        self._readiness = Readiness()

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
        # Beside granian's own, which the loop calls: granian then waits for what is open, and streams would not end.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(STREAMS.end_all))

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_until_complete(STREAMS.close())
        self._aside.shutdown(wait=False, cancel_futures=True)
        self._readiness.close()

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        # Who leaves before the body is whole is answered nothing.
        with suppress(ProtocolError, ProtocolClosed, ConnectionAbortedError):
            answer = await self._answer(scope, protocol)
            if answer.live is None or answer.live.stream.is_over or scope.method == "HEAD":
                protocol.response_bytes(answer.status, answer.headers, answer.body)
                return
            headers = [each for each in answer.headers if each[0] != "Content-Length"]
            transport = protocol.response_stream(answer.status, headers)
            with LIVE_STREAMS.track_inprogress():
                await STREAMS.serve(answer.live.stream, answer.body, transport, protocol)

    async def _answer(self, scope: Any, protocol: Any) -> Answer:
        declared = scope.headers.get("content-length")
        if not _has_body(scope, declared):
            return await self._call(_environ(scope, io.BytesIO(), declared))
        if declared and declared.isdecimal() and int(declared) <= LARGE:
            return await self._call(_environ(scope, io.BytesIO(await protocol()), declared))
        async with self._large:
            body, size = await _read(declared, protocol)
            return await self._call(_environ(scope, body, size))

    async def _call(self, environ: "WSGIEnvironment") -> Answer:
        if _WAITS_FOR_OTHERS.fullmatch(environ["PATH_INFO"]):
            return await asyncio.get_running_loop().run_in_executor(self._aside, Answer, environ)
        if environ["PATH_INFO"] == "/healthz/ready":
            environ[ASKED] = await self._readiness.ask()
        return self._context.run(Answer, environ)


def _has_body(scope: Any, declared: str | None) -> bool:
    """HTTP/2 has bodies that are announced by nothing."""
    if declared is None and scope.http_version == "2":
        return scope.method in ("POST", "PUT", "PATCH")
    return declared not in (None, "0") or "transfer-encoding" in scope.headers


async def _read(declared: str | None, protocol: Any) -> tuple[io.BytesIO, str]:
    """A large body, or one of unknown size, and how large it is; nothing of one that will not be taken."""
    body, limit = io.BytesIO(), settings.MAX_REQUEST_BYTES
    if declared and declared.isdecimal() and int(declared) > limit:
        return body, declared
    empty = 0
    async for chunk in protocol:
        body.write(chunk)
        empty += not chunk
        if body.tell() > limit:  # by which the parser knows
            break
    # granian says the end by an empty chunk, and a lost connection by one before that.
    if empty > 1:
        raise ConnectionAbortedError
    size = str(body.tell())
    body.seek(0)
    return body, size


def _environ(scope: Any, body: io.BytesIO, size: str | None) -> "WSGIEnvironment":
    """As PEP 3333 has it, and as granian's own WSGI makes it."""
    environ = _ALWAYS | {
        "REQUEST_METHOD": scope.method,
        "PATH_INFO": scope.path.encode().decode("latin-1"),
        "QUERY_STRING": scope.query_string,
        "SERVER_PROTOCOL": f"HTTP/{scope.http_version}",
        "wsgi.url_scheme": scope.scheme,
        "wsgi.input": body,
    }
    environ["SERVER_NAME"], environ["SERVER_PORT"] = _address(scope.server)
    environ["REMOTE_ADDR"], _ = _address(scope.client)
    headers = scope.headers
    for name in headers.keys():  # noqa: SIM118 -- it is no dict
        # A value that is not ASCII counts as empty.
        environ["HTTP_" + name.upper().replace("-", "_")] = ",".join(headers.get_all(name))
    for name in ("CONTENT_LENGTH", "CONTENT_TYPE"):
        environ.pop(f"HTTP_{name}", None)
    if "content-type" in headers:
        environ["CONTENT_TYPE"] = headers.get("content-type", "")
    if size is not None:
        environ["CONTENT_LENGTH"] = size
    environ.setdefault("HTTP_HOST", scope.authority or "")
    return environ


def _address(text: str) -> tuple[str, str]:
    """192.0.2.1:4711 and [2001:db8::1]:4711, each without its port, and the port."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), port


application = Application()
