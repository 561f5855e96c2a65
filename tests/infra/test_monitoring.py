"""What watches Graticule is accepted by Prometheus, and asks for metrics that somebody exports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import night_metrics
from pipeline.cluster.metrics import METRICS
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "infra" / "monitoring"
RAYS = {
    "ray_cluster_active_nodes",
    "ray_node_cpu_utilization",
    "ray_node_disk_free",
    "ray_node_disk_usage",
    "ray_node_mem_used",
}
"""What we ask Ray for; tests/integration/test_watching.py sees whether it is there."""
OURS = {
    f"ray_{name}{suffix}"
    for name, metric in METRICS.items()
    for suffix in (("_bucket", "_sum", "_count", "") if metric.kind == "histogram" else ("",))
} | set(night_metrics.METRICS)
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Debian's package prometheus")


def rules() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
    return found


def dashboard_queries() -> list[str]:
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\b(?:ray|graticule)_\w+", text))


def promtool(*arguments: object) -> str:
    answer = subprocess.run(["promtool", *map(str, arguments)], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@needs_promtool
def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    assert "is valid prometheus config" in promtool("check", "config", "prometheus.yml")
    assert f"{len(rules())} rules found" in promtool("check", "rules", "--lint-fatal", "alerts.yml")


@needs_promtool
def test_every_alert_fires_when_it_must() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")
    tests = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == {rule["alert"] for rule in rules()}


@needs_promtool
def test_prometheus_understands_the_dashboards_queries(tmp_path: Path) -> None:
    queries = [query.replace("$__rate_interval", "5m") for query in dashboard_queries()]
    assert len(queries) > 15
    group = {"name": "dashboard", "rules": [{"record": f"q{i}", "expr": query} for i, query in enumerate(queries)]}
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [group]}))
    promtool("check", "rules", tmp_path / "queries.yml")


def test_what_is_asked_for_is_exported() -> None:
    asked = {name for text in [*dashboard_queries(), *(rule["expr"] for rule in rules())] for name in names_in(text)}
    assert asked - OURS - RAYS == set()
    assert asked >= RAYS, "RAYS names what nobody asks for"


def test_every_metric_is_documented_and_no_other() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(ray_graticule_\w+)` \| (\w+) \|", page, flags=re.MULTILINE))
    assert rows == {f"ray_{name}": metric.kind for name, metric in METRICS.items()}
    assert set(night_metrics.METRICS) <= names_in(page)
    alerts = re.findall(r"^\| `(Graticule\w+)` \|", page, flags=re.MULTILINE)
    assert alerts == [rule["alert"] for rule in rules()]


def test_no_metric_is_labelled_by_photo() -> None:
    labels = {label for metric in METRICS.values() for label in metric.labels}
    assert labels == {"run_id", "status", "error_code", "stage"}


def test_the_dashboard_is_what_its_script_makes() -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="needs grafana-foundation-sdk (extra `infra`)")
    script = "import dashboard, sys; sys.stdout.write(dashboard.text())"
    made = subprocess.run([sys.executable, "-c", script], cwd=FOLDER, capture_output=True, text=True, check=True)
    assert made.stdout == (FOLDER / "dashboard.json").read_text(encoding="utf-8")


def test_the_pod_monitor_finds_the_port_that_ray_pods_have() -> None:
    monitor = yaml.safe_load((FOLDER / "kubernetes.yml").read_text())
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert monitor["spec"]["selector"]["matchLabels"] == {"ray.io/is-ray-node": "yes"}
    text = (REPOSITORY / "infra" / "kubernetes" / "base" / "cluster.yaml").read_text()
    ports = re.findall(r"- name: (\w+)\n\s+containerPort: 8080|containerPort: 8080\n\s+name: (\w+)", text)
    assert {name for pair in ports for name in pair if name} == {endpoint["port"]}
