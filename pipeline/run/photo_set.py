"""Which photos, in two numbers: how many there are, and a fingerprint that tells one set of them from another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa


class UnaccountedError(Exception):
    """Photos that were planned and rows there are for them differ: a bug or a damaged stage; nothing was published."""


@dataclass(frozen=True)
class PhotoSet:
    """A set of photos, known by its size and by the hex XOR of its photos' 16-byte ids.

    The ids are hashes: two sets of distinct ids that are equal in both are the same set.
    """

    count: int
    fingerprint: str

    @classmethod
    def of(cls, batches: Iterable[pa.RecordBatch | pa.Table]) -> PhotoSet:
        """Return the set of the distinct photo ids in the batches' first columns, whatever their order."""
        count, folded = 0, np.zeros(16, np.uint8)
        for batch in batches:
            count += batch.num_rows
            folded ^= np.bitwise_xor.reduce(id_bytes(batch.column(0)), axis=0, initial=0)
        return cls(count, folded.tobytes().hex())

    def __or__(self, other: PhotoSet) -> PhotoSet:
        """Return the photos of both, which have none in common."""
        folded = int(self.fingerprint, 16) ^ int(other.fingerprint, 16)
        return PhotoSet(self.count + other.count, f"{folded:032x}")


def id_bytes(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return a column of photo ids as bytes, shaped (rows, 16)."""
    ids = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    ids = pa.concat_arrays([ids.cast(pa.binary(16))])  # a slice's buffer would begin before it
    return np.frombuffer(ids.buffers()[1] or b"", np.uint8)[ids.offset * 16 :][: len(ids) * 16].reshape(-1, 16)
