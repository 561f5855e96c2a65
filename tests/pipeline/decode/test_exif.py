"""What cameras write, including what they should not."""

from __future__ import annotations

import struct
import time
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.decode.exif import ExifFacts, read_exif, tiff_extent_bytes
from tests.support.photo_samples import exif_block

ASCII, SHORT, LONG, RATIONAL, SIGNED_RATIONAL, DOUBLE = 2, 3, 4, 5, 10, 12
Tags = dict[int, tuple[int, int, bytes]]  # tag → type, count, the values' bytes (little-endian)


def ascii_tag(text: str) -> tuple[int, int, bytes]:
    return ASCII, len(text) + 1, text.encode() + b"\0"


def rationals(*pairs: tuple[int, int]) -> tuple[int, int, bytes]:
    return RATIONAL, len(pairs), b"".join(struct.pack("<LL", *pair) for pair in pairs)


def block(main: Tags | None = None, camera: Tags | None = None, gps: Tags | None = None) -> bytes:
    """Lay out an EXIF block by hand, so that it can be as wrong as wanted."""
    tiff = b"II\x2a\0" + struct.pack("<L", 8)
    children = {0x8769: camera, 0x8825: gps}
    main = dict(main or {}) | {tag: (LONG, 1, b"\0\0\0\0") for tag, child in children.items() if child is not None}
    tiff += _directory(main, len(tiff))
    for tag, child in children.items():
        if child is not None:
            entry = tiff.index(struct.pack("<HHL", tag, LONG, 1))
            tiff = tiff[: entry + 8] + struct.pack("<L", len(tiff)) + tiff[entry + 12 :]
            tiff += _directory(child, len(tiff))
    return b"Exif\0\0" + tiff


def _directory(tags: Tags, at: int) -> bytes:
    entries, values = b"", b""
    values_at = at + 2 + 12 * len(tags) + 4
    for tag, (kind, count, data) in tags.items():
        place = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<L", values_at + len(values))
        values += data if len(data) > 4 else b""
        entries += struct.pack("<HHL", tag, kind, count) + place
    return struct.pack("<H", len(tags)) + entries + b"\0\0\0\0" + values


LAT = rationals((48, 1), (51, 1), (2976, 100))
LON = rationals((2, 1), (17, 1), (4020, 100))
PARIS = {1: ascii_tag("N"), 2: LAT, 3: ascii_tag("E"), 4: LON}


@pytest.mark.parametrize(
    ("lat_deg", "lon_deg"), [(48.8583, 2.2945), (-33.8568, 151.2153), (-22.9519, -43.2105), (64, -21)]
)
def test_position_time_and_orientation_as_pillow_writes_them(lat_deg: float, lon_deg: float) -> None:
    taken_at = datetime(2021, 7, 14, 12, 30, 5)
    facts = read_exif(exif_block(lat_deg, lon_deg, taken_at, orientation=6))
    assert (facts.lat_deg, facts.lon_deg) == pytest.approx((lat_deg, lon_deg), abs=1e-6)
    assert (facts.taken_at, facts.orientation) == (taken_at, 6)


def test_hand_made_block_reads_like_a_camera_s() -> None:
    facts = read_exif(block(gps=PARIS))
    assert (facts.lat_deg, facts.lon_deg) == pytest.approx((48.8582667, 2.2945), abs=1e-7)


@pytest.mark.parametrize(
    ("change", "lat_deg"),
    [
        ({1: ascii_tag("n")}, 48.8582667),
        ({1: ascii_tag("South")}, -48.8582667),
        ({2: rationals((48, 1), (515, 10))}, 48.8583333),
        ({2: rationals((488583, 10000))}, 48.8583),
        ({2: rationals((48, 1), (51, 1), (0, 0))}, 48.85),
        ({2: ascii_tag("48,51.5N")}, 48.8583333),
        ({1: ascii_tag("S"), 2: (SIGNED_RATIONAL, 1, struct.pack("<ll", -12, 1))}, -12.0),
    ],
)
def test_odd_but_clear_positions_are_read(change: Tags, lat_deg: float) -> None:
    assert read_exif(block(gps=PARIS | change)).lat_deg == pytest.approx(lat_deg, abs=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {1: ascii_tag("")},  # which hemisphere?
        {1: ascii_tag("E")},
        {1: (SHORT, 1, b"N\0")},
        {2: rationals((0, 0), (0, 0), (0, 0))},
        {2: rationals((48, 0), (51, 1), (0, 1))},
        {2: rationals((48, 1), (51, 0), (0, 1))},
        {2: rationals((91, 1), (0, 1), (0, 1))},
        {2: rationals((48, 1), (75, 1), (0, 1))},
        {4: rationals((4294967295, 1), (0, 1), (0, 1))},
        {2: rationals((0, 1)), 4: rationals((0, 1))},  # "null island"
        {2: (SIGNED_RATIONAL, 1, struct.pack("<ll", -12, 1))},  # minus and N contradict each other
        {2: (RATIONAL, 0, b"")},
        {2: (99, 3, b"\0\0\0\0")},
        {2: (RATIONAL, 3, b"\xff\xff\xff\x7f")},  # values at an absurd offset
        {2: ascii_tag("unknown")},
    ],
)
def test_unbelievable_positions_are_none(change: Tags) -> None:
    facts = read_exif(block(gps=PARIS | change))
    assert (facts.lat_deg, facts.lon_deg) == (None, None)


@pytest.mark.parametrize(
    ("original", "changed", "expected"),
    [
        ("2021:07:14 12:30:05", "2022:01:01 00:00:00", datetime(2021, 7, 14, 12, 30, 5)),
        ("0000:00:00 00:00:00", "2022:01:01 00:00:00", datetime(2022, 1, 1)),
        ("    :  :     :  :  ", "2022-01-01T10:11:12.5+02:00", datetime(2022, 1, 1, 10, 11, 12, 500000)),
        ("2021:13:45 25:61:61", "\xff\xfe", None),
    ],
)
def test_time_is_the_first_believable_one(original: str, changed: str, expected: datetime | None) -> None:
    facts = read_exif(block(main={0x0132: ascii_tag(changed)}, camera={0x9003: ascii_tag(original)}))
    assert facts.taken_at == expected


@pytest.mark.parametrize(("written", "expected"), [(1, 1), (8, 8), (0, 1), (9, 1), (65535, 1)])
def test_orientation_out_of_range_is_upright(written: int, expected: int) -> None:
    assert read_exif(block(main={0x0112: (SHORT, 1, struct.pack("<H", written))})).orientation == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 6.0])
def test_an_orientation_that_is_no_whole_number_is_upright(value: float) -> None:
    assert read_exif(block(main={0x0112: (DOUBLE, 1, struct.pack("<d", value))})) == ExifFacts()
    assert read_exif(block(main={0x0112: rationals((6, 1))})) == ExifFacts()


@pytest.mark.parametrize(("offsets_tag", "counts_tag"), [(273, 279), (324, 325)], ids=["strips", "tiles"])
def test_a_tiff_reaches_as_far_as_its_last_strip_or_tile(offsets_tag: int, counts_tag: int) -> None:
    offsets, counts = (LONG, 2, struct.pack("<LL", 5000, 200)), (LONG, 2, struct.pack("<LL", 70, 300))
    tiff = block(main={offsets_tag: offsets, counts_tag: counts}).removeprefix(b"Exif\0\0")
    assert tiff_extent_bytes(tiff) == 5070
    assert tiff_extent_bytes(block(main={offsets_tag: offsets}).removeprefix(b"Exif\0\0")) == 0
    assert tiff_extent_bytes(b"II\x2a\0" + struct.pack("<L", 100)) == 101


def test_big_tiff_and_big_endian() -> None:
    big_tiff = b"II\x2b\0\x08\0\0\0" + struct.pack("<QQ", 16, 1) + struct.pack("<HHQHxxxxxx", 0x0112, SHORT, 1, 3)
    assert read_exif(big_tiff).orientation == 3
    assert read_exif(b"MM\0\x2a" + struct.pack(">LHHHLHxx", 8, 1, 0x0112, SHORT, 1, 5)).orientation == 5


def test_absurd_size_costs_nothing() -> None:
    maker_note = {0x927C: (7, 100 << 20, bytes(100 << 20))}
    loop = block(main={0x8769: (LONG, 1, struct.pack("<L", 8)), 0x8825: (LONG, 1, struct.pack("<L", 8))})
    huge = block(camera=maker_note, gps=PARIS)
    started = time.perf_counter()
    assert read_exif(huge).lat_deg is not None
    assert read_exif(loop) == ExifFacts()
    assert read_exif(b"II\x2a\0\x08\0\0\0\xff\xff" + bytes(12 * 65535)) == ExifFacts()
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("nothing", [None, b"", b"Exif\0\0", b"II", b"II\x2a\0", b"not exif at all", b"\0" * 64])
def test_nothing_gives_no_facts(nothing: bytes | None) -> None:
    assert read_exif(nothing) == ExifFacts()


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400), st.booleans())
def test_never_raises(noise: bytes, at: int, keep_length: bool) -> None:
    good = exif_block(48.8583, 2.2945, datetime(2021, 7, 14), 6) + block({0x0132: ascii_tag("2020:01:01 00:00:00")})
    facts = read_exif(good[:at] + noise + good[at + len(noise) * keep_length :])
    assert 1 <= facts.orientation <= 8
    assert (facts.lat_deg is None) == (facts.lon_deg is None)
    assert facts.lat_deg is None or -90 <= facts.lat_deg <= 90
    assert facts.lon_deg is None or -180 <= facts.lon_deg <= 180
    read_exif(b"II\x2a\0\x08\0\0\0" + noise)
