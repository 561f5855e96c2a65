"""What a run tells people while it goes: how far it is, how fast, for how long still, and what it waits for."""

from __future__ import annotations

import collections
import contextlib
import logging
import sys
import threading
from collections.abc import Iterator, Mapping

from pipeline.run.tally import Outcomes, Progress
from pipeline.schema import Status

log = logging.getLogger(__name__)

_LOG_INTERVAL_S = 30.0
_LINE_INTERVAL_S = 0.5
_WINDOW_S = 120.0
"""The speed is that of so long a time: long enough to be steady, short enough to show what has changed."""
_LEAST_WINDOW_S = 2.0


class RunProgress:
    """How far a run has come, in words and numbers; told by one thread and asked by others.

    A photo is done when the engine's stage has let it pass or it has its row: rows are staged by the thousand, which
    would be too seldom for whoever waits.
    """

    def __init__(self, planned: int, staged_before: Outcomes, now_s: float) -> None:
        """Begin at `now_s`, of a clock that never goes back, with what earlier starts of the run have staged."""
        self._planned = planned
        self._before = sum(staged_before.values())
        self._failed_before = _failed(staged_before)
        self._seen: Progress | None = None
        self._done = self._before
        self._history: collections.deque[tuple[float, int]] = collections.deque([(now_s, self._before)])

    def take(self, progress: Progress, now_s: float) -> None:
        """Take news: what was done until `now_s`."""
        here = max(progress.located, progress.staged + progress.waiting)
        # Photos of a process that died are located again, and counted again: never more than there are.
        self._done = max(self._done, min(self._planned, self._before + here))
        self._seen = progress
        self._history.append((now_s, self._done))
        while now_s - self._history[1][0] > _WINDOW_S:
            self._history.popleft()

    @property
    def photos_per_second(self) -> float:
        """How many photos a second were done of late; 0 where that can't be told yet."""
        (first_s, first), (last_s, last) = self._history[0], self._history[-1]
        return (last - first) / (last_s - first_s) if last_s - first_s >= _LEAST_WINDOW_S else 0.0

    @property
    def left_s(self) -> float | None:
        """How long the rest takes at that speed; None where that can't be told."""
        speed = self.photos_per_second
        return (self._planned - self._done) / speed if speed > 0 else None

    def words(self) -> str:
        """Return all of it in a line."""
        share = self._done / self._planned if self._planned else 1.0
        said = [f"{self._done:,} of {self._planned:,} photos done ({share:.0%})"]
        if speed := self.photos_per_second:
            said.append(f"{speed:,.1f} photos/s")
        if self.left_s is not None and self._done < self._planned:
            said.append(f"about {_duration(self.left_s)} left")
        if failed := self._failed_before + (_failed(self._seen.outcomes) if self._seen else 0):
            said.append(f"{failed:,} failed")
        return ", ".join(said) + f"; {self._phase()}"

    def _phase(self) -> str:
        seen = self._seen
        if seen is None:
            return "waiting for Ray to start the workers"
        if self._done >= self._planned:
            return "staging the last rows"
        if not seen.engines:
            read = f", {seen.read:,} photos are read meanwhile" if seen.read else ""
            return f"waiting for the engine to be loaded or compiled{read}"
        return "reading photos and locating them" if seen.read else "waiting for the first photos to be read"


@contextlib.contextmanager
def told(progress: RunProgress) -> Iterator[None]:
    """Tell people within its body: on a terminal in one line that changes, elsewhere in a line of the log now and then.

    The log's other lines go above that line.
    """
    finished = threading.Event()
    with contextlib.ExitStack() as shown:
        if sys.stderr.isatty():
            from rich.console import Console

            status = shown.enter_context(Console(stderr=True).status(progress.words()))

            def tell() -> None:
                while not finished.wait(_LINE_INTERVAL_S):
                    status.update(progress.words())

        else:

            def tell() -> None:
                while not finished.wait(_LOG_INTERVAL_S):
                    log.info("%s", progress.words())

        teller = threading.Thread(target=tell, name="teller", daemon=True)
        teller.start()
        try:
            yield
        finally:
            finished.set()
            teller.join()
    log.info("%s", progress.words())


def _failed(outcomes: Mapping[tuple[str, str], int]) -> int:
    return sum(photos for (status, _), photos in outcomes.items() if status == Status.FAILED)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if minutes < 90:
        return f"{minutes} min"
    hours = round(seconds / 3600)
    return f"{hours} h" if hours < 48 else f"{round(hours / 24)} days"
