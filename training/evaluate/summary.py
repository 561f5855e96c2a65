"""The numbers of an evaluation, each with its interval: what the table, the JSON and the page are made from.

Shapes: N photos, H levels, P percentiles.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.readout import PRECISION_RADII_KM
from training.evaluate.calibration import Reliability, reliability
from training.evaluate.evaluation import Measured, Truth
from training.metrics import FEWEST_TO_RESAMPLE, Bootstrap, Breakdown, Estimate, by_kind, right_in_cell

FEWEST_OF_A_KIND = 3
"""Countries and scenes of fewer photos are shown in one line together."""
SHARES = tuple(tenths / 10 for tenths in range(1, 10))
PERCENTILES = tuple(range(101))


@dataclass(frozen=True)
class Way:
    """A way of placing photos: the model, or a baseline. `error_km_P`: its errors at each whole percentile."""

    name: str
    share_within: dict[str, Estimate]
    median_km: Estimate
    error_km_P: tuple[float, ...]


@dataclass(frozen=True)
class LevelNumbers:
    """One level: how many of the photos lie in its cells, how often the right one, and how sure before and after."""

    cells: int
    photos_in_cells: int
    accuracy: Estimate
    before: Reliability
    after: Reliability


@dataclass(frozen=True)
class Likelihood:
    """Minus the log-likelihood of the right cell of one level, in nats a photo: less is better.

    `prior`: of the prior alone; `blind`: of the model's mean answer to the other photos. `gain`: what the model says
    more than the prior does; below 0 it says less.
    """

    model: Estimate
    prior: Estimate
    blind: Estimate
    gain: Estimate


@dataclass(frozen=True)
class Coverage:
    """How many photos lie within the radius that holds a share of the probability, before and after temperatures."""

    share: float
    before: Estimate
    after: Estimate


@dataclass(frozen=True)
class Nearness:
    """How many photos the model said lie within some km of its points (the mean probability there), and how many do."""

    km: float
    said: float
    was: Estimate


@dataclass(frozen=True)
class Summary:
    """Everything that an evaluation found. `about`: model, table, settings, hashes; `resampled`: how many
    photographers and places the intervals come from; `unreadable`: reasons, by photo."""

    about: Mapping[str, Any]
    photos: int
    resampled: dict[str, int]
    unreadable: dict[str, str]
    ways: tuple[Way, ...]
    levels: tuple[LevelNumbers, ...]
    likelihood: tuple[Likelihood, ...]
    radius_km: Estimate
    radius_holds: Estimate
    coverage: tuple[Coverage, ...]
    nearness: tuple[Nearness, ...]
    country_right: Estimate
    by_country: tuple[Breakdown, ...]
    scene_right: Estimate | None
    by_scene: tuple[Breakdown, ...]
    by_predicted_scene: tuple[Breakdown, ...]

    @property
    def in_words(self) -> str:
        """What was resampled, and whether that is so little that the intervals themselves are rough."""
        units = " and ".join(f"{count} {name}" for name, count in self.resampled.items())
        return units + (" (rough, with so few)" if min(self.resampled.values()) < FEWEST_TO_RESAMPLE else "")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; null where there was nothing to measure."""
        values: dict[str, Any] = _without_nan(dataclasses.asdict(self))
        return values


@dataclass(frozen=True)
class Kinds:
    """What else is known of the measured photos: their true and predicted country and scene, None where unknown."""

    country_N: Sequence[str | None]
    predicted_country_N: Sequence[str | None]
    scene_N: Sequence[str | None]
    predicted_scene_N: Sequence[str]


def summarise(
    about: Mapping[str, Any],
    measured: Measured,
    truth: Truth,
    error_km: Mapping[str, NDArray[np.float64]],
    units: Mapping[str, NDArray[np.int64]],
    kinds: Kinds,
    unreadable: dict[str, str],
) -> Summary:
    """Return the numbers. `error_km`: the errors of each way of placing the measured photos, the model's first;
    `units`: as `Bootstrap` takes them; `truth` has all rows of the store, everything else the measured photos only."""
    bootstrap = Bootstrap(units)
    said, (own_km_N, *_) = measured.said, error_km.values()
    label_NH = truth.label_NH[said.row_N]
    right_NH = np.stack([right_in_cell(*level) for level in zip(said.best_NH.T, label_NH.T, strict=True)], axis=1)
    has_scenes = any(kinds.scene_N)
    return Summary(
        about={**about, "bootstrap_resamples": bootstrap.resamples, "bootstrap_seed": bootstrap.seed},
        photos=len(said.row_N),
        resampled=bootstrap.counts,
        unreadable=unreadable,
        ways=tuple(_way(name, error_km_N, bootstrap) for name, error_km_N in error_km.items()),
        levels=tuple(
            LevelNumbers(
                cells=cells,
                photos_in_cells=int((~np.isnan(right_NH[:, level])).sum()),
                accuracy=bootstrap.share(right_NH[:, level]),
                before=reliability(1.0, measured.before, level),
                after=reliability(about["temperatures"][level], measured.after, level),
            )
            for level, cells in enumerate(about["class_counts"])
        ),
        likelihood=tuple(
            Likelihood(*map(bootstrap.mean, (own_N, prior_N, blind_N, prior_N - own_N)))
            for own_N, prior_N, blind_N in zip(
                measured.after.nll_NH.T, measured.prior.nll_NH.T, measured.blind_nll_NH.T, strict=True
            )
        ),
        radius_km=bootstrap.median(said.radius_km_N),
        radius_holds=bootstrap.share(own_km_N <= said.radius_km_N),
        coverage=tuple(
            Coverage(
                share,
                bootstrap.share(measured.before.mass_nearer_N < share),
                bootstrap.share(measured.after.mass_nearer_N < share),
            )
            for share in SHARES
        ),
        nearness=tuple(
            Nearness(km, float(said.mass_within_N4[:, column].mean()), bootstrap.share(own_km_N <= km))
            for column, km in enumerate(PRECISION_RADII_KM)
        ),
        country_right=bootstrap.share(_same(kinds.country_N, kinds.predicted_country_N)),
        by_country=_breakdown(kinds.country_N, own_km_N, "outside every country", "countries"),
        scene_right=bootstrap.share(_same(kinds.scene_N, kinds.predicted_scene_N)) if has_scenes else None,
        by_scene=_breakdown(kinds.scene_N, own_km_N, "scene not known", "scenes") if has_scenes else (),
        by_predicted_scene=_breakdown(kinds.predicted_scene_N, own_km_N, "", "scenes"),
    )


def _way(name: str, error_km_N: NDArray[np.float64], bootstrap: Bootstrap) -> Way:
    shares, median_km = bootstrap.accuracy(error_km_N)
    return Way(name, shares, median_km, tuple(np.percentile(error_km_N, PERCENTILES).tolist()))


def _breakdown(
    kind_N: Sequence[str | None], error_km_N: NDArray[np.float64], unknown: str, plural: str
) -> tuple[Breakdown, ...]:
    few = f"{{kinds}} {plural} of fewer than {FEWEST_OF_A_KIND} photos"
    return tuple(by_kind(kind_N, error_km_N, unknown, FEWEST_OF_A_KIND, few))


def _same(true_N: Sequence[str | None], said_N: Sequence[str | None]) -> NDArray[np.float64]:
    """Return 1 where two names are the same, 0 where not, NaN where the true one is not known."""
    pairs = zip(true_N, said_N, strict=True)
    return np.array([math.nan if true is None else float(true == said) for true, said in pairs])


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
