import math

import numpy as np
import pytest

from pipeline.report.reliability import Bin, BinCounts, calibration_error, equal_bins


def test_bins_hold_equally_many_photos_and_the_error_is_their_mean_distance() -> None:
    confidence_N = np.repeat([0.9, 0.2], 10)
    right_N = np.array([1] * 5 + [0] * 5 + [1] * 3 + [0] * 7, np.float64)
    bins = equal_bins(confidence_N, right_N)
    assert bins == (Bin(10, pytest.approx(0.2), 0.3), Bin(10, pytest.approx(0.9), 0.5))
    assert calibration_error(bins) == pytest.approx((0.1 + 0.4) / 2)
    assert len(equal_bins(np.arange(1000) / 1000, np.zeros(1000))) == 10
    assert len(equal_bins(np.array([0.5]), np.array([1.0]))) == 1
    assert math.isnan(calibration_error(equal_bins(np.array([]), np.array([]))))


def test_photos_that_pass_by_are_binned_as_those_in_memory() -> None:
    """To a step of confidence: the sums in all are exact, a bin's are its neighbours' by a few photos."""
    random = np.random.default_rng(0)
    confidence_N = random.beta(1, 3, 5000)
    right_N = random.uniform(size=5000) < confidence_N**1.5
    counts = BinCounts()
    for start in range(0, 5000, 700):
        counts.add(confidence_N[start : start + 700], right_N[start : start + 700])
    bins, exact = counts.bins(), equal_bins(confidence_N, right_N.astype(np.float64))
    assert sum(x.photos for x in bins) == 5000
    assert sum(x.photos * x.was for x in bins) == pytest.approx(right_N.sum())
    assert sum(x.photos * x.said for x in bins) == pytest.approx(confidence_N.sum())
    for one, other in zip(bins, exact, strict=True):
        assert one.photos == pytest.approx(other.photos, abs=25)
        assert (one.said, one.was) == pytest.approx((other.said, other.was), abs=0.02)
    assert calibration_error(bins) == pytest.approx(calibration_error(exact), abs=0.005)
    assert calibration_error(bins) > 0.05
    assert BinCounts().bins() == ()
