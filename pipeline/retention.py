"""Old runs go when newer ones have replaced their every row; no photo loses its answer, no reader its files.

A run goes in two steps. First its record moves from `runs/` to `removed/`: whoever opens the output from then on knows
nothing of it. Its files go `GRACE` later, when whoever had opened the output before has finished.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
from typing import Any

from pipeline import catalog, lease, storage

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
        with lease.held(output, "retention", settings):
            removed = _let_go(output, older_than)
            _delete_files(output, grace)
            return removed
    except lease.LeaseHeldError as error:
        log.warning("old runs stay for now: %s", error)
        return []


def removed_files(output: str) -> set[str]:
    """Return the paths below `output` of files that belong to runs that were let go, and that may still be there."""
    return {file["path"] for record in _removed(output) for file in record["files"]}


def _let_go(output: str, older_than: dt.timedelta) -> list[str]:
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
        storage.write_bytes(_uri(output, lease.REMOVED_FOLDER, record), json.dumps(noted, indent=2).encode())
        storage.delete(_uri(output, lease.RUNS_FOLDER, record))
    return [str(record["run_id"]) for record in gone]


def _delete_files(output: str, grace: dt.timedelta) -> None:
    counting = set(catalog.published_files(output, catalog.run_records(output)))
    for record in _removed(output):
        if dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(record[_REMOVED_AT]) < grace:
            continue
        for uri in set(catalog.published_files(output, [record])) - counting:
            storage.delete(uri)
        storage.delete(_uri(output, lease.REMOVED_FOLDER, record))
        log.info("the files of run %s, which newer runs have replaced, are removed", record["run_id"])


def _removed(output: str) -> list[dict[str, Any]]:
    entries = storage.list_files(storage.join(output, lease.REMOVED_FOLDER))
    return [json.loads(storage.read_bytes(entry.uri)) for entry in entries if entry.uri.endswith(".json")]


def _uri(output: str, folder: str, record: dict[str, Any]) -> str:
    return storage.join(output, folder, f"{record['run_id']}.json")
