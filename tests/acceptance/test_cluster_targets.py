"""`make cluster apply hpa re delete clean all` call the right programs in the right order. minikube and kubectl are
fakes that note how they are called; what they would do to a cluster nobody sees here."""

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from mailqueue.embedded.process import ROOT

FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
case "$*" in
  *"get deployments --output name"*) echo deployment.apps/web; echo deployment.apps/worker ;;
  *" ip") echo 192.0.2.7 ;;
esac
case "$*" in *"$FAILS"*) exit 1 ;; esac
"""
(VERSION,) = re.findall(r'^VERSION = "(.*)"$', (ROOT / "config/settings.py").read_text(), re.MULTILINE)
TARGETS = ("cluster", "apply", "hpa", "re", "delete", "clean", "all")


class Desk:
    """A copy of what the targets need, and a PATH on which minikube and kubectl are what the test says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls_file = folder / "checkout", folder / "calls"
        self.bin = folder / "bin"
        self.bin.mkdir()
        (self.folder / "config").mkdir(parents=True)
        shutil.copy(ROOT / "Makefile", self.folder)
        shutil.copy(ROOT / "config/settings.py", self.folder / "config")
        shutil.copytree(
            ROOT / "deployment", self.folder / "deployment", ignore=shutil.ignore_patterns("secrets.env")
        )
        for name in ("bash", "sh", "make", "sed", "dirname", "basename", "cat", "env"):
            found = shutil.which(name)
            assert found, name
            (self.bin / name).symlink_to(found)
        # Not a link: a Python finds its own by where it was started.
        self._program("python3", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')

    @property
    def secrets(self) -> Path:
        return self.folder / "deployment/minikube/secrets.env"

    def has(self, *names: str) -> "Desk":
        for name in names:
            self._program(name, FAKE)
        return self

    def _program(self, name: str, text: str) -> None:
        file = self.bin / name
        file.write_text(text)
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    def make(self, target: str, fails: str = "nothing fails", **env: str) -> subprocess.CompletedProcess[str]:
        environment: Mapping[str, str] = {
            "PATH": str(self.bin), "CALLS": str(self.calls_file), "FAILS": fails, "HOME": os.environ.get("HOME", "/"),
            **env,
        }  # fmt: skip
        command = [str(self.bin / "make"), "--no-print-directory", target]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def calls(self) -> list[str]:
        """What was called, without the options that are always the same."""
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        return [re.sub(r" --(context|profile|namespace) mailqueue\b", "", line) for line in lines]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


STARTED = [
    "minikube start --cpus 4 --memory 6g --cni calico",
    "minikube addons enable metrics-server",
    "minikube addons enable ingress",
    "kubectl --namespace ingress-nginx rollout status deployment/ingress-nginx-controller --timeout 10m",
]
APPLIED = [
    f"minikube image build --tag mailqueue:{VERSION} .",
    "kubectl delete job migrate --ignore-not-found --wait",
    "kubectl apply --kustomize deployment/minikube",
    "kubectl wait --for condition=complete job/migrate --timeout 10m",
]
ROLLED_OUT = [
    "kubectl get deployments --output name",
    "kubectl rollout status deployment.apps/web --timeout 10m",
    "kubectl rollout status deployment.apps/worker --timeout 10m",
]
SCALED = [
    "kubectl apply --kustomize deployment/minikube --selector mailqueue=autoscaler",
    "kubectl wait --for condition=ScalingActive horizontalpodautoscalers --all --timeout 5m",
    "kubectl get horizontalpodautoscalers",
]
RESTARTED = [
    "kubectl get deployments --output name",
    "kubectl rollout restart deployment.apps/web deployment.apps/worker",
]


@pytest.mark.parametrize(
    ("target", "calls"),
    [
        ("cluster", STARTED),
        ("apply", [*APPLIED, *ROLLED_OUT, "minikube ip"]),
        ("hpa", SCALED),
        ("re", [*APPLIED, *RESTARTED, *ROLLED_OUT]),
        ("delete", ["kubectl delete --kustomize deployment/minikube --ignore-not-found --wait"]),
        ("clean", ["minikube delete"]),
        ("all", [*STARTED, *APPLIED, *ROLLED_OUT, "minikube ip", *SCALED]),
    ],
)
def test_each_target_does_its_steps_in_order(desk: Desk, target: str, calls: list[str]) -> None:
    done = desk.has("minikube", "kubectl").make(target)
    assert done.returncode == 0, done.stderr
    assert desk.calls() == calls


def test_every_step_is_done_to_the_cluster_that_was_started(desk: Desk) -> None:
    """Not to whatever kubectl happens to point at."""
    desk.has("minikube", "kubectl").make("all")
    for line in desk.calls_file.read_text().splitlines():
        assert ("--context mailqueue" if line.startswith("kubectl") else "--profile mailqueue") in line


def test_apply_makes_secrets_once_and_says_where_things_are(desk: Desk) -> None:
    said = desk.has("minikube", "kubectl").make("apply").stdout
    first = desk.secrets.read_text()
    assert "192.0.2.7 mailqueue.test" in said
    assert "https://mailqueue.test/" in said
    for line in first.splitlines():
        value = line.partition("=")[2]
        assert "@" in value or value not in said
    desk.make("apply")
    assert desk.secrets.read_text() == first


@pytest.mark.parametrize("target", TARGETS)
def test_without_minikube_it_says_how_to_get_it(desk: Desk, target: str) -> None:
    done = desk.has("kubectl").make(target)
    assert done.returncode != 0
    assert (
        "minikube is needed for this, and is not on the PATH. Install it: https://minikube.sigs.k8s.io"
        in done.stderr
    )
    assert desk.calls() == []
    assert not desk.secrets.exists()


@pytest.mark.parametrize("target", [each for each in TARGETS if each != "clean"])
def test_without_kubectl_it_says_how_to_get_it(desk: Desk, target: str) -> None:
    done = desk.has("minikube").make(target)
    assert done.returncode != 0
    assert (
        "kubectl is needed for this, and is not on the PATH. Install it: https://kubernetes.io" in done.stderr
    )
    assert desk.calls() == []


def test_a_migration_that_fails_ends_it_and_says_why(desk: Desk) -> None:
    done = desk.has("minikube", "kubectl").make("apply", fails="wait --for condition=complete")
    assert done.returncode != 0
    assert "could not be migrated" in done.stderr
    assert desk.calls() == [*APPLIED, "kubectl logs job/migrate --tail 50"]


@pytest.mark.parametrize("failing", ["image build", "apply --kustomize", "rollout status"])
def test_a_step_that_fails_is_the_last(desk: Desk, failing: str) -> None:
    done = desk.has("minikube", "kubectl").make("all", fails=failing)
    assert done.returncode != 0
    assert failing in desk.calls()[-1]


def test_another_overlay_goes_to_the_cluster_that_kubectl_points_at(desk: Desk) -> None:
    done = desk.has("kubectl").make("apply", OVERLAY="production")
    assert done.returncode == 0, done.stderr
    calls = desk.calls_file.read_text().splitlines()
    assert "kubectl apply --kustomize deployment/overlays/production" in calls
    assert not any("--context" in call or "minikube" in call for call in calls)
    assert not desk.secrets.exists()


def test_the_namespace_of_another_cluster_stays_for_it_holds_the_secret(desk: Desk) -> None:
    desk.has("kubectl").make("delete", OVERLAY="production")
    (call,) = desk.calls()
    assert "--kustomize deployment/overlays/production --selector !pod-security.kubernetes.io/enforce" in call


@pytest.mark.parametrize("target", ["cluster", "clean"])
def test_a_cluster_that_is_not_minikube_is_neither_made_nor_deleted(desk: Desk, target: str) -> None:
    done = desk.has("minikube", "kubectl").make(target, OVERLAY="production")
    assert done.returncode != 0
    assert "not ours to make or delete" in done.stderr
    assert desk.calls() == []


def test_help_tells_of_each() -> None:
    said = (ROOT / "Makefile").read_text()
    for target in (*TARGETS, "manifests"):
        assert re.search(rf"^{target}:.* ## \S", said, re.MULTILINE), target
