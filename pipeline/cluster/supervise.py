"""Who looks on while a run's flow goes: what tells how far it is, the watchdog, and what ends it in good order."""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from pipeline.cluster import progress, source_gone
from pipeline.cluster.metrics import RunMetrics
from pipeline.cluster.watchdog import Watchdog
from pipeline.read.fetch import FetchSettings
from pipeline.run.staging import Stage
from pipeline.run.tally import Progress

log = logging.getLogger(__name__)

_DRAIN_LIMIT_S = 20.0
"""Schedulers kill what has not ended some 30 s after SIGTERM."""
_LOSS_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Watch:
    """Who looks on while a run goes: metrics, and a watchdog that ends it when nothing moves for `max_silence_s`."""

    metrics: RunMetrics
    max_silence_s: float


class Helm(Protocol):
    """Where a flow can be watched and ended, wherever its processes are."""

    def progress(self) -> Progress | None:
        """Return what was done so far, None where that can't be told now."""

    def close(self) -> None:
        """Let no more photos be begun."""

    def seen(self) -> str:
        """Say in words what there is to see of the processes: may take long, or never return."""


@contextlib.contextmanager
def watched(
    helm: Helm, watch: Watch | None, stage: Stage, fetch: FetchSettings, lost: threading.Event | None
) -> Iterator[None]:
    """Within its body a flow goes: it is looked on, and ended in good order when told to stop or its lease is lost."""
    with watchdog(helm, watch, stage, fetch), sigterm_drains(helm), loss_closes(helm, lost):
        yield


@contextlib.contextmanager
def watchdog(helm: Helm, watch: Watch | None, stage: Stage, fetch: FetchSettings) -> Iterator[None]:
    """Where somebody looks on, keep metrics up to date, and end the flow when nothing moves or the source went away."""
    if watch is None:
        yield
        return

    metrics = watch.metrics
    told = progress.RunProgress(metrics.planned, metrics.staged_before, time.monotonic())

    def look() -> Progress | None:
        found = helm.progress()
        if found is None:
            return None
        metrics.take(found)
        told.take(found, time.monotonic())
        metrics.set("graticule_photos_per_second", told.photos_per_second)
        metrics.set("graticule_left_seconds", told.left_s)
        return found

    def judge() -> Progress | None:
        found = look()
        if found is not None:
            source_gone.check(found.last, fetch)
        return found

    def report(silent_s: float) -> None:
        metrics.set("graticule_silent_seconds", silent_s)

    report(0.0)
    metrics.set("graticule_silence_limit_seconds", watch.max_silence_s)
    seen = functools.partial(_what_is_seen, metrics, stage, helm)
    with progress.told(told):
        try:
            with Watchdog(watch.max_silence_s, judge, seen, report):
                yield
        except KeyboardInterrupt:  # what was staged before the stop counts
            look()
            raise
        else:
            look()
        finally:
            for name in ("silent_seconds", "silence_limit_seconds", "photos_per_second", "left_seconds"):
                metrics.set(f"graticule_{name}", None)


def _what_is_seen(metrics: RunMetrics, stage: Stage, helm: Helm) -> str:
    return f"{stage.staged_count()} of {metrics.planned} photos are staged; {helm.seen()}"


@contextlib.contextmanager
def sigterm_drains(helm: Helm) -> Iterator[None]:
    """Let SIGTERM end the flow in good order: no more photos are begun, those that were are staged.

    KeyboardInterrupt after that; or at once, at a second SIGTERM, or when it takes longer than `_DRAIN_LIMIT_S`.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    asked, finished = threading.Event(), threading.Event()

    def ask(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    def watch() -> None:
        asked.wait()
        if finished.is_set():
            return
        log.warning("told to stop: what is begun is staged first, in at most %.0f s", _DRAIN_LIMIT_S)
        helm.close()
        if not finished.wait(_DRAIN_LIMIT_S):
            log.warning("that takes too long: the rest is left to the next run")
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    watcher = threading.Thread(target=watch, name="stop", daemon=True)
    watcher.start()
    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
        if asked.is_set():
            raise KeyboardInterrupt
    finally:
        finished.set()
        signal.signal(signal.SIGTERM, before)
        asked.set()


@contextlib.contextmanager
def loss_closes(helm: Helm, lost: threading.Event | None) -> Iterator[None]:
    """Let no more photos be begun once the run's lease is lost: the workers' time is then spent in vain."""
    if lost is None:
        yield
        return
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(_LOSS_INTERVAL_S):
            if lost.is_set():
                helm.close()
                return

    watcher = threading.Thread(target=watch, name="lease loss", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()
