"""What is believed of a source's positions, and what is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import schema
from pipeline.locate.places import Places
from pipeline.schema import ErrorCode
from tests.pipeline.published.test_catalog import publish_run
from tests.support.photo_rows import failed_row, located_row
from training.data.geotagged import MEANINGS, Drop, implausible, read_geotagged


@pytest.fixture(scope="module")
def places() -> Places:
    return Places()


def write(folder: Path, text: str) -> str:
    (folder / "photos.csv").write_text(text)
    return str(folder / "photos.csv")


def drops(source: str, places: Places) -> dict[str, str]:
    """Return the reason against each row, by its number and name; photographers are the kin."""
    photos = read_geotagged(source)
    drop_N = implausible(photos, [who or "" for who in photos.photographer_N], places)
    return {f"{row}:{name}": str(drop) for row, (name, drop) in enumerate(zip(photos.name_N, drop_N, strict=True))}


def test_every_reason_is_found_and_everything_else_stays(tmp_path: Path, places: Places) -> None:
    rows = [
        ("paris", "48.8566,2.3522", ""),
        ("greenwich", "51.4779,0.0", ""),
        ("ship", "30.0,-45.0", ""),
        ("beach", "43.6, 7.3", ""),
        ("fiji", "-16.85,-180", ""),
        ("", "1.0,1.0", Drop.UNNAMED),
        ("no lat", ",2.0", Drop.MISSING_COORDINATES),
        ("words", "48.8 N,2.0", Drop.MISSING_COORDINATES),
        ("not a number", "nan,2.0", Drop.MISSING_COORDINATES),
        ("infinite", "inf,2.0", Drop.MISSING_COORDINATES),
        ("sydney swapped", "151.2093,-33.8688", Drop.SWAPPED),
        ("no latitude", "95.0,95.0", Drop.OUT_OF_RANGE),
        ("far east", "35.0,190.0", Drop.OUT_OF_RANGE),
        ("zero", "0,0", Drop.NULL_ISLAND),
        ("nearly zero", "-0.05,0.08", Drop.NULL_ISLAND),
        ("sao tome", "0.34,6.73", ""),
        ("pole", "-90,0", Drop.ON_POLE),
        ("nearly pole", "89.995,12", Drop.ON_POLE),
        ("vostok", "-78.46,106.84", ""),
        ("twice", "10.0,20.0", ""),
        ("twice", "10.001,20.0", Drop.REPEATED),
        ("moved", "10.0,20.0", Drop.CONTRADICTORY),
        ("moved", "11.0,20.0", Drop.CONTRADICTORY),
        ("twice but once bad", "0,0", Drop.NULL_ISLAND),
        ("twice but once bad", "10.0,20.0", ""),
    ]
    source = write(tmp_path, "path,lat,lon\n" + "".join(f"{name},{position}\n" for name, position, _ in rows))
    found = list(drops(source, places).values())
    assert found == [str(expected) for *_, expected in rows]
    assert set(MEANINGS) == set(Drop)


def test_swaps_within_range_are_found_where_the_photographer_gives_them_away(tmp_path: Path, places: Places) -> None:
    """Kiel is at 54.3° N 10.1° E; 10.1° N 54.3° E is open sea."""
    source = write(
        tmp_path,
        "path,lat,lon,author\n"
        "home.jpg,54.32,10.13,ann\n"
        "home swapped.jpg,10.14,54.33,ann\n"
        "cruise.jpg,10.14,54.33,bob\n"
        "bob at home.jpg,48.1,11.6,bob\n"
        "nobody's.jpg,10.14,54.33,\n"
        "on land.jpg,45.0,9.0,carl\n"
        "carl's other.jpg,9.0,45.0,carl\n",
    )
    found = drops(source, places)
    assert [name.split(":")[1] for name, reason in found.items() if reason] == ["home swapped.jpg"]
    assert set(found.values()) == {"", Drop.SWAPPED_AT_SEA}


def test_a_table_need_not_name_its_photos(tmp_path: Path, places: Places) -> None:
    source = write(tmp_path, "LAT,LON\n1,1\n1,1\n")
    photos = read_geotagged(source)
    assert photos.is_unnamed
    assert photos.name_N == [f"{source}#1", f"{source}#2"]
    assert (implausible(photos, ["", ""], places) == "").all()


def test_names_become_places_to_read_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "IMG_ID,LAT,LON,S16_Label\na/b.jpg,1,1,0\ns3://x/y.jpg,1,1,\n/abs.jpg,1,1,2\n")
    monkeypatch.chdir(tmp_path)
    photos = read_geotagged("photos.csv", scenes=16)
    assert photos.uri_N == [f"{tmp_path}/a/b.jpg", "s3://x/y.jpg", "/abs.jpg"]
    assert photos.folder(0) == f"{tmp_path}/a"
    assert photos.scene_N == ["shopping and dining", None, "home or hotel"]
    assert read_geotagged("photos.csv", root="images").uri_N[0] == f"{tmp_path}/images/a/b.jpg"
    assert read_geotagged("photos.csv", root="s3://b/images/").uri_N[0] == "s3://b/images/a/b.jpg"


def test_an_archive_gives_what_cameras_wrote_in_the_newest_rows(tmp_path: Path, places: Places) -> None:
    output = str(tmp_path / "geotags")
    exif = {schema.RECORDED_LAT_DEG: 48.85, schema.RECORDED_LON_DEG: 2.35}
    old = {schema.RECORDED_LAT_DEG: 1.0, schema.RECORDED_LON_DEG: 1.0}
    no_gps = {schema.RECORDED_LAT_DEG: None, schema.RECORDED_LON_DEG: None}
    publish_run(output, "r1", [located_row("/a/1.jpg", 0, 0, **old), failed_row("/a/bad.jpg", ErrorCode.TRUNCATED)])
    publish_run(
        output, "r2", [located_row("/a/1.jpg", 0, 0, "v2", **exif), located_row("/b/2.jpg", 5, 5, "v1", **no_gps)]
    )
    photos = read_geotagged(output)
    assert photos.is_archive
    assert photos.name_N == ["/a/1.jpg", "/a/bad.jpg", "/b/2.jpg"]
    assert (photos.lat_deg_N[0], photos.lon_deg_N[0]) == (48.85, 2.35)
    assert np.isnan(photos.lat_deg_N[1:]).all()
    assert photos.scene_N == [None, None, None]  # what the model took the scene for is no label
    assert implausible(photos, ["", "", ""], places).tolist() == ["", Drop.UNREADABLE, Drop.MISSING_COORDINATES]


def test_positions_that_were_coarsened_are_not_believed(tmp_path: Path, places: Places) -> None:
    output = str(tmp_path / "geotags")
    publish_run(output, "r1", [located_row("/a.jpg", 5, 5)], precision="city")
    publish_run(output, "r2", [located_row("/b.jpg", 5, 5)])
    photos = read_geotagged(output)
    assert implausible(photos, ["", ""], places).tolist() == [Drop.COARSENED, ""]


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for source in (tmp_path / "folder", tmp_path / "none.csv"):
        with pytest.raises(ValueError, match="neither a table nor an output"):
            read_geotagged(str(source))
    with pytest.raises(ValueError, match="no column lat_deg"):
        read_geotagged(write(tmp_path, "path,x\na,1\n"))
    (tmp_path / "junk.parquet").write_bytes(b"PAR1 junk")
    with pytest.raises(ValueError, match="neither a readable Parquet"):
        read_geotagged(str(tmp_path / "junk.parquet"))
