"""Training of a tiny network on photos whose colour says where they are: it must learn, repeatably."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model import geodecoder
from model.geodecoder import GeoDecoder
from pipeline.decode import DecodeTarget
from training import evaluation
from training.augment import AugmentConfig
from training.dataset import PhotoStore
from training.labelled import LabelledPhotos, labelled_photos
from training.loop import Labels, LoopConfig, Progress, train
from training.partition import PartitionConfig, build_hierarchy
from training.teacher import Teacher

GENTLE = AugmentConfig(colour=0.0)


def prepared(archive: Path) -> tuple[LabelledPhotos, PhotoStore, Labels, GeoDecoder]:
    photos = labelled_photos(str(archive / "photos.csv"))
    hierarchy = build_hierarchy(photos.lat_deg_N, photos.lon_deg_N, PartitionConfig(0, (15, 4)))
    assert hierarchy.class_counts == (3, 12)
    scenes = geodecoder.tiny().scenes
    labels = Labels(
        hierarchy.label_NH(photos.lat_deg_N, photos.lon_deg_N),
        np.array([scenes.index(str(scene)) for scene in photos.scene_N]),
    )
    torch.manual_seed(0)
    model = GeoDecoder(geodecoder.tiny(), hierarchy.class_counts)
    return photos, PhotoStore(photos.uri_N, DecodeTarget(32, 36)), labels, model


def trained(archive: Path, config: LoopConfig, teacher: Teacher | None = None) -> tuple[GeoDecoder, Labels, Progress]:
    photos, store, labels, model = prepared(archive)
    progress = train(model, store, labels, np.arange(len(photos)), config, teacher)
    return model, labels, progress


def best_towns(archive: Path, model: GeoDecoder) -> tuple[list[int], list[int]]:
    photos, store, _, _ = prepared(archive)
    mean, std = (torch.tensor(getattr(model.config.preprocessing, f"{x}_rgb")) for x in ("mean", "std"))
    with torch.no_grad():
        for _, pixels_BHWC in store.batches(range(len(photos)), len(photos)):
            output = model(((torch.from_numpy(pixels_BHWC) / 255 - mean) / std).permute(0, 3, 1, 2))
    return output.logits[0].argmax(dim=1).tolist(), output.scene_logits_BS.argmax(dim=1).tolist()


def test_learns_where_colours_are_and_which_scene_they_show(archive: Path) -> None:
    model, labels, progress = trained(archive, LoopConfig(epochs=30, batch_size=12, learning_rate=3e-3, augment=GENTLE))
    assert not model.training
    assert progress.draws == 30 * 36
    assert progress.epochs == 30
    towns, scenes = best_towns(archive, model)
    assert towns == labels.level_NH[:, 0].tolist()
    assert scenes == labels.scene_N.tolist()


def test_the_same_seed_gives_the_same_network(archive: Path) -> None:
    config = LoopConfig(epochs=2, batch_size=12)
    one, other = (trained(archive, config)[0].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    different = trained(archive, LoopConfig(epochs=2, batch_size=12, seed=1))[0].state_dict()
    assert any(not torch.equal(one[name], different[name]) for name in one)


def test_distillation_brings_the_teachers_features_closer(archive: Path, teacher_file: Path) -> None:
    teacher = Teacher(teacher_file, threads=1)
    assert (teacher.size_px, teacher.width) == (16, 6)
    config = LoopConfig(epochs=12, batch_size=12, learning_rate=3e-3, distillation_weight=1.0, augment=GENTLE)
    _, _, progress = trained(archive, config, teacher)
    assert set(progress.losses) == {"levels", "scene", "teacher"}
    assert progress.losses["teacher"] < 0.7  # 1 is what saying the mean costs


def test_photos_without_labels_are_harmless(archive: Path) -> None:
    photos, store, labels, model = prepared(archive)
    unknown = Labels(np.full_like(labels.level_NH, -1), np.full_like(labels.scene_N, -1))
    progress = train(model, store, unknown, np.arange(len(photos)), LoopConfig(epochs=1, batch_size=12))
    assert progress.losses == {"levels": 0.0, "scene": 0.0}


def test_minutes_end_training(archive: Path) -> None:
    progress = trained(archive, LoopConfig(epochs=100_000, minutes=0.03, batch_size=12))[2]
    assert 0 < progress.draws < 100_000
    assert progress.minutes < 0.5


def test_divergence_is_an_error_that_names_the_learning_rate(archive: Path) -> None:
    photos, store, labels, model = prepared(archive)
    with torch.no_grad():
        model.classifiers[0].weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"diverged.*learning rate 0.5"):
        train(model, store, labels, np.arange(len(photos)), LoopConfig(epochs=1, batch_size=12, learning_rate=0.5))


@pytest.mark.parametrize("values", [{"epochs": 0}, {"batch_size": 1}, {"learning_rate": 0.0}, {"minutes": 0.0}])
def test_settings_that_make_no_sense_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be positive|at least 1 epoch"):
        LoopConfig(**values)  # type: ignore[arg-type]


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "teacher.onnx").write_text("nothing")
    with pytest.raises(ValueError, match=r"teacher\.onnx is not an ONNX network"):
        Teacher(tmp_path / "teacher.onnx")


def test_temperature_is_high_for_a_network_that_is_surely_wrong_and_one_without_labels(archive: Path) -> None:
    photos, store, labels, model = prepared(archive)
    model.eval()
    with torch.no_grad():
        model.classifiers[0].bias.copy_(torch.tensor([30.0, 0.0, 0.0]))
    rows = list(range(len(photos)))
    assert evaluation.fit_temperature(model, store, labels.level_NH, rows) > 5
    assert evaluation.fit_temperature(model, store, np.full_like(labels.level_NH, -1), rows) == 1
    assert evaluation.fit_temperature(model, store, labels.level_NH, []) == 1


def test_the_teachers_nearest_neighbour_of_a_photo_is_in_its_town(archive: Path, teacher_file: Path) -> None:
    _, store, labels, _ = prepared(archive)
    teacher = Teacher(teacher_file, threads=1)
    asked, known = list(range(0, 36, 3)), [row for row in range(36) if row % 3]
    found_N, features_ND = evaluation.teacher_features(teacher, store, asked)
    known_M, known_MD = evaluation.teacher_features(teacher, store, known)
    assert found_N.tolist() == asked
    assert known_M.tolist() == known
    nearest_N = known_M[evaluation.nearest_neighbour(features_ND, known_MD)]
    assert labels.level_NH[nearest_N, 0].tolist() == labels.level_NH[asked, 0].tolist()


def test_the_commonest_cell_is_where_most_photos_are() -> None:
    hierarchy = build_hierarchy([10.0] * 3 + [-30.0] * 9, [20.0] * 3 + [100.0] * 9, PartitionConfig(0, (20, 1)))
    assert evaluation.commonest_cell(hierarchy) == pytest.approx((-30.0, 100.0))
