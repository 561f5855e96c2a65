"""From what a photo costs to the cluster, the hours and the stores that an archive needs: arithmetic, no measuring.

Costs are core-milliseconds: of one core that does nothing else. Shapes: N photos of the sample · R resamples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.cluster.flow import ClusterSettings
from pipeline.run import publish
from pipeline.run.plan import rows_per_task

_RESAMPLES = 1000
_CONTENT_BYTES = 200
_KEYS_PER_LISTING = 1000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Costs:
    """What each photo of a sample took, in core-ms, and what became of it.

    Attributes:
        fetch_ms_N: getting its bytes; of the photos that are read together, each has an equal share.
        decode_ms_N: in the decoder's process; 0 where nothing came to decode.
        handling_ms_N: hashing, handing over, making rows.
        engine_ms_N: the network; of a GPU's, what the core takes that drives it.
        assembly_ms_N: making rows of the network's answers.
        staging_ms: writing its row.
        outcome_N: the format, or the error code where it failed.
        is_failed_N: whether it has no place.
        size_bytes_N: bytes read, NaN where none came.
        staged_bytes: a row in the staging; published_bytes: one in a published file.
        engine_name: which engine ran.
        is_on_gpu: whether the network ran on a GPU: then nothing is known about a CPU's time for it.
        gpu_photos_per_s: what a GPU here locates; None without one.
    """

    fetch_ms_N: Floats
    decode_ms_N: Floats
    handling_ms_N: Floats
    engine_ms_N: Floats
    assembly_ms_N: Floats
    staging_ms: float
    outcome_N: list[str]
    is_failed_N: npt.NDArray[np.bool_]
    size_bytes_N: Floats
    staged_bytes: float
    published_bytes: float
    engine_name: str
    is_on_gpu: bool = False
    gpu_photos_per_s: float | None = None

    @property
    def read_ms(self) -> float:
        """What a reading process takes for a photo."""
        return float((self.fetch_ms_N + self.decode_ms_N + self.handling_ms_N).mean())

    @property
    def engine_ms(self) -> float:
        """What the network takes."""
        return float(self.engine_ms_N.mean())

    @property
    def assembly_ms(self) -> float:
        """What making its row takes: work of one thread, during which its engine waits."""
        return float(self.assembly_ms_N.mean())

    @property
    def total_ms(self) -> float:
        """All of it."""
        return self.read_ms + self.engine_ms + self.assembly_ms + self.staging_ms

    @property
    def spread(self) -> tuple[float, float]:
        """The ends of the bootstrap's 95 % interval of `total_ms`, as shares of it.

        Of the sampling only: what a busy machine does to the times is not in it.
        """
        each_N = self.fetch_ms_N + self.decode_ms_N + self.handling_ms_N + self.engine_ms_N + self.assembly_ms_N
        random = np.random.default_rng(0)
        mean_R = [each_N[random.integers(0, len(each_N), len(each_N))].mean() for _ in range(_RESAMPLES)]
        low, high = np.percentile(np.array(mean_R) + self.staging_ms, [2.5, 97.5]) / self.total_ms
        return float(low), float(high)

    def lines(self) -> Iterator[str]:
        """Yield the table of costs."""
        photos, failed = len(self.outcome_N), int(self.is_failed_N.sum())
        codes = Counter(name for name, bad in zip(self.outcome_N, self.is_failed_N, strict=True) if bad)
        named = ": " + ", ".join(f"{count} {code}" for code, count in codes.most_common()) if failed else ""
        yield f"{photos} photos read, drawn at random; {failed} of them failed{named}"
        yield ""
        yield f"{'core-ms a photo':<30}{'photos':>8}{'mean':>9}"
        yield f"{'fetch':<30}{photos:>8}{self.fetch_ms_N.mean():>9.2f}"
        yield f"{'decode':<30}{photos:>8}{self.decode_ms_N.mean():>9.2f}"
        for name, count in Counter(self.outcome_N).most_common():
            own_N = np.array(self.outcome_N) == name
            yield f"{'    ' + name:<30}{count:>8}{self.decode_ms_N[own_N].mean():>9.2f}"
        driving = ", the core that drives the GPU" if self.is_on_gpu else ""
        yield f"{f'engine ({self.engine_name}{driving})':<30}{photos - failed:>8}{self.engine_ms:>9.2f}"
        overhead_ms = self.handling_ms_N.mean() + self.assembly_ms + self.staging_ms
        yield f"{'overhead: hash, rows, staging':<30}{photos:>8}{overhead_ms:>9.2f}"
        low, high = self.spread
        yield f"{'all':<30}{photos:>8}{self.total_ms:>9.2f}  [{low * self.total_ms:.2f}–{high * self.total_ms:.2f}]"
        rates = f"{1e3 / self.total_ms:.1f} photos/s for each core, {1e3 / self.read_ms:.1f} if it only reads"
        yield rates if not self.is_on_gpu else f"{1e3 / self.read_ms:.1f} photos/s for each core that reads"
        if self.gpu_photos_per_s is not None:
            yield f"{self.gpu_photos_per_s:.1f} photos/s for each GPU"


@dataclass(frozen=True)
class Node:
    """How a node is divided, and what it does where nothing else is to be done.

    Of GPUs: how many reading processes keep one busy, and which share of the time those it has do so.
    """

    cores: int
    readers: int
    engines: int
    gpus: int
    photos_per_s: float
    readers_a_gpu: float = 0.0
    gpu_busy: float = 0.0

    def words(self) -> str:
        """Say how the work is divided."""
        if self.gpus:
            return (
                f"a GPU actor is kept busy by {self.readers_a_gpu:.1f} reading processes; with {self.readers} for"
                f" {self.engines} the GPUs are busy {self.gpu_busy:.0%} of the time"
            )
        return "readers and engine share the cores"

    def flags(self, nodes: int) -> str:
        """Return what to type for so many nodes; nothing where the defaults do."""
        return (
            f"--cluster.readers {nodes * self.readers} --cluster.locators {nodes * self.engines}" if self.gpus else ""
        )


def cpu_node(cores: int, costs: Costs) -> Node:
    """A node whose readers and engine share its cores; while the engine's one thread makes rows, the engine waits."""
    engine_per_s = 1 / (costs.engine_ms / cores + costs.assembly_ms)
    return Node(cores, cores, 1, 0, 1e3 * min(cores / costs.total_ms, engine_per_s))


def gpu_node(cores: int, gpus: int, gpu_photos_per_s: float, costs: Costs) -> Node:
    """Divide a node's cores so that its GPUs are fed, each driven by a core of its own; ValueError for too few cores.

    Readers beyond what the GPUs can use are not asked for; where there are too few, GPUs wait.
    """
    if cores <= gpus:
        raise ValueError(f"--cores {cores} --gpus {gpus}: each GPU takes a core to drive it, and none is left to read")
    each_per_s = 1 / (1 / gpu_photos_per_s + costs.assembly_ms / 1e3)
    cpu_ms = costs.read_ms + costs.staging_ms
    readers = min(math.ceil(gpus * each_per_s * cpu_ms / 1e3), cores - gpus)
    per_s = min(gpus * each_per_s, 1e3 * readers / cpu_ms)
    return Node(cores, readers, gpus, gpus, per_s, each_per_s * cpu_ms / 1e3, per_s / gpus / gpu_photos_per_s)


@dataclass(frozen=True)
class Archive:
    """What is to be processed: so many photos of so many bytes each, on average."""

    photos: int
    mean_bytes: float
    cluster: ClusterSettings = field(default_factory=ClusterSettings)

    def needs(self, costs: Costs) -> Iterator[str]:
        """Yield what it needs whatever the cluster is."""
        photos, parts = self.photos, -(-self.photos // self.cluster.rows_per_part)
        files = max(1, photos // publish.LEAST_ROWS_PER_FILE)
        yield f"{'bytes to read':<30}{size(photos * self.mean_bytes)}, {size(self.mean_bytes)} a photo"
        yield f"{'requests that read':<30}{photos:,} for photos, {-(-photos // _KEYS_PER_LISTING):,} to list a prefix"
        yield f"{'requests that write':<30}some {parts:,} parts staged, {files:,} files published"
        yield f"{'tasks':<30}{-(-photos // rows_per_task(photos)):,} of {rows_per_task(photos):,} photos"
        yield f"{'output':<30}{size(photos * costs.published_bytes)}, {costs.published_bytes:.0f} bytes a photo"
        yield f"{'staged until it is published':<30}{size(photos * costs.staged_bytes)}"
        known = min(photos, self.cluster.known_contents)
        yield f"{'to know copies by':<30}{size(known * _CONTENT_BYTES)} of memory, on one node"

    def hours(self, nodes: int, node: Node, costs: Costs, reached: float, control_ms: float) -> str:
        """Return a line about a cluster that reaches a share of what its cores allow.

        `control_ms` are core-ms a photo that planning, Ray and publishing take, on the same cores.
        """
        per_s = reached * nodes / (1 / node.photos_per_s + control_ms / 1e3 / node.cores)
        hours = self.photos / per_s / 3600
        low, high = costs.spread
        gpus = f"{hours * nodes * node.gpus:>14,.1f} GPU-hours" if node.gpus else ""
        return (
            f"{nodes:>6}{per_s:>11,.1f}{hours:>12,.2f}  [{hours * low:,.2f}–{hours * high:,.2f}]"
            f"{hours * nodes * node.cores:>14,.1f} core-hours{gpus}{per_s * self.mean_bytes * 8 / 1e9:>9.2f} Gbit/s"
        )


def size(count: float) -> str:
    """Return bytes in words."""
    units = ("bytes", "kB", "MB", "GB", "TB", "PB")
    step = min(int(math.log10(max(count, 1)) // 3), len(units) - 1)
    return f"{count / 1000**step:.{1 if step else 0}f} {units[step]}"
