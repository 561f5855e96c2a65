import math

import numpy as np
import pytest

from training.metrics import THRESHOLDS_KM, accuracy, level_accuracy


def test_the_fields_thresholds_count_a_photo_at_the_limit() -> None:
    assert list(THRESHOLDS_KM.values()) == [1, 25, 200, 750, 2500]
    measured = accuracy(np.array([1.0, 1.0001, 25.0, 200.0, 200.1, 750.0, 2500.0, 2500.1, 20_000, 0.0]))
    assert list(measured.share_within.values()) == [0.2, 0.4, 0.5, 0.7, 0.8]
    assert measured.median_km == pytest.approx(200.05)
    assert measured.photos == 10


@pytest.mark.parametrize("errors", [[], [1.0, math.nan], [math.inf]])
def test_no_photos_or_no_numbers_are_refused(errors: list[float]) -> None:
    with pytest.raises(ValueError, match="one photo or more"):
        accuracy(np.array(errors))


def test_level_accuracy_counts_photos_that_have_a_cell() -> None:
    best_NH = np.array([[0, 1, 5], [1, 1, 5], [0, 0, 5]])
    label_NH = np.array([[0, 1, -1], [0, -1, -1], [0, 1, -1]])
    (first, second, third) = level_accuracy(best_NH, label_NH)
    assert first == (3, pytest.approx(2 / 3))
    assert second == (2, 0.5)
    assert third[0] == 0
    assert math.isnan(third[1])
