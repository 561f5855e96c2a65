"""What the loop's own tests don't show: what is in a snapshot, and that the average is what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from training.fit.snapshot import FOLDER, Snapshots, WeightAverage, restore_state, take_state


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_weights_and_optimizer_come_back(tmp_path: Path, kind: type[torch.optim.Optimizer]) -> None:
    more = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    models = [network(), network()]
    optimizers = [kind([{"params": list(m.parameters()), "rate": 0.5}], lr=0.1, **more) for m in models]
    step(models[0], optimizers[0])
    store = Snapshots(str(tmp_path))
    state = take_state(models[0], optimizers[0])
    store.put(1, state)
    kept = {name: x.clone() for name, x in state["weights"].items()}
    step(models[0], optimizers[0])  # what was put does not change with it
    store.wait()
    loaded = store.load(1)
    assert all(torch.equal(kept[name], x) for name, x in loaded["weights"].items())
    restore_state(models[1], optimizers[1], loaded)
    assert optimizers[1].param_groups[0]["rate"] == 0.5
    # From the same state, the same step.
    restore_state(models[0], optimizers[0], loaded)
    for model, optimizer in zip(models, optimizers, strict=True):
        torch.manual_seed(1)
        step(model, optimizer)
    assert all(torch.equal(x, models[1].state_dict()[name]) for name, x in models[0].state_dict().items())


def test_the_best_weights_are_those_that_the_newest_snapshot_knows_of(tmp_path: Path) -> None:
    """Also where the process was killed between a better step's weights and the snapshot that names it."""
    store = Snapshots(str(tmp_path))
    for number, best in ((1, None), (2, 2), (3, 2), (4, 4), (5, 4)):
        state = {"weights": {"x": torch.tensor(number)}, "average": {}, "best": best and {"step": best}}
        store.put(number, state, is_best=number == best)
        store.wait()
        assert store.load_best()["weights"]["x"] == (best or number)
    names = sorted(path.name for path in (tmp_path / FOLDER).iterdir())
    assert names == ["best-000000004.pt", "step-000000004.pt", "step-000000005.pt"]
    (tmp_path / FOLDER / "best-000000006.pt").write_bytes(b"of a step whose snapshot was never written")
    assert store.load_best()["weights"]["x"] == 4
    assert store.steps() == [4, 5]


def test_a_snapshot_cannot_run_code(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    torch.save({"identity": Path("x")}, tmp_path / FOLDER / "step-000000001.pt")  # an object of some class
    with pytest.raises(Exception, match="Weights only load failed"):
        Snapshots(str(tmp_path)).load(1)


def test_files_that_are_no_snapshots_are_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    for name in ("step-12.pt", "step-000000007.pt.tmp", "step-000000003.pt"):
        (tmp_path / FOLDER / name).write_bytes(b"")
    assert Snapshots(str(tmp_path)).steps() == [3]
    assert Snapshots(str(tmp_path / "none")).steps() == []


def test_what_went_wrong_while_writing_is_told(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file where the folder should be")
    store = Snapshots(str(tmp_path))
    store.put(1, {"x": 1})
    with pytest.raises(OSError, match=FOLDER):
        store.wait()


def test_the_average_is_that_of_weights_and_statistics() -> None:
    model = network()
    average = WeightAverage(model, decay=0.5)
    expected = {name: x.clone() for name, x in model.state_dict().items() if x.is_floating_point()}
    for number in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
            model[1].running_mean.add_(2.0)  # type: ignore[union-attr, operator]
        average.update(number)
        decay = min(0.5, (1 + number) / (10 + number))
        for name in expected:
            expected[name] = decay * expected[name] + (1 - decay) * model.state_dict()[name]
    live = {name: x.clone() for name, x in model.state_dict().items()}
    average.swap()
    for name, x in expected.items():
        torch.testing.assert_close(model.state_dict()[name], x)
    average.swap()
    assert all(torch.equal(live[name], x) for name, x in model.state_dict().items())
    other = WeightAverage(network(), decay=0.5)
    other.restore(average.take())
    assert all(torch.equal(x, other.take()[name]) for name, x in average.take().items())


def test_what_is_frozen_is_in_no_snapshot_and_no_average(tmp_path: Path) -> None:
    model = network()
    frozen = model[0]
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW([x for x in model.parameters() if x.requires_grad], lr=0.1)
    average = WeightAverage(model, 0.5, frozen)
    step(model, optimizer)
    average.update(0)
    state = take_state(model, optimizer)
    assert not [name for name in (*state["weights"], *average.take()) if name.startswith("0.")]
    assert {"1.running_mean", "2.weight"} <= state["weights"].keys() & average.take().keys()
    store = Snapshots(str(tmp_path))
    store.put(1, state)
    store.wait()
    other = network()
    for parameter in other[0].parameters():
        parameter.requires_grad_(False)
    theirs = torch.optim.AdamW([x for x in other.parameters() if x.requires_grad], lr=0.1)
    restore_state(other, theirs, store.load(1))
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in model.state_dict().items())
    other_average = WeightAverage(other, 0.5, other[0])
    other_average.restore(average.take())
    assert all(torch.equal(x, other_average.take()[name]) for name, x in average.take().items())
