"""Who may reach whom, by the network policies of each overlay: every pair of parts is asked, so that nothing is
let through by accident. A pod that a policy selects is closed, but for what one of them allows."""

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from accounts import guard
from mailqueue.webhooks.places import ForbiddenPlaceError, Place
from tests.manifests import OVERLAYS, Pod, Rendered, copy_with_secrets, overlay, render, selects

PUBLIC = ("8.8.8.8", "2606:4700:4700::1111")
#: Where clouds tell machines their secrets, and other places that are nobody's relay.
FORBIDDEN = (
    "169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192", "127.0.0.1", "10.0.0.1",
    "10.96.0.1", "172.16.5.4", "172.31.255.254", "192.168.1.1", "100.64.0.1", "198.18.0.1", "0.0.0.0", "224.0.0.1",
    "255.255.255.255", "::1", "fd00:ec2::254", "fe80::1", "fc00::1", "2002:a9fe:a9fe::1", "64:ff9b::a9fe:a9fe",
    "2001:0:53aa:64c::1", "3fff::1",
)  # fmt: skip
RELAY_PORTS = {25, 465, 587, 2525}


@dataclass(frozen=True)
class Elsewhere:
    """A pod of another namespace."""

    namespace: str
    labels: Mapping[str, str]


CONTROLLER = Elsewhere(
    "ingress-nginx",
    {"app.kubernetes.io/name": "ingress-nginx", "app.kubernetes.io/component": "controller"},
)
PROMETHEUS = Elsewhere("monitoring", {"app.kubernetes.io/name": "prometheus"})
KEDA = Elsewhere("keda", {"app": "keda-operator"})
NAMES = Elsewhere("kube-system", {"k8s-app": "kube-dns"})
STRANGER = Elsewhere("default", {"app.kubernetes.io/name": "ingress-nginx", "app": "keda-operator"})


class Network:
    """What the policies of an overlay allow."""

    def __init__(self, rendered: Rendered) -> None:
        self.rendered = rendered
        self._policies = [each["spec"] for each in rendered.of("NetworkPolicy")]

    def may_call(
        self, source: Pod | Elsewhere, target: Pod | Elsewhere | str, port: int, protocol: str = "TCP"
    ) -> bool:
        """An address is a string."""
        leaves = not isinstance(source, Pod) or any(
            _fits(rule, "to", target, target, port, protocol) for rule in self._rules(source, "Egress")
        )
        enters = not isinstance(target, Pod) or any(
            _fits(rule, "from", source, target, port, protocol) for rule in self._rules(target, "Ingress")
        )
        return leaves and enters

    def _rules(self, pod: Pod, way: str) -> Iterator[Any]:
        """Of the policies that select it; one that names a way and has no rules for it allows nothing."""
        for policy in self._policies:
            if way in policy["policyTypes"] and selects(policy["podSelector"], pod.labels):
                yield from policy.get(way.lower(), [])

    def is_closed(self, pod: Pod) -> bool:
        """Selected by a policy, both ways; else everything would be allowed."""
        mine = [each for each in self._policies if selects(each["podSelector"], pod.labels)]
        return {"Ingress", "Egress"} <= {way for each in mine for way in each["policyTypes"]}


def _fits(rule: Any, end: str, other: Any, target: Any, port: int, protocol: str) -> bool:  # noqa: PLR0917
    """`other` is who is at the rule's other end, `target` whose port it is."""
    return any(_is_one(peer, other) for peer in rule[end]) and any(
        _is_port(each, target, port, protocol) for each in rule["ports"]
    )


def _is_one(peer: Mapping[str, Any], other: Pod | Elsewhere | str) -> bool:
    if isinstance(other, str):
        return "ipBlock" in peer and _is_inside(ipaddress.ip_address(other), peer["ipBlock"])
    if "ipBlock" in peer:
        return False
    if isinstance(other, Pod):
        return "namespaceSelector" not in peer and selects(peer["podSelector"], other.labels)
    namespace = {"kubernetes.io/metadata.name": other.namespace}
    return (
        "namespaceSelector" in peer
        and selects(peer["namespaceSelector"], namespace)
        and selects(peer.get("podSelector", {}), other.labels)
    )


def _is_inside(address: Any, block: Mapping[str, Any]) -> bool:
    return address in ipaddress.ip_network(block["cidr"]) and not any(
        address in ipaddress.ip_network(each) for each in block.get("except", [])
    )


def _is_port(rule: Mapping[str, Any], target: Any, port: int, protocol: str) -> bool:
    wanted = rule["port"]
    if isinstance(wanted, str):
        wanted = _named(target, wanted) if isinstance(target, Pod) else None
    return (
        rule["protocol"] == protocol and wanted is not None and wanted <= port <= rule.get("endPort", wanted)
    )


def _named(pod: Pod, name: str) -> int | None:
    ports = [port for each in pod.containers for port in each.get("ports", []) if port["name"] == name]
    return ports[0]["containerPort"] if ports else None


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Network]:
    folder = copy_with_secrets(tmp_path_factory.mktemp("manifests"))
    return {name: Network(Rendered(name, render(overlay(folder, name)))) for name in OVERLAYS}


@pytest.fixture(params=OVERLAYS)
def network(request: pytest.FixtureRequest, networks: dict[str, Network]) -> Network:
    return networks[request.param]


#: What each part needs, besides names.
ASKS_POSTGRES = {"web", "stream", "worker", "upkeep", "beat", "migrate"}
ASKS_REDIS = {"web", "stream", "worker", "upkeep", "beat", "flower"}
ASKS_RELAYS = {"web", "worker"}
ASKS_RECEIVERS = {"upkeep"}


def _expected(overlay: str) -> Iterator[tuple[str, str, int]]:
    """Which part calls which, in the namespace."""
    if overlay == "minikube":
        yield from ((each, "postgres", 5432) for each in ASKS_POSTGRES | {"sandbox", "inbox"})
        yield from ((each, "redis", 6379) for each in ASKS_REDIS | {"inbox"})
        yield from ((each, "sandbox", 1025) for each in ASKS_RELAYS)


def test_parts_reach_each_other_as_they_need_and_not_otherwise(network: Network) -> None:
    expected = set(_expected(network.rendered.overlay))
    ports = {port["containerPort"] for pod in network.rendered.pods for each in pod.containers
             for port in each.get("ports", [])}  # fmt: skip
    found = {
        (source.name, target.name, port)
        for source in network.rendered.pods
        for target in network.rendered.pods
        for port in ports | {22, 53, 443}
        if network.may_call(source, target, port)
    }
    assert found == expected


def test_every_pod_is_closed(network: Network) -> None:
    assert all(network.is_closed(pod) for pod in network.rendered.pods)


@pytest.mark.parametrize("overlay", ["production", "keda", "prometheus-adapter"])
def test_managed_datastores_are_reached_by_who_needs_them(networks: dict[str, Network], overlay: str) -> None:
    network = networks[overlay]
    for port, who in ((5432, ASKS_POSTGRES), (6379, ASKS_REDIS)):
        found = {pod.name for pod in network.rendered.pods if network.may_call(pod, "10.1.2.3", port)}
        assert found == who
    for port in (22, 25, 80, 443, 587, 8000, 10250):
        assert not any(network.may_call(pod, "10.1.2.3", port) for pod in network.rendered.pods)


def test_all_of_ours_ask_for_names_and_nobody_asks_others(network: Network) -> None:
    for pod in network.rendered.pods:
        for protocol in ("UDP", "TCP"):
            ours = pod in network.rendered.ours
            assert network.may_call(pod, NAMES, 53, protocol) is ours
            assert not network.may_call(pod, "8.8.8.8", 53, protocol)
            assert not network.may_call(pod, STRANGER, 53, protocol)


@pytest.mark.parametrize("address", PUBLIC)
def test_relays_are_reached_on_their_ports(network: Network, address: str) -> None:
    for port in (22, 25, 53, 80, 465, 587, 2525, 3306):
        found = {pod.name for pod in network.rendered.pods if network.may_call(pod, address, port)}
        receivers = ASKS_RECEIVERS if port >= 1024 else set()
        assert found == (ASKS_RELAYS if port in RELAY_PORTS else set()) | receivers, port


def test_ports_of_relays_are_those_of_the_guard(settings: Any) -> None:
    assert set(settings.SMTP_ALLOWED_PORTS) == RELAY_PORTS


@pytest.mark.parametrize("port", [1, 80, 443, 1023, 1024, 8443, 65535])
def test_receivers_of_webhooks_are_reached_on_the_ports_that_the_service_allows(
    network: Network, port: int
) -> None:
    try:
        Place("https", "example.com", port, "example.com", "/").check([ipaddress.ip_address("8.8.8.8")])
        allowed = True
    except ForbiddenPlaceError:
        allowed = False
    assert network.may_call(network.rendered.pod("upkeep"), "8.8.8.8", port) is allowed


@pytest.mark.parametrize("address", FORBIDDEN)
def test_nobody_reaches_metadata_or_private_addresses(network: Network, address: str, settings: Any) -> None:
    settings.SMTP_ALLOWED_NETWORKS = ()
    assert not guard.is_allowed(address)
    for pod in network.rendered.pods:
        for port in RELAY_PORTS | {80, 443, 8080}:
            assert not network.may_call(pod, address, port), (pod.name, port)


def test_every_exception_is_one_of_the_guard_too(network: Network, settings: Any) -> None:
    """What the guard lets through, and the network does not, would wait and be tried again for nothing."""
    settings.SMTP_ALLOWED_NETWORKS = ()
    for policy in network.rendered.of("NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            for peer in rule["to"]:
                for excepted in peer.get("ipBlock", {}).get("except", []):
                    block = ipaddress.ip_network(excepted)
                    samples = (block[0], block[block.num_addresses // 2], block[-1])
                    assert not any(guard.is_allowed(each) for each in samples), excepted


def test_only_the_ingress_controller_comes_in_from_outside(network: Network) -> None:
    web = {"web", "stream"} | ({"inbox"} if network.rendered.overlay == "minikube" else set())
    for pod in network.rendered.pods:
        for port in (1025, 5432, 5555, 6379, 8000):
            assert network.may_call(CONTROLLER, pod, port) is (pod.name in web and port == 8000)
            assert not network.may_call(STRANGER, pod, port)
            assert not network.may_call(Elsewhere("ingress-nginx", {"app": "other"}), pod, port)
            assert not network.may_call(Elsewhere("default", CONTROLLER.labels), pod, port)


def test_who_measures_comes_in_where_they_are_wanted(network: Network) -> None:
    overlay = network.rendered.overlay
    for pod in network.rendered.pods:
        scraped = overlay == "prometheus-adapter" and pod.name in ("web", "stream")
        assert network.may_call(PROMETHEUS, pod, 8000) is scraped
        assert network.may_call(KEDA, pod, 8000) is (overlay == "keda" and pod.name == "web")


def test_a_policy_that_is_missing_is_missed(networks: dict[str, Network]) -> None:
    """The test's own test: without one policy a part cannot do its work, without "deny" nothing is closed."""
    rendered = networks["minikube"].rendered
    for missing in ("to-postgres", "postgres", "to-redis", "redis"):
        network = Network(_without(rendered, missing))
        (target,) = {missing.removeprefix("to-")}
        port = {"postgres": 5432, "redis": 6379}[target]
        assert not network.may_call(rendered.pod("web"), rendered.pod(target), port)
    assert not Network(_without(rendered, "deny")).is_closed(rendered.pod("postgres"))


def _without(rendered: Rendered, policy: str) -> Rendered:
    fewer = Rendered(rendered.overlay, rendered.text)
    fewer.resources = [
        each
        for each in fewer.resources
        if (each["kind"], each["metadata"]["name"]) != ("NetworkPolicy", policy)
    ]
    return fewer
