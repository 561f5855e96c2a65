"""Rows of the plan become rows with pixels at model size, or with the reason why not."""

from __future__ import annotations

import collections
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from blake3 import blake3

from pipeline import schema, storage
from pipeline.beside.names import Kind
from pipeline.beside.sidecar import Sidecar, read_sidecar
from pipeline.decode.header import check_head
from pipeline.decode.photo import DecodeFailure, DecodeLimits, DecodeTarget, PhotoFacts, decode_photo
from pipeline.decode.recorded import NOTHING_RECORDED, Recorded
from pipeline.read import archive_members, beside
from pipeline.read.budget import BytesInFlight, Share
from pipeline.read.fetch import Fetcher, FetchSettings
from pipeline.read.isolation import Answer, Decode, Decoded, DecodeOrder, IsolatedDecoder
from pipeline.schema import ErrorCode, Media, PhotoError

_Outcome = storage.Blob | PhotoError
_Fetched = tuple[list[_Outcome], float]
"""What became of photos that were fetched together, and the seconds that each took."""
NoteRead = Callable[[list[dict[str, Any]]], None]

_BATCH_PHOTOS = 8
_BATCH_BYTES = 4 << 20
"""Photos go to the decoder together until they are so many, or so large: a switch of processes costs time."""


@dataclass(frozen=True)
class ReaderSettings:
    """How photos are read.

    Attributes:
        target: the size the model wants.
        limits: what is refused as too large.
        concurrent_fetches: requests on their way at once in each reading task.
        decode_timeout_s: how long the decoding of one photo may take, once it is fetched.
        fetch: how long each is tried, from where, and how many bytes are held; its `concurrent` is the whole run's
            affair.
        local_roots: where local photos may be read, see `roots.is_allowed`; None for anywhere.
    """

    target: DecodeTarget
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    concurrent_fetches: int = 16
    decode_timeout_s: float = 60.0
    fetch: FetchSettings = field(default_factory=FetchSettings)
    local_roots: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.decode_timeout_s > 0:
            raise ValueError(f"decode_timeout_s {self.decode_timeout_s:g}: give more than 0 seconds")

    @property
    def decode_memory_bytes(self) -> int:
        """How much memory one photo may take in its decoder: its bytes, its pixels or frequencies, and our steps.

        The defaults keep that process, of 0.1 GB itself, below 1.5 GB. What stands beside the pixels are bands of rows
        where colours are unusual, and the codecs' first use.
        """
        return max(self.limits.max_memory_bytes, self.limits.max_bytes) + (192 << 20)


@dataclass
class _Group:
    """Listed photos that are fetched together, and what they take of the budget."""

    rows: list[dict[str, Any]]
    fetched: Future[_Fetched]
    share: Share


class _Batch:
    """Fetched photos that are decoded together, each with its listing and the seconds it took, and their shares."""

    def __init__(self) -> None:
        self.photos: list[tuple[dict[str, Any], _Outcome, float]] = []
        self.shares: list[Share] = []
        self._size_bytes = 0

    def add(self, photo: tuple[dict[str, Any], _Outcome, float]) -> None:
        self.photos.append(photo)
        self._size_bytes += 0 if isinstance(photo[1], PhotoError) else len(photo[1].data)

    @property
    def is_full(self) -> bool:
        return len(self.photos) == _BATCH_PHOTOS or self._size_bytes >= _BATCH_BYTES

    def end(self) -> None:
        """Let go of the photos, which are decoded, and of their part of the budget."""
        self.photos.clear()
        self._size_bytes = 0
        while self.shares:
            self.shares.pop().end()


class Reader:
    """Fetches and decodes photos: a table of `schema.MANIFEST` in, one of `schema.READ` out, row for row.

    This one decodes in its own process, which a photo may end; the pipeline's is an `IsolatedReader`.
    """

    def __init__(self, settings: ReaderSettings) -> None:
        self._settings = settings
        judge = functools.partial(check_head, limits=settings.limits)
        self._fetcher = Fetcher(
            settings.fetch, settings.limits.max_bytes, local_roots=settings.local_roots, judge=judge
        )
        self._beside = beside.SidecarFetcher(settings.fetch, settings.local_roots)
        self._fetchers = ThreadPoolExecutor(settings.concurrent_fetches, thread_name_prefix="fetch")

    def __call__(self, plan: pa.Table, note_read: NoteRead = lambda _: None) -> pa.Table:
        """Read every photo of `plan`; a photo that can't be had is a row with an error code, anything else raises.

        `note_read` is given a few rows at a time, as they are done: a slow store is not one that hangs.
        """
        rows = []
        budget = BytesInFlight(self._settings.fetch.budget_bytes)
        try:
            for batch in self._batches(plan.to_pylist(), budget):
                read = self._read(batch)
                note_read(read)
                rows += read
                batch.end()
        finally:
            budget.close()
        return pa.Table.from_pylist(rows, schema=schema.READ)

    def _batches(self, listed: list[dict[str, Any]], budget: BytesInFlight) -> Iterator[_Batch]:
        """Yield fetched photos, several at once where they are there already: nothing waits for a batch to be full.

        Whoever takes a batch ends it before the next one.
        """
        batch = _Batch()
        for group in self._fetch(listed, budget):
            if batch.photos and (group is None or not group.fetched.done()):
                yield batch
            if group is None:
                continue
            outcomes, fetch_s = group.fetched.result()  # waits for it, where it begins a batch
            del group.fetched  # which would hold the photos
            for row in group.rows:
                if batch.is_full:
                    yield batch
                batch.add((row, outcomes.pop(0), fetch_s))
            batch.shares.append(group.share)
        if batch.photos:
            yield batch

    def _fetch(self, listed: list[dict[str, Any]], budget: BytesInFlight) -> Iterator[_Group | None]:
        """Yield the listed photos, neighbours in a tar together, each with its outcome to come, no more than
        `concurrent_fetches` requests ahead, nor more than the budget; None where that has to be decoded first."""
        ahead: collections.deque[_Group] = collections.deque()
        overlapping = archive_members.overlapping(listed)
        for rows in archive_members.lie_together(listed):
            is_refused = rows[0][schema.URI] in overlapping
            most_bytes = 0 if is_refused else self._fetcher.most_bytes(rows) + beside.most_bytes(rows)
            while not budget.fits(most_bytes):
                yield ahead.popleft() if ahead else None
            share = budget.begin(most_bytes)
            fetched = self._fetchers.submit(_refuse_overlapping if is_refused else self._fetch_group, rows, share)
            ahead.append(_Group(rows, fetched, share))
            if len(ahead) == self._settings.concurrent_fetches:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()

    def _fetch_group(self, group: list[dict[str, Any]], share: Share) -> _Fetched:
        start_s = time.perf_counter()
        outcomes = self._fetcher.together(group, share)
        for listed, outcome in zip(group, outcomes, strict=True):
            if not isinstance(outcome, PhotoError):
                self._beside.fetch(listed)
        return outcomes, (time.perf_counter() - start_s) / len(group)

    def _read(self, batch: _Batch) -> list[dict[str, Any]]:
        names = (schema.PHOTO_ID, schema.URI, schema.ETAG, schema.SIDECAR_ETAG, schema.SIZE_BYTES)
        rows: list[dict[str, Any]] = []
        fetched_rows: list[dict[str, Any]] = []
        photos: list[bytes] = []
        come: list[dict[str, Any]] = []
        for listed, blob, fetch_s in batch.photos:
            row: dict[str, Any] = {name: listed[name] for name in names} | {schema.FETCH_SECONDS: fetch_s}
            rows.append(row)
            if isinstance(blob, PhotoError):
                row.update(_error_columns(blob))
                continue
            # The listed version first, or a manifest that is older than the photo, or has versions of its own, would
            # never be done: the next run compares with what is listed then.
            row[schema.ETAG] = listed[schema.ETAG] or blob.etag or None
            row[schema.SIZE_BYTES] = len(blob.data)
            row[schema.CONTENT_HASH] = blake3(blob.data).digest(length=16)
            fetched_rows.append(row)
            photos.append(blob.data)
            come.append(listed)
        besides = beside.read(come, self._read_sidecars)
        for row, (answer, decode_s), found in zip(fetched_rows, self._decode(photos), besides, strict=True):
            row[schema.DECODE_SECONDS] = decode_s
            if isinstance(answer, PhotoError):
                row.update(_error_columns(answer))
                facts = answer.facts if isinstance(answer, DecodeFailure) else None
            else:
                facts, pixels = answer
                row.update(_header_columns(facts) | {schema.PIXELS_HWC: pixels})
            row.update(_recorded_columns(found.complete(facts.recorded if facts else NOTHING_RECORDED)))
            row.update(found.columns(row))
        return rows

    def _decode(self, photos: list[bytes]) -> list[Answer]:
        answers: list[Answer] = []
        for data in photos:
            start_s = time.perf_counter()
            answer = self._decode_here(data)
            answers.append((answer, time.perf_counter() - start_s))
        return answers

    def _read_sidecars(self, sidecars: Sequence[tuple[Kind, bytes]]) -> list[Sidecar | PhotoError]:
        answers: list[Sidecar | PhotoError] = []
        for kind, data in sidecars:
            try:
                answers.append(read_sidecar(data, kind))
            except PhotoError as error:
                answers.append(error.without_frames())
        return answers

    def _decode_here(self, data: bytes) -> Decoded | PhotoError:
        try:
            photo = decode_photo(data, self._settings.target, self._settings.limits)
        except PhotoError as error:
            return error.without_frames()
        facts = PhotoFacts(photo.format, photo.width_px, photo.height_px, photo.exif, photo.recorded)
        return facts, photo.pixels_HWC.tobytes()


class IsolatedReader(Reader):
    """A Reader whose decoder is a process of its own: what a photo does to it costs that photo's row and no other."""

    def __init__(self, settings: ReaderSettings, decode: Decode = decode_photo) -> None:
        super().__init__(settings)
        self.decoder = IsolatedDecoder(
            DecodeOrder(
                settings.target, settings.limits, settings.decode_timeout_s, settings.decode_memory_bytes, decode
            )
        )

    def _decode(self, photos: list[bytes]) -> list[Answer]:
        return self.decoder(photos)

    def _read_sidecars(self, sidecars: Sequence[tuple[Kind, bytes]]) -> list[Sidecar | PhotoError]:
        return self.decoder.read_sidecars(sidecars)

    def close(self) -> None:
        """End the decoder's process; the process' exit does the same."""
        self.decoder.close()


def _refuse_overlapping(group: list[dict[str, Any]], share: Share) -> _Fetched:
    del share
    message = "shares its bytes with another member of its zip, which no archiver does: unpack it and look"
    return [PhotoError(ErrorCode.CORRUPT, message) for _ in group], 0.0


def _error_columns(error: PhotoError) -> dict[str, Any]:
    facts = error.facts if isinstance(error, DecodeFailure) else None
    columns = {schema.ERROR_CODE: str(error.code), schema.ERROR_MESSAGE: error.message}
    return columns | (_header_columns(facts) if facts else {})


def _header_columns(facts: PhotoFacts) -> dict[str, Any]:
    return {
        schema.FORMAT: facts.format,
        schema.MEDIA: str(Media.IMAGE),
        schema.WIDTH_PX: facts.width_px,
        schema.HEIGHT_PX: facts.height_px,
    }


def _recorded_columns(recorded: Recorded) -> dict[str, Any]:
    return {
        schema.TAKEN_AT: recorded.taken_at,
        schema.TAKEN_AT_UTC: recorded.taken_at_utc,
        schema.TAKEN_AT_UTC_BY: recorded.utc_by,
        schema.RECORDED_LAT_DEG: recorded.lat_deg,
        schema.RECORDED_LON_DEG: recorded.lon_deg,
        schema.RECORDED_BY: recorded.by,
        schema.RECORDED_APART_KM: recorded.apart_km,
        schema.IPTC_CITY: recorded.city,
        schema.IPTC_REGION: recorded.region,
        schema.IPTC_COUNTRY: recorded.country,
        schema.IPTC_COUNTRY_CODE: recorded.country_code,
        schema.CAPTION: recorded.caption,
        schema.KEYWORDS: list(recorded.keywords) or None,
    }
