"""start_night.py against a server that answers as Kubernetes does over HTTP; no Kubernetes runs here."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "infra" / "kubernetes" / "nightly" / "start_night.py"
PATH = "/apis/ray.io/v1/namespaces/photos/rayjobs"
TEMPLATE = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": "graticule-night", "uid": "1", "resourceVersion": "7", "labels": {"a": "b"}},
    "spec": {"suspend": True, "entrypoint": "python -m jobs.nightly", "backoffLimit": 0},
}


class Cluster:
    """RayJobs by name, and the states that the next watches tell: a list for each watch."""

    def __init__(self, folder: Path) -> None:
        self.rayjobs: dict[str, dict[str, Any]] = {"graticule-night": TEMPLATE}
        self.watches: list[list[tuple[str, dict[str, str]]]] = []
        self.asked: list[str] = []
        cluster = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self, code: int, *objects: object) -> None:
                self.send_response(code)
                self.end_headers()
                for item in objects:
                    self.wfile.write(json.dumps(item).encode() + b"\n")

            def do_GET(self) -> None:
                cluster.asked.append(self.path)
                path, _, query = self.path.partition("?")
                if self.headers["Authorization"] != "Bearer the-token":
                    self.answer(401, {"message": "Unauthorized"})
                elif query:
                    name = query.rpartition("%3D")[2]
                    events = cluster.watches.pop(0)
                    rayjob = cluster.rayjobs[name]
                    self.answer(200, *({"type": kind, "object": rayjob | {"status": s}} for kind, s in events))
                elif (name := path.removeprefix(f"{PATH}/")) in cluster.rayjobs:
                    self.answer(200, cluster.rayjobs[name])
                else:
                    self.answer(404, {"message": f"rayjobs {name} not found"})

            def do_POST(self) -> None:
                made = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name = made["metadata"]["name"]
                taken = name in cluster.rayjobs
                cluster.rayjobs.setdefault(name, made)
                self.answer(409 if taken else 201, made)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        (folder / "namespace").write_text("photos")
        (folder / "token").write_text("the-token\n")
        self._folder = folder

    def start(self, template: str = "graticule-night") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, SCRIPT, "--template", template, "--credentials", self._folder]
        command += ["--server", f"http://127.0.0.1:{self._server.server_port}"]
        environment = os.environ | {"JOB_NAME": "graticule-nightly-29381950", "JOB_UID": "2"}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=60
        )  # fmt: skip

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    made.stop()


def test_a_night_is_copied_and_awaited(cluster: Cluster) -> None:
    running = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
    ended = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
    # The first watch ends as Kubernetes ends them: after some minutes, or with an error for what is too old.
    cluster.watches = [[("ADDED", {}), ("MODIFIED", running), ("ERROR", {})], [("ADDED", running), ("MODIFIED", ended)]]
    answer = cluster.start()
    assert (answer.returncode, answer.stderr) == (0, "")
    name = "graticule-nightly-29381950"
    assert answer.stdout.splitlines() == [
        f"RayJob {name} created",
        f"RayJob {name}: new",
        f"RayJob {name}: Running RUNNING",
        f"RayJob {name}: Complete SUCCEEDED",
    ]
    made = cluster.rayjobs[name]
    assert made["spec"] == TEMPLATE["spec"] | {"suspend": False}  # type: ignore[operator]
    assert made["metadata"]["ownerReferences"][0]["uid"] == "2"
    assert "uid" not in made["metadata"]
    assert "resourceVersion" not in made["metadata"]
    assert "the-token" not in answer.stdout


def test_a_pod_in_a_lost_ones_place_starts_nothing_twice(cluster: Cluster) -> None:
    cluster.rayjobs["graticule-nightly-29381950"] = TEMPLATE
    failed = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": "exit code 3"}
    cluster.watches = [[("ADDED", failed)]]
    answer = cluster.start()
    assert (answer.returncode, answer.stderr) == (1, "AppFailed exit code 3\n")
    assert "was there already" in answer.stdout
    assert cluster.rayjobs["graticule-nightly-29381950"] is TEMPLATE


@pytest.mark.parametrize(
    ("template", "watches", "reason"),
    [("no-such", [], "404"), ("graticule-night", [[("DELETED", {})]], "was deleted")],
)
def test_what_no_waiting_mends(
    cluster: Cluster, template: str, watches: list[list[tuple[str, dict[str, str]]]], reason: str
) -> None:
    cluster.watches = watches
    answer = cluster.start(template)
    assert answer.returncode == 2
    assert reason in answer.stderr
    assert "the-token" not in answer.stderr
