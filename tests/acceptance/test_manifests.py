"""What a cluster is told holds together: with Kubernetes' own schemas, with the code, and in itself."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import major_minor

from mailqueue import jobs
from mailqueue.delivery.smtp import DEADLINES
from mailqueue.embedded.process import ROOT
from tests.manifests import (
    DEPLOYMENT,
    OVERLAYS,
    Rendered,
    containers,
    copy_with_secrets,
    key_values,
    make_secrets,
    overlay,
    render,
    selects,
)

#: What Kubernetes itself has no schema for.
CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
CUSTOM_GROUPS = {"monitoring.coreos.com/v1", "keda.sh/v1alpha1"}
#: Env names that are not of config/env.py: of Flower, of the images of PostgreSQL and Redis, and steps on the way.
FOREIGN_ENV = {"FLOWER_BASIC_AUTH", "POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD_FILE", "PGDATA"}
FOREIGN_ENV |= {"REDISCLI_AUTH", "POD_IP", "HOSTS", "ADMIN_EMAIL_FILE", "ADMIN_PASSWORD_FILE"}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_with_secrets(tmp_path_factory.mktemp("manifests"))


@pytest.fixture(scope="module")
def all_rendered(deployment: Path) -> dict[str, Rendered]:
    return {name: Rendered(name, render(overlay(deployment, name))) for name in OVERLAYS}


@pytest.fixture(params=OVERLAYS)
def rendered(request: pytest.FixtureRequest, all_rendered: dict[str, Rendered]) -> Rendered:
    return all_rendered[request.param]


@pytest.fixture
def minikube(all_rendered: dict[str, Rendered]) -> Rendered:
    return all_rendered["minikube"]


@pytest.fixture
def production(all_rendered: dict[str, Rendered]) -> Rendered:
    return all_rendered["production"]


# Schemas ------------------------------------------------------------------------------------------------


def _newest_three() -> list[str]:
    major, minor, *_ = map(int, kubernetes_validate.latest_version().split("."))
    return [f"{major}.{minor - ago}" for ago in range(3)]


@pytest.mark.parametrize("version", _newest_three())
def test_every_resource_is_valid(rendered: Rendered, version: str) -> None:
    for resource in rendered.resources:
        if resource["kind"] not in CUSTOM:
            # That it is answered by this very version, not by the newest that it knows.
            assert kubernetes_validate.validate(resource, version, strict=True) == major_minor(version)


def test_schemas_refuse_what_is_misspelt(minikube: Rendered) -> None:
    web = yaml.safe_load(yaml.safe_dump(minikube.named("Deployment", "web")))
    web["spec"]["template"]["spec"]["terminationGracePeriodSecond"] = 30
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(web, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("overlay", ["minikube", "production"])
def test_only_overlays_that_say_so_need_custom_resources(
    all_rendered: dict[str, Rendered], overlay: str
) -> None:
    found = {each["apiVersion"] for each in all_rendered[overlay].resources}
    assert found == {
        "v1", "apps/v1", "batch/v1", "autoscaling/v2", "policy/v1", "networking.k8s.io/v1",
    }  # fmt: skip


def test_custom_resources_are_known_ones(rendered: Rendered) -> None:
    for each in rendered.of(*CUSTOM):
        assert each["apiVersion"] in CUSTOM_GROUPS


def test_every_resource_is_in_the_one_namespace(rendered: Rendered) -> None:
    for each in rendered.resources:
        name = each["metadata"]["name"] if each["kind"] == "Namespace" else each["metadata"]["namespace"]
        assert name == "mailqueue", each["metadata"]


# What refers to what ------------------------------------------------------------------------------------


def test_every_part_is_there(rendered: Rendered) -> None:
    always = {"web", "stream", "worker", "upkeep", "beat", "flower", "migrate"}
    to_try = {"postgres", "redis", "sandbox", "inbox"} if rendered.overlay == "minikube" else set()
    assert {pod.name for pod in rendered.pods} == always | to_try


def test_workloads_select_their_own_pods_and_no_others(rendered: Rendered) -> None:
    for each in rendered.of("Deployment", "StatefulSet"):
        assert rendered.selected(each["spec"]["selector"]) == {each["metadata"]["name"]}


def test_every_service_leads_to_one_part_on_a_port_that_it_has(rendered: Rendered) -> None:
    for service in rendered.of("Service"):
        name = service["metadata"]["name"]
        assert rendered.selected({"matchLabels": service["spec"]["selector"]}) == {name}
        ports = {port["name"] for each in rendered.pod(name).containers for port in each.get("ports", [])}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
        assert service["spec"].get("type", "ClusterIP") == "ClusterIP"


def test_addresses_in_secrets_are_of_services_that_exist(deployment: Path, minikube: Rendered) -> None:
    secrets = key_values(deployment / "minikube/secrets.env")
    for name, port in (("DATABASE_URL", 5432), ("REDIS_URL", 6379)):
        found = re.search(r"@([a-z]+):(\d+)/", secrets[name])
        assert found
        assert int(found[2]) == port
        (service_port,) = minikube.named("Service", found[1])["spec"]["ports"]
        assert service_port["port"] == port


def test_one_image_runs_everywhere(rendered: Rendered) -> None:
    (version,) = re.findall(r'^VERSION = "(.*)"$', (ROOT / "config/settings.py").read_text(), re.MULTILINE)
    where = "" if rendered.overlay == "minikube" else "registry.example.com/"
    images = {container["image"] for pod in rendered.ours for container in pod.containers}
    assert images == {f"{where}mailqueue:{version}"}


def test_stream_is_started_as_web_is(rendered: Rendered) -> None:
    assert rendered.pod("stream").command() == rendered.pod("web").command()


def test_probes_ask_neither_broker_nor_metrics(rendered: Rendered) -> None:
    for pod in rendered.ours:
        probes = {name: pod.spec["containers"][0].get(name) for name in ("startupProbe", "livenessProbe")}
        if pod.kind == "Job":
            assert not any(probes.values())
            continue
        for probe in probes.values():
            if pod.name in ("worker", "upkeep", "beat"):
                assert probe["exec"]["command"] == ["python", "-m", "mailqueue.alive", pod.name]
            elif pod.name == "sandbox":
                assert probe["tcpSocket"] == {"port": "smtp"}
            else:
                path = "/healthcheck" if pod.name == "flower" else "/healthz/live"
                assert probe["httpGet"] == {"path": path, "port": "http"}
    for name in ("web", "stream"):
        probe = rendered.pod(name).spec["containers"][0]["readinessProbe"]
        assert probe["httpGet"]["path"] == "/healthz/ready"


# Settings and secrets -----------------------------------------------------------------------------------


def _known_names() -> set[str]:
    """What config/env.py reads."""
    text = (ROOT / "config/env.py").read_text()
    return set(re.findall(r'(?:env\.\w+|secrets?)\(\s*"([A-Z_]+)"', text))


def _settings(rendered: Rendered) -> dict[str, str]:
    (found,) = rendered.of("ConfigMap")
    data: dict[str, str] = found["data"]
    return data


def test_every_setting_is_one_that_the_service_reads(rendered: Rendered) -> None:
    known = _known_names()
    assert {"DATABASE_URL", "SECRET_KEY", "CREDENTIAL_KEYS", "LOG_LEVEL", "WEB_PROCESSES"} <= known
    for name in _settings(rendered):
        assert name.removesuffix("_FILE") in known, name
    for _, container in containers(rendered):
        for variable in container.get("env", []):
            assert variable["name"] in known | FOREIGN_ENV, variable


def test_variables_are_put_together_from_ones_that_stand_before(rendered: Rendered) -> None:
    for pod, container in containers(rendered):
        before: set[str] = set()
        for variable in container.get("env", []):
            assert set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))) <= before, pod.name
            before.add(variable["name"])
        everything = before | (set(_settings(rendered)) if container.get("envFrom") else set())
        for argument in container.get("args", []):
            assert set(re.findall(r"\$\((\w+)\)", argument)) <= everything, (pod.name, argument)


def test_the_web_answers_to_probes_and_prometheus_which_call_it_by_its_address(rendered: Rendered) -> None:
    for name in ("web", "stream", "inbox") if rendered.overlay == "minikube" else ("web", "stream"):
        env = {each["name"]: each for each in rendered.pod(name).spec["containers"][0]["env"]}
        assert env["ALLOWED_HOSTS"]["value"] == "$(HOSTS),$(POD_IP)"
        assert env["POD_IP"]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
        assert env["HOSTS"]["valueFrom"]["configMapKeyRef"]["key"] == "ALLOWED_HOSTS"
    hosts = _settings(rendered)["ALLOWED_HOSTS"].split(",")
    for ingress in rendered.of("Ingress"):
        assert {rule["host"] for rule in ingress["spec"]["rules"]} <= set(hosts)


def _secret_keys(deployment: Path, rendered: Rendered) -> tuple[str, set[str]]:
    """The Secret's name and what it holds; in production it is the operator's."""
    if rendered.overlay == "minikube":
        (secret,) = rendered.of("Secret")
        return secret["metadata"]["name"], set(secret["data"])
    assert not rendered.of("Secret")
    return "mailqueue", set(key_values(deployment / "overlays/production/secrets.example.env"))


def _wanted_keys(rendered: Rendered) -> list[tuple[str, str]]:
    found = [
        (reference["name"], reference["key"])
        for _, container in containers(rendered)
        for variable in container.get("env", [])
        if (reference := variable.get("valueFrom", {}).get("secretKeyRef"))
    ]
    for pod in rendered.pods:
        for volume in pod.spec.get("volumes", []):
            if "secret" in volume:
                found += [(volume["secret"]["secretName"], item["key"]) for item in volume["secret"]["items"]]
    return found


def test_every_key_of_the_secret_exists_and_is_wanted(deployment: Path, rendered: Rendered) -> None:
    name, keys = _secret_keys(deployment, rendered)
    wanted = _wanted_keys(rendered)
    assert {each for each, _ in wanted} == {name}
    unused = {"REDIS_PASSWORD"} - {key for _, key in wanted}
    assert {key for _, key in wanted} == keys - unused


def test_files_named_in_settings_are_mounted(rendered: Rendered) -> None:
    for pod in rendered.ours:
        mounted = {
            f"{mount['mountPath']}/{item['path']}"
            for mount in pod.spec["containers"][0]["volumeMounts"]
            for volume in pod.spec["volumes"]
            if volume["name"] == mount["name"] and "secret" in volume
            for item in volume["secret"]["items"]
        }
        variables = {each["name"]: each.get("value") for each in pod.spec["containers"][0].get("env", [])}
        files = {value for name, value in (_settings(rendered) | variables).items() if name.endswith("_FILE")}
        assert files == mounted, pod.name


def test_no_value_of_a_secret_is_in_the_repository() -> None:
    for name in ("production", "minikube"):
        assert set(key_values(DEPLOYMENT / f"overlays/{name}/secrets.example.env").values()) == {""}
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "/deployment/minikube/secrets.env" in ignored


def test_every_overlay_renders_as_it_is_cloned() -> None:
    for name in OVERLAYS:
        assert render(DEPLOYMENT / "overlays" / name)


def test_secrets_for_minikube_have_the_keys_of_the_example(deployment: Path) -> None:
    example = key_values(DEPLOYMENT / "overlays/minikube/secrets.example.env")
    assert list(key_values(deployment / "minikube/secrets.env")) == list(example)


def test_secrets_for_minikube_are_made_once_and_for_their_owner_alone(deployment: Path) -> None:
    file = make_secrets(deployment)
    first = file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    make_secrets(deployment)
    assert file.read_text() == first
    file.unlink()
    try:
        make_secrets(deployment)
        again = file.read_text()
    finally:
        file.write_text(first)
    assert not set(first.splitlines()) & set(again.splitlines()) - {
        "DEFAULT_SMTP_URL=smtp://sandbox:1025",
        "ADMIN_EMAIL=admin@example.com",
    }


def test_a_service_does_not_write_into_the_settings(rendered: Rendered) -> None:
    """The Service "flower" would set FLOWER_PORT=tcp://10.0.0.1:80 in every pod, and nothing would start."""
    assert all(pod.spec["enableServiceLinks"] is False for pod in rendered.pods)


def test_production_knows_neither_debug_nor_sandbox(all_rendered: dict[str, Rendered]) -> None:
    for name in ("production", "keda", "prometheus-adapter"):
        assert "DEBUG" not in all_rendered[name].text
        assert "sandbox" not in all_rendered[name].text


def test_in_minikube_debug_is_where_the_inbox_is_and_the_inbox_is_all_that_is_shown_of_it(
    minikube: Rendered,
) -> None:
    names = {pod.name for pod in minikube.pods for each in pod.containers for variable in each.get("env", [])
             if variable["name"] == "DEBUG"}  # fmt: skip
    assert names == {"inbox"}
    assert "DEBUG" not in _settings(minikube)
    shown = [
        each["path"]
        for ingress in minikube.of("Ingress")
        for each in ingress["spec"]["rules"][0]["http"]["paths"]
        if each["backend"]["service"]["name"] == "inbox"
    ]
    assert shown == ["/sandbox/"]


def test_the_sandbox_is_the_only_private_address_that_mail_goes_to(
    deployment: Path, minikube: Rendered
) -> None:
    service = minikube.named("Service", "sandbox")["spec"]
    assert _settings(minikube)["SMTP_ALLOWED_NETWORKS"] == f"{service['clusterIP']}/32"
    relay = key_values(deployment / "minikube/secrets.env")["DEFAULT_SMTP_URL"]
    assert relay == f"smtp://sandbox:{service['ports'][0]['port']}"


# What is let out ----------------------------------------------------------------------------------------


def _backend(rendered: Rendered, path: str) -> str | None:
    """As ingress-nginx does it with use-regex: anchored at the beginning, longer expressions first."""
    routes = [
        (each["path"], each["backend"]["service"]["name"])
        for ingress in rendered.of("Ingress")
        for rule in ingress["spec"]["rules"]
        for each in rule["http"]["paths"]
    ]
    for expression, service in sorted(routes, key=lambda route: -len(route[0])):
        if re.match(expression, path, re.IGNORECASE):
            return str(service)
    return None


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/metrics/",
        "/Metrics",
        "//metrics",
        "/stats",
        "/stats/",
        "/health/metrics",
        "/health/metrics/",
    ],
)
def test_figures_of_the_whole_system_stay_inside(rendered: Rendered, path: str) -> None:
    assert _backend(rendered, path) is None


@pytest.mark.parametrize(
    ("path", "service"),
    [
        ("/", "web"),
        ("/dashboard.json", "web"),
        ("/admin", "web"),
        ("/admin/login/", "web"),
        ("/static/unfold/css/styles.css", "web"),
        ("/api/docs", "web"),
        ("/api/v1/task/enqueue", "web"),
        ("/api/v1/task/17", "web"),
        ("/api/v1/task/eventsx", "web"),
        ("/api/v1/task/events", "stream"),
        ("/api/v1/task/17/events", "stream"),
        ("/unsubscribe/abc", "web"),
        ("/healthz/ready", "web"),
        ("/health/ping", "web"),
    ],
)
def test_what_people_and_programs_call_is_let_in(rendered: Rendered, path: str, service: str) -> None:
    assert _backend(rendered, path) == service


def test_every_route_of_the_service_is_let_out_or_kept_in_on_purpose(rendered: Rendered) -> None:
    from django.urls import get_resolver

    inside = {"metrics", "stats", "health/metrics"}
    for pattern in get_resolver().url_patterns:
        route = str(pattern.pattern)
        if not route.startswith("^") and not route.startswith("sandbox"):
            sample = re.sub(r"<int:\w+>", "17", re.sub(r"<str:\w+>", "x", route))
            assert (_backend(rendered, f"/{sample}") is None) == (route in inside), route


def test_every_path_of_an_ingress_is_an_expression(rendered: Rendered) -> None:
    """With use-regex on one Ingress of a host all its paths are expressions, and an Exact one becomes a prefix."""
    for ingress in rendered.of("Ingress"):
        assert ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/use-regex"] == "true"
        for rule in ingress["spec"]["rules"]:
            for each in rule["http"]["paths"]:
                assert each["pathType"] == "ImplementationSpecific"
                service = rendered.named("Service", each["backend"]["service"]["name"])
                ports = {port["name"] for port in service["spec"]["ports"]}
                assert each["backend"]["service"]["port"]["name"] in ports


def test_streams_are_not_buffered_and_outlive_a_silence_between_two_heartbeats(rendered: Rendered) -> None:
    from tasks.streams import HEARTBEAT

    annotations = rendered.named("Ingress", "stream")["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    assert int(annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"]) > 2 * HEARTBEAT


def test_the_ingress_lets_through_the_largest_call_that_the_api_takes(rendered: Rendered) -> None:
    from django.conf import settings

    annotations = rendered.named("Ingress", "web")["metadata"]["annotations"]
    size = annotations["nginx.ingress.kubernetes.io/proxy-body-size"]
    assert size.endswith("m")
    assert int(size[:-1]) * 1024 * 1024 > settings.MAX_REQUEST_BYTES


def test_production_speaks_tls(production: Rendered) -> None:
    for ingress in production.of("Ingress"):
        (rule,), (tls,) = ingress["spec"]["rules"], ingress["spec"]["tls"]
        assert tls["hosts"] == [rule["host"]]


# How many, and how they go -------------------------------------------------------------------------------


def _scaled(rendered: Rendered) -> dict[str, tuple[int, int]]:
    """Who is scaled, between how many and how many; each by one alone."""
    found = [
        (spec["scaleTargetRef"]["name"], (spec["minReplicas"], spec["maxReplicas"]))
        for each in rendered.of("HorizontalPodAutoscaler")
        for spec in [each["spec"]]
    ] + [
        (spec["scaleTargetRef"]["name"], (spec["minReplicaCount"], spec["maxReplicaCount"]))
        for each in rendered.of("ScaledObject")
        for spec in [each["spec"]]
    ]
    assert len({name for name, _ in found}) == len(found)
    return dict(found)


def test_what_is_scaled_exists_and_says_no_number_of_its_own(rendered: Rendered) -> None:
    scaled = _scaled(rendered)
    assert set(scaled) == {"web", "stream", "worker"}
    for each in rendered.of("Deployment"):
        name = each["metadata"]["name"]
        assert ("replicas" in each["spec"]) == (name not in scaled), name
        if name in scaled:
            requests = each["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
            assert requests["cpu"], "a share of the processor is a share of what is requested"


def test_autoscalers_can_be_found_by_their_label(rendered: Rendered) -> None:
    found = [each for each in rendered.resources if each["metadata"].get("labels", {}).get("mailqueue")]
    assert {each["kind"] for each in found} <= {"HorizontalPodAutoscaler", "ScaledObject"}
    assert len(found) == len(_scaled(rendered))


def test_scaling_down_is_slower_than_scaling_up(rendered: Rendered) -> None:
    behaviours = [each["spec"]["behavior"] for each in rendered.of("HorizontalPodAutoscaler")]
    behaviours += [
        each["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        for each in rendered.of("ScaledObject")
    ]
    for behaviour in behaviours:
        down, up = behaviour["scaleDown"], behaviour["scaleUp"]
        assert down["stabilizationWindowSeconds"] >= 300 > up["stabilizationWindowSeconds"]
        assert all(policy["periodSeconds"] >= 60 for policy in down["policies"])


def test_workers_scale_by_backlog_and_age_where_somebody_knows_them(
    all_rendered: dict[str, Rendered],
) -> None:
    triggers = all_rendered["keda"].named("ScaledObject", "worker")["spec"]["triggers"]
    asked = {each["metadata"]["valueLocation"] for each in triggers if each["type"] == "metrics-api"}
    metrics = all_rendered["prometheus-adapter"].named("HorizontalPodAutoscaler", "worker")["spec"]["metrics"]
    external = {each["external"]["metric"]["name"] for each in metrics if each["type"] == "External"}
    assert asked == external == {"mailqueue_due", "mailqueue_oldest_due_age_seconds"}
    assert any(each["type"] == "cpu" for each in triggers)
    assert any(each["type"] == "Resource" for each in metrics)


def test_keda_asks_the_web_where_it_answers(all_rendered: dict[str, Rendered]) -> None:
    keda = all_rendered["keda"]
    spec = keda.named("ScaledObject", "worker")["spec"]
    service = keda.named("Service", "web")
    for trigger in spec["triggers"]:
        if trigger["type"] != "metrics-api":
            continue
        url = re.fullmatch(
            r"http://(web\.mailqueue\.svc\.cluster\.local)/metrics", trigger["metadata"]["url"]
        )
        assert url
        assert url[1] in _settings(keda)["ALLOWED_HOSTS"].split(",")
        assert [port["port"] for port in service["spec"]["ports"]] == [80]
        # KEDA falls back for averages only; with any other it would not say how many while the web is away.
        assert trigger["metricType"] == "AverageValue"
        assert trigger["metadata"]["format"] == "prometheus"
        assert float(trigger["metadata"]["targetValue"]) > 0
    assert spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]


def test_disruption_budgets_cover_what_is_many_and_block_no_drain(rendered: Rendered) -> None:
    covered = set()
    for each in rendered.of("PodDisruptionBudget"):
        (name,) = rendered.selected(each["spec"]["selector"])
        covered.add(name)
        assert each["spec"]["maxUnavailable"] >= 1
        assert "minAvailable" not in each["spec"]
    assert covered == set(_scaled(rendered)) | {"upkeep"}


def test_there_is_one_beat_and_never_two(rendered: Rendered) -> None:
    spec = rendered.named("Deployment", "beat")["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}


def test_workers_are_given_longer_than_they_need_to_go(rendered: Rendered) -> None:
    """The slice and the last listening, what is in flight, the courier's thread, the last word to the database."""
    grace = rendered.pod("worker").spec["terminationGracePeriodSeconds"]
    thread = connect = 5
    assert grace > jobs.SLICE_SECONDS + jobs.LISTEN_SECONDS + jobs.GRACE_SECONDS + thread + connect
    assert grace > jobs.SLICE_SECONDS + max(DEADLINES.values())


def test_upkeep_is_given_longer_than_its_webhooks(rendered: Rendered) -> None:
    assert rendered.pod("upkeep").spec["terminationGracePeriodSeconds"] > 2 * jobs.WEBHOOK_GRACE_SECONDS


@pytest.mark.parametrize("name", ["web", "stream"])
def test_the_web_is_given_longer_than_it_waits_for_proxies_and_for_what_it_answers(
    rendered: Rendered, name: str
) -> None:
    pod = rendered.pod(name)
    (kill,) = (
        int(each.partition("=")[2]) for each in pod.command() if each.startswith("--workers-kill-timeout=")
    )
    before = pod.spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod.spec["terminationGracePeriodSeconds"] > before + kill


def test_streams_are_given_longer_than_calls(rendered: Rendered) -> None:
    stream, web = (rendered.pod(each).spec["terminationGracePeriodSeconds"] for each in ("stream", "web"))
    assert stream > web


def test_web_processes_are_counted_as_many_as_there_may_be(rendered: Rendered) -> None:
    (processes,) = (
        int(each.partition("=")[2]) for each in rendered.pod("web").command() if each.startswith("--workers=")
    )
    assert int(_settings(rendered)["WEB_PROCESSES"]) == processes * _scaled(rendered)["web"][1]


def test_journals_outlive_a_container_and_have_room(rendered: Rendered) -> None:
    from mailqueue.delivery.journal import LARGEST

    pod = rendered.pod("worker")
    (mount,) = (
        each for each in pod.spec["containers"][0]["volumeMounts"]
        if each["mountPath"] == _settings(rendered)["DATA_DIR"]
    )  # fmt: skip
    (volume,) = (each for each in pod.spec["volumes"] if each["name"] == mount["name"])
    size = volume["emptyDir"]["sizeLimit"]
    assert size.endswith("Mi")
    # Each process has an old and a new one for a moment, and may find that of one who died.
    processes = int(_settings(rendered)["WORKER_CONCURRENCY"])
    assert int(size[:-2]) * 1024 * 1024 > 3 * 2 * processes * LARGEST


# Watching -----------------------------------------------------------------------------------------------


def _metric_names() -> set[str]:
    text = (ROOT / "docs/metrics.md").read_text()
    return {name.partition("{")[0] for name in re.findall(r"^\| `(mailqueue_[^`]+)`", text, re.MULTILINE)}


def _asked_for(text: str) -> set[str]:
    return {name.removesuffix("_bucket") for name in re.findall(r"\bmailqueue_\w+", text)}


def test_alarms_and_scaling_ask_for_metrics_that_exist(
    all_rendered: dict[str, Rendered], deployment: Path
) -> None:
    known = _metric_names()
    watched = all_rendered["prometheus-adapter"]
    (rule,) = watched.of("PrometheusRule")
    expressions = " ".join(each["expr"] for group in rule["spec"]["groups"] for each in group["rules"])
    assert _asked_for(expressions) <= known
    adapter = yaml.safe_load((deployment / "components/prometheus-adapter/adapter-values.yaml").read_text())
    for each in [*adapter["rules"]["external"], *adapter["rules"]["custom"]]:
        assert _asked_for(each["seriesQuery"]) == {each["name"]["as"]} <= known
    offered = {
        kind: {each["name"]["as"] for each in adapter["rules"][kind]} for kind in ("external", "custom")
    }
    for scaler in watched.of("HorizontalPodAutoscaler"):
        for metric in scaler["spec"]["metrics"]:
            if metric["type"] == "External":
                assert metric["external"]["metric"]["name"] in offered["external"]
            if metric["type"] == "Pods":
                assert metric["pods"]["metric"]["name"] in offered["custom"]


def test_the_alarms_are_those_of_a_prometheus_without_an_operator(all_rendered: dict[str, Rendered]) -> None:
    (rule,) = all_rendered["prometheus-adapter"].of("PrometheusRule")
    file = ROOT / "deployment/observability/rules.yml"
    assert rule["spec"] == yaml.safe_load(file.read_text())


def test_every_alarm_says_how_bad_it_is_and_what_it_means(all_rendered: dict[str, Rendered]) -> None:
    (rule,) = all_rendered["prometheus-adapter"].of("PrometheusRule")
    rules: list[Any] = [each for group in rule["spec"]["groups"] for each in group["rules"]]
    about = {
        "mailqueue_due", "mailqueue_oldest_due_age_seconds", "mailqueue_workers", "mailqueue_rescued_total",
        "mailqueue_uncertain_total", "mailqueue_doorbell_failures_total",
    }  # fmt: skip
    assert about <= set().union(*(_asked_for(each["expr"]) for each in rules))
    assert len({each["alert"] for each in rules}) == len(rules)
    for each in rules:
        assert set(each) <= {"alert", "expr", "for", "labels", "annotations"}
        assert each["labels"]["severity"] in ("critical", "warning", "info")
        assert set(each["annotations"]) == {"summary", "description"}


def test_prometheus_finds_the_web_and_its_streams(all_rendered: dict[str, Rendered]) -> None:
    watched = all_rendered["prometheus-adapter"]
    (monitor,) = watched.of("ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    assert set(endpoint) == {"port", "path", "interval", "scrapeTimeout"}
    assert endpoint["path"] == "/metrics"
    found = [
        each
        for each in watched.of("Service")
        if selects(monitor["spec"]["selector"], each["metadata"]["labels"])
    ]
    assert {each["metadata"]["name"] for each in found} == {"web", "stream"}
    for service in found:
        assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
