"""Which sidecars belong to which photos, by names as real archives have them."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pytest

from pipeline import schema
from pipeline.beside import names
from pipeline.beside.matching import MOST_BESIDE, find_beside
from pipeline.storage.duckdb import connect

LONG = "a_very_long_name_that_the_export_cut_at_46_char"
EMOJI = "😀😃😄😁😆😅😂🤣🥲☺️😊😇🙂🙃😉😌😍🥰😘😗😙😚😋"
BURST = "Backyard_ceremony_wedding_photography_xxxxxxx_"


def beside(listed: Iterable[str | dict[str, object]]) -> dict[str, list[str]]:
    """Return the names of what stands beside each photo of a folder, the closest first."""
    rows = [{schema.URI: f"s3://b/f/{each}", schema.ETAG: "1"} if isinstance(each, str) else each for each in listed]
    for row in rows:
        row[schema.PHOTO_ID] = schema.photo_id(str(row[schema.URI]))
    with connect() as connection:
        connection.register("rows", pa.Table.from_pylist(rows, schema=schema.MANIFEST))
        connection.execute("CREATE TABLE listed AS FROM rows")
        count = find_beside(connection)
        found = connection.execute(
            "SELECT uri, [beside.uri for beside in beside.sidecars] FROM listed JOIN beside ON listed.rowid = photo_row"
        ).fetchall()
    assert count == len(found)
    return {uri.rpartition("/")[2]: [each.rpartition("/")[2] for each in uris] for uri, uris in found}


@pytest.mark.parametrize(
    ("photo", "sidecar"),
    [
        ("IMG_1.jpg", "IMG_1.xmp"),  # Adobe, Capture One
        ("IMG_1.JPG", "IMG_1.JPG.xmp"),  # darktable, digiKam
        ("IMG_1.JPG", "IMG_1.jpg.XMP"),
        ("img_1.jpg", "IMG_1.Xmp"),
        ("IMG_1.CR2", "IMG_1_01.CR2.xmp"),  # a duplicate in darktable
        ("IMG_1.JPG", "IMG_1.NEF.xmp"),  # the twin's
        ("IMG_1.ARW", "IMG_1.jpeg.xmp"),
        ("Ba\u0308r.jpg", "B\u00e4r.xmp"),  # macOS takes letters apart
        ("a.b c.jpg", "a.b c.jpg.xmp"),
        ("no_ending", "no_ending.xmp"),
        # Google Takeout
        ("IMG_1.jpg", "IMG_1.jpg.json"),
        ("IMG_1(1).jpg", "IMG_1.jpg(1).json"),
        ("IMG_1(1).jpg", "IMG_1(1).jpg.json"),
        ("IMG_1(12).jpg", "IMG_1.jpg.supplemental-metadata(12).json"),
        ("IMG_1(1).jpg", "IMG_1(1).jpg.supplemental-metadata.json"),
        ("IMG_1.jpg", "IMG_1.jpg.supplemental-metadata.json"),
        ("IMG_3.HEIC", "IMG_3.HEIC.supplemental-metad.json"),
        ("PXL_20210102_221126856.MP~2.jpg", "PXL_20210102_221126856.MP~2.jpg.supplemental-me.json"),
        ("IMG_1.jpg", "IMG_1.jpg.suppl.json"),
        ("IMG_1.jpg", "IMG_1.jpg.s.json"),
        ("IMG_1.jpg", "IMG_1.jpg..json"),
        ("IMG_1.jpg", "IMG_1.jpg.supplemental-.json"),
        ("7(1).jpg", "7.jpg(1).json"),
        ("Title without an ending.jpg", "Title without an ending.json"),
        ("Title(2).jpg", "Title(2).json"),
        (f"{LONG}.jpg", f"{LONG[:46]}.json"),
        ("original_1d4caa6f-16c6-4c3d-901b-9387de10e528_P.jpg", "original_1d4caa6f-16c6-4c3d-901b-9387de10e528_.json"),
        ("05yqt21kruxwwlhhgrwrdyb6chhwszi9bqmzu16w0 2.jpg", "05yqt21kruxwwlhhgrwrdyb6chhwszi9bqmzu16w0 2.jp.json"),
        (f"{EMOJI}😛.jpg", f"{EMOJI}.json"),  # 46 UTF-16 units
        ("PXL_20230809_203449253.LONG_EXPOSURE-02.ORIGINA.jpg", "PXL_20230809_203449253.LONG_EXPOSURE-02.ORIGIN.json"),
        (f"{BURST}m(1).jpg", f"{BURST}(1).json"),
        (f"{BURST}m(494).jpg", f"{BURST}(494).json"),
        ("IMG_3.MP4", "IMG_3.HEIC.json"),  # a live photo
        ("IMG_3.MOV", "IMG_3.JPG.supplemental-metadata.json"),
        ("IMG_3(1).MOV", "IMG_3.HEIC(1).json"),
        ("PXL_20231118_035751175.MP", "PXL_20231118_035751175.MP.jpg.json"),
        ("IMG_2-edited.jpg", "IMG_2.jpg.json"),
        ("IMG_2-bearbeitet.jpg", "IMG_2.jpg.json"),
        ("PXL_20220405_090123740.PORTRAIT-modifié.jpg", "PXL_20220405_090123740.PORTRAIT.jpg.json"),
        ("IMG_2-ha editado.jpg", "IMG_2.jpg.supplemental-metadata.json"),
        ("IMG_2-編集済み.jpg", "IMG_2.jpg.json"),
        ("IMG_2-effects-edited.jpg", "IMG_2.jpg.json"),
        ("IMG_2-edited(1).jpg", "IMG_2.jpg(1).json"),
        ("IMG_2-edited.jpg", "IMG_2.HEIC.json"),
        ("my-trip-edited.jpg", "my-trip.jpg.json"),
        (f"{LONG[:43]}-edi.jpg", f"{LONG[:43]}.jp.json"),
    ],
)
def test_a_sidecar_is_found_by_its_name(photo: str, sidecar: str) -> None:
    assert beside([photo, sidecar, "another.jpg", "other.txt"]) == {photo: [sidecar]}


@pytest.mark.parametrize(
    "names_listed",
    [
        ["a.jpg", "b.xmp", "b.jpg.json", "a.txt"],
        ["metadata.jpg", "metadata.json", "metadata(1).json"],  # an album's
        ["Metadaten.jpg", "Metadaten.json"],
        ["IMG_1.png", "IMG_1.jpg.json"],  # another picture, whose own JSON is missing
        ["IMG_1.jpg", "IMG_1.jpg(1).json"],
        ["IMG_1(1).jpg", "IMG_1.jpg.json"],
        ["IMG_1.mov", "IMG_1.jpg.xmp"],
        ["IMG_10.jpg", "IMG_1.xmp"],
        [],
    ],
)
def test_what_belongs_to_nothing_is_beside_nothing(names_listed: list[str]) -> None:
    assert beside(names_listed) == {}


def test_the_closest_comes_first_and_all_xmp_is_kept() -> None:
    assert beside(["I.CR2", "I.JPG", "I.xmp", "I.CR2.xmp", "I_01.CR2.xmp", "I.JPG.json"]) == {
        "I.CR2": ["I.CR2.xmp", "I.xmp", "I_01.CR2.xmp", "I.JPG.json"],
        "I.JPG": ["I.xmp", "I.CR2.xmp", "I.JPG.json"],
    }


def test_a_duplicates_name_that_is_a_photos_own_is_that_photos() -> None:
    assert beside(["I.CR2", "I_01.CR2", "I_01.CR2.xmp"]) == {"I_01.CR2": ["I_01.CR2.xmp"]}


def test_the_letters_own_case_goes_first() -> None:
    assert beside(["a.jpg", "A.jpg", "a.xmp", "A.xmp"]) == {"a.jpg": ["a.xmp"], "A.jpg": ["A.xmp"]}


def test_the_photos_own_json_goes_before_its_originals_and_its_stills() -> None:
    listed = ["I.jpg", "I-edited.jpg", "I.mp4", "I.jpg.json", "I-edited.jpg.json", "I.mp4.supplemental-metadata.json"]
    assert beside(listed) == {name: [next(n for n in listed if n.startswith(f"{name}."))] for name in listed[:3]}


def test_of_cut_names_all_are_kept_for_the_title_to_decide() -> None:
    photos = [f"{BURST}1.jpg", f"{BURST}2.jpg"]
    jsons = [f"{BURST}.json", f"{BURST}(1).json"]
    assert beside([*photos, *jsons]) == dict.fromkeys(photos, jsons)
    many = [f"{BURST}({number}).json" for number in range(1, 30)]
    assert beside([f"{BURST}m(7).jpg", *many]) == {f"{BURST}m(7).jpg": [f"{BURST}(7).json"]}


def test_folders_are_apart() -> None:
    assert beside(["a/1.jpg", "b/1.xmp", "1.jpg.json", "c/1.xmp", "c/1.jpg"]) == {"1.jpg": ["1.xmp"]}


def member(archive: str, name: str) -> dict[str, object]:
    uri = f"s3://b/f/{archive}#{name}"
    place = {schema.CONTAINER_URI: f"s3://b/f/{archive}", schema.OFFSET_BYTES: 7, schema.STORED_BYTES: 9}
    return {schema.URI: uri, schema.ETAG: "crc", **place}


def test_the_parts_of_a_takeout_are_one_place_for_its_json_only() -> None:
    one, two = "takeout-20240101T000000Z-001.zip", "takeout-20240101T000000Z-002.zip"
    folder = "Takeout/Google Photos/2018"
    listed = [member(one, f"{folder}/a.jpg"), member(two, f"{folder}/a.jpg.json"), member(two, f"{folder}/a.xmp")]
    assert beside(listed) == {"a.jpg": ["a.jpg.json"]}
    assert beside([member("2019.zip", "a.jpg"), member("2020.zip", "a.jpg.json")]) == {}
    assert beside([member("x.tar", "a.jpg"), member("x.tar", "a.xmp")]) == {"x.tar#a.jpg": ["x.tar#a.xmp"]}


def test_of_several_parts_the_photos_own_goes_first() -> None:
    listed = [member("t-1.zip", "f/a.jpg"), member("t-2.zip", "f/a.jpg.json"), member("t-1.zip", "f/a.jpg.json")]
    listed = [{**each, schema.PHOTO_ID: schema.photo_id(str(each[schema.URI]))} for each in listed]
    with connect() as connection:
        connection.register("rows", pa.Table.from_pylist(listed, schema=schema.MANIFEST))
        connection.execute("CREATE TABLE listed AS FROM rows")
        find_beside(connection)
        ((found,),) = connection.execute("SELECT sidecars FROM beside").fetchall()
    (only,) = found
    assert (only[schema.CONTAINER_URI], only[schema.STORED_BYTES]) == ("s3://b/f/t-1.zip", 9)


def test_very_many_sidecars_of_one_photo_are_bounded_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    found = beside(["I.CR2", *(f"I_{number:02d}.CR2.xmp" for number in range(1, 40))])
    assert len(found["I.CR2"]) == MOST_BESIDE
    assert "1 photos have more than 16 sidecars" in caplog.text


def test_a_listing_twice_is_a_listing_once() -> None:
    assert beside(["a.jpg", "a.jpg", "a.xmp", "a.xmp"]) == {"a.jpg": ["a.xmp"]}


@pytest.mark.parametrize(
    ("title", "photo", "fits"),
    [
        (f"{BURST}2_and_more.jpg", f"{BURST}2.jpg", True),
        (f"{BURST}1_and_more.jpg", f"{BURST}2.jpg", False),
        ("it's a title?.jpg", "it_s a title_.jpg", True),
        ("IMG_2.jpg", "IMG_2-edited(1).jpg", True),
        ("IMG_2", "IMG_2.jpg", True),
    ],
)
def test_the_title_has_the_last_word(title: str, photo: str, fits: bool) -> None:
    assert names.title_fits(title, photo) is fits


def test_only_these_stand_beside_photos() -> None:
    listed = ("a.XMP", "a.json", "a.jpg.Json", "a.xmp.bak", "xmp", "json", ".xmp")
    assert [names.kind_of(name) for name in listed] == ["xmp", "takeout", "takeout", None, None, None, "xmp"]
