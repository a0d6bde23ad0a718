"""The HTTP side of the benchmarks: kept connections, as few microseconds of our own as possible."""

import http.client
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from tests.bench.ground import BODY
from tests.bench.process import NotMeasuredError

EMAIL, PASSWORD = "sender@example.com", "a password for the benchmark"


class Client:
    """One kept connection of a logged-in user."""

    def __init__(self, port: int, token: str = "") -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.headers = {"Content-Type": "application/json"}
        if token:
            self.headers["Authorization"] = f"Bearer {token}"

    def post(self, path: str, content: object, expected: int) -> dict[str, object]:
        self.connection.request("POST", path, json.dumps(content).encode(), self.headers)
        response = self.connection.getresponse()
        said = response.read()
        if response.status != expected:
            raise NotMeasuredError(f"POST {path} answered {response.status}: {said[:150]!r}")
        return dict(json.loads(said))

    def enqueue(self, number: int) -> str:
        """Hands over the mail of that number; its recipient, by which a sink can tell it."""
        recipient = f"someone{number}@example.com"
        mail = {"recipient_email": recipient, "subject": f"Benchmark mail {number}", "body": BODY}
        self.post("/api/v1/task/enqueue", mail, 202)
        return recipient


def log_in(port: int) -> str:
    return str(Client(port).post("/api/v1/login", {"email": EMAIL, "password": PASSWORD}, 200)["token"])


def enqueue_all(
    port: int,
    token: str,
    mails: int,
    connections: int,
    hand_over: Callable[[Client, int], object] = Client.enqueue,
) -> float:
    """Seconds that it takes to hand over so many mails on so many kept connections at once."""
    numbers = iter(range(mails))  # shared: whoever is free takes the next one

    def work(client: Client, mine: Iterator[int]) -> None:
        for number in mine:
            hand_over(client, number)

    began = time.perf_counter()
    with ThreadPoolExecutor(connections) as pool:
        for done in [pool.submit(work, Client(port, token), numbers) for _ in range(connections)]:
            done.result()
    return time.perf_counter() - began
