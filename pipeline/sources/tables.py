"""Parquet and CSV manifests as sources: photos that a table names, wherever they lie."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline import schema, storage
from pipeline.schema import ProblemKind
from pipeline.sources import roots
from pipeline.sources.search import Search
from pipeline.storage import web
from pipeline.storage.ranged_file import RangedFile

log = logging.getLogger(__name__)

ENDINGS = (".parquet", ".csv")
_URI_NAMES = (schema.URI, "path", "url")
_ROWS_PER_BATCH = 10_000
_MAX_URI_BYTES = 32 << 10
_PARQUET_READ_BYTES = 4 << 20
_TIME = schema.MANIFEST.field(schema.MODIFIED_AT).type

_SEGMENT = r"(?:[^/.][^/]*|\.[^/.][^/]*|\.\.[^/]+)"
_PLAIN_ABSOLUTE = rf"\A(?:(?:s3|gs|az)://[^/]|(?:/{_SEGMENT})+\z)"
_PLAIN_RELATIVE = rf"\A{_SEGMENT}(?:/{_SEGMENT})*\z"
_HAS_PLACE = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]+://")
"""Names that are canonical as they stand, or below a canonical folder; `storage.canonical` judges all others."""


@dataclass(frozen=True)
class Table:
    """A manifest with a column `uri` (or `path`, `url`; relative ones lie beside it).

    Where wanted it has `etag`, `size_bytes` and `modified_at` (UTC where it names no zone), too.
    """

    uri: str
    place: str = ""

    @classmethod
    def of(cls, uri: str) -> Table | None:
        """Return the manifest, if the file is there."""
        return cls(uri) if uri.lower().endswith(ENDINGS) and storage.exists(uri) else None

    def tables(self, search: Search) -> Iterator[pa.Table]:
        """Yield the photos that it names, with canonical URIs; a row that can name none is a problem."""
        ours = 0
        for rows in _table_rows(self.uri, search):
            if search.output:
                ours += pc.sum(pc.starts_with(rows.column(schema.URI), f"{search.output}/")).as_py() or 0
            yield search.take(rows, rows.column(schema.URI))
        if ours:
            log.warning("%s: %d of its photos lie below --output, where nothing is a photo", self.uri, ours)


class _Reading:
    """One reading of a manifest: how many rows it had so far, and which of them name nothing that can be read."""

    def __init__(self, source: str, search: Search) -> None:
        self.source, self.search = source, search
        self.folder = storage.canonical(source).rpartition("/")[0]
        self.first_row = 1
        self._dropped, self._unreadable = 0, 0
        self._why_dropped, self._why_unreadable = "", ""

    def drop(self, is_dropped: pa.Array, reason: str) -> None:
        """Count rows that name no photo at all, so that none can have a row of its own."""
        count = is_dropped.true_count
        if count and not self._dropped:
            self._why_dropped = f"row {self.first_row + pc.index(is_dropped, True).as_py()} {reason}"
        self._dropped += count

    def note_unreadable(self, index: int, reason: str) -> None:
        """Count a row whose photo can't be read, as its name alone says: it fails as any other, if not all do."""
        self._why_unreadable = self._why_unreadable or f"row {self.first_row + index}: {reason}"
        self._unreadable += 1

    def finish(self) -> None:
        """Say what was wrong; ValueError where no row is right, so that it must be meant otherwise."""
        row_count = self.first_row - 1
        if not row_count:
            raise ValueError(f"no photos in {self.source}: the manifest has no rows")
        if self._dropped == row_count:
            raise ValueError(f"{self.source}, {self._why_dropped}, and so it is with every row")
        if self._unreadable and self._unreadable + self._dropped == row_count:
            raise ValueError(f"{self.source}, {self._why_unreadable}")
        if self._dropped:
            reason = f"{self._dropped} of its rows name no photo: {self._why_dropped}"
            self.search.note(ProblemKind.ROW, self.source, reason)
        if self._unreadable:
            log.warning("%s: %d photos can't be read; %s", self.source, self._unreadable, self._why_unreadable)


def _table_rows(source: str, search: Search) -> Iterator[pa.Table]:
    """Yield the rows of a Parquet or CSV manifest, checked and with canonical URIs."""
    read = _parquet_batches if source.lower().endswith(".parquet") else _csv_batches
    reading = _Reading(source, search)
    try:
        for batch in read(source):
            yield _checked(batch, reading)
            reading.first_row += batch.num_rows
    except (pa.ArrowException, UnicodeError, RecursionError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"{source} is not a readable manifest: {reason}") from error
    reading.finish()


def _checked(batch: pa.RecordBatch, reading: _Reading) -> pa.Table:
    source, name = reading.source, batch.schema.names[0]
    uris = _cast(batch, name, pa.string(), source)
    lengths = pc.fill_null(pc.binary_length(uris), 0)
    reading.drop(is_empty := pc.equal(lengths, 0), f"has no {name}: give every row one")
    reading.drop(is_long := pc.greater(lengths, _MAX_URI_BYTES), f"has a {name} longer than {_MAX_URI_BYTES} bytes")
    is_named = pc.invert(pc.or_(is_empty, is_long))
    columns = {schema.URI: _canonical(pc.if_else(is_named, uris, "/"), is_named, reading)}
    if schema.ETAG in batch.schema.names:
        etags = pc.ascii_trim(_cast(batch, schema.ETAG, pa.string(), source), '"')  # some listings keep HTTP's quotes
        columns[schema.ETAG] = pc.replace_with_mask(etags, pc.equal(etags, ""), pa.scalar(None, pa.string()))
    if schema.SIZE_BYTES in batch.schema.names:
        sizes = _cast(batch, schema.SIZE_BYTES, pa.int64(), source)
        is_negative = pc.fill_null(pc.less(sizes, 0), False)
        if is_negative.true_count:
            row = reading.first_row + pc.index(is_negative, True).as_py()
            log.warning("%s: %s is negative in row %d, which says nothing", source, schema.SIZE_BYTES, row)
        columns[schema.SIZE_BYTES] = pc.if_else(is_negative, pa.scalar(None, pa.int64()), sizes)
    if schema.MODIFIED_AT in batch.schema.names:
        columns[schema.MODIFIED_AT] = _cast(batch, schema.MODIFIED_AT, _TIME, source)
    return pa.table(columns).filter(is_named)


def _cast(batch: pa.RecordBatch, name: str, kind: pa.DataType, source: str) -> pa.Array:
    try:
        values = batch.column(name).cast(kind)
        values.validate(full=True)  # Parquet's texts may be none
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{source}: column {name} must be {kind}: {error}") from error
    return values


def _canonical(uris: pa.Array, is_named: pa.Array, reading: _Reading) -> pa.Array:
    """Return the URIs in the form that is stored; relative ones lie in the folder. Most columns are so, all alike."""
    folder = reading.folder
    is_plain = pc.match_substring_regex(uris, _PLAIN_ABSOLUTE)
    if is_plain.true_count == len(uris):
        canonical = uris
    elif not folder.lower().startswith("file:") and pc.all(pc.match_substring_regex(uris, _PLAIN_RELATIVE)).as_py():
        canonical = pc.binary_join_element_wise(folder, uris, "/")
    else:
        values = uris.to_pylist()
        for index in np.flatnonzero(~is_plain.to_numpy(zero_copy_only=False)):
            try:
                values[index] = _canonical_uri(values[index], reading)
            except ValueError as error:
                reading.note_unreadable(int(index), str(error))
        canonical = pa.array(values, pa.string())
    _check_roots(canonical, is_named, reading)
    return canonical


def _canonical_uri(uri: str, reading: _Reading) -> str:
    """Return one URI in the form that is stored; ValueError where nobody here reads such a one."""
    web.check_allowed(uri, reading.search.allow_http)
    if web.is_web(uri):
        return uri
    if not _HAS_PLACE.match(uri):
        is_quoted = reading.folder.lower().startswith("file:")
        uri = storage.join(reading.folder, quote(uri) if is_quoted else uri)
    return storage.canonical(uri)


def _check_roots(uris: pa.Array, is_named: pa.Array, reading: _Reading) -> None:
    """Note local photos that lie where the manifest may name none: their reader refuses them."""
    own_roots = reading.search.roots
    if own_roots is None:
        return
    is_seen = pc.match_substring_regex(uris, r"(?i)\A[a-z][a-z0-9+.-]*://")
    is_file = pc.starts_with(uris, "file://")
    for root in own_roots:
        is_seen = pc.or_(is_seen, pc.starts_with(uris, root) if root.endswith("/") else pc.equal(uris, root))
    is_outside = pc.and_(is_named, pc.or_(pc.invert(is_seen), is_file))
    for index in np.flatnonzero(is_outside.to_numpy(zero_copy_only=False)):
        uri = uris[int(index)].as_py()
        if not roots.is_allowed(uri, own_roots):
            reading.note_unreadable(int(index), roots.refusal(uri))


def _wanted(names: Sequence[str], source: str) -> list[str]:
    """Return the names of the columns to read, the photo's first."""
    name = next((name for name in _URI_NAMES if name in names), None)
    if name is None:
        raise ValueError(
            f"{source} has no column named {' or '.join(_URI_NAMES)}; its columns are: {', '.join(names[:20])}"[:2000]
        )
    wanted = [each for each in (name, schema.ETAG, schema.SIZE_BYTES, schema.MODIFIED_AT) if each in names]
    for each in wanted:
        if names.count(each) > 1:
            raise ValueError(f"{source} has {names.count(each)} columns named {each}: leave one")
    return wanted


def _parquet_batches(source: str) -> Iterator[pa.RecordBatch]:
    # A part at a time and as the file is laid out: a column's part of a row group can be larger than memory.
    file = RangedFile(storage.head(source))
    with pq.ParquetFile(
        file, buffer_size=_PARQUET_READ_BYTES, pre_buffer=False, arrow_extensions_enabled=False
    ) as table:
        wanted = _wanted(table.schema_arrow.names, source)
        for name in wanted:
            kind = table.schema_arrow.field(name).type
            is_right, expected = _KINDS.get(name, (_is_text, pa.string()))
            if not is_right(kind):
                raise ValueError(f"{source}: column {name} must be {expected}, and is {str(kind)[:200]}")
        for batch in table.iter_batches(_ROWS_PER_BATCH, columns=wanted, use_threads=False):
            yield batch.select(wanted)


def _is_number(kind: pa.DataType) -> bool:
    types = pa.types
    return any(is_kind(kind) for is_kind in (types.is_integer, types.is_floating, types.is_null))


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    bytes_of_texts = (types.is_binary, types.is_large_binary, types.is_binary_view)
    return any(is_kind(kind) for is_kind in (*texts, *bytes_of_texts, types.is_null))


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_null(kind))


_KINDS = {schema.SIZE_BYTES: (_is_number, pa.int64()), schema.MODIFIED_AT: (_is_time, _TIME)}
"""What a column of a Parquet manifest must be, where that is not a text."""


def _csv_batches(source: str) -> Iterator[pa.RecordBatch]:
    entry = storage.head(source)
    kinds = {name: pa.string() for name in (*_URI_NAMES, schema.ETAG)} | {
        schema.SIZE_BYTES: pa.int64(),
        schema.MODIFIED_AT: _TIME,
    }
    parsing = pa.csv.ParseOptions(newlines_in_values=True)
    with pa.csv.open_csv(RangedFile(entry), parse_options=parsing) as reader:
        wanted = _wanted(reader.schema.names, source)
    converting = pa.csv.ConvertOptions(
        column_types=kinds,  # not guessed: a photo named "007" keeps its name
        include_columns=wanted,
        strings_can_be_null=True,
        null_values=[""],  # and not "NA" or "null", which can be names
    )
    with pa.csv.open_csv(RangedFile(entry), parse_options=parsing, convert_options=converting) as reader:
        for batch in reader:
            for start in range(0, batch.num_rows, _ROWS_PER_BATCH):
                yield batch.slice(start, _ROWS_PER_BATCH)
