"""Geotag an archive, from its sources to published answers: what `jobs.geotag_archive` and nights run.

    from pipeline.geotag import geotag
    from pipeline.geotag_settings import GeotagSettings, executor_of
    outcome = geotag(GeotagSettings(photos=("/photos",), output="/answers"))

A run goes through eight steps, each a function here: prepare, open, plan, process, explain, publish, find what is gone,
commit.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import importlib.metadata
import logging
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from model.checkpoint import Checkpoint
from pipeline import storage
from pipeline.cluster import logs
from pipeline.cluster.code_version import code_version
from pipeline.cluster.flow import ClusterSize, Executor, Flow, NamedPath
from pipeline.cluster.metrics import RunMetrics
from pipeline.cluster.supervise import Watch
from pipeline.cluster.watchdog import FlowEndedError
from pipeline.decode.photo import DecodeTarget
from pipeline.geotag_settings import GeotagSettings, executor_of
from pipeline.locate.locator import LocatorSettings, model_folder
from pipeline.locate.precision import cell_count
from pipeline.published import gone, layout, records
from pipeline.published.records import AlbumCounts, PhotoCounts, RunRecord
from pipeline.read.reader import ReaderSettings
from pipeline.run import albums, copies, publish, staging, sweep, tally
from pipeline.run.photo_set import PhotoSet, UnaccountedError
from pipeline.run.plan import Listed, Plan, cut_to_staged, list_sources, plan_listed
from pipeline.run.publish import Published
from pipeline.schema import FETCH_ERRORS, ErrorCode, Status
from pipeline.sources import manifest
from pipeline.storage import lease

log = logging.getLogger(__name__)

STOPPED = (FlowEndedError, lease.LeaseLostError, lease.CommitUnknownError, UnaccountedError)
"""What ends a run without an answer though nobody made a mistake: the next one with the same settings goes on.

Of a FlowEndedError the log has said why.
"""
_SAMPLE = 3
"""So many local photos every node is asked for, if there are any."""
MOST_PROBLEMS = 1000
"""So many of a run's source problems its record names; it has the number of all."""


class OtherSettingsError(ValueError):
    """The run that was named is unfinished, and was started with other settings."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: what it had planned, and its record; None where there was nothing to do."""

    output: str
    model_id: str
    plan: Plan
    record: RunRecord | None = None


@dataclass(frozen=True)
class Run:
    """A run that is open: what it goes by, under the lease that it holds.

    Attributes:
        executor: does the work.
        sources: what is listed, each in its one form.
        finished: the records of the runs that count, the newest last.
        staged_before: how those photos ended that an earlier start of this run has staged.
        started_s: when it started, by `time.monotonic`.
        stop_at_s: from when on no more photos are begun, in seconds since 1970, or None.
        watching: closes what looks on when the run ends.
    """

    settings: GeotagSettings
    executor: Executor
    output: str
    model_uri: str
    checkpoint: Checkpoint
    held: lease.Lease
    stage: staging.Stage
    sources: tuple[str, ...]
    finished: tuple[RunRecord, ...]
    staged_before: tally.Outcomes
    started_at: dt.datetime
    started_s: float
    stop_at_s: float | None
    watching: contextlib.ExitStack

    @property
    def neighbours(self) -> list[RunRecord]:
        """Runs that keep places as precisely: their photos may explain this one's."""
        return [run for run in self.finished if run.setting("precision") == self.settings.precision]

    @property
    def local_roots(self) -> tuple[str, ...]:
        """Where local photos may be read."""
        return manifest.local_roots(self.sources, self.settings.photos_root)

    @property
    def answering_files(self) -> list[str]:
        """Published files whose answers may be copied.

        Those that were decided by another rule would be located, or undecided, where this run's are not.
        """
        answering = [run for run in self.neighbours if run.setting("at_least") == self.settings.at_least]
        return records.published_files(self.output, answering)


@dataclass(frozen=True)
class Processed:
    """What became of a plan: which photos have their row now, how many are `left` to the next run.

    `unmatched` were located without looking for their like, as more contents were seen than are remembered; `metrics`
    is None where all photos had been processed before.
    """

    photos: PhotoSet
    left: int = 0
    unmatched: int = 0
    dataflow_s: float = 0.0
    metrics: RunMetrics | None = None


@dataclass(frozen=True)
class Prepared:
    """What a run needs, found to be there before anything is written: see `Run`."""

    settings: GeotagSettings
    executor: Executor
    output: str
    model_uri: str
    checkpoint: Checkpoint
    sources: tuple[str, ...]


def geotag(settings: GeotagSettings) -> Outcome:
    """Give every photo of an archive its row, and say how it went.

    Raises ValueError for the user's mistakes, and what `STOPPED` names where the run must be started again.
    """
    ready = prepare(settings)
    listing = functools.partial(list_sources, ready.sources, ready.output, settings.listing)
    with contextlib.ExitStack() as kept:
        # Where nothing is yet, a wrong source is to leave nothing; where others may be at work, they are asked first.
        is_new = not storage.exists(storage.join(ready.output, layout.LEASE))
        early = kept.enter_context(listing()) if is_new else None
        with open_run(ready) as run:
            try:
                # What was listed before another had the output may be older than what that one has published.
                listed = early if early is not None and run.held.epoch == 1 else kept.enter_context(listing())
                plan = plan_run(run, listed)
            except ValueError:
                if not run.stage.row_files() and not run.stage.copy_files():
                    sweep.unneeded_run(run.held, run.stage)
                raise
            kept.close()  # what was listed is in the plan now
            outcome = Outcome(run.output, run.checkpoint.model_id, plan)
            if plan.todo == 0 and plan.staged == 0:
                return close_without_rows(run, outcome)
            processed = process(run, plan)
            explained = explain(run)
            published = publish_rows(run, processed)
            record = _record(run, plan, processed, explained, published, find_gone(run, plan))
            return replace(outcome, record=commit(run, record, processed.metrics))


def close_without_rows(run: Run, outcome: Outcome) -> Outcome:
    """End a run that has no photo to process: what it counts for is only which photos are gone, if those are others."""
    plan = outcome.plan
    found = find_gone(run, plan)
    if found.list is None:
        sweep.unneeded_run(run.held, run.stage)
        return replace(outcome, plan=replace(plan, gone=found.count, held_back=found.held_back))
    nothing = Published((), 0, {}, plan.photos.fingerprint)
    record = _record(run, plan, Processed(plan.photos), None, nothing, found)
    return replace(outcome, record=commit(run, record, None))


def prepare(settings: GeotagSettings) -> Prepared:
    """Check what can be checked before anything is written, and load the model; ValueError for what can't be meant."""
    settings.check()
    output = storage.absolute(settings.output)
    model_uri = settings.model if settings.model == "bundled" else storage.absolute(settings.model)
    sources = tuple(storage.absolute(source) for source in settings.photos)
    executor = executor_of(settings)
    executor.check_paths(settings.paths(output, model_uri), settings.shared_filesystem, output)
    manifest.check_output(sources, output)
    checkpoint = Checkpoint.load(model_folder(model_uri)).pointing(settings.point)
    storage.check_writable(output)
    return Prepared(settings, executor, output, model_uri, checkpoint, sources)


@contextlib.contextmanager
def open_run(ready: Prepared) -> Iterator[Run]:
    """Take the output's lease, tidy up after earlier holders, and take up an unfinished run or begin a new one."""
    settings, output = ready.settings, ready.output
    name = settings.run_id or "(new)"
    with records.held(output, name, settings.lease) as held, contextlib.ExitStack() as watching:
        started_at, started_s = dt.datetime.now(dt.UTC), time.monotonic()
        stop_at_s = None if settings.max_hours is None else time.time() + 3600 * settings.max_hours
        sweep.at_start(held, output)
        finished = records.run_records(output)
        known = {record.run_id for record in [*finished, *records.removed_records(output)]}
        stage = _stage(settings, output, ready.checkpoint.model_id, known, held.epoch)
        held.name_run(stage.run_id)
        logs.name_run(stage.run_id)
        yield Run(
            settings=settings,
            executor=ready.executor,
            output=output,
            model_uri=ready.model_uri,
            checkpoint=ready.checkpoint,
            held=held,
            stage=stage,
            sources=ready.sources,
            finished=tuple(finished),
            staged_before=tally.staged_outcomes(stage),
            started_at=started_at,
            started_s=started_s,
            stop_at_s=stop_at_s,
            watching=watching,
        )


def plan_run(run: Run, listed: Listed) -> Plan:
    """Compare what the sources list with what is done, and write down what this run takes on."""
    copies.settle(run.stage, run.answering_files)  # of an earlier start: what is settled need not be planned
    forgotten = records.forgotten_list(run.output)
    plan = plan_listed(
        listed,
        run.stage,
        records.published_files(run.output, run.finished),
        run.checkpoint.model_id,
        run.settings.retry_failed,
        run.settings.limit,
        run.settings.retag,
        run.settings.order,
        videos=run.settings.videos,
        records=run.finished,
        forgotten=None if forgotten is None else storage.join(run.output, forgotten.path),
    )
    if plan.forgotten:
        log.info("%d listed photos were forgotten (jobs.forget) and are left out", plan.forgotten)
    log.info("%d photos listed, %d done before, %d to do", plan.listed - plan.duplicates, plan.already_done, plan.todo)
    run.held.prove()  # listing and planning may have taken hours, and another run may go by this one's silence
    return plan


def process(run: Run, plan: Plan) -> Processed:
    """Read, decode and locate the plan's photos, and stage their rows."""
    if not plan.todo:
        return Processed(plan.photos)
    size = run.executor.start()
    logs.use_format(run.settings.log_format)  # Ray's own lines, too
    metrics = _watched(run, plan)
    _check_photos(run, plan, size.nodes)
    started_s = time.monotonic()
    known = run.settings.cluster.known_contents
    unmatched = run.executor.run(
        Flow(
            plan.files,
            run.stage,
            _reader_settings(run),
            _locator_settings(run, size),
            run.settings.cluster,
            size,
            copies.answered_contents(run.stage, run.answering_files, run.checkpoint.model_id, known),
            run.stop_at_s,
            uses_local_paths=_is_local(run),
            watch=Watch(metrics, 60 * run.settings.max_silence_minutes),
            lost=run.held.lost,
            listed_below=manifest.listed_below(run.sources),
            failed_before=sum(run.staged_before.get((str(Status.FAILED), code), 0) for code in FETCH_ERRORS),
        )
    )
    processed = Processed(plan.photos, 0, unmatched, time.monotonic() - started_s, metrics)
    run.held.prove()
    copies.settle(run.stage, run.answering_files)
    if run.stop_at_s is not None and time.time() >= run.stop_at_s:
        return _cut_short(run, plan, processed)
    return processed


def explain(run: Run) -> AlbumCounts | None:
    """Let photos of one album explain each other, if asked for."""
    if not run.settings.context:
        return None
    log.info("looking at albums")
    explained = albums.add_context(
        run.stage,
        records.published_files(run.output, run.neighbours),
        cell_count(run.checkpoint.hierarchy.levels[-1].cell_id_K, run.settings.precision),
        run.settings.precision,
        run.settings.album,
    )
    log.info("albums: %s", explained)
    return explained


def publish_rows(run: Run, processed: Processed) -> Published:
    """Write the staged rows as published files, which do not count yet, and check them against the plan."""
    log.info("publishing")
    run.held.prove()
    published = run.executor.publish(run.stage)
    publish.check_all_published(published, processed.photos, run.stage)
    if processed.metrics is not None:
        failed = {(str(Status.FAILED), code): count for code, count in published.failed_by_code.items()}
        looked_at = {Status.LOCATED: published.located, Status.UNDECIDED: published.undecided}
        looked_at_and_skipped = {(str(status), ""): count for status, count in looked_at.items()}
        looked_at_and_skipped[str(Status.SKIPPED), str(ErrorCode.NOT_A_PHOTO)] = published.skipped
        processed.metrics.settle(looked_at_and_skipped | failed)
    return published


def find_gone(run: Run, plan: Plan) -> gone.Gone:
    """Decide which photos are gone, once it is known which bytes are still there under other names."""
    return gone.settle(
        plan.missing,
        run.stage.row_files() if plan.missing.new else (),
        layout.gone_list(run.held.epoch),
        run.output,
        run.sources,
        is_complete=plan.names_all,
        max_fraction=run.settings.max_gone_fraction,
        sequence=run.held.epoch,
        since=run.started_at,
    )


def commit(run: Run, record: RunRecord, metrics: RunMetrics | None) -> RunRecord:
    """Let the run count: put its record, through the lease; then remove what was staged."""
    try:
        run.held.commit(record.to_json())
    except lease.LeaseLostError:
        publish.discard(run.stage)
        raise
    if metrics is not None:
        metrics.set("graticule_last_success_timestamp_seconds", time.time())
    sweep.finished_run(run.stage)
    return record


def _record(
    run: Run,
    plan: Plan,
    processed: Processed,
    explained: AlbumCounts | None,
    published: Published,
    found: gone.Gone,
) -> RunRecord:
    return RunRecord(
        run_id=run.stage.run_id,
        sequence=run.held.epoch,
        started_at=run.started_at.isoformat(),
        finished_at=dt.datetime.now(dt.UTC).isoformat(),
        wall_s=round(time.monotonic() - run.started_s, 3),
        dataflow_s=round(processed.dataflow_s, 3),
        sources=run.sources,
        model_id=run.checkpoint.model_id,
        model_uri=run.model_uri,
        hierarchy_sha256=run.checkpoint.hierarchy.content_hash,
        settings=asdict(run.settings),
        versions={
            "python": platform.python_version(),
            "ray": importlib.metadata.version("ray"),
            "code": code_version(),
        },
        plan=plan.counts(processed.left, found),
        gone=found.list,
        source_problems=plan.problems[:MOST_PROBLEMS],
        photos=PhotoCounts(
            located=published.located,
            undecided=published.undecided,
            failed=published.failed,
            failed_by_code=published.failed_by_code,
            skipped=published.skipped,
            skipped_by_kind=published.skipped_by_kind,
            fingerprint=published.fingerprint,
            copies=copies.count(run.stage),
            beyond_known_contents=processed.unmatched,
            context=explained,
            recorded_apart=published.recorded_apart,
        ),
        files=published.files,
    )


def _watched(run: Run, plan: Plan) -> RunMetrics:
    """Say in the metrics, until the run ends, how it goes."""
    metrics = run.watching.enter_context(
        RunMetrics(run.stage.run_id, plan.todo + plan.staged, run.staged_before, lambda: run.held.age_s)
    )
    metrics.set("graticule_run_start_timestamp_seconds", run.started_at.timestamp())
    if run.finished:
        last = max(dt.datetime.fromisoformat(str(record.finished_at)) for record in run.finished)
        metrics.set("graticule_last_success_timestamp_seconds", last.timestamp())
    return metrics


def _cut_short(run: Run, plan: Plan, processed: Processed) -> Processed:
    """Leave what has no row to the next run; FlowEndedError where nothing has one."""
    left, photos = cut_to_staged(run.stage, processed.photos)
    if left == plan.todo and not plan.staged:
        log.error("--max-hours %g: that was over before the first photo was done", run.settings.max_hours)
        raise FlowEndedError
    return replace(processed, left=left, photos=photos)


def _reader_settings(run: Run) -> ReaderSettings:
    target = DecodeTarget.of(run.checkpoint.config.preprocessing)
    target = replace(target, video_frames=run.settings.video_frames if run.settings.videos else 0)
    return ReaderSettings(target, run.settings.limits, fetch=run.settings.fetch, local_roots=run.local_roots)


def _locator_settings(run: Run, size: ClusterSize) -> LocatorSettings:
    settings = run.settings
    return LocatorSettings(
        model_uri=run.model_uri,
        model_id=run.checkpoint.model_id,
        run_id=run.stage.run_id,
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


def _is_local(run: Run) -> bool:
    """Whether the run needs a path that only this machine has."""
    if run.settings.shared_filesystem:
        return False
    is_named = any(not storage.is_remote(path.uri) for path in run.settings.paths(run.output, run.model_uri))
    return is_named or bool(staging.local_photos(run.stage, 1, run.local_roots))


def _check_photos(run: Run, plan: Plan, nodes: int) -> None:
    """Raise ValueError where a manifest, itself on an object store, names photos that a node does not see."""
    if nodes > 1:
        try:
            photos = [NamedPath("the photo", uri) for uri in staging.local_photos(run.stage, _SAMPLE, run.local_roots)]
            run.executor.check_paths(photos, run.settings.shared_filesystem, "")
        except ValueError:
            if not plan.staged:  # nothing was begun
                sweep.unneeded_run(run.held, run.stage)
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
