"""Where an output keeps traces of photos, and each of these without them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import older_rows, schema, storage
from pipeline.published import geoparquet, gone, layout
from pipeline.published.records import PhotoCounts, PublishedFile, RunRecord
from pipeline.run.photo_set import PhotoSet
from pipeline.storage import lease
from pipeline.storage.duckdb import connect
from pipeline.storage.ranged_file import RangedFile

FORGOTTEN_NAME = "(forgotten)"
"""What stands in texts for the name of a forgotten photo."""


def remove_staged(held: lease.Lease, output: str, chosen: pa.Table) -> int:
    """Remove what unfinished runs have staged of the chosen photos, by whole parts; return how many.

    A part's other rows are made again, as after a crash.
    """
    folder = storage.join(output, layout.STAGING)
    storage.remove_temporaries(folder)
    files = [entry.uri for entry in storage.list_files(folder) if entry.uri.endswith(".parquet")]
    if not files:
        return 0
    with connect(output) as connection:
        connection.register("chosen", chosen)
        rows = connection.read_parquet(files, hive_partitioning=False, filename=True, union_by_name=True)
        rows.create_view("staged")
        found = connection.sql("SELECT DISTINCT filename FROM staged SEMI JOIN chosen USING (photo_id)").fetchall()
    for (uri,) in found:
        held.prove(within_s=held.renewal_interval_s)
        storage.delete(uri)
    return len(found)


def remove_names(held: lease.Lease, output: str, uris: set[str]) -> None:
    """Put `(forgotten)` for the photos' names in the records of runs and nights: a source can be a photo."""
    for folder in (layout.RUNS, layout.REMOVED, layout.NIGHTS):
        for entry in storage.list_files(storage.join(output, folder)):
            if not entry.uri.endswith(".json"):
                continue
            found = storage.read_version(entry.uri)
            document = json.loads(found.data)
            without = _without_names(document, uris, {})
            if without != document:
                held.prove()  # after that was read: whoever has the output later changes it, and this put is refused
                storage.replace_bytes(entry.uri, json.dumps(without, indent=2).encode(), found.etag)


def without(output: str, record: RunRecord, chosen: pa.Table, epoch: int, is_list_kept: bool) -> RunRecord:
    """Return a run's record without the chosen photos, after writing the files that hold them anew; itself if none do.

    A list of photos that are gone, of another run than the newest that has one, is let go of: nobody reads it.
    """
    with connect(output) as connection:
        connection.register("chosen", chosen)
        counts, files = record.counts, []
        for index, file in enumerate(record.files):
            place = layout.published_file(output, record.run_id, epoch, index)
            new, counts = _file_without(connection, output, file, place, chosen, counts)
            files += [new] if new is not None else []
        listed = record.gone
        if listed is not None:
            listed = _list_without(connection, output, listed, epoch) if is_list_kept else None
    if tuple(files) == record.files and listed == record.gone:
        return record
    return replace(record, files=tuple(files), photos=counts if record.photos else None, gone=listed)


def _file_without(
    connection: Any, output: str, file: PublishedFile, place: str, chosen: pa.Table, counts: PhotoCounts
) -> tuple[PublishedFile | None, PhotoCounts]:
    """Return a published file without the chosen photos, None where nothing is left, and the run's counts then."""
    uri = storage.join(output, file.path)
    rows = f"read_parquet('{uri.replace(chr(39), 2 * chr(39))}', hive_partitioning = false)"
    lost = connection.sql(
        f"SELECT photo_id, status, error_code FROM {rows} SEMI JOIN chosen USING (photo_id)"
    ).to_arrow_table()
    if not lost.num_rows:
        return file, counts
    counts = _fewer(counts, lost)
    kept = connection.sql(
        f"SELECT count(*), min(lon_deg), min(lat_deg), max(lon_deg), max(lat_deg) FROM {rows}"
        " ANTI JOIN chosen USING (photo_id)"
    ).fetchall()[0]
    row_count, *box = kept
    if not row_count:
        return None, counts
    with tempfile.TemporaryDirectory(prefix="graticule-forget-") as folder:
        path = Path(folder) / "part.parquet"
        with pq.ParquetFile(RangedFile(storage.head(uri)), pre_buffer=False) as parquet:
            columns = older_rows.stored_columns(parquet.schema_arrow.names)
            bbox = None if box[0] is None else (box[0], box[1], box[2], box[3])
            geoparquet.write(path, _groups_without(parquet, chosen), bbox, columns)
        data = path.read_bytes()
    storage.write_bytes(place, data)
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    return PublishedFile(place.removeprefix(output + "/"), row_count, len(data), digest), counts


def _groups_without(parquet: pq.ParquetFile, chosen: pa.Table) -> Iterator[pa.Table]:
    ids = chosen.column(schema.PHOTO_ID).combine_chunks()
    for group in range(parquet.num_row_groups):
        rows = parquet.read_row_group(group)
        is_chosen = pc.is_in(rows.column(schema.PHOTO_ID).cast(pa.binary()), value_set=ids.cast(pa.binary()))
        kept = rows.filter(pc.invert(is_chosen))
        if kept.num_rows:
            yield kept


def _fewer(counts: PhotoCounts, lost: pa.Table) -> PhotoCounts:
    """Return how a run's photos ended without those `lost`."""
    status, codes = lost.column(schema.STATUS).to_pylist(), lost.column(schema.ERROR_CODE).to_pylist()
    by_code = None
    if counts.failed_by_code is not None:
        fewer = {code: count - codes.count(code) for code, count in counts.failed_by_code.items()}
        by_code = {code: count for code, count in fewer.items() if count}
    fingerprint = counts.fingerprint
    if fingerprint is not None:  # an XOR: taking photos away is as adding them
        fingerprint = (PhotoSet(0, fingerprint) | PhotoSet.of([lost.select([schema.PHOTO_ID])])).fingerprint
    return replace(
        counts,
        located=counts.located - status.count(str(schema.Status.LOCATED)),
        undecided=counts.undecided - status.count(str(schema.Status.UNDECIDED)),
        failed=counts.failed - status.count(str(schema.Status.FAILED)),
        failed_by_code=by_code,
        fingerprint=fingerprint,
    )


def _list_without(connection: Any, output: str, listed: PublishedFile, epoch: int) -> PublishedFile:
    """Return the list of photos that are gone, without the chosen ones."""
    uri = storage.join(output, listed.path)
    connection.read_parquet([uri]).create_view("gone_list")
    ((count,),) = connection.sql("SELECT count(*) FROM gone_list SEMI JOIN chosen USING (photo_id)").fetchall()
    if not count:
        return listed
    rows = connection.sql("FROM gone_list ANTI JOIN chosen USING (photo_id) ORDER BY photo_id").to_arrow_reader(
        1_000_000
    )
    return gone.put_list(output, layout.gone_list(epoch), rows, schema.GONE)


def _without_names(value: Any, uris: set[str], known: dict[str, str]) -> Any:
    """Return a JSON value without the names of photos in its texts; `known` remembers texts that were looked at."""
    if isinstance(value, dict):
        return {_without_names(key, uris, known): _without_names(each, uris, known) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_names(each, uris, known) for each in value]
    if not isinstance(value, str):
        return value
    if value not in known:
        known[value] = value
        for uri in sorted((uri for uri in uris if uri in value), key=len, reverse=True):
            known[value] = known[value].replace(uri, FORGOTTEN_NAME)
    return known[value]
