"""docs/operations.md says what the code says, and its SQL runs."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import connection

from config.env import __file__ as env_file
from mailqueue.embedded.process import ROOT

PAGE = (ROOT / "docs" / "operations.md").read_text()
STATEMENTS = [
    statement.strip()
    for block in re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    for statement in re.sub(r"^\s*--.*$", "", block, flags=re.MULTILINE).split(";")
    if statement.strip()
]


@pytest.mark.django_db
@pytest.mark.parametrize("statement", STATEMENTS)
def test_the_sql_of_an_incident_runs(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement.encode())


def test_there_is_sql_for_incidents() -> None:
    assert len(STATEMENTS) > 15


def _read() -> Iterator[tuple[str, str]]:
    """Each variable that config/env.py reads, and its default as the page would write it."""
    for node in ast.walk(ast.parse(Path(env_file).read_text())):
        if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        name = node.args[0].value
        if re.fullmatch(r"[A-Z][A-Z_]+", str(name)):
            yield str(name), "required" if called.startswith("secret") else _default(node)


def _default(call: ast.Call) -> str:
    if len(call.args) == 1:
        return "required"
    given = call.args[1]
    if isinstance(given, ast.Call):  # Path(".local")
        given = given.args[0]
    value = ast.literal_eval(given)
    if isinstance(value, list):
        value = ",".join(map(str, value))
    return "false" if value is False else "none" if value is None else str(value) or "none"


def test_every_variable_stands_there_with_its_default() -> None:
    table = PAGE[PAGE.index("## Configuration") : PAGE.index("## Upgrade")]
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| (.*?) \| (.*) \|$", table, re.MULTILINE)
    assert len(rows) == table.count("\n| `") > 30
    assert {name: default for name, default, _unit, _meaning in rows} == dict(_read())
    assert [name for name, _default, unit, meaning in rows if not (unit and meaning)] == []


def test_links_within_the_page_lead_to_a_heading() -> None:
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    linked = set(re.findall(r"\]\(#([^)]+)\)", PAGE))
    assert linked
    assert linked <= anchors
