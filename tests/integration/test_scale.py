"""The scale benchmark runs the whole dataflow, and what it says of it adds up."""

from __future__ import annotations

import pytest

from jobs.benchmark.scale import ScaleBenchmark


def test_prints_a_line_for_each_run_and_the_growth(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ScaleBenchmark(workers=(2,), photos_counts=(200, 600, 10_000_000_000))
    settings.measure()  # it checks that each photo is located itself
    _, head, *lines = capsys.readouterr().out.splitlines()
    few, more, left_out, grown = lines
    assert [line.split()[:2] for line in (few, more)] == [["200", "2"], ["600", "2"]]
    assert "left out: some " in left_out
    assert grown.startswith("200 → 600 photos: ")
    values = [float(word) for word in more.split()[2:9]]
    rows_per_s, core_ms, parts_ms = values[0], values[1], values[2:]
    assert rows_per_s > 0
    assert core_ms == pytest.approx(sum(parts_ms), abs=0.05)
    names = head.split()[4:9]
    workers_ms, engines_ms = parts_ms[names.index("workers")], parts_ms[names.index("engines")]
    assert workers_ms > 0
    assert engines_ms > 0
    all_gb, driver_gb, in_flow_gb, ray_gb, _ = (float(word.strip(",")) for word in more.split()[-5:])
    assert 0.1 < in_flow_gb <= driver_gb < all_gb
    assert 0.05 < ray_gb < all_gb


def test_refuses_what_would_measure_nothing() -> None:
    with pytest.raises(ValueError, match="--workers"):
        ScaleBenchmark(workers=(0,)).measure()
