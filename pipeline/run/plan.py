"""manifest − what is already published or staged = a run's work, computed in DuckDB with bounded memory.

However many photos there are, none of their rows is held in Python, and DuckDB spills what passes its memory limit: the
listing goes as a stream into a database file in the temporary folder (TMPDIR), which is removed at the end.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa

from pipeline import schema, storage
from pipeline.beside.matching import find_beside
from pipeline.decode.pictures.video import VIDEO_FORMATS
from pipeline.published import gone, layout
from pipeline.published.records import PlanCounts, RunRecord
from pipeline.run import staging
from pipeline.run.photo_set import PhotoSet, UnaccountedError
from pipeline.sources import manifest
from pipeline.storage.duckdb import connect, rebatched, view_rows

log = logging.getLogger(__name__)

Order = Literal["name", "newest", "oldest"]
_ORDER_BY: dict[Order, str] = {
    "name": "uri",
    "newest": "modified_at DESC NULLS LAST, uri",
    "oldest": "modified_at ASC NULLS LAST, uri",
}

_NO_PHOTO = f"'{schema.ErrorCode.NOT_A_PHOTO}'"
_SKIPPED_VIDEO = f"coalesce(error_code = {_NO_PHOTO} AND format IN {tuple(sorted(VIDEO_FORMATS))}, false)"
_TASKS = 1024
_ROWS_PER_TASK = (64, 65_536)
"""A file of the plan is a task: small ones spread a small archive, large ones keep a billion photos' plan short."""
_LONGEST_WAIT_LOG2 = 5


@dataclass(frozen=True, kw_only=True)
class Plan(PlanCounts):
    """A run's work: its counts, which `photos` it takes on, and the `files` that hold those to process now.

    `problems` are what of the sources could not be listed; `missing` the photos that are not listed any more, or are
    again.
    """

    files: tuple[str, ...]
    photos: PhotoSet
    problems: tuple[schema.SourceProblem, ...] = ()
    missing: gone.Missing = field(default_factory=gone.Missing)

    @property
    def names_all(self) -> bool:
        """Whether all photos have names: of a manifest's row without one nobody knows which photo it is."""
        return not any(problem.kind == schema.ProblemKind.ROW for problem in self.problems)

    def counts(self, left: int, found: gone.Gone | None = None) -> PlanCounts:
        """Return what the run's record says of it; `left` is how many photos the run had no time for."""
        counted = {part.name: getattr(self, part.name) for part in fields(PlanCounts)} | {"left": left}
        if found is not None:
            counted |= {"gone": found.count, "held_back": found.held_back}
        return PlanCounts(**counted)


def make_plan(
    sources: Sequence[str],
    stage: staging.Stage,
    published_files: Sequence[str],
    model_id: str,
    retry_failed: bool,
    limit: int | None,
    *,
    retag: bool = False,
    listing: manifest.ListSettings | None = None,
    order: Order = "name",
    records: Sequence[RunRecord] | None = None,
    forgotten: str | None = None,
    videos: bool = False,
) -> Plan:
    """List `sources`, as `listing` says if given, and plan as `plan_listed` does.

    Raises ValueError for a source that can't be read.
    """
    with list_sources(sources, stage.output, listing or manifest.ListSettings()) as listed:
        return plan_listed(
            listed,
            stage,
            published_files,
            model_id,
            retry_failed,
            limit,
            retag,
            order,
            records=records,
            forgotten=forgotten,
            videos=videos,
        )


def plan_listed(
    listed: Listed,
    stage: staging.Stage,
    published_files: Sequence[str],
    model_id: str,
    retry_failed: bool,
    limit: int | None,
    retag: bool = False,
    order: Order = "name",
    *,
    records: Sequence[RunRecord] | None = None,
    forgotten: str | None = None,
    videos: bool = False,
) -> Plan:
    """Leave out what is done of what is listed, write the rest as the stage's plan, and say what was counted.

    A photo is done when the published row that the view `photos` shows of it (see `catalog`; `published_files` are in
    the order of their runs, the oldest first) is of this version (same URI, same ETag; any, where the listing has no
    ETag; and its sidecars' version), no transient failure and, with `retry_failed`, no failure at all; with `retag`,
    only when it is of this model too. What was skipped as no photo is done; but with `videos`, what was skipped as a
    video is not. What failed to be fetched in each of its last k runs waits, without `retry_failed`, until 2^(k-1) - 1
    others, at most 31, have begun.
    `limit` bounds how many photos this run takes on, and `order` says which ones, and in which order: by name, or
    by the time of their last change, those without one last; but what failed before comes after all else, the longest
    ago first.
    `records` are of the runs that published `published_files`: with them the plan says what is `missing`. `forgotten`
    is the URI of the list of photos that are left out, whoever lists them.
    """
    connection, sources = listed.connection, listed.sources
    left_out = _leave_out(connection, forgotten)
    if repeats := _find_repeats(connection):
        log.info("%d rows of the manifest repeat a photo: each photo gets one row", repeats)
    _judge(connection, stage, published_files, model_id, retry_failed, retag, videos)
    done, of_another_model, waiting = _one_row(
        connection,
        "SELECT count(*) FILTER (is_done), count(*) FILTER (is_of_another_model), count(*) FILTER (is_waiting)"
        " FROM judged",
    )
    taken, staged, todo, changed = _take(connection, limit, order)
    files, photos = _write_plan(connection, stage, taken, todo, order)
    missing = gone.Missing()
    if records is not None:
        scope = gone.Scope(sources.sources, tuple(sources.settings.include), tuple(sources.settings.exclude))
        unseen = [problem.uri for problem in sources.problems]
        missing = gone.find(connection, stage.missing_uri, scope, records, stage.output, unseen)
    return Plan(
        listed=listed.count - left_out,
        forgotten=left_out,
        excluded=sources.counted("excluded"),
        excluded_folders=sources.counted("excluded_folders"),
        marked=sources.counted("marked") + listed.marked,
        marked_folders=sources.counted("marked_folders") + len(sources.marked_prefixes),
        source_problems=len(sources.problems),
        problems=sources.problems,
        duplicates=repeats,
        already_done=done,
        of_another_model=of_another_model,
        staged=staged,
        todo=todo,
        changed=changed,
        files=files,
        photos=photos,
        gone=None if records is None else missing.kept + missing.new,
        waiting=waiting,
        missing=missing,
    )


def _take(connection: duckdb.DuckDBPyConnection, limit: int | None, order: Order) -> tuple[str, int, int, int]:
    """Return the SQL for what this run takes on, and how many have their row staged, are to do, were changed."""
    taken = f"{_LISTED} JOIN judged USING (listed_row) WHERE NOT is_done AND NOT is_waiting"
    if limit is not None:
        connection.execute(
            f"CREATE TABLE limited AS SELECT judged.* {taken}"
            f" ORDER BY is_staged DESC, failed_at NULLS FIRST, {_ORDER_BY[order]} LIMIT {limit}"
        )
        taken = f"{_LISTED} JOIN limited USING (listed_row) WHERE true"
    staged, todo, changed = _one_row(
        connection,
        "SELECT count(*) FILTER (is_staged), count(*) FILTER (NOT is_staged), count(*) FILTER (is_changed)"
        f" FROM {'judged' if limit is None else 'limited'} WHERE NOT is_done AND NOT is_waiting",
    )
    return taken, staged, todo, changed


def cut_to_staged(stage: staging.Stage, planned: PhotoSet) -> tuple[int, PhotoSet]:
    """Take out of the stage's plan, which is `planned`, the photos that have no row yet, for the next run.

    Returns how many they are, and which photos are left. For a run that stops before its end and yet publishes what it
    has.
    """
    with _database(stage.output) as connection:
        connection.read_parquet(stage.plan_files(), hive_partitioning=False).create_view("plan_rows")
        view_rows(connection, "staged", stage.row_files())
        # A copy of what is cut here, as DuckDB reads lazily, and the files that it reads are to go.
        connection.execute("CREATE TABLE kept AS FROM plan_rows SEMI JOIN staged USING (photo_id)")
        found = PhotoSet.of(connection.sql("SELECT photo_id FROM plan_rows").to_arrow_reader(1_000_000))
        if found != planned:
            raise UnaccountedError(
                f"the plan below {stage.folder} does not hold the {planned.count} photos that this run has planned:"
                " somebody has changed it. Nothing is published; run the same command again"
            )
        (kept,) = _one_row(connection, "SELECT count(*) FROM kept")
        if kept < planned.count:
            kept_rows = "FROM (SELECT *, true AS is_staged, 0 AS failed_at FROM kept) WHERE true"
            _, photos = _write_plan(connection, stage, kept_rows, 0, "name")
            return planned.count - kept, photos
        return 0, planned


def rows_per_task(photos: int) -> int:
    """Return how many photos each file of a plan for so many holds, but the last."""
    return min(max(-(-photos // _TASKS), _ROWS_PER_TASK[0]), _ROWS_PER_TASK[1])


@contextlib.contextmanager
def _database(output: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an empty database on local disk, for as long as it takes."""
    with tempfile.TemporaryDirectory(prefix="graticule-plan-") as folder, connect(output) as connection:
        file = str(Path(folder) / "plan.duckdb").replace("'", "''")
        connection.execute(f"ATTACH '{file}' AS plan")
        connection.execute("USE plan")
        yield connection


@dataclass(frozen=True)
class Listed:
    """What sources list, as the table `listed` of an open database, and what was noticed on the way.

    `marked` are photos that owners' marks leave out and that were not known to be so before all was listed.
    """

    connection: duckdb.DuckDBPyConnection
    sources: manifest.SourceList
    count: int
    marked: int = 0


@contextlib.contextmanager
def list_sources(sources: Sequence[str], output: str, settings: manifest.ListSettings) -> Iterator[Listed]:
    """List what there is to tag, but for files of the output, into a database that is kept within.

    Nothing is written to the output. Raises ValueError for a source that can't be read, and where all is left out.
    """
    with _database(output) as connection:
        log.info("listing %s", ", ".join(sources))
        listing = manifest.SourceList(sources, output, settings)
        connection.register("listing", pa.RecordBatchReader.from_batches(schema.MANIFEST, listing.batches()))
        try:
            connection.execute(
                "CREATE TABLE listed AS FROM listing WHERE NOT starts_with(uri, $output || '/')", {"output": output}
            )
        except duckdb.Error:
            if listing.error is not None:  # DuckDB tells its text only
                raise listing.error from None
            raise
        marked = _remove_marked(connection, listing.marked_prefixes)
        if beside := find_beside(connection):
            log.info("%d photos have sidecars beside them, which are read with them", beside)
        connection.execute(f"DELETE FROM listed WHERE {schema.SIDECARS} IS NOT NULL")  # which are not included
        (listed,) = _one_row(connection, "SELECT count(*) FROM listed")
        if ours := listing.counted("found") - marked - listed:
            log.info("%d files of the output lie below a source and are no photos of the archive", ours)
        listing.check(listed)
        yield Listed(connection, listing, listed, marked)


def _remove_marked(connection: duckdb.DuckDBPyConnection, prefixes: Sequence[str]) -> int:
    """Take what owners' marks leave out from `listed`, and return how many photos that is."""
    if not prefixes:
        return 0
    # No URI goes on with the highest character there is.
    ranges = pa.table({"low": pa.array(prefixes), "high": pa.array([f"{each}\U0010ffff" for each in prefixes])})
    connection.register("marks", ranges)
    condition = "FROM listed JOIN marks ON listed.uri >= marks.low AND listed.uri < marks.high"
    (count,) = _one_row(
        connection, f"SELECT count(DISTINCT listed.rowid) FILTER ({schema.SIDECARS} IS NULL) {condition}"
    )
    connection.execute(f"DELETE FROM listed WHERE rowid IN (SELECT listed.rowid {condition})")
    return count


def _leave_out(connection: duckdb.DuckDBPyConnection, forgotten: str | None) -> int:
    """Take the photos that are on the list of the forgotten ones out of `listed`; return how many rows that were."""
    if forgotten is None:
        return 0
    connection.execute(
        "CREATE TABLE left_out AS SELECT rowid AS listed_row FROM listed"
        f" WHERE sha256(photo_id) IN (SELECT {schema.PHOTO_SHA256} FROM read_parquet($forgotten))",
        {"forgotten": forgotten},
    )
    connection.execute("DELETE FROM listed WHERE rowid IN (SELECT listed_row FROM left_out)")
    (count,) = _one_row(connection, "SELECT count(*) FROM left_out")
    return count


def _find_repeats(connection: duckdb.DuckDBPyConnection) -> int:
    """Make the table `repeats` of the rows of `listed` that are not the one row to take of their photo; their number.

    Of several versions the one with the greatest ETag is taken: any would do that is the same each time. Of members of
    one archive that have the same name it is the last, as tar itself takes.
    """
    connection.execute(
        """
        CREATE TABLE repeats AS
        WITH repeated AS (SELECT photo_id FROM listed GROUP BY photo_id HAVING count(*) > 1)
        SELECT listed_row FROM (
            SELECT rowid AS listed_row, row_number() OVER (
                PARTITION BY photo_id
                ORDER BY etag DESC NULLS LAST, size_bytes DESC NULLS LAST, container_etag DESC NULLS LAST,
                    offset_bytes DESC NULLS LAST
            ) AS place
            FROM listed SEMI JOIN repeated USING (photo_id)
        ) WHERE place > 1
        """
    )
    (repeats,) = _one_row(connection, "SELECT count(*) FROM repeats")
    return repeats


def _judge(
    connection: duckdb.DuckDBPyConnection,
    stage: staging.Stage,
    published_files: Sequence[str],
    model_id: str,
    retry_failed: bool,
    retag: bool,
    videos: bool,
) -> None:
    """Make the table `judged`: what is to be done about each photo of `listed`, which is named by its row there.

    `failed_at` is null but where the row of this version is a failure that is to be mended; it grows with the run's
    place in the order of runs, and this run's own failures come last.
    """
    missed, video = _is_one_of(schema.FETCH_ERRORS), _SKIPPED_VIDEO if videos else "false"
    failed = f"error_code <> {_NO_PHOTO}" if retry_failed else _is_one_of(schema.TRANSIENT_ERRORS)
    again = f"coalesce({failed} OR {video}, false)"
    whose = f"CASE WHEN model_id = $model_id THEN {_OWN} ELSE {_AGAIN if retag else _OTHER} END"
    published = (
        f"CASE WHEN {again} THEN {_AGAIN} ELSE {whose} END | CASE WHEN {again} OR {missed} THEN {_FAILED} ELSE 0 END"
    )
    # What this run has tried itself is not tried again, whatever is to be retried.
    # Rows staged for a photo that was changed since are made again: the newer wins when the run is published.
    # The others are published, also where a restart without `retag` or `retry_failed` would not ask for them.
    # What failed to be fetched is: the run may have been ended because its source went away (see `source_gone`).
    staged = f"CASE WHEN {missed} OR {video} THEN {_AGAIN} ELSE {_OWN} END"
    view_rows(connection, "published", published_files, has_all_columns=True)
    view_rows(connection, "staged", stage.row_files(), has_all_columns=True)
    connection.execute(f"CREATE TABLE done AS {_newest('published', published)}", {"model_id": model_id})
    answer = f"CASE WHEN {video} THEN {_AGAIN} ELSE {whose} END"
    _look_into_failures(connection, _runs_since(published_files, stage.epoch), missed, answer, model_id)
    connection.execute(
        f"""
        CREATE TABLE judged AS
        WITH photos AS (
            SELECT listed_row, photo_id, etag IS NULL AS is_any, {_VERSION} >> 3 AS version
            {_LISTED} ANTI JOIN repeats USING (listed_row)),
        own AS ({_newest("staged", staged)})
        SELECT listed_row,
            own.row IS NOT NULL AND (is_any OR own.row >> 3 = version) AS is_tried,
            is_tried AND own.row & 3 <> {_AGAIN} AS is_staged,
            done.row IS NOT NULL AND (is_any OR done.row >> 3 = version) AS is_published,
            coalesce(answer, done.row & 3) AS verdict,
            is_published AND verdict <> {_AGAIN} AND NOT is_staged AS is_done,
            is_published AND verdict = {_AGAIN} AND coalesce(is_early, false)
                AND NOT is_tried AND {not retry_failed} AS is_waiting,
            is_done AND verdict = {_OTHER} AS is_of_another_model,
            done.row IS NOT NULL AND NOT is_published AS is_changed,
            CASE WHEN is_tried AND NOT is_staged THEN 2**31 WHEN is_published THEN failed.file_index END AS failed_at
        FROM photos LEFT JOIN done USING (photo_id) LEFT JOIN failed USING (photo_id) LEFT JOIN own USING (photo_id)
        """
    )


def _look_into_failures(
    connection: duckdb.DuckDBPyConnection, runs_since: Sequence[int], missed: str, answer: str, model_id: str
) -> None:
    """Make the table `failed` of the photos whose newest published row is a failure to look into: few, as a rule.

    `file_index` is that row's. Where it failed to be fetched, `answer` is the verdict of the newest located row of the
    same version, null without one, and `is_early` says that it is too early to try again.
    """
    since = pa.table(
        {"file_index": pa.array(range(len(runs_since)), pa.int64()), "runs": pa.array(runs_since, pa.int64())}
    )
    connection.register("runs_since", since)
    connection.execute(
        f"""
        CREATE TABLE tried AS
        SELECT photo_id, file_index, {missed} AS is_missed, {answer} AS verdict,
            coalesce(error_code = {_NO_PHOTO}, true) AS is_located,
            {_VERSION} >> 3 = done.row >> 3 AS is_version
        FROM published JOIN (FROM done WHERE row & {_FAILED} <> 0) done USING (photo_id)
        """,
        {"model_id": model_id},
    )
    connection.execute(
        f"""
        CREATE TABLE failed AS
        WITH newest AS (
            SELECT photo_id, max(file_index) AS file_index, arg_max(is_missed, file_index) AS is_missed,
                arg_max(verdict, file_index) FILTER (is_version AND is_located) AS verdict,
                coalesce(max(file_index) FILTER (NOT (is_version AND is_missed)), -1) AS index_before
            FROM tried GROUP BY photo_id),
        counted AS (
            SELECT newest.*, failures
            FROM newest LEFT JOIN (
                SELECT photo_id, count(*) AS failures FROM tried JOIN newest USING (photo_id)
                WHERE tried.file_index > index_before GROUP BY photo_id) USING (photo_id))
        SELECT photo_id, file_index, CASE WHEN is_missed THEN verdict END AS answer,
            is_missed AND runs < (1 << least(failures - 1, {_LONGEST_WAIT_LOG2})) - 1 AS is_early
        FROM counted JOIN runs_since USING (file_index)
        """
    )


def _runs_since(published_files: Sequence[str], epoch: int) -> list[int]:
    """Return for each file how many runs began after the one that published it, before this one.

    Those that published anything are seen; of others, whose every photo had to wait, the holders' epochs tell.
    """
    runs = [uri.rsplit("/", 1)[0] for uri in published_files]
    numbers = {run: number for number, run in enumerate(dict.fromkeys(runs))}
    since = []
    for uri, run in zip(published_files, runs, strict=True):
        since.append(max(len(numbers) - 1 - numbers[run], epoch - 1 - (layout.published_epoch(uri) or 0)))
    return since


def _is_one_of(codes: Sequence[schema.ErrorCode]) -> str:
    return f"coalesce(error_code IN ({', '.join(repr(str(code)) for code in codes)}), false)"


_LISTED = (
    f"FROM (SELECT rowid AS listed_row, * EXCLUDE ({schema.SIDECARS}, {schema.SIDECAR_ETAG}) FROM listed)"
    " LEFT JOIN (SELECT photo_row AS listed_row, * EXCLUDE (photo_row) FROM beside) USING (listed_row)"
)
"""SQL for what is listed, with what is beside it."""

_VERSION = f"hash(concat_ws(chr(10), etag, {schema.SIDECAR_ETAG}))"
"""SQL for a photo's version, its sidecars' included: a position set by hand later on has it looked at again."""

_AGAIN, _OWN, _OTHER, _FAILED = 0, 1, 2, 4
"""What a row says of its photo: to be made again, done, done by another model; and, as a bit more, that it is a failure
that is to be made again, or that hides no answer."""


def _newest(rows: str, verdict: str) -> str:
    """Return the SQL for each photo's newest row in the view `rows`: its ETag's hash with the verdict as last 3 bits.

    Only the newest counts: a photo that was changed and changed back is a changed photo. One number of fixed size a
    photo, since DuckDB can't spill the texts of an aggregate; 61 bits of a hash tell two versions of one photo apart.
    """
    return f"SELECT photo_id, arg_max({_VERSION} >> 3 << 3 | {verdict}, file_index) AS row FROM {rows} GROUP BY ALL"


def _write_plan(
    connection: duckdb.DuckDBPyConnection, stage: staging.Stage, taken: str, todo: int, order: Order
) -> tuple[tuple[str, ...], PhotoSet]:
    """Write what this run takes on, the staged rows too (publishing checks against all).

    Returns the files to do, and which photos there are in all: publishing compares with what was planned here, and not
    with files alone, which could be gone by then.
    """
    stage.delete_plan()
    files: list[str] = []
    photos = PhotoSet.of([])
    for name, condition, rows_per_file in (
        ("staged", "is_staged", _ROWS_PER_TASK[1]),
        ("todo", "NOT is_staged", rows_per_task(todo)),
    ):
        rows = connection.sql(
            f"SELECT {', '.join(schema.MANIFEST.names)} {taken} AND {condition}"
            f" ORDER BY failed_at NULLS FIRST, {_ORDER_BY[order]}"
        )
        for index, batch in enumerate(rebatched(rows.to_arrow_reader(_ROWS_PER_TASK[1]), rows_per_file)):
            uri = stage.plan_uri(name, index)
            storage.write_bytes(uri, staging.parquet_bytes(batch.cast(schema.MANIFEST)))
            photos |= PhotoSet.of([batch])
            if name == "todo":
                files.append(uri)
    return tuple(files), photos


def _one_row(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[int, ...]:
    (row,) = connection.sql(sql).fetchall()
    return tuple(row)
