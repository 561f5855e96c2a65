"""run.json: what a training was told to do, by whom it was carried on, and how it ended; it names the training."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import platform
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from pipeline import storage
from pipeline.cluster.code_version import code_version
from training.fit.journal import read_journal
from training.fit.loop import Task
from training.fit.snapshot import Snapshots

FILE = "run.json"


class RunRecord:
    """The record below `output`: begun or taken up again by `begin`, closed by `finish`.

    Raises:
        ValueError: the output holds another training.
    """

    def __init__(self, output: str, identity: str) -> None:
        self._uri, self._output = storage.join(output, FILE), output
        try:
            self.values: dict[str, Any] = json.loads(storage.read_bytes(self._uri))
        except FileNotFoundError:
            self.values = {"identity": identity, "state": "new", "attempts": []}
        if self.values["identity"] != identity:
            raise ValueError(
                f"{output} holds another training (other photos, settings or network), begun "
                f"{self.values['attempts'][0]['started_at']}: give another --output, or remove that one"
            )

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return bool(self.values["state"] == "finished")

    def begin(self, workers: int, **about: Any) -> None:
        """Note a start, or a restart: how many workers, and whatever else describes the training (JSON values)."""
        self.values |= about | {"state": "running"}
        self.values["attempts"].append(
            {
                "started_at": _now(),
                "workers": workers,
                "from_step": max(Snapshots(self._output).steps(), default=0),
                "host": platform.node(),
                "versions": {name: version(name) for name in ("graticule", "torch", "ray", "numpy")},
                "code": code_version(),
            }
        )
        self._write()

    def finish(self, **about: Any) -> None:
        """Note the end, with the metrics of every epoch from the journal."""
        epochs = [record for record in read_journal(self._output) if record["kind"] == "epoch"]
        self.values |= about | {"state": "finished", "finished_at": _now(), "epochs": epochs}
        self._write()

    def _write(self) -> None:
        storage.write_bytes(self._uri, (json.dumps(self.values, indent=2) + "\n").encode())


def identity_of(task: Task, weights: dict[str, torch.Tensor] | None, **about: Any) -> str:
    """Return 16 hex digits that name a training: all that decides what comes out, but no number of workers.

    `about` (JSON values): the recipe, the network, the photos' fingerprints. Labels and first weights enter by content.
    """
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    arrays = [task.labels.level_NH, task.labels.scene_N, task.row_M, task.validation_rows]
    arrays += [weights[name].numpy() for name in sorted(weights)] if weights else []
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
