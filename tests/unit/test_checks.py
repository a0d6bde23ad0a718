"""System checks: what an operator is told at the start."""

from typing import Any

import pytest

from mailqueue.checks import lease_outlasts_deadlines, one_click_is_https
from mailqueue.delivery import smtp
from tasks.states import Phase


@pytest.mark.parametrize(
    ("seconds", "told"), [(120, []), (91, []), (90, ["mailqueue.W001"]), (4, ["mailqueue.W001"])]
)
def test_a_lease_that_a_relay_can_outlast_is_told(settings: Any, seconds: int, told: list[str]) -> None:
    settings.MAIL_LEASE_SECONDS = seconds
    assert [warning.id for warning in lease_outlasts_deadlines()] == told


def test_the_longest_deadline_counts(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.MAIL_LEASE_SECONDS = 120
    monkeypatch.setitem(smtp.DEADLINES, Phase.REPLY, 600)
    (warning,) = lease_outlasts_deadlines()
    assert "600 s" in warning.msg
    assert "900" in warning.hint


@pytest.mark.parametrize(
    ("url", "told"),
    [("", []), ("https://mail.example.com", []), ("http://mail.example.com", ["mailqueue.W002"])],
)
def test_a_link_to_unsubscribe_that_mail_programs_pass_over_is_told(
    settings: Any, url: str, told: list[str]
) -> None:
    settings.PUBLIC_URL = url
    assert [warning.id for warning in one_click_is_https()] == told


def test_they_are_registered() -> None:
    from django.core.checks.registry import registry

    assert lease_outlasts_deadlines in registry.get_checks()
    assert one_click_is_https not in registry.get_checks()  # `make run` has no TLS
    assert one_click_is_https in registry.get_checks(include_deployment_checks=True)
