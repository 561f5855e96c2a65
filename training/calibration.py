"""Whether a model means what it says: fitting how it is read, and how often what it is so sure of is true.

What is fitted and measured is what is served: a level's probabilities with the prior and after the product with the
coarser levels' (`model.readout`), not its own softmax. Levels repeat each other's evidence, so calibrated levels
multiplied together would be sure without reason.

Shapes: B batch, N photos, H levels, K cells of one level, G groups.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import geodesy
from model.hierarchy import NO_PARENT, Hierarchy
from model.prior import Prior
from model.readout import RADIUS_PROBABILITY, Combination, Reading, ReadOut
from pipeline.reliability import Bin, calibration_error, equal_bins
from training.loss import UNKNOWN
from training.metrics import right_in_cell

log = logging.getLogger(__name__)

_LEAST_SHARE = 0.001
_LEAST_MASS = 0.01
_ROUNDS = 3
_ROUNDING = 1e-5
"""More than engines' sums of probabilities are rounded by: of photos with the same answer many are equally far away."""
_RESAMPLES, _LOW_END = 1000, 0.025
FEWEST_PHOTOS = 9
"""With fewer no radius can be said to hold nine photos of ten."""
FEWEST_LABELS = 10
"""With fewer labels, over all levels, every temperature stays 1."""
_WIDEST_LOG = math.log(1000.0)
_LOG_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class LabelledLogits:
    """A batch's logits BK of each level, and label_BH, -1 where a photo lies in none of a level's cells."""

    logits: tuple[Tensor, ...]
    label_BH: Tensor


def fitted_temperatures(
    batches: Sequence[LabelledLogits],
    hierarchy: Hierarchy,
    prior: tuple[NDArray[np.float64], ...] | None = None,
    combination: Combination = "product",
    shares: tuple[float, ...] = (),
) -> tuple[float, ...]:
    """Return one temperature a level, coarse → fine, that make the served probabilities fit the labels best.

    First one for all levels; then each level's own, coarse → fine, those of the coarser ones being settled. Each
    minimises the negative log-likelihood of the labels plus r − log r, where r is the ratio of the inverse temperature
    to a first guess of it: 1 for the one of all levels, that one for each level's own. This is a Gamma prior that
    weighs as much as about one photo, with a standard deviation of a factor of e: a level with hundreds of labels is
    fitted to them, one with a few stays near the common temperature, one with none takes it, and a model that is right
    (or wrong) about every one of a few photos does not get a temperature of zero (or infinity). All are 1 if there are
    fewer than `FEWEST_LABELS` labels in all.

    In the inverse temperature each of these is a convex function of one number (logits minus a log-sum-exp, and the
    prior), so a golden-section search over its logarithm finds the minimum. With `shares` of the prior, which are mixed
    in last, it is so only nearly. Source: temperature scaling, Guo et al. 2017; there one for a single softmax.
    """
    levels = len(hierarchy.levels)
    if combination == "sum":
        batches, hierarchy = _finest_alone(batches, hierarchy)
        mixed = _mixtures(hierarchy, prior[-1:] if prior else None, shares[-1:])
        return _fitted(batches, hierarchy, [torch.zeros(())], mixed) * levels
    return _fitted(batches, hierarchy, _log_within(hierarchy, prior), _mixtures(hierarchy, prior, shares))


def _fitted(
    batches: Sequence[LabelledLogits], hierarchy: Hierarchy, offsets: Sequence[Tensor], mixed: Sequence[_Mixture]
) -> tuple[float, ...]:
    levels = len(hierarchy.levels)
    count_H = [sum(int((batch.label_BH[:, h] != UNKNOWN).sum()) for batch in batches) for h in range(levels)]
    if sum(count_H) < FEWEST_LABELS:
        return (1.0,) * levels
    parents = [torch.from_numpy(level.parent_K.astype(np.int64)) for level in hierarchy.levels]
    common = _golden_section(
        lambda log_temperature: _loss_of_one_for_all(log_temperature, batches, parents, offsets, mixed)
    )
    coarser: list[Tensor | None] = [None] * len(batches)
    fitted = []
    for h in range(levels):
        logits, labels = [x.logits[h] for x in batches], [x.label_BH[:, h] for x in batches]
        level = _Level(logits, labels, coarser, parents[h], offsets[h], mixed[h])
        log_temperature = _golden_section(partial(level.loss, guess=common)) if count_H[h] else common
        fitted.append(round(math.exp(log_temperature), 3))
        coarser = [*level.joints(fitted[-1])]
    return tuple(fitted)


def _finest_alone(batches: Sequence[LabelledLogits], hierarchy: Hierarchy) -> tuple[list[LabelledLogits], Hierarchy]:
    """Return the same with the finest level alone, from which a gallery's coarser levels are summed."""
    finest = replace(hierarchy.levels[-1], parent_K=np.full(len(hierarchy.levels[-1]), NO_PARENT))
    return [LabelledLogits(x.logits[-1:], x.label_BH[:, -1:]) for x in batches], Hierarchy((finest,))


def _log_within(hierarchy: Hierarchy, prior: tuple[NDArray[np.float64], ...] | None) -> list[Tensor]:
    """The logarithm of the prior of each cell of each level within its parent; zeros without a prior."""
    if prior is None:
        return [torch.zeros(count) for count in hierarchy.class_counts]
    within = [prior[0]]
    for h in range(1, len(prior)):
        within.append(prior[h] / prior[h - 1][hierarchy.levels[h].parent_K])
    return [torch.from_numpy(np.log(level)).float() for level in within]


@dataclass(frozen=True, eq=False)
class _Mixture:
    """A share of the prior, mixed into a level's probabilities; `log_prior_K` is not looked at where it is 0."""

    share: float
    log_prior_K: Tensor

    def nll(self, log_probability_BK: Tensor, label_B: Tensor) -> float:
        """Return minus the log-likelihood of the labels, summed over the photos that have one."""
        known_B = label_B != UNKNOWN
        label_B = label_B[known_B]
        log_B = log_probability_BK[known_B].gather(1, label_B[:, None])[:, 0]
        if self.share:
            log_prior_B = self.log_prior_K.index_select(0, label_B) + math.log(self.share)
            log_B = torch.logaddexp(log_B + math.log1p(-self.share), log_prior_B)
        return -float(log_B.sum())


def _mixtures(
    hierarchy: Hierarchy, prior: tuple[NDArray[np.float64], ...] | None, shares: tuple[float, ...]
) -> list[_Mixture]:
    if prior is None or not shares:
        return [_Mixture(0.0, torch.zeros(())) for _ in hierarchy.levels]
    return [
        _Mixture(min(share, 1 - _LEAST_SHARE), torch.from_numpy(np.log(level_K)).float())
        for share, level_K in zip(shares, prior, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class _Level:
    """One level of every batch: logits BK, label_B, and the coarser level's served log-probabilities."""

    logits: list[Tensor]
    labels: list[Tensor]
    coarser: list[Tensor | None]
    parent_K: Tensor
    offset_K: Tensor
    mixed: _Mixture

    def joints(self, temperature: float) -> Iterator[Tensor]:
        for logits_BK, coarser_BK in zip(self.logits, self.coarser, strict=True):
            yield _joint(logits_BK, temperature, coarser_BK, self.parent_K, self.offset_K)

    def loss(self, log_temperature: float, guess: float) -> float:
        joints = zip(self.joints(math.exp(log_temperature)), self.labels, strict=True)
        return sum(self.mixed.nll(joint_BK, label_B) for joint_BK, label_B in joints) + _prior(log_temperature, guess)


def _loss_of_one_for_all(
    log_temperature: float,
    batches: Sequence[LabelledLogits],
    parents: Sequence[Tensor],
    offsets: Sequence[Tensor],
    mixed: Sequence[_Mixture],
) -> float:
    total = 0.0
    for batch in batches:
        joint_BK = None
        for h, logits_BK in enumerate(batch.logits):
            joint_BK = _joint(logits_BK, math.exp(log_temperature), joint_BK, parents[h], offsets[h])
            total += mixed[h].nll(joint_BK, batch.label_BH[:, h])
    # A photo's levels are one observation rather than several.
    return total / len(parents) + _prior(log_temperature, 0.0)


def _joint(
    logits_BK: Tensor, temperature: float, coarser_BK: Tensor | None, parent_K: Tensor, offset_K: Tensor
) -> Tensor:
    """A level's log-probabilities before the prior is mixed in, as `ReadOut` makes them, one level at a time."""
    log_BK = logits_BK.float() / temperature + offset_K
    if coarser_BK is not None:
        log_BK = log_BK + coarser_BK.index_select(1, parent_K)
    return log_BK.log_softmax(dim=1)


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
    temperatures again, given these shares, and so on, `_ROUNDS` times. The radius is
    split-conformal: the share of the probability within which nine tenths of these photos' true places lie, photos in
    no cell among them. Source: Vovk, Gammerman & Shafer 2005; Lei et al. 2018. N photos are in the batches' order.
    """
    fold_N = folds_of(group_N, min(folds, len(np.unique(group_N))))
    pi = None if prior is None else prior.levels(hierarchy)
    ends = np.cumsum([len(batch.label_BH) for batch in batches])
    plain = replace(before, prior=pi, prior_share=(), radius_mass=RADIUS_PROBABILITY)

    def temperatures(known_N: NDArray[np.bool_], shares: tuple[float, ...]) -> tuple[float, ...]:
        parts = np.split(known_N, ends[:-1])
        known = [
            # The photos stay and lose their labels: no copy of the logits.
            LabelledLogits(batch.logits, batch.label_BH.where(torch.from_numpy(known_B)[:, None], UNKNOWN))
            for batch, known_B in zip(batches, parts, strict=True)
        ]
        return fitted_temperatures(known, hierarchy, pi, before.combination, shares)

    def judged(reading: Reading) -> Judged:
        return _judged(batches, lat_deg_N, lon_deg_N, Judge(hierarchy, reading))

    of_fold: dict[int, tuple[float, ...]] = {}
    shares = dict.fromkeys(np.unique(fold_N).tolist(), plain.prior_share)
    share_of_all = plain.prior_share
    before_judged = judged(before)
    apart, gain_low = _empty(before_judged), math.nan
    if pi is not None:
        prior_NH = log_prior_NH(np.concatenate([batch.label_BH.numpy() for batch in batches]), pi)
    for number in range(1 if pi is None else _ROUNDS):
        log.info("fitting without each of %d folds, %d of %d times", len(shares), number + 1, _ROUNDS if pi else 1)
        for fold, share in shares.items():
            of_fold[fold] = temperatures(fold_N != fold, share)
            _put(apart, judged(replace(plain, temperatures=of_fold[fold])), fold_N == fold)
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
        _put(after, judged(replace(plain, temperatures=of_fold[fold], prior_share=share)), fold_N == fold)
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

    grid: list[float] = [_LEAST_SHARE, *(step / 200 for step in range(1, 201))]
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
        values[rows_N] = new[rows_N]


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
