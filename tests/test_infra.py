"""What operators install is what its own tools accept."""

from __future__ import annotations

import datetime as dt
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.test_architecture import tracked_files

NIGHTLY = REPOSITORY / "infra" / "nightly"
CHECKED_BY = {
    "infra/kubernetes/*/kustomization.yaml": "kustomize, in tests/infra/test_kubernetes.py",
    "infra/kubernetes/*.yaml": "Kubernetes' and KubeRay's schemas, there",
    "infra/kubernetes/nightly/start_night.py": "tests/infra/test_start_night.py",
    "infra/docker/Dockerfile": "hadolint, in tests/infra/test_docker.py",
    "infra/docker/build_without_docker": "shellcheck, there",
    "infra/local_s3/up": "shellcheck, there; tests/integration/test_s3.py",
    "infra/aws/cluster.yaml": "Ray's schema, in tests/infra/test_aws.py",
    "infra/aws/*.json": "a run with these rights alone, there",
    "infra/airflow/submitted_night.py": "tests/integration/test_airflow_night.py",
    "infra/airflow/graticule_nightly.py": "Airflow itself, below",
    "infra/nightly/graticule-nightly.*": "systemd-analyze, below",
    "infra/nightly/crontab": "a parser of cron's, below",
    "infra/monitoring/*": "Prometheus and Grafana's library, in tests/infra/test_monitoring.py",
    "infra/*.md": "tests/infra/test_operator_docs.py",
}
"""Which tool reads what operators install."""


def test_every_file_has_a_tool_that_reads_it() -> None:
    files = [name for name in tracked_files() if name.startswith("infra/")]
    assert [name for name in files if not any(fnmatch(name, pattern) for pattern in CHECKED_BY)] == []
    for pattern in CHECKED_BY:
        assert any(fnmatch(name, pattern) for name in files), f"nothing is called {pattern} any more"


def test_no_kubernetes_file_is_forgotten() -> None:
    """A file that its folder's kustomization does not name is applied by nobody, and checked by nothing."""
    for path in (REPOSITORY / "infra" / "kubernetes").rglob("*"):
        if path.suffix in (".yaml", ".py") and path.name != "kustomization.yaml":
            assert path.name in (path.parent / "kustomization.yaml").read_text(), path


@pytest.mark.parametrize(
    "name",
    [
        "nightly/crontab",
        "kubernetes/nightly/cronjob.yaml",
        "kubernetes/raycronjob/raycronjob.yaml",
        "airflow/graticule_nightly.py",
    ],
)
def test_cron_understands_when_as_half_past_one(name: str) -> None:
    cronsim = pytest.importorskip("cronsim", reason="needs cronsim (extra `infra`)")
    (when,) = re.findall(r"[\d*/,-]+(?: [\d*/,-]+){4}(?=\"|  )", (REPOSITORY / "infra" / name).read_text())
    start = dt.datetime(2026, 11, 25, 12, 0, tzinfo=dt.UTC)
    assert next(cronsim.CronSim(when, start)) == dt.datetime(2026, 11, 26, 1, 30, tzinfo=dt.UTC)


def test_airflow_takes_the_night_as_a_dag() -> None:
    pytest.importorskip("airflow.sdk", reason="needs apache-airflow 3, which is larger than all else here")
    folder = REPOSITORY / "infra" / "airflow"
    script = "import graticule_nightly as module; dag = module.graticule_nightly(); print(dag.task_ids, dag.catchup)"
    checked = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert checked.stdout.endswith("['night'] False\n"), checked.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (package systemd)")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for path in NIGHTLY.glob("graticule-nightly.*"):
        text = path.read_text()
        # systemd-analyze looks whether the program and the user exist.
        text = text.replace("/opt/graticule/.venv/bin/python", sys.executable).replace("User=graticule", "User=root")
        (tmp_path / path.name).write_text(text.replace("/opt/graticule", str(tmp_path)))
    units = sorted(tmp_path.glob("graticule-nightly.*"))
    assert [unit.suffix for unit in units] == [".service", ".timer"]
    checked = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    (when,) = re.findall(r"OnCalendar=(.*)", (NIGHTLY / "graticule-nightly.timer").read_text())
    calendar = subprocess.run(["systemd-analyze", "calendar", when], capture_output=True, text=True, check=False)
    assert calendar.returncode == 0, calendar.stderr


@pytest.mark.parametrize("name", ["graticule-nightly.service", "crontab"])
def test_nightly_examples_call_a_command_that_exists(name: str) -> None:
    (arguments,) = re.findall(r"python -m jobs\.nightly ([^>\n]*)", (NIGHTLY / name).read_text())
    values = arguments.replace("${", "$").replace("}", "").replace('"', "").split()
    values = [value.replace("$PHOTOS", "/nowhere").replace("$OUTPUT", "/nowhere/out") for value in values]
    command = [sys.executable, "-m", "jobs.nightly", *values, "--date", "never"]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (answer.returncode, "give a date such as" in answer.stderr) == (2, True), answer.stderr
