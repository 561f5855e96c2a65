"""From a folder or an archive, by the plan and the isolated reader, to what is recorded beside each photo."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema, storage
from pipeline.beside.sidecar import MAX_BYTES
from pipeline.decode.photo import DecodeTarget
from pipeline.read.fetch import FetchSettings
from pipeline.read.reader import IsolatedReader, Reader, ReaderSettings
from pipeline.run.plan import Plan, make_plan
from pipeline.run.staging import Stage, parquet_bytes
from pipeline.sources.manifest import ListSettings
from tests.support.photo_rows import located_row, photos
from tests.support.photo_samples import camera_jpeg, china_image, china_jpeg
from tests.support.sidecar_samples import TAKEN, takeout_json, xmp_sidecar

SETTINGS = ReaderSettings(DecodeTarget(image_size_px=32, resize_px=36), fetch=FetchSettings(budget_s=0.01))
LONG = "a_very_long_name_that_the_export_cut_at_46_char"
PLACE = (41.4036, 2.1744)


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    reader = IsolatedReader(SETTINGS)
    yield reader
    reader.close()


def put(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        storage.write_bytes(str(folder / name), data)
    return folder


def planned(source: Path, *published: str, run: str = "r1") -> tuple[Plan, pa.Table]:
    stage = Stage(str(source.parent / "output"), run)
    plan = make_plan([str(source)], stage, published, "m-1", False, None)
    files = [pq.read_table(file, schema=schema.MANIFEST) for file in plan.files]
    return plan, pa.concat_tables([schema.MANIFEST.empty_table(), *files])


def rows(reader: Reader, source: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of all photos that are listed, by their names; what stands beside them is no photo here."""
    read = reader(planned(source)[1]).to_pylist()
    named = {row[schema.URI].rpartition("/")[2]: row for row in read}
    return {name: row for name, row in named.items() if row[schema.FORMAT] is not None}


def place(row: Mapping[str, Any]) -> tuple[float | None, float | None, str | None]:
    return row[schema.RECORDED_LAT_DEG], row[schema.RECORDED_LON_DEG], row[schema.RECORDED_BY]


def takeout() -> dict[str, bytes]:
    """Return a little Takeout with many of its habits, of an album in which three photos have positions elsewhere."""
    photo = china_jpeg()
    album = {
        "IMG_1.jpg": photo,
        "IMG_1.jpg.json": takeout_json("IMG_1.jpg", *PLACE, description="Sagrada"),
        "IMG_1(1).jpg": photo,
        "IMG_1.jpg(1).json": takeout_json("IMG_1.jpg", *PLACE),
        "IMG_2.jpg": photo,
        "IMG_2.jpg.supplemental-metad.json": takeout_json("IMG_2.jpg", *PLACE),
        "IMG_2-edited.jpg": photo,
        f"{LONG}.jpg": photo,
        f"{LONG[:46]}.json": takeout_json(f"{LONG}acters.jpg", *PLACE),
        "with_exif.jpg": camera_jpeg(china_image(), lat_deg=48.5, lon_deg=-11.25),
        "with_exif.jpg.json": takeout_json("with_exif.jpg", *PLACE),
        "zero.jpg": photo,
        "zero.jpg.json": takeout_json("zero.jpg", 0.0, 0.0),
        "metadata.json": b'{"title": "Photos from 2018"}',
    }
    return {f"Takeout/Google Photos/Photos from 2018/{name}": data for name, data in album.items()}


@pytest.mark.parametrize("is_zip", [False, True])
def test_takeout_says_where_and_when(tmp_path: Path, reader: Reader, is_zip: bool) -> None:
    source = tmp_path / "takeout-001.zip"
    if is_zip:  # in two parts, and every second file is in the other one
        for part in range(2):
            with zipfile.ZipFile(tmp_path / f"takeout-00{part + 1}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for name, data in list(takeout().items())[part::2]:
                    archive.writestr(name, data)
        source = tmp_path / "*.zip"
    else:
        source = put(tmp_path / "folder", takeout())
    found = {
        name: row
        for name, row in rows(reader, source).items()
        if row[schema.ERROR_CODE] != schema.ErrorCode.NOT_A_PHOTO
    }
    assert len(found) == 7
    for name in ("IMG_1.jpg", "IMG_1(1).jpg", "IMG_2.jpg", "IMG_2-edited.jpg", f"{LONG}.jpg"):
        row = found[name]
        assert place(row) == (*PLACE, "takeout"), name
        assert (row[schema.TAKEN_AT_UTC], row[schema.TAKEN_AT_UTC_BY]) == (TAKEN, "takeout")
    assert place(found["zero.jpg"]) == (None, None, None)
    assert found["zero.jpg"][schema.TAKEN_AT_UTC] == TAKEN
    lat_deg, _, by = place(found["with_exif.jpg"])
    assert (lat_deg, by) == (pytest.approx(48.5), "exif")
    assert found["with_exif.jpg"][schema.RECORDED_APART_KM] == pytest.approx(1315, abs=5)
    assert found["IMG_1.jpg"][schema.CAPTION] == "Sagrada"
    assert not any(row[schema.DECODE_WARNING] for row in found.values())


def test_an_xmp_sidecar_goes_before_takeout_and_after_the_photo(tmp_path: Path, reader: Reader) -> None:
    files = {
        "a.jpg": china_jpeg(),
        "a.xmp": xmp_sidecar(10.0, 20.0),
        "a.jpg.xmp": xmp_sidecar(11.0, 20.0, caption="C"),
        "a.jpg.json": takeout_json("a.jpg", *PLACE),
        "b.jpg": camera_jpeg(china_image(), lat_deg=48.5, lon_deg=-11.25),
        "b.xmp": xmp_sidecar(48.5, -11.25),
        "c.jpg": china_jpeg(),
    }
    found = rows(reader, put(tmp_path / "photos", files))
    assert place(found["a.jpg"]) == (pytest.approx(11.0), pytest.approx(20.0), "sidecar")
    assert found["a.jpg"][schema.RECORDED_APART_KM] > 3000
    assert (found["a.jpg"][schema.CAPTION], found["a.jpg"][schema.TAKEN_AT_UTC]) == ("C", TAKEN)
    assert found["b.jpg"][schema.RECORDED_BY] == "exif"
    assert found["b.jpg"][schema.RECORDED_APART_KM] == pytest.approx(0, abs=0.1)
    assert place(found["c.jpg"]) == (None, None, None)
    assert found["c.jpg"][schema.SIDECAR_ETAG] is None
    assert found["a.jpg"][schema.SIDECAR_ETAG]


def test_the_title_decides_whose_a_cut_name_is(tmp_path: Path, reader: Reader) -> None:
    cut = LONG[:46]
    files = {
        f"{cut}1.jpg": china_jpeg(),
        f"{cut}2.jpg": china_jpeg(),
        f"{cut}.json": takeout_json(f"{cut}1 of many.jpg", 10.0, 20.0),
        f"{cut}(1).json": takeout_json(f"{cut}2 of many.jpg", 30.0, 40.0),
    }
    found = rows(reader, put(tmp_path / "photos", files))
    assert [place(found[f"{cut}{number}.jpg"])[0] for number in (1, 2)] == [10.0, 30.0]


def test_what_can_not_be_read_never_fails_its_photo(tmp_path: Path, reader: Reader) -> None:
    files = {
        "a.jpg": china_jpeg(),
        "a.xmp": b"<x:xmpmeta",
        "a.jpg.xmp": xmp_sidecar(10.0, 20.0),
        "b.jpg": china_jpeg(),
        "b.jpg.json": b"[" * 100_000,
        "c.jpg": china_jpeg(),
        "c.xmp": b" " * (MAX_BYTES["xmp"] + 1),
        "d.jpg": china_jpeg()[:60_000],
        "d.xmp": xmp_sidecar(10.0, 20.0),
    }
    found = rows(reader, put(tmp_path / "photos", files))
    assert place(found["a.jpg"])[2] == "sidecar"
    for name in "abc":
        row = found[f"{name}.jpg"]
        assert row[schema.ERROR_CODE] is None
        assert row[schema.DECODE_WARNING].startswith(f"sidecar_unreadable: {name}.")
        assert row[schema.SIDECAR_ETAG], "it is not to be read again each night"
    assert found["d.jpg"][schema.ERROR_CODE] == "truncated"
    assert place(found["d.jpg"])[2] == "sidecar"


def test_a_sidecar_that_can_not_be_had_for_the_moment_is_read_by_a_later_run(tmp_path: Path, reader: Reader) -> None:
    source = put(tmp_path / "photos", {"a.jpg": china_jpeg(), "a.xmp": xmp_sidecar(1.0, 2.0)})
    _, table = planned(source)
    (source / "a.xmp").unlink()
    (row,) = (row for row in reader(table).to_pylist() if row[schema.URI].endswith("a.jpg"))
    assert row[schema.ERROR_CODE] is None
    assert row[schema.SIDECAR_ETAG] is None
    assert "a.xmp" in row[schema.DECODE_WARNING]


def published(source: Path, table: pa.Table, run: str) -> str:
    """Publish a row for each of the table's photos, and return the file."""
    made = [
        located_row(row[schema.URI], 1.0, 2.0, row[schema.ETAG], sidecar_etag=row[schema.SIDECAR_ETAG])
        for row in table.to_pylist()
    ]
    file = source.parent / "output" / "photos" / f"run={run}" / "part-e1-00000.parquet"
    file.parent.mkdir(parents=True)
    file.write_bytes(parquet_bytes(photos(made)))
    return str(file)


def test_a_new_changed_or_removed_sidecar_has_its_photo_looked_at_again(tmp_path: Path) -> None:
    source = put(tmp_path / "photos", {"a.jpg": b"a", "b.jpg": b"b", "c.jpg": b"c", "b.xmp": xmp_sidecar(1.0, 2.0)})

    def todo(*files: str) -> list[str]:
        plan, table = planned(source, *files)
        names = sorted(uri.rpartition("/")[2] for uri in table.column(schema.URI).to_pylist())
        assert plan.todo == len(names)
        return [name for name in names if name.endswith(".jpg")]

    first = published(source, planned(source)[1], "r1")
    assert todo(first) == []
    put(source, {"a.jpg.xmp": xmp_sidecar(1.0, 2.0)})
    assert todo(first) == ["a.jpg"]
    put(source, {"b.xmp": xmp_sidecar(3.0, 2.0, "changed")})
    assert todo(first) == ["a.jpg", "b.jpg"]
    (source / "b.xmp").unlink()
    (source / "a.jpg.xmp").unlink()
    assert todo(first) == ["b.jpg"]


def test_what_an_older_version_published_is_done_unless_it_has_sidecars_now(tmp_path: Path) -> None:
    source = put(tmp_path / "photos", {"a.jpg": b"a", "b.jpg": b"b", "b.xmp": xmp_sidecar(1.0, 2.0)})
    older = published(source, planned(source)[1], "r1")
    pq.write_table(pq.read_table(older, partitioning=None).drop_columns([schema.SIDECAR_ETAG]), older)
    plan, table = planned(source, older)
    assert [uri.rpartition("/")[2] for uri in table.column(schema.URI).to_pylist()] == ["b.jpg"]
    assert (plan.already_done, plan.changed) == (2, 1)
    newer = published(source, table, "r2")
    assert planned(source, older, newer)[0].todo == 0


def test_sidecars_that_are_not_included_are_read_and_excluded_ones_are_not(tmp_path: Path, reader: Reader) -> None:
    files = {"a.jpg": china_jpeg(), "a.xmp": xmp_sidecar(1.0, 2.0), "b.xmp": xmp_sidecar(1.0, 2.0), "a.png": b""}
    source = put(tmp_path / "photos", files)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    for each in (source, tmp_path / "z.zip"):
        stage = Stage(str(tmp_path / "output"), each.name)
        for settings, expected in (
            (ListSettings(include=("*.jpg",)), [pytest.approx(1.0)]),
            (ListSettings(exclude=("*.xmp", "*.png")), [None]),
            (ListSettings(include=("*.jpg",), exclude=("*.xmp",)), [None]),
        ):
            plan = make_plan([str(each)], stage, [], "m-1", False, None, listing=settings)
            assert (plan.listed, plan.todo, plan.excluded) == (1, 1, 3)
            (file,) = plan.files
            found = reader(pq.read_table(file, schema=schema.MANIFEST)).column(schema.RECORDED_LAT_DEG).to_pylist()
            assert found == expected


def test_readers_with_and_without_isolation_say_the_same(tmp_path: Path, reader: Reader) -> None:
    source = put(tmp_path / "photos", takeout())
    times = (schema.FETCH_SECONDS, schema.DECODE_SECONDS)
    both = [rows(each, source) for each in (reader, Reader(SETTINGS))]
    for found in both:
        for row in found.values():
            row.update(dict.fromkeys(times))
    assert both[0] == both[1]


def test_many_long_words_come_through(tmp_path: Path, reader: Reader) -> None:
    files = {"a.jpg": china_jpeg(), "a.xmp": xmp_sidecar(1.0, 2.0, caption="\U0001f600" * 9000)}
    files |= {f"a_{number:02d}.jpg.xmp": xmp_sidecar(1.0, 2.0, caption="x" * 9000) for number in range(1, 15)}
    found = rows(reader, put(tmp_path / "photos", files))
    assert len(found["a.jpg"][schema.CAPTION]) == 9000
