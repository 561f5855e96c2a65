"""Lists as tools write them: each is written here byte by byte as its tool does, and names the same photos."""

from __future__ import annotations

import bz2
import datetime as dt
import decimal
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema, storage
from pipeline.sources.manifest import Listing, read_manifest

NOON = dt.datetime(2024, 5, 6, 12, tzinfo=dt.UTC)


def write(folder: Path, name: str, data: bytes | str) -> str:
    storage.write_bytes(f"{folder}/{name}", data if isinstance(data, bytes) else data.encode())
    return f"{folder}/{name}"


def rows(listing: Listing) -> list[dict[str, object]]:
    return [row for batch in listing for row in batch.to_pylist()]


def uris(source: str, **options: object) -> list[str]:
    return [str(row[schema.URI]) for row in rows(read_manifest(source, **options))]  # type: ignore[arg-type]


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


NAMED = "uri,size_bytes\n/a b.jpg,5\n/ü.jpg,\n"


def packed(data: bytes) -> bytes:
    """As gzip packs it, without the time: the tests' names are made of it."""
    return gzip.compress(data, mtime=0)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("pandas.csv", ",uri,size_bytes\n0,/a b.jpg,5.0\n1,/ü.jpg,\n"),
        ("numpy.csv", "uri,size_bytes\n/a b.jpg,5\n/ü.jpg,NaN\n"),
        ("windows.csv", NAMED.replace("\n", "\r\n")),
        ("old-mac.csv", NAMED.replace("\n", "\r")),
        ("no-last-line-end.csv", NAMED.rstrip("\n")),
        ("excel-utf8.csv", "\ufeff" + NAMED.replace("\n", "\r\n")),
        ("excel-europe.csv", "\ufeffuri;size_bytes\r\n/a b.jpg;5\r\n/ü.jpg;\r\n"),
        ("excel-sep.csv", "sep=;\r\nuri;size_bytes\r\n/a b.jpg;5\r\n/ü.jpg;\r\n"),
        ("excel-sep-tab.csv", "sep=\t\r\nuri\tsize_bytes\r\n/a b.jpg\t5\r\n/ü.jpg\t\r\n"),
        ("excel-unicode.txt", "uri\tsize_bytes\r\n/a b.jpg\t5\r\n/ü.jpg\t\r\n".encode("utf-16")),
        ("utf16.csv", NAMED.encode("utf-16")),
        ("utf16-be.csv", "\ufeff".encode("utf-16-be") + NAMED.encode("utf-16-be")),
        ("utf16-without-mark.csv", NAMED.encode("utf-16-le")),
        ("powershell-5.csv", '#TYPE System.Object\r\n"uri","size_bytes"\r\n"/a b.jpg","5"\r\n"/ü.jpg",\r\n'),
        ("powershell-7.csv", '"uri","size_bytes"\r\n"/a b.jpg","5"\r\n"/ü.jpg",\r\n'),
        ("quoted.csv", '"uri","size_bytes"\n"/a b.jpg","5"\n"/ü.jpg",""\n'),
        ("mysql.tsv", "uri\tsize_bytes\n/a b.jpg\t5\n/ü.jpg\tNULL\n"),
        ("postgres.tsv", "uri\tsize_bytes\n/a b.jpg\t5\n/ü.jpg\t\\N\n"),
        ("tabs.csv", "uri\tsize_bytes\n/a b.jpg\t5\n/ü.jpg\t\n"),
        ("commas.tsv", NAMED),
        ("redshift.csv", "uri|size_bytes\n/a b.jpg|5\n/ü.jpg|\n"),
        ("blanks.csv", " URI , Size Bytes\n/a b.jpg, 5\n/ü.jpg,\n"),
        ("snowflake.csv", '"URI","SIZE_BYTES"\n"/a b.jpg","5"\n"/ü.jpg","\\N"\n'),
        ("float.csv", "uri,size_bytes\n/a b.jpg,5.000\n/ü.jpg,null\n"),
        ("scientific.csv", "uri,size_bytes\n/a b.jpg,5.0E+00\n/ü.jpg,N/A\n"),
        ("packed.csv.gz", gzip.compress(NAMED.encode(), mtime=0)),
        (
            "packed-twice.csv.gz",
            gzip.compress(NAMED[:20].encode(), mtime=0) + gzip.compress(NAMED[20:].encode(), mtime=0),
        ),
        ("packed.csv.bz2", bz2.compress(NAMED.encode())),
        ("packed.csv.xz", lzma.compress(NAMED.encode())),
        ("packed.csv.zst", zstd(NAMED.encode())),
        ("packed-and-not-called-so.csv", gzip.compress(NAMED.encode(), mtime=0)),
        ("called-packed-and-not.csv.gz", NAMED),
        (
            "packed-utf16.tsv.gz",
            packed("uri\tsize_bytes\r\n/a b.jpg\t5\r\n/ü.jpg\t\r\n".encode("utf-16")),
        ),
        ("polars.ndjson", '{"uri":"/a b.jpg","size_bytes":5}\n{"uri":"/ü.jpg","size_bytes":null}\n'),
        ("bigquery.json", '{"uri":"/a b.jpg","size_bytes":"5"}\n{"uri":"/ü.jpg"}\n'),
        ("pandas.jsonl", '{"size_bytes":5.0,"uri":"\\/a b.jpg"}\n{"uri":"\\/\\u00fc.jpg","size_bytes":NaN}'),
        ("pandas-records.json", '[{"uri":"/a b.jpg","size_bytes":5},{"uri":"/ü.jpg","size_bytes":null}]'),
        (
            "pretty.json",
            '[\n  {\n    "uri": "/a b.jpg",\n    "size_bytes": 5\n  },\n  {\n    "uri": "/ü.jpg"\n  }\n]\n',
        ),
        ("mark.jsonl", '\ufeff{"URI":"/a b.jpg","SIZE_BYTES":5}\r\n\r\n{"URI":"/ü.jpg"}\r\n'),
        ("packed.jsonl.gz", gzip.compress('{"uri":"/a b.jpg","size_bytes":5}\n{"uri":"/ü.jpg"}\n'.encode(), mtime=0)),
    ],
)
def test_a_table_of_any_tool(tmp_path: Path, name: str, data: bytes | str) -> None:
    listing = read_manifest(write(tmp_path, name, data))
    found = [(row[schema.URI], row[schema.SIZE_BYTES]) for row in rows(listing)]
    assert found == [("/a b.jpg", 5), ("/ü.jpg", None)]
    assert listing.search.problems == []


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("find.txt", "./a b.jpg\n./sub/ü.jpg\n"),
        ("ls.lst", "a b.jpg\nsub/ü.jpg"),
        ("header.txt", "path\na b.jpg\nsub/ü.jpg\n"),
        ("comments.txt", "# mine\n\na b.jpg\n  \n# more\nsub/ü.jpg\n\n"),
        ("powershell.txt", "a b.jpg\r\nsub\\ü.jpg\r\n".encode("utf-16")),
        ("cmd.txt", "a b.jpg\r\n.\\sub\\ü.jpg\r\n"),
        ("mark.txt", "\ufeffa b.jpg\nsub/ü.jpg\n"),
        ("old-mac.txt", "a b.jpg\rsub/ü.jpg\r"),
        ("print0.txt", "./a b.jpg\0./sub/ü.jpg\0"),
        ("packed.txt.gz", gzip.compress("a b.jpg\nsub/ü.jpg\n".encode(), mtime=0)),
        ("packed.list.zst", zstd("a b.jpg\nsub/ü.jpg\n".encode())),
        ("texts.jsonl", '"a b.jpg"\n"sub/ü.jpg"\n'),
        ("texts.json", '["a b.jpg", "sub/ü.jpg"]'),
        ("windows.csv", '"FullName"\r\n"a b.jpg"\r\n"sub\\ü.jpg"\r\n'),
    ],
)
def test_names_alone_lie_beside_their_list(tmp_path: Path, name: str, data: bytes | str) -> None:
    listing = read_manifest(write(tmp_path, name, data))
    assert [row[schema.URI] for row in rows(listing)] == [f"{tmp_path}/a b.jpg", f"{tmp_path}/sub/ü.jpg"]
    assert listing.search.problems == []


def test_a_list_whose_lines_end_as_here_may_have_names_with_backslashes(tmp_path: Path) -> None:
    assert uris(write(tmp_path, "list.txt", "a\\b.jpg\n")) == [f"{tmp_path}/a\\b.jpg"]
    mixed = write(tmp_path, "mixed.txt", "a/b\\c.jpg\r\n")
    assert uris(mixed) == [f"{tmp_path}/a/b\\c.jpg"]


def test_a_headless_column_of_names_is_read_and_a_headless_table_says_so(tmp_path: Path) -> None:
    assert uris(write(tmp_path, "spark.csv", "s3://b/a.jpg\n/c.jpg\n")) == ["s3://b/a.jpg", "/c.jpg"]
    with pytest.raises(ValueError, match=r"no column named uri .*It seems to have no header: write the names"):
        uris(write(tmp_path, "spark2.csv", "s3://b/a.jpg,5\n/c.jpg,6\n"))


@pytest.mark.parametrize(
    "column",
    [
        "uri",
        "URI",
        " Uri ",
        "url",
        "Path",
        "filepath",
        "file",
        "file_name",
        "SourceFile",
        "FullName",
        "s3_uri",
        "Image Path",
    ],
)
def test_what_tools_call_the_column_of_names(tmp_path: Path, column: str) -> None:
    assert uris(write(tmp_path, "m.csv", f"{column},caption\n/a.jpg,x\n")) == ["/a.jpg"]
    pq.write_table(pa.table({"caption": ["x"], column: ["/a.jpg"]}), tmp_path / "m.parquet")
    assert uris(f"{tmp_path}/m.parquet") == ["/a.jpg"]
    assert uris(write(tmp_path, "m.jsonl", f'{{"caption": "x", "{column}": "/a.jpg"}}')) == ["/a.jpg"]


def test_uri_goes_before_other_names_and_columns_that_are_not_read_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert uris(write(tmp_path, "m.csv", "filename,uri,label\nx,/a.jpg,1\n")) == ["/a.jpg"]
    assert "column uri names the photos; not read: filename, label" in caplog.text


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("path,url", "has 2 columns that may name the photos, path, url: rename the right one to uri"),
        ("URI,uri", "has 2 columns named URI and uri: leave one"),
        ("uri,size_bytes,Size_Bytes", "has 2 columns named size_bytes and Size_Bytes: leave one"),
        ("key,size", "For a key add a column bucket, or write s3://BUCKET/KEY into a column uri"),
        ("bucket,bucket,key", "has 2 columns named bucket: leave one"),
    ],
)
def test_columns_that_can_be_meant_two_ways_are_refused(tmp_path: Path, header: str, message: str) -> None:
    names = header.split(",")
    with pytest.raises(ValueError, match=message):
        uris(write(tmp_path, "m.csv", f"{header}\n{','.join(['1'] * len(names))}\n"))
    pq.write_table(pa.Table.from_arrays([pa.array(["1"])] * len(names), names), tmp_path / "m.parquet")
    with pytest.raises(ValueError, match=message):
        uris(f"{tmp_path}/m.parquet")


def test_a_bucket_and_a_key_make_a_name(tmp_path: Path) -> None:
    text = "Bucket,Key\nb,a b/c.jpg\ns3://b,d.jpg\narn:aws:s3:::b,/e.jpg\ngs://g/,f.jpg\nb,\n,x.jpg\n"
    listing = read_manifest(write(tmp_path, "m.csv", text))
    found = [row[schema.URI] for row in rows(listing)]
    assert found == ["s3://b/a b/c.jpg", "s3://b/d.jpg", "s3://b//e.jpg", "gs://g/f.jpg"]
    assert [problem.reason for problem in listing.search.problems] == [
        "2 of its rows name no photo: row 5 has no uri: give every row one"
    ]


@pytest.mark.parametrize(
    "time",
    [
        "2024-05-06 12:00:00",
        "2024-05-06T12:00:00",
        "2024-05-06T12:00:00Z",
        "2024-05-06t12:00:00z",
        "2024-05-06 12:00",
        "2024-05-06 12:00:00.000000000",
        "2024-05-06T12:00:00.0000000+00:00",
        "2024-05-06 14:00:00+02",
        "2024-05-06T14:00:00.0+0200",
        "2024-05-06 12:00:00 UTC",
        "2024-05-06 12:00:00.000 UTC",
        "2024-05-06 04:00:00.000 -0800",
        "2024-05-06 12:00:00,000",
        "2024-05-06+12:00:00.0000000000",
        "2024-05-06T14:00:00+02:00[Europe/Paris]",
        "20240506T120000Z",
        "Mon, 06 May 2024 12:00:00 GMT",
        " 2024-05-06 12:00:00 ",
    ],
)
def test_times_of_any_tool(tmp_path: Path, time: str) -> None:
    found = rows(read_manifest(write(tmp_path, "m.csv", f'uri,modified_at\n/a,"{time}"\n/b,\n/c,NaT\n')))
    assert [row[schema.MODIFIED_AT] for row in found] == [NOON, None, None]
    assert rows(read_manifest(write(tmp_path, "m.jsonl", f'{{"uri": "/a", "modified_at": "{time}"}}')))[0][
        schema.MODIFIED_AT
    ] == NOON  # fmt: skip


def test_times_of_several_kinds_side_by_side_and_fractions(tmp_path: Path) -> None:
    text = "uri,modified_at\n"
    text += "/a,2024-05-06 12:00:00.1234567891\n/b,2024-05-06T12:00:00Z\n/c,2024-05-06\n/d,2024-05-06 12:00:00.5\n"
    found = [row[schema.MODIFIED_AT] for row in rows(read_manifest(write(tmp_path, "m.csv", text)))]
    assert found == [NOON.replace(microsecond=123456), NOON, NOON.replace(hour=0), NOON.replace(microsecond=500000)]


NANOSECONDS = int(NOON.timestamp() * 10**9) + 123_456_789


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (pa.array([NANOSECONDS], pa.timestamp("ns")), NOON.replace(microsecond=123_456)),
        (pa.array([NANOSECONDS], pa.timestamp("ns", "Europe/Paris")), NOON.replace(microsecond=123_456)),
        (pa.array([int(NOON.timestamp())], pa.timestamp("s")), NOON),
        (pa.array([int(NOON.timestamp() * 1000)], pa.timestamp("ms", "UTC")), NOON),
        (pa.array([NOON.date()]), NOON.replace(hour=0)),
        (pa.array(["2024-05-06 12:00:00"]), NOON),
        (pa.array(["2024-05-06 12:00:00"]).dictionary_encode(), NOON),
    ],
)
def test_times_in_parquet(tmp_path: Path, times: pa.Array, expected: dt.datetime) -> None:
    pq.write_table(pa.table({"uri": ["/a"], "modified_at": times}), tmp_path / "m.parquet")
    assert rows(read_manifest(f"{tmp_path}/m.parquet"))[0][schema.MODIFIED_AT] == expected


def test_times_of_old_spark_reach_beyond_nanoseconds(tmp_path: Path) -> None:
    far = dt.datetime(9999, 12, 31, tzinfo=dt.UTC)
    table = pa.table({"uri": ["/a"], "modified_at": pa.array([far], pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "m.parquet", use_deprecated_int96_timestamps=True)
    assert rows(read_manifest(f"{tmp_path}/m.parquet"))[0][schema.MODIFIED_AT] == far


@pytest.mark.parametrize(
    "sizes",
    [
        pa.array([10500.0, float("nan")]),
        pa.array([10500, None], pa.uint32()),
        pa.array([decimal.Decimal(10500), None], pa.decimal128(38, 0)),
        pa.array([decimal.Decimal("10500.00"), None]),
        pa.array(["10500", "NULL"]),
        pa.array(["10500.0", ""]).cast(pa.large_string()),
    ],
)
def test_sizes_in_parquet(tmp_path: Path, sizes: pa.Array) -> None:
    pq.write_table(pa.table({"uri": ["/a", "/b"], "size_bytes": sizes}), tmp_path / "m.parquet")
    listing = read_manifest(f"{tmp_path}/m.parquet")
    assert [row[schema.SIZE_BYTES] for row in rows(listing)] == [10500, None]
    assert listing.search.problems == []


def test_versions_that_are_none(tmp_path: Path) -> None:
    text = 'uri,ETag\n/a,"""e1"""\n/b,NULL\n/c,\n/d,e2\n'
    assert [row[schema.ETAG] for row in rows(read_manifest(write(tmp_path, "m.csv", text)))] == ["e1", None, None, "e2"]


@pytest.mark.parametrize(
    ("column", "odd", "wanted"),
    [
        ("size_bytes", "10.5", "write a whole number of bytes, such as 10500, or nothing"),
        ("size_bytes", "1 KB", "write a whole number"),
        ("size_bytes", "10.500", "write a whole number"),
        ("size_bytes", "99999999999999999999", "write a whole number"),
        ("modified_at", "1714996800", "write it as 2024-01-31T12:00:00Z"),
        ("modified_at", "06.05.2024 12:00", "write it as 2024-01-31T12:00:00Z"),
        ("modified_at", "2024-13-01 00:00:00", "write it as 2024-01-31T12:00:00Z"),
        ("modified_at", "2024-05-06+02:00", "write it as 2024-01-31T12:00:00Z"),
    ],
)
def test_a_value_that_can_not_be_understood_is_named_and_its_photo_listed(
    tmp_path: Path, column: str, odd: str, wanted: str
) -> None:
    good = "5" if column == "size_bytes" else "2024-05-06 12:00:00"
    text = f"uri,{column}\n" + f"/a,{good}\n" * 12_000 + f"/b,{odd}\n/c,{good}\n"
    listing = read_manifest(write(tmp_path, "m.csv", text))
    found = rows(listing)
    assert [row[schema.URI] for row in found if row[column] is None] == ["/b"]
    assert len(found) == 12_002
    (problem,) = listing.search.problems
    assert problem.reason.startswith(
        f"1 of its rows are listed without their {column}: in row 12001 it is '{odd}': {wanted}"
    )
    with pytest.raises(ValueError, match=r"column .* can't be understood: in row 1 it is .*So it is with every row"):
        uris(write(tmp_path, "all.csv", f"uri,{column}\n/b,{odd}\n/c,\n"))


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        (
            "m.csv",
            "uri,n\n/a,1\n/x\n/b,2\n",
            "row 2 has 1 cells where there are 2 columns: put text in quotation marks",
        ),
        ("m.csv", "uri,n\n/a,1\n/x,y,z\n/b,2\n", "row 2 has 3 cells where there are 2 columns"),
        ("m.csv", "sep=;\nuri;n\n/a;1\n/x\n/b;2\n", "row 2 has 1 cells where there are 2 columns"),
        ("m.csv", b"uri,n\n/a,1\n/caf\xe9,2\n/b,2\n", "row 2 has a uri that is no UTF-8: save the list as UTF-8"),
        ("m.csv", b"uri,n\n/a,1\n/caf\xe9\n/b,2\n", "row 2 has 1 cells where there are 2 columns"),
        ("m.txt", b"/a\n/caf\xe9\n/b\n", "row 2 has a uri that is no UTF-8: save the list as UTF-8"),
        ("m.txt", b"# c\n\n/a\n/caf\xe9\n/b\n", "row 4 has a uri that is no UTF-8: save the list as UTF-8"),
        ("m.jsonl", '{"uri":"/a"}\n{"uri":"/x\n{"uri":"/b"}\n', "row 2 is no JSON (Unterminated string"),
        ("m.jsonl", '{"uri":"/a"}\n7\n{"uri":"/b"}\n', 'row 2 is no object but 7: write {"uri": …}'),
        ("m.jsonl", '{"uri":"/a"}\n{"uri":7}\n{"uri":"/b"}\n', "row 2 has the uri 7, which is no text"),
        ("m.jsonl", '{"uri":"/a"}\n{"url":"/x"}\n{"uri":"/b"}\n', "row 2 has no uri: give every row one"),
        ("m.jsonl", b'{"uri":"/a"}\n{"uri":"/caf\xe9"}\n{"uri":"/b"}\n', "row 2 is no JSON ('utf-8' codec"),
        ("m.json", '[{"uri":"/a"}, null, {"uri":"/b"}]', "row 2 is no object but null"),
    ],
)
def test_a_row_that_can_not_be_taken_apart_is_named_and_the_others_are_listed(
    tmp_path: Path, name: str, text: str | bytes, reason: str
) -> None:
    listing = read_manifest(write(tmp_path, name, text))
    assert [row[schema.URI] for row in rows(listing)] == ["/a", "/b"]
    (problem,) = listing.search.problems
    assert problem.reason.startswith(f"1 of its rows name no photo: {reason}"), problem.reason


def test_rows_keep_their_numbers_behind_lost_ones(tmp_path: Path) -> None:
    text = "uri,size_bytes\n" + "/a,1\n/x\n" * 10_000 + "/b,many\n"
    listing = read_manifest(write(tmp_path, "m.csv", text))
    assert len(rows(listing)) == 10_001
    lost, odd = listing.search.problems
    assert lost.reason.startswith("10000 of its rows name no photo: row 2 has 1 cells")
    assert odd.reason.startswith("1 of its rows are listed without their size_bytes: in row 20001 it is 'many'")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("m.csv", 'uri,n\n/a,"x\n/b,y\n/c,z\n', r"m\.csv, row 1 opens a quotation mark that is never closed"),
        ("m.csv", 'uri\n/a\n"/b\n/c\n', r"m\.csv, row 2 opens a quotation mark that is never closed"),
        ("m.csv", gzip.compress(NAMED.encode() * 999)[:-30], r"m\.csv"),
        ("m.csv.xz", lzma.compress(NAMED.encode() * 999)[:-30], r"m\.csv\.xz can't be unpacked"),
        ("m.csv", NAMED.encode("utf-16") + b"a", r"m\.csv is no readable text: .*Save it as UTF-8"),
        ("m.csv", b"PK\x03\x04 a workbook", r"m\.csv is a zip or an Excel workbook, whatever its name says"),
        ("m.csv", b"\xd0\xcf\x11\xe0 a workbook", r"m\.csv is an Excel workbook"),
        ("m.parquet", NAMED, r"m\.parquet is not a readable manifest: it is no Parquet file"),
        ("m.json", '[{"uri":"/a"}, {"uri"', r"m\.json, item 2: its array can't be read"),
        ("m.json", '{"Contents": [{"Key": "a"}]}', "no column named uri"),
        (
            "m.json",
            '{\n  "uri": "/a"\n}\n',
            "row 1 is no JSON .*: write one object a line, and so it is with every row",
        ),
        ("m.jsonl", "[" * 100_000, r"m\.jsonl"),
        ("m.txt", "# nothing\n\n", "the manifest has no rows"),
        ("m.txt", "/" + "n" * (17 << 20), "has a line of more than 16 MB"),
        ("m.jsonl", '{"uri": "' + "n" * (17 << 20), "has a line of more than 16 MB"),
    ],
)
def test_a_list_that_can_not_be_read_says_why(tmp_path: Path, name: str, data: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        uris(write(tmp_path, name, data))


def test_quotes_within_names_are_no_open_quotes(tmp_path: Path) -> None:
    assert uris(write(tmp_path, "m.csv", 'uri,n\n/5" disk.jpg,1\n/b,2\n')) == ['/5" disk.jpg', "/b"]


def test_blanks_before_a_whole_name_are_none_of_it(tmp_path: Path) -> None:
    text = "n, uri\n1, /a.jpg\n2, s3://b/c d.jpg\n3, e.jpg\n4, https://h/f.jpg\n"
    found = uris(write(tmp_path, "m.csv", text), allow_http=True)
    assert found == ["/a.jpg", "s3://b/c d.jpg", f"{tmp_path}/ e.jpg", "https://h/f.jpg"]
    assert uris(write(tmp_path, "m.csv", "n, uri\n1, /a.jpg\n")) == ["/a.jpg"]
    with pytest.raises(ValueError, match=r"https://h/f\.jpg is on a web server"):
        uris(write(tmp_path, "m.txt", " https://h/f.jpg\n"))


def test_a_parquet_file_under_a_texts_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": ["/a"]}), tmp_path / "m.csv")
    assert uris(f"{tmp_path}/m.csv") == ["/a"]


@pytest.mark.parametrize("make", [lambda d: d, lambda d: d.lower(), lambda d: d.upper()])
def test_file_uris_of_every_writing_are_one_photo(tmp_path: Path, make: Callable[[str], str]) -> None:
    scheme, host = make("file:"), make("localhost")
    lines = [
        f"{scheme}//{tmp_path}/a%20b.jpg",
        f"{scheme}{tmp_path}/a%20b.jpg",
        f"{scheme}//{host}{tmp_path}/a%20b.jpg",
    ]
    assert uris(write(tmp_path, "m.csv", "\n".join(["uri", *lines]))) == [f"{tmp_path}/a b.jpg"] * 3
    assert uris(write(tmp_path, "m.txt", "\n".join(lines))) == [f"{tmp_path}/a b.jpg"] * 3


@pytest.mark.parametrize("name", ["m.csv", "m.txt", "m.jsonl", "parts.csv/part-0.csv"])
def test_a_file_of_another_machine_ends_it_and_names_the_row(tmp_path: Path, name: str) -> None:
    lines = ["/a.jpg", "file://server/share/a.jpg"]
    text = "".join(f'"{line}"\n' for line in lines) if name.endswith("jsonl") else "\n".join(lines)
    write(tmp_path, name, f"uri\n{text}" if name.endswith("csv") else text)
    with pytest.raises(
        ValueError, match=r"row 2.*: file://server/share/a\.jpg is a file of the machine server: write file"
    ):
        uris(f"{tmp_path}/{name.partition('/')[0]}")


def test_names_that_nobody_here_can_mean_fail_for_themselves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd = ["C:\\photos\\a.jpg", "\\\\server\\share\\a.jpg", "s3:/bucket/a.jpg", "file://", "c:/a.jpg"]
    listing = read_manifest(write(tmp_path, "m.txt", "\n".join(["/a.jpg", *odd])), roots=["/"])
    assert len(rows(listing)) == 6
    assert "5 photos can't be read; row 2: C:\\photos\\a.jpg is a path of Windows" in caplog.text
    with pytest.raises(ValueError, match=r"row 1: s3:/bucket/a\.jpg lacks a slash: write s3://"):
        uris(write(tmp_path, "m.txt", "s3:/bucket/a.jpg\n"))


def test_a_long_list_is_read_in_parts(tmp_path: Path) -> None:
    path = write(tmp_path, "m.txt", "".join(f"/photos/{i}.jpg\n" for i in range(150_000)))
    sizes = [batch.num_rows for batch in read_manifest(path)]
    assert sum(sizes) == 150_000
    assert max(sizes) <= 10_000
    text = ",\n".join(f'{{"uri": "/photos/{i}.jpg"}}' for i in range(50_000))
    found = uris(write(tmp_path, "m.json", f"[{text}]"))
    assert found[::49_999] == ["/photos/0.jpg", "/photos/49999.jpg"]
    assert len(found) == 50_000
