"""The synthetic globe: its optimum is right, its pictures hold all that the optimum knows, its archive can be read."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from model.geodecoder import SCENES_16
from model.world import geodesy
from pipeline import storage
from pipeline.decode.photo import DecodeTarget, decode_photo
from training.data.labelled import labelled_photos
from training.globe.synthetic_globe import SIZE_PX, Globe, GlobeConfig, write_archive

SMALL = GlobeConfig(
    seed=5,
    climates=2,
    countries=2,
    towns=2,
    signs=3,
    glyphs=2,
    scenes=("indoor", "natural"),
    wrong_scene=0.2,
    wrong_colour=0.15,
    wrong_sign=0.1,
    wrong_glyph=0.25,
)
NOISELESS = GlobeConfig(wrong_scene=0, wrong_colour=0, wrong_sign=0, wrong_glyph=0)


def shown_with(globe: Globe, town: int, shown: tuple[int, ...]) -> float:
    """The probability of what a photo of the town shows: scene by scene, cue by cue, from the globe's description."""
    config = globe.config
    total = 0.0
    for scene in range(len(config.scenes)):
        meant = [scene, *(int(book[scene, globe.symbol_T3[town, cue]]) for cue, book in enumerate(globe.code_books))]
        wrong = [config.wrong_scene, config.wrong_colour, config.wrong_sign, config.wrong_glyph]
        counts = [len(config.scenes), config.climates, config.signs, config.glyphs]
        ways = [
            1 - w if seen == right else w / (n - 1)
            for seen, right, w, n in zip(shown, meant, wrong, counts, strict=True)
        ]
        total += math.prod(ways) / len(config.scenes)
    return total


def test_posterior_and_optima_are_those_of_a_plain_count() -> None:
    globe = Globe(SMALL)
    everything = list(itertools.product(range(2), range(2), range(3), range(2)))
    posterior = globe.posterior_NT(np.array(everything))
    best = {"town": 0.0, "country": 0.0, "climate": 0.0, "country by town": 0.0}
    for shown, found_T in zip(everything, posterior, strict=True):
        mass = [shown_with(globe, town, shown) for town in range(8)]
        assert found_T == pytest.approx([m / sum(mass) for m in mass])
        best["town"] += max(mass) / 8
        best["country"] += max(mass[i] + mass[i + 1] for i in (0, 2, 4, 6)) / 8
        best["climate"] += max(sum(mass[:4]), sum(mass[4:])) / 8
        first = mass.index(max(mass)) // 2 * 2
        best["country by town"] += (mass[first] + mass[first + 1]) / 8
    assert globe.optimum(np.arange(8)) == pytest.approx(best["town"])
    assert globe.optimum(globe.country_T) == pytest.approx(best["country"])
    assert globe.optimum(globe.climate_T) == pytest.approx(best["climate"])
    assert globe.optimum_by_town(globe.country_T) == pytest.approx(best["country by town"])
    assert best["country by town"] <= best["country"] < best["climate"]


def test_with_a_long_tail_bayes_rule_weighs_towns_by_their_shares() -> None:
    globe = Globe(dataclasses.replace(SMALL, tail=1.0))
    assert sorted(globe.share_T, reverse=True) == pytest.approx(
        [1 / rank / sum(1 / r for r in range(1, 9)) for rank in range(1, 9)]
    )
    everything = list(itertools.product(range(2), range(2), range(3), range(2)))
    posterior = globe.posterior_NT(np.array(everything))
    best = {"town": 0.0, "country": 0.0, "country by town": 0.0}
    for shown, found_T in zip(everything, posterior, strict=True):
        mass = [share * shown_with(globe, town, shown) for town, share in enumerate(globe.share_T)]
        assert found_T == pytest.approx([m / sum(mass) for m in mass])
        best["town"] += max(mass)
        best["country"] += max(mass[i] + mass[i + 1] for i in (0, 2, 4, 6))
        first = mass.index(max(mass)) // 2 * 2
        best["country by town"] += mass[first] + mass[first + 1]
    assert globe.optimum(np.arange(8)) == pytest.approx(best["town"])
    assert globe.optimum(globe.country_T) == pytest.approx(best["country"])
    assert globe.optimum_by_town(globe.country_T) == pytest.approx(best["country by town"])


def test_photos_by_share_follow_the_towns_shares_and_a_world_without_a_tail_is_as_it_was() -> None:
    globe, even = (Globe(GlobeConfig(seed=3, tail=tail)) for tail in (1.0, 0.0))
    assert np.array_equal(globe.likelihood_TO, even.likelihood_TO)
    assert even.share_T == pytest.approx(np.full(48, 1 / 48))
    photos, other = globe.photos_by_share(4000, draw=0), globe.photos_by_share(4000, draw=1)
    found_T = np.bincount(photos.town_N, minlength=48) / 4000
    assert np.abs(found_T - globe.share_T).max() < 4 * math.sqrt(globe.share_T.max() / 4000)
    assert not np.array_equal(photos.town_N, other.town_N)


@pytest.mark.parametrize("seed", [0, 1])
def test_bayes_rule_is_as_often_right_on_photos_as_computed(seed: int) -> None:
    globe = Globe(GlobeConfig(seed=seed))
    photos = globe.photos(60, draw=3)
    posterior = globe.posterior_NT(photos.symbol_N4)
    for cell_T in (globe.climate_T, globe.country_T, np.arange(globe.towns)):
        mass = np.stack([posterior[:, cell_T == cell].sum(axis=1) for cell in range(cell_T.max() + 1)], axis=1)
        right = (mass.argmax(axis=1) == cell_T[photos.town_N]).mean()
        optimum = globe.optimum(cell_T)
        assert abs(right - optimum) < 4 * math.sqrt(optimum * (1 - optimum) / len(photos))
        by_town = (cell_T[posterior.argmax(axis=1)] == cell_T[photos.town_N]).mean()
        expected = globe.optimum_by_town(cell_T)
        assert abs(by_town - expected) < 4 * math.sqrt(expected * (1 - expected) / len(photos))
        assert expected <= optimum + 1e-12
        assert 1.5 / len(mass[0]) < optimum < 0.9


def test_without_noise_everything_can_be_told_and_one_cue_less_cannot() -> None:
    globe = Globe(NOISELESS)
    assert globe.optimum(np.arange(globe.towns)) == pytest.approx(1)
    assert globe.optimum_scene() == pytest.approx(1)
    seen_TO = globe.likelihood_TO.reshape(globe.towns, *globe.shape_O)
    for hidden in (2, 3, 4):  # colour, sign, glyph: the town can't be told without any of them
        without = seen_TO.sum(axis=hidden).reshape(globe.towns, -1)
        assert without.max(axis=0).sum() / globe.towns < 0.7


def test_scenes_show_the_same_place_differently() -> None:
    globe = Globe(NOISELESS)
    photos = globe.photos(30, draw=0)
    for town in range(globe.towns):
        shown = {
            scene: np.unique(photos.symbol_N4[(photos.town_N == town) & (photos.scene_N == scene)], axis=0)
            for scene in range(3)
        }
        assert [len(rows) for rows in shown.values()] == [1, 1, 1]
    for book in globe.code_books:
        assert len(np.unique(book, axis=0)) == 3


@pytest.mark.parametrize(
    "config",
    [
        GlobeConfig(),
        SMALL,
        GlobeConfig(seed=1, pixel_noise=40),
        GlobeConfig(seed=2, climates=12, countries=4, towns=8, signs=8, glyphs=15, scenes=SCENES_16),
    ],
)
def test_symbols_can_be_read_from_the_pixels_without_an_error(config: GlobeConfig) -> None:
    globe = Globe(config)
    photos = globe.photos(max(1, 600 // globe.towns), draw=0)
    assert photos.pixels_NYXC.shape == (len(photos), SIZE_PX, SIZE_PX, 3)
    assert np.array_equal(globe.read_symbols(photos.pixels_NYXC), photos.symbol_N4)


def test_photos_repeat_for_a_seed_and_lie_around_their_towns() -> None:
    globe = Globe(GlobeConfig(seed=4))
    one, again, other = (g.photos(5, draw) for g, draw in ((globe, 0), (Globe(GlobeConfig(seed=4)), 0), (globe, 1)))
    assert np.array_equal(one.pixels_NYXC, again.pixels_NYXC)
    assert np.array_equal(one.lat_deg_N, again.lat_deg_N)
    assert not np.array_equal(one.symbol_N4, other.symbol_N4)
    assert not np.array_equal(one.lat_deg_N, other.lat_deg_N)
    here = one.lat_deg_N, one.lon_deg_N
    away_km = geodesy.haversine_km(*here, globe.lat_deg_T[one.town_N], globe.lon_deg_T[one.town_N])
    assert away_km.max() <= globe.config.jitter_km
    assert np.array_equal(globe.nearest_town_N(*here), one.town_N)
    assert np.bincount(one.town_N).tolist() == [5] * globe.towns


def test_the_world_is_compact_countries_in_compact_climates() -> None:
    globe = Globe(GlobeConfig(seed=7))
    apart_km = geodesy.haversine_km(
        globe.lat_deg_T[:, None], globe.lon_deg_T[:, None], globe.lat_deg_T, globe.lon_deg_T
    )
    same_country = globe.country_T[:, None] == globe.country_T
    same_climate = globe.climate_T[:, None] == globe.climate_T
    assert apart_km[same_country].max() <= 240
    assert apart_km[same_climate].max() <= 2040
    assert apart_km[~same_climate].min() > 1000
    assert apart_km[~np.eye(globe.towns, dtype=bool)].min() > 10 * globe.config.jitter_km


def test_the_archive_holds_the_pictures_pixel_by_pixel(tmp_path: Path) -> None:
    globe = Globe(SMALL)
    manifest = write_archive(globe, str(tmp_path), {"train": 3, "validation": 1, "test": 2})
    read = labelled_photos(manifest)
    assert len(read) == 6 * globe.towns
    truth = [globe.photos(count, draw) for draw, count in enumerate((3, 1, 2))]
    pixels = np.concatenate([photos.pixels_NYXC for photos in truth])
    for row, uri in enumerate(read.uri_N):
        decoded = decode_photo(storage.read_bytes(uri), DecodeTarget(SIZE_PX, SIZE_PX)).pixels_HWC
        assert np.array_equal(decoded, pixels[row])
    assert read.lat_deg_N == pytest.approx(np.concatenate([photos.lat_deg_N for photos in truth]))
    assert read.lon_deg_N == pytest.approx(np.concatenate([photos.lon_deg_N for photos in truth]))
    scene_N = np.concatenate([photos.scene_N for photos in truth])
    assert list(read.scene_N) == [SMALL.scenes[scene] for scene in scene_N]
    assert list(read.part_N) == ["train"] * 24 + ["validation"] * 8 + ["test"] * 16


@pytest.mark.parametrize(
    "values",
    [
        {"climates": 1},
        {"climates": 13},
        {"signs": 9},
        {"countries": 9},
        {"towns": 0},
        {"wrong_sign": 0.5},
        {"wrong_scene": -0.1},
        {"pixel_noise": 41},
        {"tail": -1},
        {"scenes": ()},
    ],
)
def test_worlds_that_make_no_sense_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"from \d+ to|glyph each|one half|pixel_noise|tail must"):
        GlobeConfig(**values)  # type: ignore[arg-type]
