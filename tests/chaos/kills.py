"""kill -9 at random moments of a run: now the whole worker, now one process of its pool.

Who was killed between a final dot and its reply leaves a line in its journal for it, and these mails are the
only ones that may go twice. The journals are read before anybody can recover from them.
"""

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg

from mailqueue.delivery.journal import Content, parse
from tests.chaos.sink import Sink, Taken
from tests.machine import Machine, Sender, until

#: Mails handed over at once.
CLIENTS = 4
#: A mail that was in three dying workers' hands is put off by minutes; no other takes that long (seconds).
PATIENCE = 300.0

type_claim = tuple[int, str]


@dataclass
class Kill:
    """One kill, and what it left behind."""

    what: str
    at: float
    #: When all that the dead had written was with the relay, and nobody had begun to recover.
    seen_at: float
    held: int
    #: Mails between final dot and reply: sent, or not, and nobody can know.
    in_doubt: set[int]
    recovered_at: float = 0.0
    twice: int = 0


@dataclass
class Run:
    """What the client, the relay and the rows say in the end."""

    seed: int
    seconds: float
    kills: list[Kill]
    #: Task ids of the client's 202s, and the Message-ID of each row.
    accepted: set[int]
    rows: dict[str, int]
    statuses: Counter[int]
    taken: list[Taken]
    arrivals: Counter[int] = field(init=False)

    def __post_init__(self) -> None:
        self.arrivals = Counter(self.rows[mail.message_id] for mail in self.taken)
        for kill in self.kills:
            before = {self.rows[mail.message_id] for mail in self.taken if mail.at <= kill.seen_at}
            after = {self.rows[mail.message_id] for mail in self.taken if mail.at > kill.seen_at}
            kill.twice = len(kill.in_doubt & before & after)
            kill.recovered_at = min(
                (mail.at for mail in self.taken if mail.at > kill.seen_at), default=kill.at
            )

    @property
    def lost(self) -> set[int]:
        return self.accepted - set(self.arrivals)

    @property
    def duplicates(self) -> int:
        return sum(count - 1 for count in self.arrivals.values())

    @property
    def in_doubt(self) -> Counter[int]:
        """How often each mail was."""
        return Counter(pk for kill in self.kills for pk in kill.in_doubt)

    def table(self) -> str:
        began = min(mail.at for mail in self.taken)
        lines = [f"seed {self.seed}", "kill of    at s   held  in doubt  twice  mail again after s"]
        lines += [
            f"{kill.what:<8}{kill.at - began:>7.2f}{kill.held:>7}{len(kill.in_doubt):>10}{kill.twice:>7}"
            f"{kill.recovered_at - kill.at:>20.2f}"
            for kill in self.kills
        ]
        lines.append(
            f"accepted {len(self.accepted)}, delivered {len(self.arrivals)}, lost {len(self.lost)}, duplicates"
            f" {self.duplicates} of {self.in_doubt.total()} in doubt, {self.seconds:.1f} s"
        )
        return "\n".join(lines)


def fill(sender: Sender, mails: int) -> set[int]:
    """The task ids of so many mails, each of which was answered with 202."""
    with ThreadPoolExecutor(CLIENTS) as clients:
        return set(clients.map(sender.enqueue, (f"reader{n}@example.com" for n in range(mails))))


def run(machine: Machine, sink: Sink, accepted: set[int], kills: int, seed: int) -> Run:
    """Sends what was accepted, and kills at one random moment of each of `kills` equal stretches of the run."""
    dice = random.Random(seed)
    stretch = len(accepted) / (kills + 1)
    began = time.monotonic()
    known: set[type_claim] = set()
    done = []
    for number in range(kills):
        if "worker" not in machine.running:
            machine.start_worker(concurrency=2)
        moment = stretch * (number + 0.1 + dice.random())
        until(lambda moment=moment: sink.count() >= moment, "the next moment has come")
        time.sleep(dice.random() * 0.1)  # else always just behind a mail
        whole = number % 2 == 0
        done.append(_kill_all(machine, known) if whole else _kill_one(machine, known, dice))
    if "worker" not in machine.running:
        machine.start_worker(concurrency=2)
    until(lambda: _unfinished(machine) == 0, "every mail has come to its end", PATIENCE)
    rows = dict(machine.query("SELECT message_id, id FROM tasks_mailtask"))
    statuses = Counter(status for (status,) in machine.query("SELECT status FROM tasks_mailtask"))
    return Run(seed, time.monotonic() - began, done, accepted, rows, statuses, sink.taken())


def _kill_all(machine: Machine, known: set[type_claim]) -> Kill:
    at = time.time()
    machine.kill("worker")
    return _autopsy(machine, "worker", at, _journals(machine, "*"), known)


def _kill_one(machine: Machine, known: set[type_claim], dice: random.Random) -> Kill:
    """Its parent is held meanwhile, for it would start another at once, and that would read the journal."""
    parent = psutil.Process(machine.running["worker"].pid)
    children = until(parent.children, "the pool has started")
    child = dice.choice(children)
    parent.suspend()
    try:
        at = time.time()
        child.kill()
        until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "it is dead")
        return _autopsy(machine, "process", at, _journals(machine, f"*:{child.pid}:*"), known)
    finally:
        parent.resume()


def _journals(machine: Machine, pattern: str) -> list[Path]:
    return list((machine.folder / "data" / "journal").glob(f"{pattern}.journal"))


def _autopsy(machine: Machine, what: str, at: float, journals: list[Path], known: set[type_claim]) -> Kill:
    """What the dead had in hand. `known` are the claims in doubt since an earlier kill, whose successor died
    before it could read of them."""
    time.sleep(0.2)  # PostgreSQL finishes what it was told, and the relay what it was sent
    contents = [parse(journal.read_bytes()) for journal in journals]
    found = {claim for content in contents for claim in _in_doubt(content)} - known
    known |= found
    tokens = [str(token) for content in contents for token in content.tokens]
    return Kill(what, at, time.time(), _held(machine, tokens), {pk for pk, _ in found})


def _in_doubt(content: Content) -> set[type_claim]:
    return {(pk, str(token)) for (pk, token), answer in content.answers.items() if answer is None}


def _held(machine: Machine, tokens: list[str]) -> int:
    """The mails that are still in the hands of the dead."""
    with psycopg.connect(machine.database) as database:
        sql = "SELECT count(*) FROM tasks_mailtask WHERE status = 1 AND claim_token = ANY(%s::uuid[])"
        row = database.execute(sql, [tokens]).fetchone()
    return int(row[0]) if row else 0


def _unfinished(machine: Machine) -> int:
    return int(machine.query("SELECT count(*) FROM tasks_mailtask WHERE status NOT IN (2, 4, 6)")[0][0])
