"""An application that hands over mail, and writes down what it was answered: what was accepted, it may rely on.

It knows two webs, and asks the other one next time when one does not answer. A mail whose call got no 202 is not
handed over again: it may be sent or not, and nobody was told.
"""

import random
import secrets
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx

#: What must never be seen outside the table that keeps it sealed.
CANARY = "canary-Zq7"
#: Calls at once, and what one of them may take before the client gives up (seconds).
CLIENTS, PATIENCE = 4, 30.0


@dataclass(frozen=True)
class Call:
    """One mail handed over. Times are seconds since the epoch; `task_id` is None if there was no 202."""

    recipient: str
    at: float
    answered_at: float
    task_id: int | None
    answer: str
    due_at: float | None = None

    @property
    def seconds(self) -> float:
        return self.answered_at - self.at


@dataclass(frozen=True)
class Owner:
    """Somebody with a token, and a relay."""

    pk: int
    headers: dict[str, str] = field(repr=False)


class Client:
    """Hands over mail in waves, from threads of its own. `calls` is what it wrote down."""

    def __init__(self, webs: list[str], log: Path, seed: int) -> None:
        self._open = [httpx.Client(base_url=f"{web}/api/v1", timeout=PATIENCE) for web in webs]
        self._webs = cycle(self._open)
        self._lock = threading.Lock()
        self._log = log.open("a")
        self._dice = random.Random(seed)
        self.calls: list[Call] = []
        #: The run's secrets, to be looked for where they must not be: everybody's password first, then their tokens.
        self.secrets = [f"{CANARY}-{secrets.token_hex(8)}"]

    def close(self) -> None:
        for web in self._open:
            web.close()
        self._log.close()

    def owner(self, relay_port: int, **settings: Any) -> Owner:
        """A new user whose mail goes to this relay."""
        web = next(self._webs)
        login = {"email": f"{secrets.token_hex(6)}@example.com", "password": self.secrets[0]}
        relay = {"smtp_host": "127.0.0.1", "smtp_port": relay_port, "smtp-username": "", "smtp-password": ""}
        web.post("/register", json=login | relay).raise_for_status()
        user = web.post("/login", json=login).raise_for_status().json()
        self.secrets.append(user["token"])
        owner = Owner(user["id"], {"Authorization": f"Bearer {user['token']}"})
        if settings:
            web.patch(f"/user/{owner.pk}", json=settings, headers=owner.headers).raise_for_status()
        return owner

    def send(
        self, owners: Sequence[Owner], mails: int, *, per_second: float = 0, kind: str = "ok", **changes: Any
    ) -> None:
        """Until so many are accepted, owners in turn; in waves of a second at this rate, or as fast as it goes.
        `kind` is what the sink does with them."""
        turns, accepted = cycle(owners), 0
        with ThreadPoolExecutor(CLIENTS, thread_name_prefix="client") as threads:
            while accepted < mails:
                began = time.monotonic()
                count = min(max(1, round(per_second)) if per_second else 200, mails - accepted)
                of = [next(turns) for _ in range(count)]
                calls = threads.map(lambda owner: self.hand_over(owner, kind, **changes), of)
                accepted += sum(call.task_id is not None for call in calls)
                if per_second:
                    time.sleep(max(0.0, began + count / per_second - time.monotonic()))

    def address(self, kind: str = "ok") -> str:
        """A new recipient, to whom the sink does what `kind` says."""
        return f"{kind}.{self._dice.getrandbits(64):016x}@chaos.example"

    def hand_over(self, owner: Owner, kind: str = "ok", recipient: str = "", **changes: Any) -> Call:
        """One mail; one in twenty is for a few seconds later, one in ten is held when in doubt."""
        with self._lock:
            web, dice = next(self._webs), self._dice
            recipient = recipient or self.address(kind)
            mail: dict[str, Any] = {"recipient_email": recipient, "subject": "chaos", "body": recipient}
            mail["lane"] = dice.choices(["otp", "default", "bulk"], [1, 7, 2])[0]
            is_later = dice.random() < 0.05 and "scheduled_at" not in changes
            due_at = time.time() + dice.uniform(1, 5) if is_later else None
            mail["on_uncertain"] = "hold" if dice.random() < 0.1 else "retry"
        if due_at:
            mail["scheduled_at"] = datetime.fromtimestamp(due_at, UTC).isoformat()
        mail |= changes
        began, task_id = time.time(), None
        try:
            answer = web.post("/task/enqueue", json=mail, headers=owner.headers)
            said = str(answer.status_code)
            if answer.status_code == 202:
                task_id = int(answer.json()["task_id"])
        except httpx.TransportError as error:
            said = type(error).__name__
        call = Call(recipient, began, time.time(), task_id, said, due_at)
        with self._lock:
            self.calls.append(call)
            self._log.write(f"{call.at:.6f} {call.answered_at:.6f} {recipient} {task_id or '-'} {said}\n")
            self._log.flush()
        if task_id is None:
            time.sleep(0.05)  # an application does not spin either
        return call

    @property
    def accepted(self) -> list[Call]:
        return [call for call in list(self.calls) if call.task_id is not None]
