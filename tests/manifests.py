"""The manifests of deployment/ as kubectl renders them, and what is asked of them again and again."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailqueue.embedded.process import ROOT

DEPLOYMENT = ROOT / "deployment"
OVERLAYS = ("minikube", "production", "keda", "prometheus-adapter")
#: Kinds whose pods are described by a template, and where that is.
WORKLOADS = ("Deployment", "StatefulSet", "Job")
#: Pods of other people's images, in minikube.
DATASTORES = {"postgres", "redis"}

Resource = Mapping[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod template: who makes such pods, its labels, its spec."""

    kind: str
    name: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def containers(self) -> list[Any]:
        """Those that are there before, too."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def command(self) -> list[str]:
        return [*self.spec["containers"][0].get("command", []), *self.spec["containers"][0]["args"]]


class Rendered:
    """One overlay."""

    def __init__(self, overlay: str, text: str) -> None:
        self.overlay, self.text = overlay, text
        self.resources: list[Any] = list(yaml.safe_load_all(text))

    def of(self, *kinds: str) -> list[Any]:
        return [each for each in self.resources if each["kind"] in kinds]

    def named(self, kind: str, name: str) -> Any:
        (found,) = (each for each in self.of(kind) if each["metadata"]["name"] == name)
        return found

    @cached_property
    def pods(self) -> list[Pod]:
        return [
            Pod(each["kind"], each["metadata"]["name"], template["metadata"]["labels"], template["spec"])
            for each in self.of(*WORKLOADS)
            for template in [each["spec"]["template"]]
        ]

    def pod(self, name: str) -> Pod:
        (found,) = (each for each in self.pods if each.name == name)
        return found

    @property
    def ours(self) -> list[Pod]:
        return [each for each in self.pods if each.name not in DATASTORES]

    def selected(self, selector: Mapping[str, Any]) -> set[str]:
        """The names of the pods that it matches."""
        return {each.name for each in self.pods if selects(selector, each.labels)}


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """As a LabelSelector; an empty one selects everything."""
    if set(selector) - {"matchLabels", "matchExpressions"}:
        raise ValueError(selector)
    wanted = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return wanted and all(_fits(each, labels) for each in selector.get("matchExpressions", []))


def _fits(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    if expression["operator"] != "In":
        raise ValueError(expression)
    return labels.get(expression["key"]) in expression["values"]


def kubectl() -> str:
    """Where kubectl is. Without it tests skip, but fail in CI, where `.ci/get-kubectl` has been."""
    found = shutil.which("kubectl") or shutil.which("kubectl", path=ROOT / ".local/kubectl")
    if found:
        return found
    sentence = "kubectl is not on the PATH; .ci/get-kubectl gets one"
    if os.environ.get("CI"):
        pytest.fail(sentence)
    pytest.skip(sentence)


def render(folder: Path) -> str:
    """The resources of an overlay, as YAML."""
    command = [kubectl(), "kustomize", str(folder)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def overlay(deployment: Path, name: str) -> Path:
    """What is applied: that for minikube with the secrets that were made for it."""
    return deployment / name if name == "minikube" else deployment / "overlays" / name


def copy_with_secrets(target: Path) -> Path:
    """A copy of deployment/ with secrets for minikube made in it; those of whoever works here stay theirs."""
    folder = target / "deployment"
    shutil.copytree(DEPLOYMENT, folder, ignore=shutil.ignore_patterns("secrets.env"))
    make_secrets(folder)
    return folder


def make_secrets(folder: Path) -> Path:
    file = folder / "minikube/secrets.env"
    subprocess.run([folder / "make-secrets", file], check=True, timeout=60)
    return file


def key_values(file: Path) -> dict[str, str]:
    """The lines of a file such as settings.env."""
    lines = (line.strip() for line in file.read_text().splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def containers(rendered: Rendered) -> Iterator[tuple[Pod, Any]]:
    for pod in rendered.pods:
        for container in pod.containers:
            yield pod, container
