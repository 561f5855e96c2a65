"""Time, memory and temporary disk of planning a run, from a million photos upwards: do they grow only with the photos?

`python -m jobs.benchmark plan` is the command; run by itself, this file plans one folder for it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.benchmark.figure import Figure
from pipeline import schema
from pipeline.run.plan import make_plan
from pipeline.run.staging import Stage
from pipeline.schema import Status

_ROWS_PER_FILE = 1_000_000
_PERIOD, _CHANGED, _NEW = 100, 3, 7
"""One photo in a hundred has changed since it was published, another is new."""
_MODEL_ID = "benchmark"
_MANIFEST, _PUBLISHED, _OUTPUT, _TEMPORARY = "manifest.parquet", "published", "output", "tmp"


@dataclass(frozen=True)
class PlanBenchmark:
    """Photos planned a second against as many published rows, 1 % of them changed and 1 % new; memory and disk too."""

    rows: tuple[int, ...] = (1_000_000, 3_000_000, 10_000_000)
    """Photos of each measurement; the growth is from one to the next."""

    def measure(self) -> list[Figure]:
        """Print a line for each size; return the figures."""
        if not self.rows or min(self.rows) < 1:
            raise ValueError(f"--rows {' '.join(map(str, self.rows))}: give numbers of 1 or more")
        print(f"{'photos':>12}{'photos/s':>10}{'wall s':>8}{'CPU s':>8}{'peak GB':>9}{'disk GB':>9}  growth")
        last: _Measured | None = None
        for rows in self.rows:
            with tempfile.TemporaryDirectory(prefix="graticule-bench-") as folder:
                _make_archive(Path(folder), rows)
                found = _plan_in_a_process(Path(folder))
            new, changed = len(range(_NEW, rows, _PERIOD)), len(range(_CHANGED, rows, _PERIOD))
            wanted = {"listed": rows, "duplicates": 0, "todo": new + changed, "changed": changed}
            counted = {name: found.counts[name] for name in wanted}
            if counted != wanted:
                raise ValueError(f"planning counts {counted} where {wanted} is right: its speed would mean nothing")
            growth = ""
            if last is not None:
                factors = (rows / last.counts["listed"], found.cpu_s / last.cpu_s, found.peak_gb / last.peak_gb)
                growth = "photos × {:.1f}, CPU × {:.1f}, memory × {:.1f}".format(*factors)
            print(
                f"{rows:>12,}{rows / found.wall_s:>10,.0f}{found.wall_s:>8.1f}{found.cpu_s:>8.1f}"
                f"{found.peak_gb:>9.2f}{found.disk_gb:>9.2f}  {growth}",
                flush=True,
            )
            last = found
        assert last is not None
        millions = self.rows[-1] / 1e6
        return [
            Figure(f"plan, {self.rows[-1]:,}", "seconds ÷ 6 s a million", last.wall_s, 6 * millions,
                   last.wall_s / (6 * millions), "s", most=1),
            Figure(f"plan, {self.rows[-1]:,}", "peak memory ÷ 4 GB", last.peak_gb, 4.0, last.peak_gb / 4, "GB", most=1),
        ]  # fmt: skip


@dataclass(frozen=True)
class _Measured:
    """What planning took in a process of its own, and what it counted."""

    wall_s: float
    cpu_s: float
    peak_gb: float
    disk_gb: float
    counts: dict[str, int]


def _make_archive(folder: Path, rows: int) -> None:
    """Write a manifest of `rows` photos and as many published rows; those of new photos are of photos now gone."""
    listed = pa.schema([schema.MANIFEST.field(name) for name in (schema.URI, schema.ETAG, schema.SIZE_BYTES)])
    (folder / _PUBLISHED).mkdir()
    (folder / _TEMPORARY).mkdir()
    processed_at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    with pq.ParquetWriter(folder / _MANIFEST, listed) as manifest:
        for start in range(0, rows, _ROWS_PER_FILE):
            numbers = range(start, min(start + _ROWS_PER_FILE, rows))
            uris = [
                f"s3://photos-of-the-archive/2024/{number // 10_000:06d}/IMG_{number:012d}.jpg" for number in numbers
            ]
            etags = [hashlib.md5(uri.encode(), usedforsecurity=False).hexdigest() for uri in uris]
            columns = {schema.URI: uris, schema.ETAG: etags, schema.SIZE_BYTES: np.array(numbers)}
            manifest.write_table(pa.table(columns, schema=listed))
            for index, number in enumerate(numbers):
                if number % _PERIOD == _NEW:
                    uris[index] += ".gone"
                elif number % _PERIOD == _CHANGED:
                    etags[index] = etags[index][::-1]
            values = {
                schema.PHOTO_ID: [schema.photo_id(uri) for uri in uris],
                schema.URI: uris,
                schema.ETAG: etags,
                schema.STATUS: [str(Status.LOCATED)] * len(uris),
                schema.MODEL_ID: [_MODEL_ID] * len(uris),
                schema.RUN_ID: ["r0"] * len(uris),
                schema.PROCESSED_AT: [processed_at] * len(uris),
            }
            absent = [None] * len(uris)
            table = pa.table({name: values.get(name, absent) for name in schema.PHOTOS.names}, schema=schema.PHOTOS)
            pq.write_table(
                table, folder / _PUBLISHED / f"part-{start // _ROWS_PER_FILE:05d}.parquet", compression="zstd"
            )


def _plan_in_a_process(folder: Path) -> _Measured:
    """Plan in a process of its own, whose peak is then planning's; watch the temporary files from here."""
    command = [sys.executable, "-m", "jobs.benchmark.plan", str(folder)]
    environment = os.environ | {"TMPDIR": str(folder / _TEMPORARY)}
    peak_bytes = 0
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        while child.poll() is None:
            time.sleep(0.1)
            peak_bytes = max(peak_bytes, _used_bytes(folder / _TEMPORARY))
        answer = child.stdout.read()
    if child.returncode:
        raise ValueError(f"planning in a process of its own failed with exit code {child.returncode}: see above")
    return _Measured(**json.loads(answer), disk_gb=peak_bytes / 1e9)


def _used_bytes(folder: Path) -> int:
    used_bytes = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                used_bytes += os.stat(os.path.join(parent, name)).st_blocks * 512
    return used_bytes


def _plan(folder: Path) -> None:
    """Plan the archive in `folder` and print what it took."""
    published = sorted(str(file) for file in (folder / _PUBLISHED).iterdir())
    stage = Stage(str(folder / _OUTPUT), "r1")
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    plan = make_plan([str(folder / _MANIFEST)], stage, published, _MODEL_ID, retry_failed=False, limit=None)
    taken = {"wall_s": time.perf_counter() - start_s, "cpu_s": time.process_time() - start_cpu_s}
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    counts = {name: value for name, value in asdict(plan).items() if name != "files"}
    print(json.dumps(taken | {"peak_gb": peak_gb, "counts": counts}))


if __name__ == "__main__":
    _plan(Path(sys.argv[1]))
