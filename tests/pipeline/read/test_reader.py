"""Row for row, in order: a photo becomes pixels, or the one error code that says why not."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pytest
from blake3 import blake3

from pipeline import schema, storage
from pipeline.decode.photo import DecodeLimits, DecodeTarget, decode_photo
from pipeline.read import reader as reader_module
from pipeline.read.fetch import FetchSettings
from pipeline.read.reader import IsolatedReader, Reader, ReaderSettings
from tests.conftest import forget_s3_clients
from tests.pipeline.decode.test_carried import png, profile
from tests.pipeline.decode.test_xmp import POSITION, packet
from tests.support.photo_samples import (
    camera_jpeg,
    china_image,
    china_jpeg,
    encode,
    exif_block,
    flower_jpeg,
    png_bomb,
)

TARGET = DecodeTarget(image_size_px=32, resize_px=36)


def plan_of(*uris: str, etag: str | None = None, size_bytes: int | None = None) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                schema.PHOTO_ID: schema.photo_id(uri),
                schema.URI: uri,
                schema.ETAG: etag,
                schema.SIZE_BYTES: size_bytes,
            }
            for uri in uris
        ],
        schema=schema.MANIFEST,
    )


def put(folder: Path, name: str, data: bytes) -> str:
    storage.write_bytes(f"{folder}/{name}", data)
    return f"{folder}/{name}"


@pytest.fixture
def reader() -> Reader:
    return Reader(ReaderSettings(TARGET))


def test_rows_come_in_order_with_the_pixels_of_the_shared_decode(tmp_path: Path, reader: Reader) -> None:
    files = {f"{index} ü#.jpg": china_jpeg() if index % 3 else flower_jpeg() for index in range(40)}
    uris = [put(tmp_path, name, data) for name, data in files.items()]
    table = reader(plan_of(*uris))
    assert table.schema.equals(schema.READ)
    assert table.column(schema.URI).to_pylist() == uris
    for row, data in zip(table.to_pylist(), files.values(), strict=True):
        assert row[schema.PIXELS_HWC] == decode_photo(data, TARGET).pixels_HWC.tobytes()
        assert row[schema.CONTENT_HASH] == blake3(data).digest(length=16)
        assert (row[schema.SIZE_BYTES], row[schema.ERROR_CODE]) == (len(data), None)
        assert row[schema.ETAG] == storage.read(row[schema.URI]).etag
        assert (row[schema.FORMAT], row[schema.WIDTH_PX], row[schema.HEIGHT_PX]) == ("jpeg", 640, 427)


def test_what_a_photo_records_is_in_its_columns(tmp_path: Path) -> None:
    """Field cases xmp-gps-only, hour-24 and png-app1-profile, by way of the isolated decoder."""
    words = "<dc:subject><rdf:Bag><rdf:li>lac</rdf:li></rdf:Bag></dc:subject>"
    xmp = packet(POSITION + ' photoshop:City="Paris" exif:DateTimeOriginal="2019-07-14T12:00:00+02:00" ', words)
    exif = exif_block(41.9, 12.5, datetime(2020, 1, 2, 3, 4, 5))
    hour_24 = exif.replace(b"2020:01:02 03:04:05", b"2020:01:02 24:08:19")
    files = {
        "xmp.jpg": encode(china_image(), "jpeg", xmp=xmp),
        "both.jpg": encode(china_image(), "jpeg", xmp=xmp, exif=hour_24),
        "profile.png": png(profile("APP1", exif)),
        "nothing.jpg": china_jpeg(),
        "cut.jpg": encode(china_image(), "jpeg", xmp=xmp)[:9000],
    }
    plan = plan_of(*(put(tmp_path, name, data) for name, data in files.items()))
    with contextlib.closing(IsolatedReader(ReaderSettings(TARGET))) as reader:
        found = dict(zip(files, reader(plan).to_pylist(), strict=True))
    taken = (schema.TAKEN_AT, schema.TAKEN_AT_UTC, schema.TAKEN_AT_UTC_BY)
    utc = datetime(2019, 7, 14, 10, tzinfo=UTC)
    for name in ("xmp.jpg", "cut.jpg"):
        assert [found[name][column] for column in taken] == [datetime(2019, 7, 14, 12), utc, "offset_time"]
        assert [found[name][column] for column in schema.IPTC] == ["Paris", None, None, None, None, ["lac"]]
        assert found[name][schema.RECORDED_LAT_DEG] == pytest.approx(48.858333)
        assert (found[name][schema.RECORDED_BY], found[name][schema.RECORDED_APART_KM]) == ("xmp", None)
    assert found["cut.jpg"][schema.ERROR_CODE] == "truncated"
    assert found["both.jpg"][schema.TAKEN_AT] == datetime(2020, 1, 2, 0, 8, 19)
    assert found["both.jpg"][schema.RECORDED_APART_KM] == pytest.approx(1107, abs=3)
    for name in ("both.jpg", "profile.png"):
        assert found[name][schema.RECORDED_LAT_DEG] == pytest.approx(41.9)
        assert found[name][schema.RECORDED_BY] == "exif"
    assert {found["nothing.jpg"][column] for column in (*taken, *schema.RECORDED[:4], *schema.IPTC)} == {None}


def test_an_empty_table_is_an_empty_table(reader: Reader) -> None:
    table = reader(plan_of())
    assert (table.num_rows, table.schema) == (0, schema.READ)


def test_every_refusal_has_its_code_and_its_words(tmp_path: Path, reader: Reader) -> None:
    china = china_jpeg()
    png = encode(china_image(), "png")
    at = png.index(b"IDAT") + 8
    expected = {
        put(tmp_path, "empty.jpg", b""): "empty",
        put(tmp_path, "truncated.jpg", china[:60_000]): "truncated",
        put(tmp_path, "corrupt.png", png[:at] + bytes(100) + png[at + 100 :]): "corrupt",
        put(tmp_path, "text.jpg", b"This is text.\n"): "unsupported_format",
        put(tmp_path, "bomb.png", png_bomb()): "too_large",
        put(tmp_path, "good.txt", china): None,
        f"{tmp_path}/missing.jpg": "not_found",
        f"{tmp_path}/zero\0byte.jpg": "not_found",
        str(tmp_path): "unsupported_format",
    }
    os.mkfifo(tmp_path / "pipe")
    expected[f"{tmp_path}/pipe"] = "unsupported_format"
    table = reader(plan_of(*expected))
    found = dict(zip(table.column(schema.URI).to_pylist(), table.column(schema.ERROR_CODE).to_pylist(), strict=True))
    assert found == expected
    for row in table.to_pylist():
        assert (row[schema.PIXELS_HWC] is None) == (row[schema.ERROR_CODE] is not None) == bool(row["error_message"])


def test_what_is_listed_as_too_large_is_not_even_fetched(tmp_path: Path) -> None:
    uri = f"{tmp_path}/never-there.jpg"
    reader = Reader(ReaderSettings(TARGET, DecodeLimits(max_bytes=1000)))
    (row,) = reader(plan_of(uri, etag="v1", size_bytes=1001)).to_pylist()
    assert row[schema.ERROR_CODE] == "too_large"
    assert (row[schema.ETAG], row[schema.SIZE_BYTES]) == ("v1", 1001)
    (row,) = reader(plan_of(put(tmp_path, "grown.jpg", china_jpeg()), size_bytes=10)).to_pylist()
    assert row[schema.ERROR_CODE] == "too_large"


def test_what_the_header_said_is_kept_when_the_picture_fails(tmp_path: Path, reader: Reader) -> None:
    data = camera_jpeg(china_image(), orientation=6, lat_deg=48.5, lon_deg=-11.25)
    uris = [put(tmp_path, "cut.jpg", data[: len(data) // 2]), put(tmp_path, "bomb.png", png_bomb())]
    cut, bomb = reader(plan_of(*uris)).to_pylist()
    assert (cut[schema.ERROR_CODE], cut[schema.FORMAT]) == ("truncated", "jpeg")
    assert (cut[schema.WIDTH_PX], cut[schema.HEIGHT_PX]) == (640, 427)
    assert cut[schema.RECORDED_LAT_DEG] == pytest.approx(48.5)
    assert cut[schema.RECORDED_LON_DEG] == pytest.approx(-11.25)
    assert (bomb[schema.WIDTH_PX], bomb[schema.HEIGHT_PX]) == (20_000, 20_000)


def test_the_listed_version_is_what_the_next_listing_is_compared_with(tmp_path: Path, reader: Reader) -> None:
    uri = put(tmp_path, "a.jpg", china_jpeg())
    assert reader(plan_of(uri, etag="mine")).column(schema.ETAG).to_pylist() == ["mine"]
    assert reader(plan_of(uri)).column(schema.ETAG).to_pylist() == [storage.read(uri).etag]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TimeoutError("no answer"), "fetch_timeout"),
        (ConnectionResetError("reset"), "fetch_failed"),
        (PermissionError("no"), "forbidden"),
    ],
)
def test_troubles_of_fetching(monkeypatch: pytest.MonkeyPatch, error: OSError, code: str) -> None:
    reader = Reader(ReaderSettings(TARGET, fetch=FetchSettings(budget_s=0.2)))

    def failing(*_: object) -> storage.Blob:
        raise error

    monkeypatch.setattr(storage, "read", failing)
    (row,) = reader(plan_of("/a", etag="v1")).to_pylist()
    assert row[schema.ERROR_CODE] == code
    assert row[schema.ERROR_MESSAGE].endswith(str(error))


def test_a_bug_stops_the_table(tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = put(tmp_path, "a.jpg", china_jpeg())

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(reader_module, "decode_photo", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        reader(plan_of(uri))
    monkeypatch.undo()
    monkeypatch.setattr(storage, "read", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        reader(plan_of(uri))


def test_fetches_overlap_but_no_more_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    under_way, most, lock = 0, 0, threading.Lock()
    blob = storage.Blob(china_jpeg(), "v1")

    def slow(*_: object) -> storage.Blob:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.02)
        with lock:
            under_way -= 1
        return blob

    monkeypatch.setattr(storage, "read", slow)
    table = Reader(ReaderSettings(TARGET, concurrent_fetches=4))(plan_of(*(f"/{index}" for index in range(30))))
    assert table.column(schema.URI).to_pylist() == [f"/{index}" for index in range(30)]
    assert 2 <= most <= 4
    assert all(0.02 <= seconds < 5 for seconds in table.column(schema.FETCH_SECONDS).to_pylist())
    assert all(0 < seconds < 5 for seconds in table.column(schema.DECODE_SECONDS).to_pylist())


def test_pixels_are_what_the_engine_takes(tmp_path: Path, reader: Reader) -> None:
    (row,) = reader(plan_of(put(tmp_path, "a.jpg", china_jpeg()))).to_pylist()
    pixels_HWC = np.frombuffer(row[schema.PIXELS_HWC], np.uint8).reshape(32, 32, 3)
    assert pixels_HWC.std() > 10


def test_photos_are_told_of_while_others_are_still_to_come(tmp_path: Path, reader: Reader) -> None:
    """Else a block on a slow store would look like one that hangs."""
    uris = [put(tmp_path, f"{index}.jpg", china_jpeg()) for index in range(20)] + [str(tmp_path / "missing")]
    told: list[list[dict[str, Any]]] = []
    assert reader(plan_of(*uris), told.append).num_rows == 21
    assert [row[schema.URI] for rows in told for row in rows] == uris
    assert told[-1][-1][schema.ERROR_CODE] == "not_found"
    assert max(map(len, told)) <= reader_module._BATCH_PHOTOS


@pytest.mark.s3
def test_photos_on_s3_with_every_code_that_a_store_can_give(
    s3_bucket: str, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = f"s3://{s3_bucket}/reader"
    client = boto3.Session().client("s3", region_name="us-east-1")
    client.put_object(Bucket=s3_bucket, Key="reader/odd//a b%#.jpg", Body=china_jpeg())
    for name, data in (("empty", b""), ("good", china_jpeg())):
        storage.write_bytes(f"{folder}/{name}", data)
    uris = [f"{folder}/{name}" for name in ("odd//a b%#.jpg", "empty", "good", "missing")]
    uris.append("s3://graticule-no-such-bucket/a")
    table = reader(plan_of(*uris))
    assert table.column(schema.ERROR_CODE).to_pylist() == [None, "empty", None, "not_found", "fetch_failed"]

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    forget_s3_clients()
    try:
        codes = reader(plan_of(*uris[:3])).column(schema.ERROR_CODE).to_pylist()
    finally:
        monkeypatch.undo()
        forget_s3_clients()
    if codes == [None, "empty", None]:
        pytest.skip("this S3 server takes every secret (moto does)")
    assert codes == ["fetch_failed"] * 3  # the secret is at fault, and no photo
