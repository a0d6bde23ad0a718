"""Django's PostgreSQL, whose patience has an end where somebody says so: in the web (config/rsgi.py).

A PostgreSQL that hangs (a frozen disk, a network that swallows all) refuses nothing, it only never answers, and the
web's calls share one thread. Workers and commands wait as long as it takes.
"""

import time
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
from django.db.backends.postgresql import base
from psycopg.abc import PQGen
from psycopg.errors import ConnectionTimeout, _WaitTimeout

#: Who is asked for nothing but a sign of life has to give it within so many seconds.
SIGN_OF_LIFE = 5.0
#: After a connection that nobody answered none is tried for so long, or each call would wait for one (seconds).
SILENCE = 5.0

RV = TypeVar("RV")


class ImpatientConnection(psycopg.Connection[Any]):
    """What is not answered in time ends the connection, for what comes later would be taken for the next answer."""

    patience: float

    # psycopg's own, with the timeout that 3.3 gave it.
    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, self.patience)
        except _WaitTimeout as error:
            # One that is only slow need not go on for nobody.
            if psycopg.capabilities.has_cancel_safe():
                with suppress(psycopg.Error):
                    self.cancel_safe(timeout=1)
            self.pgconn.finish()
            raise psycopg.OperationalError(f"no answer within {self.patience:.0f} s") from error


class DatabaseWrapper(base.DatabaseWrapper):
    #: How long a statement may take, in seconds.
    patience: float | None = None
    _silent_until = 0.0

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        if self.patience is None:
            return super().get_new_connection(conn_params)
        if time.monotonic() < DatabaseWrapper._silent_until:
            raise psycopg.OperationalError("nobody answered a moment ago")
        try:
            connection = super().get_new_connection(conn_params)
        except ConnectionTimeout:
            DatabaseWrapper._silent_until = time.monotonic() + SILENCE
            raise
        connection.__class__ = ImpatientConnection
        connection.patience = self.patience
        return connection

    def is_usable(self) -> bool:
        if isinstance(self.connection, ImpatientConnection):
            self.connection.patience = SIGN_OF_LIFE
        usable = super().is_usable()
        if isinstance(self.connection, ImpatientConnection) and self.patience is not None:
            self.connection.patience = self.patience
        return usable
