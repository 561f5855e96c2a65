import math

import numpy as np
import pytest
import torch

from model.geodecoder import GeoDecoderOutput
from model.readout import BEST_CELL, Reading, ReadOut
from model.world import geodesy
from model.world.hierarchy import Hierarchy
from pipeline.report.reliability import Bin
from training.evaluate.calibration import Judge, Judged, reliability
from training.evaluate.temperatures import LabelledLogits, fitted_temperatures
from training.hierarchy import PartitionConfig, build_hierarchy


@pytest.fixture(scope="module")
def hierarchy() -> Hierarchy:
    rng = np.random.default_rng(0)
    lat_deg_N, lon_deg_N = np.degrees(np.arcsin(rng.uniform(-1, 1, 3000))), rng.uniform(-180, 180, 3000)
    return build_hierarchy(lat_deg_N, lon_deg_N, PartitionConfig(tau_min=2, tau_max=(800, 200, 60)))


def batches_of(
    hierarchy: Hierarchy, temperatures: tuple[float, ...], photos: int, seed: int = 0
) -> list[LabelledLogits]:
    """Photos whose labels are drawn from what would be served with `temperatures`, each level's by itself."""
    generator = torch.Generator().manual_seed(seed)
    logits = tuple(3 * torch.randn(photos, count, generator=generator) for count in hierarchy.class_counts)
    joints = ReadOut(hierarchy, Reading(temperatures)).log_probabilities(logits)
    label_BH = torch.stack([joint.exp().multinomial(1, generator=generator)[:, 0] for joint in joints], dim=1)
    return [LabelledLogits(tuple(x[k : k + 64] for x in logits), label_BH[k : k + 64]) for k in range(0, photos, 64)]


def served_nll(
    hierarchy: Hierarchy, temperatures: tuple[float, ...], batches: list[LabelledLogits], level: int
) -> float:
    read_out = ReadOut(hierarchy, Reading(temperatures))
    return sum(
        float(-read_out.log_probabilities(batch.logits)[level].gather(1, batch.label_BH[:, level, None]).sum())
        for batch in batches
    )


def test_each_level_finds_the_temperature_that_made_its_labels(hierarchy: Hierarchy) -> None:
    truth = (2.0, 5.0, 1.0)
    fitted = fitted_temperatures(batches_of(hierarchy, truth, 3000), hierarchy)
    assert fitted == pytest.approx(truth, rel=0.1)


def test_what_is_fitted_is_what_is_served(hierarchy: Hierarchy) -> None:
    """No temperature of a level, a little to either side, serves its labels better; by the read-out itself."""
    batches = batches_of(hierarchy, (2.0, 5.0, 1.0), 600, seed=1)
    fitted = fitted_temperatures(batches, hierarchy)
    for level in range(3):
        best = served_nll(hierarchy, fitted, batches, level)
        for factor in (0.9, 1.1):
            other = (*fitted[:level], fitted[level] * factor, *fitted[level + 1 :])
            assert served_nll(hierarchy, other, batches, level) > best


def test_levels_that_say_the_same_thing_twice_are_cooled(hierarchy: Hierarchy) -> None:
    """A level whose logits only repeat its parents' adds nothing, so it must not make the product surer."""
    generator = torch.Generator().manual_seed(3)
    coarse = 3 * torch.randn(2000, hierarchy.class_counts[0], generator=generator)
    repeated = [coarse]
    for level in hierarchy.levels[1:]:
        repeated.append(repeated[-1][:, torch.from_numpy(level.parent_K.astype(np.int64))])
    label = [coarse.softmax(dim=1).multinomial(1, generator=generator)[:, 0]]
    for level in hierarchy.levels[1:]:
        child_of = torch.from_numpy(level.parent_K.astype(np.int64))[None] == label[-1][:, None]
        label.append(child_of.double().multinomial(1, generator=generator)[:, 0])
    fitted = fitted_temperatures([LabelledLogits(tuple(repeated), torch.stack(label, dim=1))], hierarchy)
    assert fitted[0] == pytest.approx(1, rel=0.15)
    assert min(fitted[1:]) > 5


def test_few_labels_stay_near_the_temperature_of_all_levels(hierarchy: Hierarchy) -> None:
    batches = batches_of(hierarchy, (4.0, 4.0, 4.0), 512, seed=4)
    none = [LabelledLogits(x.logits, torch.where(torch.tensor([True, True, False]), x.label_BH, -1)) for x in batches]
    first = fitted_temperatures(none, hierarchy)
    few = [LabelledLogits(x.logits, x.label_BH.clone()) for x in none]
    best = ReadOut(hierarchy, Reading((4.0, 4.0, 4.0))).log_probabilities(few[0].logits)[2].argmax(dim=1)
    few[0].label_BH[:2, 2] = best[:2]
    second = fitted_temperatures(few, hierarchy)
    assert first[:2] == pytest.approx((4, 4), rel=0.2)
    # Without a label, the one of all levels: between the other two. With two, both right: surer, but not without end.
    assert min(first[:2]) * 0.8 < first[2] < max(first[:2]) * 1.2
    assert first[2] / 4 < second[2] < first[2]


def test_too_few_labels_in_all_leave_the_logits_alone(hierarchy: Hierarchy) -> None:
    (batch,) = batches_of(hierarchy, (4.0, 4.0, 4.0), 3)
    assert fitted_temperatures([batch], hierarchy) == (1, 1, 1)
    assert fitted_temperatures([], hierarchy) == (1, 1, 1)


def test_a_network_that_is_wrong_or_right_about_every_photo_gets_a_finite_temperature(hierarchy: Hierarchy) -> None:
    logits = tuple(torch.zeros(20, count) for count in hierarchy.class_counts)
    for level_BK in logits:
        level_BK[:, 0] = 30
    first_cells = torch.zeros(20, 3, dtype=torch.int64)
    right = fitted_temperatures([LabelledLogits(logits, first_cells)], hierarchy)
    wrong = fitted_temperatures([LabelledLogits(logits, first_cells + 1)], hierarchy)
    assert all(0.05 < x < 15 for x in right), right
    assert all(15 < x < 1000 for x in wrong), wrong


def test_the_truth_is_within_a_radius_exactly_when_less_than_its_share_is_nearer(hierarchy: Hierarchy) -> None:
    rng = np.random.default_rng(6)
    photos, reading = 300, Reading((2.0, 2.0, 2.0), point=BEST_CELL)
    logits = tuple(torch.from_numpy(rng.normal(0, 3, (photos, count))).float() for count in hierarchy.class_counts)
    lat_deg_N, lon_deg_N = rng.uniform(-60, 60, photos), rng.uniform(-180, 180, photos)
    judged = Judge(hierarchy, reading)(logits, hierarchy.label_NH(lat_deg_N, lon_deg_N), lat_deg_N, lon_deg_N)
    answers = ReadOut(hierarchy, reading)(GeoDecoderOutput(logits, torch.zeros(photos, 1)))
    finest, point_N = hierarchy.levels[-1], answers.top_index_BT[:, 0].numpy()
    error_km_N = geodesy.haversine_km(finest.lat_deg_K[point_N], finest.lon_deg_K[point_N], lat_deg_N, lon_deg_N)
    within_N = error_km_N <= answers.radius_km_B.numpy()
    clear_N = np.abs(error_km_N - answers.radius_km_B.numpy()) > 0.1  # the served radius is good to some 20 m
    assert 20 < within_N.sum() < photos - 20
    assert np.array_equal(judged.mass_nearer_N[clear_N] < 0.9, within_N[clear_N])


def test_a_judge_reads_confidence_rightness_and_likelihood_from_the_served_probabilities(hierarchy: Hierarchy) -> None:
    (batch,) = batches_of(hierarchy, (1.0, 1.0, 1.0), 8)
    label_BH = batch.label_BH.numpy().copy()
    label_BH[0, 2] = -1
    judged = Judge(hierarchy, Reading((1.5, 2.0, 3.0)))(batch.logits, label_BH, np.zeros(8), np.zeros(8))
    for level, joint in enumerate(ReadOut(hierarchy, Reading((1.5, 2.0, 3.0))).log_probabilities(batch.logits)):
        for photo in range(8):
            label = label_BH[photo, level]
            assert judged.confidence_NH[photo, level] == pytest.approx(float(joint[photo].max().exp()), rel=1e-5)
            if label < 0:
                assert math.isnan(judged.nll_NH[photo, level])
                assert math.isnan(judged.right_NH[photo, level])
            else:
                assert judged.nll_NH[photo, level] == pytest.approx(-float(joint[photo, label]), rel=1e-5)
                assert judged.right_NH[photo, level] == float(joint[photo].argmax() == label)


def test_photos_in_no_cell_count_as_wrong_only_where_that_is_said() -> None:
    right_NH = np.array([[1.0], [1.0], [np.nan], [np.nan]])
    judged = Judged(np.full((4, 1), 0.75), right_NH, np.where(np.isnan(right_NH), np.nan, 0.5), np.zeros(4))
    numbers = reliability(2.0, judged, 0)
    assert (numbers.ece, numbers.ece_everywhere) == (0.25, 0.25)
    assert numbers.bins == (Bin(2, 0.75, 1.0),)
    assert (numbers.mean_confidence, numbers.mean_nll, numbers.temperature) == (0.75, 0.5, 2.0)
    assert math.isnan(reliability(1.0, judged._replace(right_NH=np.full((4, 1), np.nan)), 0).ece)
