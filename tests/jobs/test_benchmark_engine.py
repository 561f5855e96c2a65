from __future__ import annotations

import pytest

from jobs.benchmark_engine import EngineBenchmark


def test_prints_speed_and_agreement_of_each_engine(capsys: pytest.CaptureFixture[str]) -> None:
    engines = ("torch fp32", "openvino fp32", "torch bf16")
    assert EngineBenchmark(network="tiny", engines=engines, batch_sizes=(1, 4), repeats=1).measure() == 0
    speed, agreement = capsys.readouterr().out.split("\n\n")
    lines = speed.splitlines()
    assert "cells (602," in lines[0]
    measured = [(" ".join(line.split()[:2]), int(line.split()[2])) for line in lines[2:-1]]
    assert measured == [(engine, batch) for engine in engines for batch in (1, 4)]
    shares = [float(line.split()[-2]) for line in lines[2:-1]]
    assert all(0 <= share < 1.5 for share in shares)
    rows = {" ".join(line.split()[:2]): line.split()[2:] for line in agreement.splitlines()[2:]}
    assert "to 7 photos (3 unreadable)" in agreement
    assert rows["torch fp32"][:3] == ["100.00%", "0.0", "0.00"]
    assert rows["openvino fp32"][0] == "100.00%"
    assert float(rows["openvino fp32"][3]) < 1e-4
    assert 1e-6 < float(rows["torch bf16"][3]) < 0.1  # bf16 is another precision, and shows


def test_refuses_what_is_no_engine() -> None:
    for name in ("openvino", "openvino int3", "tensorflow fp32"):
        with pytest.raises(ValueError, match="such as 'openvino fp32'"):
            EngineBenchmark(engines=(name,)).measure()


def test_says_what_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    engines = ("torch fp32", "tensorrt fp32")
    assert EngineBenchmark(network="tiny", engines=engines, batch_sizes=(1,), repeats=1).measure() == 0
    assert capsys.readouterr().out.count("tensorrt fp32         not here: the tensorrt engine") == 2
