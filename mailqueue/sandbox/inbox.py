"""Writes the mails of all sessions in groups: whoever comes while a group is written goes with the next.

Mails to magic addresses (mailqueue/delivery/magic.py) come without SMTP, one by one.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.db import close_old_connections, connection, connections
from django.utils import timezone

from mailqueue.sandbox.models import SandboxMail
from mailqueue.sandbox.reading import printable, subject_of

logger = logging.getLogger(__name__)

#: A group is one INSERT; these keep it small.
GROUP_MAILS = 500
GROUP_BYTES = 16 * 1024 * 1024
#: How many mails come between two prunings.
PRUNE_EVERY = 1_000

Waiting = tuple[SandboxMail, asyncio.Future[None]]


class NotKeptError(Exception):
    """The mail could not be stored; its sender should come again."""


class Inbox:
    """One writer, with one database connection in one thread."""

    def __init__(self) -> None:
        self._waiting: list[Waiting] = []
        self._somebody_waits = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inbox")

    async def keep(self, mail: SandboxMail) -> None:
        """Returns after the commit; NotKeptError without one."""
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((mail, kept))
        self._somebody_waits.set()
        await kept

    async def write_forever(self) -> None:
        loop = asyncio.get_running_loop()
        since_pruning = PRUNE_EVERY
        while True:
            await self._somebody_waits.wait()
            group = self._next_group()
            stored = await loop.run_in_executor(self._thread, _write, [mail for mail, _ in group])
            _answer(group, stored)
            since_pruning += len(group)
            if stored and since_pruning >= PRUNE_EVERY:
                await loop.run_in_executor(self._thread, _prune)
                since_pruning = 0

    async def close(self) -> None:
        """Waits for the group that is being written."""
        await asyncio.get_running_loop().run_in_executor(self._thread, connections.close_all)
        self._thread.shutdown()

    def _next_group(self) -> list[Waiting]:
        count = size = 0
        for mail, _ in self._waiting[:GROUP_MAILS]:
            size += mail.size
            if count and size > GROUP_BYTES:
                break
            count += 1
        group, self._waiting = self._waiting[:count], self._waiting[count:]
        if not self._waiting:
            self._somebody_waits.clear()
        return group


def _answer(group: list[Waiting], stored: bool) -> None:
    for _, kept in group:
        if kept.done():  # its session is gone
            continue
        if stored:
            kept.set_result(None)
        else:
            kept.set_exception(NotKeptError())


def _write(mails: list[SandboxMail]) -> bool:
    close_old_connections()  # a connection that did not outlive a restart of PostgreSQL is replaced
    try:
        SandboxMail.objects.bulk_create(mails)
    except Exception as error:  # noqa: BLE001 -- whatever it is, the senders are told and the writer lives on
        logger.warning("sandbox_not_kept", extra={"mails": len(mails), "error": repr(error)})
        connection.close()
        return False
    return True


def _prune() -> None:
    try:
        SandboxMail.objects.prune()
    except Exception as error:  # noqa: BLE001 -- the next time will do
        logger.warning("sandbox_not_pruned", extra={"error": repr(error)})
        connection.close()


def received(sender: str, recipients: Sequence[str], raw: bytes) -> SandboxMail:
    """A mail that has just come, not stored yet."""
    return SandboxMail(
        received_at=timezone.now(),
        sender="" if sender == "<>" else printable(sender),
        recipients=[printable(recipient) for recipient in recipients],
        subject=subject_of(raw),
        size=len(raw),
        raw=raw,
    )


def keep_magic(mail_from: str, recipient: str, raw: bytes, **_signal: Any) -> None:
    """Receiver of mailqueue.delivery.magic.taken."""
    mail = received(mail_from, [recipient], raw)
    mail.save()
    if mail.pk % PRUNE_EVERY == 0:
        SandboxMail.objects.prune()
