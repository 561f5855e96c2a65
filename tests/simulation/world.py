"""An archive, its output, and drivers that run the real job over it, all in one simulated world.

What is real: `jobs.geotag_archive` and `pipeline.geotag`, with lease, plan, staging, publishing, commit, sweep,
retention, verify and the catalog. What is not: Ray and the network. A run's workers are actors that stage a row for
every planned photo, and go on after their driver has died, as tasks of a real cluster may.
"""

from __future__ import annotations

import collections
import contextlib
import datetime as dt
import functools
import hashlib
import io
import json
import logging
import os
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import geotag_archive
from model.backbones.backbone import Preprocessing
from pipeline import geotag, schema, storage
from pipeline.cluster.flow import Flow
from pipeline.forget import forget
from pipeline.geotag_settings import GeotagSettings
from pipeline.published import catalog, records
from pipeline.published.records import RunRecord
from pipeline.run import publish, retention, verify
from pipeline.run.staging import Stage
from pipeline.storage import lease
from tests.simulation.memory_store import MemoryStore
from tests.simulation.scheduler import Chances, Killed, Process, Scheduler, as_threading, as_time
from tests.support.bytes_below import traces
from tests.support.photo_rows import failed_row, located_row, photos, skipped_row

PHOTOS, OUTPUT = "s3://world/photos", "s3://world/out"
LEASE_S = 6.0
_SIDECAR = 3
"""The number of the file that is no photo, whatever its name says here."""
_EXPECTED = (OSError, ValueError, duckdb.Error, KeyboardInterrupt)
"""What may end a driver that others disturb; anything else is a bug."""


class BrokenError(AssertionError):
    """A promise that was broken."""


@dataclass(frozen=True)
class Faults:
    """How hard the world is: see `Chances`, `MemoryStore` and `World`."""

    chances: Chances = field(default_factory=Chances)
    lost: float = 0.03
    drivers: int = 3
    photos: int = 5


class World:
    """One schedule: `run` plays it, and raises BrokenError where a promise was broken."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self._faults = faults
        self.scheduler = Scheduler(seed, faults.chances)
        self.store = MemoryStore(self.scheduler, faults.lost)
        self.scheduler.after_step = self._after_step
        self._random = self.scheduler.random
        self._checked: set[str] = set()
        self.ends: list[str] = []
        self._versions = 1
        self._forgotten: set[str] = set()
        for index in range(faults.photos):
            self.store.objects[f"{PHOTOS}/{index}.jpg"] = b"1"

    def run(self) -> None:
        """Play the schedule: drivers that are disturbed, then one in peace; then everything must be in order."""
        with self._patched():
            for index in range(self._faults.drivers):
                process = Process(f"driver {index}")
                process.asleep_until_s = self.scheduler.now_s + self._random.random() * 20
                self.scheduler.start(process, "main", self._driver)
            self.scheduler.run()
            self.scheduler.is_calm = True
            self.store.arrive()
            for attempt in range(3):  # a night of the healthy world may still take over a dead one's output
                code: list[int] = []
                process = Process(f"healer {attempt}")
                actor = self.scheduler.start(process, "main", functools.partial(self._heal, code))
                self.scheduler.run()
                if actor.error is not None:
                    raise BrokenError(f"a run in peace ended with {actor.error!r}") from actor.error
                if code == [0]:
                    break
            else:
                raise BrokenError("three runs in peace, and none ended with 0")
            self._check_peace()

    def _heal(self, codes: list[int]) -> None:
        codes.append(self._once())

    def _driver(self) -> None:
        """Come back a few times, as cron would; now and then change the archive, or clean up."""
        for _ in range(self._random.choice((1, 2, 3))):
            chance = self._random.random()
            if chance < 0.25:
                name = f"{PHOTOS}/{self._random.randrange(self._faults.photos + 2)}.jpg"
                self._versions += 1  # never one that was there before: that would be taken again, and rightly
                self.store.objects[name] = b"%d" % self._versions
            elif chance < 0.3:
                self.store.objects.pop(f"{PHOTOS}/{self._random.randrange(self._faults.photos)}.jpg", None)
            try:
                if chance > 0.9:
                    self._forget()
                    self.ends.append("forgotten")
                elif chance > 0.8:
                    retention.remove_replaced_runs(
                        OUTPUT, dt.timedelta(0), lease.LeaseSettings(LEASE_S), grace=dt.timedelta(0)
                    )
                    self.ends.append("retention")
                else:
                    self.ends.append(f"exit {self._once()}")
            except Killed:
                self.ends.append("killed")
                raise
            except _EXPECTED as error:
                self.ends.append(type(error).__name__)
            except (lease.LeaseLostError, lease.CommitUnknownError) as error:
                self.ends.append(type(error).__name__)

    def _forget(self) -> None:
        """Forget a photo; what was asked for once is asked for until it is done, as people would."""
        uri = f"{PHOTOS}/{self._random.randrange(self._faults.photos)}.jpg"
        chosen = pa.table([pa.array([schema.photo_id(uri)], pa.binary(16)), pa.array([uri])], schema=forget.PHOTOS)
        forget.forget(OUTPUT, chosen, lease.LeaseSettings(LEASE_S))
        self._forgotten.add(uri)

    def _once(self) -> int:
        settings = GeotagSettings(photos=(PHOTOS,), output=OUTPUT, lease=lease.LeaseSettings(LEASE_S))
        code, outcome = geotag_archive.geotag_and_tell(settings)
        if code == 0 and outcome is not None and outcome.record is not None:
            published, plan, run_id = outcome.record.counts.published, outcome.record.plan, outcome.record.run_id
            assert plan is not None
            if published != plan.todo + plan.staged:
                raise BrokenError(f"exit 0 with {published} photos published, and planned were {plan}")
            if not {f"{OUTPUT}/{folder}/{run_id}.json" for folder in ("runs", "removed")} & set(self.store.objects):
                raise BrokenError(f"exit 0, and run {run_id} has no record")
        return code

    def _after_step(self) -> None:
        if self._random.random() < 0.02:
            self.store.arrive()
        found = [
            RunRecord.from_json(json.loads(data))
            for name, data in list(self.store.objects.items())
            if name.startswith(f"{OUTPUT}/runs/") and name.replace("/runs/", "/removed/") not in self.store.objects
        ]
        for record in records.as_rewritten(found):
            missing = [file.path for file in record.objects if f"{OUTPUT}/{file.path}" not in self.store.objects]
            if missing:
                raise BrokenError(f"run {record.run_id} counts, and its files are gone: {missing}")

    def _check_peace(self) -> None:
        """Everything was done: all is verified, each photo has its row, and no version of one was located twice."""
        with self._quiet():
            problems = verify.verify_output(OUTPUT)
            history = catalog.Catalog(OUTPUT).rows("SELECT uri, etag, status, run_id FROM history").to_pylist()
            kept = {uri: found for uri in self._forgotten if (found := traces(OUTPUT, uri, schema.photo_id(uri)))}
        if problems:
            raise BrokenError("verify: " + "; ".join(map(str, problems)))
        if kept:
            raise BrokenError(f"these photos were forgotten, and traces of them are left: {kept}")
        names = {name for name in self.store.objects if name.startswith(PHOTOS)} - self._given_up()
        if missing := names - {row["uri"] for row in history}:
            raise BrokenError(f"everything was done, and these photos have no row: {sorted(missing)}")
        looked_at = [row for row in history if row["status"] in ("located", "skipped")]
        located = collections.Counter((row["uri"], row["etag"]) for row in looked_at)
        if several := {version: count for version, count in located.items() if count > 1}:
            raise BrokenError(f"one version of a photo was located by several runs that count: {several}")

    def _given_up(self) -> set[str]:
        """Return the photos that somebody has forgotten, though it may not have been told that it had succeeded."""
        with self._quiet():
            listed = records.forgotten_list(OUTPUT)
            if listed is None:
                return set()
            hashes = pq.read_table(pa.BufferReader(storage.read_bytes(f"{OUTPUT}/{listed.path}"))).column(0).to_pylist()
        photos_there = {name for name in self.store.objects if name.startswith(PHOTOS)}
        return {uri for uri in photos_there if hashlib.sha256(schema.photo_id(uri)).hexdigest() in hashes}

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """Let the world's own look at the output be no scheduling point."""
        step, self.scheduler.step = self.scheduler.step, lambda what: None  # type: ignore[method-assign]
        try:
            yield
        finally:
            self.scheduler.step = step  # type: ignore[method-assign]

    def _run_flow(self, flow: Flow) -> int:
        """Stand for the executor: a worker for each file of the plan, and the driver waits for all."""
        current = self.scheduler.current
        assert current is not None
        plan_files, stage, lost = flow.plan_files, flow.stage, flow.lost
        name = f"cluster of {current.process.name}, start {self.scheduler.now_s}"
        workers = [
            self.scheduler.start(Process(f"{name}, {index}"), "work", functools.partial(self._work, file, stage))
            for index, file in enumerate(plan_files)
        ]
        self.scheduler.wait_for(
            lambda: all(worker.is_done for worker in workers) or (lost is not None and lost.is_set()), None
        )
        for worker in workers:
            if worker.process.is_killed or worker.error is not None:  # Ray starts a task again whose process died
                file = plan_files[workers.index(worker)]
                self._work(file, stage)
        return 0

    def _work(self, file: str, stage: Stage) -> None:
        try:
            rows = pq.read_table(pa.BufferReader(storage.read_bytes(file)), schema=schema.MANIFEST).to_pylist()
        except FileNotFoundError as error:
            raise OSError(f"a plan's file is gone: {error}") from error
        for part in (rows[::2], rows[1::2]):
            made = [self._row(row, stage) for row in part]
            if made:
                stage.put_rows(photos(made))

    def _row(self, listed: dict[str, Any], stage: Stage) -> dict[str, Any]:
        own: dict[str, Any] = {
            schema.RUN_ID: stage.run_id,
            schema.MODEL_ID: "m-1",
            # Clocks of workers are anywhere.
            schema.PROCESSED_AT: dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
            + dt.timedelta(days=self._random.uniform(-99, 99)),
        }
        uri = listed[schema.URI]
        if uri == f"{PHOTOS}/{_SIDECAR}.jpg":
            return skipped_row(uri, "json", listed[schema.ETAG], **own)
        if self._random.random() < 0.1:
            return failed_row(uri, schema.ErrorCode.FETCH_FAILED, etag=listed[schema.ETAG], **own)
        return located_row(uri, 10.0, 20.0, listed[schema.ETAG], **own)

    @contextlib.contextmanager
    def _patched(self) -> Iterator[None]:
        logging.disable(logging.CRITICAL)
        with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(io.StringIO()):
            for name, function in self.store.patches().items():
                patched.setattr(storage, name, function)
            # In several threads of its own DuckDB would make a schedule another one each time.
            patched.setattr(duckdb, "connect", functools.partial(duckdb.connect, config={"threads": 1}))
            patched.setattr(lease, "time", as_time(self.scheduler))
            patched.setattr(lease, "threading", as_threading(self.scheduler))
            signals = SimpleNamespace(
                SIGUSR2=10, SIGINT=2, default_int_handler=None, signal=lambda *_: None, pthread_kill=self._interrupt
            )
            patched.setattr(lease, "signal", signals)
            patched.setattr(lease, "_machine", lambda: "")
            patched.setattr(lease, "uuid", SimpleNamespace(uuid4=self._uuid))
            checkpoint = SimpleNamespace(
                model_id="m-1",
                pointing=lambda _: checkpoint,
                hierarchy=SimpleNamespace(content_hash="h", levels=()),
                config=SimpleNamespace(preprocessing=Preprocessing(8, 8)),
            )
            patched.setattr(geotag.Checkpoint, "load", lambda *_: checkpoint)
            patched.setattr(geotag, "RunMetrics", _NoMetrics)
            patched.setattr(geotag, "_is_local", lambda *_: False)
            patched.setattr(geotag_archive, "_print_summary", lambda *_: None)
            patched.setattr(geotag, "code_version", lambda: "simulated")
            size = SimpleNamespace(cpus=2, gpus=0, largest_node_cpus=2, nodes=1)
            executor = SimpleNamespace(
                start=lambda: size, check_paths=lambda *_: None, run=self._run_flow, publish=publish.publish
            )
            patched.setattr(geotag, "executor_of", lambda _: executor)
            try:
                yield
            finally:
                logging.disable(logging.NOTSET)

    def _interrupt(self, process: Process | int, number: int) -> None:
        """Do what the loss of the lease does to the main thread: not SIGINT, which a shell's `&` lets it ignore."""
        if number == 2 or not isinstance(process, Process):
            return
        for actor in self.scheduler._actors:
            if actor.process is process and actor.name == "main":
                actor.interrupt = True

    def _uuid(self) -> Any:
        number = self._random.getrandbits(128)
        return SimpleNamespace(hex=f"{number:032x}", bytes=number.to_bytes(16))


class _NoMetrics:
    """Stands for `RunMetrics`, which has a thread."""

    def __init__(self, *_: Any) -> None:
        self.planned = 0

    def __enter__(self) -> _NoMetrics:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def set(self, *_: Any) -> None:
        """Do nothing."""

    def settle(self, *_: Any) -> None:
        """Do nothing."""


def play(seed: int, faults: Faults | None = None) -> tuple[int, str, list[str], list[str]]:
    """Play one schedule; return its seed, what was broken ("" if nothing), its trace, and how drivers ended."""
    world = World(seed, faults or Faults())
    try:
        world.run()
        for actor in world.scheduler._actors:
            if isinstance(actor.error, BrokenError):
                raise actor.error
            if actor.error is not None and actor.name == "main":
                raise BrokenError(f"{actor.process.name} ended with {actor.error!r}") from actor.error
    except Exception as error:  # noqa: BLE001 - told with its seed
        text = "".join(traceback.format_exception(error)) if not isinstance(error, BrokenError) else str(error)
        return seed, text, world.scheduler.trace, world.ends
    return seed, "", world.scheduler.trace, world.ends


def kept_trace(folder: Path, seed: int, trace: Sequence[str]) -> Path:
    """Write a schedule's trace into a file, for whoever looks into it."""
    path = folder / f"{seed}.trace"
    os.makedirs(folder, exist_ok=True)
    path.write_text("\n".join(trace))
    return path
