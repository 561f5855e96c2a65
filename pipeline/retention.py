"""Old runs go when newer ones have replaced their every row; no photo loses its answer, no reader its files.

A run goes in two steps. First its record moves from `runs/` to `removed/`: whoever opens the output from then on knows
nothing of it. Its files go `GRACE` later, when whoever had opened the output before has finished. The note in
`removed/` stays, without the names of files: it says that the run does not count, should anybody who slept put its
record once more.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
from typing import Any

from pipeline import catalog, lease, storage, sweep

log = logging.getLogger(__name__)

GRACE = dt.timedelta(days=1)
_REMOVED_AT = "removed_at"


def remove_replaced_runs(
    output: str, older_than: dt.timedelta, settings: lease.LeaseSettings, grace: dt.timedelta = GRACE
) -> list[str]:
    """Let runs that ended longer ago than that count no more, but those that a photo's answer or newest row is from.

    Returns which.

    Removes the files of those that were let go more than `grace` ago. Does nothing, and says so in the log, while
    another run has the output. Interrupted anywhere, the next call goes on.
    """
    try:
        with lease.held(output, "retention", settings) as held:
            sweep.at_start(held, output)
            removed = _let_go(held, output, older_than)
            _delete_files(output, grace)
            return removed
    except lease.LeaseHeldError as error:
        log.warning("old runs stay for now: %s", error)
        return []


def removed_files(output: str) -> set[str]:
    """Return the paths below `output` of files that belong to runs that were let go, and that may still be there."""
    return {file["path"] for record in catalog.removed_records(output) for file in record["files"]}


def _let_go(held: lease.Lease, output: str, older_than: dt.timedelta) -> list[str]:
    records = catalog.run_records(output)
    before = dt.datetime.now(dt.UTC) - older_than
    old = [record for record in records if dt.datetime.fromisoformat(record["finished_at"]) < before]
    if not old:
        return []
    needed = catalog.Catalog(output).needed_runs()
    gone = [record for record in old if record["run_id"] not in needed]
    for record in gone:
        # Its files are known in one place at least, whatever interrupts this.
        noted = record | {_REMOVED_AT: dt.datetime.now(dt.UTC).isoformat()}
        held.prove(within_s=held.renewal_interval_s)
        with contextlib.suppress(FileExistsError):
            storage.create_bytes(_uri(output, lease.REMOVED_FOLDER, record), json.dumps(noted, indent=2).encode())
        storage.delete(_uri(output, lease.RUNS_FOLDER, record))
    return [str(record["run_id"]) for record in gone]


def _delete_files(output: str, grace: dt.timedelta) -> None:
    """Remove the files of runs that were let go long enough ago: what will never count again needs no proof."""
    counting = set(catalog.published_files(output, catalog.run_records(output)))
    for record in catalog.removed_records(output):
        is_recent = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(record[_REMOVED_AT]) < grace
        if is_recent or not record["files"]:
            continue
        for uri in set(catalog.published_files(output, [record])) - counting:
            storage.delete(uri)
        note = {name: record[name] for name in ("run_id", "sequence", _REMOVED_AT) if name in record} | {"files": []}
        storage.write_bytes(_uri(output, lease.REMOVED_FOLDER, record), json.dumps(note, indent=2).encode())
        log.info("the files of run %s, which newer runs have replaced, are removed", record["run_id"])


def _uri(output: str, folder: str, record: dict[str, Any]) -> str:
    return lease.record_uri(output, folder, str(record["run_id"]))
