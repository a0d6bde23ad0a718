"""A part of the service with something taken out, or that dies at a named point. Only here; what runs elsewhere
has no such switch.

    CHAOS_WITHOUT=fence CHAOS_POINTS=FOLDER python -m tests.chaos.sabotage -q -A config worker ...   (as `celery`)
    granian tests.chaos.sabotage:application                                                        (as config.rsgi)

CHAOS_WITHOUT takes out one of GUARDS. Who comes to one of POINTS with the mail of a recipient whose address is in
the file of that name in CHAOS_POINTS takes the file away, and dies of SIGKILL.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

#: What a process does around one mail, in this order.
POINTS = ("claimed", "before-dot", "dot", "replied", "before-settle", "after-settle")
#: Where no mail goes twice: it was not sent yet, or the journal or the ledger knows that it was.
SURE = ("claimed", "before-dot", "before-settle", "after-settle")
#: After this (seconds) a dot that was allowed is with the kernel; the sink's answer takes longer.
DOT_LEAVES_WITHIN = 0.003


def take_out(guard: str) -> None:
    GUARDS[guard]()


def _fence() -> None:
    """Whoever writes a result writes it, whoever holds the mail by now."""
    from tasks import statements

    fenced = statements.SETTLE
    start = fenced.index(" AND t.claim_token = v.token AND t.status")
    statements.SETTLE = fenced[:start] + fenced[fenced.index("\n", start) :]


def _journal() -> None:
    """Nobody notes anything."""
    from mailqueue.delivery.journal import Journal

    Journal._write = lambda self, line: None  # type: ignore[method-assign]


def _rescue() -> None:
    """Nobody takes back what the dead have held, unless their journal is found."""
    from mailqueue import upkeep

    upkeep.rescue = lambda: 0


def _bell_guard() -> None:
    """Every ring is a message, however many have rung."""
    from tasks import doorbell

    doorbell._RING = "return 1"


GUARDS: dict[str, Callable[[], None]] = {
    "fence": _fence,
    "journal": _journal,
    "rescue": _rescue,
    "bell": _bell_guard,
}


def make_mortal(folder: Path) -> None:
    """Sets the points into the seams of the courier. The file at a point names the recipient whose mail it is for."""
    from mailqueue.delivery.clerk import Clerk
    from mailqueue.delivery.journal import Journal

    claim, dot, reply, settle = Clerk.claim, Journal.dot, Journal.reply, Clerk.settle
    recipients: dict[int, str] = {}

    def die_at(point: str, ids: Iterable[int]) -> None:
        try:
            armed = (folder / point).read_text()
        except FileNotFoundError:
            return
        if armed in {recipients[pk] for pk in ids}:
            (folder / point).unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    def claimed(self: Clerk, *args: Any) -> Any:
        found = claim(self, *args)
        recipients.update({mail.id: mail.recipient for mail in found[0]})
        die_at("claimed", [mail.id for mail in found[0]])
        return found

    def before_dot(self: Journal, mail: Any) -> None:
        dot(self, mail)
        die_at("before-dot", [mail.id])
        asyncio.get_running_loop().call_later(DOT_LEAVES_WITHIN, die_at, "dot", [mail.id])

    def replied(self: Journal, mail: Any, answer: Any) -> None:
        die_at("replied", [mail.id])
        reply(self, mail, answer)

    def settled(self: Clerk, batch: Any) -> Any:
        ids = [one.id for one in batch]
        die_at("before-settle", ids)
        done = settle(self, batch)
        die_at("after-settle", ids)
        return done

    Clerk.claim, Clerk.settle = claimed, settled  # type: ignore[method-assign]
    Journal.dot, Journal.reply = before_dot, replied  # type: ignore[method-assign]


def _prepare() -> None:
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    django.setup()
    for guard in filter(None, os.environ.get("CHAOS_WITHOUT", "").split(",")):
        take_out(guard)
    if folder := os.environ.get("CHAOS_POINTS"):
        make_mortal(Path(folder))


if __name__ == "__main__":
    _prepare()
    from celery.__main__ import main

    main()
elif os.environ.get("CHAOS_WITHOUT"):
    _prepare()
    from config.rsgi import application  # noqa: F401 -- granian asks for it
