"""A run while it is unfinished: its plan, and its rows so far in small atomic parts that a restart counts as done."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema, storage

_EPOCH = r"/e(\d+)-[0-9a-f]{32}-\d+\.parquet$"
EPOCH_SQL = f"coalesce(try_cast(regexp_extract(filename, '{_EPOCH}', 1) AS BIGINT), 0)"
"""`epoch_of` in DuckDB, over the column `filename` of staged parts."""


@dataclass(frozen=True)
class Stage:
    """The staging folder of one run below an output; `attempt` names who works on it now (see `lease`).

    A driver that slept while another took its run up must not meddle: each has a plan of its own. Rows are shared.
    """

    output: str
    run_id: str
    attempt: str = "e1"

    @property
    def folder(self) -> str:
        """URI of everything this run has staged."""
        return storage.join(self.output, "staging", self.run_id)

    def plan_uri(self, name: str, index: int) -> str:
        """URI of file number `index` of the plan's part `name`."""
        return storage.join(self.folder, "plan", self.attempt, f"{name}-{index:05d}.parquet")

    def plan_files(self) -> list[str]:
        """URIs of this attempt's plan."""
        return [entry.uri for entry in storage.list_files(storage.join(self.folder, "plan", self.attempt))]

    def delete_plan(self) -> None:
        """Remove the plans of earlier starts of this run."""
        for entry in storage.list_files(storage.join(self.folder, "plan")):
            storage.delete(entry.uri)

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
        uri = storage.join(self.folder, kind, f"{self.attempt}-{name}-{rows.num_rows}.parquet")
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
        uri = storage.join(self.folder, "run.json")
        if not storage.exists(uri):
            return {}
        found: dict[str, object] = json.loads(storage.read_bytes(uri))
        return found

    def put_settings(self, settings: dict[str, object]) -> None:
        """Record what the run is started with, so that a restart can refuse to mix two models in one run."""
        storage.write_bytes(storage.join(self.folder, "run.json"), json.dumps(settings, indent=2).encode())

    def delete(self) -> None:
        """Remove everything this run has staged; done once it is published."""
        storage.delete_folder(self.folder)


def epoch_of(uri: str) -> int:
    """Return the epoch of the holder that staged a part, as its name says; 0 where an older version named it."""
    found = re.search(_EPOCH, uri)
    return int(found[1]) if found else 0


def parquet_bytes(rows: pa.Table) -> bytes:
    """Return `rows` as a Parquet file in memory: what is put is whole or not there."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    return bytes(sink.getvalue())


def unfinished_runs(output: str) -> list[str]:
    """Return the ids of the runs staged below `output`, oldest first (ids start with their time)."""
    folder = storage.join(output, "staging")
    below = (entry.uri.removeprefix(folder + "/") for entry in storage.list_files(folder))
    return sorted({name.split("/", 1)[0] for name in below if "/" in name})
