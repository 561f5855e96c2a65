"""Tables of photos whose position is known: what hierarchies are built from and models are trained and tested on.

A table is Parquet or CSV with columns for latitude and longitude in degrees under any of their usual names. Where
photos are read it also has `uri` or `path`, and where it can `photographer`, `scene` and `part`. The layouts that the
field publishes are read as they are: IMG_ID, AUTHOR, LAT, LON, S3_Label, S16_Label (Im2GPS, Im2GPS3k, MP-16) and name,
lat, lon, OwnerNSID (YFCC4k).

Shapes: N photos.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import schema, storage

PARTS = ("train", "validation", "test")

URI_NAMES = (schema.URI, "path", "url", "img_id", "name", "id")
LATITUDE_NAMES = (schema.LAT_DEG, "lat", "latitude", "gps_latitude")
LONGITUDE_NAMES = (schema.LON_DEG, "lon", "lng", "long", "longitude", "gps_longitude")
PHOTOGRAPHER_NAMES = (schema.PHOTOGRAPHER, "author", "user", "source", "source_repo", "ownernsid", "creator_username")
SCENE_NAMES = (schema.SCENE,)
PART_NAMES = (schema.PART,)
SCENE_NUMBER_NAMES = {16: ("s16_label",), 3: ("s3_label",)}
"""The published columns that hold a scene's number, by how many scenes are told apart."""
_PART_WORDS = {part: part for part in PARTS} | {"val": "validation", "valid": "validation"}


@dataclass(frozen=True, eq=False)
class LabelledPhotos:
    """Photos with their positions; sequences of length N.

    `name_N`: the table's own words for each photo, which splits depend on; `uri_N`: where it can be read;
    `photographer_N`: "" where the table does not say; `scene_N`: None where it does not; `part_N`: one of `PARTS`,
    None where the table does not say.
    """

    name_N: tuple[str, ...]
    uri_N: tuple[str, ...]
    lat_deg_N: NDArray[np.float64]
    lon_deg_N: NDArray[np.float64]
    photographer_N: tuple[str, ...]
    scene_N: tuple[str | None, ...]
    part_N: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.name_N)


def read_table(uri: str) -> pa.Table:
    """Read a Parquet or CSV table, told apart by content; a CSV's columns are text.

    Raises ValueError if it can't be read or has no rows.
    """
    try:
        data = storage.read_bytes(uri)
    except OSError as error:
        raise ValueError(f"cannot read the table {uri}: {error}") from error
    return table_from_bytes(data, uri)


def table_from_bytes(data: bytes, uri: str) -> pa.Table:
    """Return the table in a file's bytes; `uri` is what errors call it. Raises ValueError as `read_table` does."""
    try:
        if data[:4] == b"PAR1":
            table = pq.read_table(io.BytesIO(data))
        else:
            parsing = pa.csv.ParseOptions(newlines_in_values=True)
            header = pa.csv.open_csv(io.BytesIO(data), parse_options=parsing).schema.names
            # As text: 007 is a name, not a number, and the first rows do not tell what a column's other rows are.
            as_text = {name: pa.string() for name in header}
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
        name = require_column(table, names, uri)
        try:
            degrees_N = trimmed(table[name]).cast(pa.float64()).to_numpy()
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


def trimmed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of text without spaces around it, any other as it is."""
    return pc.utf8_trim_whitespace(column) if is_text(column) else column


def is_text(column: pa.ChunkedArray) -> bool:
    """Return whether a column holds text."""
    return bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def labelled_photos(
    uri: str, root: str = "", only: str = "", scenes: str = "", vocabulary: tuple[str, ...] = ()
) -> LabelledPhotos:
    """Read the labelled photos of a table.

    `root`: where relative paths lie, beside the table if empty. `only`: the name of a column of 0 and 1 (or false and
    true), to take the rows of 1. `scenes`: another table, of photos' names and scenes, instead of a column `scene`.
    `vocabulary`: the scenes' names; where it is `model.geodecoder.SCENES_16` or `SCENES_3`, a table without a column
    `scene` may give their numbers as S16_Label or S3_Label. Raises ValueError for a table that can't be read, lacks a
    column that is needed, names a photo twice, or has a scene's number or a part that there is not.
    """
    table = read_table(uri)
    if only:
        table = table.filter(_flags(table, only, uri))
        if not table.num_rows:
            raise ValueError(f"{uri} has no rows where {only} is 1")
    names = texts(table, URI_NAMES, uri)
    if None in names:
        raise ValueError(f"{uri} names no photo in row {names.index(None) + 1}: give every row a path or uri")
    name_N = tuple(str(name) for name in names)
    if len(set(name_N)) < len(name_N):
        twice = next(name for name, count in Counter(name_N).items() if count > 1)
        raise ValueError(f"{uri} names the photo {twice} twice: a photo in two splits would be a leak, so remove one")
    lat_deg_N, lon_deg_N = coordinates(table, uri)
    nothing = [None] * len(name_N)
    scene_N = _scenes(scenes, vocabulary, name_N) if scenes else scene_names(table, vocabulary, uri)
    return LabelledPhotos(
        name_N=name_N,
        uri_N=tuple(beside(name, uri, root) for name in name_N),
        lat_deg_N=lat_deg_N,
        lon_deg_N=lon_deg_N,
        photographer_N=tuple(who or "" for who in (photographers(table) or nothing)),
        scene_N=tuple(scene_N or nothing),
        part_N=tuple(parts(table, uri) or nothing),
    )


def photographers(table: pa.Table) -> list[str | None] | None:
    """Return who took each photo of a table; None if it has no such column."""
    name = find_column(table, PHOTOGRAPHER_NAMES)
    return _texts(table, name) if name else None


def scene_names(table: pa.Table, vocabulary: tuple[str, ...], uri: str) -> list[str | None] | None:
    """Return the scene of each photo of a table read from `uri`, by name; None if it has no column that says.

    A column `scene` comes first; else the numbers of the published layouts, where `vocabulary` is what they number.
    Raises ValueError for what is no number of a scene.
    """
    named = find_column(table, SCENE_NAMES)
    if named:
        return _texts(table, named)
    numbered = find_column(table, SCENE_NUMBER_NAMES.get(len(vocabulary), ()))
    if numbered is None or vocabulary != published_scenes(len(vocabulary)):
        return None
    try:
        numbers: list[int | None] = trimmed(table[numbered]).cast(pa.int64()).to_pylist()
    except pa.ArrowException as error:
        raise ValueError(f"column {numbered} of {uri} is not made of whole numbers: {error}") from error
    wrong = next((number for number in numbers if number is not None and not 0 <= number < len(vocabulary)), None)
    if wrong is not None:
        raise ValueError(f"column {numbered} of {uri} has {wrong}: scenes are numbered 0 to {len(vocabulary) - 1}")
    return [None if number is None else vocabulary[number] for number in numbers]


def published_scenes(count: int) -> tuple[str, ...]:
    """Return the names of the 16 or the 3 scenes that the published layouts number; none for another count."""
    from model.geodecoder import SCENES_3, SCENES_16  # it takes torch, seconds that tables without scenes are spared

    return {16: SCENES_16, 3: SCENES_3}.get(count, ())


def _scenes(uri: str, vocabulary: tuple[str, ...], name_N: tuple[str, ...]) -> list[str | None]:
    """Return the scenes of photos as another table says."""
    table = read_table(uri)
    scene_M = scene_names(table, vocabulary, uri) or texts(table, SCENE_NAMES, uri)
    return [*map(dict(zip(texts(table, URI_NAMES, uri), scene_M, strict=True)).get, name_N)]


def parts(table: pa.Table, uri: str) -> list[str | None] | None:
    """Return the part of each photo of a table read from `uri`, one of `PARTS`; None if it has no column `part`.

    `val` and `valid` mean validation. Raises ValueError for any other word.
    """
    name = find_column(table, PART_NAMES)
    if name is None:
        return None
    part_N = _texts(table, name)
    unknown = set(part_N) - _PART_WORDS.keys() - {None}
    if unknown:
        raise ValueError(f"column {name} of {uri} has {sorted(map(str, unknown))[0]!r}: write {', '.join(PARTS)}")
    return [None if part is None else _PART_WORDS[part] for part in part_N]


def texts(table: pa.Table, names: Sequence[str], uri: str) -> list[str | None]:
    """Return the column that has one of the names, as text. Raises ValueError if there is none."""
    return _texts(table, require_column(table, names, uri))


def beside(name: str, uri: str, root: str = "") -> str:
    """Return where a photo that a table names is: an absolute name itself, else below `root` or the table's folder."""
    if "://" in name or name.startswith("/"):
        return name
    return storage.join(root or uri.rpartition("/")[0] or ".", name)


def _flags(table: pa.Table, name: str, uri: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise ValueError(f"{uri} has no column {name}; its columns are {', '.join(table.column_names)}")
    try:
        return pc.fill_null(trimmed(table[name]).cast(pa.bool_()), False)
    except pa.ArrowException as error:
        raise ValueError(f"column {name} of {uri} does not hold 0 and 1: {error}") from error


def _texts(table: pa.Table, name: str) -> list[str | None]:
    texts: list[str | None] = table[name].cast(pa.string()).to_pylist()
    return texts


def require_column(table: pa.Table, names: Sequence[str], uri: str) -> str:
    """Return the table's column that has one of the names. Raises ValueError if it has none."""
    name = find_column(table, names)
    if name is None:
        raise ValueError(f"{uri} has no column {' or '.join(names)}; its columns are {', '.join(table.column_names)}")
    return name
