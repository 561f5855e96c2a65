"""Whole runs of Graticule beside their ceilings and beside the ways people do it today: same weights, photos, cores.

`python -m jobs.benchmark ways` is the command; `jobs.benchmark.other_ways` holds the other ways.

How each is measured, all alike, so that no start-up counts for or against anybody and a busy machine tells no lies:

- A way is a command in processes of its own, run over a few photos and over several times as many. What counts is
  the difference: imports, Ray's start and loading the model happen once in both. What is compiled once in a machine's
  life is compiled before, by a run that does not count.
- Core time is what counts, not the clock: the processor time of all of the way's processes (Ray's own too, sampled from
  /proc, where its environment marks each) and the time that the cores stood idle meanwhile. What other people's
  processes took is left out and printed. Photos/s are those of all cores at that price: on a quiet machine the clock
  shows the same. On a busy one others fill a way's idle gaps, which flatters whoever has them. Ours is printed by what
  the processes do, beside what decoding and engine alone take: the rest is the price of the pipeline.
- The ceilings are the parts in memory and nothing else: `decode_photo` on bytes, in a process a core, all at once; the
  engine on pixels, with all cores; their core times together are what a photo must cost. Medians, before and after us.
- The other ways' answers are compared with ours: a way that finds other cells does other work.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps

from jobs import train as train_job
from jobs.benchmark.figure import Figure
from jobs.demo_photos import write_demo_archive
from model.checkpoint import Checkpoint
from model.engines import load_engine
from model.geodecoder import GeoDecoder
from pipeline import schema, storage
from pipeline.decode.photo import DecodeTarget, decode_photo
from pipeline.locate.locator import model_folder
from pipeline.published import records
from pipeline.published.catalog import Catalog
from pipeline.schema import PhotoError
from training import hierarchy as partition

Way = Literal["ray", "daft", "dataloader"]
Size = Literal["12mp", "640x480", "as-is"]
_NAMES: dict[Way, str] = {
    "ray": "Ray Data, as documented",
    "daft": "Daft, as documented",
    "dataloader": "torch DataLoader",
}
_NEEDS: dict[Way, str] = {"ray": "ray", "daft": "daft", "dataloader": "torch"}
_SIZES_PX: dict[Size, tuple[int, int]] = {"12mp": (4000, 3000), "640x480": (640, 480)}
_AIMS: dict[str, dict[Size, float]] = {
    "ceiling": {"12mp": 0.9, "640x480": 0.8},
    "ray": {"12mp": 5.0, "640x480": 2.5},
    "daft": {"12mp": 5.0, "640x480": 2.5},
    "dataloader": {"12mp": 2.0, "640x480": 2.0},
}
_MOST_OVERHEAD_MS = 1.0
_SENSOR_NOISE = 6.0
"""Grey levels that bring enlarged photos to a camera's 3 to 5 MB at 12 megapixels."""
_BATCH = 32
_LEAST_BATCHES = 5
_REPEATS = 3
_SAMPLE_EVERY_S = 0.2
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_MARK = "GRATICULE_BENCHMARK_RUN"
_DOING = {
    "jobs.geotag_archive": "driver",
    "pipeline.read.isolation": "decoder processes",
    "_LocatorActor": "engine's process",
    "_RunActor": "the run's tally",
    "_read_rows": "readers: fetch, hash, hand over",
    "ray::Write": "staging",
    "ray::IDLE": "Ray's workers between tasks",
    "raylet/raylet": "raylet",
    "ray::": "Ray's other services",
    "ray/": "Ray's other services",
}
"""What is in the command line of each kind of process, the first that fits."""
_SAME_CELLS = 0.6
"""Share of photos for which another way must find our finest cell. Resampling and precision differ, and a model as weak
as the bundled one changes its mind for 20 % of photos when the crop moves by one pixel."""


@dataclass(frozen=True)
class WaysBenchmark:
    """Photos a second of the whole job beside its ceilings and beside Ray Data's, Daft's and torch's usual ways."""

    photos: str | None = None
    """Folder of photos to measure on; the demo's few if not given."""
    sizes: tuple[Size, ...] = ("12mp", "640x480")
    """Make JPEGs of these sizes from them (quality 90); as-is takes them as they are, JPEG and PNG."""
    distinct: int = 24
    """So many different photos are made; links to them make up the rest."""
    model: str = "bundled"
    """Checkpoint folder."""
    network: Literal["bundled", "paper_swin_b", "small"] = "bundled"
    """Other than bundled: measure this network with random weights instead of --model."""
    seconds_each: float = 30.0
    """How long the longer run of each way should take on a quiet machine, if it just reached its aim."""
    photos_each: int | None = None
    """Photos of our longer run, in whole batches of 32, five at least, instead of what --seconds-each makes of it;
    others get fewer, by their aims."""
    without: tuple[Way, ...] = ()
    """Leave out these other ways."""

    def measure(self) -> list[Figure]:
        """Print a line for each way; return the figures. ValueError: a package is missing, a way does other work."""
        ways = [way for way in _NAMES if way not in self.without]
        for way in ways:
            _require(way)
        for way in self.without:
            print(f"left out: {_NAMES[way]} (--without {way})")
        with tempfile.TemporaryDirectory(prefix="graticule-bench-") as folder:
            checkpoint = self._checkpoint(Path(folder))
            if (framing := checkpoint.config.preprocessing.framing) != "centre":
                raise ValueError(
                    f"the other ways look at photos' centres, and {self.model} at their {framing}: give a "
                    "--model that was trained with --framing centre, or leave it out"
                )
            print(f"{checkpoint.model_id} on {os.cpu_count()} cores")
            figures: list[Figure] = []
            for size in self.sizes:
                made = _photos_of(size, self.photos, self.distinct, Path(folder) / size)
                megabytes = statistics.fmean(os.path.getsize(path) for path in made) / 1e6
                print(f"\n{size}: {len(made)} different photos of {megabytes:.2f} MB", flush=True)
                figures += _Comparison(self, size, made, checkpoint, Path(folder) / f"{size}-runs").figures(ways)
        return figures

    def _checkpoint(self, folder: Path) -> Checkpoint:
        if self.network == "bundled":
            return Checkpoint.load(
                model_folder(self.model if self.model == "bundled" else storage.absolute(self.model))
            )
        random = np.random.default_rng(0)
        torch.manual_seed(0)  # the same network each time: its conversion, kept in the engines' cache, is found again
        lat_deg_N = np.degrees(np.arcsin(random.uniform(-1, 1, 200_000)))
        lon_deg_N = random.uniform(-180, 180, len(lat_deg_N))
        tau_max = (25_000, 10_000, 5_000, 2_000, 1_000, 750, 500)  # the paper's seven levels, of fewer photos
        config = partition.PartitionConfig(tau_min=2, tau_max=tuple(photos // 20 for photos in tau_max))
        hierarchy = partition.build_hierarchy(lat_deg_N, lon_deg_N, config)
        model = GeoDecoder(train_job.NETWORKS[self.network](), hierarchy.class_counts).eval()
        return Checkpoint.save(folder / self.network, model, hierarchy, name=self.network.replace("_", "-"))


@dataclass(frozen=True)
class Taken:
    """What some photos took: the clock, a way's own core time, the time cores stood idle, and others' core time.

    `own_s_of` is the own core time by what the processes did.
    """

    photos: int
    wall_s: float
    own_s: float
    idle_s: float
    other_s: float
    own_s_of: Mapping[str, float] = field(default_factory=dict)

    def __sub__(self, fewer: Taken) -> Taken:
        own_s_of = {name: own_s - fewer.own_s_of.get(name, 0.0) for name, own_s in self.own_s_of.items()}
        return Taken(
            self.photos - fewer.photos,
            self.wall_s - fewer.wall_s,
            self.own_s - fewer.own_s,
            self.idle_s - fewer.idle_s,
            self.other_s - fewer.other_s,
            own_s_of,
        )

    @property
    def per_s(self) -> float:
        """Photos a second if all cores had been there for it."""
        return (os.cpu_count() or 1) * self.photos / (self.own_s + self.idle_s)

    @property
    def own_ms(self) -> float:
        """Own core time a photo."""
        return 1000 * self.own_s / self.photos

    @property
    def others_share(self) -> float:
        """Share of the cores' time that other people's processes took."""
        return self.other_s / (self.own_s + self.idle_s + self.other_s)


class _Comparison:
    """All ways over one set of photos."""

    def __init__(
        self, benchmark: WaysBenchmark, size: Size, made: list[str], checkpoint: Checkpoint, folder: Path
    ) -> None:
        self._benchmark, self._size, self._made, self._folder = benchmark, size, made, folder
        self._checkpoint = checkpoint
        self._model = str(checkpoint.folder.resolve())
        self._subject = f"{benchmark.network}, {size}"
        folder.mkdir()

    def figures(self, ways: list[Way]) -> list[Figure]:
        """Measure and print each way; return the ratios."""
        parts = [self._parts()]
        decode_ms, engine_ms = parts[0]
        photos = self._benchmark.photos_each or self._benchmark.seconds_each * 1000 * (os.cpu_count() or 1) / (
            decode_ms + engine_ms
        )
        counts = _counts(photos)
        self._graticule(_BATCH // 2)  # the engine is compiled once in a machine's life: not in the shorter run alone
        less, more = (self._graticule(count) for count in counts)
        ours = more.taken - less.taken
        parts.append(self._parts())
        decode_ms, engine_ms = np.median(parts, axis=0).tolist()
        needed_ms = decode_ms + engine_ms
        ceiling_per_s = 1000 * (os.cpu_count() or 1) / needed_ms
        print(f"{'':<34}{'photos/s':>9}{'core ms a photo':>17}{'others take':>13}")
        for name, core_ms in (("decode only", decode_ms), ("engine only", engine_ms), ("ceiling of both", needed_ms)):
            print(f"{name:<34}{1000 * (os.cpu_count() or 1) / core_ms:>9.1f}{core_ms:>17.2f}")
        _print_way("Graticule", counts, ours)
        for name, own_s in sorted(ours.own_s_of.items(), key=lambda item: -item[1]):
            print(f"  {name:<32}{'':>9}{1000 * own_s / ours.photos:>17.2f}")
        figures = [
            self._figure("Graticule ÷ ceiling", ours.per_s, ceiling_per_s, "ceiling"),
            Figure(self._subject, "core ms beside decode and engine", ours.own_ms, needed_ms,
                   ours.own_ms - needed_ms, "core ms, less", most=_MOST_OVERHEAD_MS),
            Figure(self._subject, "whole command, its start too ÷ ceiling", more.taken.per_s, ceiling_per_s,
                   more.taken.per_s / ceiling_per_s),
        ]  # fmt: skip
        for way in ways:
            counts = _counts(photos / _AIMS[way].get(self._size, 2.0))
            runs = [self._other(way, count) for count in counts]
            theirs = runs[1].taken - runs[0].taken
            same = np.mean([cell == more.cells[_target(path)] for path, cell in runs[1].cells.items()])
            _print_way(_NAMES[way], counts, theirs, f"  same finest cell {same:.0%}")
            if self._size != "as-is" and same < _SAME_CELLS:
                raise ValueError(f"{_NAMES[way]} finds our cell for {same:.0%} of the photos: it does other work")
            figures.append(self._figure(f"Graticule ÷ {_NAMES[way]}", ours.per_s, theirs.per_s, way))
        return figures

    def _figure(self, name: str, value: float, comparator: float, aim: str) -> Figure:
        return Figure(self._subject, name, value, comparator, value / comparator, least=_AIMS[aim].get(self._size))

    def _links(self, name: str, count: int) -> list[str]:
        folder = self._folder / name
        folder.mkdir()
        links = [folder / f"{index:06d}.jpg" for index in range(count)]
        for index, link in enumerate(links):
            link.symlink_to(self._made[index % len(self._made)])
        return [str(link) for link in links]

    def _graticule(self, count: int) -> _Run:
        photos, output = self._folder / f"photos-{count}", self._folder / f"output-{count}"
        self._links(photos.name, count)
        # Copies here stand for other photos: none is recognised.
        command = ["jobs.geotag_archive", "--photos", str(photos), "--output", str(output), "--model", self._model]
        taken = _watched([*command, "--cluster.known-contents", "0"], count, self._folder)
        (record,) = records.run_records(str(output))
        if record.counts.located + record.counts.undecided != count:
            raise ValueError(f"only {record.counts.located} of {count} photos were located: look at {self._made[0]}")
        rows = Catalog(str(output)).rows(f"SELECT uri, levels[-1].{schema.CELL_ID} AS cell FROM photos")
        cells = {_target(uri): cell for uri, cell in zip(*(column.to_pylist() for column in rows.columns), strict=True)}
        return _Run(taken, cells)

    def _other(self, way: Way, count: int) -> _Run:
        order, answers = self._folder / f"{way}-{count}.json", self._folder / f"{way}-{count}-answers.json"
        paths = self._links(f"{way}-{count}", count)
        order.write_text(json.dumps({"model": self._model, "paths": paths}))
        taken = _watched(["jobs.benchmark.other_ways", way, str(order), str(answers)], count, self._folder)
        cell_id_K = self._checkpoint.hierarchy.levels[-1].cell_id_K
        found = {path: int(cell_id_K[index]) for path, index, _ in json.loads(answers.read_text())["answers"]}
        if found.keys() != set(paths):
            raise ValueError(f"{_NAMES[way]} answered {len(found)} of {count} photos: its speed would mean nothing")
        return _Run(taken, found)

    def _parts(self) -> tuple[float, float]:
        """Return core ms a photo of the decoding alone and of the engine alone."""
        cores = os.cpu_count() or 1
        target = DecodeTarget.of(self._checkpoint.config.preprocessing)
        with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as processes:
            decoded = list(processes.map(_decode, [self._made] * cores, [target] * cores))
        engine = load_engine("auto", self._checkpoint, cache_dir=storage.cache_folder() / "engines")
        pixels_BHWC = np.stack(
            [decode_photo(Path(path).read_bytes(), target).pixels_HWC for path in self._made[:_BATCH]]
        )
        pixels_BHWC = np.resize(pixels_BHWC, (_BATCH, *pixels_BHWC.shape[1:]))
        engine(pixels_BHWC)
        times_s = []
        for _ in range(_REPEATS):
            start_s = time.process_time()
            engine(pixels_BHWC)
            times_s.append(time.process_time() - start_s)
        return 1000 * statistics.median(decoded), 1000 * statistics.median(times_s) / _BATCH


@dataclass(frozen=True)
class _Run:
    """What a run took and the finest cell it found for each photo."""

    taken: Taken
    cells: dict[str, int] = field(default_factory=dict)


def _counts(photos: float) -> tuple[int, int]:
    """Return the photos of the shorter and of the longer run, in whole batches.

    A start takes some core seconds more or less: the difference should hold as many photos as it can. Of two batches
    alone it says nothing: a network that takes 0.4 core seconds a photo gets four between its two runs.
    """
    batches = max(_LEAST_BATCHES, round(photos / _BATCH))
    return _BATCH * max(1, batches // 8), _BATCH * batches


def _target(link: str) -> str:
    return os.path.realpath(link)


def _print_way(name: str, counts: tuple[int, int], taken: Taken, more: str = "") -> None:
    row = f"{name:<34}{taken.per_s:>9.1f}{taken.own_ms:>17.2f}{taken.others_share:>12.0%}"
    print(f"{row}  {counts[1]} − {counts[0]} photos{more}", flush=True)


def _decode(paths: list[str], target: DecodeTarget) -> float:
    """Return the median core seconds of a photo, as every core decodes the same."""
    photos = [Path(path).read_bytes() for path in paths]
    decode_photo(photos[0], target)
    times_s = []
    for _ in range(_REPEATS):
        start_s = time.process_time()
        for photo in photos:
            decode_photo(photo, target)
        times_s.append((time.process_time() - start_s) / len(photos))
    return statistics.median(times_s)


def _require(way: Way) -> None:
    import importlib.util

    if importlib.util.find_spec(_NEEDS[way]) is None:
        raise ValueError(f'{_NAMES[way]} needs {_NEEDS[way]}: pip install "graticule[bench]", or give --without {way}')


def _photos_of(size: Size, photos: str | None, count: int, folder: Path) -> list[str]:
    """Return paths of `count` photos of that size, made from the JPEGs and PNGs of a folder, or those as they are."""
    folder.mkdir()
    if photos is None:
        write_demo_archive(folder / "archive")
    source = storage.absolute(photos or str(folder / "archive"))
    made: list[str] = []
    for path in _readable(source):
        if len(made) == count:
            break
        if size == "as-is":
            made.append(path)
            continue
        with Image.open(path) as opened:
            picture = ImageOps.fit(
                ImageOps.exif_transpose(opened).convert("RGB"), _SIZES_PX[size], Image.Resampling.LANCZOS
            )
        if size == "12mp":
            noise_HW1 = np.asarray(Image.effect_noise(picture.size, _SENSOR_NOISE), np.int16)[..., None] - 128
            picture = Image.fromarray(np.clip(np.asarray(picture, np.int16) + noise_HW1, 0, 255).astype(np.uint8))
        made.append(str(folder / f"{len(made)}.jpg"))
        picture.save(made[-1], quality=90)
    if not made:
        raise ValueError(f"{source} has no JPEG or PNG that can be read whole: give another --photos")
    return made


def _readable(source: str) -> Iterator[str]:
    target = DecodeTarget(32, 32)
    for entry in storage.list_files(source):
        try:
            if decode_photo(storage.read_bytes(entry.uri), target).format in ("jpeg", "png"):
                yield entry.uri
        except PhotoError:
            continue


def _watched(module_and_arguments: list[str], photos: int, folder: Path) -> Taken:
    """Run one of our modules to its end, in processes of its own, and return what it took."""
    mark = uuid.uuid4().hex
    quiet = {"DAFT_ANALYTICS_ENABLED": "0", "DAFT_PROGRESS_BAR": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    environment = os.environ | quiet | {_MARK: mark, "PYTHONWARNINGS": "ignore"}
    log = folder / f"{mark}.log"
    with log.open("wb") as output, _ProcessTimes(mark) as times:
        command = [sys.executable, "-m", *module_and_arguments]
        code = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise ValueError(
            f"{' '.join(module_and_arguments)} ended with {code}:\n{log.read_text(errors='replace')[-3000:]}"
        )
    return replace(times.taken, photos=photos)


class _ProcessTimes:
    """The core time of all processes whose environment has a mark, and of the machine, while it is entered."""

    def __init__(self, mark: str) -> None:
        self._mark = f"{_MARK}={mark}".encode()
        self._own_s: dict[tuple[str, str], float] = {}
        self._own_s_of: dict[str, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.taken = Taken(0, 0.0, 0.0, 0.0, 0.0)

    def __enter__(self) -> _ProcessTimes:
        self._start_s, self._machine_s = time.perf_counter(), _machine_s()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        busy_s, idle_s = (now - then for now, then in zip(_machine_s(), self._machine_s, strict=True))
        own_s = sum(self._own_s.values())
        wall_s = time.perf_counter() - self._start_s
        self.taken = Taken(0, wall_s, own_s, idle_s, max(0.0, busy_s - own_s), self._own_s_of)

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_EVERY_S):
            for name in os.listdir("/proc"):
                if name.isdigit():
                    self._look_at(name)

    def _look_at(self, process: str) -> None:
        try:
            fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
            key = (process, fields[19])  # with its start: numbers come back
            # Asked again while it is not: a process shows its parent's environment until it becomes what it is to be.
            if key not in self._own_s and self._mark not in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
                return
            command = Path(f"/proc/{process}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return
        own_s = (int(fields[11]) + int(fields[12])) * _TICK_S
        doing = _doing(command.replace(b"\0", b" ").decode(errors="replace"))
        self._own_s_of[doing] = self._own_s_of.get(doing, 0.0) + own_s - self._own_s.get(key, 0.0)
        self._own_s[key] = own_s


def _doing(command: str) -> str:
    """Return what a process of a run does, by its command line, which Ray's workers change from task to task."""
    return next((name for word, name in _DOING.items() if word in command), "other processes of the way")


def _machine_s() -> tuple[float, float]:
    """Return the core seconds that this machine was busy (or taken away by its host) and idle since it started."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, idle, iowait, irq, softirq, steal = (int(x) * _TICK_S for x in file.readline().split()[1:9])
    return user + nice + system + irq + softirq + steal, idle + iowait
