"""The text file that tells node_exporter how a night went, whatever its end."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs import night_metrics
from jobs.geotag_archive import ArchiveSettings
from jobs.nightly import NightlySettings, run
from tests.conftest import published_output

Values = dict[tuple[str, ...], float]
STARTED = dt.datetime(2026, 11, 2, 1, 30, tzinfo=dt.UTC)
NIGHT = {
    "started_at": "2026-11-01T01:30:00+00:00",
    "finished_at": "2026-11-01T02:00:00+00:00",
    "located": 7,
    "undecided": 4,
    "failed_by_code": {"truncated": 2},
    "left": 3,
    "gone": 1,
}


def values(path: Path) -> Values:
    families = text_string_to_metric_families(path.read_text())
    return {
        (s.name, *(s.labels[label] for label in ("status", "error_code") if label in s.labels)): s.value
        for family in families
        for s in family.samples
    }


def test_a_night_that_is_done_and_one_that_is_not(tmp_path: Path) -> None:
    path = tmp_path / "graticule.prom"
    night_metrics.write(str(path), 0, STARTED, NIGHT)
    done_s = dt.datetime.fromisoformat(NIGHT["finished_at"]).timestamp()  # type: ignore[arg-type]
    assert values(path) == {
        ("graticule_night_exit_code",): 0,
        ("graticule_night_start_timestamp_seconds",): done_s - 1800,
        ("graticule_night_finish_timestamp_seconds",): done_s,
        ("graticule_night_last_success_timestamp_seconds",): done_s,
        ("graticule_night_photos", "located", ""): 7,
        ("graticule_night_photos", "undecided", ""): 4,
        ("graticule_night_photos", "failed", "truncated"): 2,
        ("graticule_night_photos_left",): 3,
        ("graticule_night_photos_gone",): 1,
    }
    assert {name for name, *_ in values(path)} == set(night_metrics.METRICS)
    night_metrics.write(str(path), 1, STARTED, None)
    after = values(path)
    assert after.pop(("graticule_night_finish_timestamp_seconds",)) > done_s
    assert after == {
        ("graticule_night_exit_code",): 1,
        ("graticule_night_start_timestamp_seconds",): STARTED.timestamp(),
        ("graticule_night_last_success_timestamp_seconds",): done_s,
    }
    night_metrics.write(str(path), 3, STARTED, NIGHT)
    assert values(path)[("graticule_night_last_success_timestamp_seconds",)] == done_s
    assert [file.name for file in tmp_path.iterdir()] == ["graticule.prom"]


def test_a_first_night_that_fails_knows_no_success(tmp_path: Path) -> None:
    night_metrics.write(str(tmp_path / "a.prom"), 1, STARTED, None)
    assert ("graticule_night_last_success_timestamp_seconds",) not in values(tmp_path / "a.prom")


def test_a_night_with_nothing_to_do_is_a_success(tiny_checkpoint: Path, tmp_path: Path) -> None:
    published_output(tmp_path / "out", tiny_checkpoint)
    archive = ArchiveSettings((str(tmp_path / "out-photos"),), output=f"{tmp_path}/out", model=str(tiny_checkpoint))
    path = tmp_path / "a.prom"
    before_s = time.time()
    for _ in range(2):  # the second one finds the date done
        assert run(NightlySettings(archive, date="2026-11-01", metrics_file=str(path))) == 0
        found = values(path)
        assert found[("graticule_night_photos", "located", "")] == 0
        finished_s = found[("graticule_night_finish_timestamp_seconds",)]
        assert found[("graticule_night_last_success_timestamp_seconds",)] == finished_s >= before_s
        path.unlink()


def test_mistakes_are_told_before_the_night_and_counted_after(tmp_path: Path) -> None:
    archive = ArchiveSettings(photos=(str(tmp_path),), output=f"{tmp_path}/out")
    for path, message in ((tmp_path / "a.txt", "files that end in .prom"), (tmp_path / "no" / "a.prom", "no folder")):
        with pytest.raises(ValueError, match=message):
            run(NightlySettings(archive, metrics_file=str(path)))
    path = tmp_path / "a.prom"
    with pytest.raises(ValueError, match="give a date such as"):
        run(NightlySettings(archive, date="tonight", metrics_file=str(path)))
    assert values(path)[("graticule_night_exit_code",)] == 2
    silent = ArchiveSettings(photos=(str(tmp_path),), output=f"{tmp_path}/out", max_silence_minutes=0)
    with pytest.raises(ValueError, match="--max-silence-minutes 0: give more than 0"):
        run(NightlySettings(silent))
