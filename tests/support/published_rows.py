"""Any rows as a published output, without photos or a model: what tests of its readers are fed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline import schema, storage
from pipeline.published.catalog import Catalog
from pipeline.published.records import RunRecord
from pipeline.run.publish import publish, put_record
from pipeline.run.staging import Stage, parquet_bytes
from tests.support.photo_rows import NOON, photos


def publish_rows(output: str, rows: Sequence[dict[str, Any]]) -> Catalog:
    """Publish `rows` as one run, as the job does, and open the output."""
    stage = Stage(output, "r1")
    plan = [{name: row.get(name) for name in schema.MANIFEST.names} for row in rows]
    table = pa.Table.from_pylist(plan, schema=schema.MANIFEST)
    storage.write_bytes(stage.plan_uri("todo", 0), parquet_bytes(table))
    stage.put_rows(photos(rows))
    published = publish(stage)
    record = {
        "run_id": "r1",
        "finished_at": NOON.isoformat(),
        "model_id": "m-1",
        "photos": {"located": published.located, "failed": published.failed},
        "files": [{"path": file.path} for file in published.files],
    }
    put_record(stage, RunRecord.from_json(record))
    return Catalog(output)


def publish_run(
    output: str,
    run_id: str,
    rows: Sequence[dict[str, Any]],
    commit: bool = True,
    precision: str = "street",
    sequence: int | None = None,
    clock_h: int = 0,
) -> None:
    """Publish `rows` as the run `run_id`, as the job does: with a sequence number, or without as older versions did.

    It ends an hour after run r0 for each of its number, by a clock that is `clock_h` hours ahead.
    """
    hour = dt.timedelta(hours=int(run_id[1:]) + clock_h)
    stage = Stage(output, run_id)
    planned = [{name: row.get(name) for name in schema.MANIFEST.names} for row in rows]
    table = pa.Table.from_pylist(planned, schema=schema.MANIFEST)
    storage.write_bytes(stage.plan_uri("todo", 0), parquet_bytes(table))
    stage.put_rows(photos([row | {schema.RUN_ID: run_id, schema.PROCESSED_AT: NOON + hour} for row in rows]))
    published = publish(stage)
    if commit:
        record = {
            "run_id": run_id,
            "finished_at": (NOON + hour).isoformat(),
            "model_id": "m-1",
            "started_at": NOON.isoformat(),
            "wall_s": 3600.0,
            "settings": {"precision": precision},
            "photos": {
                "located": published.located,
                "failed": published.failed,
                "failed_by_code": published.failed_by_code,
            },
            "files": [{"path": file.path} for file in published.files],
        }
        put_record(stage, RunRecord.from_json(record | {"sequence": sequence}))
