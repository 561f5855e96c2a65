"""An output, a run's stage and a source, over which plans are made: what tests of planning are fed."""

from __future__ import annotations

import csv
import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline import schema
from pipeline.run.plan import Plan, make_plan
from pipeline.run.staging import Stage, parquet_bytes
from tests.support.photo_rows import NOON, photos

Row = dict[str, Any]
OURS, OTHER = "m-1", "m-2"  # rows are ours if nothing else is said


class World:
    """An output with published files, a run's stage, and a CSV manifest as its source."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stage = Stage(str(folder / "output"), "r1")
        self.published: list[str] = []
        self.source = folder / "m.csv"

    def list(self, *photos_listed: tuple[str, str | None]) -> World:
        with open(self.source, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("uri", "etag"), *((uri, etag or "") for uri, etag in photos_listed)])
        return self

    def publish(self, *rows: Row) -> World:
        """Publish rows as one more run, which was the first holder of the output, however many there were."""
        path = self.folder / "photos" / f"run=r{len(self.published):03d}" / "part-e1-00000.parquet"
        path.parent.mkdir(parents=True)
        path.write_bytes(parquet_bytes(photos(rows)))
        self.published.append(str(path))
        return self

    def staged(self, *rows: Row) -> World:
        self.stage.put_rows(photos(rows))
        return self

    def plan(
        self,
        model_id: str = "m-1",
        retry_failed: bool = False,
        limit: int | None = None,
        retag: bool = False,
        videos: bool = False,
    ) -> Plan:
        sources = [str(self.source)]
        return make_plan(sources, self.stage, self.published, model_id, retry_failed, limit, retag=retag, videos=videos)


def todo(plan: Plan) -> list[str]:
    """URIs of the photos in the plan's files, which is what the readers get."""
    return [uri for file in plan.files for uri in pq.read_table(file).column(schema.URI).to_pylist()]


def later(minutes: int) -> dt.datetime:
    return NOON + dt.timedelta(minutes=minutes)
