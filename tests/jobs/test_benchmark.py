import pytest

from jobs.benchmark import PartitionBenchmark, S2Benchmark
from jobs.benchmark_plan import PlanBenchmark


def test_s2_prints_a_ratio_of_ten_or_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert S2Benchmark(points=100_000, repeats=3).measure() == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert set(lines) == {"numpy", "s2sphere", "ratio"}
    assert float(lines["ratio"]) > 10  # some 45 here, so a busy machine does not fail this


def test_partition_prints_seconds_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert PartitionBenchmark(photos=200_000).measure() == 0
    assert " s, process peak " in capsys.readouterr().out


def test_plan_prints_a_line_for_each_size_and_the_growth(capsys: pytest.CaptureFixture[str]) -> None:
    assert PlanBenchmark(rows=(1_000, 20_000)).measure() == 0  # it checks the counts itself
    _, first, second = capsys.readouterr().out.splitlines()
    assert (first.split()[0], second.split()[0]) == ("1,000", "20,000")
    assert "photos × 20.0, CPU × " in second
