"""What album context adds on the synthetic globe: photographers travel from town to town, a network sees single photos.

How they travel is not how `pipeline.locate.context` thinks they do: they stay in a town for some photos, then go to
another, the likelier the nearer, at the speed of a car or, far away, of an aeroplane. Photos of one place are
independent witnesses here, which those of a real album are not: the gain is at the upper end of what is to be expected.

Shapes: N photos of all journeys; T towns; K cells of the finest level.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model.geodecoder import GeoDecoder
from model.readout import BEST_CELL, Answers, Reading, ReadOut
from model.world import geodesy
from model.world.hierarchy import Hierarchy
from pipeline.locate import context
from pipeline.locate.context import ContextSettings
from training.data.dataset import ArraySource
from training.globe.globe_study import YARDSTICKS, Variant, hierarchy_of, judge, network, recipe_of, teach
from training.globe.synthetic_globe import Globe, GlobeConfig, GlobePhotos

_TRAINING, _JOURNEYS = 0, 7  # draws of photos
_TOWN_KM, _STAY_PHOTOS, _STAY_H = 150.0, 5.0, 0.5
_CAR_KM_H, _PLANE_KM_H, _AIRPORT_H = 60.0, 600.0, 4.0


@dataclass(frozen=True)
class Journeys:
    """How many albums there are and how many photos each has."""

    albums: int = 60
    photos: int = 40


@dataclass(frozen=True)
class Gain:
    """How good one way of answering is: shares right by yardstick, median distance, and whether its numbers are true.

    `confidence` is the mean probability that it gives its town, to compare with the share of towns right;
    `inside_radius` the share of photos within their radius, which is to be 0.9. `photos` were asked.
    """

    name: str
    right: dict[str, float]
    median_km: float
    confidence: float
    inside_radius: float
    photos: int
    us_per_photo: float = float("nan")


def travel(globe: Globe, journeys: Journeys, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return each photo's town and its time in seconds, album after album."""
    random = np.random.default_rng([seed, 11])
    apart_km_TT = geodesy.haversine_km(
        globe.lat_deg_T[:, None], globe.lon_deg_T[:, None], globe.lat_deg_T, globe.lon_deg_T
    )
    towns, times_s = [], []
    for _ in range(journeys.albums):
        town, hours = int(random.integers(globe.towns)), 0.0
        for _ in range(journeys.photos):
            towns.append(town)
            times_s.append(3600 * hours)
            hours += random.exponential(_STAY_H)
            if random.uniform() < 1 / _STAY_PHOTOS:
                liking_T = 1 / (1 + (apart_km_TT[town] / _TOWN_KM) ** 2)
                liking_T[town] = 0
                new = int(random.choice(globe.towns, p=liking_T / liking_T.sum()))
                far_km = apart_km_TT[town, new]
                hours += min(far_km / _CAR_KM_H, _AIRPORT_H + far_km / _PLANE_KM_H)
                town = new
    return np.array(towns), np.array(times_s)


def study(
    seed: int,
    photos_per_town: int,
    draws: int,
    journeys: Journeys,
    with_position: Sequence[float],
    settings: ContextSettings,
) -> list[Gain]:
    """Train the base network and return how good its answers are alone and, for each share of positions, in context."""
    variant, globe = Variant(), Globe(GlobeConfig(seed=seed))
    learnt_from = globe.photos(photos_per_town, _TRAINING)
    hierarchy = hierarchy_of(learnt_from, photos_per_town, variant.levels)
    torch.manual_seed(seed)
    model = GeoDecoder(network(variant, globe.config.scenes), hierarchy.class_counts)
    teach(model, hierarchy, learnt_from, recipe_of(seed, len(learnt_from), draws))
    town_N, time_s_N = travel(globe, journeys, seed)
    photos = globe.photos_of(town_N, _JOURNEYS)
    answers = answer(model, hierarchy, photos)
    finest = hierarchy.levels[-1]
    best_N = answers.top_index_BT[:, 0]
    alone = _gain(
        *("each photo alone", globe, photos, finest.lat_deg_K[best_N], finest.lon_deg_K[best_N]),
        *(answers.top_probability_BT[:, 0], answers.radius_km_B),
    )
    return [
        alone,
        *(
            in_context(globe, hierarchy, photos, time_s_N, answers, journeys, share, settings, seed)
            for share in with_position
        ),
    ]


@torch.no_grad()
def answer(model: GeoDecoder, hierarchy: Hierarchy, photos: GlobePhotos) -> Answers[NDArray[np.float64]]:
    """Return what the network says of each photo, as an engine would."""
    read_out = ReadOut(hierarchy, Reading.plain(len(hierarchy.levels), BEST_CELL))
    preprocessing = model.config.preprocessing
    mean_3, std_3 = torch.tensor(preprocessing.mean_rgb), torch.tensor(preprocessing.std_rgb)
    parts = []
    for _, pixels_BYXC in ArraySource(photos.pixels_NYXC).batches(range(len(photos)), 512):
        pixels = ((torch.from_numpy(pixels_BYXC).float() / 255 - mean_3) / std_3).permute(0, 3, 1, 2)
        parts.append(read_out(model(pixels)))
    return Answers(*(torch.cat(values).numpy() for values in zip(*parts, strict=True)))


def in_context(
    globe: Globe,
    hierarchy: Hierarchy,
    photos: GlobePhotos,
    time_s_N: NDArray[np.float64],
    answers: Answers[NDArray[np.float64]],
    journeys: Journeys,
    with_position: float,
    settings: ContextSettings,
    seed: int,
) -> Gain:
    """Return how good the answers are in their albums' context; only photos without a position of their own count."""
    has_position_N = np.random.default_rng([seed, 12]).uniform(size=len(photos)) < with_position
    finest, top = hierarchy.levels[-1], answers.top_index_BT.shape[1]
    cell_M = answers.top_index_BT.ravel()
    everything = context.Sequence(
        time_s_N=time_s_N,
        first_candidate=np.arange(len(photos) + 1) * top,
        candidate_cell_M=finest.cell_id_K[cell_M],
        candidate_lat_deg_M=finest.lat_deg_K[cell_M],
        candidate_lon_deg_M=finest.lon_deg_K[cell_M],
        candidate_probability_M=answers.top_probability_BT.ravel().astype(np.float64),
        recorded_lat_deg_N=np.where(has_position_N, photos.lat_deg_N, np.nan),
        recorded_lon_deg_N=np.where(has_position_N, photos.lon_deg_N, np.nan),
        reach_km_N=answers.radius_km_B.astype(np.float64),
        cells=len(finest.cell_id_K),
    )
    start_s = time.perf_counter()
    starts = range(0, len(photos), journeys.photos)
    albums = [context.explain(everything.part(start, start + journeys.photos), settings) for start in starts]
    took_s = time.perf_counter() - start_s
    lat_deg_N, lon_deg_N, radius_km_N, confidence_N = (
        np.concatenate([getattr(album, name) for album in albums])
        for name in ("lat_deg_N", "lon_deg_N", "radius_km_N", "confidence_N")
    )
    asked_N = ~has_position_N
    gain = _gain(
        *(f"in context, {with_position:.0%} with a position", globe, _only(photos, asked_N)),
        *(lat_deg_N[asked_N], lon_deg_N[asked_N], confidence_N[asked_N], radius_km_N[asked_N]),
    )
    return dataclasses.replace(gain, us_per_photo=1e6 * took_s / len(photos))


def table(gains: Sequence[Gain]) -> str:
    """Return the results as a table: shares right in %, the rest as `Gain` has it."""
    head = "".join(f"{name:>10}" for name in (*YARDSTICKS, "median km", "says", "in radius", "photos", "µs each"))
    lines = [f"{'':<34}{head}"]
    for gain in gains:
        right = "".join(f"{gain.right[name]:>10.1%}" for name in YARDSTICKS)
        took = "" if np.isnan(gain.us_per_photo) else f"{gain.us_per_photo:.0f}"
        lines.append(
            f"{gain.name:<34}{right}{gain.median_km:>10.1f}{gain.confidence:>10.1%}{gain.inside_radius:>10.1%}"
            f"{gain.photos:>10}{took:>10}".rstrip()
        )
    return "\n".join(lines)


def _gain(
    name: str,
    globe: Globe,
    photos: GlobePhotos,
    lat_deg_N: NDArray[np.float64],
    lon_deg_N: NDArray[np.float64],
    confidence_N: NDArray[np.float64],
    radius_km_N: NDArray[np.float64],
) -> Gain:
    distance_km_N = geodesy.haversine_km(lat_deg_N, lon_deg_N, photos.lat_deg_N, photos.lon_deg_N)
    return Gain(
        name=name,
        right=judge(globe, photos, lat_deg_N, lon_deg_N).right,
        median_km=float(np.median(distance_km_N)),
        confidence=float(confidence_N.mean()),
        inside_radius=float((distance_km_N <= radius_km_N).mean()),
        photos=len(photos),
    )


def _only(photos: GlobePhotos, wanted_N: NDArray[np.bool_]) -> GlobePhotos:
    fields = dataclasses.fields(photos)
    return GlobePhotos(**{field.name: getattr(photos, field.name)[wanted_N] for field in fields})
