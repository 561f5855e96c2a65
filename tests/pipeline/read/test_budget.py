"""A reading process holds a budget of bytes, whatever an archive holds: films, discs, bombs, photos of unknown size."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline import schema, storage
from pipeline.decode.photo import DecodeTarget
from pipeline.read import archive_members
from pipeline.read.budget import BytesInFlight
from pipeline.read.fetch import FetchSettings
from pipeline.read.reader import Reader, ReaderSettings
from pipeline.sources.manifest import read_manifest
from tests.support.photo_samples import china_image, china_jpeg, encode, flower_jpeg

TARGET = DecodeTarget(32, 36)
ROOT = Path(__file__).parents[3]


def listing(source: Path) -> pa.Table:
    return pa.Table.from_batches(list(read_manifest(str(source))), schema=schema.MANIFEST)


def without_sizes(plan: pa.Table) -> pa.Table:
    index = plan.schema.get_field_index(schema.SIZE_BYTES)
    return plan.set_column(index, plan.schema.field(index), pa.nulls(plan.num_rows, pa.int64()))


def codes(table: pa.Table) -> dict[str, str | None]:
    names = (name.rsplit("/", 1)[-1] for name in table.column(schema.URI).to_pylist())
    return dict(zip(names, table.column(schema.ERROR_CODE).to_pylist(), strict=True))


# ---- the budget


def test_photos_are_begun_while_they_fit_and_a_larger_one_alone() -> None:
    budget = BytesInFlight(100)
    assert budget.fits(1000)
    first = budget.begin(60)
    assert budget.fits(40)
    assert not budget.fits(41)
    second = budget.begin(40)
    assert not second.has_grown(41)
    assert second.has_grown(30)
    assert first.has_grown(1000), "the first one waits for nobody"
    first.end()
    assert second.has_grown(1000), "now it is the first"
    assert not budget.fits(1)
    second.end()
    assert budget.fits(1000)


@pytest.mark.parametrize("end", ["the first one's end", "the reader's end"])
def test_nobody_waits_for_ever(end: str) -> None:
    budget = BytesInFlight(100)
    first, second = budget.begin(60), budget.begin(10)
    waiting = threading.Thread(target=second.wait_for, args=(90,))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    first.end() if end == "the first one's end" else budget.close()
    waiting.join(10)
    assert not waiting.is_alive()


# ---- a reader


@pytest.mark.parametrize("is_listed", [True, False])
def test_no_more_is_held_than_the_budget_and_rows_keep_their_order(
    is_listed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of photos of unknown size it may be one more: who comes first is never kept waiting."""
    small, large = china_jpeg(), encode(china_image().resize((900, 600)), "bmp")  # 195 kB and 1.6 MB
    files = [large if index % 5 == 3 else small for index in range(30)]
    for index, data in enumerate(files):
        (tmp_path / f"{index:02d}").write_bytes(data)
    budget_bytes = 1_000_000
    held, most = 0, 0
    lock = threading.Lock()
    real = storage.read

    def watched(uri: str, *arguments: Any) -> storage.Blob:
        nonlocal held, most
        blob = real(uri, *arguments)
        with lock:
            held += len(blob.data)
            most = max(most, held)
        time.sleep(0.002)
        return blob

    monkeypatch.setattr(storage, "read", watched)

    def note(rows: list[dict[str, Any]]) -> None:
        nonlocal held
        with lock:
            held -= sum(row[schema.SIZE_BYTES] for row in rows)

    plan = listing(tmp_path)
    reader = Reader(ReaderSettings(TARGET, fetch=FetchSettings(budget_bytes=budget_bytes)))
    table = reader(plan if is_listed else without_sizes(plan), note)
    assert table.column(schema.URI).to_pylist() == plan.column(schema.URI).to_pylist()
    assert table.column(schema.ERROR_CODE).null_count == 30
    assert most <= (len(large) if is_listed else budget_bytes + len(large))
    assert most > 2 * len(small), "one at a time would be slow"


def test_small_photos_are_fetched_as_many_at_once_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(40):
        (tmp_path / f"{index:02d}").write_bytes(china_jpeg())
    for plan in (listing(tmp_path), without_sizes(listing(tmp_path))):
        together = threading.Barrier(16)
        real = storage.read

        def slow(uri: str, *arguments: Any, real: Any = real, together: threading.Barrier = together) -> storage.Blob:
            if int(uri[-2:]) < 16:
                together.wait(60)
            return real(uri, *arguments)  # type: ignore[no-any-return]

        with monkeypatch.context() as patched:
            patched.setattr(storage, "read", slow)
            assert Reader(ReaderSettings(TARGET))(plan).column(schema.ERROR_CODE).null_count == 40


def test_a_bug_leaves_no_fetch_waiting(tmp_path: Path) -> None:
    """Else its thread would keep the process from ending."""
    for index in range(8):
        (tmp_path / f"{index}").write_bytes(china_jpeg())
    reader = Reader(ReaderSettings(TARGET, fetch=FetchSettings(budget_bytes=1)))

    def broken(rows: list[dict[str, Any]]) -> None:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        reader(without_sizes(listing(tmp_path)), broken)
    ended = threading.Thread(target=reader._fetchers.shutdown)
    ended.start()
    ended.join(20)
    assert not ended.is_alive()


# ---- archives that hold other things


def sparse(path: Path, size_bytes: int, head: bytes = b"") -> None:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size_bytes)


def write_flood(folder: Path) -> dict[str, str | None]:
    """Write films, discs and documents of 400 MB, and broken raw files, beside photos; return what is right of each."""
    folder.mkdir()
    heads = {
        "film.mov": b"\0\0\0\x14ftypqt  \0\0\0\0qt  ",
        "film.avi": b"RIFF\0\0\0\x18AVI LIST",
        "disc.iso": b"",
        "book.pdf": b"%PDF-1.7\n",
        "raw.cr2": b"II*\0\x10\0\0\0CR\2\0",
    }
    large = {
        "wide.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0),
        "wide.bmp": b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + struct.pack("<Iii", 40, 30_000, -30_000),
        "wide.webp": b"RIFF\0\0\0\x18WEBPVP8X\n\0\0\0" + bytes(4) + b"\xff\x3f\0" * 2,
        "wide.gif": b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b",",
        "wide.tif": b"II*\0\x08\0\0\0\2\0"
        + struct.pack("<HHII", 256, 4, 1, 1)
        + struct.pack("<HHII", 257, 4, 1, 1 << 30),
    }
    for name, head in (heads | large).items():
        for number in range(4):
            sparse(folder / f"{number} {name}", (64 if name == "raw.cr2" else 400) << 20, head)
    photos = {"a good.jpg": china_jpeg(), "m good.jpg": flower_jpeg(), "z good.png": encode(china_image(), "png")}
    for name, data in photos.items():
        (folder / name).write_bytes(data)
    right: dict[str, str | None] = dict.fromkeys(photos)
    right |= {f"{number} {name}": "not_a_photo" for name in heads for number in range(4)}
    right |= {f"{number} raw.cr2": "truncated" for number in range(4)}
    return right | {f"{number} {name}": "too_large" for name in large for number in range(4)}


@pytest.mark.parametrize("is_listed", [True, False])
def test_films_and_discs_cost_their_first_bytes(is_listed: bool, tmp_path: Path) -> None:
    """Read whole, they would be 16 GB; only what begins as a camera raw file, which is a photo, is."""
    right = write_flood(tmp_path / "photos")
    plan = listing(tmp_path / "photos")
    table = Reader(ReaderSettings(TARGET))(plan if is_listed else without_sizes(plan))
    assert codes(table) == right
    whole = table.filter(pc.is_valid(table.column(schema.CONTENT_HASH))).column(schema.URI).to_pylist()
    assert {name for name in whole if not name.endswith(("good.jpg", "good.png", "raw.cr2"))} == set()
    wide = next(row for row in table.to_pylist() if row[schema.URI].endswith("0 wide.png"))
    assert (wide[schema.FORMAT], wide[schema.WIDTH_PX]) == ("png", 100_000)
    assert "100000 × 100000 pixels" in wide[schema.ERROR_MESSAGE]


def test_a_header_far_back_is_no_reason_to_refuse(tmp_path: Path) -> None:
    """A TIFF's directory behind its picture, a JPEG's frame behind large profiles, a HEIC's sizes."""
    profile = b"\xff\xe2" + struct.pack(">H", 65_535) + b"ICC_PROFILE\0\1\xff" + bytes(65_519)
    picture = china_image()
    files = {
        "directory last.tif": encode(picture, "tiff"),
        "profiles.jpg": b"\xff\xd8" + profile * 3 + china_jpeg()[2:],
        "comment.gif": encode(picture, "gif")[:781]
        + b"!\xfe"
        + (b"\xff" + bytes(255)) * 300
        + b"\0"
        + encode(picture, "gif")[781:],
        "text.png": encode(picture, "png", icc_profile=os.urandom(100_000)),
        "a.heic": encode(picture, "heic", quality=95),
        "a.avif": encode(picture, "avif", quality=98, speed=9),
        "a.webp": encode(picture, "webp", lossless=True),
        "a.bmp": encode(picture, "bmp"),
    }
    for name, data in files.items():
        assert len(data) > 1 << 16, name
        (tmp_path / name).write_bytes(data)
    assert codes(Reader(ReaderSettings(TARGET))(listing(tmp_path))) == dict.fromkeys(files)


def zip_bomb(count: int, unpacked: bytes, zeros_bytes: int) -> bytes:
    """Return a zip of members that are all the same bytes of it, and unpack to `unpacked` and zeros."""
    packer, crc = zlib.compressobj(9, zlib.DEFLATED, -15), zlib.crc32(unpacked)
    packed = packer.compress(unpacked)
    for _ in range(zeros_bytes >> 20):
        packed += packer.compress(bytes(1 << 20))
        crc = zlib.crc32(bytes(1 << 20), crc)
    packed += packer.flush()
    sizes = (crc, len(packed), len(unpacked) + (zeros_bytes >> 20 << 20))
    body = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0, *sizes, 8, 0) + b"0000.jpg" + packed
    directory = b"".join(
        struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 0, *sizes, 8, 0, 0, 0, 0, 0, 0) + b"%04d.jpg" % index
        for index in range(count)
    )
    return body + directory + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)


WATCHED = """
import resource, sys
import pyarrow as pa
from pipeline.read.reader import Reader, ReaderSettings
from tests.pipeline.read.test_budget import TARGET, codes, listing
from pathlib import Path
plan = pa.concat_tables([listing(Path(source)) for source in sys.argv[1:]])
reader = Reader(ReaderSettings(TARGET))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(sorted(set(codes(reader(plan)).values()), key=str))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.parametrize(
    ("count", "head", "code"),
    [(64, china_jpeg()[:60_000], "corrupt"), (1, b"", "unsupported_format"), (1, china_jpeg()[:60_000], "too_large")],
    ids=["64 that overlap", "zeros", "a photo's head"],
)
def test_a_zip_that_unfolds_costs_its_rows_and_no_memory(count: int, head: bytes, code: str, tmp_path: Path) -> None:
    """500 MB in half a megabyte, which members may have in common."""
    (tmp_path / "bomb.zip").write_bytes(zip_bomb(count, head, 500 << 20))
    command = [sys.executable, "-c", WATCHED, str(tmp_path / "bomb.zip")]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert answer.returncode == 0, answer.stderr
    found, grown_mb = answer.stdout.splitlines()
    assert found == f"['{code}']"
    assert int(grown_mb) < 400


def test_a_refused_photo_is_not_held(tmp_path: Path) -> None:
    """Errors keep the frames they came through, and these what was read; several are decoded together."""
    for index in range(8):
        (tmp_path / f"{index}.zip").write_bytes(zip_bomb(1, china_jpeg()[:60_000] + os.urandom(1 << 20), 100 << 20))
    command = [sys.executable, "-c", WATCHED, *map(str, tmp_path.iterdir())]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert answer.returncode == 0, answer.stderr
    _, grown_mb = answer.stdout.splitlines()
    assert int(grown_mb) < 480, "two fit into the budget, and eight are 800 MB"


def test_members_that_share_bytes_are_told_from_neighbours() -> None:
    def member(uri: str, offset_bytes: int, container: str = "/a.zip") -> dict[str, Any]:
        place = {schema.CONTAINER_URI: container, schema.OFFSET_BYTES: offset_bytes, schema.STORED_BYTES: 100}
        return {schema.URI: uri} | place

    apart = [member("a", 0), member("b", 100), member("c", 50, "/b.zip"), member("d", 50, "/c.tar"), member("a", 0)]
    assert archive_members.overlapping(apart) == set()
    assert archive_members.overlapping([*apart, member("e", 199)]) == {"b", "e"}
    assert archive_members.overlapping([member(name, 0) for name in "xyz"]) == set("xyz")
    assert archive_members.overlapping([{schema.URI: "/a.jpg", schema.CONTAINER_URI: None}]) == set()


def test_large_members_of_a_tar_are_looked_at_first(tmp_path: Path) -> None:
    sparse(tmp_path / "film.mov", 100 << 20)
    (tmp_path / "good.jpg").write_bytes(china_jpeg())
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "film.mov", "film.mov")
        tar.add(tmp_path / "good.jpg", "good.jpg")
    table = Reader(ReaderSettings(TARGET))(listing(tmp_path / "a.tar"))
    assert codes(table) == {"a.tar#film.mov": "not_a_photo", "a.tar#good.jpg": None}
    assert table.column(schema.CONTENT_HASH)[0].as_py() is None, "it was read whole"


@pytest.mark.s3
def test_what_is_no_photo_is_not_read_to_its_end_on_s3(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.storage import object_store

    uri = f"s3://{s3_bucket}/budget/film.mov"
    storage.write_bytes(uri, bytes(30 << 20))
    come_bytes = 0
    real = object_store._in_time

    def counted(uri: str, chunks: Any) -> Any:
        nonlocal come_bytes
        for chunk in real(uri, chunks):
            come_bytes += len(chunk)
            yield chunk

    monkeypatch.setattr(object_store, "_in_time", counted)
    plan = pa.Table.from_pylist([{schema.PHOTO_ID: schema.photo_id(uri), schema.URI: uri}], schema=schema.MANIFEST)
    assert list(codes(Reader(ReaderSettings(TARGET))(plan)).values()) == ["not_a_photo"]
    assert come_bytes < 2 << 20


def test_intake_is_asked_once_with_the_head_and_the_size(tmp_path: Path) -> None:
    for size_bytes, expected in ((storage.HEAD_BYTES, []), (storage.HEAD_BYTES + 1, [(storage.HEAD_BYTES, 65_537)])):
        (tmp_path / "a").write_bytes(os.urandom(size_bytes))
        asked: list[tuple[int, int]] = []
        take: Callable[[bytes, int], None] = lambda head, size, asked=asked: asked.append((len(head), size))  # type: ignore[misc] # noqa: E731
        assert len(storage.read(str(tmp_path / "a"), None, take).data) == size_bytes
        assert asked == expected
