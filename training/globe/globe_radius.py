"""Whether the radius holds the nine photos of ten that it is fitted to hold: on the synthetic globe, on fresh photos.

There are as many of these as one likes, drawn as those that the reading is fitted to: what split-conformal radii
promise can be looked at, and not only believed.

Shapes: N photos, H levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model.geodecoder import GeoDecoder
from model.readout import RADIUS_PROBABILITY, Reading, ReadOut
from model.world import geodesy
from model.world.hierarchy import Hierarchy
from model.world.prior import Prior
from training.data.dataset import ArraySource
from training.evaluate.evaluation import Truth, fit_reading, network_outputs
from training.globe import globe_study
from training.globe.globe_study import Variant
from training.globe.synthetic_globe import Globe, GlobeConfig, GlobePhotos

_TRAINING, _FITTING, _FRESH = 0, 2, 3  # draws of photos; 1 is the ablation's test


@dataclass(frozen=True)
class Held:
    """How many fresh photos the radius of one network held, its median, and what was fitted.

    `gain_low` is the lower end of what the network adds to the prior, in nats a photo.
    """

    seed: int
    fitted_on: int
    fresh: int
    held: float
    median_km: float
    radius_mass: float
    gain_low: float

    @property
    def sampling(self) -> float:
        """The standard deviation of `held` that chance alone makes, both in the photos fitted to and in the fresh ones.

        Fitted to n photos, the true share held is Beta(k, n + 1 - k) with k = ⌈0.9 (n + 1)⌉, and that of m fresh photos
        is binomial around it. Source: Vovk, Conditional validity of inductive conformal predictors, 2012, section 3.
        """
        rank = math.ceil(RADIUS_PROBABILITY * (self.fitted_on + 1))
        mean = rank / (self.fitted_on + 1)
        beta = mean * (1 - mean) / (self.fitted_on + 2)
        return math.sqrt(beta + RADIUS_PROBABILITY * (1 - RADIUS_PROBABILITY) / self.fresh)


def study(seed: int, photos_per_town: int, draws: int, fitting_per_town: int, fresh_per_town: int) -> Held:
    """Train a network on one globe, fit its reading to photos that it has not seen, and look at fresh ones."""
    globe = Globe(GlobeConfig(seed=seed))
    photos, fitting, fresh = (
        globe.photos(count, draw)
        for count, draw in ((photos_per_town, _TRAINING), (fitting_per_town, _FITTING), (fresh_per_town, _FRESH))
    )
    hierarchy = globe_study.hierarchy_of(photos, photos_per_town, levels=3)
    variant = Variant(levels=3)
    torch.manual_seed(seed)
    model = GeoDecoder(globe_study.network(variant, globe.config.scenes), hierarchy.class_counts)
    globe_study.teach(model, hierarchy, photos, globe_study.recipe_of(seed, len(photos), draws))
    prior = Prior.of(photos.lat_deg_N, photos.lon_deg_N)
    label_NH = hierarchy.label_NH(fitting.lat_deg_N, fitting.lon_deg_N)
    known = Truth(fitting.lat_deg_N, fitting.lon_deg_N, label_NH)
    each = np.arange(len(fitting))  # drawn one by one: no photo tells of another
    plain = Reading.plain(len(hierarchy.levels))
    fit = fit_reading(model, ArraySource(fitting.pixels_NYXC), known, each, each.tolist(), hierarchy, plain, prior)
    error_km_N, radius_km_N = _answers(model, hierarchy, fit.reading, fresh)
    return Held(
        seed,
        len(fitting),
        len(fresh),
        float((error_km_N <= radius_km_N).mean()),
        float(np.median(radius_km_N)),
        fit.reading.radius_mass,
        fit.gain_low,
    )


def _answers(
    model: GeoDecoder, hierarchy: Hierarchy, reading: Reading, photos: GlobePhotos
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """error_km_N and radius_km_N."""
    read_out, finest = ReadOut(hierarchy, reading), hierarchy.levels[-1]
    errors, radii = [], []
    for row_B, _, output in network_outputs(model, ArraySource(photos.pixels_NYXC), range(len(photos))):
        answers = read_out(output)
        point_B = answers.point_index_B.numpy()
        place_B = finest.lat_deg_K[point_B], finest.lon_deg_K[point_B]
        errors.append(geodesy.haversine_km(*place_B, photos.lat_deg_N[row_B], photos.lon_deg_N[row_B]))
        radii.append(answers.radius_km_B.double().numpy())
    return np.concatenate(errors), np.concatenate(radii)


def table(results: list[Held]) -> str:
    """Return a line for each seed, and their mean; "by chance" is two standard deviations of what sampling makes."""
    lines = [
        f"{'seed':>4}{'fitted on':>11}{'fresh':>8}{'in radius':>11}{'by chance':>11}{'median km':>11}{'mass':>8}"
        f"{'gain, nats':>12}"
    ]
    for x in results:
        by_chance = f"±{2 * x.sampling:.1%}"
        lines.append(
            f"{x.seed:>4}{x.fitted_on:>11}{x.fresh:>8}{x.held:>11.1%}{by_chance:>11}{x.median_km:>11.0f}"
            f"{x.radius_mass:>8.3f}{x.gain_low:>12.2f}"
        )
    return "\n".join([*lines, f"mean{np.mean([x.held for x in results]):>30.1%}"])
