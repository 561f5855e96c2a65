"""Nights over real sources without a model or a cluster: all that a run plans, stages, publishes and finds gone."""

from __future__ import annotations

import datetime as dt
import io
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from pipeline import schema, storage
from pipeline.published import gone, layout, records
from pipeline.published.catalog import Catalog
from pipeline.published.records import PhotoCounts, RunRecord
from pipeline.run.plan import make_plan
from pipeline.run.publish import publish
from pipeline.run.staging import Stage
from pipeline.sources.manifest import ListSettings
from tests.support.photo_rows import NOON, located_row, photos


@dataclass
class Nights:
    """Runs over one output, an hour after each other; a photo's place is (10, its run's number)."""

    output: str
    found: list[gone.Gone] = field(default_factory=list)

    def run(
        self, *sources: str, max_gone_fraction: float = 0.5, is_complete: bool = True, **patterns: Any
    ) -> RunRecord:
        """Run once over some sources and return the run's record."""
        finished = records.run_records(self.output)
        number = 1 + max((record.sequence or 0 for record in finished), default=0)
        time = NOON + dt.timedelta(hours=number)
        forgotten = records.forgotten_list(self.output)
        stage = Stage(self.output, f"r{number}", number)
        plan = make_plan(
            sources,
            stage,
            records.published_files(self.output, finished),
            "m-1",
            False,
            None,
            records=finished,
            forgotten=None if forgotten is None else storage.join(self.output, forgotten.path),
            listing=ListSettings(**patterns),
        )
        for file in plan.files:
            rows = pq.read_table(io.BytesIO(storage.read_bytes(file)))
            stage.put_rows(photos([_row(row, number, stage.run_id) for row in rows.to_pylist()]))
        published = publish(stage)
        found = gone.settle(
            plan.missing,
            stage.row_files(),
            layout.gone_list(number),
            self.output,
            sources,
            is_complete=is_complete and plan.names_all,
            max_fraction=max_gone_fraction,
            sequence=number,
            since=time,
        )
        self.found.append(found)
        record = RunRecord(
            run_id=stage.run_id,
            sequence=number,
            started_at=time.isoformat(),
            finished_at=time.isoformat(),
            sources=tuple(sources),
            model_id="m-1",
            settings={name: list(value) for name, value in patterns.items()} | {"precision": "street"},
            plan=plan.counts(0, found),
            photos=PhotoCounts(published.located, 0, published.failed, published.failed_by_code, published.fingerprint),
            files=published.files,
            gone=found.list,
        )
        records.put_record(self.output, record)
        storage.delete_folder(stage.folder)
        return record

    def gone(self) -> dict[str, int]:
        """Return the photos that are gone, by the end of their URIs, and the number of the run that found it."""
        rows = Catalog(self.output).rows(
            f"SELECT uri, date_diff('hour', TIMESTAMPTZ '{NOON.isoformat()}', gone_since) AS number FROM photos"
            " WHERE gone_since IS NOT NULL"
        )
        return {row[schema.URI].rsplit("/", 1)[1]: row["number"] for row in rows.to_pylist()}

    def here(self) -> list[str]:
        """Return the ends of the URIs of the photos that are here."""
        rows = Catalog(self.output).rows("SELECT uri FROM photos_here ORDER BY uri")
        return [uri.rsplit("/", 1)[1] for uri in rows.column(0).to_pylist()]


def put(folder: Any, *names: str, version: str = "") -> None:
    """Put files below a folder, each with bytes of its own."""
    for name in names:
        storage.write_bytes(f"{folder}/{name}", f"{name.rsplit('/', 1)[-1]} {version}".encode())


def remove(folder: Any, *names: str) -> None:
    """Remove files, and the folders that are then empty."""
    for name in names:
        storage.delete(f"{folder}/{name}")
    storage.remove_empty_folders(str(folder))


def _row(listed: dict[str, Any], number: int, run_id: str) -> dict[str, Any]:
    uri = str(listed[schema.URI])
    data = uri.encode() if "#" in uri else storage.read_bytes(uri)
    content: dict[str, Any] = {schema.CONTENT_HASH: schema.photo_id(data.decode())}
    return located_row(
        uri,
        10.0,
        float(number),
        listed[schema.ETAG] or "v1",
        **content,
        run_id=run_id,
        size_bytes=listed[schema.SIZE_BYTES],
    )
