"""One case on one stage: a client hands over mail, faults are done, and in the end logs and rows are judged."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from tests.chaos import checker
from tests.chaos.checker import Evidence, Fault, Row, Verdict
from tests.chaos.client import Client, Owner
from tests.chaos.sink import Sink, Taken
from tests.chaos.stage import WEBS, Stage
from tests.machine import until

#: I3: after the last fault nothing that is due waits longer (seconds).
PATIENCE = 185.0
#: The same where a promise is to be broken.
SOON = 70.0
#: Sessions of one owner's account in each process: few, so that workers have mail in hand that waits for one.
CONNECTIONS = 5
#: So much of the mail is there before the first fault.
AT_ONCE = 0.1


@dataclass(frozen=True)
class Case:
    """`mails` and `times` are the full size."""

    name: str
    title: str
    mails: int
    times: int
    do: Callable[["Run"], None]
    in_ci: bool = False
    #: Whether a sender or PostgreSQL is cut off, or a relay cuts us off: only then may a mail go twice.
    cuts_off: bool = True
    #: A guard is taken out: if no promise is broken, the suite is blind.
    must_break: bool = False
    #: What the judge has to know of it, and how its stage differs.
    judged: dict[str, Any] = field(default_factory=dict)
    stage: dict[str, Any] = field(default_factory=dict)


class Run:
    """A case's hands: what it uses, and what it leaves behind."""

    def __init__(
        self,
        case: Case,
        stage: Stage,
        sink: Sink,
        *,
        scale: float,
        seed: int,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.case, self.stage, self.sink, self.say = case, stage, sink, say
        self.patience = SOON if case.must_break else PATIENCE
        scale = 1 if case.must_break else scale
        self.mails = max(round(case.mails * scale), 20)
        self.times = max(round(case.times * scale), 1)
        self.dice = random.Random(seed)
        self.client = Client([stage.url(web) for web in WEBS], stage.folder / f"{case.name}.calls", seed)
        self.faults: list[Fault] = []
        self.broken: list[str] = []
        self.owners: list[Owner] = []
        self._began = time.time()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.client.close()

    # Sending ----------------------------------------------------------------------------------------

    def owner(self, relay_port: int | None = None, **settings: Any) -> Owner:
        """Somebody whose mail goes to the sink, or to another port; `settings` are the account's."""
        settings = {"max_connections": CONNECTIONS} | settings
        self.owners.append(self.client.owner(relay_port or self.sink.port, **settings))
        return self.owners[-1]

    @contextmanager
    def sending(self, seconds: float, relay_port: int | None = None, **how: Any) -> Iterator[None]:
        """All of its mail, by three owners in turn: a tenth at once, the rest over so long."""
        owners = [self.owner(relay_port) for _ in range(3)]
        at_once = round(self.mails * AT_ONCE)

        def send() -> None:
            self.client.send(owners, at_once, **how)
            rest = self.mails - at_once
            self.client.send(owners, rest, per_second=rest / seconds, **how)

        with self.in_background(send):
            until(lambda: self.client.accepted or self.broken, "the first mail is accepted")
            yield

    def bursts(self, gap: float) -> Iterator[int]:
        """The faults' numbers. Each has its share of the mail, handed over as fast as it goes, and comes in the
        middle of that; the next one follows `gap` seconds after its end."""
        owners = [self.owner() for _ in range(3)]
        for number in range(self.times):
            share = self.mails * (number + 1) // self.times - self.mails * number // self.times
            before = self.sink.count()
            with self.in_background(lambda share=share: self.client.send(owners, share)):
                # Where nothing arrives the fault comes all the same.
                deadline = time.monotonic() + 5
                while self.sink.count() == before and time.monotonic() < deadline:
                    time.sleep(0.02)
                time.sleep(self.dice.uniform(0, 0.3))
                yield number
            self.say(f"fault {number + 1} of {self.times}, {self.sink.count()} taken")
            time.sleep(gap * self.dice.uniform(0.5, 1.5))

    @contextmanager
    def in_background(self, deed: Callable[[], None]) -> Iterator[None]:
        """Meanwhile; it has ended when this does."""

        def noting() -> None:
            try:
                deed()
            except Exception as error:  # noqa: BLE001 -- a thread's exception must not be lost
                self.broken.append(f"the client failed: {error!r}")

        thread = threading.Thread(target=noting, name="sending")
        thread.start()
        try:
            yield
        finally:
            thread.join()

    # Faults -----------------------------------------------------------------------------------------

    def each(self, gap: float) -> Iterator[int]:
        """The faults' numbers, one every `gap` seconds or so."""
        for number in range(self.times):
            time.sleep(gap * self.dice.uniform(0.7, 1.3))
            yield number
            self.say(f"fault {number + 1} of {self.times}, {self.sink.count()} taken")

    @contextmanager
    def fault(self, what: str, *, cuts_off: bool = False) -> Iterator[None]:
        """Notes when it was done, and when it was over."""
        at = time.time()
        try:
            yield
        finally:
            self.faults.append(Fault(what, at, time.time(), cuts_off))

    def expect(self, is_so: bool, otherwise: str) -> None:
        """A promise of this case's own."""
        if not is_so:
            self.broken.append(otherwise)

    # The end ----------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Until all has come to its end, or patience is over."""
        until_when = time.monotonic() + self.patience
        while (left := self._unfinished()) and time.monotonic() < until_when:
            self.say(f"waiting for {left} mails")
            time.sleep(0.2)

    def finish(self) -> Verdict:
        """Waits, and judges."""
        self.wait()
        rows = [
            Row(*row) for row in self.stage.query(f"{checker.ROWS} WHERE owner_id = ANY(%s)", [self._ids()])
        ]
        calls = list(self.client.calls)
        verdict = checker.judge(Evidence(calls, self._taken(), rows, self.faults), **self.case.judged)
        self.expect(
            self.case.cuts_off or not verdict.duplicates,
            f"I2: {verdict.duplicates} mails went twice, though nobody was cut off",
        )
        verdict.broken += self.broken + self._secrets_shown()
        return verdict

    def _taken(self) -> list[Taken]:
        """What came since this run began; a sink may serve several."""
        return [mail for mail in self.sink.taken() if mail.at >= self._began]

    def _ids(self) -> list[int]:
        return [owner.pk for owner in self.owners]

    def _unfinished(self) -> int:
        return int(self.stage.query(f"{checker.UNFINISHED} AND owner_id = ANY(%s)", [self._ids()])[0][0])

    def _secrets_shown(self) -> list[str]:
        results = self.stage.query(
            "SELECT task_args, task_kwargs, result, traceback FROM django_celery_results_taskresult"
        )
        secrets = [*self.client.secrets, *self.stage.secrets.values()]
        return checker.secrets_shown(self.stage.folder, secrets, self.stage.redis_keys(), results)
