"""Rows of the plan become rows with pixels at model size, or with the reason why not."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline import schema, storage
from pipeline.decode import DecodedPhoto, DecodeFailure, DecodeLimits, DecodeTarget, PhotoFacts, decode_photo
from pipeline.schema import ErrorCode, PhotoError


@dataclass(frozen=True)
class ReaderSettings:
    """How photos are read.

    Attributes:
        target: the size the model wants.
        limits: what is refused as too large.
        concurrent_fetches: photos on their way at once in each reading task; they also bound its memory.
    """

    target: DecodeTarget
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    concurrent_fetches: int = 16


class Reader:
    """Fetches and decodes photos: a table of `schema.MANIFEST` in, one of `schema.READ` out, row for row."""

    def __init__(self, settings: ReaderSettings) -> None:
        self._settings = settings
        self._fetchers = ThreadPoolExecutor(settings.concurrent_fetches, thread_name_prefix="fetch")

    def __call__(self, plan: pa.Table) -> pa.Table:
        """Read every photo of `plan`; a photo that can't be had is a row with an error code, anything else raises."""
        rows = [self._read(listed, fetched) for listed, fetched in self._fetch(plan.to_pylist())]
        return pa.Table.from_pylist(rows, schema=schema.READ)

    def _fetch(self, listed: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Future[storage.Blob]]]:
        """Yield each listed photo with its bytes to come, no more than `concurrent_fetches` ahead."""
        ahead: collections.deque[tuple[dict[str, Any], Future[storage.Blob]]] = collections.deque()
        for row in listed:
            ahead.append((row, self._fetchers.submit(self._fetch_one, row)))
            if len(ahead) == self._settings.concurrent_fetches:
                yield ahead.popleft()
        yield from ahead

    def _fetch_one(self, listed: dict[str, Any]) -> storage.Blob:
        limit = self._settings.limits.max_bytes
        if (listed[schema.SIZE_BYTES] or 0) > limit:
            raise PhotoError(ErrorCode.TOO_LARGE, f"{listed[schema.SIZE_BYTES]} bytes, more than the limit of {limit}")
        try:
            return storage.read(listed[schema.URI])
        except FileNotFoundError as error:
            raise PhotoError(ErrorCode.NOT_FOUND, str(error)) from error
        except PermissionError as error:
            raise PhotoError(ErrorCode.FORBIDDEN, str(error)) from error
        except TimeoutError as error:
            raise PhotoError(ErrorCode.FETCH_TIMEOUT, str(error)) from error
        except IsADirectoryError as error:
            raise PhotoError(ErrorCode.UNSUPPORTED_FORMAT, str(error)) from error
        except OSError as error:
            raise PhotoError(ErrorCode.FETCH_FAILED, str(error)) from error

    def _read(self, listed: dict[str, Any], fetched: Future[storage.Blob]) -> dict[str, Any]:
        names = (schema.PHOTO_ID, schema.URI, schema.ETAG, schema.SIZE_BYTES)
        row: dict[str, Any] = {name: listed[name] for name in names}
        try:
            blob = fetched.result()
            # The listed version first, or a manifest that is older than the photo, or has versions of its own, would
            # never be done: the next run compares with what is listed then.
            row[schema.ETAG] = listed[schema.ETAG] or blob.etag
            row[schema.SIZE_BYTES] = len(blob.data)
            row[schema.CONTENT_HASH] = hashlib.blake2b(blob.data, digest_size=16).digest()
            photo = decode_photo(blob.data, self._settings.target, self._settings.limits)
        except PhotoError as error:
            row[schema.ERROR_CODE] = str(error.code)
            row[schema.ERROR_MESSAGE] = error.message
            facts = error.facts if isinstance(error, DecodeFailure) else None
            return row | (_header_columns(facts) if facts else {})
        return row | _header_columns(photo) | {schema.PIXELS_HWC: photo.pixels_HWC.tobytes()}


def _header_columns(facts: DecodedPhoto | PhotoFacts) -> dict[str, Any]:
    return {
        schema.FORMAT: facts.format,
        schema.WIDTH_PX: facts.width_px,
        schema.HEIGHT_PX: facts.height_px,
        schema.TAKEN_AT: facts.exif.taken_at,
        schema.EXIF_LAT_DEG: facts.exif.lat_deg,
        schema.EXIF_LON_DEG: facts.exif.lon_deg,
    }
