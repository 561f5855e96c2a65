"""Measure Graticule against its alternatives, both in the same run: what counts is the ratio.

python -m jobs.benchmark NAME [--photos SOURCE]     --help lists the names
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image

from jobs import run_command
from jobs import train as train_job
from jobs.benchmark.all import AllBenchmark
from jobs.benchmark.decode import DecodeBenchmark
from jobs.benchmark.engine import EngineBenchmark, crowded_photos
from jobs.benchmark.fetch import FetchBenchmark
from jobs.benchmark.figure import Figure, print_table, write
from jobs.benchmark.framing import FramingBenchmark
from jobs.benchmark.places import PlacesBenchmark
from jobs.benchmark.plan import PlanBenchmark
from jobs.benchmark.query import QueryBenchmark
from jobs.benchmark.readout import ReadOutBenchmark
from jobs.benchmark.scale import ScaleBenchmark
from jobs.benchmark.shrink import ShrinkBenchmark
from jobs.benchmark.sizing import SizeClusterBenchmark
from jobs.benchmark.tokens import TokensBenchmark
from jobs.benchmark.ways import WaysBenchmark
from jobs.demo_photos import write_demo_archive
from model.world import s2
from pipeline import schema, storage
from pipeline.cluster.ray_cluster import start_ray
from pipeline.decode.photo import DecodeTarget
from pipeline.read.reader import IsolatedReader, Reader, ReaderSettings
from training import hierarchy as partition
from training.data.dataset import PhotoStore
from training.fit.journal import read_journal
from training.fit.loop import Task, TrainingLoop, Upkeep
from training.fit.objective import Labels
from training.fit.recipe import Recipe
from training.fit.team import Team
from training.fit.trainer import Network, Photos, StreamedPhotos, Workers, fit

_MOST_ISOLATION = 1.05


@dataclass(frozen=True)
class S2Benchmark:
    """Points encoded a second: our numpy encoder beside s2sphere, and how many times faster."""

    points: int = 1_000_000
    """Random points on Earth for our encoder; s2sphere encodes a twentieth of them."""
    repeats: int = 5
    """Each is timed this often in turn and the best time counts: the machine may be busy."""

    def measure(self) -> list[Figure]:
        """Print the speed ratio; return the figures."""
        try:
            import s2sphere
        except ImportError as error:
            raise ValueError("this benchmark compares with s2sphere: pip install s2sphere") from error
        random = np.random.default_rng(0)
        lat_deg_N = np.degrees(np.arcsin(random.uniform(-1, 1, self.points)))
        lon_deg_N = random.uniform(-180, 180, self.points)
        pairs = list(zip(lat_deg_N[::20].tolist(), lon_deg_N[::20].tolist(), strict=True))

        def ours() -> list[int]:
            return [int(i) for i in s2.leaf_id_N(lat_deg_N, lon_deg_N)[::20]]

        def theirs() -> list[int]:
            from_degrees, from_lat_lng = s2sphere.LatLng.from_degrees, s2sphere.CellId.from_lat_lng
            return [from_lat_lng(from_degrees(*pair)).id() for pair in pairs]

        if ours() != theirs():
            raise ValueError("our S2 cells are not s2sphere's: a speed ratio would mean nothing")
        seconds = np.array(
            [[_seconds(lambda: s2.leaf_id_N(lat_deg_N, lon_deg_N)), _seconds(theirs)] for _ in range(self.repeats)]
        ).min(axis=0)
        ours_per_s, theirs_per_s = self.points / seconds[0], len(pairs) / seconds[1]
        print(f"numpy     {ours_per_s:>12,.0f} points/s  {1e6 / ours_per_s:6.3f} µs a point")
        print(f"s2sphere  {theirs_per_s:>12,.0f} points/s  {1e6 / theirs_per_s:6.3f} µs a point")
        print(f"ratio     {ours_per_s / theirs_per_s:>12.1f}")
        ratio = ours_per_s / theirs_per_s
        return [Figure("S2", "our encoder ÷ s2sphere", ours_per_s, theirs_per_s, ratio, "points/s", least=10)]


@dataclass(frozen=True)
class PartitionBenchmark:
    """Seconds and peak memory of building the paper's seven levels from as many photos as the paper's training set."""

    photos: int = 4_720_000
    """Synthetic photos, crowded in towns of very unequal size as real ones are."""

    def measure(self) -> list[Figure]:
        """Print seconds and peak memory; return the figures."""
        lat_deg_N, lon_deg_N = crowded_photos(self.photos)
        start = time.perf_counter()
        hierarchy = partition.build_hierarchy(lat_deg_N, lon_deg_N, partition.PRESETS["paper7"])
        seconds = time.perf_counter() - start
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"{self.photos:,} photos → cells {hierarchy.class_counts}: {seconds:.1f} s, process peak {peak_gb:.2f} GB"
        )
        return [
            Figure("partition", "seconds ÷ a minute", seconds, 60, seconds / 60, "s", most=1),
            Figure("partition", "peak memory ÷ 4 GB", peak_gb, 4, peak_gb / 4, "GB", most=1),
        ]


@dataclass(frozen=True)
class IsolationBenchmark:
    """What decoding in a process of its own costs healthy photos: IsolatedReader beside Reader, one process each."""

    photos: str | None = None
    """Folder of photos to measure on, beside two kinds of synthetic JPEGs; the demo's little archive if not given."""
    copies: int = 1
    """Each photo is read so many times in a measurement."""
    repeats: int = 9
    """Both are timed this often in turn and the median of the ratios counts: the machine may be busy."""

    def measure(self) -> list[Figure]:
        """Print photos a second and the cost, of time and of processor time; return the figures."""
        with tempfile.TemporaryDirectory(prefix="graticule-bench-") as name:
            folder = Path(name)
            if self.photos is None:
                write_demo_archive(folder / "archive")
            given = [entry.uri for entry in storage.list_files(storage.absolute(self.photos or f"{name}/archive"))]
            print(f"{'':<16}{'photos':>7}{'plain/s':>9}{'isolated/s':>12}{'cost, time':>12}{'cost, CPU':>11}")
            return [
                self._compare("folder", given * self.copies),
                self._compare("640 × 480", _synthetic(folder / "small", (640, 480), 32) * 16 * self.copies),
                self._compare("4000 × 3000", _synthetic(folder / "large", (4000, 3000), 8) * 4 * self.copies),
            ]

    def _compare(self, name: str, uris: list[str]) -> Figure:
        settings = ReaderSettings(DecodeTarget(224, 224))
        rows = [{schema.PHOTO_ID: schema.photo_id(uri), schema.URI: uri} for uri in uris]
        plan = pa.Table.from_pylist(rows, schema=schema.MANIFEST)
        plain, isolated = Reader(settings), IsolatedReader(settings)
        blocks = [plan.slice(start, 64) for start in range(0, len(rows), 64)]  # as the pipeline does
        for reader in (plain, isolated):
            reader(blocks[0])
        child = isolated.decoder.pid
        assert child
        cost: list[tuple[float, float]] = []
        for _ in range(self.repeats):
            for reader in (plain, isolated):
                start_s, start_cpu_s = time.perf_counter(), _cpu_s(child)
                for block in blocks:
                    reader(block)
                cost.append((time.perf_counter() - start_s, _cpu_s(child) - start_cpu_s))
        assert isolated.decoder.pid == child, "a photo ended the decoder: leave it out"
        isolated.close()
        cost_N2P = np.array(cost).reshape(-1, 2, 2)  # repeats × plain, isolated × time, processor time
        plain_s, isolated_s = np.median(cost_N2P[:, :, 0], axis=0)
        more_percent = 100 * (np.median(cost_N2P[:, 1] / cost_N2P[:, 0], axis=0) - 1)
        print(
            f"{name:<16}{len(uris):>7}{len(uris) / plain_s:>9.1f}{len(uris) / isolated_s:>12.1f}"
            f"{more_percent[0]:>+11.1f}%{more_percent[1]:>+10.1f}%"
        )
        plain_ms, isolated_ms = 1000 * np.median(cost_N2P[:, :, 1], axis=0) / len(uris)
        return Figure(
            f"isolation, {name}", "core time isolated ÷ plain", isolated_ms, plain_ms, 1 + more_percent[1] / 100,
            "core ms", most=_MOST_ISOLATION,
        )  # fmt: skip


def _cpu_s(child: int) -> float:
    """Return the processor time of this process and a child that still runs (Linux' clock of a process by its id)."""
    return time.process_time() + time.clock_gettime((~child << 3) | 2)


def _synthetic(folder: Path, size_px: tuple[int, int], count: int) -> list[str]:
    """Write JPEGs of about a camera's size in bytes: soft shapes with a little noise."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(count):
        shapes = random.integers(0, 256, (size_px[1] // 20, size_px[0] // 20, 3), dtype=np.uint8)
        noise = Image.effect_noise(size_px, 12).convert("RGB")
        picture = Image.blend(Image.fromarray(shapes).resize(size_px, Image.Resampling.BICUBIC), noise, 0.4)
        picture.save(folder / f"{index}.jpg", quality=90)
    return [entry.uri for entry in storage.list_files(str(folder))]


@dataclass(frozen=True)
class TrainBenchmark:
    """Photos a second of training's parts, each with one processor: ingest only, network only, both together; and of
    two workers beside one, at the same batch for each worker."""

    photos: str | None = None
    """Folder of photos to measure on; the demo's little archive if not given."""
    network: Literal["paper_swin_b", "small", "bundled", "tiny"] = "small"
    batch_size: int = 8
    """Photos a step for each worker."""
    steps: int = 16
    """Steps of each measurement; the first quarter is not counted, since everything starts then."""
    repeats: int = 2
    """The network alone is timed before and after each of so many runs together, and the median counts."""

    def measure(self) -> list[Figure]:
        """Print photos a second and their ratios; return the figures."""
        with tempfile.TemporaryDirectory(prefix="graticule-bench-") as folder:
            return self._measure(Path(folder))

    def _measure(self, folder: Path) -> list[Figure]:
        if self.photos is None:
            write_demo_archive(folder / "archive")
        readable = _readable(storage.absolute(self.photos or str(folder / "archive")))
        config = train_job.NETWORKS[self.network]()
        target = DecodeTarget.of(config.preprocessing)
        rows = np.arange(2 * self.batch_size * self.steps)
        uris = pa.array([readable[row % len(readable)] for row in rows], pa.large_string())
        photos = Photos(uris, target, target)
        random = np.random.default_rng(0)
        lat_deg_N, lon_deg_N = (
            np.degrees(np.arcsin(random.uniform(-1, 1, len(rows)))),
            random.uniform(-180, 180, len(rows)),
        )
        hierarchy = partition.build_hierarchy(lat_deg_N, lon_deg_N, partition.PRESETS["hundreds"])
        labels = Labels.of(hierarchy, lat_deg_N, lon_deg_N, np.zeros(len(rows), np.int64))
        network = Network(config, hierarchy.class_counts)

        def task(workers: int) -> Task:
            recipe = Recipe(epochs=1, batch_size=workers * self.batch_size, balance=0.0)
            return Task(recipe, labels, rows[: workers * self.batch_size * self.steps], np.empty(0, np.int64))

        start_ray(least_cpus=4, dashboard=True)
        torch.set_num_threads(1)
        ingest_per_s = self._steady_per_s(StreamedPhotos(uris, target, 1).batches(rows.tolist(), self.batch_size))
        [(_, pixels_NHWC)] = PhotoStore(uris.to_pylist()[: self.batch_size], target).batches(range(self.batch_size), 99)

        def network_per_s() -> float:
            source = _Repeated(pixels_NHWC)
            made = TrainingLoop(network.build(), task(1), Team(), Upkeep(quiet=True))
            made.run(source, source)
            return _median_per_s(source.asked_at_s, self.batch_size)

        def together_per_s(workers: int, name: str) -> float:
            upkeep = Upkeep(str(folder / name), log_steps=1, snapshot_steps=1 << 30, quiet=True)
            fit(network, task(workers), photos, upkeep, Workers(count=workers))
            speeds = [x["samples_per_s"] for x in read_journal(upkeep.output) if x["kind"] == "step"]
            return float(np.median(speeds[self.steps // 4 :]))

        alone, one, two = [network_per_s()], [], []
        for repeat in range(self.repeats):
            one.append(together_per_s(1, f"one-{repeat}"))
            two.append(together_per_s(2, f"two-{repeat}"))
            alone.append(network_per_s())
        network_alone, together, doubled = (float(np.median(x)) for x in (alone, one, two))
        print(f"{self.network}, {config.preprocessing.image_size_px} px, on {os.cpu_count()} cores")
        for name, per_s in (
            ("ingest only, 1 decoder", ingest_per_s),
            ("network only, 1 worker of 1 thread", network_alone),
            ("together, 1 decoder and 1 worker", together),
            ("together, 2 decoders and 2 workers", doubled),
        ):
            print(f"{name:<40}{per_s:>9.2f} photos/s")
        print(f"together ÷ the slower of the two  {together / min(ingest_per_s, network_alone):.2f}")
        print(f"2 workers ÷ 1 worker              {doubled / together:.2f}")
        slower = min(ingest_per_s, network_alone)
        return [
            Figure("training", "together ÷ slower part", together, slower, together / slower, least=0.9),
            Figure("training", "2 workers ÷ 1 worker", doubled, together, doubled / together),
        ]

    def _steady_per_s(self, batches: Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]) -> float:
        at_s = [time.perf_counter() for _ in batches]
        return self.batch_size * (len(at_s) - self.steps // 4 - 1) / (at_s[-1] - at_s[self.steps // 4])


class _Repeated:
    """One batch in memory, again and again; `asked_at_s` is when."""

    def __init__(self, pixels_BHWC: NDArray[np.uint8]) -> None:
        self._pixels_BHWC = pixels_BHWC
        self.asked_at_s: list[float] = []

    def batches(self, rows: Sequence[int], batch_size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        for start in range(0, len(rows), batch_size):
            self.asked_at_s.append(time.perf_counter())
            row_B = np.array(rows[start : start + batch_size])
            yield row_B, self._pixels_BHWC[: len(row_B)]


def _median_per_s(at_s: list[float], batch_size: int) -> float:
    return float(batch_size / np.median(np.diff(at_s[len(at_s) // 4 :])))


def _readable(folder: str) -> list[str]:
    """Return the photos below a folder that can be decoded."""
    target = DecodeTarget(32, 32)
    uris = [entry.uri for entry in storage.list_files(folder)]
    rows = np.concatenate([row_B for row_B, _ in PhotoStore(uris, target, 1.0).batches(range(len(uris)), 32)])
    return [uris[row] for row in rows.tolist()]


@dataclass(frozen=True)
class Settings:
    """Measure Graticule against its alternatives."""

    benchmark: tyro.conf.OmitSubcommandPrefixes[
        Annotated[S2Benchmark, tyro.conf.subcommand("s2")]
        | Annotated[PartitionBenchmark, tyro.conf.subcommand("partition")]
        | Annotated[PlanBenchmark, tyro.conf.subcommand("plan")]
        | Annotated[PlacesBenchmark, tyro.conf.subcommand("places")]
        | Annotated[QueryBenchmark, tyro.conf.subcommand("query")]
        | Annotated[EngineBenchmark, tyro.conf.subcommand("engine")]
        | Annotated[DecodeBenchmark, tyro.conf.subcommand("decode")]
        | Annotated[ShrinkBenchmark, tyro.conf.subcommand("shrink")]
        | Annotated[FramingBenchmark, tyro.conf.subcommand("framing")]
        | Annotated[ReadOutBenchmark, tyro.conf.subcommand("readout")]
        | Annotated[WaysBenchmark, tyro.conf.subcommand("ways")]
        | Annotated[FetchBenchmark, tyro.conf.subcommand("fetch")]
        | Annotated[IsolationBenchmark, tyro.conf.subcommand("isolation")]
        | Annotated[SizeClusterBenchmark, tyro.conf.subcommand("size-cluster")]
        | Annotated[ScaleBenchmark, tyro.conf.subcommand("scale")]
        | Annotated[TrainBenchmark, tyro.conf.subcommand("train")]
        | Annotated[TokensBenchmark, tyro.conf.subcommand("tokens")]
        | Annotated[AllBenchmark, tyro.conf.subcommand("all")]
    ]
    to: Path | None = None
    """Write the figures as JSON, too; give it before the benchmark's name."""


def run(settings: Settings) -> int:
    """Run the benchmark that the command line names; return the figures."""
    figures = settings.benchmark.measure()
    if figures and not isinstance(settings.benchmark, AllBenchmark):
        print_table(figures)
    if settings.to is not None:
        write(figures, settings.to)
    return 0


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    run_command(Settings, run)
