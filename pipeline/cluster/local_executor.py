"""A run's work on this machine alone, without a cluster: threads that read, one that locates and one that stages.

Each reading thread has a Reader of its own, whose decoder is a process of its own; the engine's threads are OpenVINO's
or torch's. So what takes time runs beside each other, and this process' own Python, a few milliseconds for a block of
photos, in turns. A few blocks wait between the threads, no more: whoever is ahead waits for the others.
"""

from __future__ import annotations

import collections
import contextlib
import glob
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.cluster import metrics, source_gone, supervise
from pipeline.cluster.flow import ClusterSize, Flow, NamedPath, is_over, plan_blocks, stage_rows
from pipeline.cluster.metrics import WorkerMetrics
from pipeline.cluster.source_gone import Heartbeat
from pipeline.read.fetch import shares
from pipeline.read.reader import IsolatedReader, ReaderSettings
from pipeline.run import publish
from pipeline.run.content_index import ContentIndex, claims, without_copies
from pipeline.run.publish import Published
from pipeline.run.staging import Stage
from pipeline.run.tally import Fetches, Progress, Tally

if TYPE_CHECKING:
    from pipeline.locate.locator import Locator

log = logging.getLogger(__name__)

_BLOCKS_AHEAD = 1
"""So many blocks of each reader wait for the engine, beside the one that it is at."""
_BLOCKS_LOCATED = 4
_END_LIMIT_S = 10.0
"""In which threads end that are told to: a photo or a call of the engine that is under way is not interrupted."""
_left: list[threading.Thread] = []


class LocalExecutor:
    """Does a run's work on this machine: see `Executor`."""

    def __init__(self, metrics_port: int | None = None) -> None:
        """`metrics_port`: where this process serves its metrics, to this machine only; None for nowhere."""
        self._metrics_port = metrics_port

    def start(self) -> ClusterSize:
        """As `Executor`: this machine's processors that this process may use, and its NVIDIA GPUs."""
        metrics.keep_here(self._metrics_port)
        cpus = len(os.sched_getaffinity(0))
        return ClusterSize(cpus, len(glob.glob("/dev/nvidia[0-9]*")), cpus)

    def check_paths(self, paths: Iterable[NamedPath], is_shared: bool, output: str) -> None:
        """As `Executor`: one machine sees all of its paths."""

    def run(self, flow: Flow) -> int:
        """As `Executor`."""
        if flow.cluster.locators not in (None, 1):
            raise ValueError(f"--cluster.locators {flow.cluster.locators}: one machine has one; give --executor ray")
        progress = _Progress(flow)
        try:
            with (
                _Threads(flow, progress) as threads,
                supervise.watched(progress, flow.watch, flow.stage, flow.reader.fetch, flow.lost),
            ):
                threads.wait()
        except OSError as error:
            with contextlib.suppress(OSError):
                error.add_note(f"{flow.stage.staged_count()} photos are staged and stay.")
            raise
        source_gone.check_at_end(progress.progress().last, flow.reader.fetch, flow.failed_before)
        return progress.overflow()

    def publish(self, stage: Stage) -> Published:
        """As `Executor`: in this process, by DuckDB, which sorts on disk what passes its memory."""
        return publish.publish(stage)


def is_busy() -> bool:
    """Return whether a thread that was told to end is still in native code, such as an engine's compilation.

    Python can't end such a thread: a process that exits meanwhile in the usual way is aborted by it.
    """
    return any(thread.is_alive() for thread in _left)


class _Progress:
    """What the threads have in common: which photo answers for which bytes, and how far they are."""

    def __init__(self, flow: Flow) -> None:
        self._index = ContentIndex(flow.cluster.known_contents, flow.answered)
        self._tally = Tally(flow.reader.fetch.gone_after)
        self._one_by_one = threading.Lock()

    def claim(self, contents: Sequence[bytes], photo_ids: Sequence[bytes]) -> list[bool]:
        with self._one_by_one:
            return self._index.claim(contents, photo_ids)

    def note_read(self, fetches: Fetches) -> None:
        with self._one_by_one:
            self._tally.note_read(fetches)

    def note_engine(self) -> None:
        with self._one_by_one:
            self._tally.note_engine()

    def note_located(self, photos: int) -> None:
        with self._one_by_one:
            self._tally.note_located(photos)

    def note_staged(self, part: str, outcomes: Mapping[tuple[str, str], int]) -> None:
        with self._one_by_one:
            self._tally.note_staged(part, outcomes)

    def note_waiting(self, part: str, photos: int) -> None:
        with self._one_by_one:
            self._tally.note_waiting(part, photos)

    def overflow(self) -> int:
        return self._index.overflow()

    def is_closed(self) -> bool:
        return self._index.is_closed()

    def progress(self) -> Progress:
        with self._one_by_one:
            return self._tally.progress()

    def close(self) -> None:
        self._index.close()

    def seen(self) -> str:
        load_1, *_ = os.getloadavg()
        return f"this machine has {len(os.sched_getaffinity(0))} CPUs and a load of {load_1:.1f}"


class _AbandonedError(Exception):
    """Ends a thread: another one failed, or the run is told to stop at once."""


class _Blocks:
    """Blocks that wait between threads: no more than so many, given by so many threads."""

    def __init__(self, most: int, givers: int) -> None:
        self._blocks: collections.deque[pa.Table] = collections.deque()
        self._most, self._givers = most, givers
        self._is_abandoned = False
        self._change = threading.Condition()

    def put(self, block: pa.Table) -> None:
        """Give a block, once there is room for it."""
        with self._change:
            self._change.wait_for(lambda: self._is_abandoned or len(self._blocks) < self._most)
            self.check()
            self._blocks.append(block)
            self._change.notify_all()

    def no_more(self) -> None:
        """Say that this giver gives no more."""
        with self._change:
            self._givers -= 1
            self._change.notify_all()

    def __iter__(self) -> Iterator[pa.Table]:
        """Yield blocks until no giver gives more."""
        while True:
            with self._change:
                self._change.wait_for(lambda: self._is_abandoned or self._blocks or not self._givers)
                self.check()
                if not self._blocks:
                    return
                block = self._blocks.popleft()
                self._change.notify_all()
            yield block

    def abandon(self) -> None:
        """End whoever waits here."""
        with self._change:
            self._is_abandoned = True
            self._change.notify_all()

    def check(self) -> None:
        """Raise _AbandonedError where nobody takes blocks any more."""
        if self._is_abandoned:
            raise _AbandonedError


class _Threads:
    """A flow's threads; an error of any of them ends all, and is raised where somebody waits for their end."""

    def __init__(self, flow: Flow, progress: _Progress) -> None:
        self._flow, self._progress = flow, progress
        self._metrics = WorkerMetrics(flow.stage.run_id)
        cluster, fetch = flow.cluster, flow.reader.fetch
        readers, fetches_each = shares(fetch.concurrent, cluster.readers or flow.size.cpus)
        self._reader: ReaderSettings = replace(flow.reader, concurrent_fetches=fetches_each)
        threads = math.ceil(cluster.locator_cpus or flow.size.cpus)
        self._locator = replace(flow.locator, threads=flow.locator.threads or threads)
        self._planned = (block for uri in flow.plan_files for block in plan_blocks(uri))
        self._planning = threading.Lock()
        self._read = _Blocks(_BLOCKS_AHEAD * readers, readers)
        self._located = _Blocks(_BLOCKS_LOCATED, 1)
        self._over = threading.Event()
        self._error: BaseException | None = None
        names: list[tuple[str, Callable[[], None]]] = [(f"read {number}", self._do_read) for number in range(readers)]
        names += [("locate", self._do_locate), ("stage", self._do_stage)]
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True) for name, work in names
        ]

    def __enter__(self) -> _Threads:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._abandon(error)
        end_s = time.monotonic() + _END_LIMIT_S
        for thread in self._threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        _left.extend(thread for thread in self._threads if thread.is_alive())

    def wait(self) -> None:
        """Return when every row is staged; raise what ended a thread."""
        self._over.wait()
        if self._error is not None:
            raise self._error

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except _AbandonedError:
            return
        except ValueError as error:  # nobody's mistake but ours, in the middle of the work
            bug = RuntimeError(f"a bug in the thread {threading.current_thread().name!r}: {error}")
            bug.__cause__ = error
            self._abandon(bug)
        except BaseException as error:  # noqa: BLE001 - not swallowed: `wait` raises it
            self._abandon(error)

    def _abandon(self, error: BaseException) -> None:
        self._error = self._error or error
        self._read.abandon()
        self._located.abandon()
        self._over.set()

    def _next_block(self) -> pa.Table | None:
        """Return photos to read, None where there are no more or none is to be begun."""
        with self._planning:
            if self._progress.is_closed() or is_over(self._flow.stop_at_s):
                return None
            return next(self._planned, None)

    def _do_read(self) -> None:
        reader = IsolatedReader(self._reader)
        try:
            while (planned := self._next_block()) is not None:
                heartbeat = Heartbeat(self._progress.note_read, self._flow.listed_below)

                def note(rows: list[dict[str, Any]], told: Heartbeat = heartbeat) -> None:
                    self._read.check()  # not only between blocks: a slow store may take minutes for one
                    told(rows)

                read = reader(planned, note)
                heartbeat.tell()
                self._metrics.count_read(read)
                rows_N, contents, photo_ids = claims(read)
                self._read.put(without_copies(read, rows_N, self._progress.claim(contents, photo_ids)))
            self._read.no_more()
        finally:
            reader.close()

    def _do_locate(self) -> None:
        locator = self._load()
        self._progress.note_engine()
        for read in self._read:
            rows = locator(read)
            use = locator.take_use()
            self._metrics.count_engine(use.photos, use.slots, use.call_seconds)
            self._progress.note_located(rows.num_rows)
            self._located.put(rows)
        self._located.no_more()

    def _load(self) -> Locator:
        from pipeline.locate.locator import Locator  # seconds, in which the first photos are read

        start_s, load = time.monotonic(), self._flow.load
        try:
            locator = Locator(self._locator) if load is None else Locator(self._locator, load)
        except ValueError as error:  # an engine or a precision that this machine does not have
            self._abandon(error)
            raise _AbandonedError from None
        log.info("the engine %s was ready after %.1f s", self._locator.engine, time.monotonic() - start_s)
        return locator

    def _do_stage(self) -> None:
        held: list[pa.Table] = []
        for rows in self._located:
            held.append(rows)
            if sum(table.num_rows for table in held) >= self._flow.cluster.rows_per_part:
                self._stage(held)
                held = []
        if held:
            self._stage(held)
        self._over.set()

    def _stage(self, held: list[pa.Table]) -> None:
        start_s = time.perf_counter()
        stage_rows(self._flow.stage, held, self._progress.note_waiting, self._progress.note_staged)
        self._metrics.observe_staging(time.perf_counter() - start_s)
