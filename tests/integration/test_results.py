"""What a job says it did is kept for people to read; a database that is away costs that, and no worker."""

from typing import Any
from uuid import uuid4

import psycopg
import pytest
from celery import current_app
from django.db import connection
from django_celery_results.models import TaskResult

from config import results

pytestmark = pytest.mark.django_db(transaction=True)


def cut(parameters: dict[str, Any]) -> None:
    """As a restart of PostgreSQL does it: the server ends our connection, and we have not noticed yet."""
    connection.ensure_connection()
    pid = connection.connection.info.backend_pid
    known = {
        name: value
        for name, value in parameters.items()
        if name in ("dbname", "host", "port", "user", "password")
    }
    with psycopg.connect(**known, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


def test_it_is_what_workers_use() -> None:
    assert type(current_app.backend) is results.Results


@pytest.mark.parametrize("times", [0, 1, 2])
def test_a_result_is_kept_over_a_cut_connection(times: int) -> None:
    """The second time it is known to be closed, which is another error."""
    task_id, backend = str(uuid4()), results.Results(current_app)
    if times:
        cut(connection.get_connection_params())
    if times == 2:
        with pytest.raises(Exception, match=r"terminat|closed"):
            TaskResult.objects.exists()
    backend.store_result(task_id, {"sent": 3}, "SUCCESS")
    assert TaskResult.objects.get(task_id=task_id).status == "SUCCESS"


def test_a_message_that_has_outlived_its_time_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery takes what is raised here for the end of the worker."""
    backend = results.Results(current_app)
    connection.close()
    with monkeypatch.context() as away:
        away.setitem(connection.settings_dict, "PORT", "1")
        away.setitem(connection.settings_dict, "HOST", "127.0.0.1")
        backend.mark_as_revoked(str(uuid4()), "expired", store_result=True)
    connection.close()
    assert not TaskResult.objects.exists()
