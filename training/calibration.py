"""Whether a model means what it says: fitting temperatures, and how often what it is so sure of is true.

What is fitted and measured is what is served: a level's probabilities after the product with the coarser levels'
(`model.readout`), not its own softmax. Levels repeat each other's evidence, so calibrated levels multiplied together
would be sure without reason.

Shapes: B batch, N photos, H levels, K cells of one level, G groups.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import geodesy
from model.hierarchy import Hierarchy
from model.readout import BEST_CELL, PointRule, ReadOut
from pipeline.reliability import Bin, calibration_error, equal_bins
from training.loss import UNKNOWN
from training.metrics import right_in_cell

log = logging.getLogger(__name__)

FEWEST_LABELS = 10
"""With fewer labels, over all levels, every temperature stays 1."""
_WIDEST_LOG = math.log(1000.0)
_LOG_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class LabelledLogits:
    """A batch's logits BK of each level, and label_BH, -1 where a photo lies in none of a level's cells."""

    logits: tuple[Tensor, ...]
    label_BH: Tensor


def fitted_temperatures(batches: Sequence[LabelledLogits], hierarchy: Hierarchy) -> tuple[float, ...]:
    """Return one temperature a level, coarse → fine, that make the served probabilities fit the labels best.

    First one for all levels; then each level's own, coarse → fine, those of the coarser ones being settled. Each
    minimises the negative log-likelihood of the labels plus r − log r, where r is the ratio of the inverse temperature
    to a first guess of it: 1 for the one of all levels, that one for each level's own. This is a Gamma prior that
    weighs as much as about one photo, with a standard deviation of a factor of e: a level with hundreds of labels is
    fitted to them, one with a few stays near the common temperature, one with none takes it, and a model that is right
    (or wrong) about every one of a few photos does not get a temperature of zero (or infinity). All are 1 if there are
    fewer than `FEWEST_LABELS` labels in all.

    In the inverse temperature each of these is a convex function of one number (logits minus a log-sum-exp, and the
    prior), so a golden-section search over its logarithm finds the minimum. Source: temperature scaling, Guo et al.
    2017; there one for a single softmax.
    """
    levels = len(hierarchy.levels)
    count_H = [sum(int((batch.label_BH[:, h] != UNKNOWN).sum()) for batch in batches) for h in range(levels)]
    if sum(count_H) < FEWEST_LABELS:
        return (1.0,) * levels
    parents = [torch.from_numpy(level.parent_K.astype(np.int64)) for level in hierarchy.levels]

    common = _golden_section(lambda log_temperature: _loss_of_one_for_all(log_temperature, batches, parents))
    coarser: list[Tensor | None] = [None] * len(batches)
    fitted = []
    for h in range(levels):
        level = _Level([x.logits[h] for x in batches], [x.label_BH[:, h] for x in batches], coarser, parents[h])
        log_temperature = _golden_section(partial(level.loss, guess=common)) if count_H[h] else common
        fitted.append(round(math.exp(log_temperature), 3))
        coarser = [*level.joints(fitted[-1])]
    return tuple(fitted)


@dataclass(frozen=True, eq=False)
class _Level:
    """One level of every batch: logits BK, label_B, and the coarser level's served log-probabilities."""

    logits: list[Tensor]
    labels: list[Tensor]
    coarser: list[Tensor | None]
    parent_K: Tensor

    def joints(self, temperature: float) -> Iterator[Tensor]:
        for logits_BK, coarser_BK in zip(self.logits, self.coarser, strict=True):
            yield _joint(logits_BK, temperature, coarser_BK, self.parent_K)

    def loss(self, log_temperature: float, guess: float) -> float:
        joints = zip(self.joints(math.exp(log_temperature)), self.labels, strict=True)
        return sum(_nll(joint_BK, label_B) for joint_BK, label_B in joints) + _prior(log_temperature, guess)


def _loss_of_one_for_all(log_temperature: float, batches: Sequence[LabelledLogits], parents: Sequence[Tensor]) -> float:
    total = 0.0
    for batch in batches:
        joint_BK = None
        for h, logits_BK in enumerate(batch.logits):
            joint_BK = _joint(logits_BK, math.exp(log_temperature), joint_BK, parents[h])
            total += _nll(joint_BK, batch.label_BH[:, h])
    # A photo's levels are one observation rather than several.
    return total / len(parents) + _prior(log_temperature, 0.0)


def _joint(logits_BK: Tensor, temperature: float, coarser_BK: Tensor | None, parent_K: Tensor) -> Tensor:
    """The served log-probabilities of a level, as `ReadOut.log_probabilities` gives them, one level at a time."""
    log_BK = logits_BK.float() / temperature
    if coarser_BK is not None:
        log_BK = log_BK + coarser_BK.index_select(1, parent_K)
    return log_BK.log_softmax(dim=1)


def _nll(log_probability_BK: Tensor, label_B: Tensor) -> float:
    return float(torch.nn.functional.nll_loss(log_probability_BK, label_B, ignore_index=UNKNOWN, reduction="sum"))


def _prior(log_temperature: float, guess: float) -> float:
    log_ratio = guess - log_temperature
    return math.exp(log_ratio) - log_ratio


def _golden_section(function: Callable[[float], float]) -> float:
    """Return where a function of a temperature's logarithm, with one valley, is least."""
    low, high = -_WIDEST_LOG, _WIDEST_LOG
    shrink = (math.sqrt(5) - 1) / 2
    left, right = high - shrink * (high - low), low + shrink * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > _LOG_TOLERANCE:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - shrink * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + shrink * (high - low)
            at_right = function(right)
    return (low + high) / 2


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
    """Logits and the truth → `Judged`, under one set of temperatures, the points being where `point` says."""

    def __init__(self, hierarchy: Hierarchy, temperatures: tuple[float, ...], point: PointRule = BEST_CELL) -> None:
        self.finest = hierarchy.levels[-1]
        self.read_out = ReadOut(hierarchy, temperatures, point)

    def __call__(
        self,
        logits: tuple[Tensor, ...],
        label_BH: NDArray[np.int64],
        lat_deg_B: NDArray[np.float64],
        lon_deg_B: NDArray[np.float64],
    ) -> Judged:
        """Return what came of a batch of photos, the logits being on the CPU."""
        joints = self.read_out.log_probabilities(logits)
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


@dataclass(frozen=True, eq=False)
class Recalibration:
    """New temperatures, and how photos are judged that they were not fitted on.

    `temperatures` are fitted on all photos; `before` is judged under the old ones, `after` under those fitted without
    the photos of the same fold.
    """

    temperatures: tuple[float, ...]
    before: Judged
    after: Judged

    @property
    def helps(self) -> bool:
        """Whether the labels of photos that were not fitted on have become more likely."""
        return bool(np.nanmean(self.after.nll_NH) < np.nanmean(self.before.nll_NH))


def recalibrate(
    batches: Sequence[LabelledLogits],
    lat_deg_N: NDArray[np.float64],
    lon_deg_N: NDArray[np.float64],
    fold_N: NDArray[np.int64],
    hierarchy: Hierarchy,
    temperatures: tuple[float, ...],
    point: PointRule = BEST_CELL,
) -> Recalibration:
    """Fit temperatures anew, once on all photos and once without each fold; N photos are in the batches' order."""
    before = _judged(batches, lat_deg_N, lon_deg_N, Judge(hierarchy, temperatures, point))
    after = Judged(*(np.full_like(values, np.nan) for values in before))
    folds = np.unique(fold_N)
    for number, fold in enumerate(folds.tolist(), start=1):
        log.info("fitting without fold %d of %d", number, len(folds))
        ends = np.cumsum([len(batch.label_BH) for batch in batches])
        known = np.split(fold_N != fold, ends[:-1])
        others = [
            # The photos stay and lose their labels: no copy of the logits.
            LabelledLogits(batch.logits, batch.label_BH.where(torch.from_numpy(known_B)[:, None], UNKNOWN))
            for batch, known_B in zip(batches, known, strict=True)
        ]
        fitted = fitted_temperatures(others, hierarchy)
        judged = _judged(batches, lat_deg_N, lon_deg_N, Judge(hierarchy, fitted, point))
        for values, fresh in zip(after, judged, strict=True):
            values[fold_N == fold] = fresh[fold_N == fold]
    return Recalibration(fitted_temperatures(batches, hierarchy), before, after)


def _judged(
    batches: Sequence[LabelledLogits], lat_deg_N: NDArray[np.float64], lon_deg_N: NDArray[np.float64], judge: Judge
) -> Judged:
    parts, start = [], 0
    for batch in batches:
        end = start + len(batch.label_BH)
        parts.append(judge(batch.logits, batch.label_BH.numpy(), lat_deg_N[start:end], lon_deg_N[start:end]))
        start = end
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
