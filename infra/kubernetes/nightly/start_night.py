"""Start a night on Kubernetes, and wait for its end: copy a suspended RayJob under the name of the Job that this is.

    python start_night.py --template graticule-night          in a pod of a CronJob

Needs JOB_NAME and JOB_UID in the environment (cronjob.yaml sets them) and the right to create, get and watch RayJobs.
Whoever takes a lost pod's place finds the RayJob already there, and waits for it. Exit code 0: the RayJob succeeded;
1: it failed; 2: Kubernetes refused, or did not answer. Only Python's own library is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CREDENTIALS = Path("/var/run/secrets/kubernetes.io/serviceaccount")
ENDED = ("Complete", "Failed", "ValidationFailed")
WATCH_S = 300


class Kubernetes:
    """The RayJobs of one namespace."""

    def __init__(self, server: str, credentials: Path) -> None:
        namespace = (credentials / "namespace").read_text().strip()
        self._url = f"{server}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
        self._token_file = credentials / "token"
        authority = credentials / "ca.crt"
        self._tls = ssl.create_default_context(cafile=str(authority)) if server.startswith("https:") else None

    def get(self, name: str) -> dict[str, Any]:
        """Return a RayJob."""
        with self._open(f"/{name}") as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def create(self, rayjob: dict[str, Any]) -> bool:
        """Create a RayJob; return False where its name is taken."""
        try:
            self._open("", json.dumps(rayjob).encode()).close()
        except urllib.error.HTTPError as error:
            if error.code != 409:
                raise
            return False
        return True

    def states(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield a RayJob now and whenever it changes, for some minutes; an object of type ERROR ends it."""
        query = f"?watch=1&timeoutSeconds={WATCH_S}&fieldSelector=metadata.name%3D{name}"
        with self._open(query) as answer:
            for line in answer:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                if event["type"] == "DELETED":
                    raise LookupError(f"RayJob {name} was deleted")
                yield event["object"]

    def _open(self, path: str, body: bytes | None = None) -> Any:
        # Read each time: Kubernetes renews it every hour.
        headers = {"Authorization": f"Bearer {self._token_file.read_text().strip()}", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(self._url + path, body, headers)
        return urllib.request.urlopen(request, timeout=WATCH_S + 30, context=self._tls)


def copy_of(template: dict[str, Any], job_name: str, job_uid: str) -> dict[str, Any]:
    """Return the RayJob of a night: the template's, awake, and removed together with its Job."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job_name, "uid": job_uid, "blockOwnerDeletion": False}
    return {
        "apiVersion": template["apiVersion"],
        "kind": template["kind"],
        "metadata": {
            "name": job_name,
            "labels": template["metadata"].get("labels", {}),
            "ownerReferences": [owner],
        },
        "spec": template["spec"] | {"suspend": False},
    }


def run(kubernetes: Kubernetes, template: str, job_name: str, job_uid: str) -> int:
    """Start the night unless it is started; return 0 when it has succeeded, 1 when it has failed."""
    is_new = kubernetes.create(copy_of(kubernetes.get(template), job_name, job_uid))
    print(f"RayJob {job_name} {'created' if is_new else 'was there already: waiting for it'}", flush=True)
    seen = None
    while True:
        with contextlib.suppress(TimeoutError, ConnectionError):
            for rayjob in kubernetes.states(job_name):
                status = rayjob.get("status", {})
                state = (status.get("jobDeploymentStatus", ""), status.get("jobStatus", ""))
                if state != seen:
                    print(f"RayJob {job_name}: {' '.join(filter(None, state)) or 'new'}", flush=True)
                    seen = state
                if state[0] in ENDED:
                    if state[1] == "SUCCEEDED":
                        return 0
                    print(f"{status.get('reason', '')} {status.get('message', '')}".strip(), file=sys.stderr)
                    return 1


def main() -> int:
    """Read the command line and the environment; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
    address = f"[{host}]" if ":" in host else host
    parser.add_argument("--template", required=True, help="name of the suspended RayJob")
    parser.add_argument("--server", default=f"https://{address}:{port}", help="Kubernetes' address; a pod knows it")
    parser.add_argument("--credentials", type=Path, default=CREDENTIALS, help="folder with namespace, token and ca.crt")
    arguments = parser.parse_args()
    try:
        kubernetes = Kubernetes(arguments.server, arguments.credentials)
        return run(kubernetes, arguments.template, os.environ["JOB_NAME"], os.environ["JOB_UID"])
    except urllib.error.HTTPError as error:
        print(f"Kubernetes refused: {error.code} {error.read().decode(errors='replace')[:500]}", file=sys.stderr)
    except (OSError, LookupError) as error:
        print(f"no answer: {error!r}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
