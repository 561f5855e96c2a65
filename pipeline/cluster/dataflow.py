"""The Ray Data graphs: plan → read → locate → stage, and stage → sort → publish. The one place here that knows Ray."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data import ActorPoolStrategy, Datasink, Datasource, TaskPoolStrategy
from ray.data.block import Block, BlockAccessor, BlockMetadata
from ray.data.datasource import ReadTask

from pipeline import older_rows, schema, storage
from pipeline.cluster import logs, source_gone, supervise
from pipeline.cluster.metrics import WorkerMetrics
from pipeline.cluster.ray_cluster import ClusterSettings, ClusterSize, Driver, locator_pool, start_ray
from pipeline.cluster.source_gone import Heartbeat, SourceGoneError
from pipeline.cluster.supervise import Watch
from pipeline.cluster.watchdog import FlowEndedError
from pipeline.published import geoparquet
from pipeline.published.records import PublishedFile
from pipeline.read.fetch import shares
from pipeline.read.isolation import keep_heap
from pipeline.read.reader import IsolatedReader, ReaderSettings
from pipeline.run.content_index import ContentIndex, claims, without_copies
from pipeline.run.publish import FileRange, Published, Selection, file_index, publish, put_file, sort_keys
from pipeline.run.staging import Stage
from pipeline.run.tally import Progress, Tally, outcomes

if TYPE_CHECKING:  # imported only where it runs: a process that reads photos is spared four seconds and 200 MB
    from pipeline.locate.locator import EngineLoader, LocatorSettings

log = logging.getLogger(__name__)

_ROWS_PER_BLOCK = 64
"""Photos that travel together: some 10 MB of pixels at 224 px."""
_ROWS_PER_SORTED_BLOCK = 50_000
"""Staged rows that one task sends to their files: some 60 MB."""
_FILE_INDEX = "file_index"
_NOISE = re.compile(rb"core_worker\.cc:\d+: Actor with class name: .* constructor arguments in the object store")
"""Ray warns, past every logger, of how its own library starts actors."""
_MOST_DEATHS = 20
"""So often a reading task is begun again whose process died: of a node taken away it is, of a kernel that is short of
memory time and again it must not be for ever."""
_CPUS_A_WRITER = 8
"""Without a bound, Ray sets a third of the cluster's processors aside for writers, and readers do without them."""
_BATCHES: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}


class _RunActor(ContentIndex, Tally):
    """What all processes of a run share: one process more is enough."""

    def __init__(self, capacity: int, known: Sequence[bytes], remembered: int) -> None:
        ContentIndex.__init__(self, capacity, known)
        Tally.__init__(self, remembered)


@dataclass(frozen=True)
class _Shared:
    """What each worker process of a run is given."""

    driver: Driver
    index: Any
    logs: logs.WorkerLogs
    metrics: WorkerMetrics
    listed_below: tuple[str, ...] = ()


def run_dataflow(
    plan_files: Sequence[str],
    stage: Stage,
    reader: ReaderSettings,
    locator: LocatorSettings,
    cluster: ClusterSettings,
    size: ClusterSize,
    answered: Sequence[bytes] = (),
    stop_at_s: float | None = None,
    load: EngineLoader | None = None,
    driver: Driver | None = None,
    watch: Watch | None = None,
    lost: threading.Event | None = None,
    listed_below: tuple[str, ...] = (),
    failed_before: int = 0,
) -> int:
    """Process every photo of the plan that isn't staged yet; returns once all rows are staged.

    From `stop_at_s` on, by the nodes' own clocks since 1970, no more photos are begun: those that are left have no row.
    Nor are they after SIGTERM, which raises KeyboardInterrupt once those that were begun are staged.

    `answered` are contents that have their answer elsewhere: photos with these bytes wait for it, too. Returns how many
    photos were inferred without looking for their like, as there were more contents than are remembered. `load` makes
    the engines, if it is not the settings' one that is wanted. ValueError where the cluster is too small for `cluster`.
    Every process has `driver` in common with this one; by default, its code. NoProgressError where `watch` found none.
    Once `lost` is set, as the run has lost its lease, no more photos are begun.
    SourceGoneError where nearly all photos failed to be fetched, those that are not found or forbidden among them where
    their URI begins with one of `listed_below`; `failed_before` is `source_gone.check`'s.

    An exception in a stage that is no photo's expected failure stops the flow and is raised here.
    """
    _configure_ray_data()
    locators, cpus_each, threads = locator_pool(cluster, size)
    readers, fetches_each = shares(reader.fetch.concurrent, cluster.readers or size.cpus)
    is_bounded = cluster.readers is not None or reader.fetch.concurrent is not None
    log.info("%d engine(s) over %d CPUs and %d GPUs", locators, size.cpus, size.gpus)
    # Ray fuses a task into the actor pool behind it when both ask for the same, and they would take turns: an engine
    # never asks for one CPU. Reading the plan is to be fused with reading its photos.
    index: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_RunActor).remote(
        cluster.known_contents, answered, reader.fetch.gone_after
    )
    driver = driver or Driver.here(uses_local_paths=False)
    shared = _Shared(driver, index, logs.for_workers(), WorkerMetrics(stage.run_id), listed_below)
    read = _Read(plan_files, replace(reader, concurrent_fetches=fetches_each), readers, is_bounded, stop_at_s)
    placed = replace(locator, threads=locator.threads or threads)
    needs: dict[str, Any] = {"num_gpus": 1} if size.gpus else {"num_cpus": cpus_each}
    photos = _located(_read_photos(read, shared), shared, placed, load, locators, needs)
    sink = _StageDatasink(stage, cluster.rows_per_part, shared)
    look_on = supervise.watchdog(index, watch, stage, reader.fetch)
    with (
        _plain_errors(stage),
        logs.without_native_lines(_NOISE),
        look_on,
        supervise.sigterm_drains(index),
        supervise.loss_closes(index, lost),
    ):
        photos.write_datasink(sink, ray_remote_args={"num_cpus": 0.1}, concurrency=max(2, size.cpus // _CPUS_A_WRITER))
    progress: Progress = ray.get(index.progress.remote())
    try:
        source_gone.check(progress.last, reader.fetch, is_over=True, failed_before=failed_before)
    except SourceGoneError as error:
        log.critical("%s", error)
        raise
    overflow: int = ray.get(index.overflow.remote())
    return overflow


@dataclass(frozen=True)
class _Read:
    """What is read, and how: `readers` tasks at once where their number `is_bounded`, else as many as Ray likes."""

    plan_files: Sequence[str]
    reader: ReaderSettings
    readers: int
    is_bounded: bool
    stop_at_s: float | None


def _read_photos(read: _Read, shared: _Shared) -> ray.data.Dataset:
    """Return the plan's photos as rows with pixels, each file of the plan a task."""
    at_once: dict[str, Any] = {"compute": TaskPoolStrategy(size=read.readers)} if read.is_bounded else {}
    deaths = {"max_retries": _MOST_DEATHS}
    source = _BlocksDatasource("Plan", [functools.partial(_plan_blocks, uri, shared) for uri in read.plan_files])
    read_rows = functools.partial(_read_rows, shared=shared, settings=read.reader, stop_at_s=read.stop_at_s)
    with warnings.catch_warnings():
        # A task's retries have no other name yet; only what has the same ones is fused.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        photos = ray.data.read_datasource(
            source, override_num_blocks=len(read.plan_files), num_cpus=1, ray_remote_args=deaths, **at_once
        )
        rows: ray.data.Dataset = photos.map_batches(read_rows, num_cpus=1, **deaths, **at_once, **_BATCHES)
    return rows


def _located(
    photos: ray.data.Dataset,
    shared: _Shared,
    locator: LocatorSettings,
    load: EngineLoader | None,
    locators: int,
    needs: dict[str, Any],
) -> ray.data.Dataset:
    """Return the photos with their places, by so many engines, each of which `needs` CPUs or a GPU."""
    # A GPU takes more at a time than travels together.
    batches = _BATCHES | ({"batch_size": locator.batch_size} if "num_gpus" in needs else {})
    return photos.map_batches(
        _LocatorActor,
        fn_constructor_args=(shared, locator, load),
        compute=ActorPoolStrategy(size=locators),
        **needs,
        **batches,
    )


def publish_on_ray(stage: Stage, above_rows: int = 2_000_000) -> Published:
    """Publish as `publish.publish` does; a run of more than `above_rows` rows is sorted and written by the cluster."""
    with _plain_errors(stage):
        return publish(stage, _sort_on_ray, above_rows)


def _sort_on_ray(stage: Stage, selection: Selection) -> list[PublishedFile]:
    """Write the selected rows as the files of their ranges: each row is sent to its file's task, which sorts them."""
    start_ray()
    _configure_ray_data()
    files, ranges = selection.row_files, selection.ranges
    tasks = min(len(files), -(-sum(part.row_count for part in ranges) // _ROWS_PER_SORTED_BLOCK))
    read_fns = []
    for index in range(tasks):
        own = files[len(files) * index // tasks : len(files) * (index + 1) // tasks]
        read_fns.append(functools.partial(_staged_blocks, {uri: selection.dropped.get(uri) for uri in own}, ranges))
    rows = ray.data.read_datasource(_BlocksDatasource("Staged", read_fns), override_num_blocks=tasks, num_cpus=1)
    # By groups, not Dataset.sort: Ray cuts what it has sorted into blocks of its own size, but never a group. They go
    # to tasks by hash: among twice as many tasks few get several.
    written = rows.groupby(_FILE_INDEX, num_partitions=2 * len(ranges)).map_groups(
        _write_file, fn_kwargs={"stage": stage, "ranges": ranges}, batch_format="pyarrow"
    )
    return sorted((PublishedFile(**file) for file in written.take_all()), key=lambda file: file.path)


@contextlib.contextmanager
def _plain_errors(stage: Stage) -> Iterator[None]:
    """Raise what a file system or store refused, in whichever process, as itself and with a note of what stays."""
    try:
        yield
    except (ray.exceptions.OutOfMemoryError, ray.exceptions.WorkerCrashedError) as error:
        log.critical("%s", _no_memory(stage))
        raise NoMemoryError(str(error)) from None
    except (OSError, ray.exceptions.RayTaskError) as error:
        plain = error
        if isinstance(error, ray.exceptions.RayTaskError):
            if not isinstance(error.cause, _RefusedInWorkerError):
                raise
            plain = error.cause.error
        with contextlib.suppress(OSError):
            plain.add_note(f"{stage.staged_count()} photos are staged and stay.")
        raise plain from None


class NoMemoryError(FlowEndedError):
    """A node's memory does not suffice, however often a task is begun again; what was staged stays."""


def _no_memory(stage: Stage) -> str:
    staged = ""
    with contextlib.suppress(OSError):
        staged = f" {stage.staged_count()} photos are staged and stay: the next run goes on from there."
    return (
        "a node's memory is too short: a process of this run was killed again and again. Give nodes 2 to 3 GB for each"
        f" core, or have fewer photos read at once by --cluster.readers or --fetch.budget-bytes.{staged}"
    )


class _RefusedInWorkerError(Exception):
    """Brings what a file system or store refused in a worker to the driver: Ray adds its own words to an error's."""

    def __init__(self, error: OSError, *words: object) -> None:
        super().__init__(error, *words)
        self.error = error


@contextlib.contextmanager
def _refusals_told() -> Iterator[None]:
    """Within it, a worker's task reads or writes the output; `_plain_errors` is the other end."""
    try:
        yield
    except OSError as error:
        raise _RefusedInWorkerError(error) from error


def _configure_ray_data() -> None:
    context = ray.data.DataContext.get_current()
    # A worker process that dies (out of memory, a node taken away) is retried by Ray; a bug in our code is not.
    context.max_errored_blocks = 0
    context.enable_progress_bars = False  # `progress` tells the whole run's
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # it would write a dozen lines every ten seconds
    # What the first two say with a trace or two is raised as well; the third says that its bars are off.
    for name in ("exceptions", "_internal.execution.streaming_executor_state", "_internal.progress"):
        logging.getLogger(f"ray.data.{name}").setLevel(logging.CRITICAL)
    # Advice for whoever tunes Ray, in the middle of the user's log.
    context.issue_detectors_config.detectors = []
    warnings.filterwarnings("ignore", message="The m(in|ax)imum number of concurrent (actors|tasks)")


class _BlocksDatasource(Datasource):
    """Tasks that each yield rows in blocks."""

    def __init__(self, name: str, read_fns: Sequence[Callable[[], Iterable[Block]]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._name = name
        self._read_fns = read_fns

    def get_name(self) -> str:
        return self._name

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        del parallelism, data_context  # the files decide: what is read doesn't depend on the cluster's size
        metadata = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None)
        return [ReadTask(read_fn, metadata, per_task_row_limit=per_task_row_limit) for read_fn in self._read_fns]


def _plan_blocks(uri: str, shared: _Shared) -> Iterator[pa.Table]:
    shared.logs.enter("plan")
    if ray.get(shared.index.is_closed.remote()):
        yield schema.MANIFEST.empty_table()
        return
    with _refusals_told():
        rows = pq.read_table(pa.BufferReader(storage.read_bytes(uri)), schema=schema.MANIFEST)
    for start in range(0, rows.num_rows, _ROWS_PER_BLOCK):
        yield rows.slice(start, _ROWS_PER_BLOCK)


@functools.lru_cache(maxsize=1)
def _process_reader(settings: ReaderSettings) -> IsolatedReader:
    """One reader, and its decoder, for each worker process, whichever tasks it runs."""
    keep_heap()
    return IsolatedReader(settings)


def _read_rows(plan: pa.Table, shared: _Shared, settings: ReaderSettings, stop_at_s: float | None) -> pa.Table:
    shared.logs.enter("read")
    shared.driver.check()
    index = shared.index
    # No generator: Ray would not tell its errors, which are ours, from those that run_dataflow raises for the user.
    if (stop_at_s is not None and time.time() >= stop_at_s) or ray.get(index.is_closed.remote()):
        return schema.READ.empty_table()
    heartbeat = Heartbeat(index.note_read.remote, shared.listed_below)
    read = _process_reader(settings)(plan, heartbeat)
    heartbeat.tell()
    shared.metrics.count_read(read)
    rows_N, contents, photo_ids = claims(read)
    return without_copies(read, rows_N, ray.get(index.claim.remote(contents, photo_ids)))


class _LocatorActor:
    """Gives a Locator to Ray: the engine is loaded once in each actor."""

    def __init__(self, shared: _Shared, settings: LocatorSettings, load: EngineLoader | None) -> None:
        shared.logs.enter("locate")
        shared.driver.check()
        from pipeline.locate.locator import Locator

        cores, start_s = os.cpu_count() or 1, time.monotonic()
        settings = replace(settings, threads=min(settings.threads or cores, cores))  # Ray may have been told of more
        self._locator = Locator(settings) if load is None else Locator(settings, load)
        log.info("the engine %s was ready after %.1f s", settings.engine, time.monotonic() - start_s)
        self._shared = shared
        shared.index.note_engine.remote()

    def __call__(self, read: pa.Table) -> pa.Table:
        if not read.num_rows:
            return schema.PHOTOS.empty_table()
        rows = self._locator(read)
        use = self._locator.take_use()
        self._shared.metrics.count_engine(use.photos, use.slots, use.call_seconds)
        self._shared.index.note_located.remote(rows.num_rows)
        return rows


class _StageDatasink(Datasink[None]):
    """Stages what arrives, a part for each write task."""

    def __init__(self, stage: Stage, rows_per_part: int, shared: _Shared) -> None:
        self._stage = stage
        self._rows_per_part = rows_per_part
        self._shared = shared

    def get_name(self) -> str:
        return "Stage"

    @property
    def min_rows_per_write(self) -> int:
        return self._rows_per_part

    def write(self, blocks: Iterable[Block], ctx: Any) -> None:
        self._shared.logs.enter("stage")
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        tables = [table for table in tables if table.num_rows]  # Ray makes blocks without columns of nothing
        if not tables:
            return
        rows = pa.concat_tables(tables).cast(schema.PHOTOS)
        is_copy = pc.equal(rows.column(schema.STATUS), schema.COPIED)
        index = self._shared.index
        copies, others = rows.filter(is_copy), rows.filter(pc.invert(is_copy))
        start_s = time.perf_counter()
        with _refusals_told():
            if copies.num_rows:
                index.note_waiting.remote(self._stage.put_copies(copies), copies.num_rows)
            if others.num_rows:
                index.note_staged.remote(self._stage.put_rows(others), outcomes(others))
        self._shared.metrics.observe_staging(time.perf_counter() - start_s)


def _staged_blocks(files: dict[str, list[int] | None], ranges: Sequence[FileRange]) -> Iterator[pa.Table]:
    """Yield the rows of staged files without those that are dropped, with the number of the file each belongs to."""
    for uri, dropped in files.items():
        with _refusals_told():
            rows = older_rows.as_photos(pq.read_table(pa.BufferReader(storage.read_bytes(uri))))
        if dropped:
            kept = np.ones(rows.num_rows, bool)
            kept[dropped] = False
            rows = rows.filter(pa.array(kept))
        yield rows.append_column(_FILE_INDEX, pa.array(file_index(rows, ranges)))


def _write_file(rows: pa.Table, stage: Stage, ranges: Sequence[FileRange]) -> pa.Table:
    """Write a range's rows as one file, and return what there is to say of it; a retried task writes the same again."""
    (index,) = pc.unique(rows.column(_FILE_INDEX)).to_pylist()
    assert rows.num_rows == ranges[index].row_count, (
        f"file {index}: {rows.num_rows} rows, not {ranges[index].row_count}"
    )
    with _refusals_told():
        return pa.Table.from_pylist([asdict(put_file(stage, index, _sorted_groups(rows), ranges[index].bbox))])


def _sorted_groups(rows: pa.Table) -> Iterator[pa.Table]:
    """Yield a file's rows as its sorted row groups; only one at a time is copied."""
    order = pa.array(np.argsort(sort_keys(rows)))
    start = 0
    for size in geoparquet.group_sizes(rows.num_rows):
        yield rows.select(schema.PHOTOS.names).take(order.slice(start, size))
        start += size
