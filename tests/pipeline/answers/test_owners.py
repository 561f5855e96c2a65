"""Exports never hide what an owner set, under whatever name it stands beside the photo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import schema, storage
from pipeline.answers.sidecars import Done, Outcome, Sidecars
from tests.support.photo_rows import located_row
from tests.support.photo_samples import china_jpeg
from tests.support.sidecar_samples import takeout_json, xmp_sidecar

GPS, PLAIN = xmp_sidecar(48.5, 2.5), xmp_sidecar(caption="C")
LONG = "a_very_long_name_that_the_export_cut_at_46_char"


def row(uri: str, lat_deg: float = 1.0) -> dict[str, Any]:
    names = dict.fromkeys((schema.COUNTRY_CODE, schema.COUNTRY, schema.REGION, schema.PLACE))
    return located_row(uri, lat_deg, 2.0) | names | {schema.COUNTRY_PROBABILITY: None, schema.ETAG: None}


def put(folder: Path, photo: str, **_: Any) -> str:
    storage.write_bytes(str(folder / photo), china_jpeg())
    return str(folder / photo)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def export(*rows: dict[str, Any], undo: bool = False, folder: str | None = None, top: str | None = None) -> list[Done]:
    each = Sidecars(folder, top, undo=undo, is_dry=False)
    return [each(one) for one in rows]


@pytest.mark.parametrize(
    ("photo", "sidecar", "data", "expected"),
    [
        ("a.jpg", "a.xmp", GPS, Outcome.HAS_GPS),
        ("a.jpg", "a.jpg.xmp", GPS, Outcome.HAS_GPS),
        ("A.JPG", "A.JPG.XMP", GPS, Outcome.HAS_GPS),
        ("A.JPG", "a.Xmp", GPS, Outcome.HAS_GPS),
        ("a.CR2", "a_01.CR2.xmp", GPS, Outcome.HAS_GPS),
        ("a.jpg", "a.CR2.xmp", GPS, Outcome.HAS_GPS),  # its twin's
        ("a.dng", "a.jpg.xmp", GPS, Outcome.HAS_GPS),
        ("a.jpg", "a.xmp", GPS.decode().encode("utf-16"), Outcome.HAS_GPS),
        ("a.jpg", "a.xmp", b"<x:xmpmeta", Outcome.NOT_UNDERSTOOD),
        ("a.jpg", "a.jpg.json", takeout_json("a.jpg", 1.0, 2.0), Outcome.HAS_TAKEOUT),
        ("a(1).jpg", "a.jpg(1).json", takeout_json("a.jpg", 1.0, 2.0), Outcome.HAS_TAKEOUT),
        ("a-edited.jpg", "a.jpg.suppl.json", takeout_json("a.jpg", 1.0, 2.0), Outcome.HAS_TAKEOUT),
        (f"{LONG}.jpg", f"{LONG[:46]}.json", takeout_json(f"{LONG}s.jpg", 1.0, 2.0), Outcome.HAS_TAKEOUT),
    ],
)
def test_a_photo_whose_owner_has_set_a_position_beside_it_is_left(
    tmp_path: Path, photo: str, sidecar: str, data: bytes, expected: Outcome
) -> None:
    uri = put(tmp_path, photo)
    (tmp_path / sidecar).write_bytes(data)
    before = files(tmp_path)
    (done,) = export(row(uri))
    assert done.outcome == expected
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("sidecar", "data"),
    [
        ("b.xmp", GPS),
        ("a.txt", GPS),
        ("ab.xmp", GPS),
        ("a.jpg.json", takeout_json("a.jpg")),
        ("a.jpg.json", b"no JSON"),
        ("a.json", b"[1]"),
        ("a.CR2.xmp", PLAIN),
    ],
)
def test_what_holds_no_position_of_the_photo_is_in_nobodys_way(tmp_path: Path, sidecar: str, data: bytes) -> None:
    uri = put(tmp_path, "a.jpg")
    (tmp_path / sidecar).write_bytes(data)
    (done,) = export(row(uri))
    assert (done.outcome, done.sidecar) == (Outcome.CREATED, f"{uri}.xmp")
    assert (tmp_path / sidecar).read_bytes() == data


@pytest.mark.parametrize("name", ["a.xmp", "a.jpg.XMP", "a.jpg.xmp", "A.xmp"])
def test_ours_is_added_to_the_owners_file_and_taken_out_again(tmp_path: Path, name: str) -> None:
    uri = put(tmp_path, "a.jpg")
    (tmp_path / name).write_bytes(PLAIN)
    assert export(row(uri)) == [Done(Outcome.ADDED, str(tmp_path / name))]
    assert sorted(files(tmp_path)) == sorted(["a.jpg", name])
    assert export(row(uri))[0].outcome == Outcome.UNCHANGED
    assert export(row(uri, 5.0))[0].outcome == Outcome.RENEWED
    assert export(row(uri), undo=True) == [Done(Outcome.TAKEN_OUT, str(tmp_path / name))]
    assert (tmp_path / name).read_bytes() == PLAIN


def test_the_file_that_programs_read_first_is_the_one(tmp_path: Path) -> None:
    uri = put(tmp_path, "a.jpg")
    (tmp_path / "a.xmp").write_bytes(PLAIN)
    (tmp_path / "a.jpg.xmp").write_bytes(PLAIN)
    assert export(row(uri)) == [Done(Outcome.ADDED, f"{uri}.xmp")]
    assert (tmp_path / "a.xmp").read_bytes() == PLAIN


def test_a_sidecar_that_twins_share_takes_one_prediction(tmp_path: Path) -> None:
    raw, jpeg = put(tmp_path, "a.CR2"), put(tmp_path, "a.JPG")
    (tmp_path / "a.xmp").write_bytes(PLAIN)
    first = [done.outcome for done in export(row(raw), row(jpeg, 5.0))]
    assert first == [Outcome.ADDED, Outcome.OF_ANOTHER]
    assert [done.outcome for done in export(row(raw), row(jpeg, 5.0))] == [Outcome.UNCHANGED, Outcome.OF_ANOTHER]


def test_links_are_not_followed_under_other_names_either(tmp_path: Path) -> None:
    uri = put(tmp_path, "a.jpg")
    (tmp_path / "secret").write_bytes(PLAIN)
    (tmp_path / "a.xmp").symlink_to(tmp_path / "secret")
    (done,) = export(row(uri))
    assert done.outcome == Outcome.IS_LINK
    assert sorted(files(tmp_path)) == ["a.jpg", "a.xmp", "secret"]
    assert (tmp_path / "secret").read_bytes() == PLAIN


def test_a_folder_of_sidecars_is_looked_through_in_the_same_way(tmp_path: Path) -> None:
    photos, to = tmp_path / "photos", tmp_path / "to"
    uri = put(photos, "a.jpg")
    to.mkdir()
    (to / "a.xmp").write_bytes(GPS)
    (done,) = export(row(uri), folder=str(to), top=str(photos))
    assert done == Done(Outcome.HAS_GPS, str(to / "a.xmp"))


def test_the_same_in_an_object_store(s3_bucket: str) -> None:
    for name, data in {"a.jpg": b"1", "a.xmp": GPS, "b.jpg": b"1", "c/a.jpg": b"1", "b.xmp": PLAIN}.items():
        storage.write_bytes(f"s3://{s3_bucket}/owners/{name}", data)
    outcomes = [
        done.outcome for done in export(*(row(f"s3://{s3_bucket}/owners/{name}.jpg") for name in ("a", "b", "c/a")))
    ]
    assert outcomes == [Outcome.HAS_GPS, Outcome.ADDED, Outcome.CREATED]
    names = [entry.uri.rpartition("/owners/")[2] for entry in storage.list_folder(f"s3://{s3_bucket}/owners")]
    assert names == ["a.jpg", "a.xmp", "b.jpg", "b.xmp"]
