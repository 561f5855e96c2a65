"""Whether a model means what it says: fitting how it is read, and how often what it is so sure of is true.

What is fitted and measured is what is served: a level's probabilities with the prior and after the product with the
coarser levels' (`model.readout`), not its own softmax. Levels repeat each other's evidence, so calibrated levels
multiplied together would be sure without reason.

Shapes: B batch, N photos, H levels, K cells of one level, G groups.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.readout import RADIUS_PROBABILITY, Reading, ReadOut
from model.world import geodesy
from model.world.hierarchy import Hierarchy
from model.world.prior import Prior
from pipeline.report.reliability import Bin, calibration_error, equal_bins
from training.evaluate.temperatures import LEAST_SHARE, Fitted, LabelledLogits, fitted_near
from training.loss import UNKNOWN
from training.metrics import right_in_cell

log = logging.getLogger(__name__)

_LEAST_MASS = 0.01
_ROUNDS = 3
_ROUNDING = 1e-5
"""More than engines' sums of probabilities are rounded by: of photos with the same answer many are equally far away."""
_RESAMPLES, _LOW_END = 1000, 0.025
FEWEST_PHOTOS = 9
"""With fewer no radius can be said to hold nine photos of ten."""


class Judged(NamedTuple):
    """How sure a model was of some photos, under one set of temperatures, and how right."""

    confidence_NH: NDArray[np.float64]
    """The probability of each level's best cell."""
    right_NH: NDArray[np.float64]
    """1 where a photo lies in that cell, 0 where it lies in another, NaN where it lies in none of the level's."""
    nll_NH: NDArray[np.float64]
    """Minus the logarithm of the probability of the cell that a photo lies in, NaN where it lies in none."""
    mass_nearer_N: NDArray[np.float64]
    """How much of the finest level's probability lies nearer to the predicted point than the true place does. The true
    place is within the radius that holds the share q exactly where this is less than q."""


class Judge:
    """Logits and the truth → `Judged`, by one reading."""

    def __init__(self, hierarchy: Hierarchy, reading: Reading) -> None:
        self.finest = hierarchy.levels[-1]
        self.read_out = ReadOut(hierarchy, reading)

    def __call__(
        self,
        logits: tuple[Tensor, ...],
        label_BH: NDArray[np.int64],
        lat_deg_B: NDArray[np.float64],
        lon_deg_B: NDArray[np.float64],
    ) -> Judged:
        """Return what came of a batch of photos, the logits being on the CPU."""
        return self.of(self.read_out.log_probabilities(logits), label_BH, lat_deg_B, lon_deg_B)

    def of(
        self,
        joints: tuple[Tensor, ...],
        label_BH: NDArray[np.int64],
        lat_deg_B: NDArray[np.float64],
        lon_deg_B: NDArray[np.float64],
    ) -> Judged:
        """Return the same of the log-probabilities BK that `read_out` has made of the logits."""
        best = [joint_BK.max(dim=1) for joint_BK in joints]
        best_BH = torch.stack([level.indices for level in best], dim=1).numpy()
        top_BT = joints[-1].topk(self.read_out.top_cells, dim=1).indices
        point_B = self.read_out.point_index(joints[-1].exp(), top_BT).numpy()
        found = [joint_BK.numpy()[np.arange(len(label_BH)), label_BH[:, h]] for h, joint_BK in enumerate(joints)]
        return Judged(
            torch.stack([level.values for level in best], dim=1).double().exp().numpy(),
            np.stack([right_in_cell(*level) for level in zip(best_BH.T, label_BH.T, strict=True)], axis=1),
            np.where(label_BH == UNKNOWN, np.nan, -np.stack(found, axis=1).astype(np.float64)),
            self._mass_nearer_B(joints[-1].double().exp().numpy(), point_B, lat_deg_B, lon_deg_B),
        )

    def _mass_nearer_B(
        self,
        probability_BK: NDArray[np.float64],
        point_B: NDArray[np.int64],
        lat_deg_B: NDArray[np.float64],
        lon_deg_B: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        cells = self.finest
        point = cells.lat_deg_K[point_B, None], cells.lon_deg_K[point_B, None]
        # As in `ReadOut`, a cell is as far away as its mean and its spread together.
        reach_km_BK = geodesy.haversine_km(*point, cells.lat_deg_K, cells.lon_deg_K) + cells.spread_km_K
        error_km_B1 = geodesy.haversine_km(*point, lat_deg_B[:, None], lon_deg_B[:, None])
        return np.asarray(np.where(reach_km_BK < error_km_B1, probability_BK, 0.0).sum(axis=1))


@dataclass(frozen=True)
class Reliability:
    """How far a level's confidence can be believed under some temperature; NaN where there are no photos to tell.

    `ece`, the expected calibration error, is the mean over photos of their bin's |said − was|; it is above zero in
    small samples even for a perfect model. `ece_everywhere` counts photos outside the level's cells too, as wrong.
    `bins` and the other numbers are about photos that lie in one of the cells. Source: Guo et al. 2017, but with bins
    of equally many photos, since most photos may have nearly the same confidence.
    """

    temperature: float
    mean_confidence: float
    mean_nll: float
    ece: float
    ece_everywhere: float
    bins: tuple[Bin, ...]


def reliability(temperature: float, judged: Judged, level: int) -> Reliability:
    """Return how far one level's confidence can be believed."""
    confidence_N, right_N = judged.confidence_NH[:, level], judged.right_NH[:, level]
    inside_N = ~np.isnan(right_N)
    bins = equal_bins(confidence_N[inside_N], right_N[inside_N])
    return Reliability(
        temperature,
        float(confidence_N[inside_N].mean()) if bins else math.nan,
        float(judged.nll_NH[inside_N, level].mean()) if bins else math.nan,
        calibration_error(bins),
        calibration_error(equal_bins(confidence_N, np.nan_to_num(right_N))),
        bins,
    )


def log_prior_NH(label_NH: NDArray[np.int64], prior: tuple[NDArray[np.float64], ...]) -> NDArray[np.float64]:
    """Return the logarithm of the prior of the cell that each photo lies in at every level; NaN where it is in none."""
    logs = [np.log(level)[label_N] for level, label_N in zip(prior, label_NH.T, strict=True)]
    return np.where(label_NH == UNKNOWN, np.nan, np.stack(logs, axis=1))


@dataclass(frozen=True, eq=False)
class Fit:
    """A reading that was fitted to some photos, and how photos are judged that it was not fitted on.

    `before` is judged by the reading that was there, `after` by those fitted without the photos of the same fold.
    `gain_low` is the lower end of the interval of what the network adds to the prior, in nats a photo, on the finest
    level; where it is not above zero the reading is the prior alone. NaN without a prior.
    """

    reading: Reading
    before: Judged
    after: Judged
    gain_low: float = math.nan

    @property
    def helps(self) -> bool:
        """Whether the labels of photos that were not fitted on have become more likely."""
        return bool(np.nanmean(self.after.nll_NH) < np.nanmean(self.before.nll_NH))


def fit_reading(
    batches: Sequence[LabelledLogits],
    lat_deg_N: NDArray[np.float64],
    lon_deg_N: NDArray[np.float64],
    group_N: NDArray[np.int64],
    hierarchy: Hierarchy,
    before: Reading,
    prior: Prior | None,
    folds: int = 10,
) -> Fit:
    """Fit temperatures, shares of the prior and the radius, and judge them on photos that had no part in it.

    Groups of photos (of a photographer, a place) are kept whole in folds. Temperatures are fitted as
    `fitted_temperatures` says; shares of the prior to photos whose fold had no part in the temperatures; then
    temperatures again, given these shares, and so on, `_ROUNDS` times; each fit begins where the one before it ended.
    The radius is split-conformal: the share of the probability within which nine tenths of these photos' true places
    lie, photos in no cell among them. Source: Vovk, Gammerman & Shafer 2005; Lei et al. 2018. N photos are in the
    batches' order.
    """
    fold_N = folds_of(group_N, min(folds, len(np.unique(group_N))))
    pi = None if prior is None else prior.levels(hierarchy)
    ends = np.cumsum([len(batch.label_BH) for batch in batches])
    plain = replace(before, prior=pi, prior_share=(), radius_mass=RADIUS_PROBABILITY)

    fitted: Fitted | None = None

    def temperatures(known_N: NDArray[np.bool_], shares: tuple[float, ...]) -> tuple[float, ...]:
        nonlocal fitted
        parts = np.split(known_N, ends[:-1])
        known = [
            # The photos stay and lose their labels: no copy of the logits.
            LabelledLogits(batch.logits, batch.label_BH.where(torch.from_numpy(known_B)[:, None], UNKNOWN))
            for batch, known_B in zip(batches, parts, strict=True)
        ]
        fitted = fitted_near(known, hierarchy, pi, before.combination, shares, near=fitted)
        return fitted.temperatures

    def judged(reading: Reading, rows_N: NDArray[np.bool_]) -> Judged:
        return _judged(batches, np.split(rows_N, ends[:-1]), lat_deg_N, lon_deg_N, Judge(hierarchy, reading))

    of_fold: dict[int, tuple[float, ...]] = {}
    shares = dict.fromkeys(np.unique(fold_N).tolist(), plain.prior_share)
    share_of_all = plain.prior_share
    before_judged = judged(before, np.ones(len(fold_N), bool))
    apart, gain_low = _empty(before_judged), math.nan
    if pi is not None:
        prior_NH = log_prior_NH(np.concatenate([batch.label_BH.numpy() for batch in batches]), pi)
    for number in range(1 if pi is None else _ROUNDS):
        log.info("fitting without each of %d folds, %d of %d times", len(shares), number + 1, _ROUNDS if pi else 1)
        for fold, share in shares.items():
            of_fold[fold] = temperatures(fold_N != fold, share)
            _put(apart, judged(replace(plain, temperatures=of_fold[fold]), fold_N == fold), fold_N == fold)
        if pi is not None:
            network_NH = -apart.nll_NH
            shares = {fold: _shares(network_NH[fold_N != fold], prior_NH[fold_N != fold]) for fold in shares}
            share_of_all = _shares(network_NH, prior_NH)
    reading = replace(plain, temperatures=temperatures(np.ones(len(fold_N), bool), share_of_all))
    if pi is not None:
        share_N = np.array([shares[fold][-1] for fold in fold_N.tolist()])
        with np.errstate(invalid="ignore"):  # photos in no cell are NaN
            served_N = np.logaddexp(_log(1 - share_N) + network_NH[:, -1], _log(share_N) + prior_NH[:, -1])
        gain_low = _low(served_N - prior_NH[:, -1], group_N)
        if not gain_low > 0:
            share_of_all = (1.0,) * len(pi)
            shares = dict.fromkeys(shares, share_of_all)
        reading = replace(reading, prior_share=share_of_all)
    after = _empty(apart)
    for fold, share in shares.items():
        served = replace(plain, temperatures=of_fold[fold], prior_share=share)
        _put(after, judged(served, fold_N == fold), fold_N == fold)
    reading = replace(reading, radius_mass=conformal_mass(after.mass_nearer_N))
    return Fit(reading, before_judged, after, gain_low)


def conformal_mass(mass_nearer_N: NDArray[np.float64]) -> float:
    """Return how much of the probability a radius has to hold to hold the true place of nine photos of ten.

    `mass_nearer_N` is of photos that the model has not seen. With n of them it is the ⌈0.9 (n + 1)⌉-th smallest; all of
    the probability where that is more than n, as for fewer than nine photos.
    """
    rank = math.ceil(RADIUS_PROBABILITY * (len(mass_nearer_N) + 1))
    if rank > len(mass_nearer_N):
        return 1.0
    mass: float = np.sort(mass_nearer_N)[rank - 1].item()
    return min(1.0, max(mass + _ROUNDING, _LEAST_MASS))  # more than what lies nearer than the true place


def _shares(network_NH: NDArray[np.float64], prior_NH: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the share of the prior at each level that makes photos' labels most likely, given both logarithms.

    The likelihood is concave in it. A thousandth stays at least, so that no cell is impossible.
    """
    return tuple(round(_share(*level), 4) for level in zip(network_NH.T, prior_NH.T, strict=True))


def _share(network_N: NDArray[np.float64], prior_N: NDArray[np.float64]) -> float:
    known_N = ~np.isnan(network_N)
    if not known_N.any():
        return 1.0
    ratio_N = np.exp(np.clip(network_N[known_N] - prior_N[known_N], -50, 50))

    def loss(share: float) -> float:
        return -float(np.log((1 - share) * ratio_N + share).mean())

    grid: list[float] = [LEAST_SHARE, *(step / 200 for step in range(1, 201))]
    return min(grid, key=loss)


def _low(gain_N: NDArray[np.float64], group_N: NDArray[np.int64]) -> float:
    """Return the lower end of the interval of a mean, by resampling whole groups; NaN for none."""
    known_N = ~np.isnan(gain_N)
    if not known_N.any():
        return math.nan
    _, group_N = np.unique(group_N[known_N], return_inverse=True)
    sum_G, count_G = np.bincount(group_N, gain_N[known_N]), np.bincount(group_N)
    drawn_RG = np.random.default_rng(0).integers(len(sum_G), size=(_RESAMPLES, len(sum_G)))
    mean_R = sum_G[drawn_RG].sum(axis=1) / count_G[drawn_RG].sum(axis=1)
    low: float = np.quantile(mean_R, _LOW_END).item()
    return low


def _log(share_N: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(np.maximum(share_N, 1e-300))


def _empty(like: Judged) -> Judged:
    return Judged(*(np.full_like(values, np.nan) for values in like))


def _put(into: Judged, fresh: Judged, rows_N: NDArray[np.bool_]) -> None:
    for values, new in zip(into, fresh, strict=True):
        values[rows_N] = new


def _judged(
    batches: Sequence[LabelledLogits],
    rows: Sequence[NDArray[np.bool_]],
    lat_deg_N: NDArray[np.float64],
    lon_deg_N: NDArray[np.float64],
    judge: Judge,
) -> Judged:
    """Judge the chosen photos of each batch, in their order."""
    parts, start = [], 0
    for batch, chosen_B in zip(batches, rows, strict=True):
        row_N = start + np.flatnonzero(chosen_B)
        start += len(chosen_B)
        if len(row_N):
            kept_B = torch.from_numpy(chosen_B)
            logits = tuple(logits_BK[kept_B] for logits_BK in batch.logits)
            parts.append(judge(logits, batch.label_BH[kept_B].numpy(), lat_deg_N[row_N], lon_deg_N[row_N]))
    return Judged(*map(np.concatenate, zip(*parts, strict=True)))


def folds_of(group_N: NDArray[np.int64], folds: int) -> NDArray[np.int64]:
    """Return each photo's fold, groups being kept whole: the largest first, each to the fold with fewest photos."""
    count_G = np.bincount(group_N)
    fold_G = np.zeros(len(count_G), np.int64)
    photos = [0] * folds
    for group in np.argsort(-count_G, kind="stable").tolist():
        fold_G[group] = photos.index(min(photos))
        photos[fold_G[group]] += int(count_G[group])
    return fold_G[group_N]
