"""How sure a model may be: one temperature a level, fitted to photos whose cells are known.

Shapes: B batch, H levels, K cells of one level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from model.readout import Combination
from model.world.hierarchy import NO_PARENT, Hierarchy
from training.loss import UNKNOWN

FEWEST_LABELS = 10
"""With fewer labels, over all levels, every temperature stays 1."""
LEAST_SHARE = 0.001
"""A network and its prior keep a share of at least this beside each other."""
_WIDEST_LOG, _NEAR_LOG = math.log(1000.0), 0.3
_LOG_TOLERANCE = 2e-5


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
    prior), so a search over its logarithm by golden sections and parabolas (Brent 1973) finds the minimum. With
    `shares` of the prior, which are mixed in last, it is so only nearly. Source: temperature scaling, Guo et al. 2017;
    there one for a single softmax.
    """
    return fitted_near(batches, hierarchy, prior, combination, shares).temperatures


class Fitted(NamedTuple):
    """Temperatures of levels that were fitted, and the logarithm of the one for all of them."""

    log_common: float
    temperatures: tuple[float, ...]


def fitted_near(
    batches: Sequence[LabelledLogits],
    hierarchy: Hierarchy,
    prior: tuple[NDArray[np.float64], ...] | None,
    combination: Combination,
    shares: tuple[float, ...],
    near: Fitted | None = None,
) -> Fitted:
    """Fit as `fitted_temperatures` says; each is looked for first around the one in `near`, of much the same photos."""
    levels = len(hierarchy.levels)
    if combination == "sum":
        batches, hierarchy = _finest_alone(batches, hierarchy)
        mixed = _mixtures(hierarchy, prior[-1:] if prior else None, shares[-1:])
        log_common, finest = _fitted_by_product(batches, hierarchy, [torch.zeros(())], mixed, near)
        return Fitted(log_common, finest * levels)
    mixed = _mixtures(hierarchy, prior, shares)
    return _fitted_by_product(batches, hierarchy, _log_within(hierarchy, prior), mixed, near)


def _fitted_by_product(
    batches: Sequence[LabelledLogits],
    hierarchy: Hierarchy,
    offsets: Sequence[Tensor],
    mixed: Sequence[_Mixture],
    near: Fitted | None,
) -> Fitted:
    levels = len(hierarchy.levels)
    count_H = [sum(int((batch.label_BH[:, h] != UNKNOWN).sum()) for batch in batches) for h in range(levels)]
    if sum(count_H) < FEWEST_LABELS:
        return Fitted(0.0, (1.0,) * levels)
    parents = [torch.from_numpy(level.parent_K.astype(np.int64)) for level in hierarchy.levels]
    common = _least(
        lambda log_temperature: _loss_of_one_for_all(log_temperature, batches, parents, offsets, mixed),
        near.log_common if near else None,
    )
    coarser: list[Tensor | None] = [None] * len(batches)
    fitted: list[float] = []
    for h in range(levels):
        logits, labels = [x.logits[h] for x in batches], [x.label_BH[:, h] for x in batches]
        level = _Level(logits, labels, coarser, parents[h], offsets[h], mixed[h])
        guess = math.log(near.temperatures[h]) if near else None
        log_temperature = _least(partial(level.loss, guess=common), guess) if count_H[h] else common
        fitted.append(round(math.exp(log_temperature), 3))
        coarser = [*level.joints(fitted[-1])]
    return Fitted(common, tuple(fitted))


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
        return -float(log_B.double().sum())


def _mixtures(
    hierarchy: Hierarchy, prior: tuple[NDArray[np.float64], ...] | None, shares: tuple[float, ...]
) -> list[_Mixture]:
    if prior is None or not shares:
        return [_Mixture(0.0, torch.zeros(())) for _ in hierarchy.levels]
    return [
        _Mixture(min(share, 1 - LEAST_SHARE), torch.from_numpy(np.log(level_K)).float())
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


def _least(function: Callable[[float], float], near: float | None) -> float:
    """Return where a function of a temperature's logarithm, with one valley, is least.

    It is looked for around `near` first, which takes a third of the steps, and everywhere if the valley is not there.
    """
    if near is not None:
        found = _least_between(function, near - _NEAR_LOG, near + _NEAR_LOG)
        if abs(found - near) < _NEAR_LOG - 10 * _LOG_TOLERANCE:
            return found
    return _least_between(function, -_WIDEST_LOG, _WIDEST_LOG)


def _least_between(function: Callable[[float], float], low: float, high: float) -> float:
    found = minimize_scalar(function, bounds=(low, high), method="bounded", options={"xatol": _LOG_TOLERANCE})
    return float(found.x)
