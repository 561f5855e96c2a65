import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training.fit.loop import Task
from training.fit.objective import Labels
from training.fit.recipe import Recipe
from training.fit.run_record import FILE, RunRecord, identity_of

TASK = Task(Recipe(), Labels(np.zeros((4, 2), np.int64), np.zeros(4, np.int64)), np.arange(3), np.array([3]))


def test_a_training_is_begun_taken_up_again_and_finished(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step", "step": 1}\n{"kind": "epoch", "step": 2, "failed": 0}\n')
    for workers in (2, 4):
        record = RunRecord(str(tmp_path), "abc")
        assert not record.finished
        record.begin(workers, recipe={"epochs": 3})
    record.finish(model_id="model-1")
    values = json.loads((tmp_path / FILE).read_text())
    assert RunRecord(str(tmp_path), "abc").finished
    assert values["model_id"] == "model-1"
    assert values["recipe"] == {"epochs": 3}
    assert [attempt["workers"] for attempt in values["attempts"]] == [2, 4]
    assert values["epochs"] == [{"kind": "epoch", "step": 2, "failed": 0}]
    assert set(values["attempts"][0]["versions"]) == {"graticule", "torch", "ray", "numpy"}


def test_an_output_of_another_training_is_refused(tmp_path: Path) -> None:
    RunRecord(str(tmp_path), "abc").begin(0)
    with pytest.raises(ValueError, match="holds another training"):
        RunRecord(str(tmp_path), "abd")


def test_identity_hangs_on_all_that_decides_the_outcome() -> None:
    weights = {"a": torch.zeros(3), "b": torch.ones(2)}
    labels = TASK.labels
    moved = Labels(labels.level_NH + 1, labels.scene_N)
    identities = [
        identity_of(TASK, None, recipe=1),
        identity_of(TASK, None, recipe=2),
        identity_of(TASK, weights, recipe=1),
        identity_of(TASK, {"a": torch.zeros(3), "b": torch.zeros(2)}, recipe=1),
        identity_of(replace(TASK, labels=moved), None, recipe=1),
        identity_of(replace(TASK, row_M=np.arange(2)), None, recipe=1),
    ]
    assert len(set(identities)) == len(identities)
    assert identities[0] == identity_of(TASK, None, recipe=1)
    assert all(len(identity) == 16 for identity in identities)
