from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobs.benchmark_engine import EngineBenchmark


def test_prints_speed_and_agreement_of_each_engine(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engines = ("torch fp32", "torch bf16")
    benchmark = EngineBenchmark(
        network="tiny",
        engines=engines,
        batch_sizes=(1, 4),
        repeats=1,
        training_photos=100_000,
        model=str(tiny_checkpoint),
    )
    assert benchmark.measure() == 0
    speed, agreement = capsys.readouterr().out.split("\n\n")
    lines = speed.splitlines()
    assert re.match(r"tiny, 32 px, cells \(\d+(, \d+){6}\): 0.0 GFLOP a photo", lines[0])
    measured = [(" ".join(line.split()[:2]), int(line.split()[2])) for line in lines[2:-1]]
    assert measured == [(engine, batch) for engine in engines for batch in (1, 4)]
    shares = [float(line.split()[-2]) for line in lines[2:-1]]
    assert all(0 <= share < 1.5 for share in shares)
    assert "to 7 photos (3 unreadable)" in agreement
    rows = {" ".join(line.split()[:2]): line for line in agreement.splitlines()[1:]}
    assert "100.00% in the same cell, moved by 0.00 km on average and 0.0 km at most" in rows["torch fp32"]
    changes = {name: float(row.split()[-2]) for name, row in rows.items()}
    assert changes["torch fp32"] == 0 < changes["torch bf16"] < 0.1


def test_refuses_what_is_no_engine() -> None:
    for name in ("openvino", "openvino int3", "tensorflow fp32"):
        with pytest.raises(ValueError, match="such as 'openvino fp32'"):
            EngineBenchmark(engines=(name,)).measure()


def test_says_what_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    engines = ("torch fp32", "tensorrt fp32")
    assert (
        EngineBenchmark(network="tiny", engines=engines, batch_sizes=(1,), repeats=1, training_photos=100_000).measure()
        == 0
    )
    assert capsys.readouterr().out.count("tensorrt fp32         not here: the tensorrt engine") == 2
