from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.benchmark.__main__ import PartitionBenchmark, S2Benchmark
from jobs.benchmark.places import PlacesBenchmark
from jobs.benchmark.plan import PlanBenchmark


def test_s2_prints_a_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    [figure] = S2Benchmark(points=100_000, repeats=3).measure()
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert set(lines) == {"numpy", "s2sphere", "ratio"}
    assert float(lines["ratio"]) == pytest.approx(figure.ratio, abs=0.1)
    assert figure.ratio == figure.value / figure.comparator > 0


def test_partition_prints_seconds_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    seconds, memory = PartitionBenchmark(photos=200_000).measure()
    assert (seconds.ratio, memory.ratio) == (seconds.value / 60, memory.value / 4)
    assert " s, process peak " in capsys.readouterr().out


def test_plan_prints_a_line_for_each_size_and_the_growth(capsys: pytest.CaptureFixture[str]) -> None:
    PlanBenchmark(rows=(1_000, 20_000)).measure()  # it checks the counts itself
    _, first, second = capsys.readouterr().out.splitlines()
    assert (first.split()[0], second.split()[0]) == ("1,000", "20,000")
    assert "photos × 20.0, CPU × " in second


def test_places_lists_every_miss(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = [
        ("Görlitz", "Germany", "DE", 51.155, 14.985),
        ("Zgorzelec", "Germany", "DE", 51.152, 15.005),
        ("Pristina", "Kosovo", "-99", 42.66, 21.16),
        ("Atlantis", "Greece", "GR", 30.0, -45.0),
        ("Null Island", "Greece", "GR", 0.0, 0.0),
    ]
    names = ("name", "adm0name", "iso_a2", "latitude", "longitude")
    features = [{"type": "Feature", "properties": dict(zip(names, row, strict=True))} for row in rows]
    file = tmp_path / "towns.json"
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    PlacesBenchmark(file, positions=100).measure()
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "all towns 3 in 2 countries 33.33% right"
    assert lines[3:6] == ["DE → PL 1 Zgorzelec", "GR → open sea 1 Atlantis", "Kosovo → RS 1 Pristina"]
    file.write_text("[]")
    with pytest.raises(ValueError, match="give Natural Earth's populated places"):
        PlacesBenchmark(file).measure()
