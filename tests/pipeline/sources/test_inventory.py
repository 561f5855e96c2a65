"""An S3 Inventory lists its bucket's objects, of every data file whole or not at all."""

from __future__ import annotations

import datetime as dt
import gzip
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from pipeline import schema, storage
from pipeline.sources.manifest import read_manifest

FOLDER = "inventory/photos/daily"
CSV_SCHEMA = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag"
WRITTEN_AT = dt.datetime(2024, 5, 6, 7, 8, 9, tzinfo=dt.UTC)
Row = tuple[str, bool, bool, int | None, str | None]
ROWS: list[Row] = [
    ("a b+c/100%.jpg", True, False, 5, "e1"),
    ('ü, "1".jpg', True, False, 6, "e2-7"),
    ("a b+c/100%.jpg", False, False, 4, "old"),
    ("deleted.jpg", True, True, None, None),
    ("folder/", True, False, 0, "e3"),
    ("007", True, False, 7, "e4"),
]
EXPECTED = [
    ("s3://photos/a b+c/100%.jpg", "e1", 5),
    ('s3://photos/ü, "1".jpg', "e2-7", 6),
    ("s3://photos/007", "e4", 7),
]


def csv_file(rows: list[Row]) -> bytes:
    lines = ""
    for key, is_latest, is_deleted, size, etag in rows:
        columns = [
            "photos",
            quote_plus(key, safe="/"),
            "v",
            is_latest,
            is_deleted,
            size,
            WRITTEN_AT.isoformat().replace("+00:00", ".000Z"),
            etag,
        ]
        lines += (
            ",".join(f'"{"" if c is None else str(c).lower() if isinstance(c, bool) else c}"' for c in columns) + "\n"
        )
    return gzip.compress(lines.encode())


def table(rows: list[Row]) -> pa.Table:
    names = ["key", "is_latest", "is_delete_marker", "size", "e_tag"]
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    columns["last_modified_date"] = [WRITTEN_AT] * len(rows)
    return pa.table({"bucket": ["photos"] * len(rows), **columns, "storage_class": ["STANDARD"] * len(rows)})


def parquet_file(rows: list[Row]) -> bytes:
    data = io.BytesIO()
    pq.write_table(table(rows), data)
    return data.getvalue()


def orc_file(rows: list[Row]) -> bytes:
    data = pa.BufferOutputStream()
    pa.orc.write_table(table(rows), data)
    return data.getvalue().to_pybytes()


PACK: dict[str, Callable[[list[Row]], bytes]] = {"CSV": csv_file, "Parquet": parquet_file, "ORC": orc_file}


def put(root: str, kind: str, parts: list[bytes], **changes: object) -> str:
    """Lay an inventory below `root`, the destination bucket; return the name of its manifest."""
    files = []
    for index, data in enumerate(parts):
        key = f"{FOLDER}/data/{index}.{kind.lower()}"
        storage.write_bytes(f"{root}/{key}", data)
        files.append({"key": key, "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()})
    manifest = {
        "sourceBucket": "photos",
        "destinationBucket": f"arn:aws:s3:::{root.removeprefix('s3://')}",
        "version": "2016-11-30",
        "fileFormat": kind,
        "fileSchema": CSV_SCHEMA if kind == "CSV" else "message s3.inventory { ... }",
        "files": files,
    }
    source = f"{root}/{FOLDER}/2024-05-06T01-00Z/manifest.json"
    storage.write_bytes(source, json.dumps(manifest | changes).encode())
    return source


def listed(source: str) -> list[tuple[str, str, int]]:
    rows = pa.Table.from_batches(list(read_manifest(source)), schema=schema.MANIFEST)
    return list(zip(*(rows[name].to_pylist() for name in (schema.URI, schema.ETAG, schema.SIZE_BYTES)), strict=True))


@pytest.mark.parametrize("kind", PACK)
def test_the_newest_versions_are_listed(tmp_path: Path, kind: str) -> None:
    source = put(str(tmp_path), kind, [PACK[kind](ROWS[:3]), PACK[kind](ROWS[3:])])
    assert listed(source) == EXPECTED


@pytest.mark.s3
@pytest.mark.parametrize("kind", PACK)
def test_an_inventory_on_s3_is_found_in_its_bucket(s3_bucket: str, kind: str) -> None:
    assert listed(put(f"s3://{s3_bucket}", kind, [PACK[kind](ROWS)])) == EXPECTED


@pytest.mark.parametrize("kind", PACK)
def test_an_inventory_says_when_objects_were_written(tmp_path: Path, kind: str) -> None:
    rows = pa.Table.from_batches(list(read_manifest(put(str(tmp_path), kind, [PACK[kind](ROWS)]))))
    assert set(rows.column(schema.MODIFIED_AT).to_pylist()) == {WRITTEN_AT}


def test_an_inventory_without_versions_and_etags(tmp_path: Path) -> None:
    data = gzip.compress(b'"photos","a.jpg"\n"photos","b%20c.jpg"\n')
    source = put(str(tmp_path), "CSV", [data, gzip.compress(b"")], fileSchema="Bucket, Key")
    assert listed(source) == [("s3://photos/a.jpg", None, None), ("s3://photos/b c.jpg", None, None)]


def test_patterns_match_the_uri(tmp_path: Path) -> None:
    listing = read_manifest(put(str(tmp_path), "CSV", [csv_file(ROWS)]), include=["*.JPG"], exclude=["a b+c/"])
    assert [uri for batch in listing for uri in batch[schema.URI].to_pylist()] == [EXPECTED[1][0]]
    assert listing.search.excluded == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fileFormat": "XML"}, "as 'XML' can't be read"),
        ({"files": [{"key": "a"}]}, "'MD5checksum' is missing or wrong"),
        ({"files": 1}, "is no manifest of an S3 Inventory"),
        ({"files": [{"key": "gone.gz", "MD5checksum": "0"}]}, "its data file gone.gz is missing"),
        ({"files": [{"key": "../gone.gz", "MD5checksum": "0"}]}, "is missing"),
        ({"files": [{"key": f"{FOLDER}/data/0.csv", "MD5checksum": "0" * 32}]}, "its MD5 is another"),
        ({"fileSchema": "Bucket, Size"}, "can't be read"),
        ({"fileSchema": "Key, Key"}, "can't be read"),
        ({"fileFormat": "Parquet"}, "can't be read"),
        ({"fileFormat": "ORC"}, "can't be read"),
    ],
)
def test_a_wrong_inventory_says_what_is_wrong(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    source = put(str(tmp_path), "CSV", [csv_file(ROWS)], **changes)
    with pytest.raises(ValueError, match=message) as caught:
        listed(source)
    assert source in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"not gzip", gzip.compress(b'"a","b"\n', mtime=0)[:-9], gzip.compress(b'"a"\n', mtime=0), b"\x1f\x8b"]
)
def test_a_damaged_data_file_says_so(tmp_path: Path, data: bytes) -> None:
    source = put(str(tmp_path), "CSV", [data], fileSchema="Bucket, Key")
    with pytest.raises(ValueError, match=r"can't be read|no photos"):
        listed(source)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"[" * 100_000, b"{}", b"\xff"])
def test_a_json_that_is_no_inventory_says_so(tmp_path: Path, data: bytes) -> None:
    storage.write_bytes(f"{tmp_path}/manifest.json", data)
    with pytest.raises(ValueError, match=r"manifest\.json is no manifest of an S3 Inventory"):
        listed(f"{tmp_path}/manifest.json")


@pytest.mark.s3
def test_a_missing_data_file_on_s3_says_so(s3_bucket: str) -> None:
    files = [{"key": "gone.csv.gz", "MD5checksum": "0"}]
    source = put(f"s3://{s3_bucket}", "CSV", [], files=files)
    with pytest.raises(ValueError, match=f"its data file s3://{s3_bucket}/gone.csv.gz is missing"):
        listed(source)
