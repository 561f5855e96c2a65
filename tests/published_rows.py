"""Any rows as a published output, without photos or a model: what tests of its readers are fed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline import schema, storage
from pipeline.catalog import Catalog
from pipeline.publish import publish, put_record
from pipeline.staging import Stage, parquet_bytes
from tests.photo_rows import NOON, photos


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
    put_record(stage, record)
    return Catalog(output)
