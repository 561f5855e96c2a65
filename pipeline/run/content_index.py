"""Which photo answers for which bytes, so that identical bytes under several names are inferred once.

Bytes are known by their BLAKE2b-128 hash once they are read: a copy still costs its fetch and its decode.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema


class ContentIndex:
    """Who answers for which bytes: the first photo that claimed them.

    Holds some 200 bytes for each content, and at most `capacity` of them: photos with others are each inferred.
    """

    def __init__(self, capacity: int, known: Sequence[bytes] = ()) -> None:
        """`known` are contents that have their answer already."""
        self._owner: dict[bytes, bytes] = dict.fromkeys(known, b"")
        self._capacity = max(capacity, len(self._owner))
        self._overflow = 0
        self._is_closed = False

    def claim(self, contents: Sequence[bytes], photo_ids: Sequence[bytes]) -> list[bool]:
        """Return for each photo whether it must answer for its content; one that did must again (tasks are retried)."""
        return [self._claim(content, photo_id) for content, photo_id in zip(contents, photo_ids, strict=True)]

    def _claim(self, content: bytes, photo_id: bytes) -> bool:
        owner = self._owner.get(content)
        if owner is not None:
            return owner == photo_id
        if len(self._owner) < self._capacity:
            self._owner[content] = photo_id
        else:
            self._overflow += 1
        return True

    def close(self) -> None:
        """Let no more photos be begun."""
        self._is_closed = True

    def is_closed(self) -> bool:
        """Return whether no more photos are to be begun."""
        return self._is_closed

    def overflow(self) -> int:
        """Return how often a content could not be remembered."""
        return self._overflow


def claims(read: pa.Table) -> tuple[np.ndarray, list[bytes], list[bytes]]:
    """Return the rows of `read` that have pixels, and those photos' contents and ids."""
    rows_N = np.flatnonzero(pc.is_valid(read.column(schema.PIXELS_HWC)).to_numpy())
    taken = read.select([schema.CONTENT_HASH, schema.PHOTO_ID]).take(pa.array(rows_N))
    return rows_N, taken.column(schema.CONTENT_HASH).to_pylist(), taken.column(schema.PHOTO_ID).to_pylist()


def without_copies(read: pa.Table, rows_N: np.ndarray, answers_N: Sequence[bool]) -> pa.Table:
    """Return `read` of `schema.READ` without the pixels of copies: of those of `rows_N` that must not answer."""
    keeps_N = np.ones(read.num_rows, dtype=bool)
    keeps_N[rows_N] = answers_N
    if keeps_N.all():
        return read
    index = read.schema.get_field_index(schema.PIXELS_HWC)
    pixels = pc.if_else(pa.array(keeps_N), read.column(index), pa.scalar(None, read.schema.field(index).type))
    return read.set_column(index, read.schema.field(index), pixels)
