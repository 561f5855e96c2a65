"""EXIF, XMP and IPTC put together: who is believed first, what is known in UTC, and the owner's words."""

from __future__ import annotations

import hashlib
import struct
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.decode.exif import ExifFacts, read_exif
from pipeline.decode.iptc import IptcFacts, read_iptc
from pipeline.decode.recorded import CUT, MAX_CAPTION_CHARS, MAX_KEYWORDS, MAX_WORDS_CHARS, recorded
from pipeline.decode.xmp import XmpFacts
from pipeline.schema import RecordedBy, UtcBy
from tests.pipeline.decode.test_carried import iim, resource
from tests.pipeline.decode.test_exif import PARIS, Tags, ascii_tag, block, rationals

NOON = datetime(2019, 7, 14, 12)
NOON_UTC = datetime(2019, 7, 14, 12, tzinfo=UTC)
TWO_HOURS = timedelta(hours=2)
TAKEN = {0x9003: ascii_tag("2019:07:14 12:00:00")}


def at_gps(hour: int, minute: int = 0, day: str = "2019:07:14") -> Tags:
    return {7: rationals((hour, 1), (minute, 1), (0, 1)), 29: ascii_tag(day)}


@pytest.mark.parametrize(
    ("main", "camera", "gps", "expected", "by"),
    [
        ({}, {0x9011: ascii_tag("+02:00")}, {}, NOON_UTC - TWO_HOURS, UtcBy.OFFSET_TIME),
        ({}, {0x9010: ascii_tag("+02:00")}, {}, NOON_UTC - TWO_HOURS, UtcBy.OFFSET_TIME),
        ({0x0132: TAKEN[0x9003]}, {0x9010: ascii_tag("+02:00")}, {}, NOON_UTC - TWO_HOURS, UtcBy.OFFSET_TIME),
        # the offset of the computer where it was changed later
        ({0x0132: ascii_tag("2020:01:01 00:00:00")}, {0x9010: ascii_tag("+02:00")}, {}, None, None),
        ({}, {0x9011: ascii_tag("   :  ")}, at_gps(9, 58), NOON_UTC - TWO_HOURS, UtcBy.GPS_TIME),
        ({}, {0x9011: ascii_tag("-04:00")}, at_gps(9, 58), NOON_UTC + 2 * TWO_HOURS, UtcBy.OFFSET_TIME),
        ({}, {}, at_gps(10, day="2019:07:10"), None, None),
        ({}, {}, {7: at_gps(10)[7]}, None, None),
        ({}, {0x9003: ascii_tag("")}, at_gps(10, 30), NOON_UTC - TWO_HOURS + timedelta(minutes=30), UtcBy.GPS_TIME),
        ({}, {}, {}, None, None),
    ],
)
def test_what_is_known_in_utc(main: Tags, camera: Tags, gps: Tags, expected: datetime | None, by: UtcBy | None) -> None:
    found = recorded(read_exif(block(main, TAKEN | camera, gps)))
    assert (found.taken_at_utc, found.utc_by) == (expected, by)


def test_fractions_of_a_second_are_kept() -> None:
    camera = TAKEN | {0x9291: ascii_tag("123"), 0x9011: ascii_tag("Z")}
    found = recorded(read_exif(block(camera=camera)))
    assert found.taken_at == NOON.replace(microsecond=123_000)
    assert found.taken_at_utc == NOON_UTC.replace(microsecond=123_000)


@pytest.mark.parametrize("status", ["A", "", "V"], ids=["active", "unsaid", "void"])
def test_what_its_receiver_calls_void_is_a_position(status: str) -> None:
    """Real phones say so of fixes from the very second."""
    assert read_exif(block(gps=PARIS | {9: ascii_tag(status)})).lat_deg is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_positions_in_floating_point_are_numbers_or_none(value: float) -> None:
    for kind, layout in ((11, "<f"), (12, "<d")):
        good, bad = ((kind, 1, struct.pack(layout, number)) for number in (48.5, value))
        assert read_exif(block(gps=PARIS | {2: good})).lat_deg == 48.5
        assert read_exif(block(gps=PARIS | {2: bad})).lat_deg is None


def test_positions_in_the_order_of_trust() -> None:
    exif, xmp = ExifFacts(lat_deg=48.85, lon_deg=2.35), XmpFacts(lat_deg=48.86, lon_deg=2.35)
    assert recorded(exif).by == recorded(exif, xmp).by == RecordedBy.EXIF
    assert recorded(exif).apart_km is None
    assert recorded(exif, xmp).apart_km == pytest.approx(1.11, abs=0.01)
    assert (recorded(exif, xmp).lat_deg, recorded(ExifFacts(), xmp).lat_deg) == (48.85, 48.86)
    assert (recorded(ExifFacts(), xmp).by, recorded(ExifFacts()).by) == (RecordedBy.XMP, None)


@pytest.mark.parametrize("who", [0, 1, 2, 3])
def test_times_in_the_order_of_trust(who: int) -> None:
    times = [NOON + timedelta(days=day) for day in range(4)]
    facts = (
        ExifFacts(taken_at=times[0]) if who == 0 else ExifFacts(taken_at=times[3], is_change=True),
        XmpFacts(taken_at=times[1]) if who <= 1 else XmpFacts(),
        IptcFacts(taken_at=times[2], offset=TWO_HOURS) if who <= 2 else IptcFacts(),
    )
    found = recorded(*facts)
    assert found.taken_at == times[who]
    assert found.utc_by == (UtcBy.OFFSET_TIME if who == 2 else None)


NAMES = [
    (2, 90, "Zürich"),
    (2, 95, "ZH"),
    (2, 100, "CHE"),
    (2, 101, "Suisse"),
    (2, 120, "Été"),
    (2, 25, "lac"),
    (2, 25, "été"),
]


@pytest.mark.parametrize(
    ("encoding", "head"),
    [("utf-8", [(1, 90, b"\x1b%G")]), ("utf-8", []), ("latin-1", []), ("cp1252", [(1, 90, b"\x1b.A")])],
)
def test_iptc_in_its_encodings(encoding: str, head: list[tuple[int, int, bytes]]) -> None:
    data = iim(*head, *((record, number, text.encode(encoding)) for record, number, text in NAMES))
    for facts in (read_iptc(iim=data), read_iptc(resource(0x0404, data))):
        assert (facts.city, facts.region, facts.country_code, facts.country) == ("Zürich", "ZH", "CHE", "Suisse")
        assert (facts.caption, facts.keywords) == ("Été", ("lac", "été"))


def test_the_time_of_iptc() -> None:
    facts = read_iptc(iim=iim((2, 55, b"20190714"), (2, 60, b"120000+0200")))
    assert (facts.taken_at, facts.offset) == (NOON, TWO_HOURS)
    assert read_iptc(iim=iim((2, 55, b"20190714"))).taken_at == datetime(2019, 7, 14)
    assert read_iptc(iim=iim((2, 55, b"00000000"))) == IptcFacts()


@pytest.mark.parametrize(("digest_of", "expected"), [(None, "xmp"), ("itself", "xmp"), ("an older one", "iptc")])
def test_xmp_is_believed_unless_iptc_was_changed_after_it(digest_of: str | None, expected: str) -> None:
    data = iim((2, 90, b"iptc"), (2, 101, b"Suisse"))
    digest = hashlib.md5(data if digest_of == "itself" else b"older", usedforsecurity=False).digest()
    resources = resource(0x0404, data) + (resource(0x0425, digest) if digest_of else b"")
    found = recorded(ExifFacts(), XmpFacts(city="xmp", region="only xmp"), read_iptc(resources))
    assert (found.city, found.region, found.country) == (expected, "only xmp", "Suisse")


def test_words_are_printable_in_one_line_and_cut_with_a_sign() -> None:
    many = tuple(f"word {number}" for number in range(MAX_KEYWORDS + 5))
    facts = XmpFacts(caption="one\r\n two\t\x1b[31mred", city="c" * 300, keywords=many)
    found = recorded(ExifFacts(), facts)
    assert found.caption == "one two \\x1b[31mred"
    assert found.city == "c" * (MAX_WORDS_CHARS - 1) + CUT
    assert found.keywords == (*many[:MAX_KEYWORDS], CUT)
    megabyte = recorded(ExifFacts(), XmpFacts(caption="\x01 " * (1 << 20))).caption
    assert megabyte is not None
    assert len(megabyte) == MAX_CAPTION_CHARS
    assert megabyte.endswith(CUT)
    blanks = recorded(ExifFacts(), XmpFacts(caption=" " * 100_000 + "end")).caption
    assert blanks == "end"


def test_long_datasets_have_lengths_of_lengths() -> None:
    long = b"x" * 70_000
    data = iim((2, 90, b"Paris")) + b"\x1c\x02\x78\x80\x04" + struct.pack(">I", len(long)) + long
    assert read_iptc(iim=data).caption == long.decode()
    assert read_iptc(iim=data[:-1]) == IptcFacts(city="Paris")


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 200), noise=st.binary(max_size=12), length=st.integers(0, 12))
def test_no_damage_of_iptc_raises(at: int, noise: bytes, length: int) -> None:
    whole = resource(0x0404, iim(*((record, number, text.encode()) for record, number, text in NAMES)))
    recorded(ExifFacts(), None, read_iptc(whole[:at] + noise + whole[at + length :]))
    read_iptc(noise, noise)
