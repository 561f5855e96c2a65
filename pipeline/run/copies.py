"""Rows of copies, photos whose bytes are another's, get that photo's answer under their own names.

They wait in the staging until all else is done; which photo answers is decided by `content_index`. Answers of an older
version, which named no countries, are not copied: the photo is located again.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipeline import schema
from pipeline.run import staging
from pipeline.storage.duckdb import connect, view_rows

_ROWS_PER_PART = 65_536


def settle(stage: staging.Stage, published_files: Sequence[str]) -> int:
    """Stage the rows of copies whose content has its answer by now, staged or published; return how many were not yet.

    A copy whose answer is missing stays without a row: the plan, or the check before publishing, finds it.
    """
    copy_files, row_files = stage.copy_files(), stage.row_files()
    if not copy_files or not (row_files or published_files):
        return 0
    own = (
        *(schema.PHOTO_ID, schema.URI, schema.ETAG, schema.SIDECAR_ETAG, schema.DECODE_WARNING),
        *(schema.RUN_ID, schema.RUN_SEQUENCE, schema.PROCESSED_AT, schema.READ_SECONDS),
        *(schema.TAKEN_AT, schema.TAKEN_AT_UTC, schema.TAKEN_AT_UTC_BY),  # which a sidecar may say, too
        *schema.RECORDED,
        *schema.IPTC,
        *schema.CONTEXT,
    )
    columns = ", ".join(f"{'copies' if name in own else 'answers'}.{name}" for name in schema.PHOTOS.names)
    settled = 0
    with connect(stage.folder) as connection:
        view_rows(connection, "waiting", copy_files, has_all_columns=True)
        view_rows(connection, "done", row_files)
        # Published answers are older than the run's own, and come in the order of their runs.
        view_rows(connection, "answering", [*published_files, *row_files], has_all_columns=True)
        answered = connection.sql(
            f"""
            WITH copies AS (
                SELECT *, {staging.EPOCH_SQL} AS epoch FROM waiting
                QUALIFY row_number() OVER (PARTITION BY photo_id ORDER BY file_index DESC) = 1),
            unsettled AS (
                FROM copies WHERE NOT EXISTS (
                    SELECT 1 FROM (SELECT photo_id, {staging.EPOCH_SQL} AS epoch FROM done) done
                    WHERE done.photo_id = copies.photo_id AND done.epoch >= copies.epoch)),
            answers AS (
                FROM answering SEMI JOIN unsettled USING (content_hash, model_id)
                WHERE status <> 'failed' AND levels IS NOT NULL AND countries IS NOT NULL OR error_code = $model_failed
                QUALIFY row_number() OVER (PARTITION BY content_hash ORDER BY file_index DESC) = 1)
            SELECT {columns} FROM unsettled copies JOIN answers USING (content_hash, model_id)
            """,
            params={"model_failed": str(schema.ErrorCode.MODEL_FAILED)},
        )
        for batch in answered.to_arrow_reader(_ROWS_PER_PART):
            rows = pa.Table.from_batches([batch]).cast(schema.PHOTOS)
            stage.put_rows(rows)
            settled += rows.num_rows
    return settled


def count(stage: staging.Stage) -> int:
    """Return how many of the run's photos have another photo's answer."""
    copy_files, row_files = stage.copy_files(), stage.row_files()
    if not copy_files or not row_files:
        return 0
    with connect(stage.folder) as connection:
        answered = connection.sql(
            """
            SELECT count(DISTINCT photo_id) FROM read_parquet($row_files)
            SEMI JOIN (FROM read_parquet($copy_files)) USING (photo_id, processed_at)
            """,
            params={"row_files": row_files, "copy_files": copy_files},
        ).fetchall()
    return int(answered[0][0])


def answered_contents(stage: staging.Stage, published_files: Sequence[str], model_id: str, limit: int) -> list[bytes]:
    """Return at most `limit` contents that this model has answered, in published files, of sizes that are planned."""
    plan_files = stage.plan_files()
    if not plan_files or not published_files:
        return []
    with connect(stage.folder) as connection:
        connection.register("no_rows", schema.PHOTOS.empty_table())
        found = connection.sql(
            """
            SELECT DISTINCT content_hash
            FROM (FROM no_rows UNION ALL BY NAME FROM read_parquet($published, union_by_name = true))
            SEMI JOIN (SELECT DISTINCT size_bytes FROM read_parquet($plan)) USING (size_bytes)
            WHERE model_id = $model_id AND status <> 'failed' AND countries IS NOT NULL LIMIT $limit
            """,
            params={"published": list(published_files), "plan": plan_files, "model_id": model_id, "limit": limit},
        ).to_arrow_table()
    contents: list[bytes] = found.column(0).to_pylist()
    return contents
