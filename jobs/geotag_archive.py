"""Geotag an archive: one row for every photo, published as GeoParquet.

    python -m jobs.geotag_archive --photos SOURCE --output URI

Run the same command again to go on after an interruption, or to take on what is new.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from jobs import run_command
from pipeline import geotag, storage
from pipeline.cluster import logs
from pipeline.cluster.watchdog import FlowEndedError
from pipeline.geotag import Outcome
from pipeline.geotag_settings import GeotagSettings
from pipeline.published.records import PlanCounts, RunRecord
from pipeline.run.plan import Plan
from pipeline.run.verify import verify_output

log = logging.getLogger(__name__)

_MOST_PROBLEMS_PRINTED = 20


def _sources(
    photos: Annotated[
        tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]],
        tyro.conf.arg(
            help="Folder, object prefix, photo, Parquet or CSV manifest with a column `uri`, S3 Inventory's"
            " manifest.json, .tar or .zip, or a pattern such as '/photos/2024-*/*.jpg'; several words, or given several"
            " times, for several sources."
        ),
    ],
) -> tuple[str, ...]:
    """Return the sources that the command line names: a shell makes several words of a pattern."""
    return tuple(source for words in photos for source in words)


@dataclass(frozen=True)
class ArchiveSettings(GeotagSettings):
    """Geotag an archive: one row for every photo, published as GeoParquet."""

    photos: Annotated[tuple[str, ...], tyro.conf.arg(constructor=_sources, name="")]
    """As the class above says, in several words or given several times."""
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
    else:
        _print_summary(outcome, outcome.record)
    return exit_code(outcome.record, outcome.plan, settings.max_failed_fraction), outcome


def exit_code(record: RunRecord | None, plan: PlanCounts, max_failed_fraction: float) -> int:
    """Return 0 where all of the sources was listed and most photos have an answer, else 3, and say why."""
    code = 0
    if record is not None and has_too_many_failures(record, max_failed_fraction):
        counts = record.counts
        log.error("%d of %d photos failed, more than --max-failed-fraction allows", counts.failed, counts.photos)
        code = 3
    if not plan.is_complete:
        log.error("source problems: %d; all but these, named above, could be listed", plan.source_problems)
        code = 3
    return code


def has_too_many_failures(record: RunRecord, max_failed_fraction: float) -> bool:
    """Whether more than that share of a run's photos failed."""
    return record.counts.failed > max_failed_fraction * record.counts.photos


def skipped_text(by_kind: Mapping[str, Mapping[str, int]]) -> str:
    """Return what was skipped, in words: `312 sidecars (.xmp 300, .json 12), 40 videos (.mp4)`."""
    said = []
    for kind, endings in by_kind.items():
        names = [(ending or "no ending", count) for ending, count in endings.items()]
        listed = ", ".join(f"{name} {count}" for name, count in names) if len(names) > 1 else names[0][0]
        total = sum(endings.values())
        said.append(f"{total} {kind if total > 1 else kind.removesuffix('s')} ({listed})")
    return ", ".join(said)


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
    if plan.already_done:
        which = (
            f"{plan.already_done} photos" if plan.waiting or not plan.is_complete else f"all {plan.already_done} photos"
        )
        said = f"{which} have their row at {outcome.output}{_whose(plan, outcome.model_id)}."
    else:
        said = "no photo could be listed." if not plan.listed else "no photo is to be tried now."
    print(f"Nothing to do: {said}{_waiting(plan)}{_gone(outcome)}")
    for what, count in _left_out(plan):
        print(f"{what}: {count}")
    _print_problems(plan)


def _left_out(plan: Plan) -> list[tuple[str, str]]:
    """Return what is not among the listed photos, in words, with how many they are."""
    by_patterns = _photos_and_folders(plan.excluded, plan.excluded_folders)
    by_owners = _photos_and_folders(plan.marked, plan.marked_folders)
    rows = [("left out by --include and --exclude", by_patterns)] * bool(by_patterns)
    return rows + [("left out by owners' marks (--ignore-marks)", by_owners)] * bool(by_owners)


def _photos_and_folders(photos: int, folders: int) -> str:
    """Say how many; "" for none. A folder that was not opened counts as one, whatever it holds."""
    parts = [str(photos)] * bool(photos) + [f"{folders} folders or archives, unopened"] * bool(folders)
    return " and ".join(parts)


def _print_problems(plan: Plan) -> None:
    if plan.is_complete:
        return
    print(f"Source problems: {plan.source_problems}. All else was done; the next run looks at these again:")
    for problem in plan.problems[:_MOST_PROBLEMS_PRINTED]:
        print(f"    {problem}")
    if plan.source_problems > _MOST_PROBLEMS_PRINTED:
        print(f"    … and {plan.source_problems - _MOST_PROBLEMS_PRINTED} more, which the log names")


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
    table = Table(title=f"{published.photos} photos by {outcome.model_id}", title_justify="left", min_width=60)
    table.add_column("status")
    table.add_column("photos", justify="right")
    table.add_row("located", str(published.located))
    if published.undecided:
        table.add_row("undecided: the picture does not say enough", str(published.undecided))
    for code, count in (published.failed_by_code or {}).items():
        table.add_row(f"failed: {code}", str(count))
    if published.recorded_apart:
        table.add_row("recorded positions more than 1 km apart (recorded_apart_km)", str(published.recorded_apart))
    if published.skipped:
        table.add_row("skipped: no photos", str(published.skipped))
    if plan.already_done:
        table.add_row("done before, not in this run", str(plan.already_done))
    if plan.of_another_model:
        table.add_row("… of these by another model (--retag)", str(plan.of_another_model))
    if plan.waiting:
        table.add_row("failed in passing before, left for later runs to try", str(plan.waiting))
    for what, number in _left_out(plan):
        table.add_row(what, number)
    if record.plan and record.plan.gone:
        table.add_row("listed no more, in all (photos_here leaves them out)", str(record.plan.gone))
    if record.plan and record.plan.held_back:
        table.add_row("missing, and not taken for gone", str(record.plan.held_back))
    if plan.forgotten:
        table.add_row("forgotten, left out (jobs.forget)", str(plan.forgotten))
    if left:
        table.add_row("left for the next run (--max-hours)", str(left))
    Console(width=max(100, Console().width)).print(table)
    _print_problems(plan)
    if published.skipped:
        print(f"skipped: {skipped_text(published.skipped_by_kind or {})}")
    noun = "files" if published.skipped else "photos"
    print(f"{plan.todo - left} {noun} processed in {record.wall_s:.0f} s. Look at them with")
    print(f'    python -m jobs.query {outcome.output} "SELECT uri, lat_deg, lon_deg, radius_km FROM photos"')


if __name__ == "__main__":
    run_command(ArchiveSettings, run)
