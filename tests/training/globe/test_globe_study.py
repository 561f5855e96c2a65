"""The debugging recipe for new networks and trainers, on a world so small that it takes seconds; the study's parts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from model.geodecoder import GeoDecoder
from model.world.hierarchy import Hierarchy
from training.data.augment import AugmentConfig
from training.fit.recipe import Recipe
from training.globe import globe_study
from training.globe.globe_study import FINEST, PRODUCT, Variant
from training.globe.synthetic_globe import Globe, GlobeConfig, GlobePhotos
from training.hierarchy import PartitionConfig, build_hierarchy

WORLD = GlobeConfig(seed=1, climates=3, countries=2, towns=2, signs=3, glyphs=3, wrong_scene=0.02)
SMALLEST = Variant(independent_layers=1, dependent_layers=1)
STILL = AugmentConfig(least_area=1.0, most_stretch=1.0, mirror=False, colour=0.0)


def prepared(photos_per_town: int) -> tuple[Globe, GlobePhotos, Hierarchy, GeoDecoder]:
    globe = Globe(WORLD)
    photos = globe.photos(photos_per_town, draw=0)
    thresholds = PartitionConfig(0, (4 * photos_per_town, photos_per_town))
    hierarchy = build_hierarchy(photos.lat_deg_N, photos.lon_deg_N, thresholds)
    torch.manual_seed(0)
    network = globe_study.network(SMALLEST, WORLD.scenes)
    return globe, photos, hierarchy, GeoDecoder(network, hierarchy.class_counts)


def test_an_untrained_network_knows_nothing_at_any_level() -> None:
    globe, photos, hierarchy, model = prepared(10)
    assert hierarchy.class_counts[-1] == globe.towns
    never = Recipe(epochs=1, batch_size=120, learning_rate=1e-9, label_smoothing=0.0, augment=STILL, balance=0.0)
    losses = globe_study.teach(model, hierarchy, photos, never)
    chance = np.mean([math.log(count) for count in hierarchy.class_counts])
    assert losses["levels"] == pytest.approx(chance, abs=0.35)
    assert losses["scene"] == pytest.approx(0.5 * math.log(3), abs=0.25)


def test_one_batch_is_learnt_by_heart() -> None:
    globe, photos, hierarchy, model = prepared(2)
    recipe = Recipe(
        epochs=80, batch_size=len(photos), learning_rate=5e-3, label_smoothing=0.0, augment=STILL, balance=0.0
    )
    losses = globe_study.teach(model, hierarchy, photos, recipe)
    assert sum(losses.values()) < 0.1
    scene, answers = globe_study.measure(model, hierarchy, globe, photos)
    assert answers[PRODUCT].right["town"] == answers[FINEST].right["town"] == scene == 1


def test_a_short_training_comes_near_the_optimum_on_new_photos() -> None:
    globe, photos, hierarchy, model = prepared(30)
    recipe = Recipe(epochs=15, batch_size=32, learning_rate=5e-3, augment=STILL, balance=0.0)
    globe_study.teach(model, hierarchy, photos, recipe)
    test = globe.photos(100, draw=1)
    scene, answers = globe_study.measure(model, hierarchy, globe, test)
    for name, cell_T in globe_study.yardsticks(globe).items():
        optimum, chance = globe.optimum(cell_T), 1 / (cell_T.max() + 1)
        right = answers[PRODUCT].right[name]
        assert right > chance + 0.9 * (optimum - chance)
        assert right < optimum + 4 * math.sqrt(optimum * (1 - optimum) / len(test))
    assert 0.9 * globe.optimum_scene() < scene < 1


@pytest.mark.parametrize("levels", [1, 3, 7])
def test_hierarchies_of_all_depths_have_the_same_finest_level(levels: int) -> None:
    photos = Globe(GlobeConfig()).photos(6, draw=0)
    hierarchy, seven = (globe_study.hierarchy_of(photos, 6, count) for count in (levels, 7))
    assert len(hierarchy.levels) == levels
    assert np.array_equal(hierarchy.levels[-1].cell_id_K, seven.levels[-1].cell_id_K)
    assert 48 <= hierarchy.class_counts[-1] <= 50  # a border of cells may cut a town


def test_the_answer_that_knows_the_town_is_all_right_and_the_antipode_all_wrong() -> None:
    globe = Globe(WORLD)
    photos = globe.photos(3, draw=0)
    known = globe_study.judge(globe, photos, photos.lat_deg_N, photos.lon_deg_N)
    assert known.right == {"climate": 1.0, "country": 1.0, "town": 1.0}
    assert known.mean_km == 0
    wrong = globe_study.judge(globe, photos, -photos.lat_deg_N, photos.lon_deg_N - 180)
    assert wrong.right["town"] == 0
    assert wrong.mean_km > 19_000
