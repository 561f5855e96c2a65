"""Open DuckDB for whoever computes with more rows than fit into memory, and let it read files of photos' rows.

A connection keeps to an eighth of the memory and spills the rest into a folder that only its user can read: the rows
that it holds are of people's photos.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from pipeline import schema, storage

_MEMORY_LIMIT = "12.5%"
"""Of the machine's memory, or of its container's where that has less: the rest is for Ray, decoders and the model.

DuckDB takes as many threads as there are cores.
"""


def connect(*uris: str) -> duckdb.DuckDBPyConnection:
    """Open an in-memory DuckDB that spills to disk, knows UTC only, and can read every scheme among `uris`.

    Raises ValueError where the folder that it would spill into is not the user's own.
    """
    connection = duckdb.connect()
    connection.execute(f"SET memory_limit = '{_MEMORY_LIMIT}'")
    connection.execute("SET temp_directory = ?", [str(spill_folder())])
    connection.execute("SET preserve_insertion_order = false")
    connection.execute("SET enable_progress_bar = false")
    connection.execute("SET TimeZone = 'UTC'")
    for uri in uris:
        storage.let_duckdb_read(connection, uri)
    return connection


def spill_folder() -> Path:
    """Return the user's own folder below the temporary one (TMPDIR), made with mode 0700 where it is missing.

    Everybody can write to a temporary folder. So one that is a link, belongs to somebody else, or is open to others is
    refused with a ValueError.
    """
    folder = Path(tempfile.gettempdir()) / f"graticule-duckdb-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
        if not is_ours or found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ValueError(
                f"{folder} is not a folder of this user's alone, so DuckDB can't keep rows of photos there: remove it,"
                " or name another temporary folder as TMPDIR"
            ) from None
    return folder


def view_rows(
    connection: duckdb.DuckDBPyConnection, name: str, files: Sequence[str], has_all_columns: bool = False
) -> None:
    """Make a view of the rows in `files`, which are read as a stream and not copied.

    `file_index` is the file's in the list: of a photo's rows the one with the highest is the newest, where the list is
    in such an order. With `has_all_columns` there are all of `schema.PHOTOS`, null where an older version's files lack
    one, and `file_row_number`.
    """
    uris, indices = pa.array(files, pa.string()), pa.array(range(len(files)), pa.int64())
    connection.register(f"{name}_files", pa.table({"filename": uris, "file_index": indices}))
    connection.register(f"no_{name}", schema.PHOTOS.empty_table())
    if not files:
        more = ", ''::VARCHAR AS filename, 0::BIGINT AS file_index, 0::BIGINT AS file_row_number"
        connection.execute(f"CREATE VIEW {name} AS SELECT *{more} FROM no_{name}")
        return
    connection.read_parquet(
        list(files),
        hive_partitioning=False,
        filename=True,
        file_row_number=has_all_columns,
        union_by_name=has_all_columns,
    ).create_view(f"{name}_read")
    rows = f"FROM {name}_read JOIN {name}_files USING (filename)"
    connection.execute(
        f"CREATE VIEW {name} AS {f'FROM no_{name} UNION ALL BY NAME {rows}' if has_all_columns else rows}"
    )
