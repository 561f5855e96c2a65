"""XMP packets as editors, phones and broken programs write them, and as attackers do."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.decode.xmp import MAX_PACKET_BYTES, XmpFacts, angle_deg, read_xmp

NAMESPACES = (
    'xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
    ' xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"'
    ' xmlns:Iptc4xmpCore="http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/" xmlns:exifEX="http://cipa.jp/exif/1.0/"'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/"'
)
PARIS = pytest.approx((48.858333, 2.351667), abs=1e-5)
POSITION = 'exif:GPSLatitude="48,51.5000N" exif:GPSLongitude="2,21.1000E"'


def packet(attributes: str = "", inside: str = "") -> bytes:
    text = (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" {NAMESPACES} {attributes}>{inside}</rdf:Description>'
        "</rdf:RDF></x:xmpmeta>"
    )
    return (text + "\n" + " " * 200 + '<?xpacket end="w"?>').encode()


def position(data: bytes) -> tuple[float | None, float | None]:
    facts = read_xmp(data)
    return facts.lat_deg, facts.lon_deg


@pytest.mark.parametrize(
    "data",
    [
        packet(POSITION),
        packet('exif:GPSLatitude="48,51,30N" exif:GPSLongitude="2,21,6E"'),
        packet('exif:GPSLatitude="48.858333" exif:GPSLongitude="2.351667"'),
        packet('exif:GPSLatitude="48,51,5000N" exif:GPSLongitude="2,21,1000E"'),
        packet(POSITION.replace("N", "").replace("E", "") + ' exif:GPSLatitudeRef="N" exif:GPSLongitudeRef="E"'),
        packet("", "<exif:GPSLatitude>48,51.5N</exif:GPSLatitude>\n<exif:GPSLongitude> 2,21.1E </exif:GPSLongitude>"),
        packet("", f"<rdf:Description {POSITION}/>"),
        packet("", f"</rdf:Description><rdf:Description {NAMESPACES} {POSITION}>"),
        packet(
            "",
            "<exif:GPSLatitude><rdf:Description><rdf:value>48,51.5N</rdf:value></rdf:Description></exif:GPSLatitude>"
            '<exif:GPSLongitude rdf:parseType="Resource"><rdf:value>2,21.1E</rdf:value></exif:GPSLongitude>',
        ),
        packet(POSITION).replace(b"exif:", b"x-y:").replace(b"xmlns:exif", b"xmlns:x-y"),
        packet(POSITION).replace(b"rdf:", b"r:").replace(b"xmlns:rdf", b"xmlns:r"),
        packet(POSITION).replace(b"x:xmpmeta", b"x:xapmeta"),
        packet(POSITION).replace(b"</x:xmpmeta>", b"").replace(b'<x:xmpmeta xmlns:x="adobe:ns:meta/">', b""),
        b"\xef\xbb\xbf" + packet(POSITION) + bytes(100),
        b'<?xml version="1.0" encoding="UTF-8"?>\n' + packet(POSITION),
        b'<!DOCTYPE x [<!ENTITY a "aaaa">]>' + packet(POSITION),
        packet(POSITION) * 2,
        packet(POSITION, "<dc:description>\0\x08\xff</dc:description>"),
        packet(
            "",
            f"<Iptc4xmpExt:LocationCreated><rdf:Bag><rdf:li><rdf:Description {POSITION}/></rdf:li></rdf:Bag>"
            "</Iptc4xmpExt:LocationCreated>",
        ),
    ],
)
def test_positions_are_found_however_they_are_written(data: bytes) -> None:
    assert position(data) == PARIS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_packets_of_all_encodings_are_read(encoding: str) -> None:
    facts = read_xmp(packet(POSITION + ' photoshop:City="Zürich 東京"').decode().encode(encoding))
    assert (facts.lat_deg, facts.lon_deg) == PARIS
    assert facts.city == "Zürich 東京"


@pytest.mark.parametrize(
    ("text", "expected_deg"),
    [
        ("48,51.4980N", 48.8583),
        ("48,51,29.88S", -48.8583),
        ("48,51,29,88N", 48.8583),
        ("48,51,4980N", 48.8583),
        ("48,8583N", 48.8583),
        ("-48,8583", -48.8583),
        ("48,51n", 48.85),
        ("48 51 29.88 N", 48.8583),
        ("N 48° 51' 29.88\"", 48.8583),
        ("48 deg 51' 29.88\" N", 48.8583),
        ("48/1,51/1,2988/100N", 48.8583),
        ("-48.8583S", -48.8583),
        ("+48.8583", 48.8583),
        ("-48.8583N", None),
        ("48,51.498", None),  # without its letter the hemisphere is a guess
        ("48,51.498E", None),
        ("90.0001N", None),
        ("48,60.1N", None),
        ("nan", None),
        ("1/0N", None),
        ("0x10N", None),
        ("48.8.5N", None),
        ("N", None),
        ("9" * 400 + "N", None),
    ],
)
def test_angles_in_words(text: str, expected_deg: float | None) -> None:
    found_deg = angle_deg(text, "", "NS", 90.0)
    assert found_deg == (None if expected_deg is None else pytest.approx(expected_deg, abs=1e-6))


@pytest.mark.parametrize(
    "data",
    [
        packet('exif:GPSLatitude="0,0.0N" exif:GPSLongitude="0,0.0E"'),
        packet('exif:GPSLatitude="95,0.0N" exif:GPSLongitude="2,21.1E"'),
        packet('exif:GPSLatitude="48,51.5N"'),
        packet("", f"<xmpMM:Pantry><rdf:Bag><rdf:li><rdf:Description {POSITION}/></rdf:li></rdf:Bag></xmpMM:Pantry>"),
        packet(POSITION)[:-300],
        packet(POSITION).replace(b"xmlns:exif", b"xmlns:other"),
        packet(POSITION).replace(b"</rdf:RDF>", b""),
        packet(POSITION, "<dc:title>&lol;</dc:title>"),
        b"",
        b"junk",
    ],
)
def test_what_is_no_position_or_no_packet_says_nothing(data: bytes) -> None:
    assert position(data) == (None, None)


@pytest.mark.parametrize(
    ("attributes", "taken_at", "offset_h", "gps_at_utc"),
    [
        ('exif:DateTimeOriginal="2019-07-14T12:00:00"', datetime(2019, 7, 14, 12), None, None),
        ('exif:DateTimeOriginal="2019-07-14T12:00:00.25+02:00"', datetime(2019, 7, 14, 12, 0, 0, 250000), 2, None),
        ('photoshop:DateCreated="2019-07-14T12:00Z"', datetime(2019, 7, 14, 12), 0, None),
        ('xmp:CreateDate="2019-07-14" xmp:ModifyDate="2020-01-01"', datetime(2019, 7, 14), None, None),
        (
            'photoshop:DateCreated="2019-07-14" xmp:CreateDate="2019-07-14T12:00:00"',
            datetime(2019, 7, 14, 12),
            None,
            None,
        ),
        ('xmp:CreateDate="2021-01-01" photoshop:DateCreated="2019-07-14"', datetime(2019, 7, 14), None, None),
        (
            'exif:DateTimeOriginal="2019-07-14T12:00:00" exifEX:OffsetTimeOriginal="-03:30"',
            datetime(2019, 7, 14, 12),
            -3.5,
            None,
        ),
        ('exif:GPSTimeStamp="2019-07-14T10:00:00Z"', None, None, datetime(2019, 7, 14, 10, tzinfo=UTC)),
        ('exif:GPSDateTime="2019-07-14T10:00:00"', None, None, datetime(2019, 7, 14, 10, tzinfo=UTC)),
        (
            'exif:GPSDateStamp="2019:07:14" exif:GPSTimeStamp="10:00:00"',
            None,
            None,
            datetime(2019, 7, 14, 10, tzinfo=UTC),
        ),
        ('exif:DateTimeOriginal="yesterday"', None, None, None),
    ],
)
def test_times(attributes: str, taken_at: datetime | None, offset_h: float | None, gps_at_utc: datetime | None) -> None:
    facts = read_xmp(packet(attributes))
    offset = None if offset_h is None else timedelta(hours=offset_h)
    assert (facts.taken_at, facts.offset, facts.gps_at_utc) == (taken_at, offset, gps_at_utc)


def test_words() -> None:
    inside = """
        <dc:description><rdf:Alt><rdf:li xml:lang="de">Turm</rdf:li><rdf:li xml:lang="x-default">The tower &amp; me
        </rdf:li></rdf:Alt></dc:description>
        <dc:subject><rdf:Bag><rdf:li>tower</rdf:li><rdf:li>été</rdf:li><rdf:li>tower</rdf:li></rdf:Bag></dc:subject>
        <photoshop:Country>France</photoshop:Country>
        <Iptc4xmpExt:LocationShown><rdf:Bag><rdf:li Iptc4xmpExt:City="Rome"/></rdf:Bag></Iptc4xmpExt:LocationShown>
        """
    names = 'photoshop:City="Paris" photoshop:State="Île-de-France" Iptc4xmpCore:CountryCode="FRA"'
    facts = read_xmp(packet(names, inside))
    assert (facts.city, facts.region, facts.country, facts.country_code) == ("Paris", "Île-de-France", "France", "FRA")
    assert (facts.caption, facts.keywords) == ("The tower & me", ("tower", "été"))


def test_the_place_where_it_was_taken_comes_before_the_older_fields() -> None:
    created = (
        '<Iptc4xmpExt:LocationCreated><rdf:Bag><rdf:li rdf:parseType="Resource"><Iptc4xmpExt:City>Lyon'
        "</Iptc4xmpExt:City></rdf:li></rdf:Bag></Iptc4xmpExt:LocationCreated>"
    )
    facts = read_xmp(packet('photoshop:City="Paris" photoshop:Country="France"', created))
    assert (facts.city, facts.country) == ("Lyon", "France")


@pytest.mark.parametrize(
    "bomb",
    [
        b'<!DOCTYPE l [<!ENTITY a "' + b"a" * 10_000 + b'">]>' + packet(POSITION, "<dc:title>" + "&a;" * 9999),
        b"<!DOCTYPE l [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>" + packet(POSITION, "<dc:title>&a;</dc:title>"),
        packet(POSITION, "<dc:title>" * 100_000 + "</dc:title>" * 100_000),
        packet(POSITION, "<dc:title/>" * 500_000),
        packet(POSITION + " ".join(f'dc:t{number}=""' for number in range(250_000))),
        packet(POSITION + ' dc:title="' + "x" * MAX_PACKET_BYTES + '"'),
    ],
    ids=["entities", "external", "deep", "long", "wide", "huge"],
)
def test_bombs_say_nothing_and_cost_little(bomb: bytes) -> None:
    tracemalloc.start()
    try:
        assert read_xmp(bomb) == XmpFacts()
        assert tracemalloc.get_traced_memory()[1] < 8 * len(bomb) + (1 << 20)
    finally:
        tracemalloc.stop()


@settings(max_examples=100, deadline=None)
@given(at=st.integers(0, 900), noise=st.binary(max_size=20), length=st.integers(0, 40))
def test_no_damage_raises(at: int, noise: bytes, length: int) -> None:
    whole = packet(POSITION, "<dc:subject><rdf:Bag><rdf:li>tower</rdf:li></rdf:Bag></dc:subject>")
    facts = read_xmp(whole[:at] + noise + whole[at + length :])
    assert (facts.lat_deg is None) == (facts.lon_deg is None)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60), st.text(max_size=3))
def test_no_words_raise_as_an_angle(text: str, ref: str) -> None:
    found_deg = angle_deg(text, ref, "EW", 180.0)
    assert found_deg is None or -180 <= found_deg <= 180
