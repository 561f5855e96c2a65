"""Files that are no photos: told by their first bytes, wherever they lie, and no more of them is fetched."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import schema, storage
from pipeline.decode.photo import DecodeLimits, DecodeTarget
from pipeline.read.reader import Reader, ReaderSettings
from pipeline.sources import archives
from tests.pipeline.read.test_fetch import faulty
from tests.pipeline.read.test_reader import plan_of, put
from tests.support.photo_samples import china_jpeg

TARGET = DecodeTarget(image_size_px=32, resize_px=36)


@pytest.fixture
def reader() -> Reader:
    return Reader(ReaderSettings(TARGET))


def members(archive: str) -> pa.Table:
    """Return an archive's members as they are planned."""
    container = storage.head(archive)
    rows = []
    for row in archives.list_members(container).to_pylist():
        uri = f"{archive}#{row.pop(archives.MEMBER)}"
        own = {schema.PHOTO_ID: schema.photo_id(uri), schema.URI: uri}
        rows.append(own | {schema.CONTAINER_URI: archive, schema.CONTAINER_ETAG: container.etag} | row)
    return pa.Table.from_pylist(rows, schema=schema.MANIFEST)


def test_what_is_no_photo_says_what_it_is_and_has_no_hash(tmp_path: Path, reader: Reader) -> None:
    video = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(1 << 20)
    others = {"a.json": (b'{"a": 1}', "json"), "large.json": (b"[1, 2]" * 90_000, "json"), "a.mp4": (video, "mp4")}
    uris = [put(tmp_path, name, data) for name, (data, _) in others.items()]
    named_photo = put(tmp_path, "film.jpg", video)
    rows = reader(plan_of(*uris, named_photo, put(tmp_path, "photo.json", china_jpeg()))).to_pylist()
    assert [row[schema.ERROR_CODE] for row in rows] == [*["not_a_photo"] * 3, "unsupported_format", None]
    assert [row[schema.FORMAT] for row in rows] == ["json", "json", "mp4", "mp4", "jpeg"]
    for row in rows[:3]:
        assert row[schema.CONTENT_HASH] is row[schema.MEDIA] is row[schema.WIDTH_PX] is row[schema.PIXELS_HWC] is None


def test_of_what_is_too_large_only_what_may_be_no_photo_is_looked_into(tmp_path: Path) -> None:
    """A film is no photo, however large it is; a photo's first bytes would change nothing."""
    video = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(5000)
    uris = [put(tmp_path, name, data) for name, data in (("a.mp4", video), ("b.mp4", china_jpeg()), ("c.jpg", video))]
    reader = Reader(ReaderSettings(TARGET, DecodeLimits(max_bytes=1000)))
    for size_bytes in (5000, None):
        codes = reader(plan_of(*uris, size_bytes=size_bytes)).column(schema.ERROR_CODE).to_pylist()
        assert codes == ["not_a_photo", "too_large", "too_large"]


def test_in_archives_what_is_no_photo_is_skipped_too(tmp_path: Path) -> None:
    video = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(200_000)
    files = {"a.jpg": china_jpeg(), "a.jpg.json": b'{"a": 1}', "film.mp4": video, "film.jpg": video}
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    for limits in (DecodeLimits(), DecodeLimits(max_bytes=198_000)):
        expected = [None, "not_a_photo", "not_a_photo"]
        expected.append("unsupported_format" if limits.max_bytes > 200_000 else "too_large")
        for name in ("a.zip", "a.tar"):
            table = Reader(ReaderSettings(TARGET, limits))(members(f"{tmp_path}/{name}"))
            assert table.column(schema.ERROR_CODE).to_pylist() == expected


@pytest.mark.s3
def test_of_a_film_on_s3_its_first_bytes_come_and_no_more(s3_bucket: str) -> None:
    uri = f"s3://{s3_bucket}/skipped/film.mp4"
    storage.write_bytes(uri, b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(9 << 20))
    with faulty(s3_bucket, {}, folder="skipped") as proxy:
        (row,) = Reader(ReaderSettings(TARGET))(plan_of(uri, size_bytes=9 << 20)).to_pylist()
        assert proxy.tally["photo requests"] == 1
    assert (row[schema.ERROR_CODE], row[schema.FORMAT]) == ("not_a_photo", "mp4")
