"""What the machinery around decoder and network costs: the whole dataflow with tiny photos and a null engine.

`python -m jobs.benchmark scale` is the command; run by itself, this file processes one folder's manifest for it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.benchmark.figure import Figure
from model.checkpoint import Checkpoint
from model.engines import NumpyAnswers
from model.readout import TOP_CELLS
from pipeline import schema
from pipeline.cluster.dataflow import publish_on_ray, run_dataflow
from pipeline.cluster.flow import ClusterSettings, Flow
from pipeline.cluster.ray_cluster import start_ray
from pipeline.decode.photo import DecodeTarget
from pipeline.locate.locator import LocatorSettings, model_folder
from pipeline.published.catalog import Catalog
from pipeline.published.records import PhotoCounts, RunRecord
from pipeline.read.reader import ReaderSettings
from pipeline.run.plan import make_plan
from pipeline.run.publish import put_record
from pipeline.run.staging import Stage

_FILES = 1000
_SIZE_PX = 16
_LINKS, _MANIFEST, _OUTPUT = "links", "manifest.parquet", "output"
_MARK = "GRATICULE_BENCHMARK"
_INTERVAL_S = 0.5
_MOST_CORE_MS = 1.0
"""A photo may cost in everything that is neither decode nor engine."""
_STEADY = (0.25, 0.95)
"""Of the rows, in the order in which they are made: before, processes are starting; after, the last of them idle."""
_PARTS = ("driver", "workers", "decoders", "engines", "Ray")
"""Workers read and stage; Ray is its own processes: raylet, control store and what watches them."""

_IN_FLOW = "driver in the flow"
"""Its peak while photos are processed, without planning's and publishing's: this must not grow with their number."""


@dataclass(frozen=True)
class ScaleBenchmark:
    """The whole dataflow (plan, read, locate, stage, publish) with 16 × 16 pixels and a null engine.

    Rows a second with several numbers of workers, core time of each part, and memory against the number of photos.
    """

    workers: tuple[int, ...] = (1, 2, 4)
    """Reading processes, and as many engines; each number is measured on the first of --photos-counts."""
    photos_counts: tuple[int, ...] = (10_000, 100_000)
    """Photos of the runs whose memory is compared, with two workers."""
    limit_minutes: float = 8.0
    """A run that would take longer, by the rate of the one before it, is left out, and said to be."""

    def measure(self) -> list[Figure]:
        """Print a line for each run, then growth; return the figures."""
        if min(*self.workers, *self.photos_counts, 9) < 1:
            raise ValueError("give --workers and --photos-counts of 1 or more")
        print(f"{os.cpu_count()} cores; core-ms a photo are of the steady middle of a run, all processes")
        print(f"{'photos':>9}{'workers':>8}{'rows/s':>8}{'core-ms':>8}" + "".join(f"{x:>9}" for x in _PARTS), end="")
        print(f"{'plan s':>8}{'flow s':>8}{'publish s':>10}  peak GB: all, driver, {_IN_FLOW}, Ray, shared")
        first, *more = sorted(self.photos_counts)
        runs = [(workers, first) for workers in self.workers]
        runs += [(2, count) for count in (first, *more) if (2, count) not in runs]
        measured: list[_Run] = []
        for workers, photos in runs:
            before = [run for run in measured if run.workers == workers]
            minutes = photos / before[-1].rows_per_s / 60 if before else 0.0
            if minutes > self.limit_minutes:
                print(f"{photos:>9,}{workers:>8}  left out: some {minutes:.0f} minutes, --limit-minutes forbids it")
                continue
            with tempfile.TemporaryDirectory(prefix="graticule-bench-") as folder:
                measured.append(_measure(Path(folder), workers, photos))
            print(measured[-1].line(), flush=True)
        grown = [run for run in measured if run.workers == 2]
        for less, more_photos in itertools.pairwise(grown):
            millions = (more_photos.photos - less.photos) / 1e6
            per_million = {name: (more_photos.peak_gb[name] - less.peak_gb[name]) / millions for name in less.peak_gb}
            print(
                f"{less.photos:,} → {more_photos.photos:,} photos: "
                + ", ".join(f"{name} {value:+.2f}" for name, value in per_million.items())
                + " GB a million more photos"
            )
        return [
            Figure(f"scale, {run.photos:,} photos", f"core ms of all but decode, {run.workers} workers",
                   sum(run.core_ms.values()) - run.core_ms["decoders"], _MOST_CORE_MS,
                   (sum(run.core_ms.values()) - run.core_ms["decoders"]) / _MOST_CORE_MS, "core ms", most=1)
            for run in measured
        ]  # fmt: skip


class NullEngine:
    """Answers at once, for each place in a batch always the same; see `model.engines.Engine`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.name = "null"
        self.precision = "fp32"
        self.shape_HWC = checkpoint.config.preprocessing.shape_HWC
        self._cells_H = np.array(checkpoint.hierarchy.class_counts)
        self._groups = 1 if checkpoint.group_K is None else int(checkpoint.group_K.max()) + 1

    def __call__(self, pixels_BHWC: npt.NDArray[np.uint8]) -> NumpyAnswers:
        """Answers that fit the checkpoint's hierarchy."""
        photos, top = len(pixels_BHWC), min(TOP_CELLS, int(self._cells_H[-1]))
        index_B = np.arange(photos)
        share = np.float32(1 / TOP_CELLS)
        return NumpyAnswers(
            level_index_BH=index_B[:, None] % self._cells_H,
            level_probability_BH=np.full((photos, len(self._cells_H)), share),
            top_index_BT=(index_B[:, None] + np.arange(top)) % self._cells_H[-1],
            top_probability_BT=np.full((photos, top), share),
            point_index_B=index_B % self._cells_H[-1],
            point_probability_B=np.full(photos, share),
            information_bits_B=np.full(photos, np.float32(1.0)),
            group_probability_BG=np.full((photos, self._groups), np.float32(1 / self._groups)),
            scene_index_B=np.zeros(photos, np.int64),
            scene_probability_B=np.ones(photos, np.float32),
            radius_km_B=np.full(photos, 1000, np.float32),
            mass_within_B4=np.full((photos, 4), share),
            finite_B=np.ones(photos, bool),
        )


def load_null_engine(name: str, checkpoint: Checkpoint, **options: object) -> NullEngine:
    """Return the engine that looks at nothing, whatever is asked for, as `model.engines.load_engine` returns others."""
    del name, options
    return NullEngine(checkpoint)


@dataclass(frozen=True)
class _Run:
    """What a run took: seconds of its phases, steady rows a second and core-ms a photo by part, peak GB by part."""

    workers: int
    photos: int
    plan_s: float
    flow_s: float
    publish_s: float
    rows_per_s: float
    core_ms: dict[str, float]
    peak_gb: dict[str, float]

    def line(self) -> str:
        parts = "".join(f"{self.core_ms[part]:>9.2f}" for part in _PARTS)
        peaks = ", ".join(f"{self.peak_gb[name]:.2f}" for name in ("all", "driver", _IN_FLOW, "Ray", "shared"))
        return (
            f"{self.photos:>9,}{self.workers:>8}{self.rows_per_s:>8.0f}{sum(self.core_ms.values()):>8.2f}{parts}"
            f"{self.plan_s:>8.1f}{self.flow_s:>8.1f}{self.publish_s:>10.1f}  {peaks}"
        )


def _measure(folder: Path, workers: int, photos: int) -> _Run:
    """Run the dataflow in processes of its own, and watch them from here."""
    _make_archive(folder, photos)
    mark = uuid.uuid4().hex
    environment = os.environ | {_MARK: mark, "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)  # the cluster that is measured is one of its own
    command = [sys.executable, "-m", "jobs.benchmark.scale", str(folder), str(workers)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        with _watched(f"{_MARK}={mark}", driver.pid) as watch:
            answer = driver.stdout.read()
    if driver.returncode:
        raise ValueError(f"the run with {workers} workers failed with exit code {driver.returncode}: see above")
    output = str(folder / _OUTPUT)
    start, end = (f"quantile_cont(epoch(processed_at), {share})" for share in _STEADY)
    found = (
        Catalog(output)
        .sql(f"SELECT count(*) FILTER (status NOT IN ('failed', 'skipped')), {start}, {end} FROM photos")
        .fetchall()
    )
    ((rows, *steady_s),) = found
    if rows != photos:
        raise ValueError(f"{rows} of {photos} photos were looked at: the run's speed would mean nothing")
    share = _STEADY[1] - _STEADY[0]
    begun_s, planned_s, started_s, staged_s, published_s = json.loads(answer.splitlines()[-1])
    peak_bytes = watch.peak_bytes() | {_IN_FLOW: watch.peak_bytes(started_s, staged_s)["driver"]}
    return _Run(
        workers=workers,
        photos=photos,
        plan_s=planned_s - begun_s,
        flow_s=staged_s - started_s,
        publish_s=published_s - staged_s,
        rows_per_s=share * photos / (steady_s[1] - steady_s[0]),
        core_ms={part: 1e3 * watch.cpu_s(part, steady_s[0], steady_s[1]) / (share * photos) for part in _PARTS},
        peak_gb={name: value / 1e9 for name, value in peak_bytes.items()},
    )


def _make_archive(folder: Path, photos: int) -> None:
    """Write a thousand tiny JPEGs and a manifest that names them again and again, through links to their folder."""
    real = folder / "files"
    real.mkdir()
    (folder / _LINKS).mkdir()
    random = np.random.default_rng(0)
    for index in range(min(photos, _FILES)):
        Image.fromarray(random.integers(0, 256, (_SIZE_PX, _SIZE_PX, 3), np.uint8)).save(real / f"IMG_{index:06d}.jpg")
    for link in range(-(-photos // _FILES)):
        (folder / _LINKS / f"{link:06d}").symlink_to(real, target_is_directory=True)
    uris = [f"{folder}/{_LINKS}/{index // _FILES:06d}/IMG_{index % _FILES:06d}.jpg" for index in range(photos)]
    pq.write_table(pa.table({schema.URI: uris}), folder / _MANIFEST)


def _process(folder: Path, workers: int) -> None:
    """Plan, process and publish the manifest in `folder` as the job does, and print the times between its phases."""
    checkpoint = Checkpoint.load(model_folder("bundled"))
    stage = Stage(str(folder / _OUTPUT), "r1")
    at_s = [time.time()]
    plan = make_plan([str(folder / _MANIFEST)], stage, [], checkpoint.model_id, retry_failed=False, limit=None)
    at_s.append(time.time())
    size = start_ray(least_cpus=2 * workers + 1)
    at_s.append(time.time())
    flow = Flow(
        plan.files,
        stage,
        ReaderSettings(DecodeTarget.of(checkpoint.config.preprocessing)),
        LocatorSettings("bundled", checkpoint.model_id, stage.run_id),
        # Links' contents are alike, and stand for other photos.
        ClusterSettings(locators=workers, locator_cpus=0.5, readers=workers, known_contents=0),
        size,
        load=load_null_engine,
    )
    run_dataflow(flow)
    at_s.append(time.time())
    published = publish_on_ray(stage)
    at_s.append(time.time())
    put_record(
        stage,
        RunRecord(
            run_id=stage.run_id,
            finished_at=dt.datetime.now(dt.UTC).isoformat(),
            model_id=checkpoint.model_id,
            photos=PhotoCounts(published.located, published.undecided, published.failed),
            files=published.files,
        ),
    )
    print(json.dumps(at_s))


class _Watch:
    """Memory and processor time of a run's processes, by part, as they were seen; peaks are of moments."""

    def __init__(self) -> None:
        self._used_s: dict[int, tuple[str, float]] = {}
        self._at: list[tuple[float, dict[str, float], dict[str, int]]] = []

    def look(self, variable: str, driver: int) -> None:
        """Take down every process that has NAME=VALUE in its environment."""
        bytes_of = dict.fromkeys((*_PARTS, "shared", "all"), 0)
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if variable.encode() not in (folder / "environ").read_bytes().split(b"\0"):
                    continue
                pid, title = int(folder.name), (folder / "cmdline").read_bytes()
                part = "driver" if pid == driver else _part(title)
                times = (folder / "stat").read_text().rpartition(")")[2].split()
                self._used_s[pid] = part, (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
                lines = (line.split() for line in (folder / "smaps_rollup").read_text().splitlines()[1:])
                memory = {line[0]: 1024 * int(line[1]) for line in lines}
                bytes_of["all"] += memory["Pss:"]
                bytes_of["shared"] += memory["Pss_Shmem:"]
                bytes_of[part] += memory["Pss:"] - memory["Pss_Shmem:"]
        used_s = dict.fromkeys(_PARTS, 0.0)
        for part, each_s in self._used_s.values():
            used_s[part] += each_s
        self._at.append((time.time(), used_s, bytes_of))

    def peak_bytes(self, start_s: float = 0.0, end_s: float = float("inf")) -> dict[str, int]:
        """Return the most memory that each part, all, and what they share took between two times of the clock."""
        seen = [bytes_of for at_s, _, bytes_of in self._at if start_s <= at_s <= end_s]
        return {name: max(bytes_of[name] for bytes_of in seen) for name in seen[0]}

    def cpu_s(self, part: str, start_s: float, end_s: float) -> float:
        """Return the processor time of a part between two times of the clock."""
        at_s, used_s = [at for at, _, _ in self._at], [used[part] for _, used, _ in self._at]
        return float(np.interp(end_s, at_s, used_s) - np.interp(start_s, at_s, used_s))


def _part(title: bytes) -> str:
    if b"pipeline.read.isolation" in title:
        return "decoders"
    if b"_LocatorActor" in title:
        return "engines"
    if any(word in title for word in (b"Agent", b"_StatsActor", b"_AutoscalingCoordinator", b"ActorLocationTracker")):
        return "Ray"
    return "workers" if title.startswith(b"ray::") or b"default_worker.py" in title else "Ray"


@contextlib.contextmanager
def _watched(variable: str, driver: int) -> Iterator[_Watch]:
    watch, finished = _Watch(), threading.Event()

    def look() -> None:
        while not finished.wait(_INTERVAL_S):
            watch.look(variable, driver)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield watch
    finally:
        finished.set()
        watcher.join()


if __name__ == "__main__":
    _process(Path(sys.argv[1]), int(sys.argv[2]))
