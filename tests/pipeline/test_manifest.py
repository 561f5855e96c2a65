"""Each kind of source lists its photos; one that isn't what it says is a ValueError that names what to do."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema, storage
from pipeline.manifest import read_manifest


def listed(source: str | Path) -> pa.Table:
    return pa.Table.from_batches(list(read_manifest(str(source))), schema=schema.MANIFEST)


def uris(source: str | Path) -> list[str]:
    return listed(source).column(schema.URI).to_pylist()


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_folder_lists_every_file_with_its_version(tmp_path: Path) -> None:
    for name in ("b.txt", "sub/ü #1.jpg"):
        storage.write_bytes(f"{tmp_path}/{name}", b"123")
    rows = listed(tmp_path)
    assert rows.column(schema.URI).to_pylist() == [f"{tmp_path}/b.txt", f"{tmp_path}/sub/ü #1.jpg"]
    assert rows.column(schema.SIZE_BYTES).to_pylist() == [3, 3]
    for row in rows.to_pylist():
        assert row[schema.ETAG] == storage.read(row[schema.URI]).etag
        assert row[schema.PHOTO_ID] == schema.photo_id(row[schema.URI])


@pytest.mark.s3
def test_a_prefix_lists_every_object(s3_bucket: str) -> None:
    prefix = f"s3://{s3_bucket}/manifest-prefix"
    names = {f"{prefix}/a b.jpg", f"{prefix}/deep/100%.jpg"}
    for uri in names:
        storage.write_bytes(uri, b"12")
    storage.write_bytes(f"{prefix}-beside/c.jpg", b"")
    assert set(uris(prefix)) == names


@pytest.mark.s3
def test_a_manifest_on_s3_with_relative_names(s3_bucket: str) -> None:
    folder = f"s3://{s3_bucket}/manifest-relative"
    storage.write_bytes(f"{folder}/list.csv", b"path\na b.jpg\nS3A://other/c.jpg\n/local/d.jpg\n")
    assert uris(f"{folder}/list.csv") == [f"{folder}/a b.jpg", "s3://other/c.jpg", "/local/d.jpg"]


def test_batches_are_bounded(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "m.csv", [["uri"], *([f"/{index}"] for index in range(25_001))])
    sizes = [batch.num_rows for batch in read_manifest(str(path))]
    assert sum(sizes) == 25_001
    assert max(sizes) == 10_000


@pytest.mark.parametrize("name", ["uri", "path", "url"])
def test_parquet_with_versions(tmp_path: Path, name: str) -> None:
    columns = {"extra": [1, 2], name: ["/a", "s3://b/k"], "etag": ['"e1"', None], "size_bytes": pa.array([5, None])}
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    rows = listed(tmp_path / "m.parquet")
    assert rows.column(schema.URI).to_pylist() == ["/a", "s3://b/k"]
    assert rows.column(schema.ETAG).to_pylist() == ["e1", None]
    assert rows.column(schema.SIZE_BYTES).to_pylist() == [5, None]


def test_parquet_strings_of_every_kind(tmp_path: Path) -> None:
    for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()):
        column = pa.array(["/a", "/b", "/a"]).cast(kind)
        pq.write_table(pa.table({"uri": column}), tmp_path / "m.parquet")
        assert uris(tmp_path / "m.parquet") == ["/a", "/b", "/a"]  # duplicates too: the plan counts them


def test_csv_names_are_taken_as_they_stand(tmp_path: Path) -> None:
    names = ["/new\nline, comma.jpg", '/"quoted".jpg', "/ü.jpg", "/100%20.jpg", "/x#1.jpg"]
    path = write_csv(tmp_path / "m.csv", [["id", "uri", "size_bytes"], *(["1", name, "7"] for name in names)])
    assert uris(path) == names
    assert listed(path).column(schema.SIZE_BYTES).to_pylist() == [7] * len(names)


def test_csv_names_that_look_like_something_else(tmp_path: Path) -> None:
    names = ["007", "1e5", "2020-01-01", "true", "NA", "null", "nan"]
    path = write_csv(tmp_path / "m.csv", [["uri"], *([name] for name in names)])
    assert uris(path) == [f"{tmp_path}/{name}" for name in names]


def test_csv_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes("\ufeffuri\n/a\n".encode())
    assert uris(tmp_path / "m.csv") == ["/a"]


def test_names_are_relative_to_the_manifest_and_one_photo_has_one_name(tmp_path: Path) -> None:
    rows = [["uri"], ["a b.jpg"], ["sub/../a b.jpg"], [f"file://{tmp_path}/a%20b.jpg"], ["../beside.jpg"]]
    path = write_csv(tmp_path / "m.csv", rows)
    assert uris(path) == [f"{tmp_path}/a b.jpg"] * 3 + [f"{tmp_path.parent}/beside.jpg"]


def test_a_folder_that_is_called_like_a_manifest_is_a_folder(tmp_path: Path) -> None:
    storage.write_bytes(f"{tmp_path}/photos.csv/a.jpg", b"")
    assert uris(tmp_path / "photos.csv") == [f"{tmp_path}/photos.csv/a.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name\n/a\n", "has no column named uri or path or url; its columns are: name"),
        ("uri\n", "the manifest has no rows"),
        ("", "not a readable manifest"),
        ("uri,etag\n/a,1\n,2\n", r"a photo without a uri \(row 2\): give every row one"),
        ("uri,size_bytes\n/a,many\n", "not a readable manifest.*many"),
        ("uri,etag\n/a\n", "not a readable manifest"),
        ("uri\nhttp://host/a.jpg\n", "can't read 'http://host/a.jpg': use a local path or one of s3://"),
        ("uri\ns3:///a.jpg\n", "names no bucket"),
    ],
)
def test_a_wrong_csv_says_what_is_wrong(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "m.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        listed(tmp_path / "m.csv")


def test_a_csv_that_is_no_utf8_says_so(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(b"uri\n/caf\xe9.jpg\n")
    with pytest.raises(ValueError, match=r"UTF8|utf-?8"):
        listed(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"uri": [["/a"]]}, "column uri must be string"),
        ({"uri": [None]}, "a photo without a uri"),
        ({"uri": ["/a"], "size_bytes": [1.5]}, "column size_bytes must be int64"),
        ({"name": ["/a"]}, "no column named uri"),
        ({"uri": pa.array([], pa.string())}, "the manifest has no rows"),
    ],
)
def test_a_wrong_parquet_says_what_is_wrong(tmp_path: Path, columns: dict[str, object], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    with pytest.raises(ValueError, match=message):
        listed(tmp_path / "m.parquet")


def test_a_damaged_parquet_says_so(tmp_path: Path) -> None:
    (tmp_path / "m.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"m\.parquet is not a readable manifest"):
        listed(tmp_path / "m.parquet")


def test_nothing_there_says_so(tmp_path: Path) -> None:
    for name in ("missing", "missing.csv"):
        with pytest.raises(ValueError, match=r"no photos at .*missing.*: the folder or prefix is empty or missing"):
            listed(tmp_path / name)
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"can't read --photos .*photo\.jpg"):
        listed(tmp_path / "photo.jpg")
