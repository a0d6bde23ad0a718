"""Each program starts as the manifests say, with their settings and secrets as files, and passes its probes; those
that the network keeps from PostgreSQL or Redis do without. Folders and ports are of this machine."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from mailqueue.embedded.process import ROOT, Child, end, spawn
from mailqueue.embedded.redis import Redis, free_port
from tests.machine import own_database, until
from tests.manifests import Pod, Rendered, copy_with_secrets, key_values, render

POD_IP = "10.244.7.8"
NOWHERE = {"DATABASE_URL": "postgres://nobody:x@127.0.0.1:9/none", "REDIS_URL": "redis://127.0.0.1:9/0"}
#: As network.yaml has it: who cannot reach what.
WITHOUT = {"flower": {"DATABASE_URL"}, "migrate": {"REDIS_URL"}}


class Node:
    """Starts containers of a rendered overlay as processes of this machine."""

    def __init__(self, rendered: Rendered, secrets: Mapping[str, str], folder: Path) -> None:
        self.rendered, self.secrets, self.folder = rendered, secrets, folder
        self.ports: dict[str, int] = {}
        self.running: dict[str, Child] = {}
        self._envs: dict[str, dict[str, str]] = {}
        (config,) = rendered.of("ConfigMap")
        self.settings: dict[str, str] = config["data"]

    def start(self, name: str) -> None:
        command, env = self.command_and_env(name)
        self._envs[name] = env
        with (self.folder / f"{name}.log").open("wb") as log:
            self.running[name] = spawn(command, env=env, output=log)

    def command_and_env(self, name: str) -> tuple[list[str], dict[str, str]]:
        pod = self.rendered.pod(name)
        env = self._environment(pod)
        program, *arguments = [_expanded(each, env) for each in pod.command()]
        self.ports[name] = free_port()
        # A pod has its addresses to itself; here all of them share one machine.
        arguments = [re.sub(r"^--port=\d+$", f"--port={self.ports[name]}", each) for each in arguments]
        arguments = [each.replace("0.0.0.0", "127.0.0.1") for each in arguments]
        python = [sys.executable] if program == "python" else [sys.executable, "-m", program]
        return [*python, *arguments], env

    def _environment(self, pod: Pod) -> dict[str, str]:
        (container,) = pod.spec["containers"]
        env = dict(self.settings)
        own: dict[str, str] = {}
        for each in container.get("env", []):
            own[each["name"]] = self._value(each, own)
        env |= own
        places = self._places(pod, container)
        for name, value in env.items():
            for mounted, place in places.items():
                if value == mounted or value.startswith(f"{mounted}/"):
                    env[name] = str(place) + value.removeprefix(mounted)
        return env | {"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "TMPDIR": str(places["/tmp"])}

    def _value(self, variable: Mapping[str, Any], before: Mapping[str, str]) -> str:
        if "value" in variable:
            return _expanded(variable["value"], before)
        source = variable["valueFrom"]
        if "configMapKeyRef" in source:
            return self.settings[source["configMapKeyRef"]["key"]]
        if "secretKeyRef" in source:
            return self.secrets[source["secretKeyRef"]["key"]]
        assert source == {"fieldRef": {"fieldPath": "status.podIP"}}
        return POD_IP

    def _places(self, pod: Pod, container: Mapping[str, Any]) -> dict[str, Path]:
        """Where the container sees its volumes, and where they are here."""
        volumes = {each["name"]: each for each in pod.spec["volumes"]}
        found: dict[str, Path] = {}
        for mount in container["volumeMounts"]:
            place = found[mount["mountPath"]] = self.folder / pod.name / mount["name"]
            place.mkdir(parents=True)
            for item in volumes[mount["name"]].get("secret", {}).get("items", []):
                hidden = item["key"] in WITHOUT.get(pod.name, ())
                text = NOWHERE[item["key"]] if hidden else self.secrets[item["key"]]
                (place / item["path"]).write_text(text)
        return found

    def passes(self, name: str, probe: str) -> bool:
        what = self.rendered.pod(name).spec["containers"][0][probe]
        if "exec" in what:
            program, *arguments = what["exec"]["command"]
            assert program == "python"
            command = [sys.executable, *arguments]
            return (
                subprocess.run(
                    command, cwd=ROOT, env=self._envs[name], capture_output=True, check=False
                ).returncode
                == 0
            )
        return self.get(name, what["httpGet"]["path"]) == 200

    def get(self, name: str, path: str, host: str = POD_IP, auth: tuple[str, str] | None = None) -> int:
        try:
            url = f"http://127.0.0.1:{self.ports[name]}{path}"
            return httpx.get(url, headers={"Host": f"{host}:8000"}, auth=auth, timeout=30).status_code
        except httpx.TransportError:
            return 0


def _expanded(text: str, env: Mapping[str, str]) -> str:
    """As the kubelet does it."""
    return re.sub(r"\$\((\w+)\)", lambda found: env[found[1]], text)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("node")
    deployment = copy_with_secrets(folder)
    redis = Redis(folder / "redis", "redis-password")
    redis.start()
    try:
        with own_database() as database:
            made = key_values(deployment / "minikube/secrets.env")
            secrets = made | {"DATABASE_URL": database, "REDIS_URL": redis.url, "DEFAULT_SMTP_URL": ""}
            node = Node(Rendered("production", render(deployment / "overlays/production")), secrets, folder)
            try:
                for name in ("web", "stream", "worker", "upkeep", "beat", "flower"):
                    node.start(name)
                yield node
            finally:
                for child in node.running.values():
                    end(child, signal.SIGTERM, 20)
    finally:
        redis.stop()


@pytest.mark.parametrize("name", ["web", "stream", "worker", "upkeep", "beat", "flower"])
def test_each_part_starts_and_passes_its_probes(node: Node, name: str) -> None:
    until(lambda: node.passes(name, "startupProbe"), f"{name} has started", 120)
    assert node.passes(name, "livenessProbe")
    if "readinessProbe" in node.rendered.pod(name).spec["containers"][0]:
        until(lambda: node.passes(name, "readinessProbe"), f"{name} is ready")
    assert node.running[name].poll() is None


def test_the_web_answers_by_its_pods_address_and_not_by_any(node: Node) -> None:
    until(lambda: node.passes("web", "startupProbe"), "web has started", 120)
    assert node.get("web", "/metrics") == 200
    assert node.get("web", "/metrics", host="web.mailqueue.svc.cluster.local") == 200
    assert node.get("web", "/metrics", host="10.244.9.9") == 400


def test_flower_lets_nobody_in_without_its_login(node: Node) -> None:
    until(lambda: node.passes("flower", "startupProbe"), "flower has started", 120)
    name, _, password = node.secrets["FLOWER_BASIC_AUTH"].partition(":")
    assert node.get("flower", "/workers") == 401
    assert node.get("flower", "/workers", auth=(name, "wrong")) == 401
    assert node.get("flower", "/workers", auth=(name, password)) == 200


def test_migrations_make_the_superuser_and_need_no_redis(node: Node) -> None:
    command, env = node.command_and_env("migrate")
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert f"superuser {node.secrets['ADMIN_EMAIL']} made" in done.stdout
