"""Photos for training and evaluation: read and decoded exactly as when serving, in an order that a seed decides.

Shapes: N photos of the store, M photos of one part, S shards, B batch, H and W height (of all views) and width
in pixels, C 3 colours.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.decode.photo import DecodeTarget, decode_photo
from pipeline.schema import PhotoError

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Inputs = NDArray[np.uint8] | NDArray[np.float16]
"""What training takes: pixels, or tokens that a backbone has made of them."""


class InputSource(Protocol):
    """Photos by row, or the tokens of photos: whatever the network begins with."""

    def batches(self, rows: Sequence[int], batch_size: int) -> Iterator[tuple[NDArray[np.int64], Inputs]]:
        """Yield (row_B, inputs) for each `batch_size` rows, in order, as `PhotoSource` does."""
        ...


class PhotoSource(Protocol):
    """Photos by row, whether read here, drawn by a renderer, or streamed from a cluster's decoders."""

    def batches(self, rows: Sequence[int], batch_size: int) -> Iterator[tuple[NDArray[np.int64], Pixels]]:
        """Yield (row_B, pixels_BHWC) for each `batch_size` rows, in order.

        Photos that can't be had are left out and logged, so a batch may be smaller, or empty; never is one made up.
        """
        ...


class PhotoStore:
    """Decoded photos by row, kept in memory as far as they fit.

    `failures` says, by row, why a photo could not be read or decoded. Raises ValueError (from `batches`) once more than
    `max_failed_fraction` of all photos have failed: a run on what is left would not be the run that was asked for.
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
        self._keep_at_most = memory_bytes // target.pixels_bytes
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def batches(self, rows: Sequence[int], batch_size: int) -> Iterator[tuple[NDArray[np.int64], Pixels]]:
        """Yield as `PhotoSource` says, the next batch being decoded meanwhile."""
        chunks = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
        ahead = [self._threads.submit(self._read, int(row)) for row in next(chunks, ())]
        while ahead:
            current, ahead = ahead, [self._threads.submit(self._read, int(row)) for row in next(chunks, ())]
            decoded = [future.result() for future in current]
            self._check_failures()
            yield stack_batch([(row, pixels) for row, pixels in decoded if pixels is not None], self.target)

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


class ArraySource:
    """Photos that are in memory already: row i is `pixels_NHWC[i]`."""

    def __init__(self, pixels_NHWC: Pixels) -> None:
        self.pixels_NHWC = pixels_NHWC

    def batches(self, rows: Sequence[int], batch_size: int) -> Iterator[tuple[NDArray[np.int64], Pixels]]:
        """Yield as `PhotoSource` says; nothing is ever left out."""
        for start in range(0, len(rows), batch_size):
            row_B = np.asarray(rows[start : start + batch_size], np.int64)
            yield row_B, self.pixels_NHWC[row_B]


def stack_batch(photos: Sequence[tuple[int, Pixels]], target: DecodeTarget) -> tuple[NDArray[np.int64], Pixels]:
    """Return (row_B, pixels_BHWC) of (row, pixels) pairs; of shape (0, …) for none."""
    pixels_BHWC = np.empty((len(photos), *target.shape_HWC), np.uint8)
    for index, (_, pixels_HWC) in enumerate(photos):
        pixels_BHWC[index] = pixels_HWC
    return np.array([row for row, _ in photos], np.int64), pixels_BHWC


class Shards(NamedTuple):
    """Files that photos lie in together: those of a few at a time are drawn in any order, then come the next few."""

    shard_N: NDArray[np.int64]
    """Which file each row's photo is in."""
    files: int
    at_once: int


class DrawOrder:
    """Which photo each draw takes: a function of the seed and the draw's number, however many workers share the draws.

    Draws are counted from 0 through all epochs; an epoch has as many as there are photos. With weights an epoch draws
    with replacement, without them each photo once, in a new order each epoch. With shards an epoch goes through these
    in a new order, so that each is read once.
    """

    def __init__(
        self,
        rows_M: NDArray[np.int64],
        seed: int,
        weight_M: NDArray[np.float64] | None = None,
        shards: Shards | None = None,
    ) -> None:
        self.rows_M = rows_M
        self._seed = seed
        self._weight_M = weight_M
        self._shards = shards
        self._epoch = -1
        self._order_M = rows_M

    def rows(self, first: int, end: int) -> NDArray[np.int64]:
        """Return the rows that draws `first` to `end` (not included) take."""
        count = len(self.rows_M)
        parts = [
            self._epoch_order(epoch)[max(first - epoch * count, 0) : end - epoch * count]
            for epoch in range(first // count, -(-end // count))
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:
            random = np.random.default_rng([self._seed, epoch])
            with_replacement = self._weight_M is not None
            self._order_M = random.choice(self.rows_M, len(self.rows_M), with_replacement, self._weight_M)
            if self._shards is not None:
                turn_S = random.permutation(self._shards.files) // self._shards.at_once
                turn_M = turn_S[self._shards.shard_N[self._order_M]]
                self._order_M = self._order_M[np.argsort(turn_M, kind="stable")]
            self._epoch = epoch
        return self._order_M


def balanced_weights(cell_N: NDArray[np.int64], balance: float) -> NDArray[np.float64]:
    """Return each photo's share of the draws: that of its cell's photos together is their number to the (1 - balance).

    0 draws photos alike, 1 draws cells alike; in between, places photographed a thousand times count for less. Photos
    in no cell (-1, such as those without a position) are one cell of their own.
    """
    count_K = np.bincount(cell_N + 1)
    weight_N = count_K[cell_N + 1].astype(np.float64) ** -balance
    return np.asarray(weight_N / weight_N.sum())
