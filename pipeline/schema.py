"""Every Arrow schema, status and error code that Graticule stores, once.

Nobody else writes a column's name as a literal: use the constants here, e.g. `schema.LAT_DEG`.
"""

from __future__ import annotations

import enum
import hashlib

import pyarrow as pa


class Status(enum.StrEnum):
    """What became of a photo."""

    LOCATED = "located"
    FAILED = "failed"


class ErrorCode(enum.StrEnum):
    """Why a photo has no place: a closed set, exactly one for each failed row."""

    NOT_FOUND = "not_found"
    FORBIDDEN = "forbidden"
    FETCH_TIMEOUT = "fetch_timeout"
    FETCH_FAILED = "fetch_failed"
    EMPTY = "empty"
    TOO_LARGE = "too_large"
    UNSUPPORTED_FORMAT = "unsupported_format"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    DECODER_CRASHED = "decoder_crashed"
    DECODER_TIMEOUT = "decoder_timeout"
    MODEL_FAILED = "model_failed"


TRANSIENT_ERRORS = (ErrorCode.FETCH_TIMEOUT, ErrorCode.FETCH_FAILED)
"""Failures of the moment: the next run takes these photos again by itself."""

MAX_ERROR_MESSAGE_CHARS = 300


class PhotoError(Exception):
    """An expected failure of one photo, which becomes its row; anything else is a bug and stops the job."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = printable(message)[:MAX_ERROR_MESSAGE_CHARS]


def printable(text: str) -> str:
    """Return `text` with every control or lone-surrogate character escaped: safe to print and to store as UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def photo_id(uri: str) -> bytes:
    """Return the 16 bytes that name a photo: the BLAKE2b hash of its URI."""
    return hashlib.blake2b(uri.encode("utf-8", "surrogatepass"), digest_size=16).digest()
