"""A source that goes away while its photos are read: the run ends, and none of the failures passes for an answer."""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pipeline import schema
from pipeline.cluster.watchdog import FlowEndedError
from pipeline.read.fetch import FetchSettings
from pipeline.run.tally import Fetches
from pipeline.schema import ErrorCode

log = logging.getLogger(__name__)

_MAY_BE_THE_MANIFESTS = (ErrorCode.NOT_FOUND, ErrorCode.FORBIDDEN)
"""Of a photo that only a manifest names, these are the manifest's affair: it may never have been there."""
_HEARTBEAT_S = 1.0


class SourceGoneError(FlowEndedError):
    """Nearly all photos that were read last failed to be fetched; nothing of it is published."""


class Heartbeat:
    """Tells a run's tally how photos came to be read, every second at most.

    Photos that this very run has listed, those whose URI begins with one of `listed_below`, are there: that one of them
    is not found or forbidden speaks against the source.
    """

    def __init__(self, tell: Callable[[Fetches], object], listed_below: tuple[str, ...]) -> None:
        self._tell, self._listed_below = tell, listed_below
        self._begin()

    def __call__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take note of photos' rows as their reader made them."""
        for row in rows:
            self._photos += 1
            code, uri = row.get(schema.ERROR_CODE), row[schema.URI]
            if code in schema.FETCH_ERRORS and (
                code not in _MAY_BE_THE_MANIFESTS or uri.startswith(self._listed_below)
            ):
                self._failed[code] += 1
                self._example = f"{uri}: {row[schema.ERROR_MESSAGE]}"
        if time.monotonic() - self._told_s >= _HEARTBEAT_S:
            self.tell()

    def tell(self) -> None:
        """Tell what was not told yet."""
        self._tell(Fetches(self._photos, dict(self._failed), self._example))
        self._begin()

    def _begin(self) -> None:
        self._photos, self._example, self._told_s = 0, "", time.monotonic()
        self._failed: collections.Counter[str] = collections.Counter()


def check(last: Fetches, settings: FetchSettings, is_over: bool = False, failed_before: int = 0) -> None:
    """Raise SourceGoneError where the photos that were read last say that their source went away.

    Fewer than `gone_after` say it only where the run `is_over`. Then it is maybe a few photos that fail, each for
    itself: where an earlier start of this run failed to fetch as many, `failed_before`, and yet they were listed anew,
    they are taken for what they are, or a run of them alone would end so every night. Those that are not found stay out
    of this: what is gone for good is not listed anew.
    """
    failed = last.failed
    if last.photos < settings.gone_after:
        if not is_over:
            return
        if failed_before >= failed:
            failed = last.failed_by_code.get(ErrorCode.NOT_FOUND, 0)
    if failed > settings.gone_share * last.photos:
        codes = ", ".join(f"{count} {code}" for code, count in sorted(last.failed_by_code.items()))
        raise SourceGoneError(
            f"the source went away: {failed} of the last {last.photos} photos could not be fetched ({codes}), such as"
            f" {schema.printable(last.example)}. Nothing of this run is published; what it read before stays staged."
            " When the source is there again, run the same command again; if these failures are the photos' own, with"
            " --fetch.gone-share 1"
        )


def check_at_end(last: Fetches, settings: FetchSettings, failed_before: int) -> None:
    """Say in the log and raise what `check` finds when all photos were read."""
    try:
        check(last, settings, is_over=True, failed_before=failed_before)
    except SourceGoneError as error:
        log.critical("%s", error)
        raise
