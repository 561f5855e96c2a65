"""Geotag an archive: one row for every photo, published as GeoParquet.

    python -m jobs.geotag_archive --photos SOURCE --output URI

Run the same command again to go on after an interruption, or to take on what is new.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import platform
import time
from dataclasses import asdict, dataclass, field

import ray
import tyro
from rich.console import Console
from rich.table import Table

from jobs import run_command
from model.checkpoint import Checkpoint
from model.engines import EngineName, Precision
from model.engines.tensorrt_engine import TensorRtSettings
from model.readout import AUTO, PointRule
from pipeline import (
    albums,
    cluster,
    copies,
    dataflow,
    lease,
    logs,
    manifest,
    publish,
    records,
    staging,
    storage,
    supervise,
    sweep,
    tally,
)
from pipeline.cluster import ClusterSettings, NamedPath
from pipeline.code_version import code_version
from pipeline.context import ContextSettings
from pipeline.decode import DecodeLimits, DecodeTarget
from pipeline.fetch import FetchSettings
from pipeline.locator import AtLeast, LocatorSettings, model_folder
from pipeline.logs import LogFormat
from pipeline.metrics import RunMetrics
from pipeline.photo_set import UnaccountedError
from pipeline.plan import Order, Plan, cut_to_staged, local_photos, make_plan
from pipeline.precision import PrecisionName, cell_count
from pipeline.reader import ReaderSettings
from pipeline.records import AlbumCounts, PhotoCounts, RunRecord
from pipeline.schema import FETCH_ERRORS, Status
from pipeline.verify import verify_output
from pipeline.watchdog import FlowEndedError

log = logging.getLogger(__name__)

_SAMPLE = 3
"""So many local photos every node is asked for, if there are any."""


@dataclass(frozen=True)
class GeotagSettings:
    """Geotag an archive: one row for every photo, published as GeoParquet."""

    photos: tyro.conf.UseAppendAction[tuple[str, ...]]
    """Folder, object prefix, Parquet or CSV manifest with a column `uri`, S3 Inventory's manifest.json, .tar or
    .zip; give it several times for several sources."""
    output: str = ""
    """Folder or object prefix that holds the answers; the same one for every run over this archive."""
    verify: str | None = None
    """Only check what is published at this output: every byte, row and record."""
    model: str = "bundled"
    """Checkpoint folder, local or remote; `bundled` is the small model that ships with Graticule."""
    engine: EngineName = "auto"
    """What runs the model: auto takes torch on a GPU and openvino on a CPU."""
    engines: str | None = None
    """Folder or object prefix where machines keep compiled engines in common (onnxruntime and tensorrt), each compiled
    by one of them, or by jobs.compile_engine before. Name one that only people write to whom you trust."""
    run_id: str | None = None
    """Name of this run; its number and the time if not given."""
    precision: PrecisionName = "street"
    """Store nothing finer than this, in any column."""
    context: bool = False
    """Let photos of one folder that were taken soon after each other explain each other, in columns of their own."""
    point: PointRule = AUTO
    """Where a photo's point is: at the most probable cell, or where the photo is least far away on average."""
    at_least: AtLeast = "country"
    """A photo that is not more likely right than not to this precision is `undecided`: it keeps its distribution and
    its best guess, and gets no name of a place. `any` decides every photo."""
    include: tuple[str, ...] = ()
    """Take only photos whose name below the source matches one of these patterns, such as *.jpg or 2024/**."""
    exclude: tuple[str, ...] = ()
    """Leave out photos that match one of these."""
    retry_failed: bool = False
    """Take photos again that failed for good (transient failures are always taken again)."""
    retag: bool = False
    """Take photos again that another model has looked at."""
    limit: int | None = None
    """Take on at most so many photos in this run."""
    max_hours: float | None = None
    """Begin no more photos after so many hours, publish those that are done, and leave the rest to the next run."""
    order: Order = "name"
    """Which photos come first, and which ones --limit takes: by name, or those changed last or first."""
    max_failed_fraction: float = 0.5
    """Exit with 3 when more than this share of the run's photos failed."""
    engine_precision: Precision = "auto"
    """What the network computes in: auto is bf16 where the machine computes in it, else fp32."""
    batch_size: int | None = None
    """Photos in one call of the engine; 32 on CPUs and 512 on GPUs if not given."""
    shared_filesystem: bool = False
    """Local paths are mounted on every node of the cluster; without this, several nodes take none."""
    max_silence_minutes: float = 30.0
    """End, with exit code 1, a run that reads, locates and stages no photo for so long; give more than one photo may
    take, or the compilation of an engine."""
    log_format: LogFormat = "text"
    """How log lines are written: text, or one JSON object a line."""
    album: ContextSettings = field(default_factory=ContextSettings)
    tensorrt: TensorRtSettings = field(default_factory=TensorRtSettings)
    lease: lease.LeaseSettings = field(default_factory=lease.LeaseSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    fetch: FetchSettings = field(default_factory=FetchSettings)
    limits: DecodeLimits = field(default_factory=DecodeLimits)


class OtherSettingsError(ValueError):
    """The run that was named is unfinished, and was started with other settings."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit code, what it had planned, and its record if it published anything."""

    exit_code: int
    plan: Plan | None = None
    record: RunRecord | None = None


def run(settings: GeotagSettings) -> int:
    """Plan, process and publish, or verify; return the exit code."""
    logs.use_format(settings.log_format)
    if settings.verify is not None:
        return _verify(storage.absolute(settings.verify))
    return geotag(settings).exit_code


def geotag(settings: GeotagSettings, count_gone: bool = False) -> Outcome:
    """Plan, process and publish, and say how it went; `count_gone` is `make_plan`'s."""
    _check(settings)
    output = storage.absolute(settings.output)
    model_uri = settings.model if settings.model == "bundled" else storage.absolute(settings.model)
    _check_paths(settings, output, model_uri)
    checkpoint = Checkpoint.load(model_folder(model_uri)).pointing(settings.point)
    storage.check_writable(output)
    try:
        with (
            records.held(output, settings.run_id or "(new)", settings.lease) as held,
            contextlib.ExitStack() as watching,
        ):
            return _run_held(settings, output, model_uri, checkpoint, held, count_gone, watching)
    except FlowEndedError:  # it has been said why
        return Outcome(1)
    except (lease.LeaseLostError, lease.CommitUnknownError, UnaccountedError) as error:
        log.error("%s", error)
        return Outcome(1)


def _run_held(
    settings: GeotagSettings,
    output: str,
    model_uri: str,
    checkpoint: Checkpoint,
    held: lease.Lease,
    count_gone: bool,
    watching: contextlib.ExitStack,
) -> Outcome:
    started_at, start_s = dt.datetime.now(dt.UTC), time.monotonic()
    stop_at_s = None if settings.max_hours is None else time.time() + 3600 * settings.max_hours
    sources = [storage.absolute(source) for source in settings.photos]
    sweep.at_start(held, output)
    finished = records.run_records(output)
    finished_runs = {record.run_id for record in [*finished, *records.removed_records(output)]}
    stage = _stage(settings, output, checkpoint.model_id, finished_runs, held.epoch)
    held.name_run(stage.run_id)
    logs.name_run(stage.run_id)
    staged_before = tally.staged_outcomes(stage)

    neighbours = [r for r in finished if r.setting("precision") == settings.precision]
    # Answers that were decided by another rule would be located, or undecided, where this run's are not.
    answering = records.published_files(output, [r for r in neighbours if r.setting("at_least") == settings.at_least])
    copies.settle(stage, answering)  # of an earlier start: what is settled need not be planned
    log.info("listing %s", ", ".join(sources))
    plan = make_plan(
        sources,
        stage,
        records.published_files(output, finished),
        checkpoint.model_id,
        settings.retry_failed,
        settings.limit,
        retag=settings.retag,
        include=settings.include,
        exclude=settings.exclude,
        allow_http=settings.fetch.allow_http,
        order=settings.order,
        count_gone=count_gone,
    )
    log.info("%d photos listed, %d done before, %d to do", plan.listed - plan.duplicates, plan.already_done, plan.todo)
    held.prove()  # listing and planning may have taken hours, and another run may go by this one's silence
    if plan.todo == 0 and plan.staged == 0:
        sweep.unneeded_run(held, stage)
        which = f"{plan.already_done} photos" if plan.waiting else f"all {plan.already_done} photos"
        print(f"Nothing to do: {which} have their row at {output}{_whose(plan, checkpoint)}.{_waiting(plan)}")
        return Outcome(0, plan)

    flow_s, unmatched, left, photos = 0.0, 0, 0, plan.photos
    metrics: RunMetrics | None = None
    if plan.todo:
        size = cluster.start_ray()
        logs.use_format(settings.log_format)  # Ray's own lines, too
        metrics = watching.enter_context(
            RunMetrics(stage.run_id, plan.todo + plan.staged, staged_before, lambda: held.age_s)
        )
        metrics.set("graticule_run_start_timestamp_seconds", started_at.timestamp())
        if finished:
            last = max(dt.datetime.fromisoformat(str(record.finished_at)) for record in finished)
            metrics.set("graticule_last_success_timestamp_seconds", last.timestamp())
        _check_photos(settings, plan, stage, held, size.nodes)
        driver = cluster.Driver.here(uses_local_paths=_is_local(settings, output, model_uri, stage))
        reader = ReaderSettings(DecodeTarget.of(checkpoint.config.preprocessing), settings.limits, fetch=settings.fetch)
        locator = LocatorSettings(
            model_uri=model_uri,
            model_id=checkpoint.model_id,
            run_id=stage.run_id,
            engine=settings.engine,
            engine_precision=settings.engine_precision,
            batch_size=settings.batch_size or (512 if size.gpus else 32),
            precision=settings.precision,
            point=settings.point,
            at_least=settings.at_least,
            engine_cache=storage.cache_folder() / "engines",
            engine_share=None if settings.engines is None else storage.absolute(settings.engines),
            tensorrt=settings.tensorrt,
        )
        flow_start_s = time.monotonic()
        answered = copies.answered_contents(stage, answering, checkpoint.model_id, settings.cluster.known_contents)
        watch = supervise.Watch(metrics, 60 * settings.max_silence_minutes)
        unmatched = dataflow.run_dataflow(
            plan.files,
            stage,
            reader,
            locator,
            settings.cluster,
            size,
            answered,
            stop_at_s,
            driver=driver,
            watch=watch,
            lost=held.lost,
            listed_below=manifest.listed_below(sources),
            failed_before=sum(staged_before.get((str(Status.FAILED), code), 0) for code in FETCH_ERRORS),
        )
        flow_s = time.monotonic() - flow_start_s
        held.prove()
        copies.settle(stage, answering)
        if stop_at_s is not None and time.time() >= stop_at_s:
            left, photos = cut_to_staged(stage, photos)
            if left == plan.todo and not plan.staged:
                log.error("--max-hours %g: that was over before the first photo was done", settings.max_hours)
                return Outcome(1, plan)
    explained: AlbumCounts | None = None
    if settings.context:
        log.info("looking at albums")
        cells = cell_count(checkpoint.hierarchy.levels[-1].cell_id_K, settings.precision)
        explained = albums.add_context(
            stage, records.published_files(output, neighbours), cells, settings.precision, settings.album
        )
        log.info("albums: %s", explained)
    log.info("publishing")
    held.prove()
    published = dataflow.publish_on_ray(stage)
    publish.check_all_published(published, photos, stage)
    if metrics is not None:
        failed = {(str(Status.FAILED), code): count for code, count in published.failed_by_code.items()}
        looked_at = {Status.LOCATED: published.located, Status.UNDECIDED: published.undecided}
        metrics.settle({(str(status), ""): count for status, count in looked_at.items()} | failed)
    wall_s = time.monotonic() - start_s
    record = RunRecord(
        run_id=stage.run_id,
        sequence=held.epoch,
        started_at=started_at.isoformat(),
        finished_at=dt.datetime.now(dt.UTC).isoformat(),
        wall_s=round(wall_s, 3),
        dataflow_s=round(flow_s, 3),
        sources=tuple(sources),
        model_id=checkpoint.model_id,
        model_uri=model_uri,
        hierarchy_sha256=checkpoint.hierarchy.content_hash,
        settings=asdict(settings),
        versions={"python": platform.python_version(), "ray": ray.__version__, "code": code_version()},
        plan=plan.counts(left),
        photos=PhotoCounts(
            located=published.located,
            undecided=published.undecided,
            failed=published.failed,
            failed_by_code=published.failed_by_code,
            fingerprint=published.fingerprint,
            copies=copies.count(stage),
            beyond_known_contents=unmatched,
            context=explained,
        ),
        files=published.files,
    )
    try:
        held.commit(record.to_json())
    except lease.LeaseLostError:
        publish.discard(stage)
        raise
    if metrics is not None:
        metrics.set("graticule_last_success_timestamp_seconds", time.time())
    sweep.finished_run(stage)
    _print_summary(output, plan, published, checkpoint.model_id, wall_s, left)
    if published.failed > settings.max_failed_fraction * photos.count:
        log.error("%d of %d photos failed, more than --max-failed-fraction allows", published.failed, photos.count)
        return Outcome(3, plan, record)
    return Outcome(0, plan, record)


def _verify(output: str) -> int:
    """Print what is wrong at `output`; return 1 if anything is."""
    problems = verify_output(output)
    for problem in problems:
        print(problem)
    print(
        f"{output}: {len(problems)} problems" if problems else f"{output}: all files, rows and records are as published"
    )
    return 1 if problems else 0


def _check(settings: GeotagSettings) -> None:
    if not settings.photos:
        raise ValueError("give --photos a folder, an object prefix, or a manifest")
    if not settings.output:
        raise ValueError("give --output a folder or an object prefix for the answers")
    if not 0 <= settings.max_failed_fraction <= 1:
        raise ValueError(f"--max-failed-fraction {settings.max_failed_fraction}: give a share between 0 and 1")
    for name, value in (("--limit", settings.limit), ("--batch-size", settings.batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} {value}: give at least 1")
    if settings.max_hours is not None and not settings.max_hours > 0:
        raise ValueError(f"--max-hours {settings.max_hours:g}: give more than 0")
    if not settings.max_silence_minutes > 0:
        raise ValueError(f"--max-silence-minutes {settings.max_silence_minutes:g}: give more than 0")
    if settings.run_id is not None and not settings.run_id.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"--run-id {settings.run_id!r}: use letters, digits, - and _ only")


def _check_paths(settings: GeotagSettings, output: str, model_uri: str) -> None:
    """Raise ValueError for a local path that a node of the cluster does not see."""
    cluster.check_paths(_paths(settings, output, model_uri), settings.shared_filesystem, output)


def _paths(settings: GeotagSettings, output: str, model_uri: str) -> list[NamedPath]:
    paths = [NamedPath("--photos", storage.absolute(source)) for source in settings.photos]
    paths.append(NamedPath("--output", output))
    if model_uri != "bundled":
        paths.append(NamedPath("--model", model_uri))
    if settings.engines is not None:
        paths.append(NamedPath("--engines", storage.absolute(settings.engines)))
    return paths


def _is_local(settings: GeotagSettings, output: str, model_uri: str, stage: staging.Stage) -> bool:
    """Whether the run needs a path that only this machine has."""
    if settings.shared_filesystem:
        return False
    is_named = any(not storage.is_remote(path.uri) for path in _paths(settings, output, model_uri))
    return is_named or bool(local_photos(stage, 1))


def _check_photos(settings: GeotagSettings, plan: Plan, stage: staging.Stage, held: lease.Lease, nodes: int) -> None:
    """Raise ValueError where a manifest, itself on an object store, names photos that a node does not see."""
    if nodes > 1:
        try:
            photos = [NamedPath("the photo", uri) for uri in local_photos(stage, _SAMPLE)]
            cluster.check_paths(photos, settings.shared_filesystem)
        except ValueError:
            if not plan.staged:  # nothing was begun
                sweep.unneeded_run(held, stage)
            raise


def _stage(settings: GeotagSettings, output: str, model_id: str, finished_runs: set[str], epoch: int) -> staging.Stage:
    """Return the stage of the run to take up again, or of a new one; ValueError where two runs would mix."""
    unfinished = staging.unfinished_runs(output)
    if settings.run_id in finished_runs:
        raise ValueError(f"run {settings.run_id} is finished: give another --run-id, or none")
    wanted: dict[str, object] = {"model_id": model_id, "precision": settings.precision}
    if settings.at_least != GeotagSettings.at_least:
        wanted["at_least"] = settings.at_least
    if settings.context:
        wanted["context"] = asdict(settings.album)
    started = {run_id: staging.Stage(output, run_id).settings() for run_id in unfinished}
    if settings.run_id is None:
        ours = [run_id for run_id in unfinished if started[run_id] in ({}, wanted)]
        for run_id in sorted(set(unfinished) - set(ours)):
            log.warning("left as it is: %s", _mixed(output, run_id, started[run_id], wanted))
        # The number alone tells a new run from all others, however clocks go; the time is for people.
        run_id = ours[-1] if ours else f"{epoch:08d}-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%SZ}"
    else:
        run_id = settings.run_id
        if started.get(run_id, {}) not in ({}, wanted):
            raise OtherSettingsError(_mixed(output, run_id, started[run_id], wanted))
    stage = staging.Stage(output, run_id, epoch)
    if started.get(run_id):
        log.info("taking up unfinished run %s", run_id)
    else:
        stage.put_settings(wanted)
    return stage


def _mixed(output: str, run_id: str, started: dict[str, object], wanted: dict[str, object]) -> str:
    return (
        f"unfinished run {run_id} was started with {started}, not {wanted}: finish it by jobs.geotag_archive with"
        f" --run-id {run_id} and those, or remove {staging.Stage(output, run_id).folder}"
    )


def _waiting(plan: Plan) -> str:
    if not plan.waiting:
        return ""
    return f" {plan.waiting} more failed in passing; later runs try them again (--retry-failed does so now)."


def _whose(plan: Plan, checkpoint: Checkpoint) -> str:
    if not plan.of_another_model:
        return f" under {checkpoint.model_id}"
    return f", {plan.of_another_model} of them by another model than {checkpoint.model_id} (--retag takes them again)"


def _print_summary(
    output: str, plan: Plan, published: publish.Published, model_id: str, wall_s: float, left: int
) -> None:
    table = Table(title=f"{published.photos.count} photos by {model_id}", title_justify="left", min_width=60)
    table.add_column("status")
    table.add_column("photos", justify="right")
    table.add_row("located", str(published.located))
    if published.undecided:
        table.add_row("undecided: the picture does not say enough", str(published.undecided))
    for code, count in published.failed_by_code.items():
        table.add_row(f"failed: {code}", str(count))
    if plan.already_done:
        table.add_row("done before, not in this run", str(plan.already_done))
    if plan.of_another_model:
        table.add_row("… of these by another model (--retag)", str(plan.of_another_model))
    if plan.waiting:
        table.add_row("failed in passing before, left for later runs to try", str(plan.waiting))
    if plan.excluded:
        table.add_row("left out by --include and --exclude", str(plan.excluded))
    if left:
        table.add_row("left for the next run (--max-hours)", str(left))
    Console(width=max(100, Console().width)).print(table)
    print(f"{plan.todo - left} photos processed in {wall_s:.0f} s. Look at them with")
    print(f'    python -m jobs.query {output} "SELECT uri, lat_deg, lon_deg, radius_km FROM photos"')


if __name__ == "__main__":
    run_command(GeotagSettings, run)
