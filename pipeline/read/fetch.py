"""A listed photo becomes its bytes, wherever it lies, or the one error code that says why not.

What may be of the moment (a busy or broken store, a connection that stalls or breaks off, a body that is not as long as
it should be) is tried again until the photo's budget is spent; a photo that isn't there or is forbidden is not.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import tenacity

from pipeline import schema, storage
from pipeline.decode import kinds
from pipeline.read import archive_members
from pipeline.read.budget import Share
from pipeline.schema import ErrorCode, PhotoError
from pipeline.sources import roots
from pipeline.storage import web
from pipeline.storage.clients import AskerRefusedError, NoBucketError, NoCredentialsError, RefusedError

_Wanted = TypeVar("_Wanted")
_Got = TypeVar("_Got")

_FETCHES_EACH = 16
_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 10.0

_FINAL: tuple[tuple[type[Exception], ErrorCode], ...] = (
    (storage.TooLargeError, ErrorCode.TOO_LARGE),
    # Credentials, clocks and buckets are nobody's photo: they pass, whatever becomes of this attempt.
    (AskerRefusedError, ErrorCode.FETCH_FAILED),
    (NoBucketError, ErrorCode.FETCH_FAILED),
    (NoCredentialsError, ErrorCode.FETCH_FAILED),
    (FileNotFoundError, ErrorCode.NOT_FOUND),
    (PermissionError, ErrorCode.FORBIDDEN),
    (IsADirectoryError, ErrorCode.UNSUPPORTED_FORMAT),
    (RefusedError, ErrorCode.FETCH_FAILED),
    (storage.ChangedError, ErrorCode.FETCH_FAILED),  # an archive was replaced: the next run lists it anew
)
"""Errors that no further attempt will change, with their codes; the first that fits."""


@dataclass(frozen=True)
class FetchSettings:
    """How photos are fetched.

    Attributes:
        budget_s: how long one photo is tried; the attempt under way then may take attempt_timeout_s more.
        attempt_timeout_s: an attempt ends when no byte comes for so long.
        budget_bytes: photos' bytes in each reading process, on their way or there and not decoded yet; a photo that is
            larger goes alone.
        concurrent: photos on their way at once in the whole run; None for 16 in each reading process.
        allow_http: fetch what manifests name on web servers, from public addresses only.
        gone_after: so many photos, those read last, tell whether the source has gone away; a shorter run is judged as
            it ends.
        gone_share: the run ends, publishing nothing, when more than this share of them failed to be fetched; 1 for
            never.
    """

    budget_s: float = 120.0
    attempt_timeout_s: float = 30.0
    budget_bytes: int = 256 << 20
    concurrent: int | None = None
    allow_http: bool = False
    gone_after: int = 200
    gone_share: float = 0.9

    def __post_init__(self) -> None:
        for name, value in (("budget-s", self.budget_s), ("attempt-timeout-s", self.attempt_timeout_s)):
            if not value > 0:
                raise ValueError(f"--fetch.{name} {value:g}: give more than 0 seconds")
        if self.budget_bytes < 1:
            raise ValueError(f"--fetch.budget-bytes {self.budget_bytes}: give at least 1, and better some 100000000")
        if self.concurrent is not None and self.concurrent < 1:
            raise ValueError(f"--fetch.concurrent {self.concurrent}: give at least 1")
        if self.gone_after < 1:
            raise ValueError(f"--fetch.gone-after {self.gone_after}: give at least 1")
        if not 0 < self.gone_share <= 1:
            raise ValueError(f"--fetch.gone-share {self.gone_share:g}: give a share above 0, at most 1")


def shares(concurrent: int | None, readers: int) -> tuple[int, int]:
    """Return how many of `readers` reading processes may run at once, and the fetches of each, within `concurrent`."""
    if concurrent is None:
        return readers, _FETCHES_EACH
    readers = min(readers, concurrent)
    return readers, min(concurrent // readers, _FETCHES_EACH)


class _NoRoomError(Exception):
    """A photo is larger than was listed, and others that were begun before it are to be decoded first."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.size_bytes = size_bytes


class Fetcher:
    """Fetches photos, rows of `schema.MANIFEST` as dictionaries; any thread may call it.

    `may_connect` is the gate before web servers, see `web.is_public`; `local_roots` the one before this machine's
    files, see `roots.is_allowed`, with None for an open one. `judge` is given the first 64 KiB of a larger photo and
    where it was listed, and raises PhotoError where the rest need not be fetched. What is no photo by its name is asked
    for these alone first, and for all of it only where they are a photo's: a store then sends no video in vain.
    """

    def __init__(
        self,
        settings: FetchSettings,
        max_bytes: int,
        may_connect: Callable[[web.Address, int], bool] = web.is_public,
        local_roots: Sequence[str] | None = None,
        judge: Callable[[bytes, str], None] = lambda *_: None,
    ) -> None:
        self._settings = settings
        self._max_bytes = max_bytes
        self._local_roots = local_roots
        self._judge = judge
        self._web = web.Web(may_connect) if settings.allow_http else None
        # The clients' own retries are off for these reads. They would not count towards the budget, and obstore's go on
        # in the middle of a body with a range request, which a store that gave a wrong length answers with 416.
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_be_of_the_moment),
            wait=_wait_s,
            stop=tenacity.stop_before_delay(settings.budget_s),
            retry_error_callback=_give_up,
        )

    def __call__(self, listed: Mapping[str, Any], share: Share | None = None) -> storage.Blob:
        """Return the photo's bytes and the version read; PhotoError where it can't be had.

        `share` is grown where the photo is larger than it was listed; where that has to wait, nothing is held.
        """
        size_bytes = listed[schema.SIZE_BYTES]
        is_too_large = size_bytes is not None and size_bytes > self._max_bytes
        is_named_otherwise = kinds.is_named_otherwise(listed[schema.URI])
        if is_named_otherwise and (is_too_large or self._is_asked_first(listed)):
            self._tried(self._look, listed)  # a film is no photo, however large it is
        if is_too_large:
            raise PhotoError(ErrorCode.TOO_LARGE, f"{size_bytes} bytes, more than the limit of {self._max_bytes}")
        while True:
            try:
                return self._tried(functools.partial(self._attempt, share=share), listed)
            except PhotoError as error:
                if is_named_otherwise and isinstance(error.__cause__, storage.TooLargeError):
                    self._tried(self._look, listed)
                raise
            except _NoRoomError as error:
                assert share is not None
                # Not with a connection held open meanwhile, nor at the cost of the photo's own time.
                share.wait_for(error.size_bytes)

    def together(
        self, group: Sequence[Mapping[str, Any]], share: Share | None = None
    ) -> list[storage.Blob | PhotoError]:
        """Return the same of each photo of a group of `archive_members.lie_together`, several by one request.

        A request that fails in the end fails for all of them: it is the same archive that each would have asked.
        """
        if len(group) == 1 or any(row[schema.STORED_BYTES] > self._max_bytes for row in group):
            return [self._outcome(row, share) for row in group]
        try:
            photos: list[bytes | PhotoError] = self._tried(self._attempt_together, group)
        except PhotoError as error:
            return [error.without_frames()] * len(group)
        return [
            photo if isinstance(photo, PhotoError) else storage.Blob(photo, row[schema.ETAG] or "")
            for row, photo in zip(group, photos, strict=True)
        ]

    def most_bytes(self, group: Sequence[Mapping[str, Any]]) -> int:
        """Return how many bytes are held, as far as the listing tells, to fetch a group of `lie_together`.

        Of a photo whose size is not listed its first bytes; it is asked for the rest once its size is known.
        """
        if len(group) > 1:
            return int(group[-1][schema.OFFSET_BYTES] - group[0][schema.OFFSET_BYTES] + group[-1][schema.STORED_BYTES])
        (row,) = group
        size_bytes: int | None = row[schema.SIZE_BYTES]
        if size_bytes is None:
            return storage.HEAD_BYTES
        # A packed member is held beside what it unpacks to. What is too large is not fetched at all.
        held_bytes = size_bytes + (row[schema.STORED_BYTES] or 0 if archive_members.is_packed(row) else 0)
        return held_bytes if size_bytes <= self._max_bytes else 0

    def _outcome(self, listed: Mapping[str, Any], share: Share | None) -> storage.Blob | PhotoError:
        try:
            return self(listed, share)
        except PhotoError as error:
            return error.without_frames()

    def _tried(self, attempt: Callable[[_Wanted, float], _Got], wanted: _Wanted) -> _Got:
        deadline_s = time.monotonic() + self._settings.budget_s
        try:
            got: _Got = self._retrying(attempt, wanted, deadline_s)
        except tuple(kind for kind, _ in _FINAL) as error:
            code = next(code for kind, code in _FINAL if isinstance(error, kind))
            raise PhotoError(code, str(error)) from error
        return got

    def _is_asked_first(self, listed: Mapping[str, Any]) -> bool:
        """Whether a file's first bytes are asked for alone: each request that breaks off costs a connection."""
        uri, size_bytes = listed[schema.URI], listed[schema.SIZE_BYTES]
        if listed[schema.CONTAINER_URI] is not None or (size_bytes is not None and size_bytes <= storage.HEAD_BYTES):
            return False
        return not web.is_web(uri) and storage.is_remote(uri)

    def _look(self, listed: Mapping[str, Any], deadline_s: float) -> None:
        """Have the first bytes judged, and nothing more; of a web server's file nothing is asked."""
        uri, container_uri = listed[schema.URI], listed[schema.CONTAINER_URI]
        if web.is_web(uri):
            return
        if container_uri is None:
            self._check_name(uri)
        with storage.one_attempt(self._settings.attempt_timeout_s, deadline_s):
            if container_uri is None:
                head = storage.read_range(uri, 0, storage.HEAD_BYTES)
            else:
                part = (listed[schema.OFFSET_BYTES], listed[schema.STORED_BYTES], listed[schema.CONTAINER_ETAG])
                head = archive_members.read_head(container_uri, *part)
        if head:
            self._judge(head, uri)

    def _attempt_together(self, group: Sequence[Mapping[str, Any]], deadline_s: float) -> list[bytes | PhotoError]:
        with storage.one_attempt(self._settings.attempt_timeout_s, deadline_s):
            return archive_members.read_together(group)

    def _attempt(self, listed: Mapping[str, Any], deadline_s: float, share: Share | None) -> storage.Blob:
        def intake(head: bytes, size_bytes: int) -> None:
            self._judge(head, listed[schema.URI])
            if share is not None and not share.has_grown(size_bytes):
                raise _NoRoomError(size_bytes)

        uri, container_uri = listed[schema.URI], listed[schema.CONTAINER_URI]
        timeout_s = self._settings.attempt_timeout_s
        if web.is_web(uri):
            if self._web is None:
                raise PhotoError(ErrorCode.FORBIDDEN, "on a web server, which needs --fetch.allow-http")
            return self._web.read(uri, self._max_bytes, timeout_s, deadline_s, intake)
        if container_uri is None:
            self._check_name(uri)
        with storage.one_attempt(timeout_s, deadline_s):
            if container_uri is not None:
                part = (listed[schema.OFFSET_BYTES], listed[schema.STORED_BYTES], listed[schema.CONTAINER_ETAG])
                data = archive_members.read_member(
                    container_uri, *part, self._max_bytes, listed[schema.SIZE_BYTES], intake
                )
                return storage.Blob(data, listed[schema.ETAG] or "")
            blob = storage.read(uri, self._max_bytes, intake)
        # Of one version there is one length. A listing without a version, or with one of its own, may be outdated.
        if blob.etag == listed[schema.ETAG] and listed[schema.SIZE_BYTES] not in (None, len(blob.data)):
            raise OSError(f"{len(blob.data)} bytes came, {listed[schema.SIZE_BYTES]} are listed: {uri}")
        return blob

    def _check_name(self, uri: str) -> None:
        """Raise PhotoError for a name, out of a manifest, of what nobody here reads or what it may not name."""
        try:
            storage.canonical(uri)
        except ValueError as error:
            raise PhotoError(ErrorCode.FORBIDDEN, str(error)) from error
        if self._local_roots is not None and not roots.is_allowed(uri, self._local_roots):
            raise PhotoError(ErrorCode.FORBIDDEN, roots.refusal(uri))


def _may_be_of_the_moment(error: BaseException) -> bool:
    return isinstance(error, OSError) and not isinstance(error, tuple(kind for kind, _ in _FINAL))


_jitter_s = tenacity.wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S)


def _wait_s(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return max(_jitter_s(state), error.retry_after_s if isinstance(error, web.BusyError) else 0)


def _give_up(state: tenacity.RetryCallState) -> NoReturn:
    error = state.outcome.exception() if state.outcome else None
    code = ErrorCode.FETCH_TIMEOUT if isinstance(error, TimeoutError) else ErrorCode.FETCH_FAILED
    attempts = f"{state.attempt_number} attempt{'s' if state.attempt_number > 1 else ''}"
    raise PhotoError(code, f"{attempts} in {state.seconds_since_start or 0:.0f} s, the last: {error}") from error
