from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.benchmark.engine import Agreement, EngineBenchmark, all_answers, flop_a_photo
from model.checkpoint import Checkpoint
from model.engines import load_engine
from model.world.geodesy import haversine_km


def test_prints_speed_and_agreement_of_each_engine(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engines = ("torch fp32", "torch fp32")  # bf16 takes minutes on processors without it
    benchmark = EngineBenchmark(
        network="tiny",
        engines=engines,
        batch_sizes=(1, 4),
        repeats=1,
        training_photos=100_000,
        model=str(tiny_checkpoint),
    )
    benchmark.measure()
    speed, agreement = capsys.readouterr().out.split("\n\n")
    lines = speed.splitlines()
    assert re.match(r"tiny, 32 px, cells \(\d+(, \d+){6}\): 0.0 GFLOP a photo", lines[0])
    measured = [(" ".join(line.split()[:2]), int(line.split()[2])) for line in lines[2:-1]]
    assert measured == [(engine, batch) for engine in engines for batch in (1, 4)]
    shares = [float(line.split()[-2]) for line in lines[2:-1]]
    assert all(share >= 0 for share in shares)
    assert "to 7 photos (3 unreadable)" in agreement
    same = "100.00% in the same cell, moved by 0.00 km on average and 0.0 km at most, probabilities by 0  pass"
    assert agreement.count(same) == 2


def test_agreement_is_measured(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.load(tiny_checkpoint)
    pixels_BHWC = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    exact, coarse = (
        all_answers(load_engine("torch", checkpoint, precision=precision), pixels_BHWC)
        for precision in ("fp32", "bf16")
    )
    found = Agreement.of(coarse, exact, checkpoint.hierarchy)
    assert 0 < found.probability_change < 0.1
    finest, points = checkpoint.hierarchy.levels[-1], (coarse.point_index_B, exact.point_index_B)
    km = [
        haversine_km(*(x[point] for point in (a, b) for x in (finest.lat_deg_K, finest.lon_deg_K)))
        for a, b in zip(*points, strict=True)
    ]
    assert found.moved_max_km == max(km)
    assert found.same_cell == np.mean([a == b for a, b in zip(*points, strict=True)])


def test_a_photo_costs_what_its_layers_cost(tiny_checkpoint: Path) -> None:
    """Their sizes are multiplied here; products in attention come on top. Building the network does not count."""
    checkpoint = Checkpoint.load(tiny_checkpoint)
    model = checkpoint.build_model().eval()
    flop = 0

    def add(layer: torch.nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        nonlocal flop
        assert isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
        flop += 2 * made.numel() * layer.weight[0].numel()

    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            layer.register_forward_hook(add)
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    assert flop < flop_a_photo(checkpoint) < 1.6 * flop


def test_refuses_what_is_no_engine() -> None:
    for name in ("openvino", "openvino int3", "tensorflow fp32"):
        with pytest.raises(ValueError, match="such as 'openvino fp32'"):
            EngineBenchmark(engines=(name,)).measure()


def test_says_what_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    engines = ("torch fp32", "tensorrt fp32")
    benchmark = EngineBenchmark(network="tiny", engines=engines, batch_sizes=(1,), repeats=1, training_photos=100_000)
    [figure] = benchmark.measure()
    assert figure.name == "torch fp32 ÷ matrix limit"
    assert capsys.readouterr().out.count("tensorrt fp32         not here: the tensorrt engine") == 2
