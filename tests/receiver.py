"""A receiver of webhooks on loopback, which answers what it is told to and keeps what it was sent."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from standardwebhooks import Webhook


@dataclass(frozen=True)
class Call:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> Any:
        """The payload; WebhookVerificationError unless this secret has signed it."""
        return Webhook(secret).verify(self.body, self.headers)


#: Status and headers.
Answer = tuple[int, dict[str, str]]


class Receiver:
    """`answers` are given in order, `always` when they are used up."""

    def __init__(self, port: int = 0, tls: Any = None) -> None:
        self.calls: list[Call] = []
        self.answers: list[Answer] = []
        self.always: Answer = (204, {})
        self.body = b""
        self.before_answer: Callable[[], None] = lambda: None
        self.most_at_once, self._now = 0, 0
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30
            #: Headers and body of an answer in one packet.
            wbufsize = -1

            def do_POST(self) -> None:
                receiver._take(self)

            def do_GET(self) -> None:
                receiver._take(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        # Who holds a connection open is not waited for.
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def _take(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            self.calls.append(Call(handler.path, headers, body))
            code, extra = self.answers.pop(0) if self.answers else self.always
        try:
            self.before_answer()
            handler.send_response(code)
            for name, value in extra.items():
                handler.send_header(name, value)
            if code != 204:
                handler.send_header("Content-Length", str(len(self.body)))
            handler.end_headers()
            if code != 204:
                handler.wfile.write(self.body)
            handler.wfile.flush()
        finally:
            with self._lock:
                self._now -= 1

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def ids(self) -> list[str]:
        return [call.id for call in self.calls]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def hanging() -> Iterator[Receiver]:
    """One that takes calls and answers none of them until the end."""
    gate = threading.Event()
    with Receiver() as receiver:
        receiver.before_answer = lambda: bool(gate.wait(60)) and None
        try:
            yield receiver
        finally:
            gate.set()
