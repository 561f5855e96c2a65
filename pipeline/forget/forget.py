"""Forget photos: remove every trace of their rows from an output, and note that they are not to be looked at again.

It is one commit under the lease, for all runs at once. The files that hold rows of the photos are written anew, without
them, under names of this holder's; then a record is committed that has the new record of every run concerned, and that
stands for the records in their places (see `records.as_rewritten`): whatever dies before leaves the old state, after
it the new one. The next holder, and this one at once, puts the new records in their places and removes the old files.

What counts for nobody yet (staged parts, files of runs that were let go, names in texts) is removed before the commit.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import schema, storage
from pipeline.forget import traces
from pipeline.published import gone, layout, records
from pipeline.published.catalog import Catalog
from pipeline.published.records import Forgetting, PublishedFile, RunRecord
from pipeline.run import retention, sweep
from pipeline.sources import manifest
from pipeline.sources.lists import names
from pipeline.storage import lease, web
from pipeline.storage.duckdb import connect, view_rows

log = logging.getLogger(__name__)

PHOTOS = pa.schema([schema.PHOTOS.field(schema.PHOTO_ID), schema.PHOTOS.field(schema.URI)])
"""The photos to forget."""
_NOW = dt.timedelta(0)


@dataclass(frozen=True)
class Found:
    """What an output has of some photos: how many have rows, and how many rows of them each run has."""

    photos: int
    rows_by_run: dict[str, int]

    @property
    def rows(self) -> int:
        """All rows."""
        return sum(self.rows_by_run.values())


def chosen_by(output: str, where: str) -> pa.Table:
    """Return the photos for which an SQL condition over the view `photos` holds; ValueError where it can't be said."""
    rows = Catalog(output).rows(f"SELECT photo_id, uri FROM photos WHERE ({where}\n)")
    return rows.cast(PHOTOS)


def chosen_in(file: str) -> pa.Table:
    """Return the photos that a file names, one a line or as a manifest with columns does; ValueError if none.

    A relative name lies below the working folder where a line has it, beside the manifest where a manifest does.
    """
    if names.is_table(file):
        batches = list(manifest.read_manifest(storage.absolute(file), allow_http=True))
        return pa.Table.from_batches(batches, schema=schema.MANIFEST).select(PHOTOS.names).cast(PHOTOS)
    try:
        lines = Path(file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeError) as error:
        raise ValueError(f"can't read --photos {file}: {error}. Give a text file with a photo's name a line") from error
    uris = [name if web.is_web(name) else storage.canonical(name) for line in lines if (name := line.rstrip("\r"))]
    if not uris:
        raise ValueError(f"--photos {file} names no photo: give a photo's name a line, as the column uri has it")
    return pa.table([pa.array([schema.photo_id(uri) for uri in uris], pa.binary(16)), pa.array(uris)], schema=PHOTOS)


def look(output: str, chosen: pa.Table) -> Found:
    """Return what the output has of the chosen photos in runs that count, and change nothing."""
    files = records.published_files(output, records.run_records(output))
    with connect(output) as connection:
        connection.register("chosen", chosen)
        view_rows(connection, "published", files)
        rows = connection.sql(
            "SELECT run_id, count(*) FROM published SEMI JOIN chosen USING (photo_id) GROUP BY 1 ORDER BY 1"
        ).fetchall()
        ((photos,),) = connection.sql(
            "SELECT count(DISTINCT photo_id) FROM published SEMI JOIN chosen USING (photo_id)"
        ).fetchall()
    return Found(photos, dict(rows))


def forget(output: str, chosen: pa.Table, settings: lease.LeaseSettings) -> Found:
    """Remove every trace of the chosen photos' rows, and leave these photos out from now on; return what was removed.

    Raises lease.LeaseHeldError where a run has the output, and what `lease.Lease.commit` raises. Interrupted anywhere,
    the same call goes on.
    """
    with records.held(output, "forget", settings) as held:
        sweep.at_start(held, output)
        found = look(output, chosen)
        parts = traces.remove_staged(held, output, chosen)
        if parts:
            log.info("%d staged parts that hold such photos were removed: what else they held is done again", parts)
        retention.delete_files(output, _NOW)  # of runs that were let go: nobody new reads them
        traces.remove_names(held, output, set(chosen.column(schema.URI).to_pylist()))
        finished = records.run_records(output)
        newest = gone.newest_list(finished)
        rewritten = [
            new
            for record in finished
            if (new := traces.without(output, record, chosen, held.epoch, record.gone == newest)) != record
        ]
        listed = _with_forgotten(output, chosen, held.epoch)
        done = Forgetting(photos=found.photos, rows_by_run=found.rows_by_run, list=listed, rewritten=tuple(rewritten))
        _commit(held, output, done)
    return found


def remember(output: str, chosen: pa.Table | None, settings: lease.LeaseSettings) -> int:
    """Take the chosen photos, or all, off the list of the forgotten ones; return how many those were."""
    with records.held(output, "forget", settings) as held:
        sweep.at_start(held, output)
        listed = records.forgotten_list(output)
        if listed is None:
            return 0
        left = None
        if chosen is not None:
            with connect(output) as connection:
                rows = _hashes(connection, output, listed, chosen, "EXCEPT")
                left = gone.put_list(output, layout.forgotten_list(held.epoch), rows, schema.FORGOTTEN)
        kept = 0 if left is None else left.row_count or 0
        _commit(held, output, Forgetting(list=left if kept else None))
    return (listed.row_count or 0) - kept


def _commit(held: lease.Lease, output: str, done: Forgetting) -> None:
    now = dt.datetime.now(dt.UTC).isoformat()
    record = RunRecord(
        run_id=f"forget-{held.epoch:08d}",
        sequence=held.epoch,
        finished_at=now,
        record_version=records.FORGETTING_VERSION,
        forgetting=replace(
            done, rewritten=tuple(replace(record, rewritten_by=held.epoch) for record in done.rewritten)
        ),
    )
    held.prove()
    held.commit(record.to_json())
    sweep.at_start(held, output)  # puts the new records in their places, and removes the old files


def _with_forgotten(output: str, chosen: pa.Table, epoch: int) -> PublishedFile:
    with connect(output) as connection:
        rows = _hashes(connection, output, records.forgotten_list(output), chosen, "UNION")
        return gone.put_list(output, layout.forgotten_list(epoch), rows, schema.FORGOTTEN)


def _hashes(connection: Any, output: str, listed: PublishedFile | None, chosen: pa.Table, what: str) -> Any:
    """Return a reader of the list of forgotten photos with (UNION) or without (EXCEPT) the chosen ones."""
    connection.register("chosen", chosen)
    files: Sequence[str] = [] if listed is None else [storage.join(output, listed.path)]
    connection.register("none_listed", schema.FORGOTTEN.empty_table())
    known = "none_listed" if not files else "listed"
    if files:
        connection.read_parquet(list(files)).create_view("listed")
    return connection.sql(
        f"SELECT * FROM (FROM {known} {what} SELECT sha256(photo_id) FROM chosen) ORDER BY 1"
    ).to_arrow_reader(1_000_000)
