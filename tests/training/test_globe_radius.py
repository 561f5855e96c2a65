"""The radius holds what it promises on photos that nothing was fitted to, however little the network has learned."""

from __future__ import annotations

import pytest
import torch

from training import globe_radius


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
