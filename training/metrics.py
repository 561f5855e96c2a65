"""The field's measures: the share of photos placed within 1, 25, 200, 750 and 2500 km, the median error, and more.

Distances are great circles on the sphere of `geodesy.EARTH_RADIUS_KM`; a photo exactly at a threshold counts as within.

Shapes: N photos, H levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.world.hierarchy import NO_CELL

THRESHOLDS_KM = {"street": 1.0, "city": 25.0, "region": 200.0, "country": 750.0, "continent": 2500.0}
CONFIDENCE = 0.95
FEWEST_TO_RESAMPLE = 30
"""With fewer units than this of a kind, percentile intervals are rough, and more often too narrow than too wide."""
_MOST_KEPT = 10_000_000


@dataclass(frozen=True)
class Accuracy:
    """Shares from 0 to 1, by threshold name, and the median error."""

    photos: int
    share_within: dict[str, float]
    median_km: float


def accuracy(distance_km_N: NDArray[np.float64]) -> Accuracy:
    """Return the measures of some photos' errors. Raises ValueError for none, or for one that is no number."""
    if not len(distance_km_N) or not np.isfinite(distance_km_N).all():
        raise ValueError("accuracy needs the distances of one photo or more, each a number")
    return Accuracy(
        photos=len(distance_km_N),
        share_within={name: float((distance_km_N <= km).mean()) for name, km in THRESHOLDS_KM.items()},
        median_km=float(np.median(distance_km_N)),
    )


def right_in_cell(best_N: NDArray[np.int64], label_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return for each photo 1 if its best cell of a level is the one it lies in, else 0; NaN if it lies in none.

    On held-out places, many photos lie in no cell of the finer levels.
    """
    return np.where(label_N == NO_CELL, np.nan, (best_N == label_N).astype(np.float64))


@dataclass(frozen=True)
class Estimate:
    """A number measured on a sample, and the interval that holds `CONFIDENCE` of its bootstrap resamples."""

    value: float
    low: float
    high: float


class Bootstrap:
    """Intervals by resampling, with replacement, whole photographers and whole places, and taking percentiles.

    Photos of one photographer or place are alike, so drawing them one by one would make intervals that promise too
    much; fewer than `FEWEST_TO_RESAMPLE` of either still make rough ones. Each kind of unit is drawn by itself, and a
    photo counts as often as the product of its units' draws. (Whole groups linked by both kinds, as splits need them,
    would not do: in Im2GPS3k, cities that many photograph link most photos to one group.) Every number is measured on
    the same seeded resamples. Source: the pigeonhole bootstrap, Owen 2007; it errs on the wide side.

    Args:
        units: for each kind of unit, by its name in the plural, a number for each photo; -1 where unknown: such a photo
            is drawn by its other units alone. A kind that is unknown for every photo is left out.
    """

    def __init__(self, units: Mapping[str, NDArray[np.int64]], resamples: int = 1000, seed: int = 0) -> None:
        self.units = {name: _numbered(unit_N) for name, unit_N in units.items() if (unit_N >= 0).any()}
        self.counts = {name: int(unit_N.max()) + 1 for name, unit_N in self.units.items()}
        assert self.units
        self.resamples = resamples
        self.seed = seed
        self.photos = len(next(iter(self.units.values())))
        self._drawn: list[NDArray[np.int64]] = []

    def mean(self, value_N: NDArray[np.float64]) -> Estimate:
        """Return the mean of the photos' values, those that are NaN left out; NaN if all are."""
        known_N = ~np.isnan(value_N)
        value_N = np.where(known_N, value_N, 0.0)

        def mean(times_N: NDArray[np.int64]) -> float:
            count = float(times_N @ known_N)
            return float(times_N @ value_N) / count if count else math.nan

        return self._estimate(mean)

    def share(self, yes_N: NDArray[Any]) -> Estimate:
        """Return the share of photos that are 1 (or true), those that are NaN left out; NaN if all are.

        Resamples of photos that are all alike say nothing; then the interval is the exact binomial one (Clopper &
        Pearson 1934) of as many trials as there are units of the rarer kind.
        """
        value_N = yes_N.astype(np.float64)
        estimate = self.mean(value_N)
        if estimate.value in (0, 1):
            known_N = ~np.isnan(value_N)
            trials = min(_units_among(unit_N[known_N]) for unit_N in self.units.values())
            most = 1 - ((1 - CONFIDENCE) / 2) ** (1 / trials)
            low, high = (0.0, most) if estimate.value == 0 else (1 - most, 1.0)
            return Estimate(estimate.value, float(low), float(high))
        return estimate

    def median(self, value_N: NDArray[np.float64]) -> Estimate:
        """Return the median of the photos' values, each of which is a number."""
        order = np.argsort(value_N, kind="stable")
        sorted_N = value_N[order]

        def median(times_N: NDArray[np.int64]) -> float:
            up_to_N = np.cumsum(times_N[order])
            half = up_to_N[-1] / 2
            if not half:
                return math.nan
            lower = np.searchsorted(up_to_N, half, side="left")
            upper = np.searchsorted(up_to_N, half, side="right")
            return float(sorted_N[lower] + sorted_N[upper]) / 2

        return self._estimate(median)

    def accuracy(self, distance_km_N: NDArray[np.float64]) -> tuple[dict[str, Estimate], Estimate]:
        """Return the share of photos within each threshold, by its name, and the median error in km."""
        shares = {name: self.share(distance_km_N <= km) for name, km in THRESHOLDS_KM.items()}
        return shares, self.median(distance_km_N)

    def _estimate(self, statistic: Callable[[NDArray[np.int64]], float]) -> Estimate:
        resampled = np.array([statistic(times_N) for times_N in self._resamples()])
        resampled = resampled[~np.isnan(resampled)]  # resamples without any photo that the number is about
        value = statistic(np.ones(self.photos, np.int64))
        if not len(resampled):
            return Estimate(value, math.nan, math.nan)
        low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return Estimate(value, float(low), float(high))

    def _resamples(self) -> Iterator[NDArray[np.int64]]:
        """Yield how many times each photo counts; where memory allows, drawn once for all numbers."""
        if self._drawn:
            yield from self._drawn
            return
        drawn_now = []
        random = np.random.default_rng(self.seed)
        for _ in range(self.resamples):
            times_N = np.ones(self.photos, np.int64)
            for unit_N, count in zip(self.units.values(), self.counts.values(), strict=True):
                drawn = np.bincount(random.integers(0, count, count), minlength=count)
                times_N = times_N * np.append(drawn, 1)[unit_N]  # the last one is for -1
            if times_N.size * self.resamples <= _MOST_KEPT:
                drawn_now.append(times_N)
            yield times_N
        self._drawn = drawn_now


def _units_among(unit_N: NDArray[np.int64]) -> int:
    """Return how many different units there are, each photo whose unit is not known being one of its own."""
    return len(np.unique(unit_N[unit_N >= 0])) + int((unit_N < 0).sum())


def _numbered(unit_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return units numbered from 0 without gaps, -1 staying -1."""
    numbers, index_N = np.unique(unit_N, return_inverse=True)
    return np.asarray(index_N - (numbers[0] < 0), np.int64)


@dataclass(frozen=True)
class Breakdown:
    """The photos of one kind (a country, a scene) and how near they were placed."""

    kind: str
    measured: Accuracy


def by_kind(
    kind_N: Sequence[str | None], distance_km_N: NDArray[np.float64], unknown: str, fewest: int, few: str
) -> list[Breakdown]:
    """Return the measures of each kind of photo, the commonest kind first.

    Several kinds of fewer than `fewest` photos come after them in one line, called `few` ({kinds} is their number);
    photos whose kind is None come last, in a line called `unknown`.
    """
    names, index_N, count_M = np.unique([kind or "" for kind in kind_N], return_inverse=True, return_counts=True)
    order = sorted(range(len(names)), key=lambda m: (-count_M[m], names[m]))
    known = [m for m in order if names[m]]
    lines = [(str(names[m]), index_N == m) for m in known if count_M[m] >= fewest]
    folded = [m for m in known if count_M[m] < fewest]
    rest = str(names[folded[0]]) if len(folded) == 1 else few.format(kinds=len(folded))
    lines += [(rest, np.isin(index_N, folded))] if folded else []
    lines += [(unknown, index_N == m) for m in order if not names[m]]
    return [Breakdown(name, accuracy(distance_km_N[of_kind_N])) for name, of_kind_N in lines]
