"""What a run tells Prometheus: on a cluster through every node's Ray agent, on one machine by a page of its own.

Its name there is `ray_graticule_…`, in both. Labels name the run, a status, a code, a stage; never a photo. Counters
are updated a block at a time, in the process that did the work, except photos, which the driver counts. The agents keep
counters of processes that have ended.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.run.tally import Outcomes, Progress

_REFRESH_S = 4.0
"""Ray's agents forget a gauge that has not been set for some 20 s."""
_RUN, _STATUS, _CODE, _STAGE = schema.RUN_ID, schema.STATUS, schema.ERROR_CODE, "stage"
_BOUNDARIES_S = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
"""Of a fetch from a local disk to one that was tried again until its budget was spent."""


@dataclass(frozen=True)
class Metric:
    """What is exported under one name."""

    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...] = (_RUN,)


METRICS: Mapping[str, Metric] = {
    "graticule_photos_total": Metric("counter", "photos whose row is staged", (_RUN, _STATUS, _CODE)),
    "graticule_photos_read_total": Metric("counter", "photos that readers are done with, again after a process died"),
    "graticule_fetched_bytes_total": Metric("counter", "bytes of photos that were fetched"),
    "graticule_stage_seconds": Metric(
        "histogram", "what a stage took: fetch and decode a photo, engine a call, staging a part", (_RUN, _STAGE)
    ),
    "graticule_engine_busy_seconds_total": Metric("counter", "time in which an engine computed; all else it was idle"),
    "graticule_engine_photos_total": Metric("counter", "photos that engines were given"),
    "graticule_engine_slots_total": Metric("counter", "photos that these batches had room for"),
    "graticule_photos_planned": Metric("gauge", "photos of this run, those staged before among them"),
    "graticule_photos_staged": Metric("gauge", "photos of this run that have their row"),
    "graticule_photos_per_second": Metric("gauge", "photos done a second, of late"),
    "graticule_left_seconds": Metric("gauge", "how long the rest takes at that speed"),
    "graticule_photos_waiting": Metric("gauge", "photos that wait for a stage or are in it", (_RUN, _STAGE)),
    "graticule_silent_seconds": Metric("gauge", "for how long no photo was read, located or staged"),
    "graticule_silence_limit_seconds": Metric("gauge", "after how much silence the run ends by itself"),
    "graticule_lease_age_seconds": Metric("gauge", "since the output's lease was last renewed"),
    "graticule_run_start_timestamp_seconds": Metric("gauge", "when the run was started"),
    "graticule_last_success_timestamp_seconds": Metric("gauge", "when a run over this output last finished"),
}
"""Everything that Graticule exports of a run, by the name without the prefix `ray_`."""


class _Instruments(Protocol):
    """Where values go."""

    def count(self, name: str, amount: float, labels: dict[str, str]) -> None: ...

    def set(self, name: str, value: float, labels: dict[str, str]) -> None: ...

    def unset(self, name: str, labels: dict[str, str]) -> None: ...

    def observe(self, name: str, value: float, labels: dict[str, str]) -> None: ...


class _RayAgents:
    """Values go to this node's Ray agent; of a name each process has one instrument: a second would be a stranger's."""

    @functools.cache  # noqa: B019 - there is one for as long as the process lives
    def _instrument(self, name: str) -> Any:
        import ray.util.metrics as ray_metrics

        metric = METRICS[name]
        if metric.kind == "histogram":
            return ray_metrics.Histogram(name, metric.description, _BOUNDARIES_S, metric.labels)
        kind = ray_metrics.Counter if metric.kind == "counter" else ray_metrics.Gauge
        return kind(name, metric.description, metric.labels)

    def count(self, name: str, amount: float, labels: dict[str, str]) -> None:
        self._instrument(name).inc(amount, labels)

    def set(self, name: str, value: float, labels: dict[str, str]) -> None:
        self._instrument(name).set(value, labels)

    def unset(self, name: str, labels: dict[str, str]) -> None:
        """Do nothing: agents forget what is not set again."""

    def observe(self, name: str, value: float, labels: dict[str, str]) -> None:
        self._instrument(name).observe(value, labels)


class _Page:
    """Values are kept in this process, which may serve them as Prometheus' text."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry

        self._registry = CollectorRegistry()
        self._port: int | None = None

    @functools.cache  # noqa: B019 - as above
    def _instrument(self, name: str) -> Any:
        from prometheus_client import Counter, Gauge, Histogram

        metric, full_name = METRICS[name], f"ray_{name}"
        if metric.kind == "histogram":
            return Histogram(
                full_name, metric.description, metric.labels, buckets=_BOUNDARIES_S, registry=self._registry
            )
        kind = Counter if metric.kind == "counter" else Gauge
        return kind(full_name, metric.description, metric.labels, registry=self._registry)

    def count(self, name: str, amount: float, labels: dict[str, str]) -> None:
        self._instrument(name).labels(**labels).inc(amount)

    def set(self, name: str, value: float, labels: dict[str, str]) -> None:
        self._instrument(name).labels(**labels).set(value)

    def unset(self, name: str, labels: dict[str, str]) -> None:
        with contextlib.suppress(KeyError):
            self._instrument(name).remove(*(labels[label] for label in METRICS[name].labels))

    def observe(self, name: str, value: float, labels: dict[str, str]) -> None:
        self._instrument(name).labels(**labels).observe(value)

    def serve(self, port: int) -> None:
        from prometheus_client import start_http_server

        if self._port == port:
            return
        try:
            start_http_server(port, addr="127.0.0.1", registry=self._registry)
        except (OSError, OverflowError) as error:
            raise ValueError(f"--metrics-port {port}: can't be served there ({error}): give a free port") from error
        self._port = port


_instruments: _Instruments = _RayAgents()


def keep_here(port: int | None) -> None:
    """Keep this process' metrics in it from now on, and serve them at a port of this machine, if one is given.

    ValueError where the port can't be used.
    """
    global _instruments
    if not isinstance(_instruments, _Page):
        _instruments = _Page()
    if port is not None:
        _instruments.serve(port)


def _count(name: str, amount: float, **labels: str) -> None:
    if amount > 0:  # Ray refuses to count nothing
        _instruments.count(name, amount, labels)


@dataclass(frozen=True)
class WorkerMetrics:
    """What a worker process of a run measures."""

    run_id: str

    def count_read(self, read: pa.Table) -> None:
        """Count a block of `schema.READ` that was just read: 3 µs a histogram's entry, of some 8 ms a photo."""
        got = pc.is_valid(read.column(schema.CONTENT_HASH))
        size_bytes = pc.sum(pc.filter(read.column(schema.SIZE_BYTES), got)).as_py() or 0
        _count("graticule_photos_read_total", read.num_rows, run_id=self.run_id)
        _count("graticule_fetched_bytes_total", size_bytes, run_id=self.run_id)
        for column, stage in ((schema.FETCH_SECONDS, "fetch"), (schema.DECODE_SECONDS, "decode")):
            for seconds in read.column(column).drop_null().to_pylist():
                self._observe(stage, seconds)

    def count_engine(self, photos: int, slots: int, call_seconds: list[float]) -> None:
        """Count calls of the engine: their photos, what they had room for, how long each took."""
        _count("graticule_engine_photos_total", photos, run_id=self.run_id)
        _count("graticule_engine_slots_total", slots, run_id=self.run_id)
        _count("graticule_engine_busy_seconds_total", sum(call_seconds), run_id=self.run_id)
        for seconds in call_seconds:
            self._observe("engine", seconds)

    def observe_staging(self, seconds: float) -> None:
        """Note how long the put of a part took."""
        self._observe("staging", seconds)

    def _observe(self, stage: str, seconds: float) -> None:
        _instruments.observe("graticule_stage_seconds", seconds, {_RUN: self.run_id, _STAGE: stage})


@dataclass
class RunMetrics:
    """What the driver says of its run, in the body of a `with` statement, after its executor has started.

    Attributes:
        run_id: names the run.
        planned: its photos.
        staged_before: how those ended that an earlier start of the run has staged, and counted.
        lease_age_s: returns how long ago the lease was renewed.
    """

    run_id: str
    planned: int
    staged_before: Outcomes
    lease_age_s: Callable[[], float]
    _values: dict[tuple[str, str], float] = field(default_factory=dict, init=False)
    _counted: dict[tuple[str, str], int] = field(default_factory=dict, init=False)
    _seen: dict[tuple[str, tuple[str, str]], int] = field(default_factory=dict, init=False)
    _is_settled: bool = field(default=False, init=False)
    _changing: threading.Lock = field(default_factory=threading.Lock, init=False)
    _finished: threading.Event = field(default_factory=threading.Event, init=False)

    def __enter__(self) -> RunMetrics:
        self.set("graticule_photos_planned", self.planned)
        self._say_staged()
        self._refresh()
        self._keeper = threading.Thread(target=self._keep, name="gauges", daemon=True)
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finished.set()
        self._keeper.join()

    @property
    def staged(self) -> int:
        """Photos that have their row, as far as was told."""
        return sum(self.staged_before.values()) + sum(self._counted.values())

    def set(self, name: str, value: float | None, stage: str = "") -> None:
        """Let a gauge say `value` from now on, or nothing more; `stage` is its label, if it has that."""
        with self._changing:
            if value is None:
                self._values.pop((name, stage), None)
                _instruments.unset(name, self._labels(stage))
            else:
                self._values[name, stage] = value
                _instruments.set(name, value, self._labels(stage))

    def take(self, progress: Progress) -> None:
        """Count what was done since the last time; what comes late, after newer news, counts nothing twice."""
        with self._changing:
            if self._is_settled:
                return
            for outcome, photos in progress.outcomes.items():
                key = (progress.counted_by, outcome)
                self._count_photos(outcome, photos - self._seen.get(key, 0))
                self._seen[key] = max(photos, self._seen.get(key, 0))
        let_pass = progress.staged + progress.waiting
        self.set("graticule_photos_waiting", max(0, progress.read - progress.located), "engine")
        self.set("graticule_photos_waiting", max(0, progress.located - let_pass), "staging")
        self._say_staged()

    def settle(self, outcomes: Outcomes) -> None:
        """Count what is missing of the run's photos: copies' answers, and what a lost worker could not tell."""
        with self._changing:
            self._is_settled = True
            for outcome, photos in outcomes.items():
                self._count_photos(outcome, photos - self.staged_before.get(outcome, 0) - self._counted.get(outcome, 0))
        self._say_staged()

    def _count_photos(self, outcome: tuple[str, str], photos: int) -> None:
        if photos > 0:
            self._counted[outcome] = self._counted.get(outcome, 0) + photos
            _count("graticule_photos_total", photos, run_id=self.run_id, status=outcome[0], error_code=outcome[1])

    def _say_staged(self) -> None:
        self.set("graticule_photos_staged", self.staged)

    def _labels(self, stage: str) -> dict[str, str]:
        return {_RUN: self.run_id} | ({_STAGE: stage} if stage else {})

    def _keep(self) -> None:
        while not self._finished.wait(_REFRESH_S):
            self._refresh()

    def _refresh(self) -> None:
        self.set("graticule_lease_age_seconds", self.lease_age_s())
        with self._changing:
            for (name, stage), value in self._values.items():
                _instruments.set(name, value, self._labels(stage))
