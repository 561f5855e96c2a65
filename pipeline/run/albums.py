"""Albums: the photos of each folder in order of time, which explain each other's places (see `context`).

Runs when all of a run's rows are staged, and writes them again with the context's columns. Photos that earlier runs
published in the same folders are looked at, too, but stay as they are. However large a folder is, few of its photos are
in memory: DuckDB sorts on disk, and a sequence is cut where photos are far apart in time, at the latest after
`_LONGEST` photos.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.world import s2
from pipeline import schema, storage
from pipeline.locate import context
from pipeline.locate.context import ContextSettings
from pipeline.locate.places import Gazetteer
from pipeline.locate.precision import PrecisionName, coarsen
from pipeline.published import catalog_sql
from pipeline.published.records import AlbumCounts
from pipeline.run import staging
from pipeline.storage.duckdb import connect, view_rows

_LONGEST = 10_000
_ROWS_PER_BATCH = 65_536
_FOLDER, _TIME_S, _IS_OURS = "folder", "time_s", "is_ours"
_ANSWERS = pa.schema([schema.PHOTOS.field(name) for name in (schema.PHOTO_ID, *schema.CONTEXT)])

_DEFINITIONS = r"""
-- A folder is all of a URI up to its last slash, or up to the member's name inside a tar or zip.
CREATE MACRO folder_of(uri) AS hash(regexp_extract(uri, '^.*(/|\.(?:tar|zip)#)', 0, 's'));
"""
_CHOICE = """
-- Nearly always few: rows are told by file and number, so that no wide table is grouped.
CREATE TABLE dropped AS
    SELECT file_index, file_row_number FROM staged
    SEMI JOIN (SELECT photo_id FROM staged GROUP BY photo_id HAVING count(*) > 1) USING (photo_id)
    QUALIFY row_number() OVER (PARTITION BY photo_id ORDER BY file_index DESC, file_row_number) > 1;
CREATE VIEW ours AS FROM staged ANTI JOIN dropped USING (file_index, file_row_number);
"""
_PHOTOS = """
SELECT folder_of(uri) AS folder, photo_id, epoch(taken_at) AS time_s, is_ours AND status <> 'failed' AS is_ours,
    recorded_lat_deg, recorded_lon_deg, radius_km, alternatives
FROM ({rows}) WHERE taken_at IS NOT NULL AND (status <> 'failed' OR recorded_lat_deg IS NOT NULL)
ORDER BY folder, taken_at, photo_id
"""
_OURS = "SELECT *, true AS is_ours FROM ours"
_WITH_PUBLISHED = f"""
{_OURS} UNION ALL BY NAME
SELECT *, false AS is_ours FROM ({
    catalog_sql.shown_first(
        '''
    FROM published
    SEMI JOIN (SELECT DISTINCT folder_of(uri) AS folder FROM ours) folders ON folder_of(published.uri) = folders.folder
    ANTI JOIN ours USING (photo_id)''',
        "file_index",
    )
}) WHERE nth = 1
"""


def add_context(
    stage: staging.Stage,
    published_files: Sequence[str],
    cells: int,
    precision: PrecisionName,
    settings: ContextSettings,
) -> AlbumCounts:
    """Stage all of the run's rows again with their context, `cells` being how many the model tells apart.

    A photo without a time, or with no other photo within `gap_h`, gets none. Interrupted at any moment, it can be done
    again: the rows as they were are removed last, and of two rows of a photo either will do.
    """
    row_files = stage.row_files()
    if not row_files:
        return AlbumCounts(0, 0, 0)
    gazetteer = Gazetteer()
    with (
        tempfile.TemporaryDirectory(prefix="graticule-albums-") as folder,
        connect(stage.folder) as reading,
        connect(stage.folder) as writing,
    ):
        view_rows(reading, "staged", row_files, has_all_columns=True)
        reading.execute(_DEFINITIONS + _CHOICE)
        view_rows(reading, "published", published_files, has_all_columns=True)
        ((without_time,),) = reading.sql(
            "SELECT count(DISTINCT photo_id) FROM ours WHERE taken_at IS NULL AND status <> 'failed'"
        ).fetchall()
        photos = reading.sql(_PHOTOS.format(rows=_WITH_PUBLISHED))
        albums = _Albums(settings, cells)
        answers = albums.answers(photos.to_arrow_reader(_ROWS_PER_BATCH))
        file = str(Path(folder) / "answers.duckdb").replace("'", "''")
        writing.execute(f"ATTACH '{file}' AS local; USE local")
        writing.register("stream", pa.RecordBatchReader.from_batches(_ANSWERS, answers))
        writing.execute("CREATE TABLE answers AS FROM stream")
        view_rows(writing, "staged", row_files, has_all_columns=True)
        writing.execute(_CHOICE)
        columns = ", ".join(f"{'answers' if name in schema.CONTEXT else 'ours'}.{name}" for name in schema.PHOTOS.names)
        rows = writing.sql(f"SELECT {columns} FROM ours LEFT JOIN answers USING (photo_id)")
        written = {
            stage.put_rows(coarsen(pa.Table.from_batches([batch]).cast(schema.PHOTOS), precision, gazetteer))
            for batch in rows.to_arrow_reader(_ROWS_PER_BATCH)
        }
    for uri in set(row_files) - written:
        if staging.epoch_of(uri) == stage.epoch:  # what older epochs wrote gives way to these rows anyway
            storage.delete(uri)
    return AlbumCounts(albums.explained, albums.seen - albums.explained, without_time)


class _Albums:
    """Cuts photos, sorted by folder and time, into sequences and explains them: of ours, `seen` and `explained`."""

    def __init__(self, settings: ContextSettings, cells: int) -> None:
        self._settings, self._cells = settings, cells
        self.seen = self.explained = 0

    def answers(self, photos: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield what is said of our photos that others explain."""
        held: pa.Table | None = None
        for batch in photos:
            rows = pa.Table.from_batches([batch])
            if not rows.num_rows:
                continue
            rows = _without_repeats(pa.concat_tables([held, rows]) if held is not None else rows)
            starts = self._starts(rows)
            yield from self._explain(rows.slice(0, starts[-1]), starts)
            held = rows.slice(starts[-1]).combine_chunks()
        if held is not None:
            yield from self._explain(held, np.array([0, held.num_rows]))

    def _starts(self, rows: pa.Table) -> np.ndarray:
        """Return the rows at which sequences begin, the last one's too, which more photos may follow."""
        folder_N, time_s_N = (rows.column(name).to_numpy() for name in (_FOLDER, _TIME_S))
        gap_s = self._settings.gap_h * 3600
        (breaks,) = np.nonzero((folder_N[1:] != folder_N[:-1]) | (np.diff(time_s_N) > gap_s))
        bounds = [0, *(breaks + 1).tolist(), rows.num_rows]
        starts = [s for first, end in itertools.pairwise(bounds) for s in range(first, end, _LONGEST)]
        return np.array(starts)

    def _explain(self, rows: pa.Table, starts: np.ndarray) -> Iterator[pa.RecordBatch]:
        """Yield what is said of the sequences of `rows`, each of which ends where the next one starts."""
        if not rows.num_rows:
            return
        photos = self._sequence(rows)
        is_ours_N = rows.column(_IS_OURS).to_numpy()
        columns = [np.full(rows.num_rows, np.nan) for _ in range(4)]
        photos_N = np.zeros(rows.num_rows, np.int32)
        for start, stop in itertools.pairwise(starts):
            if stop - start > 1 and is_ours_N[start:stop].any():
                found = context.explain(photos.part(start, stop), self._settings)
                values = (found.lat_deg_N, found.lon_deg_N, found.radius_km_N, found.confidence_N)
                for column, part in zip(columns, values, strict=True):
                    column[start:stop] = part
                photos_N[start:stop] = found.photos_N
        taken = np.flatnonzero(is_ours_N & (photos_N > 0))
        self.seen += int(is_ours_N.sum())
        self.explained += len(taken)
        lat_deg, lon_deg, radius_km, confidence = (column[taken] for column in columns)
        ids = rows.column(schema.PHOTO_ID).combine_chunks().take(pa.array(taken))
        answers = [ids, lat_deg, lon_deg, radius_km.astype(np.float32)]
        answers += [np.minimum(confidence, 1.0).astype(np.float32), s2.leaf_id_N(lat_deg, lon_deg), photos_N[taken]]
        kinds = zip(_ANSWERS, answers, strict=True)
        yield pa.RecordBatch.from_arrays([pa.array(values, field.type) for field, values in kinds], schema=_ANSWERS)

    def _sequence(self, rows: pa.Table) -> context.Sequence:
        """Return what `context` wants to know of `rows`."""
        lists = rows.column(schema.ALTERNATIVES).combine_chunks()
        cells = lists.flatten()
        counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)

        def numbers(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
            return np.asarray(pc.fill_null(values.cast(pa.float64()), float("nan")).to_numpy())

        return context.Sequence(
            time_s_N=numbers(rows.column(_TIME_S)),
            first_candidate=np.append(0, counts.cumsum()).astype(np.int64),
            candidate_cell_M=cells.field(schema.CELL_ID).to_numpy(),
            candidate_lat_deg_M=numbers(cells.field(schema.LAT_DEG)),
            candidate_lon_deg_M=numbers(cells.field(schema.LON_DEG)),
            candidate_probability_M=numbers(cells.field(schema.PROBABILITY)),
            recorded_lat_deg_N=numbers(rows.column(schema.RECORDED_LAT_DEG)),
            recorded_lon_deg_N=numbers(rows.column(schema.RECORDED_LON_DEG)),
            reach_km_N=numbers(rows.column(schema.RADIUS_KM)),
            cells=self._cells,
        )


def _without_repeats(rows: pa.Table) -> pa.Table:
    """Return sorted rows without those that repeat a photo: two tasks may have staged the very same one."""
    ids = rows.column(schema.PHOTO_ID).combine_chunks()
    return rows.filter(pa.array(np.append(True, pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False))))
