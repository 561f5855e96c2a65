"""What an archive will cost: a random sample of it is read and located, and the cluster follows from its core time.

`python -m jobs.benchmark size-cluster` is the command.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
import tyro

from jobs.benchmark.figure import Figure
from jobs.cluster_sizing import Archive, Costs, Node, cpu_node, gpu_node, size
from model.checkpoint import Checkpoint
from model.engines import Engine, EngineName, NumpyAnswers
from pipeline import schema, storage
from pipeline.decode.photo import DecodeLimits, DecodeTarget
from pipeline.locate.locator import EngineLoader, Locator, LocatorSettings, model_folder
from pipeline.published import geoparquet
from pipeline.read.fetch import Fetcher, FetchSettings
from pipeline.read.isolation import Answer
from pipeline.read.reader import IsolatedReader, NoteRead, ReaderSettings
from pipeline.run.staging import parquet_bytes
from pipeline.schema import PhotoError
from pipeline.sources.manifest import read_manifest

_ROWS_PER_READ, _ROWS_PER_BLOCK = 16, 64
"""Photos whose bytes are held at once; photos that are located together, as in the pipeline."""
_WARM_UP_ROWS = 4
_LEAST_TO_TELL = 100_000
_GPU_S = 5.0


@dataclass(frozen=True)
class SizeClusterBenchmark:
    """Core time of a photo of your archive, by part; from it the balanced cluster, hours and core-hours for all of it.

    Lists the whole archive, but reads only the sample.
    """

    photos: tyro.conf.UseAppendAction[tuple[str, ...]]
    """What jobs.geotag_archive takes as --photos; several times for several sources."""
    model: str = "bundled"
    """Checkpoint folder, local or remote."""
    engine: EngineName = "auto"
    """What runs the model."""
    batch_size: int = 32
    """Photos in one call of the engine."""
    sample: int = 256
    """Photos that are read, drawn at random by name and --seed: the same ones each time."""
    seed: int = 0
    """Another number draws another sample."""
    include: tuple[str, ...] = ()
    """Take only photos whose name matches one of these, as jobs.geotag_archive does."""
    exclude: tuple[str, ...] = ()
    """Leave out photos that match one of these."""
    archive_photos: int | None = None
    """Reckon for an archive of so many photos like these, instead of for those that are listed."""
    nodes: tuple[int, ...] = (1, 10, 100)
    """Sizes of cluster to reckon for."""
    cores: int | None = None
    """Cores of each node, each as fast as one here; as many as there are here if not given."""
    gpus: int = 1
    """GPUs of each node, where the rate of a GPU is known."""
    gpu_photos_per_s: float | None = None
    """What one GPU locates; measured where there is one, and unknown otherwise."""
    reached: float = 1.0
    """Share of what the cores allow that the job reaches; `jobs.benchmark pipeline` prints it as dataflow ÷ ceiling."""
    control_core_ms: float = 0.0
    """Core time of a photo that Ray and publishing take; `jobs.benchmark scale` tells it."""
    fetch: FetchSettings = field(default_factory=FetchSettings)
    limits: DecodeLimits = field(default_factory=DecodeLimits)

    def measure(self) -> list[Figure]:
        """Print costs, needs, clusters and what to type; return no figures: nothing is compared."""
        cores = self._checked_cores()
        listed = list_archive(
            (storage.absolute(source) for source in self.photos),
            *(self.sample, self.seed, self.include, self.exclude, self.fetch.allow_http),
        )
        reader = ReaderSettings(DecodeTarget(1, 1), self.limits, fetch=self.fetch)
        costs = measure_costs(listed.sample, reader, self.model, self.engine, self.batch_size)
        rate = self.gpu_photos_per_s or costs.gpu_photos_per_s
        nodes: list[tuple[str, Node]] = []
        if not costs.is_on_gpu:
            nodes.append((f"Nodes of {cores} cores", cpu_node(cores, costs)))
        if rate is not None:
            whence = "given" if self.gpu_photos_per_s else "measured here"
            title = f"Nodes of {cores} cores and {self.gpus} GPUs, each {rate:,.1f} photos/s ({whence})"
            nodes.append((title, gpu_node(cores, self.gpus, rate, costs)))
        archive = Archive(self.archive_photos or listed.photos, listed.mean_bytes(costs))
        print(listed.line())
        for line in costs.lines():
            print(line)
        print()
        if self.archive_photos:
            print(f"For {self.archive_photos:,} photos like these, by extrapolation:")
        for line in archive.needs(costs):
            print(line)
        control = f"{self.control_core_ms:g} core-ms" if self.control_core_ms else "nothing"
        print(
            f"\nReckoned: {self.reached:.0%} of what the cores allow is reached (--reached); planning, Ray and"
            f" publishing take {control} a photo (--control-core-ms)"
        )
        for title, node in nodes:
            print(f"\n{title}: {node.words()}")
            print(f"{'nodes':>6}{'photos/s':>11}{'hours':>12}  [95 %, by the sample]")
            for count in self.nodes:
                print(archive.hours(count, node, costs, self.reached, self.control_core_ms))
            if flags := node.flags(self.nodes[-1]):
                print(f"for {self.nodes[-1]} nodes: {flags}")
        if rate is None:
            print("\nGPU nodes: unknown, as there is no GPU here: give --gpu-photos-per-s what one locates")
        return []

    def _checked_cores(self) -> int:
        if not self.photos:
            raise ValueError("give --photos what jobs.geotag_archive is to read")
        cores = (os.cpu_count() or 1) if self.cores is None else self.cores
        for name, value in (
            *(("sample", self.sample), ("batch-size", self.batch_size), ("cores", cores), ("gpus", self.gpus)),
            *(("nodes", min(self.nodes, default=0)), ("archive-photos", self.archive_photos)),
        ):
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value}: give 1 or more")
        if self.gpu_photos_per_s is not None and not self.gpu_photos_per_s > 0:
            raise ValueError(f"--gpu-photos-per-s {self.gpu_photos_per_s:g}: give more than 0")
        if not 0 < self.reached <= 1 or self.control_core_ms < 0:
            raise ValueError("give --reached a share above 0 and up to 1, and --control-core-ms 0 or more")
        return cores


@dataclass(frozen=True)
class Listed:
    """What the sources list, rows of a photo that is listed twice counted twice, and the sample of it.

    `sized_bytes` are those of the `sized` photos whose size is listed.
    """

    photos: int
    sized: int
    sized_bytes: int
    sample: pa.Table
    core_s: float

    def mean_bytes(self, costs: Costs) -> float:
        """Return the bytes of a photo: the listing's mean, or the sample's where the listing has no sizes."""
        if self.sized == self.photos:
            return self.sized_bytes / self.photos
        read_N = costs.size_bytes_N[np.isfinite(costs.size_bytes_N)]
        unsized_mean = float(read_N.mean()) if len(read_N) else 0.0
        return (self.sized_bytes + (self.photos - self.sized) * unsized_mean) / self.photos

    def line(self) -> str:
        """Say what is listed."""
        unsized = self.photos - self.sized
        sizes = f"{size(self.sized_bytes)}" + (
            f" and {unsized:,} without a size, reckoned by the sample" if unsized else ""
        )
        # Of few photos, it would be the time that a first look at the store takes.
        is_telling = self.photos >= _LEAST_TO_TELL
        took = f"; listing took {1e6 * self.core_s / self.photos:.1f} core-s a million" if is_telling else ""
        return f"{self.photos:,} photos listed, {sizes}{took}"


def list_archive(
    sources: Iterable[str],
    sample: int,
    seed: int = 0,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    allow_http: bool = False,
) -> Listed:
    """Count the photos of `sources` and draw a sample, rows of `schema.MANIFEST`: those with the smallest random keys.

    A photo's key is made of its name and `seed`: in whatever order they are listed, the same ones are drawn, each once.
    Raises ValueError where a source can't be read.
    """
    start_s = time.process_time()
    photos = sized = sized_bytes = 0
    drawn = schema.MANIFEST.empty_table()
    for source in sources:
        for batch in read_manifest(source, include, exclude, allow_http):
            sizes = batch.column(schema.SIZE_BYTES)
            photos, sized = photos + batch.num_rows, sized + len(sizes) - sizes.null_count
            sized_bytes += pc.sum(sizes).as_py() or 0
            known = pa.concat_tables([drawn, pa.Table.from_batches([batch])])
            _, first_N = np.unique(_keys(known.column(schema.PHOTO_ID), seed), return_index=True)
            drawn = known.take(pa.array(first_N[:sample]))
    return Listed(photos, sized, sized_bytes, drawn, time.process_time() - start_s)


def _keys(photo_ids: pa.ChunkedArray, seed: int) -> npt.NDArray[np.uint64]:
    """Return a random number for each photo, by its id and the seed (the finaliser of SplitMix64)."""
    halves_N2 = np.frombuffer(b"".join(photo_ids.to_pylist()), np.uint64).reshape(-1, 2)
    keys_N = halves_N2[:, 0] ^ np.random.default_rng(seed).integers(0, 2**64, dtype=np.uint64)
    keys_N = (keys_N ^ (keys_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys_N = (keys_N ^ (keys_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys_N ^ (keys_N >> np.uint64(31))


def measure_costs(
    sample: pa.Table,
    reading: ReaderSettings,
    model: str = "bundled",
    engine: EngineName = "auto",
    batch_size: int = 32,
    load: EngineLoader | None = None,
) -> Costs:
    """Read and locate the photos of `sample` as the pipeline does, and tell what each part of it takes.

    `reading.target` is the model's, whatever is given. `load` makes another engine than the named one. The first
    photos are gone through twice: what starts then is no part of a photo.
    """
    model_uri = model if model == "bundled" else storage.absolute(model)
    checkpoint = Checkpoint.load(model_folder(model_uri))
    reading = replace(reading, target=DecodeTarget.of(checkpoint.config.preprocessing))
    settings = LocatorSettings(model_uri, checkpoint.model_id, "sizing", engine, batch_size=batch_size)
    locator = Locator(settings) if load is None else Locator(settings, load)
    locator.engine = metered = _MeteredEngine(locator.engine)
    reader = _MeteredReader(reading)
    reader.warm_up(sample.slice(0, _WARM_UP_ROWS))
    located: list[pa.Table] = []
    engine_ms: list[float] = []
    assembly_ms: list[float] = []
    for start in range(0, sample.num_rows, _ROWS_PER_BLOCK):
        block = sample.slice(start, _ROWS_PER_BLOCK)
        read = pa.concat_tables(
            reader(block.slice(first, _ROWS_PER_READ)) for first in range(0, block.num_rows, _ROWS_PER_READ)
        )
        if not located:
            locator(read)
        metered.core_s, start_s = 0.0, time.process_time()
        rows = locator(read)
        rest_s = time.process_time() - start_s - metered.core_s
        has_pixels_N = pc.is_valid(read.column(schema.PIXELS_HWC)).to_numpy()
        engine_ms += (has_pixels_N * (1e3 * metered.core_s / max(1, has_pixels_N.sum()))).tolist()
        assembly_ms += [1e3 * rest_s / read.num_rows] * read.num_rows
        located.append(rows)
    reader.close()
    rows = pa.concat_tables(located)
    start_s = time.process_time()
    parquet_bytes(rows)
    staging_ms = 1e3 * (time.process_time() - start_s) / rows.num_rows
    is_failed_N = pc.is_valid(rows.column(schema.ERROR_CODE)).to_numpy()
    outcomes = pc.coalesce(rows.column(schema.ERROR_CODE), rows.column(schema.FORMAT)).to_pylist()
    return Costs(
        fetch_ms_N=np.array(reader.fetch_ms),
        decode_ms_N=np.array(reader.decode_ms),
        handling_ms_N=np.array(reader.handling_ms),
        engine_ms_N=np.array(engine_ms),
        assembly_ms_N=np.array(assembly_ms),
        staging_ms=staging_ms,
        outcome_N=outcomes,
        is_failed_N=is_failed_N,
        size_bytes_N=np.array([np.nan if found is None else found for found in reader.size_bytes]),
        staged_bytes=_bytes_a_row(rows, lambda part: len(parquet_bytes(part))),
        published_bytes=_bytes_a_row(rows, _published_size_bytes),
        engine_name=f"{locator.engine.name} {locator.engine.precision}",
        is_on_gpu=metered.is_on_gpu,
        gpu_photos_per_s=metered.photos_per_s(batch_size) if metered.is_on_gpu else None,
    )


class _MeteredEngine:
    """An engine that adds up the core time of its calls; on a GPU, that of the core that drives it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name, self.precision, self.shape_HWC = engine.name, engine.precision, engine.shape_HWC
        self.is_on_gpu = engine.name in ("torch", "tensorrt") and torch.cuda.is_available()
        self.core_s = 0.0

    def __call__(self, pixels_BHWC: npt.NDArray[np.uint8]) -> NumpyAnswers:
        start_s = time.process_time()
        answers = self._engine(pixels_BHWC)
        self.core_s += time.process_time() - start_s
        return answers

    def photos_per_s(self, batch_size: int) -> float:
        """Return what the engine answers in a second of the clock, one full batch after the other."""
        pixels_BHWC = np.random.default_rng(0).integers(0, 256, (batch_size, *self.shape_HWC), np.uint8)
        self._engine(pixels_BHWC)
        start_s, batches = time.perf_counter(), 0
        while time.perf_counter() - start_s < _GPU_S:
            self._engine(pixels_BHWC)
            batches += 1
        return batch_size * batches / (time.perf_counter() - start_s)


class _MeteredReader(IsolatedReader):
    """Reads as the pipeline does, but fetches everything first, so that the core time of each part can be told.

    And each photo goes to the decoder alone, which costs small ones a switch of processes more, some 0.05 ms.
    """

    def __init__(self, settings: ReaderSettings) -> None:
        super().__init__(settings)
        self._source = Fetcher(settings.fetch, settings.limits.max_bytes)
        self._at_once = ThreadPoolExecutor(_ROWS_PER_READ, thread_name_prefix="fetch")
        self._came: dict[bytes, storage.Blob | PhotoError] = {}
        self._decode_s: list[float] = []
        self.fetch_ms: list[float] = []
        self.decode_ms: list[float] = []
        self.handling_ms: list[float] = []
        self.size_bytes: list[int | None] = []

    def __call__(self, plan: pa.Table, note_read: NoteRead = lambda _: None) -> pa.Table:
        start_s = time.process_time()
        listed = plan.to_pylist()
        ids = [row[schema.PHOTO_ID] for row in listed]
        self._came = dict(zip(ids, self._at_once.map(self._fetched, listed), strict=True))
        fetch_s = time.process_time() - start_s
        return self._read_fetched(plan, fetch_s)

    def warm_up(self, plan: pa.Table) -> None:
        """Read photos so that connections, processes and codecs are there, and take nothing down."""
        self._came = {row[schema.PHOTO_ID]: self._fetched(row) for row in plan.to_pylist()}
        self._read_fetched(plan, 0.0)
        for taken in (self.fetch_ms, self.decode_ms, self.handling_ms, self.size_bytes):
            taken.clear()

    def _read_fetched(self, plan: pa.Table, fetch_s: float) -> pa.Table:
        self._decode_s, start_s = [], time.process_time()
        read = super().__call__(plan)
        came_N = [
            isinstance(self._came[photo_id], storage.Blob) for photo_id in plan.column(schema.PHOTO_ID).to_pylist()
        ]
        taken_s, decode_s = time.process_time() - start_s, iter(self._decode_s)
        photos = plan.num_rows
        self.fetch_ms += [1e3 * fetch_s / photos] * photos
        is_decoded_N = pc.is_valid(read.column(schema.DECODE_SECONDS)).to_pylist()  # what is no photo is not
        self.decode_ms += [1e3 * next(decode_s) if is_decoded else 0.0 for is_decoded in is_decoded_N]
        self.handling_ms += [1e3 * taken_s / photos] * photos
        self.size_bytes += [
            size if came else None
            for size, came in zip(read.column(schema.SIZE_BYTES).to_pylist(), came_N, strict=True)
        ]
        return read

    def _fetched(self, row: dict[str, Any]) -> storage.Blob | PhotoError:
        try:
            return self._source(row)
        except PhotoError as error:
            return error

    def _fetch_one(self, listed: dict[str, Any]) -> storage.Blob:
        came = self._came[listed[schema.PHOTO_ID]]
        if isinstance(came, PhotoError):
            raise came
        return came

    def _decode(self, photos: list[bytes]) -> list[Answer]:
        answers: list[Answer] = []
        for data in photos:
            start_s = _children_s(self.decoder.pid)
            answers += self.decoder([data])
            self._decode_s.append(_children_s(self.decoder.pid) - start_s)
        return answers


def _children_s(child: int | None) -> float:
    """Return the processor time of all children that have ended and of one that runs (Linux' clock of a process)."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    running_s = 0.0 if child is None else time.clock_gettime((~child << 3) | 2)
    return ended.ru_utime + ended.ru_stime + running_s


def _published_size_bytes(rows: pa.Table) -> int:
    with tempfile.TemporaryDirectory(prefix="graticule-bench-") as folder:
        path = Path(folder) / "part.parquet"
        geoparquet.write(path, [rows.sort_by([(schema.CELL_ID, "ascending")])], geoparquet.bbox_of(rows))
        return int(path.stat().st_size)


def _bytes_a_row(rows: pa.Table, size_of: Callable[[pa.Table], int]) -> float:
    """Return what a row more adds to a file: what half of them add to the other half, so that headers don't count."""
    half = rows.num_rows // 2
    return float(size_of(rows) - size_of(rows.slice(0, half))) / float(rows.num_rows - half)
