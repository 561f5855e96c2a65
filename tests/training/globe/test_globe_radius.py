"""The radius holds what it promises on photos that nothing was fitted to, however little the network has learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.evaluate.calibration import conformal_mass
from training.globe import globe_radius


def test_nine_of_ten_fresh_photos_lie_within_the_radius() -> None:
    torch.set_num_threads(1)
    held = globe_radius.study(seed=4, photos_per_town=4, draws=384, fitting_per_town=12, fresh_per_town=20)
    assert (held.fitted_on, held.fresh) == (48 * 12, 48 * 20)
    assert held.held == pytest.approx(0.9, abs=0.035)
    assert held.median_km > 0
    lines = globe_radius.table([held, held]).splitlines()
    assert len(lines) == 4
    assert f"{held.held:.1%}" in lines[1]
    assert lines[-1].split() == ["mean", f"{held.held:.1%}"]


@pytest.mark.parametrize(("photos", "fresh"), [(9, 20), (100, 50), (1920, 4800)])
def test_what_chance_makes_of_the_share_held_is_what_it_makes_of_uniform_scores(photos: int, fresh: int) -> None:
    """Scores of any distribution are uniform ones in disguise: simulate the fit and the fresh photos with those."""
    random = np.random.default_rng(0)
    held = []
    for _ in range(2000):
        radius = conformal_mass(random.uniform(size=photos))
        held.append((random.uniform(size=fresh) <= radius).mean())
    expected = globe_radius.Held(0, photos, fresh, 0.9, 1.0, 0.9, 0.0).sampling
    assert np.std(held) == pytest.approx(expected, rel=0.1)
