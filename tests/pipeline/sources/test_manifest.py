"""Each kind of source lists its photos; one that isn't what it says is a ValueError that names what to do."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import os
import random
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema, storage
from pipeline.read.fetch import Fetcher, FetchSettings
from pipeline.sources.manifest import read_manifest


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


NOON = dt.datetime(2024, 5, 6, 12, tzinfo=dt.UTC)


def test_sources_say_when_their_photos_were_written(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("photos/a.jpg", "m.tar"):
        with tarfile.open(tmp_path / "m.tar", "w") as archive:
            archive.addfile(tarfile.TarInfo("b.jpg"), io.BytesIO())
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (NOON.timestamp(),) * 2)
    pq.write_table(pa.table({"uri": ["/a", "/b"], "modified_at": [NOON, None]}), tmp_path / "zone.parquet")
    pq.write_table(pa.table({"uri": ["/a"], "modified_at": [NOON.replace(tzinfo=None)]}), tmp_path / "utc.parquet")
    write_csv(tmp_path / "m.csv", [["uri", "modified_at"], ["/a", "2024-05-06T14:00:00+02:00"], ["/b", ""]])
    for source in ("photos", "m.tar", "zone.parquet", "utc.parquet", "m.csv"):
        times = listed(tmp_path / source).column(schema.MODIFIED_AT).to_pylist()
        assert times == [NOON] + [None] * (len(times) - 1), source
    write_csv(tmp_path / "wrong.csv", [["uri", "modified_at"], ["/a", "yesterday"]])
    pq.write_table(pa.table({"uri": ["/a"], "modified_at": ["yesterday"]}), tmp_path / "wrong.parquet")
    for source in ("wrong.csv", "wrong.parquet"):
        with pytest.raises(ValueError, match=r"modified_at|yesterday"):
            listed(tmp_path / source)


@pytest.mark.s3
def test_a_store_says_when_its_objects_were_written(s3_bucket: str) -> None:
    before = dt.datetime.now(dt.UTC)
    uri = f"s3://{s3_bucket}/manifest-times/a.jpg"
    storage.write_bytes(uri, b"1")
    (time,) = listed(uri.rpartition("/")[0]).column(schema.MODIFIED_AT).to_pylist()
    assert abs(time - before) < dt.timedelta(minutes=1)  # whole seconds, by another clock
    assert storage.head(uri).modified_us == time.timestamp() * 1e6


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
        ("", "the manifest has no rows"),
        ("uri,etag\n,1\n,2\n", r"m\.csv, row 1 has no uri: give every row one, and so it is with every row"),
        (
            "uri,size_bytes\n/a,many\n",
            "size_bytes can't be understood: in row 1 it is 'many': write a whole number",
        ),
        ("uri,etag\n/a\n", "row 1 has 1 cells where there are 2 columns"),
        ("uri\nhttp://host/a.jpg\n", "http://host/a.jpg is on a web server: give --fetch.allow-http"),
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
        ({"uri": [None]}, "row 1 has no uri"),
        ({"uri": ["/a"], "size_bytes": [1.5]}, r"size_bytes can't be understood: in row 1 it is '1\.5'"),
        ({"name": ["/a"]}, "no column named uri"),
        ({"uri": pa.array([], pa.string())}, "the manifest has no rows"),
    ],
)
def test_a_wrong_parquet_says_what_is_wrong(tmp_path: Path, columns: dict[str, object], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    with pytest.raises(ValueError, match=message):
        listed(tmp_path / "m.parquet")


def parquet(path: Path, columns: dict[str, pa.Array], **options: object) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


NOT_UTF8 = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"uri": pa.array([7])}, "column uri must be string, and is int64"),
        ({"uri": pa.array([{"uri": "/a"}])}, "column uri must be string, and is struct"),
        ({"uri": pa.array(["/a"]), "etag": pa.array([1.0])}, "column etag must be string, and is double"),
        ({"uri": pa.array(["/a"]), "size_bytes": pa.array([True])}, "column size_bytes must be int64, and is bool"),
        ({"uri": pa.array(["/a"]), "size_bytes": pa.array([2**63], pa.uint64())}, "size_bytes can't be understood"),
        ({"uri": NOT_UTF8}, "row 1 has a uri that is no UTF-8"),
        ({"uri": pa.array(["ftp://h/x"] * 12_000)}, "row 1: can't read 'ftp://h/x'"),
        ({"uri": pa.array([b"\xff"])}, "row 1 has a uri that is no UTF-8"),
    ],
)
def test_a_hostile_parquet_names_the_column_or_row(tmp_path: Path, columns: dict[str, pa.Array], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        listed(parquet(tmp_path / "m.parquet", columns))
    assert "m.parquet" in str(caught.value)


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (None, "1 of its rows name no photo: row 12001 has no uri: give every row one"),
        ("", "1 of its rows name no photo: row 12001 has no uri: give every row one"),
        ("/" + "n" * 40_000, "1 of its rows name no photo: row 12001 has a uri longer than 32768 bytes"),
    ],
)
def test_a_row_that_names_no_photo_is_a_problem_and_the_others_are_listed(
    tmp_path: Path, odd: str | None, reason: str
) -> None:
    path = parquet(tmp_path / "m.parquet", {"uri": pa.array([*["/a"] * 12_000, odd, "/b"])})
    listing = read_manifest(str(path))
    assert sum(batch.num_rows for batch in listing) == 12_001
    assert listing.search.problems == [schema.SourceProblem("row", str(path), reason)]


@pytest.mark.parametrize("odd", ["ftp://h/x", "s3:///a", "https://h/x.jpg", "S3N://b/x", "hdfs://x", "a\0b"])
def test_a_row_that_can_not_be_read_is_listed_and_fails_by_itself(
    tmp_path: Path, odd: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = parquet(tmp_path / "m.parquet", {"uri": pa.array(["/a", odd])})
    listing = read_manifest(str(path))
    (row,) = (row for batch in listing for row in batch.to_pylist() if row[schema.URI] != "/a")
    assert listing.search.problems == []
    with pytest.raises(schema.PhotoError) as caught:
        Fetcher(FetchSettings(budget_s=1), 1 << 20)(row)
    assert caught.value.code in ("forbidden", "not_found")
    assert caught.value.code == "not_found" or "1 photos can't be read; row 2" in caplog.text


def test_a_negative_size_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns = {"uri": pa.array(["/a", "/b"]), "size_bytes": pa.array([0, -5])}
    assert listed(parquet(tmp_path / "m.parquet", columns)).column(schema.SIZE_BYTES).to_pylist() == [0, None]
    assert "size_bytes is negative in row 2" in caplog.text


def test_two_columns_of_one_name_say_so(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array(["/a"]), pa.array(["/b"])], ["uri", "uri"]), tmp_path / "m.parquet")
    (tmp_path / "m.csv").write_text("uri,uri\n/a,/b\n")
    for name in ("m.parquet", "m.csv"):
        with pytest.raises(ValueError, match="has 2 columns named uri"):
            listed(tmp_path / name)


def test_a_csv_with_an_endless_line_says_so(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("uri\n/" + "n" * 5_000_000)
    with pytest.raises(ValueError, match=r"m\.csv"):
        listed(tmp_path / "m.csv")


@pytest.mark.parametrize("name", ["m.parquet", "m.csv", "m.jsonl", "m.json", "m.txt", "m.csv.gz"])
def test_a_manifest_with_flipped_bytes_is_read_or_refused(tmp_path: Path, name: str) -> None:
    rng, path = random.Random(0), tmp_path / name
    names = [f"/{index}.jpg" for index in range(100)]
    if name.startswith("m.csv"):
        write_csv(path, [["uri", "size_bytes"], *([each, "5"] for each in names)])
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(path.read_bytes()))
    elif name == "m.txt":
        path.write_text("\n".join(names))
    elif name.startswith("m.json"):
        lines = [f'{{"uri": "{each}", "size_bytes": 5}}' for each in names]
        path.write_text("\n".join(lines) if name == "m.jsonl" else f"[{','.join(lines)}]")
    else:
        parquet(path, {"uri": pa.array(names), "size_bytes": pa.array([5] * 100)})
    whole = path.read_bytes()
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        try:
            listed(path).validate(full=True)
        except ValueError as error:
            assert name in str(error), error  # noqa: PT017 - a refusal is as good as rows


def test_names_of_every_kind_side_by_side(tmp_path: Path) -> None:
    given = [
        "s3://b/x//../y",
        "S3A://b/k",
        "/a/./b",
        "/a//b",
        "/a/b/..",
        "/..a/.b/...",
        "//x/y",
        "a/b c.jpg",
        "az://b/k",
    ]
    wanted = [
        "s3://b/x//../y",
        "s3://b/k",
        "/a/b",
        "/a/b",
        "/a",
        "/..a/.b/...",
        "//x/y",
        f"{tmp_path}/a/b c.jpg",
        "az://b/k",
    ]
    assert uris(parquet(tmp_path / "m.parquet", {"uri": pa.array(given)})) == wanted
    assert [storage.canonical(uri) for uri in wanted] == wanted
    for uri, canonical in zip(given, wanted, strict=True):  # a column of one kind takes another way
        assert uris(parquet(tmp_path / "m.parquet", {"uri": pa.array([uri])})) == [canonical]


def test_names_relative_to_a_folder_that_is_no_utf8(tmp_path: Path) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    os.mkdir(folder)
    for name in (b"m.csv", b"100%25.jpg"):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(b"uri\n100%25.jpg\n")
    assert uris(f"file://{tmp_path}/caf%E9/m.csv") == [f"file://{tmp_path}/caf%E9/100%2525.jpg"]
    assert storage.exists(f"file://{tmp_path}/caf%E9/100%2525.jpg")


def test_a_manifest_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large it is, no part of it is read at once that memory could not hold."""
    rng = np.random.default_rng(0)
    names = pa.array([f"/{value:x}" for value in rng.integers(0, 2**60, 1_000_000)])
    path = parquet(tmp_path / "m.parquet", {"uri": names}, row_group_size=1_000_000, compression="none")
    parts: list[int] = []
    read_range = storage.read_range

    def noted(uri: str, offset_bytes: int, length_bytes: int, etag: str | None = None) -> bytes:
        parts.append(length_bytes)
        return read_range(uri, offset_bytes, length_bytes, etag)

    monkeypatch.setattr(storage, "read_range", noted)
    next(read_manifest(str(path)))
    assert max(parts) <= 8 << 20
    assert sum(parts) < path.stat().st_size


@pytest.mark.parametrize(
    ("include", "exclude", "taken"),
    [
        ([], [], ["a.jpg", "b.PNG", "deep/er/c.jpg", "deep/thumbs/a.jpg", "thumbs/x.jpg"]),
        (["*.jpg", "*.png"], ["thumbs/"], ["a.jpg", "b.PNG", "deep/er/c.jpg"]),
        ([], ["/thumbs"], ["a.jpg", "b.PNG", "deep/er/c.jpg", "deep/thumbs/a.jpg"]),
        (["/deep/*.jpg"], [], []),
        (["/deep/**/*.jpg"], [], ["deep/er/c.jpg", "deep/thumbs/a.jpg"]),
        (["deep/**"], ["c.*"], ["deep/thumbs/a.jpg"]),
        (["[a-b].*"], [], ["a.jpg", "b.PNG", "deep/thumbs/a.jpg"]),
        (["/[!a].???"], [], ["b.PNG"]),
        (["a"], [], []),
    ],
)
def test_patterns(tmp_path: Path, include: list[str], exclude: list[str], taken: list[str]) -> None:
    names = ["a.jpg", "b.PNG", "deep/er/c.jpg", "deep/thumbs/a.jpg", "thumbs/x.jpg"]
    for name in names:
        storage.write_bytes(f"{tmp_path}/{name}", b"")
    listing = read_manifest(f"{tmp_path}/", include=include, exclude=exclude)
    found = [uri for batch in listing for uri in batch[schema.URI].to_pylist()]
    assert found == [f"{tmp_path}/{name}" for name in taken]
    left_out = listing.search.excluded + listing.search.excluded_folders
    assert min(1, len(names) - len(taken)) <= left_out <= len(names) - len(taken)


def test_patterns_of_a_manifest_match_the_uri(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "m.csv", [["uri"], ["s3://b/2024/a.jpg"], ["s3://b/2025/a.jpg"], ["/data/a.jpg"]])
    for patterns in (["s3://b/2024/"], ["2024/*.JPG"], ["2024"]):
        listing = read_manifest(str(path), patterns)
        assert [uri for batch in listing for uri in batch[schema.URI].to_pylist()] == ["s3://b/2024/a.jpg"]
        assert listing.search.excluded == 2
    listing = read_manifest(str(path), ["/data/*"])
    assert [uri for batch in listing for uri in batch[schema.URI].to_pylist()] == ["/data/a.jpg"]


def test_patterns_of_odd_names(tmp_path: Path) -> None:
    for name in ("new\nline.jpg", "[x].jpg", "a+b.jpg", "^.jpg"):
        storage.write_bytes(f"{tmp_path}/{name}", b"")
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg"), "wb"):
        pass
    for pattern, number in (
        ("*.jpg", 5),
        ("/caf*", 1),
        ("new*", 1),
        ("[[]x].jpg", 1),
        ("[^x].jpg", 1),
        ("[", 0),
        ("a+b*", 1),
    ):
        assert sum(batch.num_rows for batch in read_manifest(str(tmp_path), [pattern])) == number, pattern


@pytest.mark.parametrize("pattern", ["", "/", "[z-a]"])
def test_a_pattern_that_says_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="the pattern"):
        read_manifest("/anywhere", [], [pattern])


def test_a_damaged_parquet_says_so(tmp_path: Path) -> None:
    (tmp_path / "m.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"m\.parquet is not a readable manifest"):
        listed(tmp_path / "m.parquet")


def test_nothing_there_says_so(tmp_path: Path) -> None:
    for name in ("missing", "missing.csv"):
        with pytest.raises(ValueError, match=r"no photos at .*missing.*: the folder or prefix is empty or missing"):
            listed(tmp_path / name)


def test_web_addresses_are_taken_only_when_asked_for(tmp_path: Path) -> None:
    source = tmp_path / "photos.csv"
    source.write_text("uri\nhttps://example.org/a.jpg\n")
    with pytest.raises(
        ValueError, match=r"photos\.csv, row 1: https://example.org/a\.jpg is on a web server: give --fetch"
    ):
        list(read_manifest(str(source)))
    source.write_text("uri\nhttps://example.org/a.jpg\nb.jpg\n")
    uris = [uri for batch in read_manifest(str(source), allow_http=True) for uri in batch.column("uri").to_pylist()]
    assert uris == ["https://example.org/a.jpg", f"{tmp_path}/b.jpg"]
