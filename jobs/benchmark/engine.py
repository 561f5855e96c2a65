"""Photos a second of each engine, its share of the machine's matrix limit, and whether all engines answer alike.

`python -m jobs.benchmark engine` is the command.

Shapes: N photos · B batch · H, W height and width · C 3 colours.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from jobs import train
from jobs.benchmark.figure import Figure
from jobs.demo_photos import write_demo_archive
from model.checkpoint import Checkpoint
from model.engines import Engine, EngineName, NumpyAnswers, Precision, load_engine, openvino_engine
from model.engines.export import ServingGraph
from model.geodecoder import GeoDecoder
from model.world.geodesy import haversine_km
from model.world.hierarchy import Hierarchy
from pipeline import storage
from pipeline.decode.photo import DecodeTarget
from pipeline.locate.locator import model_folder
from training import hierarchy as partition
from training.data.dataset import PhotoStore

_MATRIX_SIDE = 1024
_SAME_CELL_AIM = 0.995
_SHARE_AIM = 0.5
_CALIBRATION_PHOTOS = 300


@dataclass(frozen=True)
class EngineBenchmark:
    """Photos a second of every engine, beside what this machine's matrix products reach; and how far engines agree.

    Each measurement has a plain matrix product before and after it, as the machine may be busy: what counts is the
    ratio of the two, and the median over the repeats. Speed is the whole serving graph's, uint8 pixels to answers.
    """

    network: Literal["paper_swin_b", "small", "bundled", "tiny"] = "paper_swin_b"
    """Whose speed is measured, with random weights and as many cells as the paper's training set gives."""
    engines: tuple[str, ...] = ("torch fp32", "openvino fp32", "openvino int8", "onnxruntime fp32", "openvino bf16")
    """Engine and precision; what this machine does not have is said and left out. The first is the yardstick."""
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    repeats: int = 3
    model: str = "bundled"
    """Whose answers are compared: a trained model's, since one with random weights can't choose between cells."""
    photos: str | None = None
    """Folder of photos for that; the demo's little archive if not given."""
    threads: int | None = None
    """CPU threads of every engine; all if not given."""
    training_photos: int = 4_720_000
    """Synthetic photos that the network's cells are made from; by default as many as the paper's training set has."""

    def measure(self) -> list[Figure]:
        """Print a line for each engine and batch size, then one for each engine's answers; return the figures."""
        if not self.engines or not self.batch_sizes or min(self.batch_sizes) < 1 or self.repeats < 1:
            raise ValueError("give at least one engine, batch sizes of 1 or more, and 1 or more repeats")
        wanted = [_parsed(name) for name in self.engines]
        threads = self.threads or os.cpu_count() or 1
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory(prefix="graticule-bench-") as name:
            folder = Path(name)
            figures = self._measure_speed(
                random_checkpoint(self.network, folder / "network", self.training_photos),
                wanted,
                threads,
                storage.cache_folder() / "engines",  # the next run finds what is converted, as a job's next start does
            )
            return figures + self._measure_agreement(folder, wanted, threads)

    def _measure_speed(
        self,
        checkpoint: Checkpoint,
        wanted: list[tuple[EngineName, Precision]],
        threads: int,
        cache_dir: Path,
    ) -> list[Figure]:
        size_px = checkpoint.config.preprocessing.image_size_px
        shape_HWC = checkpoint.config.preprocessing.shape_HWC
        pixels_BHWC = np.random.default_rng(0).integers(0, 256, (max(self.batch_sizes), *shape_HWC), dtype=np.uint8)
        # Noise will do: how fast int8 is does not depend on its ranges.
        calibration_NHWC = np.resize(pixels_BHWC, (openvino_engine.LEAST_CALIBRATION_PHOTOS, *pixels_BHWC.shape[1:]))
        flop = flop_a_photo(checkpoint)
        cells = checkpoint.hierarchy.class_counts
        print(f"{self.network}, {size_px} px, cells {cells}: {flop / 1e9:.1f} GFLOP a photo, {threads} threads")
        print(f"{'engine':<20}{'batch':>6}{'photos/s':>10}{'GFLOP/s':>9}{'matrix limit':>14}{'share':>7}{'÷ first':>9}")
        first: float | None = None
        best: dict[str, Figure] = {}
        for engine in _loaded(wanted, checkpoint, threads, calibration_NHWC, cache_dir):
            dtype = torch.bfloat16 if engine.precision == "bf16" else torch.float32
            for batch_size in self.batch_sizes:
                batch_BHWC = pixels_BHWC[:batch_size]
                engine(batch_BHWC)
                speeds = np.array(
                    [self._beside_the_limit(engine, batch_BHWC, flop, dtype) for _ in range(self.repeats)]
                )
                per_s, limit = np.median(speeds, axis=0)
                share = float(np.median(speeds[:, 0] * flop / speeds[:, 1]))
                first = first or share
                print(
                    f"{engine.name + ' ' + engine.precision:<20}{batch_size:>6}{per_s:>10.2f}{per_s * flop / 1e9:>9.0f}"
                    f"{limit / 1e9:>14.0f}{share:>7.2f}{share / first:>9.2f}",
                    flush=True,
                )
                is_int8 = engine.precision == "int8"  # its own limit is not measured: fp32's stands beside it, no aim
                name = f"{engine.name} {engine.precision} ÷ {'fp32 ' if is_int8 else ''}matrix limit"
                if name not in best or share > best[name].ratio:
                    best[name] = Figure(
                        f"engine, {self.network}", name, per_s * flop / 1e9, limit / 1e9, share,
                        "GFLOP/s", least=None if is_int8 else _SHARE_AIM,
                    )  # fmt: skip
        print("share: of that precision's matrix products (int8: fp32's), in the same minute; ÷ first: of such shares")
        return list(best.values())

    def _beside_the_limit(
        self, engine: Engine, pixels_BHWC: NDArray[np.uint8], flop: int, dtype: torch.dtype
    ) -> tuple[float, float]:
        """Return photos a second and the matrix limit in FLOP/s around that time."""
        before = _matrix_flop_per_s(dtype)
        seconds = _seconds(lambda: engine(pixels_BHWC))
        return len(pixels_BHWC) / seconds, (before + _matrix_flop_per_s(dtype)) / 2

    def _measure_agreement(
        self, folder: Path, wanted: list[tuple[EngineName, Precision]], threads: int
    ) -> list[Figure]:
        checkpoint = Checkpoint.load(model_folder(self.model))
        if self.photos is None:
            write_demo_archive(folder / "archive")
        uris = [entry.uri for entry in storage.list_files(storage.absolute(self.photos or str(folder / "archive")))]
        store = PhotoStore(uris, DecodeTarget.of(checkpoint.config.preprocessing), max_failed_fraction=1.0)
        pixels_NHWC = np.concatenate([pixels for _, pixels in store.batches(range(len(uris)), 64)])
        unreadable = len(uris) - len(pixels_NHWC)
        print(f"\nanswers of {checkpoint.model_id} to {len(pixels_NHWC)} photos ({unreadable} unreadable)")
        exact: NumpyAnswers | None = None
        figures: list[Figure] = []
        for engine in _loaded(wanted, checkpoint, threads, pixels_NHWC, folder / "agreement"):
            answers = all_answers(engine, pixels_NHWC)
            exact = exact or answers
            found = Agreement.of(answers, exact, checkpoint.hierarchy)
            # int8 is asked for by name, with its cost printed: it has none to keep to.
            aim = None if engine.precision == "int8" else _SAME_CELL_AIM
            verdict = "" if aim is None else f"  {'pass' if found.same_cell >= aim else 'short'}"
            print(f"{engine.name + ' ' + engine.precision:<20}{found}{verdict}", flush=True)
            name = f"{engine.name} {engine.precision}, same finest cell"
            subject = f"engine, {len(pixels_NHWC)} photos"
            if answers is not exact:
                figures.append(Figure(subject, name, found.same_cell, 1.0, found.same_cell, "share", least=aim))
        return figures


@dataclass(frozen=True)
class Agreement:
    """How two engines' answers to the same photos differ."""

    same_cell: float
    """The share of photos with the same cell of the finest level for a point."""
    moved_mean_km: float
    moved_max_km: float
    probability_change: float
    """The greatest change of any level's best probability."""

    @staticmethod
    def of(answers: NumpyAnswers, exact: NumpyAnswers, hierarchy: Hierarchy) -> Agreement:
        """Compare answers with the exact ones, photo by photo."""
        finest, point_N, exact_N = hierarchy.levels[-1], answers.point_index_B, exact.point_index_B
        lat_deg_K, lon_deg_K = finest.lat_deg_K, finest.lon_deg_K
        moved_km_N = haversine_km(lat_deg_K[point_N], lon_deg_K[point_N], lat_deg_K[exact_N], lon_deg_K[exact_N])
        return Agreement(
            same_cell=float((point_N == exact_N).mean()),
            moved_mean_km=float(moved_km_N.mean()),
            moved_max_km=float(moved_km_N.max()),
            probability_change=float(np.abs(answers.level_probability_BH - exact.level_probability_BH).max()),
        )

    def __str__(self) -> str:
        """Return it as a phrase."""
        return (
            f"{self.same_cell:.2%} in the same cell, moved by {self.moved_mean_km:.2f} km on average and"
            f" {self.moved_max_km:.1f} km at most, probabilities by {self.probability_change:.2g}"
        )


def random_checkpoint(
    network: Literal["paper_swin_b", "small", "bundled", "tiny"], folder: Path, training_photos: int
) -> Checkpoint:
    """Save a network with random weights, and the paper's levels of so many synthetic photos, to `folder`."""
    torch.manual_seed(0)
    hierarchy = partition.build_hierarchy(*crowded_photos(training_photos), partition.PRESETS["paper7"])
    return Checkpoint.save(folder, GeoDecoder(train.NETWORKS[network](), hierarchy.class_counts), hierarchy)


def crowded_photos(count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the latitudes and longitudes of photos that crowd in towns of very unequal size, as real ones do."""
    random = np.random.default_rng(0)
    towns = 100_000
    lat_deg_T, lon_deg_T = np.degrees(np.arcsin(random.uniform(-1, 1, towns))), random.uniform(-180, 180, towns)
    town_N = np.minimum(random.pareto(0.5, count), towns - 1).astype(np.int64)
    lat_deg_N = np.clip(lat_deg_T[town_N] + random.normal(0, 0.03, count), -90, 90)
    return lat_deg_N, lon_deg_T[town_N] + random.normal(0, 0.03, count)


def _parsed(name: str) -> tuple[EngineName, Precision]:
    engine, _, precision = name.partition(" ")
    for value, known in ((engine, get_args(EngineName)), (precision, get_args(Precision))):
        if value not in known:
            raise ValueError(f"--engines {name!r}: give an engine and a precision, such as 'openvino fp32'")
    return engine, precision  # type: ignore[return-value]


def _loaded(
    wanted: list[tuple[EngineName, Precision]],
    checkpoint: Checkpoint,
    threads: int,
    pixels_NHWC: NDArray[np.uint8],
    cache_dir: Path,
) -> Iterator[Engine]:
    """Yield the engines that are to be had here, one at a time; say which are not, and why. Photos are for int8."""
    for name, precision in wanted:
        try:
            if (name, precision) == ("openvino", "int8"):
                openvino_engine.quantise(checkpoint, pixels_NHWC[:_CALIBRATION_PHOTOS], cache_dir)
            engine = load_engine(name, checkpoint, threads=threads, precision=precision, cache_dir=cache_dir)
        except ValueError as error:
            print(f"{name + ' ' + precision:<20}  not here: {error}")
            continue
        yield engine
        del engine


def flop_a_photo(checkpoint: Checkpoint) -> int:
    """Return how many floating-point operations one photo takes in matrix products and convolutions."""
    with torch.inference_mode():
        graph = ServingGraph(checkpoint)  # transformers runs a backbone when it is built: that does not count
        with FlopCounterMode(display=False) as counter:
            graph(torch.zeros(1, *checkpoint.config.preprocessing.shape_HWC, dtype=torch.uint8))
    return int(counter.get_total_flops())


def all_answers(engine: Engine, pixels_NHWC: NDArray[np.uint8]) -> NumpyAnswers:
    """Return an engine's answers to any number of photos."""
    parts = [engine(pixels_NHWC[start : start + 32]) for start in range(0, len(pixels_NHWC), 32)]
    return NumpyAnswers(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


def _matrix_flop_per_s(dtype: torch.dtype) -> float:
    """Return how many floating-point operations a second one large matrix product makes, the best of three.

    In fp32 on a CPU numpy's is tried, too: torch's library is slower than that on AMD's processors, engines are not.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    side = 8 * _MATRIX_SIDE if device == "cuda" else _MATRIX_SIDE
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def product() -> None:
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()

    products: list[Callable[[], object]] = [product]
    if device == "cpu" and dtype == torch.float32:
        products.append(lambda: a.numpy() @ b.numpy())
    times_s = []
    for work in products:
        work()
        times_s += [_seconds(work) for _ in range(3)]
    return 2 * side**3 / min(times_s)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
