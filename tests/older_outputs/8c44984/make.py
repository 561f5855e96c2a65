"""Writes the output of this folder; run from a checkout of commit 8c44984, before runs had numbers.

    PYTHONPATH=. python make.py FOLDER

Three finished runs over /photos/a to f, whose clocks disagree (the first run's workers were ahead), one that retention
has let go of while its files are still there, and an unfinished one: of its plan g, h and i, g and h are staged.
"""

import datetime as dt
import sys
from dataclasses import asdict

import pyarrow as pa

from pipeline import lease, retention, schema, storage
from pipeline.publish import publish
from pipeline.schema import ErrorCode
from pipeline.staging import Stage, parquet_bytes
from tests.photo_rows import failed_row, located_row, photos

OUTPUT = sys.argv[1]
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
AHEAD = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


def row(run_id, name, version, lat_deg, at):
    return located_row(
        f"/photos/{name}.jpg",
        lat_deg,
        8.0,
        version,
        **{schema.RUN_ID: run_id, schema.PROCESSED_AT: at, schema.MODEL_ID: "m-1"},
    )


def plan(stage, rows):
    planned = [{name: row.get(name) for name in schema.MANIFEST.names} for row in rows]
    table = pa.Table.from_pylist(planned, schema=schema.MANIFEST)
    storage.write_bytes(stage.plan_uri("todo", 0), parquet_bytes(table))


def run(run_id, day, rows):
    with lease.held(OUTPUT, run_id, lease.LeaseSettings()) as held:
        stage = Stage(OUTPUT, run_id, held.attempt)
        stage.put_settings({"model_id": "m-1", "precision": "street"})
        plan(stage, rows)
        stage.put_rows(photos(rows))
        published = publish(stage)
        at = (START + dt.timedelta(days=day)).isoformat()
        held.commit(
            {
                "run_id": run_id,
                "started_at": at,
                "finished_at": at,
                "model_id": "m-1",
                "settings": {"precision": "street"},
                "photos": {
                    "located": published.located,
                    "failed": published.failed,
                    "failed_by_code": published.failed_by_code,
                    "fingerprint": published.fingerprint,
                },
                "files": [asdict(file) for file in published.files],
            }
        )
        stage.delete()


run("20260101T000000Z", 0, [row("20260101T000000Z", "a", "v1", 10.0, AHEAD)])
run("20260102T000000Z", 1, [row("20260102T000000Z", name, "v1", 20.0, AHEAD) for name in "bcd"])
failed = failed_row(
    "/photos/e.jpg",
    ErrorCode.FETCH_FAILED,
    etag="v1",
    **{schema.RUN_ID: "nightly-2026-01-03", schema.PROCESSED_AT: START, schema.MODEL_ID: "m-1"},
)
run(
    "nightly-2026-01-03",
    2,
    [*(row("nightly-2026-01-03", n, "v2", 30.0, AHEAD + dt.timedelta(1)) for n in "abf"), failed],
)
retention.remove_replaced_runs(OUTPUT, dt.timedelta(0), lease.LeaseSettings())
run("20260104T000000Z", 3, [row("20260104T000000Z", "c", "v2", 40.0, START)])
with lease.held(OUTPUT, "20260105T000000Z", lease.LeaseSettings()) as held:
    stage = Stage(OUTPUT, "20260105T000000Z", held.attempt)
    stage.put_settings({"model_id": "m-1", "precision": "street"})
    rows = [row(stage.run_id, name, "v1", 50.0, START) for name in "ghi"]
    plan(stage, rows)
    stage.put_rows(photos(rows[:2]))
    storage.write_bytes(
        f"{OUTPUT}/photos/run={stage.run_id}/part-{held.attempt}-00000.parquet", parquet_bytes(photos(rows[:2]))
    )
