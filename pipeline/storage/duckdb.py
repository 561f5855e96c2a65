"""Open DuckDB for whoever computes with more rows than fit into memory, and let it read files of photos' rows.

A connection keeps to an eighth of the memory and spills the rest into a folder of its own that only its user can read:
the rows that it holds are of people's photos.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from pipeline import older_rows, schema, storage

_MEMORY_LIMIT = "12.5%"
"""Of the machine's memory, or of its container's where that has less: the rest is for Ray, decoders and the model.

DuckDB takes as many threads as there are cores.
"""


def connect(*uris: str) -> duckdb.DuckDBPyConnection:
    """Open an in-memory DuckDB that spills to disk, knows UTC only, and can read every scheme among `uris`.

    DuckDB lets every query read the folder that it spills into. So each connection has one for itself, which goes with
    it: no query reads what another has spilled. Raises ValueError where the folder of them all is not the user's own.
    """
    connection = duckdb.connect()
    connection.execute(f"SET memory_limit = '{_MEMORY_LIMIT}'")
    connection.execute("SET temp_directory = ?", [str(_own_folder(connection))])
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


def _own_folder(connection: duckdb.DuckDBPyConnection) -> Path:
    """Make a folder for one connection, which is removed with it; and remove those that killed processes left."""
    parent = spill_folder()
    with _locked(parent, fcntl.LOCK_EX):  # nobody tidies between the making of a folder and its lock
        for left in parent.iterdir():
            with contextlib.suppress(OSError), _locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB):  # else it is in use
                shutil.rmtree(left)
        folder = Path(tempfile.mkdtemp(prefix="connection-", dir=parent))
        held = contextlib.ExitStack()
        held.enter_context(_locked(folder, fcntl.LOCK_SH))
    weakref.finalize(connection, _remove, folder, held)
    return folder


def _remove(folder: Path, held: contextlib.ExitStack) -> None:
    with held:
        shutil.rmtree(folder, ignore_errors=True)  # its user may have removed it, as temporary folders are


@contextlib.contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """Lock a folder against others that do, as the kernel does until this process ends; OSError where it can't be."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


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
    read = connection.read_parquet(
        list(files),
        hive_partitioning=False,
        filename=True,
        file_row_number=has_all_columns,
        union_by_name=has_all_columns,
    )
    read.create_view(f"{name}_read")
    columns = "*"
    if has_all_columns:
        own = (older_rows.column_sql(column, read.columns) for column in schema.PHOTOS.names)
        columns = ", ".join([*filter(None, own), "filename, file_index, file_row_number"])
    rows = f"SELECT {columns} FROM {name}_read JOIN {name}_files USING (filename)"
    connection.execute(
        f"CREATE VIEW {name} AS {f'FROM no_{name} UNION ALL BY NAME {rows}' if has_all_columns else rows}"
    )
