"""Places of any number of photos gathered into as many bins as a page can hold: counts, means and commonest countries.

The bins are squares of a grid over the Web Mercator map, which gets coarser while there are too many of them.
Shapes: K cells or bins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

MOST_BINS = 100_000
"""2.5 MB in a page."""
_FINEST_DEPTH = 13
"""The map is 2^13 squares wide: 5 km at the equator, which is what its outline is good for."""
_MERCATOR_LAT_DEG = 85.05112878
_ROW_BITS, _COUNTRY_BITS = 20, 12
_SUMS = 4


class MapBins:
    """Takes cells bit by bit; holds `most` bins for each of the countries that meet there, at the most."""

    def __init__(self, most: int = MOST_BINS) -> None:
        self.depth = _FINEST_DEPTH
        self._most = most
        self._key_K = np.empty(0, np.int64)
        self._sums_4K = np.empty((_SUMS, 0))

    def add(
        self,
        lat_sum_K: NDArray[np.float64],
        lon_sum_K: NDArray[np.float64],
        photos_K: NDArray[np.int64],
        confidence_sum_K: NDArray[np.float64],
        country_K: ArrayLike,
    ) -> None:
        """Add cells: the sums of their photos' degrees and confidences, and each cell's country by its number."""
        lat_deg_K = np.clip(lat_sum_K / photos_K, -_MERCATOR_LAT_DEG, _MERCATOR_LAT_DEG)
        across_K = (lon_sum_K / photos_K + 180) / 360
        down_K = 0.5 - np.arcsinh(np.tan(np.radians(lat_deg_K))) / (2 * np.pi)
        side = 1 << self.depth
        column_K, row_K = (np.clip((x * side).astype(np.int64), 0, side - 1) for x in (across_K, down_K))
        key_K = (column_K << _ROW_BITS | row_K) << _COUNTRY_BITS | np.asarray(country_K, np.int64)
        self._key_K = np.concatenate([self._key_K, key_K])
        added = np.stack([lat_sum_K, lon_sum_K, photos_K.astype(np.float64), confidence_sum_K])
        self._sums_4K = np.concatenate([self._sums_4K, added], axis=1)
        self._merge()
        while len(self._key_K) > self._most:
            country_K = self._key_K & (1 << _COUNTRY_BITS) - 1
            place_K = self._key_K >> _COUNTRY_BITS
            column_K, row_K = place_K >> _ROW_BITS, place_K & (1 << _ROW_BITS) - 1
            self._key_K = (column_K >> 1 << _ROW_BITS | row_K >> 1) << _COUNTRY_BITS | country_K
            self.depth -= 1
            self._merge()

    def columns(self) -> dict[str, list[float]]:
        """Return the bins: mean position `lat`, `lon` in degrees, `photos`, mean confidence `sure`, and `country`."""
        by_photos = np.lexsort((self._key_K, -self._sums_4K[2]))
        key_K, sums_4K = self._key_K[by_photos], self._sums_4K[:, by_photos]
        _, first_B, bin_K = np.unique(key_K >> _COUNTRY_BITS, return_index=True, return_inverse=True)
        lat_B, lon_B, photos_B, confidence_B = (np.bincount(bin_K, sums, len(first_B)) for sums in sums_4K)
        return {
            "lat": np.round(lat_B / photos_B, 3).tolist(),
            "lon": np.round(lon_B / photos_B, 3).tolist(),
            "photos": photos_B.astype(np.int64).tolist(),
            "sure": np.round(confidence_B / photos_B, 3).tolist(),
            # the first of a bin is its country with most photos
            "country": (key_K[first_B] & (1 << _COUNTRY_BITS) - 1).tolist(),
        }

    def _merge(self) -> None:
        self._key_K, inverse = np.unique(self._key_K, return_inverse=True)
        self._sums_4K = np.stack([np.bincount(inverse, sums, len(self._key_K)) for sums in self._sums_4K])
