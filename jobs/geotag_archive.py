"""Geotag an archive: one row for every photo, published as GeoParquet.

    python -m jobs.geotag_archive --photos SOURCE --output URI

Run the same command again to go on after an interruption, or to take on what is new.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import tyro
from rich.console import Console
from rich.table import Table

from jobs import run_command
from pipeline import geotag, storage
from pipeline.cluster import logs
from pipeline.cluster.watchdog import FlowEndedError
from pipeline.geotag import Outcome
from pipeline.geotag_settings import GeotagSettings
from pipeline.published.records import RunRecord
from pipeline.run.plan import Plan
from pipeline.run.verify import verify_output

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArchiveSettings(GeotagSettings):
    """Geotag an archive: one row for every photo, published as GeoParquet."""

    photos: tyro.conf.UseAppendAction[tuple[str, ...]]
    """Folder, object prefix, Parquet or CSV manifest with a column `uri`, S3 Inventory's manifest.json, .tar or
    .zip; give it several times for several sources."""
    verify: str | None = None
    """Only check what is published at this output: every byte, row and record."""


def run(settings: ArchiveSettings) -> int:
    """Plan, process and publish, or verify; return the exit code."""
    logs.use_format(settings.log_format)
    if settings.verify is not None:
        return _verify(storage.absolute(settings.verify))
    return geotag_and_tell(settings)[0]


def geotag_and_tell(settings: GeotagSettings) -> tuple[int, Outcome | None]:
    """Geotag, print how it went, and return the exit code with the outcome."""
    try:
        outcome = geotag.geotag(settings)
    except FlowEndedError:  # it has been said why
        return 1, None
    except geotag.STOPPED as error:
        log.error("%s", error)
        return 1, None
    if outcome.record is None or not outcome.record.counts.published:
        _print_nothing_to_do(outcome)
        return 0, outcome
    _print_summary(outcome, outcome.record)
    if has_too_many_failures(outcome.record, settings.max_failed_fraction):
        counts = outcome.record.counts
        log.error("%d of %d photos failed, more than --max-failed-fraction allows", counts.failed, counts.published)
        return 3, outcome
    return 0, outcome


def has_too_many_failures(record: RunRecord, max_failed_fraction: float) -> bool:
    """Whether more than that share of a run's photos failed."""
    return record.counts.failed > max_failed_fraction * record.counts.published


def _verify(output: str) -> int:
    """Print what is wrong at `output`; return 1 if anything is."""
    problems = verify_output(output)
    for problem in problems:
        print(problem)
    print(
        f"{output}: {len(problems)} problems" if problems else f"{output}: all files, rows and records are as published"
    )
    return 1 if problems else 0


def _print_nothing_to_do(outcome: Outcome) -> None:
    plan = outcome.plan
    which = f"{plan.already_done} photos" if plan.waiting else f"all {plan.already_done} photos"
    print(
        f"Nothing to do: {which} have their row at {outcome.output}{_whose(plan, outcome.model_id)}.{_waiting(plan)}"
        f"{_gone(outcome)}"
    )


def _waiting(plan: Plan) -> str:
    if not plan.waiting:
        return ""
    return f" {plan.waiting} more failed in passing; later runs try them again (--retry-failed does so now)."


def _gone(outcome: Outcome) -> str:
    counts = outcome.plan if outcome.record is None or outcome.record.plan is None else outcome.record.plan
    said = f" {counts.forgotten} were forgotten and are left out." if counts.forgotten else ""
    said += f" {counts.gone} more are listed no more: the view photos_here leaves them out." if counts.gone else ""
    return f"{said} {counts.held_back} are missing and not taken for gone." if counts.held_back else said


def _whose(plan: Plan, model_id: str) -> str:
    if not plan.of_another_model:
        return f" under {model_id}"
    return f", {plan.of_another_model} of them by another model than {model_id} (--retag takes them again)"


def _print_summary(outcome: Outcome, record: RunRecord) -> None:
    plan, published, left = outcome.plan, record.counts, record.plan.left if record.plan else 0
    table = Table(title=f"{published.published} photos by {outcome.model_id}", title_justify="left", min_width=60)
    table.add_column("status")
    table.add_column("photos", justify="right")
    table.add_row("located", str(published.located))
    if published.undecided:
        table.add_row("undecided: the picture does not say enough", str(published.undecided))
    for code, count in (published.failed_by_code or {}).items():
        table.add_row(f"failed: {code}", str(count))
    if plan.already_done:
        table.add_row("done before, not in this run", str(plan.already_done))
    if plan.of_another_model:
        table.add_row("… of these by another model (--retag)", str(plan.of_another_model))
    if plan.waiting:
        table.add_row("failed in passing before, left for later runs to try", str(plan.waiting))
    if plan.excluded:
        table.add_row("left out by --include and --exclude", str(plan.excluded))
    if record.plan and record.plan.gone:
        table.add_row("listed no more, in all (photos_here leaves them out)", str(record.plan.gone))
    if record.plan and record.plan.held_back:
        table.add_row("missing, and not taken for gone", str(record.plan.held_back))
    if plan.forgotten:
        table.add_row("forgotten, left out (jobs.forget)", str(plan.forgotten))
    if left:
        table.add_row("left for the next run (--max-hours)", str(left))
    Console(width=max(100, Console().width)).print(table)
    print(f"{plan.todo - left} photos processed in {record.wall_s:.0f} s. Look at them with")
    print(f'    python -m jobs.query {outcome.output} "SELECT uri, lat_deg, lon_deg, radius_km FROM photos"')


if __name__ == "__main__":
    run_command(ArchiveSettings, run)
