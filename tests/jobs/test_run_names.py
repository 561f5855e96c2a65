"""A run's name is its own whatever the clock says, and names sort as runs were begun."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import geotag
from pipeline.geotag_settings import GeotagSettings


def test_runs_of_one_moment_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose clock stands still, or was set back, as one without a battery does."""
    frozen = SimpleNamespace(now=lambda tz: dt.datetime(2026, 1, 1, tzinfo=tz))
    monkeypatch.setattr(geotag, "dt", SimpleNamespace(datetime=frozen, UTC=dt.UTC))
    names = []
    for epoch in (9, 10, 11):
        stage = geotag._stage(GeotagSettings(("p",), str(tmp_path)), str(tmp_path), "m-1", set(), epoch)
        names.append(stage.run_id)
        stage.delete()
    assert names == ["00000009-20260101T000000Z", "00000010-20260101T000000Z", "00000011-20260101T000000Z"]


def test_the_name_of_a_finished_run_is_not_given_again(tmp_path: Path) -> None:
    settings = GeotagSettings(("p",), str(tmp_path), run_id="r1")
    with pytest.raises(ValueError, match="run r1 is finished: give another --run-id, or none"):
        geotag._stage(settings, str(tmp_path), "m-1", {"r1"}, 9)
