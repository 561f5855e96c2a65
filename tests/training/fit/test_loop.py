"""Training of a tiny network on photos whose colour says where they are: it must learn, and go on exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model import geodecoder
from model.geodecoder import GeoDecoder
from pipeline.decode.photo import DecodeTarget
from training.data.augment import AugmentConfig
from training.data.dataset import ArraySource, PhotoStore, Pixels
from training.data.labelled import labelled_photos
from training.data.teacher import Teacher
from training.fit.journal import read_journal
from training.fit.loop import Progress, Task, TrainingLoop, Upkeep, train
from training.fit.objective import Labels, TeacherView
from training.fit.recipe import Recipe
from training.fit.snapshot import FOLDER
from training.fit.team import Team
from training.hierarchy import PartitionConfig, build_hierarchy

GENTLE = AugmentConfig(colour=0.0)
PHOTOS = 36


def prepared(archive: Path) -> tuple[PhotoStore, Labels, GeoDecoder]:
    photos = labelled_photos(str(archive / "photos.csv"))
    hierarchy = build_hierarchy(photos.lat_deg_N, photos.lon_deg_N, PartitionConfig(0, (15, 4)))
    assert hierarchy.class_counts == (3, 12)
    scenes = geodecoder.tiny().scenes
    scene_N = np.array([scenes.index(str(scene)) for scene in photos.scene_N])
    labels = Labels.of(hierarchy, photos.lat_deg_N, photos.lon_deg_N, scene_N)
    torch.manual_seed(0)
    model = GeoDecoder(geodecoder.tiny(), hierarchy.class_counts)
    return PhotoStore(photos.uri_N, DecodeTarget(32, 36)), labels, model


def trained(archive: Path, recipe: Recipe) -> tuple[GeoDecoder, Labels, Progress]:
    store, labels, model = prepared(archive)
    return model, labels, train(model, store, labels, np.arange(PHOTOS), recipe)


def best_towns(archive: Path, model: GeoDecoder) -> tuple[list[int], list[int]]:
    store, _, _ = prepared(archive)
    mean, std = (torch.tensor(getattr(model.config.preprocessing, f"{x}_rgb")) for x in ("mean", "std"))
    with torch.no_grad():
        for _, pixels_BHWC in store.batches(range(PHOTOS), PHOTOS):
            output = model(((torch.from_numpy(pixels_BHWC) / 255 - mean) / std).permute(0, 3, 1, 2))
    return output.logits[0].argmax(dim=1).tolist(), output.scene_logits_BS.argmax(dim=1).tolist()


# Colours that say where (6 places, 3 of them the coarse ones) and which scene, in memory.
PLACE_N = np.arange(60) % 6
IMAGES = np.clip(
    PLACE_N[:, None, None, None] * 40 + np.random.default_rng(0).integers(-20, 21, (60, 36, 36, 3)), 0, 255
).astype(np.uint8)
LABELS = Labels(np.stack([PLACE_N % 3, PLACE_N], axis=1), PLACE_N % 3)
RECIPE = Recipe(epochs=3, batch_size=16, learning_rate=3e-3, average=0.9, max_failed_fraction=0.5)


def loop(recipe: Recipe, output: str = "", identity: str = "x", **upkeep: int) -> TrainingLoop:
    torch.manual_seed(0)
    model = GeoDecoder(geodecoder.tiny(), (3, 6))
    task = Task(recipe, LABELS, np.arange(60), np.arange(0, 60, 7), identity=identity)
    keep = Upkeep(output, quiet=True, **{"log_steps": 1, "snapshot_steps": 5} | upkeep)
    made = TrainingLoop(model, task, Team(), keep)
    made.model = model  # type: ignore[attr-defined]
    return made


def run(made: TrainingLoop) -> dict[str, torch.Tensor]:
    made.run(ArraySource(IMAGES), ArraySource(IMAGES[:, 2:34, 2:34]))
    weights: dict[str, torch.Tensor] = made.model.state_dict()  # type: ignore[attr-defined]
    return weights


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


class Dying(ArraySource):
    """Photos in memory until, in place of one batch, the process dies."""

    def __init__(self, before_batch: int, images: NDArray[np.uint8] = IMAGES) -> None:
        super().__init__(images)
        self._left = before_batch

    def batches(self, rows: Sequence[int], batch_size: int) -> Iterator[tuple[NDArray[np.int64], Pixels]]:
        for batch in super().batches(rows, batch_size):
            self._left -= 1
            if self._left < 0:
                raise KeyboardInterrupt
            yield batch


class Lossy(ArraySource):
    """Photos in memory, some of which can't be had."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__(IMAGES)
        self._bad = bad

    def batches(self, rows: Sequence[int], batch_size: int) -> Iterator[tuple[NDArray[np.int64], Pixels]]:
        for row_B, pixels_BHWC in super().batches(rows, batch_size):
            good_B = np.array([row not in self._bad for row in row_B.tolist()])
            yield row_B[good_B], pixels_BHWC[good_B]


def test_learns_where_colours_are_and_which_scene_they_show(archive: Path) -> None:
    model, labels, progress = trained(archive, Recipe(epochs=30, batch_size=12, learning_rate=3e-3, augment=GENTLE))
    assert not model.training
    assert progress.draws == 30 * PHOTOS
    assert progress.epochs == 30
    towns, scenes = best_towns(archive, model)
    assert towns == labels.level_NH[:, 0].tolist()
    assert scenes == labels.scene_N.tolist()


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(optimizer="sgd", learning_rate=0.03, weight_decay=1e-4, schedule="step", step_epochs=20),
        Recipe(smoothing_km=500.0, learning_rate=3e-3, level_weights=(2.0, 1.0)),
        Recipe(routing="labelled", learning_rate=3e-3, average=0.9, balance=0.0),
    ],
)
def test_other_recipes_learn_too(archive: Path, recipe: Recipe) -> None:
    model, labels, _ = trained(archive, replace(recipe, epochs=30, batch_size=12, augment=GENTLE))
    assert best_towns(archive, model)[0] == labels.level_NH[:, 0].tolist()


def test_the_same_seed_gives_the_same_network() -> None:
    one, other = run(loop(RECIPE)), run(loop(RECIPE))
    assert furthest(one, other) == 0
    assert furthest(one, run(loop(replace(RECIPE, seed=1)))) > 1e-3


def test_micro_batches_change_nothing() -> None:
    recipe = replace(RECIPE, average=0.0, epochs=1)
    assert furthest(run(loop(recipe)), run(loop(replace(recipe, accumulate=5)))) < 1e-4


@pytest.mark.parametrize("dies_before", [3, 7, 11])
def test_goes_on_after_a_crash_exactly_where_it_was(tmp_path: Path, dies_before: int) -> None:
    whole = run(loop(RECIPE, str(tmp_path / "whole")))
    broken = str(tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        loop(RECIPE, broken).run(Dying(dies_before), ArraySource(IMAGES[:, 2:34, 2:34]))
    again = loop(RECIPE, broken)
    # Epochs of 60 draws end within steps 4, 8 and 12; a snapshot then, and every five steps.
    assert again.first_step == max([0, *(step for step in (4, 5, 8, 10) if step <= dies_before)])
    assert furthest(whole, run(again)) == 0
    one, other = (
        [{k: v for k, v in record.items() if k != "samples_per_s"} for record in read_journal(str(tmp_path / name))]
        for name in ("whole", "broken")
    )
    assert one == other
    assert [record["step"] for record in one if record["kind"] == "step"] == list(range(1, 13))


def test_a_finished_training_has_nothing_left_to_do(tmp_path: Path) -> None:
    first = run(loop(RECIPE, str(tmp_path)))
    again = loop(RECIPE, str(tmp_path))
    assert again.first_step == 12
    assert furthest(first, run(again)) == 0


def test_snapshots_of_another_training_are_refused(tmp_path: Path) -> None:
    run(loop(RECIPE, str(tmp_path)))
    with pytest.raises(ValueError, match="snapshots of another training"):
        loop(RECIPE, str(tmp_path), identity="y")


def test_older_snapshots_are_removed(tmp_path: Path) -> None:
    run(loop(RECIPE, str(tmp_path), keep_snapshots=3))
    names = sorted(path.name for path in (tmp_path / FOLDER).iterdir())
    assert names == [f"step-{step:09d}.pt" for step in (8, 10, 12)]


def test_the_journal_says_what_happened(tmp_path: Path) -> None:
    run(loop(RECIPE, str(tmp_path), log_steps=2))
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    epochs = [record for record in records if record["kind"] == "epoch"]
    assert [(record["step"], record["draws"]) for record in epochs] == [(4, 64), (8, 64), (12, 52)]
    assert sum(record["draws"] for record in epochs) == 180
    assert epochs[-1]["loss"]["levels"] < epochs[0]["loss"]["levels"]
    validation = epochs[-1]["validation"]
    assert validation["level_0_photos"] == validation["scene_photos"] == 9
    assert 0 <= validation["level_1_accuracy"] <= 1
    assert list((tmp_path / "tensorboard").iterdir())


def test_photos_that_cannot_be_had_are_left_out_and_counted(tmp_path: Path) -> None:
    made = loop(replace(RECIPE, balance=0.0), str(tmp_path))
    made.run(Lossy({0, 1, 2, 3, 4}), ArraySource(IMAGES[:, 2:34, 2:34]))
    epochs = [record for record in read_journal(str(tmp_path)) if record["kind"] == "epoch"]
    assert sum(record["failed"] for record in epochs) == 15  # each once an epoch
    assert sum(record["draws"] for record in epochs) == 180


def test_a_batch_without_any_photo_moves_nothing() -> None:
    """All of an epoch's photos fail, which is allowed here: the weights only decay."""
    made = loop(replace(RECIPE, epochs=1, weight_decay=0.0, average=0.0, max_failed_fraction=2.0))
    before = {name: x.clone() for name, x in made.model.state_dict().items()}  # type: ignore[attr-defined]
    made.run(Lossy(set(range(60))), ArraySource(IMAGES[:, 2:34, 2:34]))
    assert furthest(before, made.model.state_dict()) == 0  # type: ignore[attr-defined]


def test_too_many_bad_photos_in_an_epoch_end_training() -> None:
    made = loop(replace(RECIPE, max_failed_fraction=0.05, balance=0.0))
    with pytest.raises(ValueError, match=r"photos of this epoch's 60 draws could not be .* more than the 3 allowed"):
        made.run(Lossy({0, 1, 2, 3, 4}), ArraySource(IMAGES[:, 2:34, 2:34]))


def test_a_frozen_backbone_does_not_move() -> None:
    made = loop(replace(RECIPE, backbone_rate=0.0, average=0.0))
    before = {name: x.clone() for name, x in made.model.state_dict().items()}  # type: ignore[attr-defined]
    after = run(made)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not any(name.startswith("backbone") for name in moved)


def test_a_slower_backbone_moves_less() -> None:
    def way(rate: float) -> float:
        made = loop(replace(RECIPE, backbone_rate=rate, average=0.0, optimizer="sgd", learning_rate=0.01, epochs=1))
        before = {name: x.clone() for name, x in made.model.state_dict().items()}  # type: ignore[attr-defined]
        after = run(made)
        return sum(float((after[n] - before[n]).norm()) for n in before if n.startswith("backbone"))

    assert 0 < way(0.1) < 0.3 * way(1.0)


def test_no_gradient_is_cut_where_the_limit_is_0() -> None:
    recipe = replace(RECIPE, epochs=1, average=0.0, optimizer="sgd", learning_rate=1e-3)
    uncut, cut, hardly_cut = (run(loop(replace(recipe, most_gradient=norm))) for norm in (0.0, 1e-3, 1e6))
    assert furthest(uncut, hardly_cut) == 0
    assert furthest(uncut, cut) > 1e-5


def test_bf16_follows_fp32() -> None:
    exact = loop(replace(RECIPE, average=0.0))
    rounded = loop(replace(RECIPE, average=0.0, precision="bf16"))
    one, other = (
        x.run(ArraySource(IMAGES), ArraySource(IMAGES[:, 2:34, 2:34])).losses["levels"] for x in (exact, rounded)
    )
    assert one != other
    assert one == pytest.approx(other, rel=0.05)


def test_distillation_brings_the_teachers_features_closer(archive: Path, teacher_file: Path) -> None:
    teacher = Teacher(teacher_file, threads=1)
    assert (teacher.size_px, teacher.width) == (16, 6)
    recipe = Recipe(epochs=12, batch_size=12, learning_rate=3e-3, distillation_weight=1.0, augment=GENTLE)
    store, labels, model = prepared(archive)
    view = TeacherView.fitted(teacher_file, store, np.arange(PHOTOS))
    progress = train(model, store, labels, np.arange(PHOTOS), recipe, view)
    assert set(progress.losses) == {"levels", "scene", "teacher"}
    assert progress.losses["teacher"] < 0.7  # 1 is what saying the mean costs


def test_photos_without_labels_are_harmless(archive: Path) -> None:
    store, labels, model = prepared(archive)
    unknown = Labels(np.full_like(labels.level_NH, -1), np.full_like(labels.scene_N, -1))
    progress = train(model, store, unknown, np.arange(PHOTOS), Recipe(epochs=1, batch_size=12))
    assert progress.losses == {"levels": 0.0, "scene": 0.0}


def test_divergence_is_an_error_that_names_the_learning_rate(archive: Path) -> None:
    store, labels, model = prepared(archive)
    with torch.no_grad():
        model.classifiers[0].weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"diverged.*learning rate 0.5"):
        train(model, store, labels, np.arange(PHOTOS), Recipe(epochs=1, batch_size=12, learning_rate=0.5))


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"learning_rate": 0.0},
        {"accumulate": 0},
        {"label_smoothing": 1.0},
        {"average": 1.0},
        {"backbone_rate": -1.0},
        {"step_factor": 0.0},
        {"level_weights": (0.0, 0.0)},
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"positive|negative|at least"):
        Recipe(**values)  # type: ignore[arg-type]


def test_level_weights_must_fit_the_levels() -> None:
    with pytest.raises(ValueError, match="give 2 level_weights"):
        loop(replace(RECIPE, level_weights=(1.0, 1.0, 1.0)))


def test_learning_rates_go_their_ways() -> None:
    cosine = Recipe(warm_up_share=0.1)
    assert [cosine.rate_factor(x) for x in (0.0, 0.1, 0.55, 1.0)] == pytest.approx([0.02, 1.0, 0.5, 0.0])
    steps = Recipe(schedule="step", epochs=10, step_epochs=4, step_factor=0.5, warm_up_share=0.0)
    assert [steps.rate_factor(x / 10) for x in (0, 3.9, 4, 7.9, 8)] == [1.0, 1.0, 0.5, 0.5, 0.25]


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "teacher.onnx").write_text("nothing")
    with pytest.raises(ValueError, match=r"teacher\.onnx is not an ONNX network"):
        Teacher(tmp_path / "teacher.onnx")
