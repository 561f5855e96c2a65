"""Sidecars: what exiftool reads in them, what stays of other programs' work, and where none may be written."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import schema, storage
from pipeline.answers.sidecars import Outcome, Sidecars
from pipeline.storage import local_files
from tests.support.photo_rows import located_row
from tests.support.photo_samples import china_jpeg

OTHERS = """\ufeff<?xml version="1.0" encoding="UTF-8"?>
<!-- a comment --><x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Another 1.0">
  <r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
    <r:Description r:about="uuid:1&amp;2" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="5"
      xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" photoshop:City="Zürich"/>
  </r:RDF><?odd instruction?>
</x:xmpmeta>
"""
IN_RDF = '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">{}</rdf:RDF>'
GPS_TAGS = {
    "GPSLatitude": "XMP-exif:GPSLatitude",
    "GPSLatitudeRef": "Composite:GPSLatitudeRef",
    "GPSLongitude": "XMP-exif:GPSLongitude",
    "GPSLongitudeRef": "Composite:GPSLongitudeRef",
}
EXIF = 'xmlns:exif="http://ns.adobe.com/exif/1.0/"'


def photo(folder: Path, name: str = "china.jpg", lat_deg: float = 39.9995, lon_deg: float = -116.25) -> dict[str, Any]:
    """Put a photo into `folder` and return its row."""
    uri = str(folder / name)
    storage.write_bytes(uri, china_jpeg())
    return row(uri, lat_deg, lon_deg) | {schema.ETAG: storage.head(uri).etag}


def row(uri: str, lat_deg: float = 1, lon_deg: float = 2) -> dict[str, Any]:
    places = {"country_code": "CN", "country": "China & Co", "region": "Beijing", "place": "Peking"}
    places |= {"country_probability": 0.5}  # type: ignore[dict-item]
    return (
        located_row(uri, lat_deg, lon_deg)
        | places
        | {
            schema.ETAG: None,
            schema.MODEL_ID: 'model <"1">',
            schema.RUN_ID: "r1",
            schema.RADIUS_KM: 3.5,
        }
    )


def sidecars(folder: str | None = None, relative_to: str | None = None, undo: bool = False) -> Sidecars:
    return Sidecars(folder, relative_to, undo=undo, is_dry=False)


@pytest.fixture
def exiftool() -> Callable[..., Any]:
    if shutil.which("exiftool") is None:
        pytest.skip("exiftool is not installed: nobody else reads the sidecars")

    def read(*arguments: str | Path) -> Any:
        command = ["exiftool", "-j", "-n", "-G1", *map(str, arguments)]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)[0]

    return read


@pytest.mark.parametrize(
    ("lat_deg", "lon_deg"),
    [
        (39.9995, -116.25),
        (-0.00000001, 0.0),
        (-90.0, 180.0),
        (12.999999999, -179.999999999),
        (-33.8567844, 151.2152967),
    ],
)
def test_exiftool_reads_it(tmp_path: Path, exiftool: Callable[..., Any], lat_deg: float, lon_deg: float) -> None:
    taken = photo(tmp_path, lat_deg=lat_deg, lon_deg=lon_deg)
    done = sidecars()(taken)
    assert (done.outcome, done.sidecar) == (Outcome.CREATED, f"{tmp_path}/china.jpg.xmp")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["china.jpg", "china.jpg.xmp"]
    tags = exiftool(done.sidecar)
    assert tags["XMP-exif:GPSLatitude"] == pytest.approx(lat_deg, abs=1e-8)
    assert tags["XMP-exif:GPSLongitude"] == pytest.approx(lon_deg, abs=1e-8)
    assert tags["XMP-exif:GPSHPositioningError"] == 3500
    assert tags["XMP-exif:GPSMapDatum"] == "WGS-84"
    assert tags["XMP-exif:GPSProcessingMethod"].startswith('predicted from the picture, not measured, by model <"1"> (')
    assert [tags[f"XMP-photoshop:{name}"] for name in ("City", "State", "Country")] == [
        "Peking",
        "Beijing",
        "China & Co",
    ]
    assert tags["XMP-iptcCore:CountryCode"] == "CN"
    assert "Warning" not in str(tags)


def test_exiftool_takes_it_over_into_a_copy_of_the_photo(tmp_path: Path, exiftool: Callable[..., Any]) -> None:
    done = sidecars()(photo(tmp_path))
    copy = tmp_path / "copy.jpg"
    command = [
        "exiftool",
        "-TagsFromFile",
        done.sidecar,
        *(f"-GPS:{to}<{of}" for to, of in GPS_TAGS.items()),
        "-o",
        str(copy),
    ]
    subprocess.run([*command, str(tmp_path / "china.jpg")], capture_output=True, check=True)
    tags = exiftool(copy)
    assert (tags["GPS:GPSLatitudeRef"], tags["GPS:GPSLongitudeRef"]) == ("N", "W")
    assert tags["Composite:GPSPosition"] == "39.9995 -116.25"
    assert (tmp_path / "china.jpg").read_bytes() == china_jpeg()


def test_names_only_as_precise_as_the_prediction(tmp_path: Path) -> None:
    sidecars()(photo(tmp_path) | {schema.PRECISION: "country"})
    text = (tmp_path / "china.jpg.xmp").read_text()
    assert "China &amp; Co" in text
    assert "CN" in text
    assert "Beijing" not in text
    assert "Peking" not in text


@pytest.mark.parametrize("changed", [{"country_probability": 0.49}, {"country_code": None, "country": "open sea"}])
def test_no_name_of_an_unlikely_country_or_of_the_sea(tmp_path: Path, changed: dict[str, Any]) -> None:
    sidecars()(photo(tmp_path) | changed)
    text = (tmp_path / "china.jpg.xmp").read_text()
    assert "GPSLatitude" in text
    for name in ("China", "CN<", "Beijing", "Peking", "open sea", "photoshop:C", "photoshop:S"):
        assert name not in text


def test_what_another_program_wrote_stays_as_it_is(tmp_path: Path, exiftool: Callable[..., Any]) -> None:
    taken, sidecar = photo(tmp_path), tmp_path / "china.jpg.xmp"
    sidecar.write_text(OTHERS, encoding="utf-8")
    assert sidecars()(taken).outcome == Outcome.ADDED
    tags = exiftool(sidecar)
    assert (tags["XMP-xmp:Rating"], tags["XMP-photoshop:City"]) == (5, "Zürich")
    assert (tags["XMP-exif:GPSLatitude"], tags["XMP-photoshop:State"]) == (39.9995, "Beijing")
    text = sidecar.read_text(encoding="utf-8")
    assert text.startswith(OTHERS.split("</r:RDF>")[0])
    assert text.endswith("</r:RDF>" + OTHERS.split("</r:RDF>")[1])
    assert 'rdf:about="uuid:1&amp;2"' in text
    assert sidecars()(taken).outcome == Outcome.UNCHANGED

    assert sidecars()(taken | {schema.LAT_DEG: 12.5}).outcome == Outcome.RENEWED
    assert exiftool(sidecar)["XMP-exif:GPSLatitude"] == 12.5
    assert sidecars(undo=True)(taken).outcome == Outcome.TAKEN_OUT
    assert sidecar.read_bytes() == OTHERS.encode()
    assert sidecars(undo=True)(taken).outcome == Outcome.NOT_OURS
    assert len(list(tmp_path.iterdir())) == 2


def test_undo_removes_what_holds_nothing_else(tmp_path: Path) -> None:
    taken, sidecar = photo(tmp_path), tmp_path / "china.jpg.xmp"
    assert sidecars(undo=True)(taken).outcome == Outcome.NONE
    sidecars()(taken)
    edited = sidecar.read_bytes().replace(b"39,", b"38,")
    assert Sidecars(None, None, undo=True, is_dry=True)(taken).outcome == Outcome.REMOVED
    assert sidecar.exists()
    assert sidecars(undo=True)(taken).outcome == Outcome.REMOVED
    assert [file.name for file in tmp_path.iterdir()] == ["china.jpg"]

    sidecar.write_bytes(edited)  # somebody has corrected the place: theirs now
    assert sidecars(undo=True)(taken).outcome == Outcome.EDITED
    assert sidecars()(taken).outcome == Outcome.HAS_GPS
    assert sidecar.read_bytes() == edited


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        (IN_RDF.format(f'<rdf:Description {EXIF} exif:GPSLatitude="1,2.0N"/>'), Outcome.HAS_GPS),
        (
            IN_RDF.format(f"<rdf:Description {EXIF}><exif:GPSAltitude>1/1</exif:GPSAltitude></rdf:Description>"),
            Outcome.HAS_GPS,
        ),
        (IN_RDF.format("<rdf:Description>"), Outcome.NOT_UNDERSTOOD),
        (IN_RDF.format("") + IN_RDF.format(""), Outcome.NOT_UNDERSTOOD),
        (f'<!DOCTYPE a [<!ENTITY b "c">]>{IN_RDF.format(" &b; ")}', Outcome.NOT_UNDERSTOOD),
        ('<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/>', Outcome.NOT_UNDERSTOOD),
        (f"<html>{IN_RDF.format('')}</html>", Outcome.NOT_UNDERSTOOD),
        ('<x:xmpmeta xmlns:x="adobe:ns:meta/"/>', Outcome.NOT_UNDERSTOOD),
        ("", Outcome.NOT_UNDERSTOOD),
        ("not XML", Outcome.NOT_UNDERSTOOD),
        (OTHERS.encode("utf-16"), Outcome.NOT_UNDERSTOOD),
        (b'<?xml version="1.0" encoding="latin-1"?>' + IN_RDF.format("\n").encode(), Outcome.NOT_UNDERSTOOD),
        (b"<a>\xff</a>", Outcome.NOT_UNDERSTOOD),
        (b"<a>" * 100_000, Outcome.NOT_UNDERSTOOD),
        (b" " * (17 << 20), Outcome.NOT_UNDERSTOOD),
    ],
)
def test_left_alone(tmp_path: Path, content: str | bytes, outcome: Outcome) -> None:
    taken, sidecar = photo(tmp_path), tmp_path / "china.jpg.xmp"
    data = content.encode() if isinstance(content, str) else content
    sidecar.write_bytes(data)
    assert sidecars()(taken).outcome == outcome
    if outcome == Outcome.NOT_UNDERSTOOD:
        assert sidecars(undo=True)(taken).outcome == outcome
    assert sidecar.read_bytes() == data


def test_photos_that_can_have_no_sidecar(tmp_path: Path) -> None:
    taken = photo(tmp_path)
    for changed, outcome in (
        ({schema.URI: f"{tmp_path}/photos.TAR#a/b.jpg"}, Outcome.IN_ARCHIVE),
        ({schema.URI: f"{tmp_path}/moved.jpg"}, Outcome.GONE),
        ({schema.ETAG: "another"}, Outcome.PHOTO_CHANGED),
        ({schema.URI: "s3://bucket/a//b.jpg"}, Outcome.NO_NAME),
        ({schema.URI: "s3://bucket/a/../b.jpg"}, Outcome.NO_NAME),
        ({schema.URI: "s3://bucket/a\nb.jpg"}, Outcome.NO_NAME),
    ):
        assert sidecars()(taken | changed).outcome == outcome
    assert [file.name for file in tmp_path.iterdir()] == ["china.jpg"]
    (tmp_path / "china.jpg.xmp").mkdir()
    done = sidecars()(taken)
    assert done.outcome == Outcome.FAILED
    assert "china.jpg.xmp" in done.detail


@pytest.mark.parametrize("leads_to", ["another sidecar", "nothing"])
def test_a_link_in_the_sidecars_place_is_left(tmp_path: Path, leads_to: str) -> None:
    """Whoever supplies the photos would get a copy of any sidecar that the exporting user can read."""
    theirs = tmp_path / "home" / "private.xmp"
    theirs.parent.mkdir()
    if leads_to == "another sidecar":
        theirs.write_text(OTHERS)
    taken, link = photo(tmp_path / "photos"), tmp_path / "photos" / "china.jpg.xmp"
    link.symlink_to(theirs)
    for undo in (False, True):
        assert sidecars(undo=undo)(taken).outcome == Outcome.IS_LINK
    assert link.is_symlink()
    assert theirs.exists() == (leads_to == "another sidecar")


def test_hostile_names_beside_and_below_a_folder(tmp_path: Path) -> None:
    undecodable = local_files.uri_of(bytes(tmp_path) + b"/a/\xff%41 #?<&\n.jpg")
    storage.write_bytes(undecodable, china_jpeg())
    assert sidecars()(row(undecodable)).outcome == Outcome.CREATED
    assert local_files.path_of(f"{undecodable}.xmp") == bytes(tmp_path) + b"/a/\xff%41 #?<&\n.jpg.xmp"
    assert storage.exists(f"{undecodable}.xmp")

    mirror = tmp_path / "mirror"
    assert sidecars(f"{mirror}", f"{tmp_path}/")(row(undecodable)).outcome == Outcome.CREATED
    assert storage.exists(local_files.uri_of(bytes(mirror) + b"/a/\xff%41 #?<&\n.jpg.xmp"))
    assert sidecars(f"{mirror}")(row("s3://bucket/x/y.jpg")).sidecar == f"{mirror}/bucket/x/y.jpg.xmp"
    assert sidecars(f"{mirror}")(row("/x/y.jpg")).sidecar == f"{mirror}/x/y.jpg.xmp"
    assert sidecars(f"{mirror}", "s3://bucket/x")(row("s3://bucket/xy/y.jpg")).outcome == Outcome.ELSEWHERE
    for key in ("../../../evil.jpg", "a/../../../../evil.jpg", "/evil.jpg", "nul\0.jpg"):
        assert sidecars(f"{mirror}", "s3://bucket")(row(f"s3://bucket/{key}")).outcome == Outcome.NO_NAME
    assert not list(tmp_path.rglob("evil*"))


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    taken = photo(tmp_path)
    dry = Sidecars(None, None, undo=False, is_dry=True)
    assert dry(taken).outcome == Outcome.CREATED
    assert Sidecars(f"{tmp_path}/mirror", None, undo=False, is_dry=True)(taken).outcome == Outcome.CREATED
    assert [file.name for file in tmp_path.iterdir()] == ["china.jpg"]


@pytest.mark.s3
def test_beside_photos_on_s3(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"s3://{s3_bucket}/sidecars/ü %20&<.jpg"
    storage.write_bytes(uri, china_jpeg())
    taken = row(uri) | {schema.ETAG: storage.head(uri).etag}
    assert sidecars()(taken).outcome == Outcome.CREATED
    assert sidecars()(taken).outcome == Outcome.UNCHANGED
    assert sidecars()(taken | {schema.LAT_DEG: 5.0}).outcome == Outcome.RENEWED
    assert b"5,00.000000N" in storage.read_bytes(f"{uri}.xmp")

    read_version = storage.read_version

    def read_then_changed(target: str) -> storage.Blob:
        """Another program writes the sidecar just after we have read it."""
        blob = read_version(target)
        storage.write_bytes(target, OTHERS.encode())
        return blob

    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_version", read_then_changed)
        assert sidecars()(taken).outcome == Outcome.CHANGED_MEANWHILE
    assert storage.read_bytes(f"{uri}.xmp") == OTHERS.encode()
    assert storage.read_bytes(uri) == china_jpeg()
    storage.delete(f"{uri}.xmp")
    sidecars()(taken)
    assert sidecars(undo=True)(taken).outcome == Outcome.REMOVED
    assert [entry.uri for entry in storage.list_files(f"s3://{s3_bucket}/sidecars")] == [uri]
