"""What lies where below an output: the one place that knows its folders, and the names of what is in them.

    photos/run=RUN/part-eEPOCH-00000.parquet   rows that are published
    runs/RUN.json                              the record that makes a run count
    removed/RUN.json                           the note that a run was let go of
    staging/RUN/…                              an unfinished run: its plan, rows, copies and settings (see `staging`)
    gone/eEPOCH.parquet                        which photos are listed no more (see `gone`)
    forgotten/eEPOCH.parquet                   which photos are never to be looked at again (see `forget`)
    nights/DATE.json                           what a night came to
    lease.json                                 who has the output

An EPOCH is the number of the lease's holder that wrote the object. Names without one are of older versions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline import storage
from pipeline.storage import lease
from pipeline.storage.store import is_plain

PHOTOS, RUNS, REMOVED, STAGING, NIGHTS = "photos", "runs", "removed", "staging", "nights"
GONE, FORGOTTEN = "gone", "forgotten"
LISTS = (GONE, FORGOTTEN)
LEASE = lease.FILE
_SWEPT = re.compile(rf"(?:{RUNS}|{REMOVED})/.*|\.{re.escape(LEASE)}\.(?:[0-9a-f]+\.)?tmp", re.DOTALL)
"""Where the lease's next holder removes what a killed process left of a put."""
_PUBLISHED = re.compile(r"part-(?:e(\d+)-)?\d+\.parquet")
_PUBLISHED_PATH = re.compile(rf"{PHOTOS}/run=([^/]+)/[^/]+")
_LIST_PATH = re.compile(rf"(?:{GONE}|{FORGOTTEN})/e(\d{{1,18}})\.parquet")
_EPOCH = re.compile(r"(?:^|/|-)e(\d{1,18})[-./]")


def published_folder(output: str, run_id: str) -> str:
    """Return the URI of the folder of a run's published files."""
    return storage.join(output, PHOTOS, f"run={run_id}")


def published_file(output: str, run_id: str, epoch: int, index: int) -> str:
    """Return the URI of the run's published file number `index`, as the holder number `epoch` writes it."""
    return storage.join(published_folder(output, run_id), f"part-e{epoch}-{index:05d}.parquet")


def published_epoch(uri: str) -> int | None:
    """Return the epoch in a published file's name, 0 where an older version wrote it, None for any other name."""
    found = _PUBLISHED.fullmatch(uri.rsplit("/", 1)[-1])
    return int(found[1] or 0) if found else None


def is_published_file(path: str, run_id: str | None = None) -> bool:
    """Whether `path`, relative to the output, can be a published file, of that run if given: it leads nowhere else."""
    found = _PUBLISHED_PATH.fullmatch(path)
    return found is not None and is_plain(path) and run_id in (None, found[1])


def gone_list(epoch: int) -> str:
    """Return the path, relative to the output, of the list of photos that the holder number `epoch` found gone."""
    return f"{GONE}/e{epoch}.parquet"


def forgotten_list(epoch: int) -> str:
    """Return the path, relative to the output, of the list of forgotten photos by the holder number `epoch`."""
    return f"{FORGOTTEN}/e{epoch}.parquet"


def list_epoch(path: str) -> int | None:
    """Return the epoch in the name of a list, whose path is relative to the output; None where it can't be one."""
    found = _LIST_PATH.fullmatch(path)
    return int(found[1]) if found else None


def run_of(path: str) -> str:
    """Return the run that a published or staged object is of; `path` is relative to the output."""
    return path.split("/", 2)[1].removeprefix("run=")


def record(output: str, run_id: str) -> str:
    """Return the URI of the record that makes a run count."""
    return storage.join(output, RUNS, f"{run_id}.json")


def removed_note(output: str, run_id: str) -> str:
    """Return the URI of the note that a run was let go of."""
    return storage.join(output, REMOVED, f"{run_id}.json")


def staging_folder(output: str, run_id: str) -> str:
    """Return the URI of the folder of all that an unfinished run has staged."""
    return storage.join(output, STAGING, run_id)


def night(output: str, date: str) -> str:
    """Return the URI of a night's record."""
    return storage.join(output, NIGHTS, f"{date}.json")


def is_swept(path: str) -> bool:
    """Whether what a killed process left at `path`, relative to the output, is removed by the next holder."""
    return _SWEPT.fullmatch(path) is not None


def epochs_in(path: str) -> Iterator[int]:
    """Yield every epoch in an object's name; `path` is relative to the output."""
    return (int(epoch) for epoch in _EPOCH.findall(path))
