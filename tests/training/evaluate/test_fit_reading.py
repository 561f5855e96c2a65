"""A reading fitted to photos of which is known how they came about: what made them is found, and the radius holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.geodecoder import GeoDecoderOutput
from model.readout import Reading, ReadOut
from model.world import geodesy
from model.world.hierarchy import Hierarchy
from model.world.prior import Prior
from training.evaluate.calibration import Fit, Judge, conformal_mass, fit_reading
from training.evaluate.temperatures import LabelledLogits, fitted_temperatures
from training.hierarchy import PartitionConfig, build_hierarchy

PHOTOS = 4000
PLAIN = Reading.plain(3)


@pytest.fixture(scope="module")
def hierarchy() -> Hierarchy:
    rng = np.random.default_rng(0)
    lat_deg_N, lon_deg_N = np.degrees(np.arcsin(rng.uniform(-1, 1, 3000))), rng.uniform(-180, 180, 3000)
    return build_hierarchy(lat_deg_N, lon_deg_N, PartitionConfig(tau_min=2, tau_max=(800, 200, 60)))


@pytest.fixture(scope="module")
def prior() -> Prior:
    rng = np.random.default_rng(1)
    towns = np.array([(48.8, 2.3), (-33.9, 151.2), (40.7, -74.0), (-17.7, 178.0)])[rng.integers(4, size=5000)]
    lat_deg_N, lon_deg_N = (towns + rng.normal(0, 12, (5000, 2))).T
    return Prior.of(lat_deg_N.clip(-90, 90), lon_deg_N)


@dataclass(frozen=True, eq=False)
class Photos:
    """Logits, labels and places, a group of two photos each."""

    logits: tuple[Tensor, ...]
    label_NH: NDArray[np.int64]
    lat_deg_N: NDArray[np.float64]
    lon_deg_N: NDArray[np.float64]

    @property
    def group_N(self) -> NDArray[np.int64]:
        return np.arange(len(self.lat_deg_N)) // 2

    def fit(self, hierarchy: Hierarchy, prior: Prior | None, before: Reading = PLAIN, folds: int = 4) -> Fit:
        label_NH = torch.from_numpy(self.label_NH)
        batches = [
            LabelledLogits(tuple(x[k : k + 512] for x in self.logits), label_NH[k : k + 512])
            for k in range(0, len(label_NH), 512)
        ]
        return fit_reading(batches, self.lat_deg_N, self.lon_deg_N, self.group_N, hierarchy, before, prior, folds)

    def nll(self, hierarchy: Hierarchy, reading: Reading) -> NDArray[np.float64]:
        """Return minus the mean log-likelihood of the right cell of each level, as it is served."""
        judged = Judge(hierarchy, reading)(self.logits, self.label_NH, self.lat_deg_N, self.lon_deg_N)
        return np.asarray(judged.nll_NH.mean(axis=0))

    def inside_radius(self, hierarchy: Hierarchy, reading: Reading) -> float:
        """Return how many of the photos lie within the radius that is served."""
        answers = ReadOut(hierarchy, reading)(GeoDecoderOutput(self.logits, torch.zeros(len(self.lat_deg_N), 1)))
        finest, point_N = hierarchy.levels[-1], answers.point_index_B.numpy()
        error_km_N = geodesy.haversine_km(
            *(finest.lat_deg_K[point_N], finest.lon_deg_K[point_N]), *(self.lat_deg_N, self.lon_deg_N)
        )
        return float((error_km_N <= answers.radius_km_B.numpy()).mean())


def drawn(hierarchy: Hierarchy, reading: Reading, seed: int, photos: int = PHOTOS, lost: float = 0.0) -> Photos:
    """Photos whose cells are drawn, at each level by itself, from what `reading` says of random logits.

    Each is somewhere around the mean of its finest cell; a share `lost` is anywhere on Earth, and in no cell.
    """
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    logits = tuple(3 * torch.randn(photos, count, generator=generator) for count in hierarchy.class_counts)
    served = ReadOut(hierarchy, reading).log_probabilities(logits)
    label_NH = torch.stack([x.exp().multinomial(1, generator=generator)[:, 0] for x in served], dim=1).numpy()
    finest = hierarchy.levels[-1]
    away_deg_N2 = rng.normal(0, 0.5, (photos, 2)) * finest.spread_km_K[label_NH[:, -1], None] / 111
    lat_deg_N = (finest.lat_deg_K[label_NH[:, -1]] + away_deg_N2[:, 0]).clip(-90, 90)
    lon_deg_N = finest.lon_deg_K[label_NH[:, -1]] + away_deg_N2[:, 1]
    is_lost_N = rng.uniform(size=photos) < lost
    label_NH[is_lost_N] = -1
    lat_deg_N[is_lost_N] = np.degrees(np.arcsin(rng.uniform(-1, 1, is_lost_N.sum())))
    lon_deg_N[is_lost_N] = rng.uniform(-180, 180, is_lost_N.sum())
    return Photos(logits, label_NH, lat_deg_N, lon_deg_N)


def assert_served_well(fresh: Photos, hierarchy: Hierarchy, truth: Reading, found: Reading) -> None:
    """What counts is what is served of photos not seen yet: nearly as likely as by the truth, and the radius holds."""
    alone = replace(truth, prior_share=(1.0,) * 3)
    best_H, found_H, prior_H = (fresh.nll(hierarchy, reading) for reading in (truth, found, alone))
    assert (found_H - best_H < 0.25 * (prior_H - best_H)).all(), (best_H, found_H, prior_H)
    assert fresh.inside_radius(hierarchy, found) == pytest.approx(0.9, abs=0.02)


def test_what_made_the_photos_is_found_and_the_prior_gets_no_more_than_it_has_already(
    hierarchy: Hierarchy, prior: Prior
) -> None:
    truth = Reading((2.0, 5.0, 1.0), prior.levels(hierarchy))
    fit = drawn(hierarchy, truth, seed=1).fit(hierarchy, prior)
    assert fit.reading.temperatures == pytest.approx(truth.temperatures, rel=0.1)
    assert all(share <= 0.03 for share in fit.reading.prior_share), fit.reading.prior_share
    assert fit.gain_low > 1
    assert not fit.reading.is_prior
    assert fit.helps
    fresh = drawn(hierarchy, truth, seed=2)
    assert fresh.inside_radius(hierarchy, fit.reading) == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("share", [0.25, 0.6])
def test_the_share_of_photos_that_say_nothing_is_the_priors(hierarchy: Hierarchy, prior: Prior, share: float) -> None:
    truth = Reading((1.0, 1.0, 1.0), prior.levels(hierarchy), (share,) * 3)
    fit = drawn(hierarchy, truth, seed=3).fit(hierarchy, prior)
    assert fit.reading.prior_share == pytest.approx((share,) * 3, abs=0.08)
    assert fit.reading.temperatures == pytest.approx((1.0, 1.0, 1.0), rel=0.5)
    assert fit.gain_low > 0
    assert_served_well(drawn(hierarchy, truth, seed=4), hierarchy, truth, fit.reading)


def test_where_logits_are_noise_the_reading_is_the_prior(hierarchy: Hierarchy, prior: Prior) -> None:
    pi = prior.levels(hierarchy)
    truth = Reading((1.0, 1.0, 1.0), pi, (1.0, 1.0, 1.0))
    photos = drawn(hierarchy, truth, seed=5)
    fit = photos.fit(hierarchy, prior)
    assert fit.reading.is_prior
    assert fit.reading.prior_share == (1.0, 1.0, 1.0)
    assert fit.gain_low <= 0
    # Photos are judged by what is served: the prior.
    of_levels = zip(pi, photos.label_NH.T, strict=True)
    expected_NH = np.stack([-np.log(level_K[label_N]) for level_K, label_N in of_levels], axis=1)
    np.testing.assert_allclose(fit.after.nll_NH, expected_NH, rtol=1e-4)
    assert fit.helps
    fresh = drawn(hierarchy, truth, seed=6)
    assert fresh.inside_radius(hierarchy, fit.reading) == pytest.approx(0.9, abs=0.02)


def test_a_few_photos_are_no_reason_to_believe_a_network(hierarchy: Hierarchy, prior: Prior) -> None:
    """A network that is right about the prior's noise by chance is not believed, one that is right is."""
    noise = Reading((1.0, 1.0, 1.0), prior.levels(hierarchy), (1.0, 1.0, 1.0))
    assert all(drawn(hierarchy, noise, seed, photos=20).fit(hierarchy, prior).reading.is_prior for seed in range(20))
    sure = Reading((0.5, 0.5, 0.5), prior.levels(hierarchy))
    assert not any(drawn(hierarchy, sure, seed, photos=40).fit(hierarchy, prior).reading.is_prior for seed in range(5))


def test_photos_in_no_cell_widen_the_radius_until_it_holds(hierarchy: Hierarchy, prior: Prior) -> None:
    truth = Reading((0.5, 0.5, 0.5), prior.levels(hierarchy))
    found, lost = (drawn(hierarchy, truth, 7, lost=share).fit(hierarchy, prior) for share in (0.0, 0.08))
    assert lost.reading.radius_mass > found.reading.radius_mass + 0.01
    fresh = drawn(hierarchy, truth, 8, lost=0.08)
    assert fresh.inside_radius(hierarchy, lost.reading) == pytest.approx(0.9, abs=0.02)
    assert fresh.inside_radius(hierarchy, found.reading) < 0.88


@pytest.mark.parametrize("sureness", [4.0, 0.25])
def test_a_network_that_is_too_sure_or_not_sure_enough_has_a_radius_that_holds(
    hierarchy: Hierarchy, sureness: float
) -> None:
    """Without a prior, too, and whatever the reading was before: the fit does not begin with it."""
    truth = Reading((sureness,) * 3)
    before = Reading((9.0, 0.2, 1.0), radius_mass=0.3)
    fit = drawn(hierarchy, truth, seed=9).fit(hierarchy, None, before)
    assert fit.reading.temperatures == pytest.approx((sureness,) * 3, rel=0.1)
    assert fit.reading.prior is None
    assert fit.reading.prior_share == (0.0,) * 3
    assert math.isnan(fit.gain_low)
    fresh = drawn(hierarchy, truth, seed=10)
    assert fresh.inside_radius(hierarchy, fit.reading) == pytest.approx(0.9, abs=0.02)
    again = drawn(hierarchy, truth, seed=9).fit(hierarchy, None)
    assert again.reading.temperatures == fit.reading.temperatures
    assert again.reading.radius_mass == fit.reading.radius_mass


def test_by_the_sum_one_temperature_is_fitted_to_the_finest_level(hierarchy: Hierarchy, prior: Prior) -> None:
    truth = Reading((1.0, 1.0, 2.5), prior.levels(hierarchy), (0.2,) * 3, combination="sum")
    fit = drawn(hierarchy, truth, seed=11).fit(hierarchy, prior, replace(PLAIN, combination="sum"))
    assert fit.reading.combination == "sum"
    assert fit.reading.temperatures == pytest.approx((2.5,) * 3, rel=0.25)
    assert fit.reading.prior_share == pytest.approx((0.2,) * 3, abs=0.08)
    assert_served_well(drawn(hierarchy, truth, seed=12), hierarchy, truth, fit.reading)


def test_no_photo_is_judged_by_what_its_own_group_taught(hierarchy: Hierarchy, prior: Prior) -> None:
    """Judged again here, without the photos that may be of the same fold, one group after the other."""
    photos = drawn(hierarchy, Reading((2.0, 2.0, 2.0)), seed=13, photos=24)
    fit = photos.fit(hierarchy, None, folds=12)
    for group in range(12):
        mine_N = photos.group_N == group
        others = torch.from_numpy(np.where(mine_N[:, None], -1, photos.label_NH))
        temperatures = fitted_temperatures([LabelledLogits(photos.logits, others)], hierarchy)
        judged = Judge(hierarchy, Reading(temperatures))(
            *(photos.logits, photos.label_NH, photos.lat_deg_N, photos.lon_deg_N)
        )
        for found_N, expected_N in zip(fit.after, judged, strict=True):
            # As near as a search that begins elsewhere comes; what a group itself teaches moves numbers by a third.
            np.testing.assert_allclose(found_N[mine_N], expected_N[mine_N], rtol=5e-3, atol=5e-4)
    assert fit.before.nll_NH.shape == (24, 3)


def test_one_group_alone_has_nothing_to_be_judged_by_but_is_fitted(hierarchy: Hierarchy, prior: Prior) -> None:
    photos = drawn(hierarchy, Reading((4.0, 4.0, 4.0)), seed=14, photos=200)
    batch = LabelledLogits(photos.logits, torch.from_numpy(photos.label_NH))
    place = photos.lat_deg_N, photos.lon_deg_N
    fit = fit_reading([batch], *place, np.zeros(200, np.int64), hierarchy, PLAIN, None)
    assert fit.reading.temperatures == pytest.approx((4, 4, 4), rel=0.3)
    np.testing.assert_array_equal(fit.after.nll_NH, fit.before.nll_NH)
    # One group says nothing about the next one: of how much a network adds, there is no interval.
    with_prior = fit_reading([batch], *place, np.zeros(200, np.int64), hierarchy, PLAIN, prior)
    assert not np.isnan(with_prior.after.nll_NH).any()


@pytest.mark.parametrize("photos", [9, 10, 19, 100, 1000])
def test_the_radius_holds_what_lies_nearer_than_nine_of_ten_photos_do(photos: int) -> None:
    rng = np.random.default_rng(photos)
    mass_nearer_N = rng.uniform(size=photos)
    mass = conformal_mass(mass_nearer_N)
    # One more photo is as likely to come at any place in the order as at any other: nine of ten times it is inside.
    assert ((mass_nearer_N < mass).sum() + 0) / (photos + 1) >= 0.9 - 1e-9
    assert ((mass_nearer_N < mass).sum() - 1) / (photos + 1) < 0.9


def test_of_fewer_than_nine_photos_no_radius_but_all_of_the_world_holds_nine_of_ten() -> None:
    assert [conformal_mass(np.full(photos, 0.2)) for photos in range(9)] == [1.0] * 9
    assert 0.2 < conformal_mass(np.full(9, 0.2)) < 0.2001
    assert conformal_mass(np.ones(100)) == 1.0
    assert conformal_mass(np.zeros(100)) == 0.01  # a radius of nothing would say more than is known
