"""Albums as publishing sees them: every row kept, folders apart, earlier runs read and left alone."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.world import s2
from model.world.geodesy import haversine_km
from pipeline import schema, storage
from pipeline.locate.context import ContextSettings
from pipeline.locate.places import Gazetteer
from pipeline.locate.precision import PrecisionName, coarsen
from pipeline.run import albums
from pipeline.run.albums import AlbumCounts, add_context
from pipeline.run.publish import publish
from pipeline.run.staging import Stage, epoch_of, parquet_bytes
from pipeline.schema import ErrorCode
from tests.support.photo_rows import failed_row, located_row, photos

Row = dict[str, Any]
NOON = dt.datetime(2024, 5, 1, 12)
ROME, OSLO = (41.9, 12.5), (59.9, 10.75)
CELLS = 2000


def photo(uri: str, minutes: float | None, first: tuple[float, float], second: tuple[float, float], **more: Any) -> Row:
    """Return the row of a photo that is probably (0.5) at the first place, perhaps (0.3) at the second."""
    row = located_row(uri, *first, recorded_lat_deg=None, recorded_lon_deg=None)
    cells = [int(s2.cell_id_N([place[0]], [place[1]], 11)[0]) for place in (first, second)]
    row[schema.ALTERNATIVES] = [
        {schema.CELL_ID: cell, schema.LAT_DEG: place[0], schema.LON_DEG: place[1], schema.PROBABILITY: probability}
        for cell, place, probability in zip(cells, (first, second), (0.5, 0.3), strict=True)
    ]
    row[schema.TAKEN_AT] = None if minutes is None else NOON + dt.timedelta(minutes=minutes)
    return row | more


def album(folder: str = "/a") -> list[Row]:
    """Return three photos surely of Rome but for the middle one, which looks more like Oslo."""
    return [
        photo(f"{folder}/1.jpg", 0, ROME, OSLO),
        photo(f"{folder}/2.jpg", 5, OSLO, ROME),
        photo(f"{folder}/3.jpg", 9, ROME, OSLO),
    ]


def staged(output: Path, *parts: list[Row]) -> Stage:
    stage = Stage(str(output), "r2")
    for part in parts:
        stage.put_rows(photos(part))
    return stage


def rows_of(stage: Stage) -> dict[str, Row]:
    """Return the staged rows by name; fails where a photo has two."""
    tables = [pq.read_table(pa.BufferReader(storage.read_bytes(uri))) for uri in stage.row_files()]
    found = pa.concat_tables(tables).to_pylist()
    assert len({row[schema.URI] for row in found}) == len(found)
    return {row[schema.URI]: row for row in found}


def context(stage: Stage, published: list[str] | None = None, **settings: Any) -> AlbumCounts:
    return add_context(stage, published or [], CELLS, "street", ContextSettings(**settings))


def place(row: Row) -> str | None:
    """Return which of the two places a row's context names."""
    if row[schema.CONTEXT_LAT_DEG] is None:
        assert all(row[name] is None for name in schema.CONTEXT)
        return None
    assert row[schema.CONTEXT_CELL_ID] == s2.leaf_id_N([row[schema.CONTEXT_LAT_DEG]], [row[schema.CONTEXT_LON_DEG]])[0]
    return "Rome" if row[schema.CONTEXT_LAT_DEG] < 50 else "Oslo"


def test_neighbours_overrule_a_doubtful_photo_and_all_else_stays(tmp_path: Path) -> None:
    before = album()
    stage = staged(tmp_path, before[:2], before[2:])
    assert context(stage, alike_s=1e-3) == AlbumCounts(explained=3, alone=0, without_time=0)
    after = rows_of(stage)
    assert [place(after[row[schema.URI]]) for row in before] == ["Rome"] * 3
    for row in photos(before).to_pylist():
        kept = after[row[schema.URI]]
        assert {n: v for n, v in kept.items() if n not in schema.CONTEXT} == {
            n: v for n, v in row.items() if n not in schema.CONTEXT
        }
        assert kept[schema.CONTEXT_PHOTOS] == 2
        # Nearly as if all three were taken in one place: two say 5 : 3, one says 3 : 5.
        assert kept[schema.CONTEXT_CONFIDENCE] == pytest.approx(5 / 8, abs=0.02)


def test_folders_gaps_and_times_part_albums(tmp_path: Path) -> None:
    rows = [
        *album("/a"),
        photo("/b/1.jpg", 5, OSLO, ROME),  # another folder
        photo("/a/later.jpg", 60 * 24 * 9, OSLO, ROME),  # more than gap_h later
        photo("/a/timeless.jpg", None, OSLO, ROME),
        *[photo(f"/x.tar#{i}.jpg", i, ROME, OSLO) for i in range(2)],
        photo("/y.tar#2.jpg", 2, OSLO, ROME),  # another tar beside it
        failed_row("/a/0.jpg", ErrorCode.CORRUPT, taken_at=NOON),
    ]
    stage = staged(tmp_path, rows)
    assert context(stage) == AlbumCounts(explained=5, alone=3, without_time=1)
    found = {uri: place(row) for uri, row in rows_of(stage).items()}
    alone = ("/b/1.jpg", "/a/later.jpg", "/a/timeless.jpg", "/y.tar#2.jpg", "/a/0.jpg")
    assert {uri for uri, where in found.items() if where is None} == set(alone)
    assert {where for uri, where in found.items() if uri not in alone} == {"Rome"}


@pytest.mark.parametrize(("trusted", "wanted"), [(True, "Oslo"), (False, "Rome")])
def test_a_camera_position_is_an_anchor_for_others_unless_not_wanted(
    tmp_path: Path, trusted: bool, wanted: str
) -> None:
    rows = album()
    rows[2] |= {schema.RECORDED_LAT_DEG: OSLO[0] + 0.01, schema.RECORDED_LON_DEG: OSLO[1]}
    stage = staged(tmp_path, rows)
    context(stage, positions=trusted)
    assert place(rows_of(stage)["/a/1.jpg"]) == wanted


def test_a_failed_photo_with_a_position_is_an_anchor_too(tmp_path: Path) -> None:
    position = {schema.RECORDED_LAT_DEG: OSLO[0], schema.RECORDED_LON_DEG: OSLO[1], schema.TAKEN_AT: NOON}
    stage = staged(tmp_path, [*album(), failed_row("/a/broken.jpg", ErrorCode.TRUNCATED, **position)])
    assert context(stage).explained == 3
    found = {uri: place(row) for uri, row in rows_of(stage).items()}
    assert found == {"/a/1.jpg": "Oslo", "/a/2.jpg": "Oslo", "/a/3.jpg": "Oslo", "/a/broken.jpg": None}


def test_photos_of_earlier_runs_are_read_and_not_written(tmp_path: Path) -> None:
    old = [row | {schema.RUN_ID: "r1"} for row in album()]
    changed = photo("/a/2.jpg", 5, OSLO, ROME, etag="v2")  # which the old row of the same photo must not speak for
    elsewhere = photo("/b/9.jpg", 5, OSLO, ROME) | {schema.RUN_ID: "r1"}
    published = tmp_path / "old.parquet"
    without_context = photos([*old, elsewhere]).drop_columns(list(schema.CONTEXT))  # as an older version wrote
    pq.write_table(without_context, published)
    bytes_before = published.read_bytes()
    stage = staged(tmp_path / "out", [changed])
    assert context(stage, [str(published)]) == AlbumCounts(1, 0, 0)
    (row,) = rows_of(stage).values()
    assert (place(row), row[schema.CONTEXT_PHOTOS], row[schema.ETAG]) == ("Rome", 2, "v2")
    assert published.read_bytes() == bytes_before


def test_what_was_staged_twice_speaks_once(tmp_path: Path) -> None:
    rows = album()
    newer = photo("/a/2.jpg", 5, OSLO, ROME, processed_at=rows[0][schema.PROCESSED_AT] + dt.timedelta(hours=1))
    stage = staged(tmp_path, rows, rows[:2], [newer])
    assert context(stage) == AlbumCounts(3, 0, 0)
    again = replace(stage, epoch=2)
    assert context(again) == AlbumCounts(3, 0, 0)  # an interrupted one is done again over its own rows
    plan = pa.Table.from_pylist([{n: r.get(n) for n in schema.MANIFEST.names} for r in rows], schema.MANIFEST)
    storage.write_bytes(again.plan_uri("todo", 0), parquet_bytes(plan))
    published = publish(again)
    assert published.located == 3
    table = pq.read_table(tmp_path / published.files[0].path)
    assert table.column(schema.CONTEXT_PHOTOS).to_pylist() == [2, 2, 2]


def test_only_the_row_that_stands_is_staged_anew(tmp_path: Path) -> None:
    """By one holder: which of two is the newer could not be told afterwards. What others staged gives way to it."""
    rows = album()
    stage = staged(tmp_path, rows)
    again = replace(stage, epoch=2)
    behind = {schema.PROCESSED_AT: rows[0][schema.PROCESSED_AT] - dt.timedelta(days=400)}
    again.put_rows(photos([photo("/a/2.jpg", 5, OSLO, ROME, etag="v2", **behind)]))
    assert context(replace(stage, epoch=3)) == AlbumCounts(3, 0, 0)
    ours = [uri for uri in stage.row_files() if epoch_of(uri) == 3]
    tables = [pq.read_table(pa.BufferReader(storage.read_bytes(uri))) for uri in ours]
    found = pa.concat_tables(tables).select([schema.URI, schema.ETAG]).to_pylist()
    assert sorted(tuple(row.values()) for row in found) == [("/a/1.jpg", "v1"), ("/a/2.jpg", "v2"), ("/a/3.jpg", "v1")]


def test_a_photo_of_an_earlier_run_speaks_though_it_could_not_be_fetched_again(tmp_path: Path) -> None:
    published = []
    for name, rows in (("old", album()), ("away", [failed_row("/a/1.jpg", ErrorCode.NOT_FOUND)])):
        (tmp_path / f"{name}.parquet").write_bytes(parquet_bytes(photos(rows)))
        published.append(str(tmp_path / f"{name}.parquet"))
    stage = staged(tmp_path / "out", [photo("/a/2.jpg", 5, OSLO, ROME, etag="v2")])
    assert context(stage, published) == AlbumCounts(1, 0, 0)
    (row,) = rows_of(stage).values()
    assert row[schema.CONTEXT_PHOTOS] == 2


def test_killed_while_rewriting_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(albums, "_ROWS_PER_BATCH", 2048)
    rows = [photo(f"/a/{i}.jpg", i, ROME, OSLO) for i in range(5000)]
    stage = staged(tmp_path, rows[:3000], rows[3000:])
    put, calls = storage.write_bytes, 0

    def dying(uri: str, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        put(uri, data)

    monkeypatch.setattr(storage, "write_bytes", dying)
    with pytest.raises(KeyboardInterrupt):
        context(stage)
    monkeypatch.undo()
    tables = [pq.read_table(pa.BufferReader(storage.read_bytes(uri))) for uri in stage.row_files()]
    left = pa.concat_tables(tables).column(schema.URI).to_pylist()
    assert set(left) == {row[schema.URI] for row in rows}
    assert context(stage) == AlbumCounts(5000, 0, 0)
    again = pa.concat_tables([pq.read_table(pa.BufferReader(storage.read_bytes(uri))) for uri in stage.row_files()])
    assert set(again.column(schema.URI).to_pylist()) == set(left)  # some twice: publishing takes one of each
    assert again.column(schema.CONTEXT_PHOTOS).null_count == 0


def test_a_long_album_is_cut_where_memory_would_not_be_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(albums, "_LONGEST", 10)
    monkeypatch.setattr(albums, "_ROWS_PER_BATCH", 2048)
    sizes: list[int] = []
    explain = albums.context.explain

    def noted(part: Any, settings: Any) -> Any:
        sizes.append(len(part))
        return explain(part, settings)

    monkeypatch.setattr(albums.context, "explain", noted)
    rows = [photo(f"/a/{i:05d}.jpg", i, ROME, OSLO) for i in range(2500)]
    stage = staged(tmp_path, rows)
    assert context(stage, window=5).explained == 2500
    assert sizes == [10] * 250


@pytest.mark.parametrize("precision", ["city", "region", "country"])
def test_coarse_rows_get_a_coarse_context(tmp_path: Path, precision: PrecisionName) -> None:
    rows = album()
    rows[0] |= {schema.RECORDED_LAT_DEG: ROME[0] + 0.0123, schema.RECORDED_LON_DEG: ROME[1] + 0.0123}
    stage = Stage(str(tmp_path), "r2")
    stage.put_rows(coarsen(photos(rows), precision, Gazetteer()))
    add_context(stage, [], CELLS, precision, ContextSettings())
    for row in rows_of(stage).values():
        lat_deg, lon_deg = row[schema.CONTEXT_LAT_DEG], row[schema.CONTEXT_LON_DEG]
        level = {"city": 9, "region": 6, "country": 4}[precision]
        assert (lat_deg, lon_deg) == tuple(a[0] for a in s2.centre_deg_N(s2.cell_id_N([lat_deg], [lon_deg], level)))
        assert row[schema.CONTEXT_CELL_ID] == s2.leaf_id_N([lat_deg], [lon_deg])[0]
        assert row[schema.CONTEXT_RADIUS_KM] >= {"city": 18, "region": 144, "country": 575}[precision]
        assert haversine_km(lat_deg, lon_deg, *ROME) < {"city": 18, "region": 144, "country": 575}[precision]


def test_nothing_staged_is_nothing_to_do(tmp_path: Path) -> None:
    assert context(Stage(str(tmp_path), "r2")) == AlbumCounts(0, 0, 0)


def test_no_photo_has_a_time(tmp_path: Path) -> None:
    stage = staged(tmp_path, [photo(f"/a/{i}", None, ROME, OSLO) for i in range(3)])
    assert context(stage) == AlbumCounts(0, 0, 3)
    assert np.all([place(row) is None for row in rows_of(stage).values()])
