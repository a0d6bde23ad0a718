"""Where a courier has its work with the ledger done: the database must not stop the loop."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import uniform
from typing import ParamSpec, TypeVar

from django.db import InterfaceError, OperationalError, connection

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: One claims while the other settles.
THREADS = 2
#: A plan is kept as long as its connection. Left to choose, PostgreSQL makes a new one for each claim, which takes
#: twice as long as the claim. And one that was made while the table was small must not read all of it when it has
#: grown.
SETTINGS = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off"


class LedgerThreads:
    """Threads with a connection each, which is kept as long as they work. Ask from the loop; `close` at the end."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="ledger")

    async def once(self, deed: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Raises what the deed raises."""
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: _with_connection(deed, *args, **kwargs)
        )

    async def persistently(self, deed: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Until it is done: a restart of PostgreSQL must not lose a result."""
        pause = 0.1
        while True:
            try:
                return await self.once(deed, *args, **kwargs)
            except (OperationalError, InterfaceError) as error:
                logger.warning("database_away", extra={"error": str(error)})
                await asyncio.sleep(pause * uniform(0.5, 1.5))  # noqa: S311 -- spreads load, guards nothing
                pause = min(pause * 2, 5)

    def close(self, *, wait: bool = False) -> None:
        """Each thread has its own connection, and must close it itself."""
        together = threading.Barrier(THREADS)

        def close() -> None:
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(1)  # so that no thread does it twice, and another not at all
            connection.close()

        for _ in range(THREADS):
            self._threads.submit(close)
        self._threads.shutdown(wait=wait)


def _with_connection(deed: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Celery's fixup, which closes connections, does not see these."""
    try:
        if connection.connection is None:
            with connection.cursor() as cursor:
                cursor.execute(SETTINGS)
        return deed(*args, **kwargs)
    except (OperationalError, InterfaceError):
        connection.close()
        raise
