"""One who listens to a live stream over a socket, in a thread, and writes down what is said."""

import contextlib
import http.client
import json
import socket
import threading
from dataclasses import dataclass
from typing import Any, Self

from tests.machine import until


@dataclass
class Heard:
    """An event, as EventSource would hand it over."""

    id: str
    name: str
    data: dict[str, Any]

    @property
    def position(self) -> int:
        return int(self.id.partition("-")[0])


class Listening:
    """`with Listening(port, headers, "/api/v1/task/events") as stream: …`; `last` is the id to resume with."""

    def __init__(self, port: int, headers: dict[str, str], address: str, last: str | None = None) -> None:
        self.events: list[Heard] = []
        self.heartbeats = 0
        self.last = last or ""
        self.has_ended = threading.Event()
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        resumed = {} if last is None else {"Last-Event-ID": last}
        self._connection.request("GET", address, headers={"Accept": "text/event-stream"} | headers | resumed)
        # http.client lets go of it where the answer says so.
        self._socket = self._connection.sock
        self.answer = self._connection.getresponse()
        self.status, self.headers = self.answer.status, self.answer.headers
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.cut()

    def cut(self) -> None:
        """As a lost connection would."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.answer.close()
        self._connection.close()

    def _read(self) -> None:
        said: dict[str, str] = {}
        with contextlib.suppress(OSError, http.client.HTTPException):
            for line in self.answer:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if line == b": heartbeat\n":
                    self.heartbeats += 1
                elif name:
                    said[name] = value
                else:
                    self._hear(said)
                    said = {}
        self.has_ended.set()

    def _hear(self, said: dict[str, str]) -> None:
        self.last = said.get("id", self.last)
        if "data" in said:
            self.events.append(Heard(said["id"], said["event"], json.loads(said["data"])))

    def names(self, task: int | None = None) -> list[str]:
        return [each.name for each in self.events if task in (None, each.data.get("task_id"))]

    def until(self, count: int) -> list[Heard]:
        """So many events, as soon as they have come."""
        until(lambda: len(self.events) >= count or self.has_ended.is_set(), f"{count} events have come")
        assert len(self.events) == count, self.events
        return self.events

    def until_ended(self) -> list[Heard]:
        until(self.has_ended.is_set, "the stream has ended")
        return self.events
