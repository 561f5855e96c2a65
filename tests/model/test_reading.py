"""A reading of logits against one worked out cell by cell in float64: prior, shares, sums, radius, point."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.geodecoder import GeoDecoderOutput
from model.readout import Combination, PointRule, Reading, ReadOut
from model.world.hierarchy import Hierarchy
from model.world.prior import Prior
from tests.model.test_readout import brute_radius_km, distances_km, joints, one_level, random_logits

TEMPERATURES = (1.0, 2.0, 0.5)
SHARES = (0.1, 0.35, 0.6)
COMBINATIONS: tuple[Combination, Combination] = ("product", "sum")


@pytest.fixture(scope="module")
def pi(hierarchy: Hierarchy) -> tuple[NDArray[np.float64], ...]:
    """The prior of photos of the same regions as the hierarchy's, but others."""
    rng = np.random.default_rng(3)
    return Prior.of(rng.normal(-15, 8, 3000), rng.normal(180, 12, 3000)).levels(hierarchy)


def silent(hierarchy: Hierarchy, batch: int) -> GeoDecoderOutput:
    """What a network gives that tells nothing: for all cells of a level the same, another number each."""
    rows_B1 = torch.arange(batch)[:, None] * 3.0
    return GeoDecoderOutput(
        tuple(rows_B1 + torch.zeros(batch, count) for count in hierarchy.class_counts), torch.zeros(batch, 3)
    )


def summed(hierarchy: Hierarchy, logits_K: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """One photo's distributions by the finest level alone, each cell's probability added to all that hold it."""
    p_K = np.exp(logits_K - logits_K.max())
    levels = [p_K / p_K.sum()]
    for level, coarser in zip(hierarchy.levels[:0:-1], hierarchy.class_counts[-2::-1], strict=True):
        above_K = np.zeros(coarser)
        for cell, parent in enumerate(level.parent_K.tolist()):
            above_K[parent] += levels[0][cell]
        levels.insert(0, above_K)
    return levels


def by_hand(hierarchy: Hierarchy, reading: Reading, output: GeoDecoderOutput, photo: int) -> list[NDArray[np.float64]]:
    """One photo's distributions as they should be served."""
    logits = [x[photo].double().numpy() / t for x, t in zip(output.logits, reading.temperatures, strict=True)]
    if reading.combination == "sum":
        levels = summed(hierarchy, logits[-1])
    else:
        within = [np.zeros(count) for count in hierarchy.class_counts]
        if reading.prior is not None:
            for number, (level, prior_K) in enumerate(zip(hierarchy.levels, reading.prior, strict=True)):
                above_K = reading.prior[number - 1][level.parent_K] if number else 1.0
                within[number] = np.log(prior_K / above_K)
        levels = joints(hierarchy, [x + y for x, y in zip(logits, within, strict=True)])
    if reading.prior is None:
        return levels
    return [
        (1 - share) * p_K + share * prior_K
        for p_K, prior_K, share in zip(levels, reading.prior, reading.prior_share, strict=True)
    ]


def test_a_silent_network_gives_exactly_the_prior_at_every_level(
    hierarchy: Hierarchy, pi: tuple[NDArray[np.float64], ...]
) -> None:
    group_K = np.arange(len(pi[-1])) % 5
    for shares in ((), SHARES):
        read_out = ReadOut(hierarchy, Reading(TEMPERATURES, pi, shares), group_K)
        output = silent(hierarchy, 3)
        for log_BK, prior_K in zip(read_out.log_probabilities(output.logits), pi, strict=True):
            np.testing.assert_allclose(log_BK.exp().numpy(), np.tile(prior_K, (3, 1)), rtol=2e-5)
        answers = read_out(output)
        for level, prior_K in enumerate(pi):
            best_B = prior_K[answers.level_index_BH[:, level].numpy()]
            np.testing.assert_allclose(best_B, prior_K.max(), rtol=1e-5)
        np.testing.assert_allclose(answers.group_probability_BG[2].numpy(), np.bincount(group_K, pi[-1]), atol=2e-6)
        np.testing.assert_allclose(answers.information_bits_B.numpy(), 0, atol=1e-5)
        assert answers.finite_B.all()


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_a_share_of_one_is_the_prior_whatever_the_network_says(
    hierarchy: Hierarchy, pi: tuple[NDArray[np.float64], ...], combination: Combination
) -> None:
    reading = Reading(TEMPERATURES, pi, (1.0, 1.0, 1.0), combination=combination)
    assert reading.is_prior
    assert not replace(reading, prior_share=(1.0, 1.0, 0.99)).is_prior
    assert not Reading(TEMPERATURES, pi).is_prior
    read_out, output = ReadOut(hierarchy, reading), random_logits(hierarchy, 8, 12.0)
    for log_BK, prior_K in zip(read_out.log_probabilities(output.logits), pi, strict=True):
        np.testing.assert_allclose(log_BK.exp().numpy(), np.tile(prior_K, (8, 1)), rtol=1e-5)
    answers = read_out(output)
    np.testing.assert_allclose(answers.information_bits_B.numpy(), 0, atol=1e-5)
    assert len(set(answers.point_index_B.tolist())) == 1


@pytest.mark.parametrize("combination", COMBINATIONS)
@pytest.mark.parametrize("shares", [(0.0, 0.0, 0.0), SHARES, (0.0, 1.0, 0.5)])
@pytest.mark.parametrize("scale", [0.3, 3.0, 12.0])
def test_what_is_served_is_the_network_and_the_prior_mixed(
    hierarchy: Hierarchy,
    pi: tuple[NDArray[np.float64], ...],
    combination: Combination,
    shares: tuple[float, ...],
    scale: float,
) -> None:
    reading = Reading(TEMPERATURES, pi, shares, combination=combination)
    output = random_logits(hierarchy, 10, scale)
    read_out = ReadOut(hierarchy, reading)
    served, answers = read_out.log_probabilities(output.logits), read_out(output)
    for photo in range(10):
        expected = by_hand(hierarchy, reading, output, photo)
        for level, p_K in enumerate(expected):
            np.testing.assert_allclose(served[level][photo].exp().numpy(), p_K, rtol=3e-4, atol=2e-6)
            assert answers.level_index_BH[photo, level] == p_K.argmax()
        divergence = sum(p * math.log2(p / q) for p, q in zip(expected[-1], pi[-1], strict=True) if p > 0)
        assert answers.information_bits_B[photo].item() == pytest.approx(divergence, rel=1e-3, abs=1e-4)
        finest = hierarchy.levels[-1]
        reach_km_K = distances_km(finest, int(answers.point_index_B[photo])) + finest.spread_km_K
        radius_km = brute_radius_km(expected[-1], reach_km_K)
        assert answers.radius_km_B[photo].item() == pytest.approx(radius_km, abs=0.05)


def test_by_the_sum_a_coarse_cell_has_what_its_fine_cells_have_and_coarse_logits_have_no_say(
    hierarchy: Hierarchy,
) -> None:
    reading = Reading((7.0, 7.0, 2.0), combination="sum", point="best-cell")
    output = random_logits(hierarchy, 6, 8.0)
    served = ReadOut(hierarchy, reading).log_probabilities(output.logits)
    other = random_logits(hierarchy, 6, 8.0, seed=1)
    mixed = (*other.logits[:-1], output.logits[-1])
    for level, log_BK in enumerate(ReadOut(hierarchy, reading).log_probabilities(mixed)):
        torch.testing.assert_close(log_BK, served[level], rtol=0, atol=0)
    for photo in range(6):
        expected = summed(hierarchy, output.logits[-1][photo].double().numpy() / 2.0)
        for level, p_K in enumerate(expected):
            np.testing.assert_allclose(served[level][photo].exp().numpy(), p_K, rtol=1e-4, atol=2e-6)
            assert served[level][photo].exp().sum().item() == pytest.approx(1, abs=1e-5)
            assert torch.isfinite(served[level][photo]).all()


def test_without_a_prior_there_is_no_telling_how_much_a_photo_said(hierarchy: Hierarchy) -> None:
    answers = ReadOut(hierarchy, Reading(TEMPERATURES))(random_logits(hierarchy, 4, 3.0))
    assert answers.information_bits_B.isnan().all()
    assert answers.finite_B.all()


@pytest.mark.parametrize("mass", [0.05, 0.5, 0.9, 0.97, 1.0])
def test_the_radius_is_the_smallest_that_holds_so_much(hierarchy: Hierarchy, mass: float) -> None:
    output = random_logits(hierarchy, 10, 3.0)
    reading = Reading((1.0, 1.0, 1.0), radius_mass=mass, point="best-cell")
    answers, finest = ReadOut(hierarchy, reading)(output), hierarchy.levels[-1]
    for photo in range(10):
        p_K = by_hand(hierarchy, reading, output, photo)[-1]
        reach_km_K = distances_km(finest, int(answers.point_index_B[photo])) + finest.spread_km_K
        radius_km = answers.radius_km_B[photo].item()
        inside, inside_less = (p_K[reach_km_K <= km].sum() for km in (radius_km + 0.05, radius_km - 0.05))
        assert inside >= mass - 1e-5
        assert inside_less <= mass + 1e-5


def auto(probability: dict[float, float], spread_km: float = 5.0) -> tuple[float, float]:
    """Return the longitudes of the point by the rule `auto`, and of the best cell, of cells on the equator."""
    hierarchy = one_level((0.0,) * len(probability), tuple(probability), (spread_km,) * len(probability))
    lon_deg_K = hierarchy.levels[0].lon_deg_K
    logits_BK = torch.tensor([[math.log(probability[lon]) for lon in lon_deg_K.tolist()]])
    answers = ReadOut(hierarchy, Reading((1.0,)))(GeoDecoderOutput((logits_BK,), torch.zeros(1, 1)))
    return tuple(float(lon_deg_K[int(index)]) for index in (answers.point_index_B, answers.top_index_BT[:, 0]))


def test_the_point_is_the_best_cell_where_the_city_around_it_holds_half() -> None:
    # A town of its own: 0.4 in one cell and 0.12 in one 11 km beside it; all else is far away on one side.
    assert auto({0.0: 0.4, 0.1: 0.12, 50.0: 0.24, 51.0: 0.24}) == (0.0, 0.0)
    # A little less in the one beside it: now the point is where the photo is least far away.
    assert auto({0.0: 0.38, 0.1: 0.11, 50.0: 0.255, 51.0: 0.255}) == (50.0, 0.0)
    # As much, but 28 km away: the city does not hold it.
    assert auto({0.0: 0.4, 0.25: 0.12, 3.0: 0.12, 3.2: 0.12, 3.4: 0.12, 3.6: 0.12})[0] != 0.0
    # Cells as wide as that are not within 25 km, however near their middle.
    assert auto({0.0: 0.4, 0.1: 0.12, 3.0: 0.12, 3.2: 0.12, 3.4: 0.12, 3.6: 0.12}, spread_km=24.0)[0] != 0.0
    assert auto({0.0: 0.4, 0.1: 0.12, 3.0: 0.12, 3.2: 0.12, 3.4: 0.12, 3.6: 0.12}, spread_km=5.0)[0] == 0.0


def test_auto_is_one_of_the_other_two_rules_for_every_photo(hierarchy: Hierarchy) -> None:
    output = random_logits(hierarchy, 200, 8.0)
    rules: tuple[PointRule, ...] = ("auto", "best-cell", "least-distance")
    by = {rule: ReadOut(hierarchy, Reading((1.0, 1.0, 1.0), point=rule))(output) for rule in rules}
    is_sure_B = by["best-cell"].mass_within_B4[:, 1] >= 0.5
    assert 0 < is_sure_B.sum() < 200
    expected_B = by["best-cell"].point_index_B.where(is_sure_B, by["least-distance"].point_index_B)
    torch.testing.assert_close(by["auto"].point_index_B, expected_B, rtol=0, atol=0)
    assert (by["best-cell"].point_index_B != expected_B).any()


def test_readings_that_are_none_are_refused(hierarchy: Hierarchy, pi: tuple[NDArray[np.float64], ...]) -> None:
    for share in ((0.1, 0.1), (0.1, 0.1, 1.1), (0.1, 0.1, -0.1), (0.1, 0.1, math.nan)):
        with pytest.raises(ValueError, match="3 levels need as many shares from 0 to 1"):
            Reading(TEMPERATURES, pi, share)
    with pytest.raises(ValueError, match="a share of the prior needs a prior"):
        Reading(TEMPERATURES, None, SHARES)
    with pytest.raises(ValueError, match="3 levels need as many priors, not 2"):
        Reading(TEMPERATURES, pi[:2], SHARES)
    for mass in (0.0, -0.1, 1.01, math.nan):
        with pytest.raises(ValueError, match="radius must hold a share"):
            Reading(TEMPERATURES, radius_mass=mass)
    with pytest.raises(ValueError, match="every level needs a positive temperature"):
        Reading(())
    with pytest.raises(ValueError, match="the prior has other cells than the hierarchy"):
        ReadOut(hierarchy, Reading(TEMPERATURES, (pi[0], pi[1], pi[2][:-1])))
