"""Every pod keeps to the Pod Security Standard "restricted", rule by rule:
https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted."""

from copy import deepcopy
from typing import Any

import pytest

from tests.manifests import OVERLAYS, Pod, Rendered, copy_with_secrets, overlay, render

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}  # fmt: skip
SELINUX_TYPES = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
PROFILES = {"RuntimeDefault", "Localhost"}


def violations(pod: Pod) -> list[str]:
    """The rules that a pod breaks."""
    spec = pod.spec
    whole = spec.get("securityContext", {})
    found = [f"{key} is the host's" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    found += [
        f"volume {volume['name']}"
        for volume in spec.get("volumes", [])
        if not set(volume) - {"name"} <= VOLUMES
    ]
    found += [f"sysctl {each['name']}" for each in whole.get("sysctls", []) if each["name"] not in SYSCTLS]
    found += _of_context("pod", whole)
    if spec.get("ephemeralContainers"):
        found.append("ephemeral containers in a template")
    for container in pod.containers:
        own = container.get("securityContext", {})
        name = container["name"]
        found += _of_context(name, own)
        if own.get("allowPrivilegeEscalation") is not False:
            found.append(f"{name}: may gain privileges")
        if own.get("privileged"):
            found.append(f"{name}: privileged")
        capabilities = own.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {
            "NET_BIND_SERVICE"
        }:
            found.append(f"{name}: has capabilities")
        if own.get("runAsNonRoot", whole.get("runAsNonRoot")) is not True:
            found.append(f"{name}: may be root")
        if own.get("seccompProfile", whole.get("seccompProfile", {})).get("type") not in PROFILES:
            found.append(f"{name}: may call what it likes")
        if any("hostPort" in port and port["hostPort"] for port in container.get("ports", [])):
            found.append(f"{name}: takes a port of the host")
        handlers = [*container.get("lifecycle", {}).values()]
        handlers += [container.get(f"{kind}Probe", {}) for kind in ("liveness", "readiness", "startup")]
        if any(each.get(kind, {}).get("host") for each in handlers for kind in ("httpGet", "tcpSocket")):
            found.append(f"{name}: a probe that calls another host")
    return found


def _of_context(name: str, context: dict[str, Any]) -> list[str]:
    """What must not stand in a security context, whether a pod's or a container's."""
    found = []
    if context.get("runAsUser") == 0 or context.get("runAsNonRoot") is False:
        found.append(f"{name}: is root")
    if context.get("procMount", "Default") != "Default":
        found.append(f"{name}: sees all of /proc")
    if context.get("seccompProfile", {"type": "RuntimeDefault"}).get("type") not in PROFILES:
        found.append(f"{name}: seccomp is off")
    if context.get("appArmorProfile", {"type": "RuntimeDefault"}).get("type") not in PROFILES:
        found.append(f"{name}: AppArmor is off")
    labels = context.get("seLinuxOptions", {})
    if labels.get("type") not in SELINUX_TYPES or labels.get("user") or labels.get("role"):
        found.append(f"{name}: SELinux labels of its own")
    if context.get("windowsOptions", {}).get("hostProcess"):
        found.append(f"{name}: a process of the host")
    return found


@pytest.fixture(scope="module")
def all_rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rendered]:
    folder = copy_with_secrets(tmp_path_factory.mktemp("manifests"))
    return {name: Rendered(name, render(overlay(folder, name))) for name in OVERLAYS}


@pytest.fixture(params=OVERLAYS)
def rendered(request: pytest.FixtureRequest, all_rendered: dict[str, Rendered]) -> Rendered:
    return all_rendered[request.param]


def test_every_pod_is_restricted(rendered: Rendered) -> None:
    assert {pod.name: violations(pod) for pod in rendered.pods} == {pod.name: [] for pod in rendered.pods}


def test_the_namespace_enforces_it(rendered: Rendered) -> None:
    (namespace,) = rendered.of("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_beyond_the_standard(rendered: Rendered) -> None:
    """Nothing is written but where a volume is, nobody may ask the cluster, and memory is bounded."""
    for pod in rendered.pods:
        assert pod.spec["automountServiceAccountToken"] is False
        assert pod.spec["serviceAccountName"] == "mailqueue"
        for container in pod.containers:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]
        for volume in pod.spec["volumes"]:
            if "emptyDir" in volume:
                assert volume["emptyDir"]["sizeLimit"]
    for account in rendered.of("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    assert not rendered.of("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")


def test_our_pods_are_the_user_of_the_image_and_may_read_their_secrets(rendered: Rendered) -> None:
    for pod in rendered.ours:
        context = pod.spec["securityContext"]
        assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == 10001
        for volume in pod.spec["volumes"]:
            if "secret" in volume:
                assert volume["secret"]["defaultMode"] == 0o440


def _set(spec: dict[str, Any], path: str, value: Any) -> None:
    *folders, last = path.split(".")
    place: Any = spec
    for each in folders:
        place = place[int(each)] if each.isdigit() else place.setdefault(each, {})
    place[int(last) if last.isdigit() else last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("hostNetwork", True),
        ("hostPID", True),
        ("hostIPC", True),
        ("securityContext.runAsNonRoot", False),
        ("securityContext.runAsUser", 0),
        ("securityContext.seccompProfile", {"type": "Unconfined"}),
        ("securityContext.sysctls", [{"name": "kernel.msgmax", "value": "1"}]),
        ("securityContext.seLinuxOptions", {"user": "root"}),
        ("securityContext.appArmorProfile", {"type": "Unconfined"}),
        ("securityContext.windowsOptions", {"hostProcess": True}),
        ("volumes.0", {"name": "tmp", "hostPath": {"path": "/"}}),
        ("containers.0.securityContext.allowPrivilegeEscalation", True),
        ("containers.0.securityContext.privileged", True),
        ("containers.0.securityContext.procMount", "Unmasked"),
        ("containers.0.securityContext.capabilities", {}),
        ("containers.0.securityContext.capabilities", {"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
        ("containers.0.securityContext.runAsUser", 0),
        ("containers.0.securityContext.seccompProfile", {"type": "Unconfined"}),
        ("containers.0.ports", [{"containerPort": 8000, "hostPort": 8000}]),
        ("containers.0.livenessProbe", {"httpGet": {"path": "/", "port": 80, "host": "169.254.169.254"}}),
        ("initContainers", [{"name": "first", "image": "x"}]),
    ],
)
def test_each_rule_can_be_broken(all_rendered: dict[str, Rendered], path: str, value: Any) -> None:
    web = all_rendered["production"].pod("web")
    spec = deepcopy(dict(web.spec))
    _set(spec, path, value)
    assert violations(web) == []
    assert violations(Pod(web.kind, web.name, web.labels, spec)) != []
