"""Sources become manifest rows: folder or prefix, Parquet or CSV manifest, S3 Inventory, tar and zip archives."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline import schema, storage
from pipeline.sources import archives, inventory
from pipeline.storage import local_files, web
from pipeline.storage.ranged_file import RangedFile

_URI_NAMES = (schema.URI, "path", "url")
_ALL_ARCHIVES = ("*.tar", "*.zip")
_TABLE_ENDINGS = (".parquet", ".csv")
_ROWS_PER_BATCH = 10_000
_MAX_URI_BYTES = 32 << 10
_PARQUET_READ_BYTES = 4 << 20
_TIME = schema.MANIFEST.field(schema.MODIFIED_AT).type
_PATH = "path"
"""A column that only patterns look at: the name below the source."""

_SEGMENT = r"(?:[^/.][^/]*|\.[^/.][^/]*|\.\.[^/]+)"
_PLAIN_ABSOLUTE = rf"\A(?:(?:s3|gs|az)://[^/]|(?:/{_SEGMENT})+\z)"
_PLAIN_RELATIVE = rf"\A{_SEGMENT}(?:/{_SEGMENT})*\z"
_HAS_PLACE = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]+://")
"""Names that are canonical as they stand, or below a canonical folder; `storage.canonical` judges all others."""


def read_manifest(
    source: str, include: Sequence[str] = (), exclude: Sequence[str] = (), allow_http: bool = False
) -> Listing:
    """List the photos of `source` as batches of `schema.MANIFEST`, in the source's order, duplicates and all.

    - A name ending in `.parquet` or `.csv` is a manifest with a column `uri` (or `path`, `url`; relative ones lie
      beside the manifest) and, where wanted, `etag`, `size_bytes` and `modified_at` (UTC where it names no zone).
    - `manifest.json` is an AWS S3 Inventory.
    - A name ending in `.tar` or `.zip` is an archive: its members are the photos, called `archive#member`; `/*.tar` or
      `/*.zip` at the end takes every such archive at any depth of the folder.
    - Anything else is a folder or prefix: every object below it is a photo, whatever its name.

    Patterns match a name below the folder, in the archive, or for manifests and inventories a whole URI, upper and
    lower case alike: `*.jpg` and `thumbs/*.jpg` at any depth, `/thumbs` from the top only, a folder's name with all
    below it; `*` and `?` stop at a slash, `**` doesn't, `[a-z]` and `[!a-z]` are one character. A photo is taken that
    matches one of `include` (where there are any) and none of `exclude`.

    Iterating raises ValueError where the source is missing, can't be listed or isn't what it says.
    """
    return Listing(source, include, exclude, allow_http)


class Listing(Iterator[pa.RecordBatch]):
    """The batches of one source; `excluded` is how many photos its patterns have left out so far."""

    def __init__(self, source: str, include: Sequence[str], exclude: Sequence[str], allow_http: bool) -> None:
        self.excluded = 0
        self._source = source
        self._include, self._exclude = _any_of(include), _any_of(exclude)
        self._allow_http = allow_http
        self._batches = self._listed()

    def __next__(self) -> pa.RecordBatch:
        """Return the next batch, never an empty one."""
        return next(self._batches)

    def _listed(self) -> Iterator[pa.RecordBatch]:
        found = False
        try:
            for rows in _rows(self._source, self._allow_http):
                found |= rows.num_rows > 0
                taken = self._taken(rows)
                self.excluded += rows.num_rows - taken.num_rows
                for batch in taken.to_batches(max_chunksize=_ROWS_PER_BATCH):
                    if batch.num_rows:
                        yield _manifest_batch(batch)
        except OSError as error:
            raise ValueError(f"can't read --photos {self._source}: {error}") from error
        if not found:
            raise ValueError(f"no photos in {self._source}: it lists none")

    def _taken(self, rows: pa.Table) -> pa.Table:
        names = rows.column(_PATH if _PATH in rows.schema.names else schema.URI)
        if self._include:
            rows = rows.filter(mask := pc.match_substring_regex(names, self._include))
            names = names.filter(mask)
        return rows.filter(pc.invert(pc.match_substring_regex(names, self._exclude))) if self._exclude else rows


def _any_of(patterns: Sequence[str]) -> str:
    return f"(?is){'|'.join(_regex(pattern) for pattern in patterns)}" if patterns else ""


def _regex(pattern: str) -> str:
    """Return the regular expression, in RE2's dialect, for a name that `pattern` takes."""
    body = pattern.removeprefix("/").removesuffix("/")
    if not body:
        raise ValueError(f"the pattern {pattern!r} names nothing: write e.g. '*.jpg' or 'thumbnails/'")
    translated = ""
    for part in re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]/]*\]|.", body, re.DOTALL):
        if len(part) > 2 and part[0] == "[":
            inside = part[2:-1] if part[1] == "!" else part[1:-1]
            inside = re.sub(r"([\\\[\]^&])", r"\\\1", inside)
            translated += f"[^/{inside}]" if part[1] == "!" else f"[{inside}]"
        else:
            kinds = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
            translated += kinds.get(part) or re.escape(part)
    regex = (r"\A/?" if pattern.startswith("/") else r"(?:\A|/)") + translated
    regex += "/" if pattern.endswith("/") else r"(?:/|\z)"
    try:
        pc.match_substring_regex(pa.array([""]), regex)
    except pa.ArrowInvalid as error:
        raise ValueError(f"the pattern {pattern!r} can't be understood: {error}") from error
    return regex


def _manifest_batch(rows: pa.RecordBatch) -> pa.RecordBatch:
    ids = [schema.photo_id(uri) for uri in rows.column(schema.URI).to_pylist()]
    arrays = [pa.array(ids, pa.binary(16))]
    for field in list(schema.MANIFEST)[1:]:
        is_given = field.name in rows.schema.names
        arrays.append(rows.column(field.name).cast(field.type) if is_given else pa.nulls(rows.num_rows, field.type))
    return pa.record_batch(arrays, schema=schema.MANIFEST)


def _rows(source: str, allow_http: bool) -> Iterator[pa.Table]:
    """Yield the source's photos: any columns of the manifest but the ID, and maybe the one that patterns look at."""
    folder, _, name = source.rpartition("/")
    if name.lower() in _ALL_ARCHIVES:
        containers = (
            entry for entry in storage.list_files(folder or "/") if entry.uri.lower().endswith(name[1:].lower())
        )
        return _archive_rows(containers)
    is_file = name.lower().endswith(_TABLE_ENDINGS) or name == inventory.MANIFEST_NAME or archives.is_archive(name)
    if not is_file or not storage.exists(source):
        return _folder_rows(source)
    if name == inventory.MANIFEST_NAME:
        return inventory.read_inventory(source)
    if archives.is_archive(name):
        archives.check_readable(source)
        return _archive_rows([storage.head(source)])
    return _table_rows(source, allow_http)


def listed_below(sources: Iterable[str]) -> tuple[str, ...]:
    """Return what the URIs begin with of the photos that listing `sources` itself finds, rather than a manifest names.

    No photo of a manifest is below the manifest's own name: whether a source is one need not be asked.
    """
    prefixes: list[str] = []
    for source in sources:
        folder, _, name = source.rpartition("/")
        below = folder if name.lower() in _ALL_ARCHIVES else source.rstrip("/")
        prefixes += [f"{below}/", f"{below}#"]
    return tuple(prefixes)


def _folder_rows(source: str) -> Iterator[pa.Table]:
    entries = iter(storage.list_files(source))
    prefix = source.rstrip("/") + "/"
    found = False
    while chunk := list(itertools.islice(entries, _ROWS_PER_BATCH)):
        found = True
        uris = [entry.uri for entry in chunk]
        columns = {
            schema.URI: pa.array(uris, pa.string()),
            schema.ETAG: pa.array([entry.etag for entry in chunk], pa.string()),
            schema.SIZE_BYTES: pa.array([entry.size_bytes for entry in chunk], pa.int64()),
            schema.MODIFIED_AT: pa.array([entry.modified_us for entry in chunk], _TIME),
            _PATH: pa.array([_below(uri, prefix) for uri in uris], pa.string()),
        }
        yield pa.table(columns)
    if not found:
        raise ValueError(f"no photos at {source}: the folder or prefix is empty or missing")


def _below(uri: str, prefix: str) -> str:
    """Return `uri` without the prefix, which is written otherwise in a local name that is no UTF-8."""
    if not uri.startswith(prefix) and not storage.is_remote(uri):
        uri, prefix = (_local_text(each) for each in (uri, prefix))
    return uri.removeprefix(prefix)


def _local_text(uri: str) -> str:
    path = local_files.path_of(uri)
    return path.decode("utf-8", "backslashreplace") if isinstance(path, bytes) else path


def _archive_rows(containers: Iterable[storage.Entry]) -> Iterator[pa.Table]:
    for container, members in archives.list_archives(containers):
        names = members.column(archives.MEMBER)
        columns = {name: members.column(name) for name in members.schema.names if name != archives.MEMBER}
        columns[schema.URI] = pc.binary_join_element_wise(container.uri, names, "#")
        columns[schema.CONTAINER_URI] = pa.repeat(container.uri, len(names))
        columns[schema.CONTAINER_ETAG] = pa.repeat(container.etag, len(names))
        columns[schema.MODIFIED_AT] = pa.repeat(pa.scalar(container.modified_us, _TIME), len(names))
        yield pa.table(columns | {_PATH: names})


def _table_rows(source: str, allow_http: bool) -> Iterator[pa.Table]:
    """Yield the rows of a Parquet or CSV manifest, checked and with canonical URIs."""
    read = _parquet_batches if source.lower().endswith(".parquet") else _csv_batches
    folder = storage.canonical(source).rpartition("/")[0]
    first_row = 1
    try:
        for batch in read(source):
            yield _checked(batch, source, folder, first_row, allow_http)
            first_row += batch.num_rows
    except (pa.ArrowException, UnicodeError, RecursionError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"{source} is not a readable manifest: {reason}") from error
    if first_row == 1:
        raise ValueError(f"no photos in {source}: the manifest has no rows")


def _checked(batch: pa.RecordBatch, source: str, folder: str, first_row: int, allow_http: bool) -> pa.Table:
    name = batch.schema.names[0]
    uris = _cast(batch, name, pa.string(), source)
    lengths = pc.fill_null(pc.binary_length(uris), 0)
    if pc.min(lengths).as_py() == 0:
        row = first_row + pc.index(lengths, 0).as_py()
        raise ValueError(f"{source} has a photo without a {name} (row {row}): give every row one")
    if pc.max(lengths).as_py() > _MAX_URI_BYTES:
        row = first_row + pc.index(pc.greater(lengths, _MAX_URI_BYTES), True).as_py()
        raise ValueError(f"{source}: the {name} in row {row} is longer than {_MAX_URI_BYTES} bytes: no name is")
    columns = {schema.URI: _canonical(uris, source, folder, first_row, allow_http)}
    if schema.ETAG in batch.schema.names:
        etags = pc.ascii_trim(_cast(batch, schema.ETAG, pa.string(), source), '"')  # some listings keep HTTP's quotes
        columns[schema.ETAG] = pc.replace_with_mask(etags, pc.equal(etags, ""), pa.scalar(None, pa.string()))
    if schema.SIZE_BYTES in batch.schema.names:
        sizes = _cast(batch, schema.SIZE_BYTES, pa.int64(), source)
        if (pc.min(sizes).as_py() or 0) < 0:
            row = first_row + pc.index(pc.less(sizes, 0), True).as_py()
            raise ValueError(f"{source}: {schema.SIZE_BYTES} is negative in row {row}")
        columns[schema.SIZE_BYTES] = sizes
    if schema.MODIFIED_AT in batch.schema.names:
        columns[schema.MODIFIED_AT] = _cast(batch, schema.MODIFIED_AT, _TIME, source)
    return pa.table(columns)


def _cast(batch: pa.RecordBatch, name: str, kind: pa.DataType, source: str) -> pa.Array:
    try:
        values = batch.column(name).cast(kind)
        values.validate(full=True)  # Parquet's texts may be none
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{source}: column {name} must be {kind}: {error}") from error
    return values


def _canonical(uris: pa.Array, source: str, folder: str, first_row: int, allow_http: bool) -> pa.Array:
    """Return the URIs in the form that is stored; relative ones lie in `folder`. Most columns are so, all alike."""
    is_plain = pc.match_substring_regex(uris, _PLAIN_ABSOLUTE)
    if is_plain.true_count == len(uris):
        return uris
    if not folder.lower().startswith("file:") and pc.all(pc.match_substring_regex(uris, _PLAIN_RELATIVE)).as_py():
        return pc.binary_join_element_wise(folder, uris, "/")
    values = uris.to_pylist()
    for index in np.flatnonzero(~is_plain.to_numpy(zero_copy_only=False)):
        uri = values[index]
        try:
            web.check_allowed(uri, allow_http)
            if web.is_web(uri):
                continue
            if not _HAS_PLACE.match(uri):
                is_quoted = folder.lower().startswith("file:")
                uri = storage.join(folder, quote(uri) if is_quoted else uri)
            values[index] = storage.canonical(uri)
        except ValueError as error:
            raise ValueError(f"{source}, row {first_row + index}: {error}") from error
    return pa.array(values, pa.string())


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
