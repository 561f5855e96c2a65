"""Photos for training and evaluation: read and decoded exactly as when serving, kept in memory as far as they fit.

Shapes: N photos of the store, B batch, H and W height and width in pixels, C 3 colours.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.decode import DecodeTarget, decode_photo
from pipeline.schema import PhotoError

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]


class PhotoStore:
    """Decoded photos by row. A photo that can't be read or decoded is skipped and counted, never made up.

    `failures` says why, by row. Raises ValueError (from its methods) once more than `max_failed_fraction` of all photos
    have failed: a run on what is left would not be the run that was asked for.
    """

    def __init__(
        self,
        uri_N: Sequence[str],
        target: DecodeTarget,
        max_failed_fraction: float = 0.02,
        memory_bytes: int = 4 << 30,
        threads: int = 2,
    ) -> None:
        self.uri_N = tuple(uri_N)
        self.target = target
        self.failures: dict[int, str] = {}
        self._max_failed = int(max_failed_fraction * len(self.uri_N))
        self._kept: dict[int, Pixels] = {}
        self._keep_at_most = memory_bytes // (3 * target.image_size_px**2)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def batches(self, rows: Sequence[int], batch_size: int) -> Iterator[tuple[NDArray[np.int64], Pixels]]:
        """Yield (row_B, pixels_BHWC), in order, the next batch being decoded meanwhile; failed photos are left out."""
        chunks = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
        ahead = [self._threads.submit(self._read, row) for row in next(chunks, ())]
        while ahead:
            current, ahead = ahead, [self._threads.submit(self._read, row) for row in next(chunks, ())]
            decoded = [future.result() for future in current]
            self._check_failures()
            good = [(row, pixels) for row, pixels in decoded if pixels is not None]
            if good:
                yield np.array([row for row, _ in good]), np.stack([pixels for _, pixels in good])

    def _read(self, row: int) -> tuple[int, Pixels | None]:
        if row in self._kept or row in self.failures:
            return row, self._kept.get(row)
        try:
            pixels_HWC = decode_photo(storage.read_bytes(self.uri_N[row]), self.target).pixels_HWC
        except (PhotoError, OSError) as error:
            log.warning("skipped %s: %s", self.uri_N[row], error)
            self.failures[row] = str(error)
            return row, None
        if len(self._kept) < self._keep_at_most:
            self._kept[row] = pixels_HWC
        return row, pixels_HWC

    def _check_failures(self) -> None:
        if len(self.failures) > self._max_failed:
            row = min(self.failures)  # not the first in time: threads finish in any order
            raise ValueError(
                f"{len(self.failures)} of {len(self.uri_N)} photos could not be read, more than the "
                f"{self._max_failed} allowed; the first was {self.uri_N[row]}: {self.failures[row]}"
            )


def balanced_weights(cell_N: NDArray[np.int64], balance: float) -> NDArray[np.float64]:
    """Return each photo's share of the draws: that of its cell's photos together is their number to the (1 - balance).

    0 draws photos alike, 1 draws cells alike; in between, places photographed a thousand times count for less. Photos
    in no cell (-1, such as those without a position) are one cell of their own.
    """
    count_K = np.bincount(cell_N + 1)
    weight_N = count_K[cell_N + 1].astype(np.float64) ** -balance
    return np.asarray(weight_N / weight_N.sum())
