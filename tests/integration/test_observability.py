"""What deployment/observability asks Prometheus for is what /metrics tells, and each rule and panel can be read."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families

from mailqueue.embedded.process import ROOT

pytestmark = pytest.mark.django_db

OBSERVABILITY = ROOT / "deployment" / "observability"
DASHBOARD = OBSERVABILITY / "grafana" / "dashboards" / "mailqueue.json"
_NAME = re.compile(r"\bmailqueue_\w+")
_LABELLED = re.compile(r"(mailqueue_\w+)\{([^}]*)\}")
_CONDITION = re.compile(r'(\w+)(=~|=)"([^"]*)"')


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((OBSERVABILITY / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def questions() -> Iterator[tuple[str, str]]:
    """Who asks, and what."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


@pytest.fixture
def told() -> dict[str, list[dict[str, str]]]:
    """The labels of each sample that /metrics has, by its name; after a call that is counted."""
    client = Client()
    client.get("/healthz/ping")
    text = client.get("/metrics").content.decode()
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def test_every_metric_that_is_asked_for_is_told(told: dict[str, list[dict[str, str]]]) -> None:
    asked = {(who, name) for who, question in questions() for name in _NAME.findall(question)}
    assert len(asked) > 20
    assert {(who, name) for who, name in asked if name not in told} == set()


def test_every_condition_on_a_label_can_be_met(told: dict[str, list[dict[str, str]]]) -> None:
    never = []
    for who, question in questions():
        for name, conditions in _LABELLED.findall(question):
            for label, how, value in _CONDITION.findall(conditions):
                if label == "status" and name.startswith("mailqueue_http_"):
                    continue  # there is a 5xx when there is one
                wanted = set(value.split("|")) if how == "=~" else {value}
                never += [
                    (who, name, label, each) for each in wanted - {labels[label] for labels in told[name]}
                ]
    assert never == []


def test_every_label_that_is_grouped_by_exists(told: dict[str, list[dict[str, str]]]) -> None:
    grouped = {(name, label) for _, question in questions() for name, label in _grouped(question)}
    assert ("mailqueue_deliveries_total", "outcome") in grouped
    assert {
        (name, label) for name, label in grouped if all(label not in labels for labels in told[name])
    } == set()


def _grouped(question: str) -> Iterator[tuple[str, str]]:
    for labels, rest in re.findall(r"by \(([^)]*)\) \((.*)", question):
        name = _NAME.search(rest)
        assert name, question
        for label in labels.split(","):
            if label.strip() != "namespace":  # which Prometheus adds on Kubernetes
                yield name[0], label.strip()


def test_figures_of_the_whole_system_are_never_added_up_over_the_webs() -> None:
    """Each web tells the same; only calls are its own."""
    summed = [
        (who, question)
        for who, question in questions()
        for inner in re.findall(r"sum(?: by \([^)]*\))? ?\((?:rate|increase)?\(?(\w+)", question)
        if inner.startswith("mailqueue_") and not inner.startswith("mailqueue_http_")
    ]
    assert summed == []


def test_every_rule_says_what_is_wrong_and_how_urgent_it_is() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) > 5
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), rule["alert"]
        assert rule["annotations"].keys() == {"summary", "description"}, rule["alert"]


def test_every_panel_has_a_place_of_its_own_and_the_provisioned_source() -> None:
    source = yaml.safe_load((OBSERVABILITY / "grafana/provisioning/datasources/prometheus.yml").read_text())
    uid = source["datasources"][0]["uid"]
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {uid}
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_compose_and_the_provisioning_mean_the_same_folders() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in compose["grafana"]["volumes"]}
    provider = yaml.safe_load((OBSERVABILITY / "grafana/provisioning/dashboards/mailqueue.yml").read_text())
    folder = Path(mounted[provider["providers"][0]["options"]["path"]])
    assert (ROOT / folder / "mailqueue.json").samefile(DASHBOARD)
