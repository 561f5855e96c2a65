"""Validation says what evaluation says; the best epoch is kept, also when the training is killed on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import geodecoder
from model.geodecoder import GeoDecoder, GeoDecoderOutput
from model.readout import Reading, ReadOut
from model.world import geodesy
from model.world.hierarchy import Hierarchy
from tests.training.fit.test_loop import Dying
from training.data.dataset import ArraySource
from training.evaluate.calibration import Judge
from training.fit.journal import read_journal
from training.fit.loop import Progress, Task, TrainingLoop, Upkeep
from training.fit.objective import Labels
from training.fit.recipe import Recipe
from training.fit.snapshot import FOLDER, Snapshots
from training.fit.team import Team
from training.fit.validation import LOG_LIKELIHOOD, Best, Validation
from training.hierarchy import PartitionConfig, build_hierarchy
from training.metrics import accuracy

# Six towns, each its shade, of three countries; of the last twelve photos, which are to validate, half are elsewhere
# than their shade says: what is learned by heart makes them less likely.
TOWN_N = np.arange(48) % 6
SHADE_N = np.where((np.arange(48) >= 36) & (np.arange(48) % 2 == 0), (TOWN_N + 3) % 6, TOWN_N)
LAT_DEG_N, LON_DEG_N = 10.0 + 0.01 * np.arange(48), TOWN_N * 12.0 + (TOWN_N // 2) * 40.0
IMAGES = np.clip(
    SHADE_N[:, None, None, None] * 40 + np.random.default_rng(0).integers(-20, 21, (48, 36, 36, 3)), 0, 255
).astype(np.uint8)
TRAIN, VALIDATION = np.arange(36), np.arange(36, 48)
RECIPE = Recipe(epochs=8, batch_size=12, learning_rate=1e-2, schedule="step", step_epochs=99.0, balance=0.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On tensors this small a second thread costs more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def labels() -> Labels:
    hierarchy = build_hierarchy(LAT_DEG_N, LON_DEG_N, PartitionConfig(0, (30, 10)))
    return Labels.of(hierarchy, LAT_DEG_N, LON_DEG_N, np.full(48, -1))


def made(labels: Labels, recipe: Recipe, output: str = "") -> TrainingLoop:
    assert labels.hierarchy is not None
    torch.manual_seed(0)
    model = GeoDecoder(geodecoder.tiny(), labels.hierarchy.class_counts)
    task = Task(recipe, labels, TRAIN, VALIDATION, identity="x")
    return TrainingLoop(model, task, Team(), Upkeep(output, log_steps=1, snapshot_steps=2, quiet=True))


def trained(labels: Labels, recipe: Recipe, output: str = "") -> Progress:
    return made(labels, recipe, output).run(ArraySource(IMAGES), ArraySource(IMAGES[:, 2:34, 2:34]))


@pytest.fixture(scope="module")
def whole(labels: Labels, tmp_path_factory: pytest.TempPathFactory) -> tuple[Progress, Path]:
    """A training to the end, of eight epochs of three steps."""
    output = tmp_path_factory.mktemp("whole")
    return trained(labels, RECIPE, str(output)), output


def validations(output: Path) -> list[dict[str, float]]:
    return [x["validation"] for x in read_journal(str(output)) if x["kind"] == "epoch"]


def test_validation_is_what_evaluation_says_however_photos_come_in_batches() -> None:
    rng, generator = np.random.default_rng(1), torch.Generator().manual_seed(1)
    lat_deg_N, lon_deg_N = np.degrees(np.arcsin(rng.uniform(-1, 1, 400))), rng.uniform(-180, 180, 400)
    hierarchy = build_hierarchy(lat_deg_N, lon_deg_N, PartitionConfig(3, (200, 40, 15)))
    labels = Labels.of(hierarchy, lat_deg_N, lon_deg_N, rng.integers(-1, 3, 400))
    assert (labels.level_NH < 0).any()  # photos in no cell are placed, too, and count
    rows = rng.permutation(400)[:50]
    logits = tuple(3 * torch.randn(50, count, generator=generator) for count in hierarchy.class_counts)
    scene_logits_BS = torch.randn(50, 3, generator=generator)
    validation = Validation(labels, rows, Team())
    for part in (slice(0, 20), slice(20, 21), slice(21, 48)):  # the last two could not be read
        validation.add(rows[part], GeoDecoderOutput(tuple(x[part] for x in logits), scene_logits_BS[part]))
    record = validation.record()

    seen = rows[:48]
    output = GeoDecoderOutput(tuple(x[:48] for x in logits), scene_logits_BS[:48])
    point_N = ReadOut(hierarchy, Reading.plain(3))(output).point_index_B.numpy()
    finest = hierarchy.levels[-1]
    place_N = finest.lat_deg_K[point_N], finest.lon_deg_K[point_N]
    measured = accuracy(np.asarray(geodesy.haversine_km(*place_N, lat_deg_N[seen], lon_deg_N[seen])))
    assert record["photos"] == 48
    assert record["median_km"] == pytest.approx(measured.median_km)
    assert [record[f"within_{km}_km"] for km in (1, 25, 200, 750, 2500)] == [*measured.share_within.values()]
    assert 0 < record["within_2500_km"] < 1
    assert record["scene_photos"] == (labels.scene_N[seen] >= 0).sum()
    assert record["level_2_photos"] == (labels.level_NH[seen, 2] >= 0).sum()
    by_temperature = [nll(hierarchy, labels, seen, output.logits, t) for t in (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)]
    assert record[LOG_LIKELIHOOD] == pytest.approx(-min(by_temperature), rel=1e-5)
    assert min(by_temperature) < by_temperature[0]  # such logits are too sure


def nll(
    hierarchy: Hierarchy, labels: Labels, rows: NDArray[np.int64], logits: tuple[Tensor, ...], temperature: float
) -> float:
    judged = Judge(hierarchy, Reading((temperature,) * 3))(
        logits, labels.level_NH[rows], labels.lat_deg_N[rows], labels.lon_deg_N[rows]
    )
    return float(np.nanmean(judged.nll_NH, axis=0).mean())


def test_without_any_photo_nothing_is_said(labels: Labels) -> None:
    assert Validation(labels, VALIDATION, Team()).record() == {}


def test_the_best_epoch_is_kept_and_not_the_last(whole: tuple[Progress, Path], labels: Labels) -> None:
    progress, output = whole
    likelihoods = [record[LOG_LIKELIHOOD] for record in validations(output)]
    best = int(np.argmax(likelihoods))
    assert best < 7, likelihoods
    assert progress.best is not None
    assert progress.best.step == 3 * (best + 1)
    assert progress.best.log_likelihood == likelihoods[best]
    assert progress.best.waited == 7 - best
    assert progress.draws == 8 * 36
    snapshots = Snapshots(str(output))
    kept, last = snapshots.load_best()["weights"], snapshots.load(24)["weights"]
    assert not all(torch.equal(x, kept[name]) for name, x in last.items())
    # Its weights are those that said so.
    assert labels.hierarchy is not None
    model = GeoDecoder(geodecoder.tiny(), labels.hierarchy.class_counts).eval()
    model.load_state_dict({name.removeprefix("model."): x for name, x in kept.items()})
    pixels = torch.from_numpy(IMAGES[VALIDATION, 2:34, 2:34]).float() / 255
    mean, std = (torch.tensor(getattr(model.config.preprocessing, f"{x}_rgb")) for x in ("mean", "std"))
    validation = Validation(labels, VALIDATION, Team())
    with torch.no_grad():
        validation.add(VALIDATION, model(((pixels - mean) / std).permute(0, 3, 1, 2)))
    assert validation.record()[LOG_LIKELIHOOD] == pytest.approx(likelihoods[best], rel=1e-4)
    assert sum(path.name.startswith("best-") for path in (output / FOLDER).iterdir()) == 1


def test_patience_ends_a_training_and_survives_a_kill(
    whole: tuple[Progress, Path], labels: Labels, tmp_path: Path
) -> None:
    """Killed while it waits, it waits no longer than if it had not been; once it is over, it is over."""
    best = whole[0].best
    assert best is not None
    recipe = dataclasses.replace(RECIPE, patience=2)
    end = best.step + 6
    with pytest.raises(KeyboardInterrupt):
        made(labels, recipe, str(tmp_path)).run(Dying(best.step + 4, IMAGES), ArraySource(IMAGES[:, 2:34, 2:34]))
    again = made(labels, recipe, str(tmp_path))
    assert again.first_step == best.step + 4 - (best.step % 2)  # a snapshot every other step and after each epoch
    progress = again.run(ArraySource(IMAGES), ArraySource(IMAGES[:, 2:34, 2:34]))
    assert progress.best == dataclasses.replace(best, waited=2)
    assert progress.draws == end * 12
    assert validations(tmp_path) == validations(whole[1])[: end // 3]
    kept, expected = (Snapshots(str(folder)).load_best()["weights"] for folder in (tmp_path, whole[1]))
    assert all(torch.equal(x, kept[name]) for name, x in expected.items())
    once_more = made(labels, recipe, str(tmp_path))
    assert once_more.run(Dying(0, IMAGES), ArraySource(IMAGES[:, 2:34, 2:34])).best == progress.best
    assert once_more.first_step == end


def test_an_epoch_is_better_by_more_than_a_rounding() -> None:
    best = Best(3, 1.0, -2.0)
    assert [best.is_beaten_by(x) for x in (-2.1, -2.0, -1.99999, -1.99)] == [False, False, False, True]
    waits = [dataclasses.replace(best, waited=epochs) for epochs in range(4)]
    assert [x.is_over(2) for x in waits] == [False, False, True, True]
    assert not any(x.is_over(0) for x in waits)
