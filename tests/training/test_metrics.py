import math

import numpy as np
import pytest

from training.metrics import THRESHOLDS_KM, Bootstrap, accuracy, by_kind, right_in_cell


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


def test_a_photo_in_no_cell_is_neither_right_nor_wrong() -> None:
    right_N = right_in_cell(np.array([0, 1, 5]), np.array([0, 0, -1]))
    assert right_N[:2].tolist() == [1, 0]
    assert math.isnan(right_N[2])


def test_intervals_of_independent_photos_are_the_binomial_ones() -> None:
    random = np.random.default_rng(1)
    yes_N = random.random(2000) < 0.3
    estimate = Bootstrap({"photos": np.arange(2000)}).share(yes_N)
    assert estimate.value == yes_N.mean()
    half = 1.96 * math.sqrt(estimate.value * (1 - estimate.value) / 2000)
    assert estimate.low == pytest.approx(estimate.value - half, abs=0.15 * half)
    assert estimate.high == pytest.approx(estimate.value + half, abs=0.15 * half)


def test_photos_that_come_in_groups_are_worth_less() -> None:
    """Twenty copies of a hundred photos say no more than the hundred, whichever kind of unit they are copies by."""
    random = np.random.default_rng(2)
    yes_N = np.repeat(random.random(100) < 0.5, 20)
    km_N = np.repeat(random.exponential(500, 100), 20)
    as_groups, as_photos = Bootstrap({"places": np.repeat(np.arange(100), 20)}), Bootstrap({"photos": np.arange(2000)})
    assert as_groups.counts == {"places": 100}
    for grouped, alone in (
        (as_groups.share(yes_N), as_photos.share(yes_N)),
        (as_groups.median(km_N), as_photos.median(km_N)),
    ):
        assert grouped.value == alone.value
        assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low)


@pytest.mark.parametrize("alike_by", ["photographers", "places"])
def test_intervals_hold_the_truth_when_photos_are_alike_by_either_kind(alike_by: str) -> None:
    """Of 40 worlds whose true share is one half, 95 % intervals must miss it in few; photo by photo they miss often."""
    random, missed, missed_by_photos = np.random.default_rng(7), 0, 0
    for world in range(40):
        units = {"photographers": random.integers(0, 40, 300), "places": random.integers(0, 60, 300)}
        chance_U = random.choice([0.1, 0.9], 60)  # of each unit
        yes_N = random.random(300) < chance_U[units[alike_by]]
        both = Bootstrap(units, resamples=100, seed=world).share(yes_N)
        alone = Bootstrap({"photos": np.arange(300)}, resamples=100, seed=world).share(yes_N)
        missed += not both.low <= 0.5 <= both.high
        missed_by_photos += not alone.low <= 0.5 <= alone.high
    assert missed <= 4
    assert missed_by_photos > 8


def test_units_that_are_not_known_do_not_count() -> None:
    yes_N = np.random.default_rng(8).random(100) < 0.4
    places = {"places": np.arange(100)}
    unknown = Bootstrap({"photographers": np.full(100, -1), **places})
    assert unknown.counts == {"places": 100}
    assert unknown.share(yes_N) == Bootstrap(places).share(yes_N)
    few = Bootstrap({"photographers": np.array([5, -1, 5, 9]), "places": np.arange(4)})
    assert few.counts == {"photographers": 2, "places": 4}
    for times_N in few._resamples():
        assert times_N[1] <= 4
        assert (times_N >= 0).all()


def test_the_median_of_a_resample_is_the_median_of_its_photos() -> None:
    random = np.random.default_rng(3)
    km_N, who_N, place_N = random.exponential(100, 41), random.integers(0, 9, 41), random.integers(-1, 7, 41)
    bootstrap = Bootstrap({"photographers": who_N, "places": place_N}, resamples=200, seed=5)
    resampled = [np.median(np.repeat(km_N, times_N)) for times_N in bootstrap._resamples()]
    estimate = bootstrap.median(km_N)
    assert estimate.value == np.median(km_N)
    assert [estimate.low, estimate.high] == pytest.approx(np.quantile(resampled, [0.025, 0.975]))


def test_a_seed_is_an_interval() -> None:
    km_N = np.random.default_rng(4).exponential(100, 50)
    first, again, other = (Bootstrap({"photos": np.arange(50)}, seed=seed).median(km_N) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_all_alike_is_not_certainty() -> None:
    """None of n: with 95 % confidence the share is below 1 - 0.025^(1/n) (Clopper & Pearson)."""
    units = {"places": np.arange(46), "photographers": np.arange(46) % 13}
    none, every = (Bootstrap(units).share(np.full(46, value)) for value in (False, True))
    assert (none.value, none.low, none.high) == (0, 0, pytest.approx(0.2471, abs=1e-4))
    unknown = Bootstrap({"photographers": np.where(np.arange(46) < 6, np.arange(46), -1)})
    assert unknown.share(np.zeros(46)).high == pytest.approx(1 - 0.025 ** (1 / 46))
    assert (every.value, every.low, every.high) == (1, pytest.approx(0.7529, abs=1e-4), 1)


def test_photos_that_a_number_is_not_about_are_left_out() -> None:
    bootstrap = Bootstrap({"places": np.array([0, 0, 1, 2])})
    assert bootstrap.share(np.array([1, 0, np.nan, np.nan])).value == 0.5
    nothing = bootstrap.share(np.full(4, np.nan))
    assert all(math.isnan(x) for x in (nothing.value, nothing.low, nothing.high))


def test_kinds_come_by_number_the_rare_ones_together_and_the_unknown_last() -> None:
    kinds = ["DE", "FR", "FR", None, "IT", "FR", "DE", "CH"]
    km_N = np.array([10.0, 1, 2, 5000, 30, 3, 20, 40])
    lines = by_kind(kinds, km_N, "at sea", 2, "{kinds} countries with 1 photo")
    assert [(line.kind, line.measured.photos) for line in lines] == [
        ("FR", 3),
        ("DE", 2),
        ("2 countries with 1 photo", 2),
        ("at sea", 1),
    ]
    assert [line.measured.median_km for line in lines] == [2, 15, 35, 5000]
    assert [line.kind for line in by_kind(["CH", "DE", "DE"], km_N[:3], "", 2, "{kinds} countries")] == ["DE", "CH"]
