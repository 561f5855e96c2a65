"""The hierarchy of cells that a model classifies into: levels of S2 cells, their parents, coordinates and photo counts.

Shapes: H levels, coarse → fine; K cells of one level; N points. A cell's row is its class index in that level.
A hierarchy is two files, `hierarchy.parquet` and `hierarchy.json`, and is named by the hash of its content.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from model.world import s2

PARQUET_NAME = "hierarchy.parquet"
JSON_NAME = "hierarchy.json"
FORMAT = "graticule-hierarchy"
FORMAT_VERSION = 1
_MAX_CELLS = 1 << 24
NO_PARENT = -1
NO_CELL = -1

_LEVEL_COLUMN = "level"
_DTYPES: dict[str, np.dtype[Any]] = {
    "cell_id_K": np.dtype("<u8"),
    "s2_level_K": np.dtype("i1"),
    "lat_deg_K": np.dtype("<f8"),
    "lon_deg_K": np.dtype("<f8"),
    "spread_km_K": np.dtype("<f4"),
    "photo_count_K": np.dtype("<i8"),
    "parent_K": np.dtype("<i4"),
}


@dataclass(frozen=True, eq=False)
class Level:
    """One level's cells, in ascending order of `cell_id_K`; arrays of length K, one row a cell.

    `lat_deg_K`, `lon_deg_K` are the mean of the cell's training photos on the sphere, `spread_km_K` the distance from
    that mean that holds 90 % of them; `parent_K` indexes the next coarser level's cells (-1 throughout at the
    coarsest). Arrays are converted to their type and made read-only. Raises ValueError for other shapes, for ids that
    are not S2 cells or overlap, and for coordinates that are not on Earth.
    """

    cell_id_K: NDArray[np.uint64]
    s2_level_K: NDArray[np.int8]
    lat_deg_K: NDArray[np.float64]
    lon_deg_K: NDArray[np.float64]
    spread_km_K: NDArray[np.float32]
    photo_count_K: NDArray[np.int64]
    parent_K: NDArray[np.int32]

    def __post_init__(self) -> None:
        for name, dtype in _DTYPES.items():
            array: NDArray[np.generic] = np.ascontiguousarray(getattr(self, name)).astype(dtype)
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        shapes = {getattr(self, name).shape for name in _DTYPES}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1 or self.cell_id_K.size == 0:
            raise ValueError(f"a level needs one row or more in equally long columns, not shapes {sorted(shapes)}")
        if not s2.is_valid_N(self.cell_id_K).all():
            raise ValueError("a level holds numbers that are not S2 cell ids")
        if not np.array_equal(s2.level_of_N(self.cell_id_K), self.s2_level_K):
            raise ValueError("the S2 levels of a level's cells are not those of their cell ids")
        if not (self.range_max_K[:-1] < self.range_min_K[1:]).all():
            raise ValueError("a level's cells overlap or are not in ascending order of cell id")
        if not ((np.abs(self.lat_deg_K) <= 90) & (np.abs(self.lon_deg_K) <= 180)).all():
            raise ValueError("a level has cells whose mean latitude or longitude is not on Earth")
        if not (np.isfinite(self.spread_km_K) & (self.spread_km_K >= 0)).all() or (self.photo_count_K < 0).any():
            raise ValueError("a level has cells with a negative or infinite spread or photo count")

    def __len__(self) -> int:
        return len(self.cell_id_K)

    @cached_property
    def range_min_K(self) -> NDArray[np.uint64]:
        """The first leaf cell of each cell; ascending."""
        return s2.range_min_N(self.cell_id_K)

    @cached_property
    def range_max_K(self) -> NDArray[np.uint64]:
        """The last leaf cell of each cell; ascending."""
        return s2.range_max_N(self.cell_id_K)

    def find_N(self, leaf_id_N: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the row of the cell that holds each S2 cell (of this or a finer S2 level), -1 where none does."""
        row_N = np.searchsorted(self.range_min_K, s2.range_min_N(leaf_id_N), side="right").astype(np.int64) - 1
        inside_N = (row_N >= 0) & (s2.range_max_N(leaf_id_N) <= self.range_max_K[row_N])
        return np.where(inside_N, row_N, NO_CELL)


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """Levels of cells, coarse → fine, in which every cell lies in (or is) exactly one cell of the next coarser level.

    `provenance` says how it came to be (thresholds, photos); it is stored but is not part of the content hash.
    Raises ValueError when levels do not fit each other.
    """

    levels: tuple[Level, ...]
    provenance: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("a hierarchy needs at least one level")
        if not (self.levels[0].parent_K == NO_PARENT).all():
            raise ValueError("the coarsest level of a hierarchy must have -1 for every parent")
        for number, (coarse, fine) in enumerate(zip(self.levels[:-1], self.levels[1:], strict=True), start=1):
            if not np.array_equal(coarse.find_N(fine.cell_id_K), fine.parent_K) or (fine.parent_K == NO_CELL).any():
                raise ValueError(
                    f"level {number} of a hierarchy has cells whose parent is not the cell of level {number - 1} "
                    "that they lie in"
                )

    @cached_property
    def content_hash(self) -> str:
        """The SHA-256, in hex, of the levels' arrays: the same for the same cells however they were stored."""
        digest = hashlib.sha256(f"{FORMAT} {FORMAT_VERSION} {self.class_counts}".encode())
        for level in self.levels:
            for name in _DTYPES:
                digest.update(getattr(level, name).tobytes())
        return digest.hexdigest()

    @property
    def class_counts(self) -> tuple[int, ...]:
        """The number of cells of each level, coarse → fine."""
        return tuple(len(level) for level in self.levels)

    def label_NH(self, lat_deg_N: ArrayLike, lon_deg_N: ArrayLike) -> NDArray[np.int64]:
        """Return each point's class at every level, -1 where no cell of that level holds it.

        Raises ValueError for coordinates that are not finite or a latitude beyond the poles.
        """
        leaf_id_N = s2.leaf_id_N(lat_deg_N, lon_deg_N)
        return np.stack([level.find_N(leaf_id_N) for level in self.levels], axis=-1)

    def to_files(self) -> dict[str, bytes]:
        """Return the content of the files that store this hierarchy, by name."""
        columns: dict[str, NDArray[np.generic]] = {
            _LEVEL_COLUMN: np.repeat(np.arange(len(self.levels), dtype=np.int8), self.class_counts)
        }
        for name in _DTYPES:
            columns[name.removesuffix("_K")] = np.concatenate([getattr(level, name) for level in self.levels])
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer, compression="zstd")
        description = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "content_hash": self.content_hash,
            "class_counts": self.class_counts,
            "provenance": dict(self.provenance),
        }
        return {PARQUET_NAME: buffer.getvalue(), JSON_NAME: (json.dumps(description, indent=2) + "\n").encode()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], place: str) -> Hierarchy:
        """Return the hierarchy stored in `files`, as `to_files` gives them; `place` is what errors call their folder.

        Raises ValueError naming the file that is missing, damaged or not what the other one says.
        """
        for name in (JSON_NAME, PARQUET_NAME):
            if name not in files:
                raise ValueError(f"{place}: {name} is missing; a hierarchy needs {JSON_NAME} and {PARQUET_NAME}")
        try:
            description = json.loads(files[JSON_NAME])
            known = description["format"] == FORMAT and description["version"] == FORMAT_VERSION
            expected_hash, provenance = str(description["content_hash"]), dict(description["provenance"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{place}/{JSON_NAME} is damaged: {error!r}") from error
        if not known:
            raise ValueError(f"{place}/{JSON_NAME} is not a {FORMAT} of version {FORMAT_VERSION}")
        try:
            rows = pq.read_metadata(io.BytesIO(files[PARQUET_NAME])).num_rows
            if rows > _MAX_CELLS:  # a kilobyte can unfold to any number of them
                raise ValueError(f"it has {rows} cells, more than {_MAX_CELLS}")
            names = [_LEVEL_COLUMN, *(name.removesuffix("_K") for name in _DTYPES)]
            table = pq.read_table(io.BytesIO(files[PARQUET_NAME]), columns=names)
            level_of_row = table[_LEVEL_COLUMN].to_numpy()
            levels = []
            for number in range(int(level_of_row.max(initial=-1)) + 1):
                rows = level_of_row == number
                arrays = {name: table[name.removesuffix("_K")].to_numpy()[rows] for name in _DTYPES}
                levels.append(Level(**arrays))
            hierarchy = cls(tuple(levels), provenance)
        except (ValueError, KeyError, TypeError, OSError, pa.ArrowException) as error:
            raise ValueError(f"{place}/{PARQUET_NAME} is damaged: {error}") from error
        if hierarchy.content_hash != expected_hash:
            raise ValueError(f"{place}/{PARQUET_NAME} is damaged or not the file that {JSON_NAME} describes")
        return hierarchy

    def save(self, folder: Path) -> None:
        """Write the two files into `folder`, which is made if need be; each appears complete or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.to_files().items():
            partial = folder / f".{name}.{os.getpid()}.partial"
            partial.write_bytes(content)
            partial.replace(folder / name)

    @classmethod
    def load(cls, folder: Path) -> Hierarchy:
        """Read a hierarchy from its folder. Raises ValueError naming the file that is missing or damaged."""
        files = {}
        for name in (JSON_NAME, PARQUET_NAME):
            try:
                files[name] = (folder / name).read_bytes()
            except OSError as error:
                raise ValueError(f"cannot read {folder / name}: {error.strerror or error}") from error
        return cls.from_files(files, str(folder))


assert tuple(f.name for f in dataclasses.fields(Level)) == tuple(_DTYPES)
