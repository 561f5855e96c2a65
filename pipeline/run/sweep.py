"""What holders of the lease before this one left behind, and who may remove it.

Three rules keep a holder that has lost its lease, and does not know it yet, from doing harm:

- Everybody may remove what it wrote itself: no other epoch writes under these names.
- What can never count again may be removed at any time: a published file or list of an older epoch that no record
  names (an older epoch can't commit any more, and the record of what it did commit was put before this holder's lease
  began), the staging of a run that is finished, and the record of a run that is noted as removed.
- Anything else of an older epoch may be of use to a later one. Before each such removal the holder proves that it still
  has the lease, so that one that wakes up late removes one object at most, which the later one makes again.
"""

from __future__ import annotations

from pipeline import storage
from pipeline.published import layout, records
from pipeline.run import staging
from pipeline.storage import lease


def at_start(held: lease.Lease, output: str) -> None:
    """Remove what neither a reader nor a run will ever need; called first thing under the lease."""
    finish_forgetting(held, output)
    removed = records.removed_records(output)
    known = [*records.run_records(output), *removed]
    finished = {record.run_id for record in known}
    for run_id in staging.unfinished_runs(output):
        if run_id in finished:
            finished_run(staging.Stage(output, run_id))
    for record in removed:  # one that slept through its run's whole life may have put its record once more
        storage.delete(layout.record(output, record.run_id))
    named = {uri for record in known for uri in record.object_uris(output)}
    if (forgotten := records.forgotten_list(output)) is not None:
        named.add(storage.join(output, forgotten.path))
    for folder in (layout.PHOTOS, *layout.LISTS):
        for entry in storage.list_files(storage.join(output, folder)):
            epoch = layout.published_epoch(entry.uri)
            if epoch is None:
                epoch = layout.list_epoch(entry.uri.removeprefix(output + "/"))
            if epoch is not None and epoch < held.epoch and entry.uri not in named:
                storage.delete(entry.uri)
        storage.remove_temporaries(storage.join(output, folder))


def finish_forgetting(held: lease.Lease, output: str) -> None:
    """Put the records that a forgetting has rewritten in their places: its own record has them, and counts already."""
    for record in records.to_rewrite(output):
        uri = layout.record(output, record.run_id)
        found = storage.read_version(uri)
        held.prove()  # after that was read: whoever has the output later changes it, and this put is refused
        storage.replace_bytes(uri, records.encoded(record), found.etag)


def finished_run(stage: staging.Stage) -> None:
    """Remove all that was staged for a run that is committed."""
    storage.delete_folder(stage.folder)


def unneeded_run(held: lease.Lease, stage: staging.Stage) -> None:
    """Remove all that was staged, until now, for a run that has nothing left to do.

    Raises LeaseLostError where another run has the output by now, and may go on with this run.
    """
    for entry in storage.list_files(stage.folder):
        epoch = staging.epoch_of(entry.uri)
        if epoch < held.epoch:
            held.prove(within_s=held.renewal_interval_s)
        if epoch <= held.epoch:
            storage.delete(entry.uri)
    storage.remove_empty_folders(stage.folder)
