"""How often a model is right, by how sure it is: photos of like confidence go together in bins.

Shapes: N photos, S steps of confidence, Q bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_BINS = 10
FEWEST_IN_BIN = 10
_STEPS = 1000


@dataclass(frozen=True)
class Bin:
    """Photos of like confidence: how many, how sure the model was on average, and what share it had right."""

    photos: int
    said: float
    was: float


def equal_bins(confidence_N: NDArray[np.float64], right_N: NDArray[np.float64]) -> tuple[Bin, ...]:
    """Return at most `MOST_BINS` bins of equally many photos, `FEWEST_IN_BIN` or more, the least sure first."""
    order = np.argsort(confidence_N, kind="stable")
    parts = np.array_split(order, max(1, min(MOST_BINS, len(order) // FEWEST_IN_BIN))) if len(order) else []
    return tuple(Bin(len(x), float(confidence_N[x].mean()), float(right_N[x].mean())) for x in parts)


class BinCounts:
    """Bins of about equally many photos that pass by in any number: only sums by steps of confidence are kept."""

    def __init__(self) -> None:
        self._photos_S, self._said_S, self._right_S = np.zeros((3, _STEPS))

    def add(self, confidence_N: NDArray[np.floating[Any]], right_N: NDArray[np.bool_]) -> None:
        """Count photos, and which of them the model had right."""
        step_N = np.clip((confidence_N * _STEPS).astype(np.int64), 0, _STEPS - 1)
        self._photos_S += np.bincount(step_N, minlength=_STEPS)
        self._said_S += np.bincount(step_N, confidence_N, _STEPS)
        self._right_S += np.bincount(step_N, right_N, _STEPS)

    def bins(self) -> tuple[Bin, ...]:
        """Return at most `MOST_BINS` bins, the least sure first."""
        photos = self._photos_S.sum()
        if not photos:
            return ()
        # Steps go together until they hold about as many photos as their neighbours.
        bin_S = np.minimum((np.cumsum(self._photos_S) - self._photos_S / 2) / photos, 0.999999) * MOST_BINS
        sums = [np.bincount(bin_S.astype(int), x, MOST_BINS) for x in (self._photos_S, self._said_S, self._right_S)]
        photos_Q, said_Q, right_Q = (x.tolist() for x in sums)
        return tuple(
            Bin(int(count), said / count, right / count)
            for count, said, right in zip(photos_Q, said_Q, right_Q, strict=True)
            if count
        )


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the mean over photos of the distance between what was said of their bin and what was so; NaN for none."""
    photos = sum(x.photos for x in bins)
    return sum(x.photos * abs(x.said - x.was) for x in bins) / photos if photos else math.nan
