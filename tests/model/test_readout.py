from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.geodecoder import GeoDecoderOutput
from model.readout import BEST_CELL, PRECISION_RADII_KM, Answers, PointRule, Reading, ReadOut
from model.world import s2
from model.world.geodesy import unit_vectors_N3
from model.world.hierarchy import Hierarchy, Level

EARTH_KM = 6371.0


def random_logits(hierarchy: Hierarchy, batch: int, scale: float, seed: int = 0) -> GeoDecoderOutput:
    generator = torch.Generator().manual_seed(seed)
    logits = tuple(torch.randn(batch, count, generator=generator) * scale for count in hierarchy.class_counts)
    return GeoDecoderOutput(logits, torch.randn(batch, 3, generator=generator))


def plain(hierarchy: Hierarchy) -> Reading:
    return Reading.plain(len(hierarchy.levels), BEST_CELL)


def haversine_km(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    a, b, c, d = (math.radians(x) for x in (lat1, lon1, lat2, lon2))
    h = math.sin((c - a) / 2) ** 2 + math.cos(a) * math.cos(c) * math.sin((d - b) / 2) ** 2
    return 2 * EARTH_KM * math.asin(min(1.0, math.sqrt(h)))


def joints(hierarchy: Hierarchy, logits: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """One photo's distributions after the product, by multiplying probabilities cell by cell."""
    result: list[NDArray[np.float64]] = []
    for number, level in enumerate(hierarchy.levels):
        p_K = np.exp(logits[number] - logits[number].max())
        p_K /= p_K.sum()
        if number:
            for cell in range(len(p_K)):
                p_K[cell] *= result[-1][level.parent_K[cell]]
            p_K /= p_K.sum()
        result.append(p_K)
    return result


def brute_radius_km(p_K: NDArray[np.float64], reach_km_K: NDArray[np.float64]) -> float:
    total = 0.0
    for cell in np.argsort(reach_km_K):
        total += p_K[cell]
        if total >= 0.9:
            return float(reach_km_K[cell])
    raise AssertionError("less than 90 % in all")


def distances_km(level: Level, cell: int) -> NDArray[np.float64]:
    return np.array(
        [
            haversine_km(level.lat_deg_K[cell], level.lon_deg_K[cell], lat, lon)
            for lat, lon in zip(level.lat_deg_K, level.lon_deg_K, strict=True)
        ]
    )


@pytest.mark.parametrize("point_rule", ["best-cell", "least-distance"])
@pytest.mark.parametrize("scale", [0.3, 3.0, 12.0])
def test_answers_are_what_brute_force_finds(hierarchy: Hierarchy, scale: float, point_rule: PointRule) -> None:
    temperatures = (1.0, 2.0, 0.5)
    output = random_logits(hierarchy, 12, scale)
    answers = ReadOut(hierarchy, Reading(temperatures, point=point_rule))(output)
    finest = hierarchy.levels[-1]
    for b in range(12):
        logits = [logits[b].double().numpy() / t for logits, t in zip(output.logits, temperatures, strict=True)]
        expected = joints(hierarchy, logits)
        for number, p_K in enumerate(expected):
            assert answers.level_index_BH[b, number] == p_K.argmax()
            assert answers.level_probability_BH[b, number].item() == pytest.approx(p_K.max(), rel=1e-4)
        p_K = expected[-1]
        order = np.argsort(-p_K)[:5]
        assert answers.top_index_BT[b].tolist() == order.tolist()
        np.testing.assert_allclose(answers.top_probability_BT[b], p_K[order], rtol=1e-4)
        point = int(answers.point_index_B[b])
        if point_rule == "best-cell":
            assert point == order[0]
        else:
            expected_km_K = [distances_km(finest, k) @ p_K for k in range(len(finest))]
            assert expected_km_K[point] <= min(expected_km_K[k] for k in order) + 0.01
            assert expected_km_K[point] <= 1.03 * min(expected_km_K)  # not every cell is tried
        assert answers.point_probability_B[b].item() == pytest.approx(p_K[point], rel=1e-4)
        reach_km_K = distances_km(finest, point) + finest.spread_km_K
        assert answers.radius_km_B[b].item() == pytest.approx(brute_radius_km(p_K, reach_km_K), abs=0.05)
        for column, radius_km in enumerate(PRECISION_RADII_KM):
            expected_mass = p_K[reach_km_K <= radius_km].sum()
            assert answers.mass_within_B4[b, column].item() == pytest.approx(expected_mass, abs=1e-5)
        scene_S = torch.softmax(output.scene_logits_BS[b], 0)
        assert answers.scene_index_B[b] == scene_S.argmax()
        torch.testing.assert_close(answers.scene_probability_B[b], scene_S.max())
    assert answers.finite_B.all()


@pytest.mark.parametrize("scale", [0.3, 12.0])
def test_a_groups_probability_is_that_of_all_its_cells(hierarchy: Hierarchy, scale: float) -> None:
    output = random_logits(hierarchy, 12, scale)
    count = hierarchy.class_counts[-1]
    group_K = np.random.default_rng(0).permutation(np.arange(count) % 7)
    answers = ReadOut(hierarchy, plain(hierarchy), group_K)(output)
    for b in range(12):
        p_K = joints(hierarchy, [logits[b].double().numpy() for logits in output.logits])[-1]
        expected_G = np.bincount(group_K, p_K)
        np.testing.assert_allclose(answers.group_probability_BG[b].numpy(), expected_G, atol=2e-6)
    assert (answers.group_probability_BG >= 0).all()
    everything = ReadOut(hierarchy, plain(hierarchy))(output).group_probability_BG
    torch.testing.assert_close(everything, torch.ones(12, 1), rtol=0, atol=2e-6)


def test_groups_of_many_cells_are_added_up_to_a_millionth() -> None:
    """fp32 running sums over as many cells as the paper's finest level has, for the likeliest and the least."""
    count = 21_673
    rng = np.random.default_rng(0)
    cell_id_K = np.unique(s2.cell_id_N(rng.uniform(-80, 80, 3 * count), rng.uniform(-180, 180, 3 * count), 12))[:count]
    lat_deg_K, lon_deg_K = s2.centre_deg_N(cell_id_K)
    level = Level(
        cell_id_K=cell_id_K,
        s2_level_K=np.full(count, 12, np.int8),
        lat_deg_K=lat_deg_K,
        lon_deg_K=lon_deg_K,
        spread_km_K=np.ones(count, np.float32),
        photo_count_K=np.ones(count, np.int64),
        parent_K=np.full(count, -1),
    )
    logits_BK = torch.randn(4, count, generator=torch.Generator().manual_seed(0)) * 3
    group_K = rng.integers(0, 220, count)
    found_BG = ReadOut(Hierarchy((level,)), Reading((1.0,)), group_K)(GeoDecoderOutput((logits_BK,), torch.zeros(4, 1)))
    p_BK = logits_BK.double().softmax(dim=1).numpy()
    expected_BG = np.stack([np.bincount(group_K, p_K) for p_K in p_BK])
    np.testing.assert_allclose(found_BG.group_probability_BG.numpy(), expected_BG, rtol=0, atol=2e-6)


def test_every_level_is_a_distribution_in_fp32_even_for_bf16_logits(hierarchy: Hierarchy) -> None:
    output = random_logits(hierarchy, 4, 5.0)
    read_out = ReadOut(hierarchy, plain(hierarchy))
    for log_BK in read_out.log_probabilities(tuple(logits.bfloat16() for logits in output.logits)):
        assert log_BK.dtype == torch.float32
        torch.testing.assert_close(log_BK.exp().sum(dim=1), torch.ones(4), rtol=0, atol=1e-5)


def test_a_coarse_level_overrules_a_fine_one(hierarchy: Hierarchy) -> None:
    coarse, fine = hierarchy.levels[0], hierarchy.levels[1]
    logits = [torch.zeros(1, count) for count in hierarchy.class_counts]
    wrong, right = 0, int(np.flatnonzero(fine.parent_K != fine.parent_K[0])[0])
    logits[1][0, wrong] = 2.0
    logits[0][0, fine.parent_K[right]] = 50.0
    logits[1][0, right] = 1.0
    answers = ReadOut(hierarchy, plain(hierarchy))(GeoDecoderOutput(tuple(logits), torch.zeros(1, 3)))
    assert len(coarse) == logits[0].shape[1]
    assert answers.level_index_BH[0, 1] == right
    assert fine.parent_K[answers.level_index_BH[0, 1]] == answers.level_index_BH[0, 0]


def one_level(lat_deg: Sequence[float], lon_deg: Sequence[float], spread_km: Sequence[float]) -> Hierarchy:
    """One level of small cells at some points."""
    cell_id_K = s2.cell_id_N(lat_deg, lon_deg, 20)
    order, count = np.argsort(cell_id_K), len(cell_id_K)
    return Hierarchy(
        (
            Level(
                cell_id_K=cell_id_K[order],
                s2_level_K=np.full(count, 20, np.int8),
                lat_deg_K=np.array(lat_deg)[order],
                lon_deg_K=np.array(lon_deg)[order],
                spread_km_K=np.array(spread_km, np.float32)[order],
                photo_count_K=np.full(count, 9),
                parent_K=np.full(count, -1),
            ),
        )
    )


def pair(lat_deg: tuple[float, float], lon_deg: tuple[float, float], spread_km: tuple[float, float]) -> Hierarchy:
    return one_level(lat_deg, lon_deg, spread_km)


def even(hierarchy: Hierarchy) -> Answers[torch.Tensor]:
    return ReadOut(hierarchy, plain(hierarchy))(GeoDecoderOutput((torch.zeros(1, 2),), torch.zeros(1, 1)))


def test_radius_crosses_the_antimeridian() -> None:
    answers = even(pair((-17.0, -17.0), (179.95, -179.95), (0.0, 0.0)))
    expected_km = haversine_km(-17.0, 179.95, -17.0, -179.95)
    assert expected_km == pytest.approx(10.6, abs=0.1)
    assert answers.radius_km_B.item() == pytest.approx(expected_km, abs=0.03)
    assert answers.mass_within_B4[0].tolist() == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("metres", [2.0, 30.0, 900.0])
def test_short_distances_survive_fp32(metres: float) -> None:
    answers = even(pair((48.0, 48.0 + metres / 1000.0 / 111.195), (11.0, 11.0), (0.0, 0.0)))
    assert answers.radius_km_B.item() == pytest.approx(metres / 1000.0, abs=0.021)
    assert answers.mass_within_B4[0, 0].item() == 1.0


def test_antipodes_and_poles() -> None:
    answers = even(pair((90.0, -90.0), (0.0, 0.0), (0.0, 0.0)))
    assert answers.radius_km_B.item() == pytest.approx(math.pi * EARTH_KM, abs=0.1)
    assert answers.mass_within_B4[0].tolist() == [0.5] * 4


def test_a_cells_spread_is_part_of_its_reach() -> None:
    hierarchy = pair((10.0, 10.0), (20.0, 40.0), (3.0, 3.0))
    sure = GeoDecoderOutput((torch.tensor([[9.0, -9.0]]),), torch.zeros(1, 1))
    answers = ReadOut(hierarchy, plain(hierarchy))(sure)
    assert answers.radius_km_B.item() == pytest.approx(3.0, abs=0.021)
    np.testing.assert_allclose(answers.mass_within_B4[0].numpy(), [0.0, 1.0, 1.0, 1.0], atol=1e-6)
    assert answers.top_index_BT.shape == (1, 2), "two cells have no top five"


def least_distance(hierarchy: Hierarchy, probability: dict[float, float]) -> tuple[float, Answers[torch.Tensor]]:
    """Return the point's longitude, and the answers, where cells have a probability by their longitude."""
    level = hierarchy.levels[0]
    logits_BK = torch.tensor([[math.log(probability[lon]) for lon in level.lon_deg_K.tolist()]])
    read_out = ReadOut(hierarchy, Reading((1.0,), point="least-distance"))
    answers = read_out(GeoDecoderOutput((logits_BK,), torch.zeros(1, 1)))
    return float(level.lon_deg_K[int(answers.point_index_B)]), answers


def test_between_two_places_the_point_is_where_nothing_is_far() -> None:
    """A lonely favourite far from everything loses; a town with a low probability of its own wins between the others.

    In the last case it is none of the top five: only the median finds it.
    """
    hierarchy = one_level((10.0,) * 8, (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 120.0), (5.0,) * 8)
    lonely = {120.0: 0.16} | dict.fromkeys((0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0), 0.12)
    lon_deg, answers = least_distance(hierarchy, lonely)
    assert lon_deg == 4  # half of the probability is west of it
    assert answers.point_probability_B.item() == pytest.approx(0.12, rel=1e-5)
    assert hierarchy.levels[0].lon_deg_K[int(answers.top_index_BT[0, 0])] == 120  # alternatives stay by probability
    assert answers.mass_within_B4[0, 3].item() == pytest.approx(0.84, rel=1e-5)
    beside = {0.0: 0.165, 1.0: 0.165, 2.0: 0.165, 3.0: 0.01, 4.0: 0.165, 5.0: 0.165, 6.0: 0.155, 120.0: 0.01}
    lon_deg, answers = least_distance(hierarchy, beside)
    assert lon_deg == 3
    assert hierarchy.levels[0].lon_deg_K.tolist().index(3.0) not in answers.top_index_BT[0].tolist()


def test_the_median_does_not_stay_with_a_cell_that_it_comes_upon() -> None:
    """The search begins at the mean, where there is a cell of hardly any probability: it must go on to where most is.

    East of the place that nothing is far from, half of the probability lies: two of the six towns and the far one. It
    is none of the top five, so that only the median finds it.
    """
    towns = dict.fromkeys((0.0, 1.0, 2.0, 3.0, 5.0, 6.0), 0.79 / 6) | {4.0: 0.01, 30.0: 0.2}
    unit_N3 = unit_vectors_N3(np.zeros(len(towns)), np.array(list(towns)))
    mean_3 = np.array(list(towns.values())) @ unit_N3
    at_mean = math.degrees(math.atan2(mean_3[1], mean_3[0]))
    probability = {lon: 0.995 * p for lon, p in towns.items()} | {at_mean: 0.005}
    hierarchy = one_level((0.0,) * len(probability), tuple(probability), (5.0,) * len(probability))
    lon_deg, answers = least_distance(hierarchy, probability)
    assert 8 < at_mean < 9
    assert hierarchy.levels[0].lon_deg_K.tolist().index(4.0) not in answers.top_index_BT[0].tolist()
    assert lon_deg == 4


def test_one_clear_place_is_the_point_under_both_rules() -> None:
    hierarchy = one_level((0.0,) * 3, (-179.0, 0.0, 179.0), (5.0,) * 3)
    lon_deg, answers = least_distance(hierarchy, {-179.0: 0.04, 0.0: 0.93, 179.0: 0.03})
    assert lon_deg == 0
    # Across the antimeridian: two places 222 km apart outweigh the favourite on the other side of the world.
    lon_deg, answers = least_distance(hierarchy, {-179.0: 0.32, 0.0: 0.4, 179.0: 0.28})
    assert lon_deg == -179
    assert answers.mass_within_B4[0].tolist() == pytest.approx([0.0, 0.32, 0.32, 0.6], abs=1e-6)


@pytest.mark.parametrize("point_rule", ["best-cell", "least-distance", "auto"])
def test_extreme_logits_of_many_classes_stay_numbers(point_rule: PointRule) -> None:
    count = 21_673
    rng = np.random.default_rng(0)
    cell_id_K = np.unique(s2.cell_id_N(rng.uniform(-80, 80, 3 * count), rng.uniform(-180, 180, 3 * count), 12))[:count]
    lat_deg_K, lon_deg_K = s2.centre_deg_N(cell_id_K)
    level = Level(
        cell_id_K=cell_id_K,
        s2_level_K=np.full(count, 12, np.int8),
        lat_deg_K=lat_deg_K,
        lon_deg_K=lon_deg_K,
        spread_km_K=np.ones(count, np.float32),
        photo_count_K=np.ones(count, np.int64),
        parent_K=np.full(count, -1),
    )
    logits_BK = torch.randn(3, count) * 3
    logits_BK[1] *= 1e30
    logits_BK[2] = 0.0
    prior_K = rng.uniform(1e-9, 1.0, count)
    reading = Reading((1.0,), (prior_K / prior_K.sum(),), point=point_rule)
    read_out = ReadOut(Hierarchy((level,)), reading)
    answers = read_out(GeoDecoderOutput((logits_BK,), torch.zeros(3, 1)))
    for field in answers:
        assert torch.isfinite(field.double()).all()
    assert answers.finite_B.all()
    assert answers.level_probability_BH[1, 0] == 1.0
    assert answers.top_probability_BT[2, 0].item() == pytest.approx(prior_K.max() / prior_K.sum(), rel=1e-3)
    assert answers.information_bits_B[2].item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 2, "scene"])
def test_numbers_that_are_not_finite_are_told(hierarchy: Hierarchy, poison: float, place: int | str) -> None:
    output = random_logits(hierarchy, 3, 1.0)
    target = output.scene_logits_BS if place == "scene" else output.logits[int(place)]
    target[1, 0] = poison
    assert ReadOut(hierarchy, plain(hierarchy))(output).finite_B.tolist() == [True, False, True]


@pytest.mark.parametrize("temperatures", [(1.0,), (1.0, 0.0, 1.0), (1.0, math.inf, 1.0), (1.0, math.nan, 1.0)])
def test_temperatures_must_fit(hierarchy: Hierarchy, temperatures: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"3 levels need|every level needs a positive temperature"):
        ReadOut(hierarchy, Reading(temperatures))
