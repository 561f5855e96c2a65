"""From costs to clusters: the arithmetic, checked by hand and by its limits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jobs.cluster_sizing import Archive, Costs, cpu_node, gpu_node, size

N = 100
COSTS = Costs(
    fetch_ms_N=np.full(N, 1.0),
    decode_ms_N=np.full(N, 8.0),
    handling_ms_N=np.full(N, 0.5),
    engine_ms_N=np.full(N, 30.0),
    assembly_ms_N=np.full(N, 0.1),
    staging_ms=0.5,
    outcome_N=["jpeg"] * 90 + ["heic"] * 7 + ["truncated"] * 2 + ["not_found"],
    is_failed_N=np.arange(N) >= 97,
    size_bytes_N=np.full(N, 1e6),
    staged_bytes=300.0,
    published_bytes=200.0,
    engine_name="openvino fp32",
)


@pytest.mark.parametrize("cores", [2, 16])
def test_a_cpu_node_shares_its_cores(cores: int) -> None:
    node = cpu_node(cores, COSTS)
    assert node.photos_per_s == pytest.approx(cores / 0.0401)
    assert node.flags(10) == ""


def test_an_engine_that_makes_rows_all_the_time_is_the_limit() -> None:
    node = cpu_node(64, replace(COSTS, assembly_ms_N=np.full(N, 2.0)))
    assert node.photos_per_s == pytest.approx(1 / (0.030 / 64 + 0.002))


def test_gpus_get_the_readers_that_keep_them_busy() -> None:
    node = gpu_node(64, 1, 1000.0, COSTS)
    each_per_s = 1 / (1 / 1000 + 0.0001)
    assert node.readers_a_gpu == pytest.approx(each_per_s * 0.010)
    assert node.flags(2) == "--cluster.readers 20 --cluster.locators 2"
    assert node.readers == 10  # 9.09 processes, rounded up: as many as are needed, not all 63
    assert node.photos_per_s == pytest.approx(each_per_s)


def test_gpus_wait_where_cores_are_few() -> None:
    node = gpu_node(16, 8, 1000.0, COSTS)
    assert node.readers == 8
    assert node.photos_per_s == pytest.approx(800)
    assert node.gpu_busy == pytest.approx(0.1)
    with pytest.raises(ValueError, match="none is left to read"):
        gpu_node(8, 8, 1000.0, COSTS)


def test_the_interval_narrows_with_the_sample_and_holds_the_mean() -> None:
    random = np.random.default_rng(1)
    wide = replace(COSTS, decode_ms_N=random.exponential(20.0, N))
    low, high = wide.spread
    assert low < 1 < high
    many = random.exponential(20.0, 16 * N)
    each = {name: np.resize(getattr(COSTS, name), 16 * N) for name in ("fetch_ms_N", "handling_ms_N", "engine_ms_N")}
    large = replace(COSTS, decode_ms_N=many, assembly_ms_N=np.zeros(16 * N), **each)
    assert large.spread[1] - large.spread[0] < (high - low) / 2
    assert COSTS.spread == pytest.approx((1, 1))  # photos that are all alike leave no doubt


def test_the_table_counts_formats_and_failures() -> None:
    text = "\n".join(COSTS.lines())
    assert "100 photos read, drawn at random; 3 of them failed: 2 truncated, 1 not_found" in text
    for line in ("    jpeg                            90     8.00", "    heic                             7     8.00"):
        assert line in text
    assert "24.9 photos/s for each core" in text
    assert "GPU" not in text


def test_needs_grow_with_the_archive() -> None:
    needs = "\n".join(Archive(1_000_000_000, 1e6).needs(COSTS))
    for part in ("1.0 PB", "1,000,000,000 for photos, 1,000,000 to list", "500,000 parts", "2,000 files", "200.0 GB"):
        assert part in needs
    assert "1.0 GB of memory" in needs  # five million contents, however many photos there are
    assert "to know copies by             2.0 MB" in "\n".join(Archive(10_000, 1e6).needs(COSTS))


def test_hours_count_what_the_machinery_takes_and_what_is_not_reached() -> None:
    archive, node = Archive(3_600_000, 1e6), cpu_node(2, COSTS)
    hours = float(archive.hours(1, node, COSTS, 1.0, 0.0).split()[2])
    assert hours == pytest.approx(1000 * 0.0401 / 2, rel=1e-3)
    assert float(archive.hours(1, node, COSTS, 0.5, 0.0).split()[2]) == pytest.approx(2 * hours, rel=1e-3)
    assert float(archive.hours(1, node, COSTS, 1.0, 40.1).split()[2]) == pytest.approx(2 * hours, rel=1e-3)
    ten = archive.hours(10, node, COSTS, 1.0, 0.0)
    assert float(ten.split()[2]) == pytest.approx(hours / 10, abs=0.006)
    assert "GPU" not in ten
    gpu = archive.hours(2, gpu_node(64, 1, 1000.0, COSTS), COSTS, 1.0, 0.0)
    assert "1.1 GPU-hours" in gpu  # 3.6 million photos at 909 a second


def test_sizes_in_words() -> None:
    assert [size(count) for count in (0, 999, 1000, 1.5e9, 2e15)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "1.5 GB",
        "2.0 PB",
    ]
