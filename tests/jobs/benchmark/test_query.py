"""The query benchmark measures what it says: fewer row groups for a region than for all photos."""

from __future__ import annotations

import pytest

from jobs.benchmark.query import QueryBenchmark
from pipeline.published import geoparquet


def test_prints_a_line_for_each_question(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(geoparquet, "ROWS_PER_GROUP", 500)
    QueryBenchmark(rows=10_000, again=0.1, repeats=1).measure()
    first, _, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("10,000 photos in 2 files of ")
    assert "10,000    22 of 22" in lines[0]
    assert all(int(line[40:].split()[0]) < 22 for line in lines[1:])
    assert len(lines) >= 6


def test_refuses_what_would_measure_nothing() -> None:
    with pytest.raises(ValueError, match="--again"):
        QueryBenchmark(again=2).measure()
