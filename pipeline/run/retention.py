"""Old runs go when newer ones have replaced their every row; no photo loses its answer, no reader its files.

A run goes in two steps. First its record moves from `runs/` to `removed/`: whoever opens the output from then on knows
nothing of it. Its files go `GRACE` later, when whoever had opened the output before has finished. The note in
`removed/` stays, without the names of files: it says that the run does not count, should anybody who slept put its
record once more.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
from dataclasses import replace

from pipeline import storage
from pipeline.published import catalog, layout, records
from pipeline.published.records import RunRecord
from pipeline.run import sweep
from pipeline.storage import lease

log = logging.getLogger(__name__)

GRACE = dt.timedelta(days=1)


def remove_replaced_runs(
    output: str, older_than: dt.timedelta, settings: lease.LeaseSettings, grace: dt.timedelta = GRACE
) -> list[str]:
    """Let runs that ended longer ago than that count no more, but those that a photo's answer or newest row is from.

    Returns which.

    Removes the files of those that were let go more than `grace` ago. Does nothing, and says so in the log, while
    another run has the output. Interrupted anywhere, the next call goes on.
    """
    try:
        with records.held(output, "retention", settings) as held:
            sweep.at_start(held, output)
            removed = _let_go(held, output, older_than)
            delete_files(output, grace)
            return removed
    except lease.LeaseHeldError as error:
        log.warning("old runs stay for now: %s", error)
        return []


def removed_files(output: str) -> set[str]:
    """Return the paths below `output` of files that belong to runs that were let go, and that may still be there."""
    return {file.path for record in records.removed_records(output) for file in record.objects}


def _let_go(held: lease.Lease, output: str, older_than: dt.timedelta) -> list[str]:
    before = dt.datetime.now(dt.UTC) - older_than
    old = [record for record in records.run_records(output) if record.has_finished_before(before)]
    if not old:
        return []
    needed = catalog.Catalog(output).needed_runs()
    gone = [record for record in old if record.run_id not in needed]
    for record in gone:
        # Its files are known in one place at least, whatever interrupts this.
        noted = replace(record, removed_at=dt.datetime.now(dt.UTC).isoformat())
        held.prove(within_s=held.renewal_interval_s)
        with contextlib.suppress(FileExistsError):
            storage.create_bytes(layout.removed_note(output, record.run_id), records.encoded(noted))
        storage.delete(layout.record(output, record.run_id))
    return [record.run_id for record in gone]


def delete_files(output: str, grace: dt.timedelta) -> None:
    """Remove the files of runs that were let go long enough ago: what will never count again needs no proof."""
    counting = {uri for record in records.run_records(output) for uri in record.object_uris(output)}
    for record in records.removed_records(output):
        assert record.removed_at is not None, record.run_id
        is_recent = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(record.removed_at) < grace
        if is_recent or not record.objects:
            continue
        for uri in set(record.object_uris(output)) - counting:
            if not storage.is_within(uri, output):
                raise ValueError(
                    f"{layout.removed_note(output, record.run_id)} names {uri}, which a link leads out of the output:"
                    " nothing there is removed. See who has put the link, and remove it"
                )
            storage.delete(uri)
        note = RunRecord(run_id=record.run_id, sequence=record.sequence, removed_at=record.removed_at)
        storage.write_bytes(layout.removed_note(output, record.run_id), records.encoded(note))
        log.info("the files of run %s, which newer runs have replaced, are removed", record.run_id)
