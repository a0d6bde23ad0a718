"""docs/api.md names every `code` that an error may carry, and none that no longer exists.

Codes stand in three places: where an error is raised, by `default_code` in the classes of errors, and in the fields
of Django REST framework. All three are walked over, so that a new one without a line in the docs is red.
"""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from django.core import validators
from rest_framework import exceptions, serializers
from rest_framework.fields import Field

from mailqueue import api as _mailqueue_api  # noqa: F401 -- its serializers are walked over
from mailqueue.embedded.process import ROOT
from tests.routes import calls

SOURCES = [
    *sorted((ROOT / "accounts").glob("*.py")),
    *sorted((ROOT / "accounts/api").glob("*.py")),
    *sorted((ROOT / "tasks").glob("*.py")),
    *sorted((ROOT / "tasks/api").glob("*.py")),
    ROOT / "mailqueue/api.py",
    *sorted((ROOT / "mailqueue/webhooks").glob("*.py")),
    ROOT / "mailqueue/kinds.py",
    ROOT / "mailqueue/typed.py",
    *sorted((ROOT / "mailqueue/otp").glob("*.py")),
    *sorted((ROOT / "mailqueue/subscriptions").glob("*.py")),
]
ERRORS = {
    "APIException",
    "AuthenticationFailed",
    "Conflict",
    "NotFound",
    "ParseError",
    "PermissionDenied",
    "ValidationError",
    "DjangoValidationError",
    "ForbiddenPlaceError",
}
#: Second of `_answer(status, detail, code)` and the like.
ANSWERS = {"_answer": 2, "problem": 2, "RegexValidator": 2, "PartError": 2, "BadScheduleError": 2}
#: No caller sees them.
INTERNAL = {
    "conflict": "the default of Conflict, which is always raised with a code here",
    "authentication_failed": "the same",
    "permission_denied": "the same: what is refused names its scope",
    "throttled": "DRF's own throttles, which are not in use",
    "parse_error": "always raised with a code here",
    "date": "a DateTimeField never sees a date",
    "make_aware": "UTC has no hour that is missing",
    "overflow": "shown as `invalid`",
    "min_length": "of a text or list so short another code is given first",
}


def _words(node: ast.expr) -> set[str]:
    """The texts that this may be; of an `a if b else c` both."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {node.value}
    if isinstance(node, ast.IfExp):
        return _words(node.body) | _words(node.orelse)
    return set()


def raised_in(source: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Assign) and any(
            isinstance(each, ast.Name) and each.id == "default_code" for each in node.targets
        ):
            found |= _words(node.value)
        # Codes that are chosen before they are raised.
        if isinstance(node, ast.Assign) and any(
            isinstance(each, ast.Name) and each.id == "code" for each in node.targets
        ):
            found |= _words(node.value)
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        place = 1 if name in ERRORS else ANSWERS.get(name)
        if place is None:
            continue
        given = [each.value for each in node.keywords if each.arg == "code"] + node.args[place : place + 1]
        for each in given:
            found |= _words(each)
    return found


def of_fields() -> set[str]:
    """What the fields of all serializers may complain of by themselves, and their validators."""
    found: set[str] = set()
    for serializer in _below(serializers.Serializer):
        if serializer.__module__.split(".")[0] in ("accounts", "tasks", "mailqueue"):
            for field in serializer._declared_fields.values():
                found |= _codes(field)
    return found


def _codes(field: Field[Any, Any, Any, Any]) -> set[str]:
    if field.read_only:
        return set()
    found = set(field.error_messages) | {
        each.code
        for each in field.validators
        if isinstance(each, validators.BaseValidator | validators.RegexValidator)
    }
    child = getattr(field, "child", None)
    return found | (_codes(child) if child is not None else set())


def _below(kind: type) -> list[type]:
    return [each for sub in kind.__subclasses__() for each in (sub, *_below(sub))]


def existing() -> set[str]:
    calls()  # imports every view, and with it every class of errors
    raised = set().union(*map(raised_in, SOURCES))
    classes = {
        each.default_code
        for each in _below(exceptions.APIException)
        if each.__module__.split(".")[0] in ("accounts", "tasks", "mailqueue", "rest_framework")
    }
    return raised | classes | of_fields()


def documented() -> set[str]:
    """The first words in backticks of each row of the two tables, and the list of DRF's own before the second."""
    page = (ROOT / "docs/api.md").read_text().partition("\n## Errors\n")[2]
    found: set[str] = set()
    for line in page.splitlines():
        cells = line.split("|")
        if line.startswith("| `"):
            found |= set(re.findall(r"`([a-z0-9_]+)`", cells[1]))
        elif re.match(r"\| \d{3} \|", line):
            found |= set(re.findall(r"`([a-z0-9_]+)`", cells[2]))
        elif line.startswith("Codes of fields"):
            found |= set(re.findall(r"`([a-z0-9_]+)`", line))
    return found


def test_every_code_is_documented():
    assert existing() - documented() - INTERNAL.keys() == set()


def test_no_code_is_documented_that_does_not_exist():
    assert documented() - existing() == set()


@pytest.mark.parametrize(
    "line",
    [
        'raise ValidationError("no", "brand_new")',
        'raise ValidationError({"a": ["no"]}, code="brand_new")',
        'raise exceptions.ParseError("no", "brand_new" if x else "older")',
        'class X(APIException):\n    default_code = "brand_new"',
    ],
)
def test_a_new_code_is_seen(tmp_path, line):
    source = tmp_path / "new.py"
    source.write_text(line)
    assert "brand_new" in raised_in(source)


def test_what_nobody_sees_is_still_there():
    assert INTERNAL.keys() <= existing()
