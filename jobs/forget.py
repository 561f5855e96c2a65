"""Forget photos: remove every trace of their rows from an output, and look at them no more.

    python -m jobs.forget OUTPUT --where "uri LIKE '%/private/%'"     # says what it would do; --write does it
    python -m jobs.forget OUTPUT --photos FILE --write

Photos themselves, and sidecars and files that jobs.export and jobs.report have written elsewhere, stay as they are.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import pyarrow as pa
import tyro

from jobs import run_command
from pipeline import schema, storage
from pipeline.forget import forget as forgetting
from pipeline.published import layout, records
from pipeline.storage import lease
from pipeline.storage.lease import LeaseSettings

log = logging.getLogger(__name__)

_OURS = (layout.PHOTOS, layout.RUNS, layout.REMOVED, layout.STAGING, layout.NIGHTS, *layout.LISTS)
_EXAMPLES = 5


@dataclass(frozen=True)
class ForgetSettings:
    """Remove every trace of photos' rows from an output, and leave these photos out of later runs."""

    output: tyro.conf.Positional[str]
    """The --output of jobs.geotag_archive."""
    where: str | None = None
    """Photos for which this SQL condition over the view photos holds."""
    photos: str | None = None
    """Photos that a file names: one a line, as the column uri has it, or a table such as .parquet, .csv or .jsonl."""
    again: bool = False
    """Let later runs look at forgotten photos again: at those of --photos, or at all."""
    write: bool = False
    """Do it, rather than say what would be done."""
    lease: LeaseSettings = field(default_factory=LeaseSettings)


def run(settings: ForgetSettings) -> int:
    """Forget, or say what would be forgotten; return the exit code."""
    output = storage.absolute(settings.output)
    if not records.run_records(output):
        raise ValueError(f"nothing is published at {output}: name the --output of jobs.geotag_archive")
    if settings.again:
        return _remember(settings, output)
    if (settings.where is None) == (settings.photos is None):
        raise ValueError('say which photos: --where "SQL condition", or --photos FILE')
    chosen = (
        forgetting.chosen_by(output, settings.where)
        if settings.where is not None
        else forgetting.chosen_in(str(settings.photos))
    )
    if not chosen.num_rows:
        print(f"No photo of {output} is meant: nothing is to be forgotten.")
        return 0
    if not settings.write:
        _tell(forgetting.look(output, chosen), chosen, "would be removed")
        print("This was a dry run, nothing was removed. Add --write to do it; nothing brings the rows back.")
        return 0
    try:
        found = forgetting.forget(output, chosen, settings.lease)
    except (lease.LeaseLostError, lease.CommitUnknownError) as error:
        log.error("%s", error)
        return 1
    _tell(found, chosen, "are removed")
    print("Later runs leave these photos out, and say how many (--again lets them back).")
    _tell_strangers(output)
    return 0


def _remember(settings: ForgetSettings, output: str) -> int:
    if settings.where is not None:
        raise ValueError("--again knows no rows of forgotten photos: name the photos by --photos, or none for all")
    chosen = None if settings.photos is None else forgetting.chosen_in(settings.photos)
    which = "all forgotten photos" if chosen is None else f"those of {chosen.num_rows} photos that are forgotten"
    if not settings.write:
        print(f"Later runs would look at {which} again. This was a dry run; add --write to do it.")
        return 0
    try:
        count = forgetting.remember(output, chosen, settings.lease)
    except (lease.LeaseLostError, lease.CommitUnknownError) as error:
        log.error("%s", error)
        return 1
    print(f"{count} photos are forgotten no more: later runs that list them look at them again.")
    return 0


def _tell(found: forgetting.Found, chosen: pa.Table, what: str) -> None:
    print(f"{found.rows} rows of {found.photos} photos {what}, from {len(found.rows_by_run)} runs")
    for run_id, rows in found.rows_by_run.items():
        print(f"{rows:>12}  {schema.printable(run_id)}")
    if others := len(set(chosen.column(schema.PHOTO_ID).to_pylist())) - found.photos:
        print(f"{others:>12}  photos have no row; they are left out of later runs too")


def _tell_strangers(output: str) -> None:
    """Name files below the output that are not ours: nobody has looked into them."""
    strangers = []
    for entry in storage.list_files(output):
        path = entry.uri.removeprefix(output + "/")
        if path.partition("/")[0] not in _OURS and path != layout.LEASE:
            strangers.append(path)
    if strangers:
        print(f"{len(strangers)} files below the output are not this program's, and may name the photos still:")
        for path in strangers[:_EXAMPLES]:
            print(f"{'':14}{schema.printable(path)}")


if __name__ == "__main__":
    run_command(ForgetSettings, run)
