"""Photos that have a row and that their sources list no more: which they are, and when a listing may say so.

A run publishes the whole list, one object `gone/eEPOCH.parquet` of `schema.GONE`, where it differs from the one
before; the newest that a record names counts. A photo is on it where all of this holds:

- Every source that can have listed it for a run that gave it a row was listed again, to its end, with the same
  patterns or none. So neither another source nor `--include` makes photos gone.
- It does not lie in a folder or archive that could not be listed, nor in a folder that is still there and empty, as a
  disk that is not mounted leaves it.
- It was moved (a photo of this run has its bytes), or no more than `--max-gone-fraction` of its source is missing.

A photo that is listed again comes off the list, whatever else is amiss with the listing.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema, storage
from pipeline.published.records import PublishedFile, RunRecord
from pipeline.storage.duckdb import connect

log = logging.getLogger(__name__)

_ARCHIVES = (".tar", ".zip")
_INVENTORY = re.compile(r"(.+/)(\d{4}-\d{2}-\d{2}T\d{2}-\d{2}Z)/manifest\.json")
"""An inventory lists the same bucket each time, under the time when it was made."""
_IS_MEMBER = r"regexp_matches(uri, '(?i)\.(tar|zip)#')"
_FOUND = pa.schema([*schema.GONE, pa.field(schema.CONTENT_HASH, pa.binary(16)), pa.field("source", pa.int64())])
"""What planning finds: the photos on the list already, and with null for `gone_since` those that are missing now."""


@dataclass(frozen=True)
class Scope:
    """What one listing was of: its sources, and the patterns that left photos out."""

    sources: tuple[str, ...]
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: RunRecord) -> Scope:
        """Return what a finished run has listed."""
        patterns = (tuple(record.setting(name) or ()) for name in ("include", "exclude"))
        return cls(record.sources, *patterns)

    def covers(self, older: Scope) -> str:
        """Return an SQL condition on `uri`: all that can have listed the photo for `older` is listed here again."""
        if (self.include or self.exclude) and (self.include, self.exclude) != (older.include, older.exclude):
            return "false"
        ours = [_Source(source) for source in self.sources]
        theirs = [_Source(source) for source in older.sources]
        again = [f"(NOT {source.may_list} OR {source.is_among(ours)})" for source in theirs]
        return f"(({_any(source.may_list for source in theirs)}) AND {' AND '.join(again)})" if again else "false"

    def group(self) -> str:
        """Return SQL for the number of the source that a `uri` is below, or of the first that may have listed it."""
        sources = [_Source(source) for source in self.sources]
        numbered = sorted(enumerate(sources), key=lambda each: each[1].is_table)
        return f"CASE {' '.join(f'WHEN {source.may_list} THEN {index}' for index, source in numbered)} END"


@dataclass(frozen=True)
class Missing:
    """What planning finds; see `find`.

    Attributes:
        uri: where the stage keeps it.
        kept: photos that were gone before and are still.
        back: photos that were gone before and are listed again.
        new: photos that are missing for the first time, but for those `in_empty_folders` and those `unseen`.
        unseen: photos that lie where nobody could look.
        empty_folder: one of the empty folders.
        listed_by_source: how many photos each source lists now.
    """

    uri: str = ""
    kept: int = 0
    back: int = 0
    new: int = 0
    unseen: int = 0
    in_empty_folders: int = 0
    empty_folder: str = ""
    listed_by_source: tuple[int, ...] = ()


@dataclass(frozen=True)
class Gone:
    """How many photos are gone now, how many are missing and not taken for gone; the new list, if it is another one."""

    count: int
    held_back: int = 0
    list: PublishedFile | None = None


def newest_list(records: Sequence[RunRecord]) -> PublishedFile | None:
    """Return the list that counts, None where nothing was ever gone; `records` are in the order of their runs."""
    return next((record.gone for record in reversed(records) if record.gone is not None), None)


def find(
    connection: Any, uri: str, scope: Scope, records: Sequence[RunRecord], output: str, unseen: Sequence[str] = ()
) -> Missing:
    """Find what is gone, missing or back, in the tables of a plan: `listed`, `done` and the view `published`.

    `records` are of the runs whose files `published` is made of, in its order; `unseen` are the folders and archives
    that could not be listed. Writes to `uri` what `settle` needs.
    """
    before = newest_list(records)
    connection.register("no_gone", schema.GONE.empty_table())
    known = "no_gone" if before is None else f"read_parquet('{_quoted(storage.join(output, before.path))}')"
    connection.execute(
        f"""
        CREATE TABLE gone_before AS FROM {known};
        CREATE TABLE missing AS SELECT photo_id FROM done ANTI JOIN listed USING (photo_id)
            ANTI JOIN gone_before USING (photo_id);
        """
    )
    _judge(connection, scope, records)
    unseen_photos = _hold_unseen(connection, unseen)
    in_empty_folders, empty_folder = _hold_empty_folders(connection)
    found = connection.sql(
        f"""
        SELECT photo_id, gone_since, run_sequence, NULL::BLOB AS content_hash, NULL::BIGINT AS source
        FROM gone_before ANTI JOIN listed USING (photo_id)
        UNION ALL SELECT photo_id, NULL, NULL, content_hash, {scope.group()} FROM candidates
        """
    )
    (kept, new), (back,) = (
        connection.sql(query).fetchall()[0]
        for query in (
            f"SELECT count(gone_since), count(*) - count(gone_since) FROM ({found.sql_query()})",
            "SELECT count(*) FROM gone_before SEMI JOIN listed USING (photo_id)",
        )
    )
    listed = dict(connection.sql(f"SELECT {scope.group()}, count(*) FROM listed GROUP BY 1").fetchall() if new else ())
    if new or back:
        storage.write_bytes(uri, _parquet(found.to_arrow_reader(1_000_000), _FOUND))
    by_source = tuple(listed.get(index, 0) for index in range(len(scope.sources)))
    return Missing(uri, kept, back, new, unseen_photos, in_empty_folders, empty_folder, by_source)


def settle(
    missing: Missing,
    row_files: Sequence[str],
    place: str,
    output: str,
    sources: Sequence[str],
    *,
    is_complete: bool,
    max_fraction: float,
    sequence: int,
    since: Any,
) -> Gone:
    """Decide which of the `missing` photos are gone, and put the new list at `place`, a path below the output.

    `row_files` are the rows that this run has staged. Without `is_complete`, where something there has no name, nothing
    is newly gone.
    """
    _tell_empty_folders(missing)
    held_back = missing.in_empty_folders + missing.unseen
    if not (missing.new or missing.back):
        return Gone(missing.kept, held_back)
    with connect(output) as connection:
        connection.execute(f"CREATE TABLE found AS FROM read_parquet('{_quoted(missing.uri)}')")
        rows = "no_rows"
        connection.register(rows, schema.PHOTOS.empty_table())
        if row_files:
            connection.read_parquet(list(row_files), hive_partitioning=False).create_view("rows")
            rows = "rows"
        connection.execute(
            f"""
            CREATE TABLE new AS SELECT photo_id, source, content_hash IN (
                SELECT content_hash FROM {rows} WHERE content_hash IS NOT NULL) AS is_moved
            FROM found WHERE gone_since IS NULL
            """
        )
        counted = connection.sql(
            "SELECT source, count(*) FROM new WHERE is_moved IS NOT true GROUP BY 1 ORDER BY 1"
        ).fetchall()
        held = []
        for source, count in counted if is_complete else ():
            listed = missing.listed_by_source[source]
            if count > max_fraction * (count + listed):
                held.append(source)
                _tell_held(sources[source], count, listed, max_fraction)
        refused = (
            "true" if not is_complete else f"is_moved IS NOT true AND source IN ({', '.join(map(str, held)) or -1})"
        )
        ((refused_count,),) = connection.sql(f"SELECT count(*) FROM new WHERE {refused}").fetchall()
        held_back += refused_count
        if refused_count == missing.new and not missing.back:
            return Gone(missing.kept, held_back)
        gone = connection.sql(
            f"""
            SELECT photo_id, gone_since, run_sequence FROM found WHERE gone_since IS NOT NULL
            UNION ALL SELECT photo_id, $since::TIMESTAMPTZ, $sequence::BIGINT FROM new WHERE NOT ({refused})
            ORDER BY photo_id
            """,
            params={"since": since, "sequence": sequence},
        ).to_arrow_reader(1_000_000)
        file = put_list(output, place, gone, schema.GONE)
    return Gone(file.row_count or 0, held_back, file)


def put_list(output: str, path: str, rows: pa.RecordBatchReader, columns: pa.Schema) -> PublishedFile:
    """Put a list of photos at `path`, which is relative to the output, and return what a record says of it."""
    data = _parquet(rows, columns)
    storage.write_bytes(storage.join(output, path), data)
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    return PublishedFile(path, pq.read_metadata(pa.BufferReader(data)).num_rows, len(data), digest)


class _Source:
    """A source as what it can list: a photo, all below a folder, archives' members, or whatever a table names."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        folder, _, name = self.uri.rpartition("/")
        lower = name.lower()
        self._below, self.is_table = f"{self.uri}/", False
        self._date = ""
        is_one_of = f"NOT {_IS_MEMBER}"
        if lower in ("*.tar", "*.zip"):
            self._below, is_one_of = f"{folder}/", rf"regexp_matches(uri, '(?i)\{lower[1:]}#')"
        elif (wild := re.search(r"[*?\[]", self.uri)) is not None:
            # Of a pattern only the same one lists the same again.
            self._below, is_one_of = self.uri[: wild.start()], "true"
        elif lower.endswith(_ARCHIVES):
            self._below, is_one_of = f"{self.uri}#", "true"
        elif schema.LIST_NAME.search(lower):
            self.is_table = True
            if made := _INVENTORY.fullmatch(self.uri):
                self.uri, self._date = made[1], made[2]
        self._is_folder = not self.is_table and is_one_of.startswith("NOT")
        is_below = f"(starts_with(uri, '{_quoted(self._below)}') AND {is_one_of})"
        self.may_list = "true" if self.is_table else f"({is_below} OR uri = '{_quoted(self.uri)}')"

    def is_among(self, others: Sequence[_Source]) -> str:
        """Return an SQL condition: one of `others` lists the photo too, if it is still there."""
        if any(other.uri == self.uri and other._date >= self._date for other in others):
            return "true"
        folders = [other.may_list for other in others if other._is_folder] if self._is_folder else []
        return _any(folders)


def _judge(connection: Any, scope: Scope, records: Sequence[RunRecord]) -> None:
    """Make the table `candidates` of those `missing` photos whose every run's sources are listed here again."""
    rules: dict[str, int] = {}
    file_rules = []
    for record in records:
        rule = rules.setdefault(scope.covers(Scope.of(record)), len(rules))
        file_rules += [rule] * len(record.files)
    connection.register(
        "file_rules",
        pa.table(
            {"file_index": pa.array(range(len(file_rules)), pa.int64()), "rule": pa.array(file_rules, pa.int64())}
        ),
    )
    cases = " ".join(f"WHEN {number} THEN {condition}" for condition, number in rules.items()) or "WHEN -1 THEN false"
    connection.execute(
        rf"""
        CREATE TABLE candidates AS
        SELECT *, regexp_replace(regexp_replace(uri, '(?i)\.(tar|zip)#.*$', ''), '/[^/]*$', '') AS folder FROM (
            SELECT photo_id, arg_max(uri, file_index) AS uri, arg_max(content_hash, file_index) AS content_hash
            FROM published JOIN missing USING (photo_id) JOIN file_rules USING (file_index)
            GROUP BY photo_id HAVING bool_and(CASE rule {cases} ELSE false END))
        """
    )


def _hold_unseen(connection: Any, unseen: Sequence[str]) -> int:
    """Take out of `candidates` what may still lie in folders and archives that could not be listed: how many."""
    if not unseen:
        return 0
    begins = pa.table({"begin": [f"{uri.rstrip('/')}{sign}" for uri in unseen for sign in "/#"]})
    connection.register("unseen", begins)
    condition = "WHERE EXISTS (FROM unseen WHERE starts_with(uri, begin))"
    ((count,),) = connection.sql(f"SELECT count(*) FROM candidates {condition}").fetchall()
    connection.execute(f"DELETE FROM candidates {condition}")
    return int(count)


def _hold_empty_folders(connection: Any) -> tuple[int, str]:
    """Take out of `candidates` what lies in folders that are there and empty: how many, and one such folder."""
    folders = connection.sql("SELECT folder, count(*) FROM candidates GROUP BY folder ORDER BY folder").fetchall()
    held = {folder: count for folder, count in folders if storage.is_left_empty(folder)}
    if not held:
        return 0, ""
    connection.register("held_folders", pa.table({"folder": pa.array(held, pa.string())}))
    connection.execute("DELETE FROM candidates WHERE folder IN (SELECT folder FROM held_folders)")
    return sum(held.values()), min(held)


def _tell_empty_folders(missing: Missing) -> None:
    if missing.in_empty_folders:
        log.warning(
            "%d photos are missing below folders that are there and empty, such as %s, as a disk that is not mounted"
            " leaves them: they are not taken for gone. If they are, remove the empty folders",
            missing.in_empty_folders,
            schema.printable(missing.empty_folder),
        )


def _tell_held(source: str, count: int, listed: int, max_fraction: float) -> None:
    log.warning(
        "%d photos of %s are missing, and %d are there: that is more than --max-gone-fraction %g allows, and they are"
        " not taken for gone. If they are, run again with --max-gone-fraction 1",
        count,
        schema.printable(source),
        listed,
        max_fraction,
    )


def _any(conditions: Any) -> str:
    return " OR ".join(dict.fromkeys(conditions)) or "false"


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def _parquet(rows: pa.RecordBatchReader, columns: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, columns, compression="zstd") as writer:
        for batch in rows:
            writer.write_table(pa.Table.from_batches([batch]).cast(columns))
    return bytes(sink.getvalue())
