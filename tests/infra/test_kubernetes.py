"""What Kubernetes is given is what Kubernetes and KubeRay take: their own schemas, and what ours must always say."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.conftest import REPOSITORY

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate (extra `infra`)")

FOLDER = REPOSITORY / "infra" / "kubernetes"
OVERLAYS = ("cpu", "gpu", "alpha")
KUBERNETES_VERSIONS = ("1.31", "1.37")
CRDS = os.environ.get("KUBERAY_CRDS", "")
"""A folder with KubeRay's custom resource definitions (its ray-operator/config/crd/bases); no package carries them."""

Object = dict[str, Any]


@functools.cache
def rendered(overlay: str) -> tuple[Object, ...]:
    """The objects of an overlay, as kustomize makes them."""
    if shutil.which("kubectl"):
        command = ["kubectl", "kustomize"]
    elif shutil.which("kustomize"):
        command = ["kustomize", "build"]
    else:
        pytest.skip("needs kubectl or kustomize")
    made = subprocess.run([*command, FOLDER / "overlays" / overlay], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert "deprecated" not in made.stderr
    return tuple(yaml.safe_load_all(made.stdout))


def ours(overlay: str, kind: str) -> list[Object]:
    return [item for item in rendered(overlay) if item["kind"] == kind]


def clusters(overlay: str) -> Iterator[Object]:
    """The cluster's specification, wherever an overlay has one."""
    for item in rendered(overlay):
        match item["kind"]:
            case "RayCluster":
                yield item["spec"]
            case "RayJob":
                yield item["spec"]["rayClusterSpec"]
            case "RayCronJob":
                yield item["spec"]["jobTemplate"]["rayClusterSpec"]


def pods(overlay: str) -> Iterator[tuple[str, Object]]:
    """Every pod that an overlay may start, with a name."""
    for cluster in clusters(overlay):
        yield "head", cluster["headGroupSpec"]["template"]
        for group in cluster["workerGroupSpecs"]:
            yield group["groupName"], group["template"]
    for item in rendered(overlay):
        if item["kind"] == "CronJob":
            yield "start-night", item["spec"]["jobTemplate"]["spec"]["template"]
        for job in (item["spec"], item["spec"].get("jobTemplate", {})) if "spec" in item else ():
            if "submitterPodTemplate" in job:
                yield "submitter", job["submitterPodTemplate"]


def strict(schema: Object) -> Object:
    """A custom resource's schema as JSON Schema that takes no field it does not name, as `kubectl apply` does."""
    made = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if schema.get("nullable"):
        made["type"] = [made["type"], "null"]
    if "properties" in schema:
        made["properties"] = {name: strict(inner) for name, inner in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = strict(schema["additionalProperties"])
    if "items" in schema:
        made["items"] = strict(schema["items"])
    return made


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_own_schemas(overlay: str, version: str) -> None:
    kinds = set()
    for item in rendered(overlay):
        if item["apiVersion"] != "ray.io/v1":
            kubernetes_validate.validate(item, version, strict=True)
            kinds.add(item["kind"])
    assert kinds >= {"Namespace", "ServiceAccount", "NetworkPolicy"}
    # Ray's objects hold templates of pods, which Kubernetes knows.
    for name, template in pods(overlay):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **template.get("metadata", {})}}
        kubernetes_validate.validate(pod | {"spec": template["spec"]}, version, strict=True)


@pytest.mark.skipif(not CRDS, reason="KUBERAY_CRDS names no folder with KubeRay's custom resource definitions")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kuberay_own_schemas(overlay: str) -> None:
    checked = set()
    for item in rendered(overlay):
        if item["apiVersion"] == "ray.io/v1":
            definition = yaml.load((Path(CRDS) / f"ray.io_{item['kind'].lower()}s.yaml").read_text(), yaml.CSafeLoader)
            (schema,) = (v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"] if v["name"] == "v1")
            jsonschema.Draft202012Validator(strict(schema)).validate(item)
            checked.add(item["kind"])
    assert checked == {"RayCluster", "RayCronJob" if overlay == "alpha" else "RayJob"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kuberay_rules_that_no_schema_has(overlay: str) -> None:
    """What its operator checks in code (ray-operator/controllers/ray/utils/validation.go)."""
    for job in ours(overlay, "RayJob"):
        assert job["spec"]["suspend"]
        assert job["spec"]["shutdownAfterJobFinishes"]  # else it must not be suspended, nor have a time to live
        assert job["spec"]["backoffLimit"] == 0
    for cluster in clusters(overlay):
        assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0)  # for authOptions
        for group in cluster["workerGroupSpecs"]:
            assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] >= 1
    assert all(len(item["metadata"]["name"]) <= 36 for item in rendered(overlay) if item["kind"] == "CronJob")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nights_run_on_the_cluster_that_is_described(overlay: str) -> None:
    sleeping, of_the_night = clusters(overlay)
    assert sleeping["suspend"] is True
    for name in ("rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"):
        assert of_the_night[name] == sleeping[name]
    groups = [group["groupName"] for group in of_the_night["workerGroupSpecs"]]
    assert groups == (["decode", "engine"] if overlay == "gpu" else ["decode"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_every_cluster_says(overlay: str) -> None:
    for cluster in clusters(overlay):
        assert cluster["authOptions"] == {"mode": "token", "secretName": "graticule-ray-token"}
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert "serviceType" not in cluster["headGroupSpec"]  # ClusterIP: reached from inside alone
        gpus = [
            group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
            for group in cluster["workerGroupSpecs"]
        ]
        assert gpus == ([None, "1"] if overlay == "gpu" else [None])
    assert not {"Secret", "Ingress", "Service"} & {item["kind"] for item in rendered(overlay)}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_have_few_rights(overlay: str) -> None:
    """What the namespace's `restricted` level of Pod Security asks, and more."""
    found = list(pods(overlay))
    assert {"head", "decode", "submitter"} <= {name for name, _ in found}
    for name, template in found:
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert "hostNetwork" not in spec, name
        if name != "start-night":
            assert spec["automountServiceAccountToken"] is False, name
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
            assert "memory" in container["resources"]["limits"], name
            assert not [v for v in container.get("env", ()) if "KEY" in v["name"] or "TOKEN" in v["name"]], name
            if name in ("head", "decode", "engine"):
                for probe in ("readinessProbe", "livenessProbe"):
                    assert container[probe]["httpGet"]["path"] == "/api/healthz", name


def test_the_night_may_only_start_nights() -> None:
    (role,) = ours("cpu", "Role")
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get", "watch"]}]
    (cron,) = ours("cpu", "CronJob")
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    assert cron["spec"]["startingDeadlineSeconds"] > 0
    (binding,) = ours("cpu", "RoleBinding")
    account = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["serviceAccountName"]
    assert [subject["name"] for subject in binding["subjects"]] == [account]
    (job,) = ours("cpu", "RayJob")
    assert cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"] == [
        "--template",
        job["metadata"]["name"],
    ]


def test_both_kinds_of_night_do_the_same() -> None:
    (job,), (cron,) = ours("cpu", "RayJob"), ours("alpha", "RayCronJob")
    assert cron["spec"]["jobTemplate"] == {key: value for key, value in job["spec"].items() if key != "suspend"}
    (kubernetes_cron,) = ours("cpu", "CronJob")
    for name in ("schedule", "timeZone"):
        assert cron["spec"][name] == kubernetes_cron["spec"][name]


def test_the_network_is_closed_but_for_what_is_named() -> None:
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in ours("cpu", "NetworkPolicy")}
    assert policies["deny-by-default"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ports_by_name: dict[str, list[int]] = {}
    for name, policy in policies.items():
        for rule in policy.get("ingress", ()):
            assert rule["from"], name
            assert not any("ipBlock" in peer for peer in rule["from"]), name
            ports_by_name.setdefault(name, []).extend(port["port"] for port in rule.get("ports", ()))
    assert ports_by_name == {
        "ray-among-itself": [],  # all ports, from this namespace's Ray pods
        "dashboard-from-submitter-and-operator": [8265],
        "metrics-from-monitoring": [8080],
    }
    assert policies["ray-among-itself"]["ingress"] == [
        {"from": [{"podSelector": {"matchLabels": {"ray.io/is-ray-node": "yes"}}}]}
    ]


def test_images_are_one_version_of_the_code() -> None:
    tags = {
        container["image"].rsplit(":", 1)[1]
        for overlay in OVERLAYS
        for _, template in pods(overlay)
        for container in template["spec"]["containers"]
    }
    version = next(
        line.split('"')[1] for line in (REPOSITORY / "pyproject.toml").read_text().splitlines() if "version =" in line
    )
    assert tags == {version}


def test_rendering_is_json() -> None:
    """Dates and other YAML surprises would come out as no JSON."""
    for overlay in OVERLAYS:
        json.dumps(rendered(overlay))
