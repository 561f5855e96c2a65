"""What a run asks of whoever does its work, on this machine or on a cluster: the same flow, the same rows.

Photos go from the plan to a Reader, from there to a Locator, and their rows into the stage; `local_executor` and
`dataflow` each string these together, and know nothing of each other.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema, storage
from pipeline.cluster.supervise import Watch
from pipeline.read.reader import ReaderSettings
from pipeline.run.publish import Published
from pipeline.run.staging import Stage
from pipeline.run.tally import Outcomes, outcomes

if TYPE_CHECKING:  # imported only where it runs: a process that reads photos is spared four seconds and 200 MB
    from pipeline.locate.locator import EngineLoader, LocatorSettings

ExecutorName = Literal["auto", "local", "ray"]
ROWS_PER_BLOCK = 64
"""Photos that travel together: some 10 MB of pixels at 224 px."""


@dataclass(frozen=True)
class ClusterSize:
    """What the cluster says it has, in all and on its largest node; `nodes` counts those without processors, too."""

    cpus: int
    gpus: int
    largest_node_cpus: int
    nodes: int = 1


@dataclass(frozen=True)
class ClusterSettings:
    """How the work is spread.

    Attributes:
        locators: engine processes, all there from the start; None for one a GPU, or one a node where there is no GPU.
        locator_cpus: CPUs kept for each, and its threads, where there is no GPU; None for threads on all of a node's,
            which readers use, too: whichever has work to do.
        readers: reading processes at once; None for as many as there are CPUs for.
        rows_per_part: rows that are staged together; at most so many a writer are lost when a machine dies.
        known_contents: photos' contents that are remembered, some 200 bytes each, to infer identical bytes once.
    """

    locators: int | None = None
    locator_cpus: float | None = None
    readers: int | None = None
    rows_per_part: int = 2000
    known_contents: int = 5_000_000

    def __post_init__(self) -> None:
        for name, value in (("locators", self.locators), ("readers", self.readers)):
            if value is not None and value < 1:
                raise ValueError(f"--cluster.{name} {value}: give at least 1")
        if self.locator_cpus is not None and not self.locator_cpus > 0:
            raise ValueError(f"--cluster.locator-cpus {self.locator_cpus:g}: give more than 0")


def locator_pool(cluster: ClusterSettings, size: ClusterSize) -> tuple[int, float, int]:
    """Return how many locators there are, the CPUs that each takes from readers, and the threads of each.

    One a GPU, else one a node. Which of reading and engine costs more depends on photos and network: on CPUs the two
    share all of a node's: the one that is ahead waits for the other. The half CPU that a node's engines take keeps them
    off the head, and leaves those of a lost node room. Never exactly the one CPU that a reading task asks for.

    ValueError for what the cluster doesn't have: Ray would wait for it for ever.
    """
    if size.cpus == 0:  # a head without work, and its workers are not there yet
        raise ValueError("the cluster has no CPUs to read photos with: start workers, or wait until they have joined")
    if cluster.readers is not None and cluster.readers > size.cpus:
        raise ValueError(f"--cluster.readers {cluster.readers}: the cluster has {size.cpus} CPUs, and each takes one")
    nodes = max(1, size.cpus // size.largest_node_cpus)
    locators = cluster.locators or size.gpus or nodes
    if size.gpus:
        if locators > size.gpus:
            raise ValueError(f"--cluster.locators {locators}: the cluster has {size.gpus} GPUs, one for each")
        if cluster.locator_cpus is not None:
            raise ValueError(f"--cluster.locator-cpus is for clusters without GPUs, and this one has {size.gpus}")
        return locators, 0.0, max(1, size.cpus // size.gpus)
    cpus_each = cluster.locator_cpus or 0.5 / -(-locators // nodes)
    if locators * cpus_each + 1 > size.cpus:
        raise ValueError(
            f"{locators} engines of {cpus_each:g} CPUs leave none of the cluster's {size.cpus} to read photos with:"
            " give a smaller --cluster.locators or --cluster.locator-cpus"
        )
    if cpus_each + 1 > size.largest_node_cpus and locators >= nodes:
        raise ValueError(
            f"no node has room for an engine of {cpus_each:g} CPUs and a reader, as the largest has"
            f" {size.largest_node_cpus}: give fewer --cluster.locators than the {nodes} nodes, or nodes more CPUs"
        )
    threads = math.ceil(cluster.locator_cpus or size.largest_node_cpus * nodes / locators)
    return locators, 0.9999 if cpus_each == 1 else cpus_each, threads


@dataclass(frozen=True)
class NamedPath:
    """A path or URI that the user gave as `flag`."""

    flag: str
    uri: str


@dataclass(frozen=True)
class Flow:
    """The work of one start of a run: photos of the plan that have no row yet get theirs into the stage.

    Attributes:
        plan_files: the photos, as files of `schema.MANIFEST`.
        size: what `Executor.start` found.
        answered: contents that have their answer elsewhere: photos with these bytes wait for it, too.
        stop_at_s: from when on, by the nodes' own clocks since 1970, no more photos are begun; those that are left have
            no row.
        load: makes the engine, if it is not the settings' one that is wanted.
        uses_local_paths: whether the run needs a path that only this machine has.
        watch: who looks on; None for nobody.
        lost: is set once the run has lost its lease; then no more photos are begun.
        listed_below: how the URIs of photos begin that this very run has listed; `failed_before`: see
            `source_gone.check`.
    """

    plan_files: Sequence[str]
    stage: Stage
    reader: ReaderSettings
    locator: LocatorSettings
    cluster: ClusterSettings
    size: ClusterSize
    answered: Sequence[bytes] = ()
    stop_at_s: float | None = None
    load: EngineLoader | None = None
    uses_local_paths: bool = False
    watch: Watch | None = None
    lost: threading.Event | None = None
    listed_below: tuple[str, ...] = ()
    failed_before: int = 0


class Executor(Protocol):
    """Does a run's work: on this machine, or on a cluster."""

    def start(self) -> ClusterSize:
        """Make ready what does the work, and return what there is of it."""

    def check_paths(self, paths: Iterable[NamedPath], is_shared: bool, output: str) -> None:
        """Raise ValueError for a local path that not every process of the run sees; `is_shared`: the user says so."""

    def run(self, flow: Flow) -> int:
        """Process every photo of the plan that isn't staged yet; return once all rows are staged.

        After SIGTERM no more photos are begun: KeyboardInterrupt once those that were begun are staged. Returns how
        many photos were inferred without looking for their like, as there were more contents than are remembered.
        ValueError for what the machine or cluster is too small for. NoProgressError where `flow.watch` found none.
        SourceGoneError where nearly all photos failed to be fetched. An exception in a stage that is no photo's
        expected failure stops the flow and is raised here.
        """

    def publish(self, stage: Stage) -> Published:
        """Publish as `publish.publish` does."""


def plan_blocks(uri: str) -> Iterator[pa.Table]:
    """Yield the photos of one of the plan's files, as many at a time as travel together."""
    rows = pq.read_table(pa.BufferReader(storage.read_bytes(uri)), schema=schema.MANIFEST)
    for start in range(0, rows.num_rows, ROWS_PER_BLOCK):
        yield rows.slice(start, ROWS_PER_BLOCK)


def is_over(stop_at_s: float | None) -> bool:
    """Return whether no more photos are to be begun, by this machine's clock."""
    return stop_at_s is not None and time.time() >= stop_at_s


def stage_rows(
    stage: Stage,
    tables: Sequence[pa.Table],
    note_waiting: Callable[[str, int], object],
    note_staged: Callable[[str, Outcomes], object],
) -> None:
    """Stage located rows as one part, and those that wait for another photo's answer as another; tell of each."""
    rows = pa.concat_tables(tables).cast(schema.PHOTOS)
    is_copy = pc.equal(rows.column(schema.STATUS), schema.COPIED)
    copies, others = rows.filter(is_copy), rows.filter(pc.invert(is_copy))
    if copies.num_rows:
        note_waiting(stage.put_copies(copies), copies.num_rows)
    if others.num_rows:
        note_staged(stage.put_rows(others), outcomes(others))
