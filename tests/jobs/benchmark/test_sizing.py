"""A sample of an archive says what it costs: drawn fairly, read as it is, with its failures."""

from __future__ import annotations

import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.benchmark.scale import NullEngine, load_null_engine
from jobs.benchmark.sizing import SizeClusterBenchmark, list_archive, measure_costs
from jobs.demo_photos import write_demo_archive
from model.checkpoint import Checkpoint
from model.engines import NumpyAnswers
from pipeline import schema, storage
from pipeline.decode.photo import DecodeTarget
from pipeline.read.reader import ReaderSettings

READING = ReaderSettings(DecodeTarget(1, 1))
BURNT_S = 0.02


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sizing") / "archive"
    write_demo_archive(folder)
    return folder


class Burning(NullEngine):
    """Takes a known core time for each photo."""

    def __call__(self, pixels_BHWC: npt.NDArray[np.uint8]) -> NumpyAnswers:
        end_s = time.process_time() + BURNT_S * len(pixels_BHWC)
        while time.process_time() < end_s:
            pass
        return super().__call__(pixels_BHWC)


def load_burning(name: str, checkpoint: Checkpoint, **options: object) -> Burning:
    del name, options
    return Burning(checkpoint)


def names(sample: pa.Table) -> set[str]:
    return set(sample.column(schema.URI).to_pylist())


def manifest(path: Path, uris: list[str]) -> str:
    pq.write_table(pa.table({schema.URI: uris, schema.SIZE_BYTES: [10] * len(uris)}), path)
    return str(path)


def test_the_sample_depends_on_names_and_seed_and_on_nothing_else(tmp_path: Path) -> None:
    uris = [f"s3://bucket/{index:06d}.jpg" for index in range(25_000)]
    forward = list_archive([manifest(tmp_path / "a.parquet", uris)], 500)
    backward = list_archive([manifest(tmp_path / "b.parquet", uris[::-1] + uris[:3])], 500)
    assert (forward.photos, forward.sized_bytes) == (25_000, 250_000)
    assert backward.photos == 25_003
    assert names(forward.sample) == names(backward.sample)
    assert len(names(forward.sample)) == forward.sample.num_rows == 500
    other = list_archive([str(tmp_path / "a.parquet")], 500, seed=1)
    assert len(names(other.sample) & names(forward.sample)) < 50  # 10 by chance
    # Fairly drawn: as many from every fifth of the list, within what chance does (a standard deviation is 9).
    fifth_N = [int(uri[-10:-4]) // 5000 for uri in names(forward.sample)]
    assert np.bincount(fifth_N, minlength=5).min() > 60
    two = list_archive([manifest(tmp_path / f"{part}.parquet", uris[part::2]) for part in (0, 1)], 500)
    assert names(two.sample) == names(forward.sample)


def test_every_part_of_a_photo_is_counted_and_failures_too(archive: Path) -> None:
    listed = list_archive([str(archive)], 1000)
    costs = measure_costs(listed.sample, READING, load=load_burning)
    assert listed.photos == listed.sample.num_rows == len(costs.outcome_N) == 10
    assert sorted(name for name, bad in zip(costs.outcome_N, costs.is_failed_N, strict=True) if bad) == [
        "empty",
        "truncated",
        "unsupported_format",
    ]
    assert (
        np.nansum(costs.size_bytes_N) == listed.sized_bytes == sum(file.stat().st_size for file in archive.rglob("*.*"))
    )
    # 20 ms of each photo that is looked at, and what else the engine does.
    assert 1e3 * BURNT_S * 0.7 <= costs.engine_ms < 1e3 * BURNT_S * 1.5
    assert (costs.engine_ms_N[costs.is_failed_N] == 0).all()
    decoded_N = ~costs.is_failed_N
    assert (costs.decode_ms_N[decoded_N] > 0.1).all()
    assert costs.assembly_ms < 1e3 * BURNT_S / 4  # the engine's time is not in it
    assert 20 < costs.published_bytes < 2000


def test_photos_that_never_come_are_counted(archive: Path, tmp_path: Path) -> None:
    source = manifest(tmp_path / "m.parquet", [str(archive / "china.jpg"), str(tmp_path / "gone.jpg")])
    costs = measure_costs(list_archive([source], 10).sample, READING, load=load_null_engine)
    lost = costs.outcome_N.index("not_found")
    assert costs.is_failed_N.sum() == 1
    assert costs.decode_ms_N[lost] == 0
    assert np.isnan(costs.size_bytes_N[lost])
    assert costs.decode_ms_N[1 - lost] > 0


@pytest.mark.s3
def test_an_archive_in_a_bucket_is_sampled_where_it_is(archive: Path, s3_bucket: str) -> None:
    prefix = f"s3://{s3_bucket}/sizing"
    for name in ("china.jpg", "flower.jpg", "coffee.png"):
        storage.write_bytes(f"{prefix}/{name}", (archive / name).read_bytes())
    listed = list_archive([prefix], 2)
    costs = measure_costs(listed.sample, READING, load=load_null_engine)
    assert (listed.photos, len(costs.outcome_N), costs.is_failed_N.any()) == (3, 2, False)
    assert costs.fetch_ms_N.min() > 0
    assert names(listed.sample) < {f"{prefix}/{name}" for name in ("china.jpg", "flower.jpg", "coffee.png")}


def test_a_command_prints_costs_clusters_and_what_is_not_known(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for name in ("china.jpg", "flower.jpg"):
            tar.add(archive / name, name)
    shutil.copy(archive / "coffee.png", tmp_path / "single.png")
    settings = SizeClusterBenchmark(
        (str(tmp_path / "photos.tar"), manifest(tmp_path / "m.parquet", ["single.png"])), nodes=(1, 4), cores=16
    )
    settings.measure()
    text = capsys.readouterr().out
    assert text.startswith("3 photos listed")
    assert "3 photos read, drawn at random; 0 of them failed" in text
    assert "    png                              1" in text
    assert "    jpeg                             2" in text
    assert "16 cores: readers and engine share the cores" in text
    assert "--cluster" not in text
    assert "GPU nodes: unknown" in text
    assert "GPU-hours" not in text


def test_a_billion_photos_are_reckoned_from_a_few(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = SizeClusterBenchmark(
        (str(archive),), archive_photos=1_000_000_000, nodes=(1,), cores=16, gpus=2, gpu_photos_per_s=2000.0
    )
    settings.measure()
    text = capsys.readouterr().out
    assert "For 1,000,000,000 photos like these, by extrapolation:" in text
    assert "2 GPUs, each 2,000.0 photos/s (given)" in text
    assert "for 1 nodes: --cluster.readers " in text
    assert "GPU-hours" in text
    assert "unknown" not in text


@pytest.mark.parametrize(
    "wrong", [{"photos": ()}, {"sample": 0}, {"nodes": ()}, {"reached": 1.5}, {"gpu_photos_per_s": 0.0}, {"cores": 0}]
)
def test_refuses_what_would_measure_nothing(archive: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="--"):
        SizeClusterBenchmark(**({"photos": (str(archive),)} | wrong)).measure()  # type: ignore[arg-type]
