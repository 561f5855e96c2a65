"""Tables of photos whose position is known: what hierarchies are built from and models are trained and tested on.

A table is Parquet or CSV with columns for latitude and longitude in degrees under any of their usual names. Where
photos are read it also has `uri` or `path`, and where it can `photographer` and `scene`.

Shapes: N photos.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import schema, storage

URI_NAMES = (schema.URI, "path", "url")
LATITUDE_NAMES = (schema.LAT_DEG, "lat", "latitude", "gps_latitude")
LONGITUDE_NAMES = (schema.LON_DEG, "lon", "lng", "long", "longitude", "gps_longitude")
PHOTOGRAPHER_NAMES = ("photographer", "author", "user", "source", "source_repo")
SCENE_NAMES = (schema.SCENE,)


@dataclass(frozen=True, eq=False)
class LabelledPhotos:
    """Photos with their positions; sequences of length N.

    `name_N`: the table's own words for each photo, which splits depend on; `uri_N`: where it can be read;
    `photographer_N`: "" where the table does not say; `scene_N`: None where it does not.
    """

    name_N: tuple[str, ...]
    uri_N: tuple[str, ...]
    lat_deg_N: NDArray[np.float64]
    lon_deg_N: NDArray[np.float64]
    photographer_N: tuple[str, ...]
    scene_N: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.name_N)


def read_table(uri: str) -> pa.Table:
    """Read a Parquet or CSV table (told apart by content). Raises ValueError if it can't be read or has no rows."""
    try:
        data = storage.read_bytes(uri)
    except OSError as error:
        raise ValueError(f"cannot read the table {uri}: {error}") from error
    try:
        if data[:4] == b"PAR1":
            table = pq.read_table(io.BytesIO(data))
        else:
            parsing = pa.csv.ParseOptions(newlines_in_values=True)
            as_text = {name: pa.string() for name in (*URI_NAMES, *PHOTOGRAPHER_NAMES, *SCENE_NAMES)}
            converting = pa.csv.ConvertOptions(column_types=as_text, strings_can_be_null=True)
            table = pa.csv.read_csv(io.BytesIO(data), parse_options=parsing, convert_options=converting)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{uri} is neither a readable Parquet table nor a readable CSV: {error}") from error
    if not table.num_rows:
        raise ValueError(f"{uri} has no rows")
    return table


def find_column(table: pa.Table, names: Sequence[str]) -> str | None:
    """Return the table's column that has one of the names, in any case, the first name first; None if it has none."""
    by_name = {name.lower(): name for name in reversed(table.column_names)}
    return next((by_name[name] for name in names if name in by_name), None)


def coordinates(table: pa.Table, uri: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (lat_deg_N, lon_deg_N) of a table read from `uri`.

    Raises ValueError, naming the row, for a position that is missing, no number or not on Earth.
    """
    columns = []
    for names, limit_deg in ((LATITUDE_NAMES, 90), (LONGITUDE_NAMES, 180)):
        name = _require_column(table, names, uri)
        try:
            degrees_N = table[name].cast(pa.float64()).to_numpy()
        except pa.ArrowException as error:
            raise ValueError(f"column {name} of {uri} is not made of numbers: {error}") from error
        bad_N = ~(np.abs(degrees_N) <= limit_deg)
        if bad_N.any():
            row = int(np.argmax(bad_N))
            raise ValueError(
                f"column {name} of {uri} has {bad_N.sum()} values that are missing or beyond ±{limit_deg} degrees, "
                f"first {degrees_N[row]} in row {row + 1}: remove those rows"
            )
        columns.append(degrees_N)
    return columns[0], columns[1]


def labelled_photos(uri: str, root: str = "", only: str = "", scenes: str = "") -> LabelledPhotos:
    """Read the labelled photos of a table.

    `root`: where relative paths lie, beside the table if empty. `only`: the name of a column of 0 and 1 (or false and
    true), to take the rows of 1. `scenes`: another table, of photos' names and scenes, instead of a column `scene`.
    Raises ValueError for a table that can't be read, lacks a column that is needed, or names a photo twice.
    """
    table = read_table(uri)
    if only:
        table = table.filter(_flags(table, only, uri))
        if not table.num_rows:
            raise ValueError(f"{uri} has no rows where {only} is 1")
    names = _texts(table, _require_column(table, URI_NAMES, uri))
    if None in names:
        raise ValueError(f"{uri} names no photo in row {names.index(None) + 1}: give every row a path or uri")
    name_N = tuple(str(name) for name in names)
    if len(set(name_N)) < len(name_N):
        twice = next(name for name in name_N if name_N.count(name) > 1)
        raise ValueError(f"{uri} names the photo {twice} twice: a photo in two splits would be a leak, so remove one")
    lat_deg_N, lon_deg_N = coordinates(table, uri)
    photographer = find_column(table, PHOTOGRAPHER_NAMES)
    return LabelledPhotos(
        name_N=name_N,
        uri_N=tuple(_beside(name, root or uri.rpartition("/")[0] or ".") for name in name_N),
        lat_deg_N=lat_deg_N,
        lon_deg_N=lon_deg_N,
        photographer_N=tuple(x or "" for x in _texts(table, photographer)) if photographer else ("",) * len(name_N),
        scene_N=tuple(map((_scenes(scenes) if scenes else _scenes_in(table)).get, name_N)),
    )


def _scenes(uri: str) -> dict[str | None, str | None]:
    table = read_table(uri)
    _require_column(table, SCENE_NAMES, uri)
    _require_column(table, URI_NAMES, uri)
    return _scenes_in(table)


def _scenes_in(table: pa.Table) -> dict[str | None, str | None]:
    photo, scene = find_column(table, URI_NAMES), find_column(table, SCENE_NAMES)
    return dict(zip(_texts(table, photo), _texts(table, scene), strict=True)) if photo and scene else {}


def _beside(name: str, folder: str) -> str:
    return name if "://" in name or name.startswith("/") else storage.join(folder, name)


def _flags(table: pa.Table, name: str, uri: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise ValueError(f"{uri} has no column {name}; its columns are {', '.join(table.column_names)}")
    try:
        return pc.fill_null(table[name].cast(pa.bool_()), False)
    except pa.ArrowException as error:
        raise ValueError(f"column {name} of {uri} does not hold 0 and 1: {error}") from error


def _texts(table: pa.Table, name: str) -> list[str | None]:
    texts: list[str | None] = table[name].cast(pa.string()).to_pylist()
    return texts


def _require_column(table: pa.Table, names: Sequence[str], uri: str) -> str:
    name = find_column(table, names)
    if name is None:
        raise ValueError(f"{uri} has no column {' or '.join(names)}; its columns are {', '.join(table.column_names)}")
    return name
