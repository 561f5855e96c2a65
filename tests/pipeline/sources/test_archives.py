"""Photos in tar and zip archives are listed from headers and read one by one; whatever is wrong says what."""

from __future__ import annotations

import contextlib
import io
import os
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import schema, storage
from pipeline.read import archive_members
from pipeline.schema import PhotoError
from pipeline.sources import archives
from pipeline.sources.manifest import read_manifest

LIMIT_BYTES = 1 << 20
ODD_NAMES = [
    "a b.jpg",
    "../../etc/passwd",
    "/absolute.jpg",
    "x//y/./z.jpg",
    "new\nline\t#1%.jpg",
    "ü 日.jpg",
    "n" * 5000,
    "d/" * 200 + "x.jpg",
]


def tar_of(members: list[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=kind) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


def zip_of(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return data.getvalue()


def listed(source: str) -> list[dict[str, object]]:
    return pa.Table.from_batches(list(read_manifest(source)), schema=schema.MANIFEST).to_pylist()


def photo(row: dict[str, object], max_bytes: int = LIMIT_BYTES) -> bytes:
    columns = (schema.CONTAINER_URI, schema.OFFSET_BYTES, schema.STORED_BYTES, schema.CONTAINER_ETAG)
    return archive_members.read_member(*(row[name] for name in columns), max_bytes)  # type: ignore[arg-type]


def contents(source: str) -> dict[str, bytes]:
    return {str(row[schema.URI]): photo(row) for row in listed(source)}


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_every_member_of_a_tar_is_read_as_itself(tmp_path: Path, kind: int) -> None:
    names = [name for name in ODD_NAMES if kind != tarfile.USTAR_FORMAT or len(name) < 100]
    path = f"{tmp_path}/x.tar"
    storage.write_bytes(path, tar_of([(name, name.encode()) for name in names], kind))
    assert contents(path) == {f"{path}#{name}": name.encode() for name in names}
    (first, *_) = listed(path)
    entry = storage.head(path)
    assert first[schema.PHOTO_ID] == schema.photo_id(str(first[schema.URI]))
    assert (first[schema.CONTAINER_URI], first[schema.CONTAINER_ETAG]) == (path, entry.etag)
    assert str(first[schema.ETAG]).startswith(entry.etag)
    assert first[schema.SIZE_BYTES] == first[schema.STORED_BYTES] == len(names[0])
    assert os.listdir(tmp_path) == ["x.tar"]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_member_of_a_zip_is_read_as_itself(tmp_path: Path, method: int) -> None:
    path = f"{tmp_path}/X.ZIP"
    storage.write_bytes(path, zip_of([(name, name.encode() * 100) for name in ODD_NAMES], method))
    assert contents(path) == {f"{path}#{name}": name.encode() * 100 for name in ODD_NAMES}
    assert [row[schema.SIZE_BYTES] for row in listed(path)] == [len(name.encode()) * 100 for name in ODD_NAMES]


def test_names_that_are_no_utf8_and_links_and_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "photos").mkdir()
    with open(os.path.join(os.fsencode(tmp_path), b"photos/caf\xe9.jpg"), "wb") as file:
        file.write(b"x")
    (tmp_path / "photos" / "link.jpg").symlink_to("elsewhere")
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        archive.add(tmp_path / "photos", "photos")
    (row,) = listed(f"{tmp_path}/x.tar")
    assert row[schema.URI] == f"{tmp_path}/x.tar#photos/caf\\xe9.jpg"
    assert photo(row) == b"x"
    assert "x.tar: 1 links and devices in it are no photos" in caplog.text


def test_a_folder_and_a_link_in_a_zip_are_no_photos(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    link = zipfile.ZipInfo("link.jpg")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("folder/", b"")
        archive.writestr(link, b"a.jpg")
        archive.writestr("a.jpg", b"x")
    assert list(contents(f"{tmp_path}/x.zip").values()) == [b"x"]
    assert "1 links in it are no photos" in caplog.text


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("pack", "name"), [(tar_of, "x.tar"), (zip_of, "x.zip")])
def test_of_two_members_of_one_name_the_later_one_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pack: Callable[[list[tuple[str, bytes]]], bytes], name: str
) -> None:
    storage.write_bytes(f"{tmp_path}/{name}", pack([("a", b"old"), ("b", b"other"), ("a", b"new")]))
    assert contents(f"{tmp_path}/{name}") == {f"{tmp_path}/{name}#b": b"other", f"{tmp_path}/{name}#a": b"new"}
    assert "1 members have the name of a later one" in caplog.text


def test_a_zip_that_was_written_to_a_pipe_and_with_large_file_fields(tmp_path: Path) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: object) -> int:
            raise io.UnsupportedOperation

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            info = zipfile.ZipInfo(f"{method}.jpg")
            info.compress_type = method
            with archive.open(info, "w", force_zip64=True) as file:
                file.write(b"bytes" * 100)
    storage.write_bytes(f"{tmp_path}/x.zip", pipe.getvalue())
    assert list(contents(f"{tmp_path}/x.zip").values()) == [b"bytes" * 100] * 2


@pytest.mark.parametrize("extra_bytes", [28, 600, 60_000])
def test_a_local_header_that_is_longer_than_the_directory_says(tmp_path: Path, extra_bytes: int) -> None:
    extra = struct.pack("<HH", 0x7777, extra_bytes - 4) + bytes(extra_bytes - 4)
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, zlib.crc32(b"photo"), 5, 5, 1, len(extra))
    directory = struct.pack(
        "<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, zlib.crc32(b"photo"), 5, 5, 1, 0, 0, 0, 0, 0, 0
    )
    body, directory = local + b"a" + extra + b"photo", directory + b"a"
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(directory), len(body), 0)
    storage.write_bytes(f"{tmp_path}/x.zip", body + directory + end)
    assert list(contents(f"{tmp_path}/x.zip").values()) == [b"photo"]


def test_a_zip_that_grows_keeps_its_members_versions(tmp_path: Path) -> None:
    path = f"{tmp_path}/x.zip"
    storage.write_bytes(path, zip_of([("a", b"1")]))
    before = listed(path)[0]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b", b"2")
    after = listed(path)[0]
    assert after[schema.ETAG] == before[schema.ETAG]
    assert after[schema.CONTAINER_ETAG] != before[schema.CONTAINER_ETAG]
    with pytest.raises(storage.ChangedError):
        photo(before)


def failure(row: dict[str, object], max_bytes: int = LIMIT_BYTES) -> str:
    with pytest.raises(PhotoError) as caught:
        photo(row, max_bytes)
    return f"{caught.value.code}: {caught.value.message}"


def patched(path: str, offset: int, data: bytes) -> dict[str, object]:
    """Overwrite part of an archive, as its first row knows it in its new version."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)
    return listed(path)[0]


def test_a_photo_that_can_not_be_had_from_a_zip_says_why(tmp_path: Path) -> None:
    path, noise = f"{tmp_path}/x.zip", random.Random(0).randbytes(1000)
    storage.write_bytes(path, zip_of([("bomb", bytes(50_000_000))]))
    assert failure(listed(path)[0]) == "too_large: more than the limit of 1048576 bytes"
    storage.write_bytes(path, zip_of([("a", noise)], zipfile.ZIP_STORED))
    assert failure(listed(path)[0], 999).startswith("too_large")
    assert photo(listed(path)[0], 1000) == noise
    assert failure(listed(path)[0] | {schema.STORED_BYTES: 10_000_000}).startswith("too_large: 10000000 bytes")
    assert failure(listed(path)[0] | {schema.STORED_BYTES: 9000}).startswith("truncated")
    assert failure(patched(path, 200, b"changed")) == "corrupt: its CRC-32 in the archive is another"
    assert failure(patched(path, 6, b"\1")).startswith("unsupported_format: encrypted")
    assert failure(patched(path, 0, b"XX")).startswith("corrupt: its archive has no member")
    storage.write_bytes(path, zip_of([("a", b"abc" * 1000)]))
    assert failure(patched(path, 31, b"\xff\xff\xff")).startswith("corrupt: its compressed bytes")
    assert failure(listed(path)[0] | {schema.STORED_BYTES: 36}).startswith(("corrupt", "truncated"))
    for method, name in ((zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "lzma")):
        storage.write_bytes(path, zip_of([("a", b"abc")], method))
        assert failure(listed(path)[0]).startswith(f"unsupported_format: compressed by method {method} ({name})")


def test_a_photo_that_can_not_be_had_from_a_tar_says_why(tmp_path: Path) -> None:
    path = f"{tmp_path}/x.tar"
    storage.write_bytes(path, tar_of([("a", b"12345"), ("empty", b"")]))
    row, empty = listed(path)
    assert photo(empty) == b""
    assert failure(row, 4) == "too_large: 5 bytes in its archive, the limit is 4"
    assert failure(row | {schema.STORED_BYTES: 100_000}).startswith("truncated")
    os.unlink(path)
    with pytest.raises(FileNotFoundError):
        photo(row)


def damaged_archives() -> dict[str, tuple[str, bytes]]:
    tar, packed = tar_of([("a", b"1" * 3000), ("b", b"2" * 3000)]), zip_of([("a", b"1")])
    huge_header = tarfile.TarInfo("x")
    huge_header.type, huge_header.size = tarfile.XHDTYPE, 1 << 40
    negative = bytearray(tar[:512])
    negative[124:136] = b"\xff" * 12
    negative[148:156] = b"%06o\0 " % (sum(negative[:148]) + 256 + sum(negative[156:]))
    longname = tarfile.TarInfo("x")
    longname.type = tarfile.GNUTYPE_LONGNAME
    absurd_end = bytearray(packed)
    absurd_end[-10:-6] = struct.pack("<I", 0x7FFFFFFF)
    return {
        "empty.tar": ("damaged", b""),
        "text.tar": ("damaged", b"no archive " * 100),
        "cut.tar": ("it is cut: member 'b'", tar[:5000]),
        "cut-header.tar": ("damaged", tar[:3800]),
        "garbage.tar": ("what is at byte 3584 is no member", tar[:3584] + b"garbage!" * 64 + tar[4096:]),
        "twice.tar": ("is no member, and not the end", tar + tar),
        "header.tar": ("claims a header of", huge_header.tobuf(tarfile.GNU_FORMAT) + bytes(100_000)),
        "negative.tar": ("damaged", bytes(negative) + bytes(4096)),
        "nested.tar": ("damaged", longname.tobuf() * 3000),
        "zip.tar": ("damaged", packed),
        "empty.zip": ("damaged", b""),
        "text.zip": ("damaged", b"no archive " * 100),
        "cut.zip": ("damaged", packed[:-5]),
        "tar.zip": ("damaged", tar),
        "absurd.zip": ("damaged", bytes(absurd_end)),
    }


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", damaged_archives())
def test_a_damaged_archive_says_so(tmp_path: Path, name: str) -> None:
    message, data = damaged_archives()[name]
    storage.write_bytes(f"{tmp_path}/{name}", data)
    with pytest.raises(ValueError, match=name) as caught:
        archives.list_members(storage.head(f"{tmp_path}/{name}"))
    assert message in str(caught.value)


@pytest.mark.parametrize("name", damaged_archives())
def test_a_damaged_archive_is_a_problem_and_its_whole_members_are_photos(tmp_path: Path, name: str) -> None:
    message, data = damaged_archives()[name]
    storage.write_bytes(f"{tmp_path}/{name}", data)
    for good in ("a.tar", "zz.tar", "zz.zip"):
        storage.write_bytes(f"{tmp_path}/{good}", (zip_of if good.endswith("zip") else tar_of)([("a", b"good")]))
    whole = {"cut.tar": ["a"], "cut-header.tar": ["a"], "garbage.tar": ["a"], "twice.tar": ["a", "b"]}
    listing = read_manifest(f"{tmp_path}/*.{name[-3:]}", is_alone=False)
    found = [uri for batch in listing for uri in batch.column(schema.URI).to_pylist()]
    good = ["a.tar#a", "zz.tar#a"] if name.endswith("tar") else ["zz.zip#a"]
    assert sorted(found) == sorted(
        f"{tmp_path}/{each}" for each in [*good, *(f"{name}#{m}" for m in whole.get(name, []))]
    )
    (problem,) = listing.search.problems
    assert (problem.kind, problem.uri) == ("archive", f"{tmp_path}/{name}")
    assert message in problem.reason
    alone = read_manifest(f"{tmp_path}/{name}")
    if name in whole:
        assert sum(batch.num_rows for batch in alone) == len(whole[name])
    else:
        with pytest.raises(ValueError, match="can't be listed"):
            list(alone)


def test_archives_with_flipped_bytes_are_listed_or_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    for name, pack in (("x.tar", tar_of), ("x.zip", zip_of)):
        whole = pack([(f"{index}", b"12" * 300) for index in range(5)])
        for _ in range(200):
            data = bytearray(whole)
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            storage.write_bytes(f"{tmp_path}/{name}", bytes(data))
            with contextlib.suppress(ValueError):
                for row in listed(f"{tmp_path}/{name}"):
                    with contextlib.suppress(PhotoError):
                        photo(row)


@pytest.mark.parametrize("name", ["x.tar.gz", "x.TGZ", "x.tar.zst", "x.7z"])
def test_an_archive_of_another_kind_says_what_to_do(tmp_path: Path, name: str) -> None:
    storage.write_bytes(f"{tmp_path}/{name}", b"")
    with pytest.raises(ValueError, match=r"unpack it, or repack it as plain \.tar"):
        listed(f"{tmp_path}/{name}")


def test_a_tar_without_an_end_mark_is_listed_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage.write_bytes(f"{tmp_path}/x.tar", tar_of([("a", b"1")])[:1024])
    assert list(contents(f"{tmp_path}/x.tar").values()) == [b"1"]
    assert "x.tar has no end mark" in caplog.text


def check_shards(folder: str) -> None:
    expected = {}
    for index in range(12):
        path = f"{folder}/{index % 2}/shard-{index:03d}.tar"
        members = [(f"{index}/{name}.jpg", bytes([index]) * name * 1000) for name in range(6)]
        storage.write_bytes(path, tar_of(members))
        expected |= {f"{path}#{name}": data for name, data in members}
    storage.write_bytes(f"{folder}/readme.txt", b"")
    storage.write_bytes(f"{folder}/more.zip", zip_of([("z.jpg", b"z" * 5000)]))
    assert [row[schema.URI] for row in listed(f"{folder}/*.tar")] == sorted(expected, key=lambda uri: uri.split("#")[0])
    assert contents(f"{folder}/*.tar") == expected
    assert contents(f"{folder}/*.zip") == {f"{folder}/more.zip#z.jpg": b"z" * 5000}


def test_all_archives_of_a_folder(tmp_path: Path) -> None:
    check_shards(str(tmp_path))
    listing = read_manifest(f"{tmp_path}/*.tar", include=["3/*.jpg", "4/"], exclude=["*/[45].JPG"])
    uris = [uri for batch in listing for uri in batch.column(schema.URI).to_pylist()]
    assert len(uris) == 8
    assert listing.search.excluded == 64


@pytest.mark.s3
def test_all_archives_of_a_prefix(s3_bucket: str) -> None:
    check_shards(f"s3://{s3_bucket}/archives")


def test_no_archives_say_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no photos in"):
        listed(f"{tmp_path}/*.tar")
    storage.write_bytes(f"{tmp_path}/x.tar", tar_of([]))
    with pytest.raises(ValueError, match="no photos in"):
        listed(f"{tmp_path}/x.tar")
    storage.write_bytes(f"{tmp_path}/folder.tar/a.jpg", b"")
    assert [row[schema.URI] for row in listed(f"{tmp_path}/folder.tar")] == [f"{tmp_path}/folder.tar/a.jpg"]
