"""docs/lifecycle.md tells the truth about the states."""

import re

from mailqueue.embedded.process import ROOT
from tasks.states import FINAL, TRANSITIONS, CancelReason, Status

PAGE = (ROOT / "docs" / "lifecycle.md").read_text()


def arrows() -> set[tuple[str, str]]:
    (diagram,) = re.findall(r"^```mermaid\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    drawn = [line for line in diagram.splitlines() if "-->" in line]
    found = [re.fullmatch(r"\s*(\S+) --> (\S+)(?: : .+)?", line) for line in drawn]
    assert all(found)
    return {(arrow[1], arrow[2]) for arrow in found if arrow}


def test_the_diagram_draws_the_table_of_transitions() -> None:
    allowed = {(origin.label, target.label) for origin, targets in TRANSITIONS.items() for target in targets}
    assert {arrow for arrow in arrows() if "[*]" not in arrow} == allowed


def test_the_diagram_begins_and_ends_where_mails_do() -> None:
    at_the_edge = {arrow for arrow in arrows() if "[*]" in arrow}
    leads_on = {origin.label for origin, targets in TRANSITIONS.items() if targets}
    ends = {(state.label, "[*]") for state in FINAL if state.label not in leads_on}
    assert at_the_edge == ends | {("[*]", "queued"), ("[*]", "scheduled")}


def test_every_state_is_explained() -> None:
    states, _, _ = PAGE.partition("## The way of one mail")
    assert sorted(re.findall(r"^\| `(\w+)` \|", states, re.MULTILINE)) == sorted(Status.labels)


def test_every_reason_to_cancel_is_explained() -> None:
    (paragraph,) = re.findall(r"^`cancel_reason`: .*?\n\n", PAGE, re.DOTALL | re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)` \(", paragraph)) == sorted(CancelReason.labels)
