"""What sidecars record: Takeout's JSON as it is exported, XMP of other programs, and never our own predictions."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import schema, storage
from pipeline.answers.sidecars import Sidecars
from pipeline.beside import ours
from pipeline.beside.sidecar import completed, read_sidecar
from pipeline.beside.takeout import MAX_JSON_BYTES, read_takeout
from pipeline.decode.recorded import Recorded
from pipeline.schema import PhotoError, RecordedBy, UtcBy
from tests.support.photo_rows import located_row
from tests.support.photo_samples import china_jpeg
from tests.support.sidecar_samples import takeout_json, xmp_sidecar

TAKEN = dt.datetime(2018, 6, 26, 8, tzinfo=dt.UTC)


def test_a_takeout_json_says_where_when_and_what() -> None:
    facts = read_takeout(takeout_json("IMG_1.jpg", 41.4036, 2.1744, TAKEN, description="Sagrada &amp; co"))
    assert facts is not None
    assert (facts.lat_deg, facts.lon_deg, facts.taken_at_utc) == (41.4036, 2.1744, TAKEN)
    assert (facts.title, facts.description) == ("IMG_1.jpg", "Sagrada & co")


@pytest.mark.parametrize(
    ("place", "place_exif", "expected"),
    [
        ((0.0, 0.0), (0.0, 0.0), None),
        ((0.0, 0.0), (40.0, -3.7), (40.0, -3.7)),
        ((41.0, 2.0), (40.0, -3.7), (41.0, 2.0)),
        ((0.0, 2.0), (0.0, 0.0), (0.0, 2.0)),
        ((91.0, 2.0), (0.0, 0.0), None),
        ((float("nan"), 2.0), (0.0, 0.0), None),
        (("41.5", "2.5"), (0.0, 0.0), (41.5, 2.5)),
        ((True, 2.0), (0.0, 0.0), None),
        ((None, None), (0.0, 0.0), None),
    ],
)
def test_zero_is_unknown_and_what_google_shows_goes_first(place: Any, place_exif: Any, expected: Any) -> None:
    facts = read_takeout(takeout_json("a.jpg", *place, exif=place_exif))
    assert facts is not None
    assert (facts.lat_deg, facts.lon_deg) == (expected or (None, None))


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [
        ("1530000000", dt.datetime(2018, 6, 26, 8, tzinfo=dt.UTC)),
        (1530000000, dt.datetime(2018, 6, 26, 8, tzinfo=dt.UTC)),
        ("-86400", dt.datetime(1969, 12, 31, tzinfo=dt.UTC)),
        ("0", None),
        ("", None),
        ("1e400", None),
        ("99999999999999", None),
        ("-62135596800", None),
        (None, None),
        ([1], None),
    ],
)
def test_times_are_seconds_in_utc(timestamp: Any, expected: dt.datetime | None) -> None:
    facts = read_takeout(json.dumps({"photoTakenTime": {"timestamp": timestamp}}).encode())
    assert facts is not None
    assert facts.taken_at_utc == expected


@pytest.mark.parametrize(
    "data", [b"{}", b"[]", b"1", b'"x"', b'{"title": "Photos from 2018"}', b'[{"SourceFile": "a.jpg"}]', b"null"]
)
def test_another_json_says_nothing(data: bytes) -> None:
    assert read_takeout(data) is None
    assert read_sidecar(data, "takeout").is_another


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 100,
        b'{"photoTakenTime": ',
        b"[" * 100_000,
        b'{"geoData":' * 50_000,
        b" " * (MAX_JSON_BYTES + 1),
        b'{"geoData": {"latitude": ' + b"9" * 5000 + b"}}",
    ],
)
def test_a_damaged_or_hostile_json_is_refused(data: bytes) -> None:
    with pytest.raises(PhotoError, match="JSON"):
        read_sidecar(data, "takeout")


@pytest.mark.parametrize(
    "value", [[], {}, "x", 1, None, {"latitude": {}, "longitude": []}, {"latitude": "x", "longitude": 10**400}]
)
def test_odd_values_say_nothing(value: Any) -> None:
    found = dict.fromkeys(("geoData", "geoDataExif", "photoTakenTime", "title", "description"), value)
    recorded = read_sidecar(json.dumps(found).encode(), "takeout").recorded
    assert (recorded.lat_deg, recorded.taken_at_utc, recorded.by) == (None, None, None)


def test_an_xmp_sidecar_is_its_owners_word() -> None:
    recorded = read_sidecar(xmp_sidecar(48.5, -11.25), "xmp").recorded
    assert (recorded.lat_deg, recorded.lon_deg) == (pytest.approx(48.5), pytest.approx(-11.25))
    assert recorded.by == RecordedBy.SIDECAR
    assert read_sidecar(xmp_sidecar(), "xmp").recorded == Recorded()


@pytest.mark.parametrize("data", [b"", b"  \n", b"<x:xmpmeta", b"no XML", b"\xff\xd8\xff\xe0", xmp_sidecar(1, 2)[:-60]])
def test_a_damaged_xmp_sidecar_is_refused(data: bytes) -> None:
    with pytest.raises(PhotoError, match="XMP"):
        read_sidecar(data, "xmp")


def exported(folder: Path, **others: bytes) -> bytes:
    """Return the sidecar of a photo after our export, into what another program had written if given."""
    uri = str(folder / "a.jpg")
    storage.write_bytes(uri, china_jpeg())
    for name, data in others.items():
        storage.write_bytes(str(folder / f"a.jpg.{name}"), data)
    place: dict[str, Any] = {
        schema.REGION: None,
        schema.PLACE: None,
        schema.COUNTRY_CODE: "FR",
        schema.COUNTRY: "France",
        schema.COUNTRY_PROBABILITY: 0.9,
    }
    row = located_row(uri, 10.0, 20.0, storage.head(uri).etag, **place, recorded_lat_deg=None, recorded_lon_deg=None)
    Sidecars(None, None, undo=False, is_dry=False)(row)
    return storage.read_bytes(f"{uri}.xmp")


def test_our_own_prediction_is_nobodys_word(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    alone, added = exported(tmp_path), exported(tmp_path / "new", xmp=xmp_sidecar(caption="A church"))
    assert b"GPSLatitude" in alone
    assert read_sidecar(alone, "xmp").recorded == Recorded()
    assert read_sidecar(added, "xmp").recorded == Recorded(caption="A church")


def test_our_prediction_that_another_program_wrote_anew_is_none_either(tmp_path: Path) -> None:
    rewritten = exported(tmp_path).replace(b"10,", b"10, ")
    assert ours.without_ours(rewritten) == rewritten
    recorded = read_sidecar(rewritten, "xmp").recorded
    assert (recorded.lat_deg, recorded.country) == (None, None)
    set_by_hand = xmp_sidecar(48.5, 2.5).replace(b"<rdf:RDF", f'<rdf:RDF xmlns:g="{ours.NAMESPACE}"'.encode())
    assert read_sidecar(set_by_hand, "xmp").recorded.lat_deg == pytest.approx(48.5)


def test_what_a_photo_lacks_comes_from_the_first_that_has_it() -> None:
    own = Recorded(taken_at=dt.datetime(2018, 1, 1))
    xmp = Recorded(lat_deg=10.0, lon_deg=20.0, by=RecordedBy.SIDECAR, keywords=("a",))
    takeout = Recorded(10.0, 21.0, RecordedBy.TAKEOUT, taken_at_utc=TAKEN, utc_by=UtcBy.TAKEOUT, caption="C")
    found = completed(own, [xmp, takeout])
    assert (found.lat_deg, found.lon_deg, found.by) == (10.0, 20.0, "sidecar")
    assert found.apart_km == pytest.approx(109.5, abs=0.1)
    assert (found.taken_at, found.taken_at_utc, found.utc_by) == (own.taken_at, TAKEN, "takeout")
    assert (found.caption, found.keywords) == ("C", ("a",))
    camera = Recorded(10.0, 20.0, RecordedBy.EXIF, apart_km=500.0)
    assert completed(camera, [takeout]).apart_km == 500.0
    assert completed(camera, [takeout]).by == "exif"
    assert completed(own, []) == own
