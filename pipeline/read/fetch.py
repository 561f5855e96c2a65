"""A listed photo becomes its bytes, wherever it lies, or the one error code that says why not.

What may be of the moment (a busy or broken store, a connection that stalls or breaks off, a body that is not as long as
it should be) is tried again until the photo's budget is spent; a photo that isn't there or is forbidden is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import tenacity

from pipeline import schema, storage
from pipeline.schema import ErrorCode, PhotoError
from pipeline.sources import archives, roots
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
        concurrent: photos on their way at once in the whole run; None for 16 in each reading process.
        allow_http: fetch what manifests name on web servers, from public addresses only.
        gone_after: so many photos, those read last, tell whether the source has gone away; a shorter run is judged as
            it ends.
        gone_share: the run ends, publishing nothing, when more than this share of them failed to be fetched; 1 for
            never.
    """

    budget_s: float = 120.0
    attempt_timeout_s: float = 30.0
    concurrent: int | None = None
    allow_http: bool = False
    gone_after: int = 200
    gone_share: float = 0.9

    def __post_init__(self) -> None:
        for name, value in (("budget-s", self.budget_s), ("attempt-timeout-s", self.attempt_timeout_s)):
            if not value > 0:
                raise ValueError(f"--fetch.{name} {value:g}: give more than 0 seconds")
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


class Fetcher:
    """Fetches photos, rows of `schema.MANIFEST` as dictionaries; any thread may call it.

    `may_connect` is the gate before web servers, see `web.is_public`; `local_roots` the one before this machine's
    files, see `roots.is_allowed`, with None for an open one.
    """

    def __init__(
        self,
        settings: FetchSettings,
        max_bytes: int,
        may_connect: Callable[[web.Address, int], bool] = web.is_public,
        local_roots: Sequence[str] | None = None,
    ) -> None:
        self._settings = settings
        self._max_bytes = max_bytes
        self._local_roots = local_roots
        self._web = web.Web(may_connect) if settings.allow_http else None
        # The clients' own retries are off for these reads. They would not count towards the budget, and obstore's go on
        # in the middle of a body with a range request, which a store that gave a wrong length answers with 416.
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_be_of_the_moment),
            wait=_wait_s,
            stop=tenacity.stop_before_delay(settings.budget_s),
            retry_error_callback=_give_up,
        )

    def __call__(self, listed: Mapping[str, Any]) -> storage.Blob:
        """Return the photo's bytes and the version read; PhotoError where it can't be had."""
        size_bytes = listed[schema.SIZE_BYTES]
        if size_bytes is not None and size_bytes > self._max_bytes:
            raise PhotoError(ErrorCode.TOO_LARGE, f"{size_bytes} bytes, more than the limit of {self._max_bytes}")
        return self._tried(self._attempt, listed)

    def together(self, group: Sequence[Mapping[str, Any]]) -> list[storage.Blob | PhotoError]:
        """Return the same of each photo of a group of `archives.lie_together`, several by one request.

        A request that fails in the end fails for all of them: it is the same archive that each would have asked.
        """
        if len(group) == 1 or any(row[schema.STORED_BYTES] > self._max_bytes for row in group):
            return [self._outcome(row) for row in group]
        try:
            photos: list[bytes | PhotoError] = self._tried(self._attempt_together, group)
        except PhotoError as error:
            return [error] * len(group)
        return [
            photo if isinstance(photo, PhotoError) else storage.Blob(photo, row[schema.ETAG] or "")
            for row, photo in zip(group, photos, strict=True)
        ]

    def _outcome(self, listed: Mapping[str, Any]) -> storage.Blob | PhotoError:
        try:
            return self(listed)
        except PhotoError as error:
            return error

    def _tried(self, attempt: Callable[[_Wanted, float], _Got], wanted: _Wanted) -> _Got:
        deadline_s = time.monotonic() + self._settings.budget_s
        try:
            got: _Got = self._retrying(attempt, wanted, deadline_s)
        except tuple(kind for kind, _ in _FINAL) as error:
            code = next(code for kind, code in _FINAL if isinstance(error, kind))
            raise PhotoError(code, str(error)) from error
        return got

    def _attempt_together(self, group: Sequence[Mapping[str, Any]], deadline_s: float) -> list[bytes | PhotoError]:
        with storage.one_attempt(self._settings.attempt_timeout_s, deadline_s):
            return archives.read_together(group)

    def _attempt(self, listed: Mapping[str, Any], deadline_s: float) -> storage.Blob:
        uri, container_uri = listed[schema.URI], listed[schema.CONTAINER_URI]
        timeout_s = self._settings.attempt_timeout_s
        if web.is_web(uri):
            if self._web is None:
                raise PhotoError(ErrorCode.FORBIDDEN, "on a web server, which needs --fetch.allow-http")
            return self._web.read(uri, self._max_bytes, timeout_s, deadline_s)
        if container_uri is None:
            self._check_name(uri)
        with storage.one_attempt(timeout_s, deadline_s):
            if container_uri is not None:
                part = (listed[schema.OFFSET_BYTES], listed[schema.STORED_BYTES], listed[schema.CONTAINER_ETAG])
                return storage.Blob(
                    archives.read_member(container_uri, *part, self._max_bytes), listed[schema.ETAG] or ""
                )
            blob = storage.read(uri, self._max_bytes)
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
