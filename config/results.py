"""Results of jobs, for people to read. A database that is away must not end who wanted to write one."""

from typing import Any

from celery.utils.log import get_logger
from django.db import InterfaceError, OperationalError, connection
from django_celery_results.backends import DatabaseBackend

logger = get_logger(__name__)


class Results(DatabaseBackend):  # type: ignore[misc]  # has no types
    """Writes over a new connection what a cut one has refused, and does without what cannot be written at all.

    A worker's main process writes too, for a message that has outlived its time. Its connection is looked after by
    nobody, and Celery takes an exception there for the end of the worker.
    """

    def _store_result(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._store_result(*args, **kwargs)
        except (OperationalError, InterfaceError):
            if connection.in_atomic_block:
                raise
            connection.close()
        try:
            return super()._store_result(*args, **kwargs)
        except (OperationalError, InterfaceError) as error:
            connection.close()
            logger.warning("result_not_kept", extra={"error": str(error)})
            return args[1] if len(args) > 1 else None
