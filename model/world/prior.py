"""Where photos of the world are taken: what to believe of a photo's place before it is looked at.

A prior is a table of S2 cells of one level with how many photos were taken in each. The one that ships with Graticule
is made of 100,000 positions of photos that were shared publicly; one of an archive's own positions is often better.

Shapes: N photos, M cells of the table, K cells of a level of a hierarchy.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from model.world import s2
from model.world.hierarchy import Hierarchy

S2_LEVEL = 11
"""The table's cells are some 4 km wide: within one, every place is as likely as any other."""
ANYWHERE = 0.01
"""This share of the photos is believed to be taken anywhere on Earth, land or sea, so that no place is impossible."""
WORLD = Path(__file__).parent / "world_prior.parquet"
_CELLS_OF_LEVEL_0 = 6
_MAX_CELLS = 1 << 25
_MAX_PHOTOS = 1 << 53
"""As many a double still counts one by one."""
_ID, _COUNT = "cell_id", "photos"


@dataclass(frozen=True, eq=False)
class Prior:
    """Photos counted by S2 cells, ascending, all of one level; arrays of length M.

    Raises ValueError for a table without photos, for cells of several levels, and for counts that are none.
    """

    cell_id_M: NDArray[np.uint64]
    photo_count_M: NDArray[np.int64]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.cell_id_M) or len(self.cell_id_M) != len(self.photo_count_M):
            raise ValueError("a prior needs one cell or more, each with its count of photos")
        if not s2.is_valid_N(self.cell_id_M).all() or len(np.unique(s2.level_of_N(self.cell_id_M))) != 1:
            raise ValueError("a prior's cells must be S2 cells of one level")
        if (np.diff(self.cell_id_M.astype(object)) <= 0).any() or (self.photo_count_M <= 0).any():
            raise ValueError("a prior's cells must be in ascending order, each with one photo or more")
        if self.photo_count_M.sum(dtype=np.float64) > _MAX_PHOTOS:
            raise ValueError("a prior can't be made of so many photos")

    @classmethod
    def of(cls, lat_deg_N: ArrayLike, lon_deg_N: ArrayLike, **provenance: Any) -> Prior:
        """Return the prior of photos taken at these places; ValueError for none, or for places that aren't on Earth."""
        cell_id_M, count_M = np.unique(s2.cell_id_N(lat_deg_N, lon_deg_N, S2_LEVEL), return_counts=True)
        return cls(cell_id_M, count_M.astype(np.int64), provenance)

    @property
    def photos(self) -> int:
        """How many photos it was made of."""
        return int(self.photo_count_M.sum())

    @cached_property
    def content_hash(self) -> str:
        """The SHA-256, in hex, of cells and counts."""
        return hashlib.sha256(self.cell_id_M.tobytes() + self.photo_count_M.tobytes()).hexdigest()

    def probability_K(self, cell_id_K: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Return the probability that a photo was taken in each of some cells, of any S2 levels; none is zero.

        A cell finer than the table's has its share, by area, of the table's cell that it lies in. (At one level S2
        cells differ in area by a factor of two at most; here they count as equal.)
        """
        share_M1 = np.concatenate([[0.0], np.cumsum(self.photo_count_M) / self.photos])
        first_M, last_M = s2.range_min_N(self.cell_id_M), s2.range_max_N(self.cell_id_M)
        start_K = np.searchsorted(first_M, s2.range_min_N(cell_id_K))
        stop_K = np.searchsorted(last_M, s2.range_max_N(cell_id_K), side="right")
        inside_K = np.where(stop_K > start_K, share_M1[np.maximum(stop_K, start_K)] - share_M1[start_K], 0.0)
        level_K = s2.level_of_N(cell_id_K).astype(np.int64)
        own_level = int(s2.level_of_N(self.cell_id_M[:1])[0])
        around_K = np.searchsorted(first_M, s2.range_min_N(cell_id_K), side="right") - 1
        is_finer_K = (level_K > own_level) & (around_K >= 0)
        is_finer_K &= s2.range_max_N(cell_id_K) <= last_M[np.maximum(around_K, 0)]
        share_of_cell_K = np.diff(share_M1)[np.maximum(around_K, 0)] * 0.25 ** np.maximum(level_K - own_level, 0)
        own_K = np.where(is_finer_K, share_of_cell_K, inside_K)
        return np.asarray((1 - ANYWHERE) * own_K + ANYWHERE * 0.25**level_K / _CELLS_OF_LEVEL_0)

    def levels(self, hierarchy: Hierarchy) -> tuple[NDArray[np.float64], ...]:
        """Return the probability of each cell of each level, which add up to 1 over the level.

        Of what lies outside a level's cells nothing is left: a model can answer with its cells alone.
        """
        levels = (self.probability_K(level.cell_id_K) for level in hierarchy.levels)
        return tuple(probability_K / probability_K.sum() for probability_K in levels)

    def points(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (lat_deg_N, lon_deg_N) of the centre of each photo's cell."""
        return s2.centre_deg_N(np.repeat(self.cell_id_M, self.photo_count_M))

    def to_bytes(self) -> bytes:
        """Return the file that `load` reads: Parquet, with where it comes from in its metadata."""
        about = {b"graticule-prior": json.dumps(self.provenance).encode()}
        table = pa.table({_ID: self.cell_id_M, _COUNT: self.photo_count_M}).replace_schema_metadata(about)
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", use_dictionary=False, column_encoding="DELTA_BINARY_PACKED")
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, place: str) -> Prior:
        """Return the prior in a file's bytes; ValueError naming `place` where they are no prior's."""
        try:
            cells = pq.read_metadata(io.BytesIO(data)).num_rows
            if cells > _MAX_CELLS:  # a kilobyte can unfold to any number of them
                raise ValueError(f"it has {cells} cells, more than {_MAX_CELLS}")
            table = pq.read_table(io.BytesIO(data), columns=[_ID, _COUNT])
            if table[_ID].null_count or table[_COUNT].null_count:
                raise ValueError("it has cells without a number or a count")
            provenance = json.loads((table.schema.metadata or {}).get(b"graticule-prior", b"{}"))
            return cls(
                table[_ID].cast(pa.uint64()).to_numpy(), table[_COUNT].cast(pa.int64()).to_numpy(), dict(provenance)
            )
        except (pa.ArrowException, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
            detail = " ".join(str(error).split())[:300]
            raise ValueError(f"{place} is not a prior that jobs.build_prior wrote: {detail}") from error

    @classmethod
    def world(cls) -> Prior:
        """Return the prior that ships with Graticule."""
        return cls.from_bytes(WORLD.read_bytes(), str(WORLD))
