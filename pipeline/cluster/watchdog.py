"""A run that makes no progress ends by itself, says why, and can be resumed."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType

log = logging.getLogger(__name__)

_LONGEST_INTERVAL_S = 4.0
_DESCRIBE_LIMIT_S = 10.0
_END_LIMIT_S = 60.0
_LAST_LOOK_LIMIT_S = 6.0
"""A look that is under way is waited for: Ray ends the process, with 1, where it is asked after it was shut down."""
_BEGINNING_S = 1.0
"""The body has begun by then: a signal that found the main thread before it would leave it as another exception."""
_SIGNAL = signal.SIGUSR1
"""Not SIGINT, which a command started with `&` ignores, nor SIGTERM, at which a run first stages what is begun."""


class FlowEndedError(Exception):
    """The run ends here, for the reason that its text says and that has been logged; what was staged stays."""


class NoProgressError(FlowEndedError):
    """Nothing moved for longer than the user lets it; what was staged stays."""


class Watchdog:
    """Ends the body of a `with` statement when `look` has found nothing new for `limit_s`, or raises FlowEndedError.

    The main thread, in the body, gets an exception, which leaves the body as that error. Where it does not come
    through, because the thread hangs in native code, the process ends with exit code 1 after `end_limit_s` more.
    """

    def __init__(
        self,
        limit_s: float,
        look: Callable[[], object],
        describe: Callable[[], str] = lambda: "",
        report: Callable[[float], None] = lambda _: None,
        end_limit_s: float = _END_LIMIT_S,
    ) -> None:
        """`look` returns what has been done so far: anything that differs from the last is progress, None is not.

        It and `describe`, which says in words what there is to see, may hang: each has a thread of its own. `report` is
        told at every turn for how long there has been no progress.
        """
        self._limit_s, self._end_limit_s = limit_s, end_limit_s
        self._look, self._describe, self._report = look, describe, report
        self._interval_s = min(_LONGEST_INTERVAL_S, limit_s / 4)
        self._news = threading.Event()
        self._finished = threading.Event()
        self._deciding = threading.Lock()
        self._error: FlowEndedError | None = None

    def __enter__(self) -> Watchdog:
        self._is_main = threading.current_thread() is threading.main_thread()  # which alone gets signals
        if self._is_main:
            self._before = signal.signal(_SIGNAL, signal.default_int_handler)
        self._looker = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._looker.start()
        threading.Thread(target=self._time, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._deciding:
                self._finished.set()
            if self._is_main:
                signal.signal(_SIGNAL, self._before)
        except KeyboardInterrupt:  # it had decided just before the body's end
            self._finished.set()
            kind = KeyboardInterrupt
        self._looker.join(_LAST_LOOK_LIMIT_S)
        if self._error and kind is not None and issubclass(kind, KeyboardInterrupt):
            raise self._error from None

    def _watch(self) -> None:
        seen: object = None
        while not self._finished.is_set():
            try:
                found = self._look()
            except FlowEndedError as error:
                if not self._finished.wait(_BEGINNING_S) and self._give_up(error):
                    self._end()
                return
            if found is not None and found != seen:
                seen = found
                self._news.set()
            self._finished.wait(self._interval_s)

    def _time(self) -> None:
        silent_s, last_s = 0.0, time.monotonic()
        while not self._finished.wait(self._interval_s):
            now_s = time.monotonic()
            # At most two turns at once: the time in which this process was itself stopped is nobody's silence.
            silent_s = 0.0 if self._news.is_set() else silent_s + min(now_s - last_s, 2 * self._interval_s)
            last_s = now_s
            self._news.clear()
            self._report(silent_s)
            if silent_s >= self._limit_s:
                if self._decides():
                    self._end()
                    return
                silent_s = 0.0

    def _decides(self) -> bool:
        """Give the body up, unless it is over or something moves in the last moment."""
        seen: list[str] = []
        describer = threading.Thread(target=lambda: seen.append(self._describe()), name="what is seen", daemon=True)
        describer.start()
        describer.join(_DESCRIBE_LIMIT_S)
        if self._news.is_set():
            return False
        return self._give_up(
            NoProgressError(
                f"no photo was read, located or staged for {self._limit_s / 60:g} minutes (--max-silence-minutes):"
                f" {seen[0] if seen else 'neither cluster nor store answers'}. What was staged stays:"
                " run the same command again"
            )
        )

    def _give_up(self, error: FlowEndedError) -> bool:
        """End the body by `error`, unless it is over."""
        with self._deciding:
            if self._finished.is_set() or self._error is not None:
                return False
            self._error = error
            log.critical("%s", error)
            if self._is_main:
                signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)
        return True

    def _end(self) -> None:
        if not self._finished.wait(self._end_limit_s):
            log.critical("it does not stop within %.0f s: this process ends here", self._end_limit_s)
            logging.shutdown()
            os._exit(1)
