"""The Ray Data graph: plan → read → locate → stage. The one place in this package that knows Ray."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data import ActorPoolStrategy, Datasink, Datasource
from ray.data.block import Block, BlockAccessor, BlockMetadata
from ray.data.datasource import ReadTask

from pipeline import schema, storage
from pipeline.reader import Reader, ReaderSettings
from pipeline.staging import Stage

if TYPE_CHECKING:  # imported only where it runs: a process that reads photos is spared four seconds and 200 MB
    from pipeline.locator import LocatorSettings

log = logging.getLogger(__name__)

_ROWS_PER_BLOCK = 64
"""Photos that travel together: some 10 MB of pixels at 224 px."""
_LOG_INTERVAL_S = 30.0


@dataclass(frozen=True)
class ClusterSettings:
    """How the work is spread.

    Attributes:
        locators: engine processes; None for one a GPU, or one a node where there is no GPU.
        rows_per_part: rows that are staged together; at most so many a writer are lost when a machine dies.
    """

    locators: int | None = None
    rows_per_part: int = 2000


@dataclass(frozen=True)
class ClusterSize:
    """What the cluster says it has, in all and on its largest node."""

    cpus: int
    gpus: int
    largest_node_cpus: int


def start_ray() -> ClusterSize:
    """Join the cluster that the environment names (`ray job submit` does), else start one on this machine."""
    if not ray.is_initialized():
        # With one CPU to spare for the engine's process: on two cores a reading task could else wait for it forever.
        cpus = None if os.environ.get("RAY_ADDRESS") else (os.cpu_count() or 1) + 1
        ray.init(num_cpus=cpus, include_dashboard=False if cpus else None, logging_level=logging.WARNING)
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    return ClusterSize(
        cpus=int(sum(node.get("CPU", 0) for node in alive)),
        gpus=int(sum(node.get("GPU", 0) for node in alive)),
        largest_node_cpus=int(max(node.get("CPU", 0) for node in alive)),
    )


def run_dataflow(
    plan_files: Sequence[str],
    stage: Stage,
    reader: ReaderSettings,
    locator: LocatorSettings,
    cluster: ClusterSettings,
    size: ClusterSize,
) -> None:
    """Process every photo of the plan that isn't staged yet; returns once all rows are staged.

    An exception in a stage that is no photo's expected failure stops the flow and is raised here.
    """
    context = ray.data.DataContext.get_current()
    # A worker process that dies (out of memory, a node taken away) is retried by Ray; a bug in our code is not.
    context.max_errored_blocks = 0
    context.enable_rich_progress_bars, context.use_ray_tqdm = True, False
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # it would write a dozen lines every ten seconds
    context.issue_detectors_config.detectors = []  # advice for whoever tunes Ray, in the middle of the user's log

    locators, cpus_each = _locator_pool(cluster, size)
    log.info("%d engine(s) over %d CPUs and %d GPUs", locators, size.cpus, size.gpus)
    # Ray fuses a task into the actor pool behind it when both ask for the same, and decoder and engine would then take
    # turns: an engine never asks for one CPU. Reading the plan is to be fused with reading its photos.
    source = _PlanDatasource(plan_files)
    photos = ray.data.read_datasource(source, override_num_blocks=len(plan_files), num_cpus=1)
    batches: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    photos = photos.map_batches(functools.partial(_read_rows, settings=reader), num_cpus=1, **batches)
    photos = photos.map_batches(
        _LocatorActor,
        fn_constructor_args=(replace(locator, threads=locator.threads or max(2, int(cpus_each))),),
        compute=ActorPoolStrategy(size=locators),
        **({"num_gpus": 1} if size.gpus else {"num_cpus": cpus_each}),
        **batches,
    )
    with _progress_log(stage):
        photos.write_datasink(_StageDatasink(stage, cluster.rows_per_part), ray_remote_args={"num_cpus": 0.1})


def _locator_pool(cluster: ClusterSettings, size: ClusterSize) -> tuple[int, float]:
    """Return how many locators there are and the CPUs each takes: one a GPU, else one a node with half of its CPUs."""
    cpus_each = size.largest_node_cpus // 2 if size.largest_node_cpus >= 4 else 0.5
    return cluster.locators or size.gpus or max(1, size.cpus // size.largest_node_cpus), cpus_each


@contextlib.contextmanager
def _progress_log(stage: Stage) -> Iterator[None]:
    """Where there is no terminal for Ray's progress bars, log how many photos are staged every half minute."""
    if sys.stdout.isatty():
        yield
        return
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(_LOG_INTERVAL_S):
            log.info("%d photos staged", stage.staged_count())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()


class _PlanDatasource(Datasource):
    """The plan's files, each a task that yields its rows in blocks."""

    def __init__(self, files: Sequence[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._files = files

    def get_name(self) -> str:
        return "Plan"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        del parallelism, data_context  # the plan decides: what is read doesn't depend on the cluster's size
        metadata = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None)
        return [
            ReadTask(functools.partial(_plan_blocks, uri), metadata, per_task_row_limit=per_task_row_limit)
            for uri in self._files
        ]


def _plan_blocks(uri: str) -> Iterator[pa.Table]:
    rows = pq.read_table(pa.BufferReader(storage.read_bytes(uri)), schema=schema.MANIFEST)
    for start in range(0, rows.num_rows, _ROWS_PER_BLOCK):
        yield rows.slice(start, _ROWS_PER_BLOCK)


@functools.lru_cache(maxsize=1)
def _process_reader(settings: ReaderSettings) -> Reader:
    """One Reader for each worker process, whichever tasks it runs."""
    return Reader(settings)


def _read_rows(plan: pa.Table, settings: ReaderSettings) -> pa.Table:
    return _process_reader(settings)(plan)


class _LocatorActor:
    """Gives a Locator to Ray: the engine is loaded once in each actor."""

    def __init__(self, settings: LocatorSettings) -> None:
        from pipeline.locator import Locator

        self._locator = Locator(settings)

    def __call__(self, read: pa.Table) -> pa.Table:
        return self._locator(read)


class _StageDatasink(Datasink[None]):
    """Stages what arrives, a part for each write task."""

    def __init__(self, stage: Stage, rows_per_part: int) -> None:
        self._stage = stage
        self._rows_per_part = rows_per_part

    def get_name(self) -> str:
        return "Stage"

    @property
    def min_rows_per_write(self) -> int:
        return self._rows_per_part

    def write(self, blocks: Iterable[Block], ctx: Any) -> None:
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        rows = pa.concat_tables(tables).cast(schema.PHOTOS)
        if rows.num_rows:
            self._stage.put_rows(rows)
