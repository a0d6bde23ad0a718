"""Statements that PostgreSQL reads once for each connection: bound and prepared at the server, with binary answers.
Django's own cursors write each value into the text, which is then read and planned anew each time. Whether a prepared
one keeps its plan is PostgreSQL's choice, unless its connection says (plan_cache_mode, mailqueue/delivery)."""

from collections.abc import Mapping
from typing import Any

import psycopg
from django.db import connection


def rows(statement: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
    """What it answers, on this thread's connection. Raises Django's errors, as its cursors do."""
    connection.ensure_connection()
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
        return cursor.execute(statement, parameters, prepare=True, binary=True).fetchall()
