"""The ways benchmark measures what it says, and the other ways do the work that Graticule does."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jobs.benchmark import ways as benchmark_ways
from jobs.benchmark.ways import Taken, WaysBenchmark
from model.checkpoint import Checkpoint
from pipeline import schema
from pipeline.decode.photo import DecodeTarget
from pipeline.locate.locator import BUNDLED_MODEL, Locator, LocatorSettings
from pipeline.read.reader import Reader, ReaderSettings

BURN = """
import subprocess, sys, time
if len(sys.argv) > 1:
    subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
while time.process_time() < 1:
    pass
time.sleep(1)
"""


def photos(folder: Path) -> list[str]:
    """Photos of a size from which everybody cuts the same square; else torchvision's rounding is half a pixel off."""
    paths = benchmark_ways._photos_of("640x480", None, 6, folder)
    for path in paths:
        with Image.open(path) as picture:
            picture.resize((832, 416)).save(path, quality=95)
    return paths


@pytest.mark.parametrize("way", ["daft", "dataloader"])  # Ray Data's, which needs a cluster, is in the whole run below
def test_other_ways_find_the_same_cells(way: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(benchmark_ways._NEEDS[way]) is None:
        pytest.skip(f"{way} is not installed: pip install 'graticule[bench]'")
    paths = photos(tmp_path / "photos")
    # Its network decides: where the prior alone does, all photos have the same answer.
    model = Path(shutil.copytree(BUNDLED_MODEL, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    levels = len(config["temperatures"])
    config |= {"temperatures": [8.0] * levels, "prior_share": [0.0] * levels}
    (model / "config.json").write_text(json.dumps(config))
    (tmp_path / "order.json").write_text(json.dumps({"model": str(model), "paths": paths}))
    command = [
        sys.executable,
        "-m",
        "jobs.benchmark.other_ways",
        way,
        str(tmp_path / "order.json"),
        str(tmp_path / "a.json"),
    ]
    subprocess.run(command, check=True, env=os.environ | {"DAFT_ANALYTICS_ENABLED": "0", "DAFT_PROGRESS_BAR": "0"})
    theirs = {path: (cell, p) for path, cell, p in json.loads((tmp_path / "a.json").read_text())["answers"]}
    assert theirs.keys() == set(paths)

    checkpoint = Checkpoint.load(model)
    rows = [{schema.PHOTO_ID: schema.photo_id(path), schema.URI: path} for path in paths]
    read = Reader(ReaderSettings(DecodeTarget.of(checkpoint.config.preprocessing)))
    locate = Locator(LocatorSettings(str(model), checkpoint.model_id, "r1", engine="torch"))
    ours = locate(read(pa.Table.from_pylist(rows, schema=schema.MANIFEST))).to_pylist()
    cell_id_K = checkpoint.hierarchy.levels[-1].cell_id_K
    same = [theirs[row["uri"]][0] == list(cell_id_K).index(row["levels"][-1]["cell_id"]) for row in ours]
    off = [abs(theirs[row["uri"]][1] / row["levels"][-1]["probability"] - 1) for row in ours]
    assert sum(same) >= len(same) - 1  # all six here; each resamples in its own way
    assert max(off) < 0.1  # 0.06 here: their decoders take the JPEG whole, ours shrinks it while loading


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_prints_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    without = () if importlib.util.find_spec("daft") else ("daft",)
    figures = WaysBenchmark(sizes=("640x480",), photos_each=160, without=without).measure()
    out = capsys.readouterr().out
    ways = [name for way, name in benchmark_ways._NAMES.items() if way not in without]
    for name in ("decode only", "engine only", "ceiling of both", "Graticule", *ways):
        assert any(line.startswith(f"{name} ") for line in out.splitlines()), out
    assert out.count("same finest cell") == len(ways)
    assert len(figures) == 3 + len(ways)
    assert all(figure.ratio > 0 or figure.most is not None for figure in figures)
    assert all(figure.value / figure.comparator == figure.ratio for figure in figures if figure.least)


def test_names_what_is_left_out_and_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(benchmark_ways._NEEDS, "daft", "no_such_package")
    with pytest.raises(ValueError, match=r'needs no_such_package: pip install "graticule\[bench\]"'):
        WaysBenchmark(sizes=()).measure()
    WaysBenchmark(sizes=(), without=("daft",)).measure()
    assert "left out: Daft, as documented (--without daft)" in capsys.readouterr().out


def test_a_difference_of_two_runs_leaves_the_start_out() -> None:
    start, each = np.array([0, 20, 8, 4, 3]), np.array([1, 0.2, 0.1, 0.05, 0.02])
    few, many = (Taken(*(start + n * each), {"readers": n * 0.1, "driver": 4.0}) for n in (10, 30))
    assert (many - few).per_s == pytest.approx((os.cpu_count() or 1) / 0.15)
    assert (many - few).own_ms == pytest.approx(100)
    assert (many - few).own_s_of == {"readers": pytest.approx(2), "driver": 0}
    assert (many - few).others_share == pytest.approx(0.02 / 0.17)


def test_runs_differ_by_enough_photos_to_say_something() -> None:
    assert benchmark_ways._counts(10) == (32, 160)
    assert benchmark_ways._counts(1000) == (96, 992)


def test_counts_the_core_time_of_children_too_and_of_nobody_else() -> None:
    with benchmark_ways._ProcessTimes("mine") as times:
        other = subprocess.Popen([sys.executable, "-c", BURN])
        mine = os.environ | {benchmark_ways._MARK: "mine"}
        subprocess.run([sys.executable, "-c", BURN, BURN], env=mine, check=True)
        other.wait()
    assert 1.9 < times.taken.own_s < 2.8  # each of the two burns one second, then waits to be seen
    assert times.taken.own_s_of == {"other processes of the way": pytest.approx(times.taken.own_s)}
    assert times.taken.other_s > 0.9
    assert times.taken.wall_s > 0
