"""One table of all benchmarks: medians over runs, aims met or not, and nothing measured twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import tyro

from jobs.benchmark import __main__ as benchmark
from jobs.benchmark import figure as benchmark_figure
from jobs.benchmark.all import AllBenchmark
from jobs.benchmark.figure import Figure


def test_verdicts() -> None:
    assert Figure("12mp", "x", 9, 10, 0.9, least=0.9).verdict == "≥ 0.9  pass"
    assert Figure("12mp", "x", 8, 10, 0.8, least=0.9).verdict == "≥ 0.9  short"
    assert Figure("12mp", "x", 51.5, 50, 1.5, most=1).verdict == "< 1  short"
    assert Figure("12mp", "x", 8, 10, 0.8).verdict == ""


def test_medians_of_runs_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, ratio in enumerate((20.0, 5.0, 40.0), start=1):
        figure = Figure("S2", "ours ÷ theirs", ratio, 1.0, ratio, "points/s", least=10)
        benchmark_figure.write([figure], tmp_path / f"{number}-s2.json")
    to = tmp_path / "all.json"
    settings = tyro.cli(
        benchmark.Settings,
        args=["--to", str(to), "all", "--runs", "3", "--only", "s2", "--save", str(tmp_path)],
    )
    assert benchmark.run(settings) == 0
    assert benchmark_figure.read(to) == [Figure("S2", "ours ÷ theirs", 20.0, 1.0, 20.0, "points/s", least=10)]
    _, _, line, verdict = capsys.readouterr().out.splitlines()
    assert " ".join(line.split()) == "S2: ours ÷ theirs 20 1 points/s 20.00 ≥ 10 pass [5.00–40.00]"
    assert verdict == "1 of 1 aims met, medians of 3"


def test_what_has_no_chance_in_it_is_measured_once(tmp_path: Path) -> None:
    figure = Figure("shrinking on load", "ours ÷ theirs", 0.3, 1.0, 0.3, "log p", most=1)
    benchmark_figure.write([figure], tmp_path / "1-shrink.json")
    assert AllBenchmark(runs=3, only=("shrink",), save=tmp_path).measure() == [figure]
    assert [path.name for path in tmp_path.iterdir()] == ["1-shrink.json"]


def test_a_benchmark_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)decode --photos .*ended with 2.*--without decode"):
        AllBenchmark(photos=str(tmp_path / "nowhere"), only=("decode",)).measure()


def test_what_needs_a_place_says_so() -> None:
    with pytest.raises(ValueError, match="--only fetch: give --s3, too"):
        AllBenchmark(only=("fetch",)).measure()
    with pytest.raises(ValueError, match="--only places: give --towns, too"):
        AllBenchmark(only=("places",)).measure()
    with pytest.raises(ValueError, match="--runs 0: give 1 or more"):
        AllBenchmark(runs=0).measure()
