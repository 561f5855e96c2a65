"""Folders that tools write as one table: what is a part of it, what is none, and when it is a folder of photos."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema, storage
from pipeline.schema import SourceProblem
from pipeline.sources import manifest
from pipeline.sources.manifest import ListSettings, SourceList, read_manifest


def parquet(names: list[str]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"uri": pa.array(names, pa.string())}), file)
    return file.getvalue()


def put(folder: str | Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        storage.write_bytes(f"{folder}/{name}", data)


def uris(source: str) -> list[str]:
    return [uri for batch in read_manifest(source) for uri in batch[schema.URI].to_pylist()]


HEADER = b"uri\n"
FOLDERS: dict[str, dict[str, bytes]] = {
    "spark.parquet": {
        "part-00000-0a1b-c000.snappy.parquet": parquet(["/a", "/b"]),
        "part-00001-0a1b-c000.snappy.parquet": parquet(["/c"]),
        ".part-00000-0a1b-c000.snappy.parquet.crc": b"crc\0",
        "._SUCCESS.crc": b"crc\0",
        "_SUCCESS": b"",
    },
    "spark-with-old-summary": {
        "part-r-00000.gz.parquet": parquet(["/a", "/b", "/c"]),
        "_metadata": b"",
        "_common_metadata": b"",
    },
    "spark.csv": {
        "part-00000-0a1b-c000.csv": HEADER + b"/a\n/b\n",
        "part-00001-0a1b-c000.csv": b"",
        "part-00002-0a1b-c000.csv": HEADER + b"/c\n",
        "part-00003-0a1b-c000.csv": HEADER,
        "_SUCCESS": b"",
        "_committed_123": b"",
        "_started_123": b"",
    },
    "spark-json": {"part-00000-0a1b-c000.json": b'{"uri":"/a"}\n{"uri":"/b"}\n{"uri":"/c"}\n', "_SUCCESS": b""},
    "spark-text": {"part-00000-0a1b-c000.txt": b"/a\n/b\n/c\n", "_SUCCESS": b""},
    "hadoop.csv": {
        "part-00000": HEADER + b"/a\n/b\n",
        "part-m-00001": HEADER + b"/c\n",
        "_SUCCESS": b"",
        "_temporary/0/x": b"1",
    },
    "dask.parquet": {"part.0.parquet": parquet(["/a"]), "part.1.parquet": parquet(["/b", "/c"]), "_metadata": b"PAR1"},
    "partitioned": {
        "year=2023/part-0.parquet": parquet(["/a"]),
        "year=2024/part-0.parquet": parquet(["/b", "/c"]),
        "year=2025/part-0.parquet": parquet([]),
    },
    "delta": {
        "part-00000.snappy.parquet": parquet(["/a", "/b", "/c"]),
        "_delta_log/00000000000000000000.json": b"{}",
        "_delta_log/00000000000000000000.checkpoint.parquet": b"PAR1",
        "_delta_log/_last_checkpoint": b"{}",
        "_delta_log/00000000000000000000.crc": b"{}",
    },
    "hudi": {"0a-0_1-2-3.parquet": parquet(["/a", "/b", "/c"]), ".hoodie/1.commit": b"x"},
    "snowflake": {
        "data_0_0_0.csv.gz": gzip.compress(HEADER + b"/a\n/b\n"),
        "data_0_1_0.csv.gz": gzip.compress(HEADER + b"/c\n"),
    },
    "bigquery": {
        "export-000000000000.json": b'{"uri":"/a"}\n{"uri":"/b"}\n',
        "export-000000000001.json": b'{"uri":"/c"}\n',
    },
    "redshift": {"0000_part_00": b"uri|n\n/a|1\n/b|2\n", "0001_part_00.gz": gzip.compress(b"uri|n\n/c|3\n")},
    "dask-csv": {"0.part": HEADER + b"/a\n/b\n", "1.part": HEADER + b"/c\n"},
    "hive.tsv": {"000000_0": HEADER + b"/a\n/b\n", "000001_0.gz": gzip.compress(HEADER + b"/c\n")},
    "athena": {"b9e1.csv": HEADER + b"/a\n/b\n/c\n", "b9e1.csv.metadata": b"\x08\x01"},
    "polars": {"0.parquet": parquet(["/a", "/b"]), "1.parquet": parquet(["/c"])},
    "mac": {"a.tsv": HEADER + b"/a\n/b\n", "b.csv": HEADER + b"/c\n", ".DS_Store": b"\0", "Thumbs.db": b"\0"},
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_parts_is_one_table(tmp_path: Path, name: str) -> None:
    put(tmp_path / name, FOLDERS[name])
    for source in (f"{tmp_path}/{name}", f"{tmp_path}/{name}/"):
        listing = read_manifest(source)
        assert [uri for batch in listing for uri in batch[schema.URI].to_pylist()] == ["/a", "/b", "/c"]
        assert listing.search.problems == []


@pytest.mark.s3
def test_a_prefix_of_parts_is_one_table(s3_bucket: str) -> None:
    for name, files in FOLDERS.items():
        put(f"s3://{s3_bucket}/tables/{name}", files)
        assert uris(f"s3://{s3_bucket}/tables/{name}") == ["/a", "/b", "/c"], name


@pytest.mark.parametrize(
    "files",
    [
        ["a.csv", "a.jpg"],
        ["a.csv", "_MG_1234.CR2"],
        ["_DSC1234.JPG"],
        ["a.json", "a.jpg.json"],
        ["notes.txt"],
        ["_sorted/a.jpg", "export.csv"],
        ["a.csv", "sub/a.jpg"],
        ["catalog.db", "a.parquet"],
        ["_SUCCESS", ".nothing"],
        ["COCO_val2014_000000000042.jpg", "COCO_val2014_000000000073.jpg"],
        ["000000_0.jpg"],
        ["part-00000.jpg", "_SUCCESS"],
        ["data_0_0_0.heic", "0001_part_00.cr2"],
        ["IMG_20240101_120000.jpg.json"],
        ["a", "b"],
    ],
)
def test_a_folder_that_holds_anything_else_is_a_folder_of_photos(tmp_path: Path, files: list[str]) -> None:
    put(tmp_path, dict.fromkeys(files, b""))
    assert sorted(uris(str(tmp_path))) == sorted(f"{tmp_path}/{name}" for name in files)


def test_parts_and_photos_side_by_side_in_a_table_by_name_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "t.parquet", {"a.parquet": parquet(["/a"]), "b.jpg": b""})
    with pytest.raises(
        ValueError, match=r"t\.parquet holds both parts of a table, such as .*a\.parquet, and other files"
    ):
        uris(f"{tmp_path}/t.parquet")


@pytest.mark.parametrize("name", ["data/a.orc", "data/a.avro", "metadata/v1.metadata.json", "a.feather"])
def test_tables_of_other_kinds_are_refused(tmp_path: Path, name: str) -> None:
    put(tmp_path / "t", {name: b"", "data/b.parquet": parquet(["/a"]), "_SUCCESS": b""})
    with pytest.raises(
        ValueError, match=r"t is a table of a kind that can't be read, with files such as .*: write it as Parq"
    ):
        uris(f"{tmp_path}/t")


def test_relative_names_lie_beside_the_table_and_local_ones_only_beside_one_that_is_named_so(tmp_path: Path) -> None:
    rows = f"uri\npics/a.jpg\n{tmp_path}/pics/b.jpg\n".encode()
    for name in ("t.csv", "t"):
        put(tmp_path / name, {"part-0.csv": rows, "_SUCCESS": b""})
    wanted = [f"{tmp_path}/pics/a.jpg", f"{tmp_path}/pics/b.jpg"]
    assert listed(f"{tmp_path}/t.csv") == wanted
    with pytest.raises(ValueError, match=r"t, row 1 of part-0\.csv: .*/pics/a\.jpg lies outside .*--photos-root"):
        listed(f"{tmp_path}/t")
    assert listed(f"{tmp_path}/t", [str(tmp_path)]) == wanted


def listed(source: str, photos_root: list[str] | None = None) -> list[str]:
    listing = SourceList([source], "/nowhere", ListSettings(photos_root=photos_root or []))
    return [uri for batch in listing.batches() for uri in batch[schema.URI].to_pylist()]


def test_a_bad_part_and_bad_rows_are_problems_that_name_them(tmp_path: Path) -> None:
    put(
        tmp_path / "t.csv",
        {
            "a/part-0.csv": b"uri,size_bytes\n/a,1\n/b,many\n",
            "a/part-1.csv": b"name\n/x\n",
            "b/part-0.csv": b"uri,size_bytes\n,1\n/c,3\n",
            "b/part-1.parquet": b"PAR1 and no more",
        },
    )
    listing = read_manifest(f"{tmp_path}/t.csv")
    assert [uri for batch in listing for uri in batch[schema.URI].to_pylist()] == ["/a", "/b", "/c"]
    source = f"{tmp_path}/t.csv"
    assert [str(problem) for problem in listing.search.problems] == [
        f"row {source}: 2 of its files can't be read: {source}/a/part-1.csv has no column named uri or path or url; its"
        " columns are: name",
        f"row {source}: 1 of its rows name no photo: row 1 of b/part-0.csv has no uri: give every row one",
        f"row {source}: 1 of its rows are listed without their size_bytes: in row 2 of a/part-0.csv it is 'many': write"
        " a whole number of bytes, such as 10500, or nothing",
    ]
    assert all(isinstance(problem, SourceProblem) for problem in listing.search.problems)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.csv": b"name\n/x\n", "b.csv": b"name\n/y\n"}, r"t/a\.csv has no column named uri"),
        ({"a.csv": HEADER, "b.csv": b""}, "no photos in .*/t: the manifest has no rows"),
        ({"a.parquet": b"PAR1 and no more"}, r"t/a\.parquet is not a readable manifest"),
    ],
)
def test_a_folder_of_which_no_part_can_be_read_says_why(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    put(tmp_path / "t", files)
    with pytest.raises(ValueError, match=message):
        uris(f"{tmp_path}/t")


def test_an_output_in_a_table_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "t.csv", {"part-0.csv": HEADER + b"/a\n"})
    with pytest.raises(ValueError, match=r"--output .*/t\.csv/out lies in the list .*/t\.csv: give a folder beside it"):
        list(read_manifest(f"{tmp_path}/t.csv", output=f"{tmp_path}/t.csv/out"))
    with pytest.raises(ValueError, match="holds the photos"):
        manifest.check_output([f"{tmp_path}/t.csv"], f"{tmp_path}/t.csv")


def test_a_pattern_of_lists_says_what_to_do(tmp_path: Path) -> None:
    for pattern in ("*.csv", "*.parquet", "*.jsonl", "*.csv.gz"):
        with pytest.raises(ValueError, match="a pattern can't name manifests"):
            uris(f"{tmp_path}/{pattern}")
