"""A run while it is unfinished: its plan, and its rows so far in small atomic parts that a restart counts as done.

Whoever works on the run has the number of its lease, its epoch, in the name of everything that it puts here: no two
write the same object. Each has a plan of its own. Rows are shared, and of a photo that several staged, the row of the
highest epoch stands.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema, storage
from pipeline.published import layout
from pipeline.sources.roots import is_allowed
from pipeline.storage.duckdb import connect

_EPOCH = r"/(?:run-)?e(\d{1,18})[-./][^/]*(?:$|/[^/]*$)"
"""An object's epoch in its name: `rows/e7-…`, `plan/e7/…`, `run-e7.json`; older names are a digest, 32 digits long."""
_SETTINGS = re.compile(r"run(-e\d+)?\.json")
EPOCH_SQL = f"coalesce(try_cast(regexp_extract(filename, '{_EPOCH}', 1) AS BIGINT), 0)"
"""`epoch_of` in DuckDB, over the column `filename` of staged parts."""


def epoch_of(uri: str) -> int:
    """Return the epoch of whoever wrote the staged object at `uri`; 0 for older versions, which named none."""
    found = re.search(_EPOCH, uri)
    return int(found[1]) if found else 0


@dataclass(frozen=True)
class Stage:
    """The staging folder of one run below an output; `epoch` is of the lease under which it is worked on now."""

    output: str
    run_id: str
    epoch: int = 1

    @property
    def folder(self) -> str:
        """URI of everything this run has staged."""
        return layout.staging_folder(self.output, self.run_id)

    def plan_uri(self, name: str, index: int) -> str:
        """URI of file number `index` of the plan's part `name`."""
        return storage.join(self.folder, "plan", f"e{self.epoch}", f"{name}-{index:05d}.parquet")

    @property
    def missing_uri(self) -> str:
        """URI of what this epoch's plan has found missing: see `published.gone`."""
        return storage.join(self.folder, "missing", f"e{self.epoch}.parquet")

    def plan_files(self) -> list[str]:
        """URIs of this epoch's plan."""
        return [entry.uri for entry in storage.list_files(storage.join(self.folder, "plan", f"e{self.epoch}"))]

    def delete_plan(self) -> None:
        """Remove this epoch's plan, for another one."""
        for uri in self.plan_files():
            storage.delete(uri)

    def put_rows(self, rows: pa.Table) -> str:
        """Stage `rows` of `schema.PHOTOS` in one atomic put, under a name that a retried task makes again; its URI."""
        return self._put(rows, "rows")

    def put_copies(self, rows: pa.Table) -> str:
        """Keep rows that wait for another photo's answer, as `put_rows` does."""
        return self._put(rows, "copies")

    def row_files(self) -> list[str]:
        """URIs of the rows staged so far; of a photo that is in several of them, the last one's row is the newest."""
        return self._files("rows")

    def copy_files(self) -> list[str]:
        """URIs of the rows that wait for another photo's answer, in order as `row_files`."""
        return self._files("copies")

    def _put(self, rows: pa.Table, kind: str) -> str:
        assert rows.schema.equals(schema.PHOTOS), rows.schema
        photo_ids = sorted(rows.column(schema.PHOTO_ID).to_pylist())
        name = hashlib.blake2b(b"".join(photo_ids), digest_size=16).hexdigest()
        uri = storage.join(self.folder, kind, f"e{self.epoch}-{name}-{rows.num_rows}.parquet")
        storage.write_bytes(uri, parquet_bytes(rows))
        return uri

    def _files(self, kind: str) -> list[str]:
        entries = storage.list_files(storage.join(self.folder, kind))
        uris = sorted((entry.uri for entry in entries if entry.uri.endswith(".parquet")), reverse=True)
        return sorted(uris, key=epoch_of)

    def staged_count(self) -> int:
        """Rows staged so far, told by the names of their files."""
        return sum(int(uri.rsplit("-", 1)[1].removesuffix(".parquet")) for uri in self.row_files())

    def settings(self) -> dict[str, object]:
        """What the run was started with, or {} for a run that is new."""
        entries = [e.uri for e in storage.list_files(self.folder) if _SETTINGS.fullmatch(e.uri.rsplit("/", 1)[1])]
        if not entries:
            return {}
        found: dict[str, object] = json.loads(storage.read_bytes(min(entries, key=epoch_of)))
        return found

    def put_settings(self, settings: dict[str, object]) -> None:
        """Record what the run is started with, so that a restart can refuse to mix two models in one run."""
        uri = storage.join(self.folder, f"run-e{self.epoch}.json")
        storage.write_bytes(uri, json.dumps(settings, indent=2).encode())

    def delete(self) -> None:
        """Remove everything this run has staged, for whoever alone can write here; others leave it to `sweep`."""
        storage.delete_folder(self.folder)


def local_photos(stage: Stage, most: int, roots: Sequence[str] | None = None) -> list[str]:
    """Return the URIs of some of the stage's planned photos that are files of a machine, not of an object store.

    Only of those that will be read: below one of `roots`, if given (see `roots.is_allowed`).
    """
    found: list[str] = []
    with connect(stage.folder) as connection:
        plan = connection.read_parquet(stage.plan_files(), hive_partitioning=False)  # noqa: F841 - the query names it
        result = connection.execute("SELECT uri FROM plan WHERE starts_with(uri, '/') OR starts_with(uri, 'file://')")
        while len(found) < most and (rows := result.fetchmany(1000)):
            found += [uri for (uri,) in rows if roots is None or is_allowed(uri, roots)]
    return found[:most]


def parquet_bytes(rows: pa.Table) -> bytes:
    """Return `rows` as a Parquet file in memory: what is put is whole or not there."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    return bytes(sink.getvalue())


def unfinished_runs(output: str) -> list[str]:
    """Return the ids of the runs staged below `output`, in the order in which they were started."""
    folder = storage.join(output, layout.STAGING)
    started: dict[str, int] = {}
    for entry in storage.list_files(folder):
        run_id, _, below = entry.uri.removeprefix(folder + "/").partition("/")
        if below:
            epoch = epoch_of(entry.uri)
            started[run_id] = min(epoch, started.get(run_id, epoch))
    return sorted(started, key=lambda run_id: (started[run_id], run_id))
