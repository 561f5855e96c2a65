"""Tag what is new in an archive, once a night: for cron, systemd, Kubernetes or Airflow, by date and within a budget.

    python -m jobs.nightly --photos SOURCE --output URI --max-hours 6

A date is done once, however often the command runs. A night that was killed is finished by the next start that has the
same settings (model, precision, context); one of other settings is set aside: left as it is, for whoever continues it.
"""

from __future__ import annotations

import collections
import datetime as dt
import itertools
import json
import logging
import os
import re
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import tyro

from jobs import geotag_archive, night_metrics, run_command
from jobs.geotag_archive import ArchiveSettings
from pipeline import schema, storage
from pipeline.cluster import logs
from pipeline.geotag import OtherSettingsError
from pipeline.published import layout, records
from pipeline.published.records import PlanCounts, RunRecord
from pipeline.run import retention, staging
from pipeline.run.plan import Order

log = logging.getLogger(__name__)

_WEBHOOK_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class NightlySettings:
    """Tag what is new in an archive, once a night."""

    archive: Annotated[ArchiveSettings, tyro.conf.arg(name="")]
    date: str = field(default_factory=lambda: dt.datetime.now(dt.UTC).date().isoformat())
    """The night, as YYYY-MM-DD; today's date in UTC if not given."""
    max_photos: int | None = None
    """Take on at most so many photos tonight, the unfinished ones of earlier nights included."""
    first: Order = "newest"
    """Which photos come first where the budget does not suffice for all: newest, oldest, or by name."""
    summary: str = ""
    """A file or URI for the night's summary as text, fit for an e-mail; standard output has it in any case."""
    keep_days: int | None = None
    """Remove runs that ended more than so many days ago and whose every row a newer run has replaced, their files a day
    later; all stay if not given. Photos keep their newest row, however old."""
    webhook: str = ""
    """POST the night's record as JSON to this address, or to the environment's GRATICULE_WEBHOOK, which no process
    list shows; where that fails, the night is done all the same."""
    metrics_file: str = ""
    """A local file, NAME.prom, that says how the night went to node_exporter's textfile collector, whatever its end."""


@dataclass(frozen=True)
class _Done:
    """A run of the night that has come to its end; `record` is None where there was nothing to do."""

    exit_code: int
    plan: PlanCounts
    record: RunRecord | None

    @property
    def photos(self) -> int:
        """Photos that have a row by it."""
        return 0 if self.record is None else self.record.counts.published


def run(settings: NightlySettings) -> int:
    """Do the night's work unless it is done; return the exit code of `jobs.geotag_archive`."""
    logs.use_format(settings.archive.log_format)
    if not settings.metrics_file:
        return _run(settings)[0]
    night_metrics.check(settings.metrics_file)
    started_at = dt.datetime.now(dt.UTC)
    code, night = 1, None
    try:
        code, night = _run(settings)
    except ValueError:
        code = 2
        raise
    finally:
        night_metrics.write(settings.metrics_file, code, started_at, night)
    return code


def _run(settings: NightlySettings) -> tuple[int, dict[str, Any] | None]:
    """Return the night's exit code and, if it is done, its record."""
    archive = _checked(settings)
    output = storage.absolute(archive.output)
    found = _night(output, settings.date)
    if found is not None:
        print(f"The night of {settings.date} is done already:\n{summary_text(found)}", end="")
        return int(found["exit_code"]), found
    started_s, started_at = time.monotonic(), dt.datetime.now(dt.UTC)
    done: list[_Done] = []
    set_aside: list[str] = []
    for run_id in _runs_to_do(output, settings.date):
        budget = _budget_left(settings, done, time.monotonic() - started_s)
        if budget is None:
            break
        try:
            ended = _finished(output, run_id, archive.max_failed_fraction) or _geotagged(replace(budget, run_id=run_id))
        except OtherSettingsError as error:
            log.warning("set aside: %s", error)
            set_aside.append(run_id)
            continue
        if ended is None:  # nothing is published: tonight's date is not done, the next start goes on
            return 1, None
        done.append(ended)
        if _is_own(run_id, settings.date):
            break
    night = _described(settings.date, started_at, done, set_aside)
    if settings.keep_days is not None:
        older_than = dt.timedelta(days=settings.keep_days)
        night["removed_runs"] = retention.remove_replaced_runs(output, older_than, archive.lease)
    storage.write_bytes(layout.night(output, settings.date), json.dumps(night, indent=2).encode())
    text = summary_text(night)
    print(text, end="")
    if settings.summary:
        storage.write_bytes(storage.absolute(settings.summary), text.encode())
    if webhook := _webhook(settings):
        _post(webhook, night)
    return int(night["exit_code"]), night


def summary_text(night: dict[str, Any]) -> str:
    """Return a night's record as text: a subject, an empty line, and a line for each thing worth knowing."""
    failed, undecided = sum(night["failed_by_code"].values()), night.get("undecided", 0)
    problems = night.get("source_problems", 0)
    failing = "done, not all could be listed" if problems else "done, too many failures"
    verdict = {0: "done", 3: failing}[night["exit_code"]]
    lines = [
        f"Graticule, night of {night['date']}: {verdict}; {night['located']} photos located, {undecided} undecided,"
        f" {failed} failed",
        "",
        f"photos in the archive     {night['listed']}",
        f"had their row before      {night['already_done']}",
        f"located tonight           {night['located']}",
        f"undecided: can't tell     {undecided}",
        *(f"failed, {code:<18}{count}" for code, count in sorted(night["failed_by_code"].items())),
        *([f"skipped, no photos        {night['skipped']}: {_skipped(night)}"] if night.get("skipped") else []),
        f"of these changed photos   {night['changed']}",
        f"listed no more            {night['gone']}",
        *([f"missing, maybe not gone   {night['held_back']}"] if night.get("held_back") else []),
        *([f"forgotten, left out       {night['forgotten']}"] if night.get("forgotten") else []),
        f"left for the next night   {night['left']}",
        *(
            [f"could not be listed       {problems}: see the log, or source_problems of the catalogue"]
            if problems
            else []
        ),
        *([f"failed, tried again later {night['waiting']}"] if night.get("waiting") else []),
        f"hours                     {night['hours']:.2f}",
        f"runs                      {' '.join(night['runs']) or 'none: there was nothing to do'}",
        *(f"set aside, other settings {run_id}" for run_id in night.get("set_aside", ())),
        *(f"removed, all replaced     {run_id}" for run_id in night.get("removed_runs", ())),
    ]
    return "\n".join(lines) + "\n"


def _checked(settings: NightlySettings) -> ArchiveSettings:
    try:
        dt.date.fromisoformat(settings.date)
    except ValueError as error:
        raise ValueError(f"--date {settings.date!r}: give a date such as 2026-11-25") from error
    archive = settings.archive
    if archive.run_id is not None or archive.verify is not None:
        raise ValueError("a night's run has its date for a name, and verifies nothing: leave out --run-id and --verify")
    if archive.limit is not None:
        raise ValueError("give a night's limit as --max-photos")
    if archive.order != type(archive).order:
        raise ValueError("say which photos come first by --first")
    if settings.max_photos is not None and settings.max_photos < 1:
        raise ValueError(f"--max-photos {settings.max_photos}: give at least 1")
    if settings.keep_days is not None and settings.keep_days < 0:
        raise ValueError(f"--keep-days {settings.keep_days}: give 0 or more")
    if not (_webhook(settings) or "https://").startswith(("https://", "http://")):
        raise ValueError("--webhook, or GRATICULE_WEBHOOK: give an address that begins with https://")
    if not archive.output:
        raise ValueError("give --output a folder or an object prefix for the answers")
    return archive


def _webhook(settings: NightlySettings) -> str:
    return settings.webhook or os.environ.get("GRATICULE_WEBHOOK", "")


def _runs_to_do(output: str, date: str) -> Iterator[str]:
    """Yield the runs to do tonight, in order: those that earlier nights left unfinished, and tonight's.

    Tonight's has further names, for where earlier starts of other settings have left it unfinished: the first one that
    is free, or of the same settings, is the night's.
    """
    finished = {record.run_id for record in records.run_records(output)}
    for run_id in staging.unfinished_runs(output):
        if run_id not in finished and not _is_own(run_id, date):
            yield run_id
    yield f"nightly-{date}"
    for number in itertools.count(2):
        yield f"nightly-{date}-{number}"


def _is_own(run_id: str, date: str) -> bool:
    return re.fullmatch(rf"nightly-{date}(-\d+)?", run_id) is not None


def _finished(output: str, run_id: str, max_failed_fraction: float) -> _Done | None:
    """Return how a run ended that was published, though its night was killed before it could say so."""
    for record in records.run_records(output):
        if record.run_id == run_id:
            plan = record.plan or PlanCounts()
            return _Done(geotag_archive.exit_code(record, plan, max_failed_fraction), plan, record)
    return None


def _geotagged(archive: ArchiveSettings) -> _Done | None:
    """Run, and return how it ended; None where it stopped before its end."""
    code, outcome = geotag_archive.geotag_and_tell(archive)
    if outcome is None:
        return None
    record = outcome.record
    return _Done(code, outcome.plan if record is None or record.plan is None else record.plan, record)


def _budget_left(settings: NightlySettings, done: list[_Done], passed_s: float) -> ArchiveSettings | None:
    """Return the archive's settings with what is left of the night's budget, None where nothing is."""
    archive = replace(settings.archive, order=settings.first)
    if settings.max_photos is not None:
        left = settings.max_photos - sum(run.photos for run in done)
        if left < 1:
            return None
        archive = replace(archive, limit=left)
    if archive.max_hours is not None:
        hours = archive.max_hours - passed_s / 3600
        if done and hours <= 0:
            return None
        archive = replace(archive, max_hours=hours)
    return archive


def _described(date: str, started_at: dt.datetime, done: list[_Done], set_aside: list[str]) -> dict[str, Any]:
    """Return the night's record. What was listed is what the last run saw; what was done is the sum over the runs."""
    finished_at = dt.datetime.now(dt.UTC)
    published = [run.record for run in done if run.record is not None]
    failed_by_code = collections.Counter[str]()
    for record in published:
        failed_by_code.update(record.counts.failed_by_code or {})
    last = done[-1].plan
    photos, waiting = last.listed - last.duplicates, last.waiting
    return {
        "date": date,
        "started_at": started_at.isoformat(),
        "finished_at": finished_at.isoformat(),
        "hours": (finished_at - started_at).total_seconds() / 3600,
        "exit_code": max(run.exit_code for run in done),
        "runs": [record.run_id for record in published],
        "listed": photos,
        "already_done": done[0].plan.already_done,
        "located": sum(record.counts.located for record in published),
        "undecided": sum(record.counts.undecided for record in published),
        "failed_by_code": dict(failed_by_code),
        "skipped": sum(record.counts.skipped for record in published),
        "skipped_by_kind": _summed([record.counts.skipped_by_kind or {} for record in published]),
        "changed": sum(run.plan.changed for run in done),
        "gone": last.gone,
        "source_problems": last.source_problems,
        "held_back": last.held_back,
        "forgotten": last.forgotten,
        # What the limit kept out of the last run, and what that run had no time for.
        "left": photos - last.already_done - last.staged - last.todo - waiting + last.left,
        "waiting": waiting,
        "set_aside": set_aside,
    }


def _skipped(night: Mapping[str, Any]) -> str:
    return geotag_archive.skipped_text(night["skipped_by_kind"])


def _summed(by_kinds: Sequence[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Return what runs have skipped, taken together."""
    found: dict[str, collections.Counter[str]] = {}
    for by_kind in by_kinds:
        for kind, endings in by_kind.items():
            found.setdefault(kind, collections.Counter()).update(endings)
    return {kind: dict(endings) for kind, endings in found.items()}


def _night(output: str, date: str) -> dict[str, Any] | None:
    """Return the record of a night that is done, None if it is not."""
    uri = layout.night(output, date)
    if not storage.exists(uri):
        return None
    found: dict[str, Any] = json.loads(storage.read_bytes(uri))
    return found


def _post(address: str, night: dict[str, Any]) -> None:
    body = json.dumps({**night, "text": summary_text(night)}).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=_WEBHOOK_TIMEOUT_S):
            log.info("the night's record was posted")
    except OSError as error:  # its address may hold a secret: not into the log
        log.error("the night's record could not be posted: %s", schema.printable(str(error)))


if __name__ == "__main__":
    run_command(NightlySettings, run)
