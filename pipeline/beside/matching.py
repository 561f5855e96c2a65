"""Which listed sidecars belong to which listed photos, found in DuckDB with bounded memory, folder by folder.

Only names are looked at: nothing is asked of a store. Archives whose names differ in a last number only, as the parts
of a Google Takeout do (`takeout-…-001.zip`), are one place: a photo's JSON may lie in another part than the photo.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline import schema
from pipeline.beside import names

if TYPE_CHECKING:
    import duckdb

log = logging.getLogger(__name__)

MOST_BESIDE = 16
"""So many sidecars of one photo are read: darktable has one for each duplicate."""
_MOST_OF_ONE_CUT = 8
"""Where more JSON files than these have the same cut name, only the one with the photo's own number is looked at."""

_PLACES = """
    SELECT rowid AS listed_row, container_uri,
        CASE WHEN container_uri IS NULL THEN uri ELSE substr(uri, length(container_uri) + 2) END AS path,
        regexp_extract(path, '[^/]*$') AS name,
        md5_number(concat(regexp_replace(container_uri, '(^|\\D)\\d{1,3}(\\.[A-Za-z]+)$', '\\1\\2'), '#',
            left(path, length(path) - length(name)))) AS folder
    FROM listed"""
"""Each row's folder, as a number that tells it from all others, and its name there."""

_KEYS = pa.list_(pa.struct([pa.field("spelling", pa.string()), pa.field("rank", pa.int16())]))
_KEYS_SQL = "STRUCT(spelling VARCHAR, rank SMALLINT)[]"

_WITHOUT_REPEATS = """
DELETE FROM sidecar_places WHERE listed_row IN (
    WITH repeated AS (
        SELECT folder, name, container_uri FROM sidecar_places GROUP BY ALL HAVING count(*) > 1)
    SELECT place.listed_row FROM sidecar_places place SEMI JOIN repeated
        ON place.folder = repeated.folder AND place.name = repeated.name
        AND place.container_uri IS NOT DISTINCT FROM repeated.container_uri
    QUALIFY row_number() OVER (PARTITION BY place.folder, place.name, place.container_uri ORDER BY listed_row) > 1)
"""
"""Leaves each sidecar once, however often it is listed."""

_MATCHES = f"""
CREATE TABLE matches AS
WITH found AS (
    SELECT photo.listed_row AS photo_row, sidecar.listed_row AS sidecar_row, photo.rank + sidecar.rank AS rank,
        photo.spelling = sidecar.spelling AS is_spelled_so,
        photo.container_uri IS NOT DISTINCT FROM sidecar.container_uri AS is_of_the_same
    FROM photo_keys photo JOIN sidecar_keys sidecar ON photo.folder = sidecar.folder AND photo.key = sidecar.key
    WHERE is_of_the_same OR photo.rank >= {names.OWN_NAME}),
closest AS (
    FROM found QUALIFY row_number() OVER (
        PARTITION BY photo_row, sidecar_row ORDER BY rank, is_spelled_so DESC) = 1),
judged AS (
    SELECT *, rank >= {names.OWN_NAME} AS is_takeout,
        rank IN ({", ".join(map(str, names.CUT_RANKS))}) AS is_cut,
        CASE WHEN rank = {names.CUT_OTHER_NUMBER} THEN {names.CUT} ELSE rank END AS class,
        min(rank) OVER (PARTITION BY sidecar_row) AS best_of_sidecar,
        bool_or(is_spelled_so AND is_of_the_same) OVER (PARTITION BY photo_row, rank) AS has_exact,
        count(*) OVER (PARTITION BY photo_row, rank) AS as_close
    FROM closest)
SELECT photo_row, sidecar_row, is_takeout, is_cut,
    rank * 4 + CASE WHEN is_spelled_so THEN 0 ELSE 2 END
        + CASE WHEN is_of_the_same THEN 0 ELSE 1 END AS closeness
FROM judged
WHERE (rank <> {names.VERSION} OR best_of_sidecar = {names.VERSION})
    AND (NOT has_exact OR (is_spelled_so AND is_of_the_same))
    AND (rank <> {names.CUT_OTHER_NUMBER} OR as_close <= {_MOST_OF_ONE_CUT})
QUALIFY NOT is_takeout OR class = min(class) OVER (PARTITION BY photo_row, is_takeout)
"""
"""A photo has all its XMP sidecars, and of Takeout's JSON files the closest one; of cut names all that are as close."""

_FIELDS = (schema.SIDECAR_KIND, schema.SIDECAR_IS_CUT, *schema.PLACE_OF_BYTES)
# An aggregate that sorts takes five times as long as sorting its lists, by their first field and then the URI.
_BESIDE = f"""
CREATE TABLE beside AS
WITH grouped AS (
    SELECT photo_row, list_sort(list({{'closeness': closeness,
            {", ".join(f"'{name}': {name}" for name in schema.PLACE_OF_BYTES)},
            '{schema.SIDECAR_KIND}': CASE WHEN is_takeout THEN 'takeout' ELSE 'xmp' END,
            '{schema.SIDECAR_IS_CUT}': is_cut
        }}))[:{MOST_BESIDE}] AS closest
    FROM matches JOIN listed sidecar ON matches.sidecar_row = sidecar.rowid GROUP BY photo_row)
SELECT photo_row,
    list_transform(closest, lambda each: {{{", ".join(f"'{name}': each.{name}" for name in _FIELDS)}}})
    AS {schema.SIDECARS},
    md5(array_to_string(list_transform(
        closest, lambda each: each.uri || chr(10) || coalesce(each.etag, '')), chr(10)))
    AS {schema.SIDECAR_ETAG}
FROM grouped
"""


def find_beside(connection: duckdb.DuckDBPyConnection) -> int:
    """Make the table `beside` of the rows of `listed` that have sidecars: `photo_row`, `sidecars`, `sidecar_etag`.

    Returns how many photos that are.
    """
    is_sidecar = " OR ".join(f"ends_with(lower(name), '{ending}')" for ending in names.ENDINGS)
    connection.execute(
        f"CREATE TABLE sidecar_places AS SELECT *, ends_with(lower(name), '.xmp') AS is_xmp"
        f" FROM ({_PLACES}) WHERE {is_sidecar}"
    )
    connection.execute(_WITHOUT_REPEATS)
    _make_keys(connection, "sidecar_keys", _keys_of_sidecars, "FROM sidecar_places")
    photos = f"(FROM ({_PLACES}) WHERE NOT ({is_sidecar}))"
    _make_keys(connection, "photo_keys", _keys_for_xmp, f"FROM {photos} SEMI JOIN {_OF_KIND['xmp']} USING (folder)")
    more = f"FROM {photos} SEMI JOIN {_OF_KIND['takeout']} USING (folder)"
    _make_keys(connection, "photo_keys", _keys_for_takeout, more)
    connection.execute(_MATCHES)
    ((many,),) = connection.execute(
        f"SELECT count(*) FROM (SELECT photo_row FROM matches GROUP BY ALL HAVING count(*) > {MOST_BESIDE})"
    ).fetchall()
    if many:
        log.warning("%d photos have more than %d sidecars, of which only the closest are read", many, MOST_BESIDE)
    connection.execute(_BESIDE)
    connection.execute("DROP TABLE sidecar_keys; DROP TABLE photo_keys; DROP TABLE matches; DROP TABLE sidecar_places")
    ((count,),) = connection.execute("SELECT count(*) FROM beside").fetchall()
    return int(count)


_OF_KIND = {
    kind: f"(FROM sidecar_places WHERE {'' if kind == 'xmp' else 'NOT '}is_xmp)" for kind in names.ENDINGS.values()
}


def _make_keys(
    connection: duckdb.DuckDBPyConnection, table: str, keys_of: Callable[[pa.ChunkedArray], pa.Array], rows: str
) -> None:
    """Add the keys of names to a table, which is made where there is none."""
    connection.create_function(  # type: ignore[call-overload]  # it takes texts, and its declaration does not say so
        keys_of.__name__, keys_of, ["VARCHAR"], _KEYS_SQL, type="arrow"
    )
    connection.execute(
        f"CREATE TABLE IF NOT EXISTS {table}"
        " (listed_row BIGINT, folder UHUGEINT, container_uri VARCHAR, key VARCHAR, spelling VARCHAR, rank SMALLINT)"
    )
    connection.execute(
        f"INSERT INTO {table} SELECT listed_row, folder, container_uri, lower(key.spelling), key.spelling, key.rank"
        f" FROM (SELECT *, unnest({keys_of.__name__}(name)) AS key {rows})"
    )
    connection.remove_function(keys_of.__name__)


def _keys_of_sidecars(of_names: pa.ChunkedArray) -> pa.Array:
    return _as_lists(list(names.sidecar_keys(name)) for name in of_names.to_pylist())


def _keys_for_xmp(of_names: pa.ChunkedArray) -> pa.Array:
    return _as_lists(list(names.photo_keys(name, "xmp")) for name in of_names.to_pylist())


def _keys_for_takeout(of_names: pa.ChunkedArray) -> pa.Array:
    return _as_lists(list(names.photo_keys(name, "takeout")) for name in of_names.to_pylist())


def _as_lists(keys_of_each: Iterable[list[names.Key]]) -> pa.Array:
    """Return lists of keys as Arrow, by way of flat columns: a struct at a time takes three times as long."""
    spellings: list[str] = []
    ranks: list[int] = []
    offsets = [0]
    for keys in keys_of_each:
        for spelling, rank in keys:
            spellings.append(spelling)
            ranks.append(rank)
        offsets.append(len(ranks))
    keys = pa.StructArray.from_arrays(
        [pa.array(spellings, pa.string()), pa.array(ranks, pa.int16())], fields=list(_KEYS.value_type)
    )
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), keys)
