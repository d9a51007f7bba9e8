"""The Kubernetes and autoscaler files, checked against the schemas that can be installed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml

from growtx.cli.jobs import load_config
from growtx.cli.main import parse
from growtx.config import preset_names
from growtx.run.config import RunConfig, load_run_config
from growtx.specialists.config import SpecialistsConfig

PROJECT = Path(__file__).parents[2]
CLUSTER = PROJECT / "cluster"
KUBERAY = sorted((CLUSTER / "kuberay").glob("*.yaml"))
AUTOSCALER = [CLUSTER / "aws.yaml", CLUSTER / "gcp.yaml"]
Tree = dict[str, Any]

# Keys of KubeRay's custom resources (v1) that we use; the operator ignores or refuses others. Written down by hand and
# compared with the definitions of KubeRay 1.7, which no package carries.
SPEC_KEYS = {
    "RayCluster": {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec",
                   "workerGroupSpecs"},
    "RayJob": {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec",
               "preRunningDeadlineSeconds"},
    "RayService": {"serveConfigV2", "rayClusterConfig"},
}  # fmt: skip
HEAD_KEYS = {"serviceType", "rayStartParams", "template"}
WORKER_KEYS = {"groupName", "replicas", "minReplicas", "maxReplicas", "priority", "rayStartParams", "template"}


def documents(kind: str | None = None) -> list[Tree]:
    every = [document for path in KUBERAY for document in yaml.safe_load_all(path.read_text())]
    return [document for document in every if kind in (None, document["kind"])]


def cluster_specs() -> list[Tree]:
    """The cluster inside every RayCluster, RayJob and RayService."""
    keys = {"RayCluster": None, "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
    found = [document for document in documents() if document["kind"] in keys]
    return [d["spec"][keys[d["kind"]]] if keys[d["kind"]] else d["spec"] for d in found]


def pods() -> Iterator[Tree]:
    for spec in cluster_specs():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            yield group["template"]["spec"]


@pytest.mark.parametrize("path", [*KUBERAY, *AUTOSCALER], ids=lambda path: path.name)
def test_every_file_says_what_it_is_for_and_which_command_uses_it(path: Path) -> None:
    head = "".join(line for line in path.read_text().splitlines(keepends=True)[:16] if line.startswith("#"))
    assert f"cluster/{path.relative_to(CLUSTER)}" in head
    assert re.search(r"^#   (kubectl|ray|sed) ", head, re.MULTILINE)


@pytest.mark.parametrize("path", AUTOSCALER, ids=lambda path: path.name)
def test_autoscaler_files_follow_rays_own_schema(path: Path) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    config = yaml.safe_load(path.read_text())
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]


@pytest.mark.parametrize("path", AUTOSCALER, ids=lambda path: path.name)
def test_every_placeholder_is_filled_by_the_command_in_the_head(path: Path) -> None:
    text = path.read_text()
    filled = set(re.findall(r"s#([A-Z_]+)#", text))
    body = "\n".join(line.split(" #")[0] for line in text.splitlines() if not line.startswith("#"))
    used = set(re.findall(r"\b(AMI_ID|IMAGE_FAMILY|PROJECT_ID|REGISTRY|BUCKET)\b", body))
    assert used == filled


@pytest.mark.parametrize("path", AUTOSCALER, ids=lambda path: path.name)
def test_dashboards_of_cloud_clusters_listen_on_loopback(path: Path) -> None:
    (start,) = [
        command for command in yaml.safe_load(path.read_text())["head_start_ray_commands"] if "--head" in command
    ]
    assert "--dashboard-host 127.0.0.1" in start


@pytest.mark.parametrize("kind", SPEC_KEYS)
def test_custom_resources_use_known_keys(kind: str) -> None:
    found = documents(kind)
    assert found
    for document in found:
        assert document["apiVersion"] == "ray.io/v1"
        assert set(document["spec"]) <= SPEC_KEYS[kind]
    for spec in cluster_specs():
        assert set(spec) <= SPEC_KEYS["RayCluster"]
        assert set(spec["headGroupSpec"]) <= HEAD_KEYS
        for group in spec["workerGroupSpecs"]:
            assert set(group) <= WORKER_KEYS
            assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_clusters_run_the_tested_version_of_ray_and_ask_for_a_token() -> None:
    for spec in cluster_specs():
        assert spec["rayVersion"] == version("ray")
        assert spec["authOptions"] == {"mode": "token"}


def test_pods_and_storage_follow_the_kubernetes_schema() -> None:
    for spec in pods():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
        kubernetes_validate.validate(pod, "1.31", strict=True)
    for document in documents("ConfigMap") + documents("PersistentVolumeClaim"):
        kubernetes_validate.validate(document, "1.31", strict=True)


def test_every_pod_gets_the_one_storage_setting_and_the_volumes_that_it_mounts() -> None:
    (settings,) = documents("ConfigMap")
    (claim,) = documents("PersistentVolumeClaim")
    assert settings["data"]["GROWTX_STORAGE"] == "/mnt/growtx"
    for spec in pods():
        (container,) = spec["containers"]
        assert {"configMapRef": {"name": settings["metadata"]["name"]}} in container["envFrom"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert {"name": "storage", "mountPath": "/mnt/growtx"} in container["volumeMounts"]
        assert volumes["storage"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


@pytest.mark.parametrize("path", [p for p in KUBERAY if "# shared disk" in p.read_text()], ids=lambda path: path.name)
def test_without_the_shared_disk_the_files_remain_valid(path: Path) -> None:
    """storage.yaml tells users of S3 and GCS to delete the lines marked so."""
    kept = "\n".join(line for line in path.read_text().splitlines() if "# shared disk" not in line)
    assert "persistentVolumeClaim" not in kept
    assert all(yaml.safe_load_all(kept))


def test_gpu_pods_run_the_cuda_image_and_tolerate_the_taint_of_gpu_nodes() -> None:
    num_gpu_groups = 0
    for spec in pods():
        (container,) = spec["containers"]
        limits = container["resources"]["limits"]
        assert limits == container["resources"]["requests"], "Ray counts on what it was promised"
        if "nvidia.com/gpu" in limits:
            num_gpu_groups += 1
            assert container["image"] == "growtx:cuda"
            assert any(toleration["key"] == "nvidia.com/gpu" for toleration in spec["tolerations"])
        else:
            assert container["image"] == "growtx:cpu"
    assert num_gpu_groups >= 3


def capacity(offers: list[tuple[int, float, float]], worker_cpus: float, *, use_gpu: bool) -> int:
    """Workers that fit on nodes offered as (how many, CPUs of one, GPUs of one)."""
    fits = [count * int(min(cpus // worker_cpus, gpus if use_gpu else cpus)) for count, cpus, gpus in offers]
    return sum(fits)


def offers_of_pods(spec: Tree) -> list[tuple[int, float, float]]:
    groups = [(group, group["template"]["spec"]["containers"][0]) for group in spec["workerGroupSpecs"]]
    limits = [(group["maxReplicas"], container["resources"]["limits"]) for group, container in groups]
    return [(count, float(limit["cpu"]), float(limit.get("nvidia.com/gpu", 0))) for count, limit in limits]


def offers_of_nodes(path: Path) -> list[tuple[int, float, float]]:
    config = yaml.safe_load(path.read_text())
    types = [kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]]
    return [
        (min(kind["max_workers"], config["max_workers"]), kind["resources"]["CPU"], kind["resources"].get("GPU", 0))
        for kind in types
    ]


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_finds_the_workers_that_it_asks_for(preset: str) -> None:
    config = load_config(preset)
    resources = config.resources
    num_workers = resources.num_workers
    if isinstance(config, RunConfig):
        num_workers = max([num_workers, *(stage.num_workers or 0 for stage in config.plan.stages or ())])
    elif isinstance(config, SpecialistsConfig):
        num_workers *= len(config.specialists)  # they train at the same time
    (cluster,) = documents("RayCluster")
    (job,) = documents("RayJob")
    clusters = [offers_of_pods(cluster["spec"]), offers_of_pods(job["spec"]["rayClusterSpec"])]
    for offers in clusters + [offers_of_nodes(path) for path in AUTOSCALER]:
        assert capacity(offers, resources.cpus_per_worker, use_gpu=resources.use_gpu) >= num_workers


def test_the_growth_of_the_job_is_one_that_can_be_configured() -> None:
    (job,) = documents("RayJob")
    program, *words = job["spec"]["entrypoint"].split()[1:]
    assert (PROJECT / program.removeprefix("/opt/growtx/")).exists()
    arguments = parse(["grow", *words])
    config = load_run_config(arguments.preset, arguments.overrides)
    assert config.resources.wait_seconds >= 600, "nodes take minutes to come"
    assert arguments.resume, "a replaced cluster goes on"


def test_spot_workers_are_tried_before_others() -> None:
    (cluster,) = documents("RayCluster")
    priorities = {group["groupName"]: group.get("priority", 0) for group in cluster["spec"]["workerGroupSpecs"]}
    assert priorities["gpu-spot"] > priorities["gpu"]
    for path in AUTOSCALER:
        types = yaml.safe_load(path.read_text())["available_node_types"]
        assert types["gpu-24gb-spot"]["priority"] > types["gpu-24gb"].get("priority", 0)
        assert types["gpu-24gb-spot"]["resources"] == types["gpu-24gb"]["resources"]


def test_the_service_deploys_a_valid_serve_configuration() -> None:
    from ray.serve.schema import ServeDeploySchema

    (service,) = documents("RayService")
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    assert [application.import_path for application in config.applications] == ["serve.app:build"]


def test_no_file_holds_a_credential() -> None:
    suspicious = re.compile(
        r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|(password|secret_key|token)\s*[:=]\s*['\"]?\w{8,}", re.I
    )
    for path in CLUSTER.rglob("*"):
        if path.is_file():
            assert not suspicious.search(path.read_text()), path


def test_the_proxy_leads_to_what_listens_on_loopback_and_asks_for_a_password_where_there_is_no_key() -> None:
    text = (CLUSTER / "Caddyfile").read_text()
    sites = dict(re.findall(r"^(\w+)\.\{\$DOMAIN\} \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    ports = {name: re.findall(r"reverse_proxy 127\.0\.0\.1:(\d+)", body) for name, body in sites.items()}
    assert ports == {"api": ["8000"], "ray": ["8265"], "grafana": ["3000"]}  # defaults of Serve, Ray and Grafana
    assert {name for name, body in sites.items() if "basicauth" in body} == {"ray", "grafana"}
    serving = yaml.safe_load((PROJECT / "serve" / "config.yaml").read_text())
    assert serving["http_options"] == {"host": "127.0.0.1", "port": 8000}
