"""Where each container keeps EXIF, XMP and IPTC, as cameras and programs put them there, and as they should not."""

from __future__ import annotations

import hashlib
import struct
import zlib
from datetime import datetime

import pyarrow as pa
import pytest
from PIL import Image, TiffImagePlugin

from pipeline.decode.carried import MAX_BLOCK_BYTES, Carried, carried
from pipeline.decode.photo import DecodedPhoto, DecodeTarget, decode_photo
from pipeline.schema import RecordedBy
from tests.pipeline.decode.test_xmp import POSITION, packet
from tests.support.photo_samples import china_image, encode, exif_block

TARGET = DecodeTarget(32, 36)
SMALL = china_image().resize((160, 107))
ROME, PARIS = pytest.approx((41.9, 12.5), abs=1e-4), pytest.approx((48.858333, 2.351667), abs=1e-4)
EXIF = exif_block(41.9, 12.5, datetime(2020, 1, 2, 3, 4, 5))
PACKET = packet(POSITION + ' exif:DateTimeOriginal="2019-07-14T12:00:00" photoshop:City="Paris"')
FORMATS = ("jpeg", "png", "webp", "tiff", "heic", "avif")


def segment(marker: int, payload: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(payload) + 2) + payload


def jpeg(*segments: bytes) -> bytes:
    plain = encode(SMALL, "jpeg")
    return plain[:2] + b"".join(segments) + plain[2:]


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(*chunks: bytes) -> bytes:
    plain = encode(SMALL, "png")
    return plain[:33] + b"".join(chunks) + plain[33:]


def profile(name: str, body: bytes, kind: bytes = b"zTXt") -> bytes:
    digits = body.hex()
    lines = "\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    text = f"\n{name}\n{len(body):8d}\n{lines}\n".encode()
    middle = {b"zTXt": b"\0\0", b"tEXt": b"\0", b"iTXt": b"\0\1\0\0\0"}[kind]
    return chunk(
        kind, b"Raw profile type " + name.encode() + middle + (text if kind == b"tEXt" else zlib.compress(text))
    )


def iim(*datasets: tuple[int, int, bytes]) -> bytes:
    return b"".join(b"\x1c" + bytes((r, n)) + struct.pack(">H", len(v)) + v for r, n, v in datasets)


def resource(number: int, body: bytes, name: bytes = b"") -> bytes:
    pascal = bytes((len(name),)) + name
    pascal += bytes(len(pascal) % 2)
    return b"8BIM" + struct.pack(">H", number) + pascal + struct.pack(">I", len(body)) + body + bytes(len(body) % 2)


def photoshop(*resources: bytes) -> bytes:
    return segment(0xED, b"Photoshop 3.0\0" + b"".join(resources))


def decoded(data: bytes) -> DecodedPhoto:
    return decode_photo(data, TARGET)


def place(data: bytes) -> tuple[tuple[float | None, float | None], RecordedBy | None]:
    found = decoded(data).recorded
    return (found.lat_deg, found.lon_deg), found.by


def app1(body: bytes) -> bytes:
    return segment(0xE1, body)


def with_xmp(name: str, xmp: bytes, **options: bytes) -> bytes:
    if name == "png":
        return png(chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + xmp))
    return tiff(700, 1, xmp, **options) if name == "tiff" else encode(SMALL, name, xmp=xmp, **options)


XAP = b"http://ns.adobe.com/xap/1.0/\0"


@pytest.mark.parametrize("name", FORMATS)
def test_exif_and_xmp_of_every_format(name: str) -> None:
    assert place(encode(SMALL, name, exif=EXIF)) == (ROME, RecordedBy.EXIF)
    data = with_xmp(name, PACKET)
    assert place(data) == (PARIS, RecordedBy.XMP)
    assert decoded(data).recorded.taken_at == datetime(2019, 7, 14, 12)
    assert decoded(data).recorded.city == "Paris"


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "png"])
def test_exif_comes_first_and_the_distance_is_kept(name: str) -> None:
    found = decoded(with_xmp(name, PACKET, exif=EXIF)).recorded
    assert (found.lat_deg, found.lon_deg, found.by) == (pytest.approx(41.9), pytest.approx(12.5), RecordedBy.EXIF)
    assert found.apart_km == pytest.approx(1107, abs=2)
    assert (found.taken_at, found.city) == (datetime(2020, 1, 2, 3, 4, 5), "Paris")


TIFF_ONLY = EXIF.removeprefix(b"Exif\0\0")
EMPTY_EXIF = exif_block(orientation=1)


def webp_with(name: bytes, body: bytes) -> bytes:
    """A simple WebP, whose header announces no metadata, with a chunk behind its picture."""
    plain = encode(SMALL, "webp")
    data = plain[8:] + name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
    return b"RIFF" + struct.pack("<I", len(data)) + data


@pytest.mark.parametrize(
    "data",
    [
        jpeg(app1(EXIF)),
        jpeg(segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"), segment(0xFE, b"a comment"), app1(XAP + packet()), app1(EXIF)),
        jpeg(app1(EMPTY_EXIF), app1(EXIF)),
        jpeg(app1(EXIF), app1(EMPTY_EXIF)),
        jpeg(app1(EXIF[:60]), app1(b"Exif\0\0" + EXIF[60:])),  # of more than 64 KiB, in parts
        jpeg(app1(b"Exif\0\xff" + TIFF_ONLY)),
        png(profile("exif", EXIF)),
        png(profile("exif", TIFF_ONLY)),
        png(profile("APP1", EXIF)),
        png(profile("APP1", EXIF, b"tEXt")),
        png(profile("app1", EXIF, b"iTXt")),
        png(chunk(b"eXIf", EXIF)),
        png(profile("exif", EMPTY_EXIF), chunk(b"eXIf", TIFF_ONLY)),
        png(chunk(b"eXIf", EMPTY_EXIF.removeprefix(b"Exif\0\0")), profile("exif", EXIF)),
        webp_with(b"EXIF", EXIF),
        webp_with(b"EXIF", TIFF_ONLY),
    ],
)
def test_exif_where_others_put_it(data: bytes) -> None:
    assert place(data) == (ROME, RecordedBy.EXIF)
    assert decoded(data).recorded.taken_at == datetime(2020, 1, 2, 3, 4, 5)


def extended(packet_more: bytes, size: int = 500, named: bool = True) -> list[bytes]:
    guid = hashlib.md5(packet_more, usedforsecurity=False).hexdigest().upper().encode()
    note = f'xmlns:n="http://ns.adobe.com/xmp/note/" n:HasExtendedXMP="{guid.decode() if named else "0" * 32}"'
    parts = [
        app1(
            b"http://ns.adobe.com/xmp/extension/\0"
            + guid
            + struct.pack(">LL", len(packet_more), at)
            + packet_more[at : at + size]
        )
        for at in range(0, len(packet_more), size)
    ]
    return [app1(XAP + packet(note)), *parts]


def gif_with_xmp() -> bytes:
    plain = encode(SMALL, "gif")
    at = plain.index(b"\x2c", 13 + 3 * 256)
    magic = b"\x01" + bytes(range(255, -1, -1)) + b"\0"
    return plain[:at] + b"\x21\xff\x0bXMP DataXMP" + PACKET + magic + plain[at:]


@pytest.mark.parametrize(
    "data",
    [
        jpeg(app1(XAP + PACKET)),
        jpeg(app1(EMPTY_EXIF), app1(XAP + PACKET)),
        jpeg(app1(XAP + packet()), app1(XAP + PACKET)),
        jpeg(*extended(PACKET)),
        jpeg(*reversed(extended(PACKET))),
        png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(PACKET))),
        png(chunk(b"tEXt", b"XML:com.adobe.xmp\0" + PACKET)),
        png(chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(PACKET))),
        png(profile("xmp", PACKET)),
        png(profile("APP1", XAP + PACKET)),
        png(profile("xmp", PACKET, b"tEXt")),
        webp_with(b"XMP ", PACKET),
        gif_with_xmp(),
        encode(SMALL, "heic", xmp=PACKET.decode().encode("utf-16")),
        encode(SMALL, "avif", xmp=PACKET.decode().encode("utf-16-be")),
    ],
)
def test_xmp_where_others_put_it(data: bytes) -> None:
    assert place(data) == (PARIS, RecordedBy.XMP)


@pytest.mark.parametrize(
    "segments",
    [
        extended(PACKET)[:-1],  # a part is missing
        extended(PACKET, named=False),  # the packet names another
        [*extended(PACKET)[:1], app1(b"http://ns.adobe.com/xmp/extension/\0short")],
    ],
)
def test_an_extended_packet_is_whole_and_named_or_nothing(segments: list[bytes]) -> None:
    assert place(jpeg(*segments)) == ((None, None), None)


WORDS = iim((1, 90, b"\x1b%G"), (2, 90, "Köln".encode()), (2, 25, b"one"), (2, 25, b"two"), (2, 120, b"A caption"))


def tiff(tag: int, kind: int, value: bytes, exif: bytes = b"") -> bytes:
    if exif:
        both = Image.Exif()
        both.load(exif)
        both[tag] = value
        return encode(SMALL, "tiff", exif=both)
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory.tagtype[tag] = kind
    directory[tag] = value
    return encode(SMALL, "tiff", tiffinfo=directory)


def tiff_of_longs(tag: int, value: bytes) -> bytes:
    """As Photoshop writes it, which Pillow does not."""
    value += bytes(-len(value) % 4)
    entry = struct.pack("<HHL", tag, 7, len(value))
    data = tiff(tag, 7, value)
    assert data.count(entry) == 1
    return data.replace(entry, struct.pack("<HHL", tag, 4, len(value) // 4))


@pytest.mark.parametrize(
    "data",
    [
        jpeg(photoshop(resource(0x0404, WORDS))),
        jpeg(photoshop(resource(0x03ED, b"odd"), resource(0x0404, WORDS, b"name"))),
        jpeg(
            segment(0xED, b"Adobe_CM\0"),
            *(
                segment(0xED, b"Photoshop 3.0\0" + half)
                for half in (resource(0x0404, WORDS)[:20], resource(0x0404, WORDS)[20:])
            ),
        ),
        png(profile("iptc", resource(0x0404, WORDS))),
        png(profile("8bim", resource(0x0404, WORDS))),
        png(profile("iptc", WORDS)),
        tiff(33723, 7, WORDS),
        tiff_of_longs(33723, WORDS),
        tiff(34377, 1, resource(0x0404, WORDS)),
    ],
)
def test_iptc_where_others_put_it(data: bytes) -> None:
    found = decoded(data).recorded
    assert (found.city, found.caption, found.keywords) == ("Köln", "A caption", ("one", "two"))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # as `photo` has it, for Pillow reads AVIF's too
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("junk", [b"\xff\xd8junk", b"II\x2a\0\xff\xff\xff\xff", b"MM\0\x2a\0\0\xff\xff", b"<x:xmpmeta"])
def test_broken_blocks_are_no_failure_of_the_photo(name: str, junk: bytes) -> None:
    if name != "tiff":  # which is EXIF itself
        data = encode(SMALL, name, exif=EXIF)
        at = data.index(b"MM\0\x2a")
        broken = png(chunk(b"eXIf", junk)) if name == "png" else data[:at] + junk + data[at + len(junk) :]
        plain = decoded(broken).recorded
        assert (plain.lat_deg, plain.taken_at) == (None, None)
    plain = decoded(with_xmp(name, junk)).recorded
    assert (plain.lat_deg, plain.taken_at, plain.caption) == (None, None, None)


def test_blocks_without_end_cost_no_more_than_their_limit() -> None:
    bomb = zlib.compress(bytes(4 * MAX_BLOCK_BYTES))
    found = carried("png", png(*[chunk(b"zTXt", b"Raw profile type exif\0\0" + bomb)] * 3, profile("exif", EXIF)), {})
    assert found == Carried((EXIF,))
    huge = app1(XAP + bytes(60_000)) * (2 * MAX_BLOCK_BYTES // 60_000 + 2)
    assert place(jpeg(app1(EXIF), huge)) == (ROME, RecordedBy.EXIF)


def _box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


def brotli(data: bytes) -> bytes:
    return bytes(pa.Codec("brotli").compress(data))


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (_box(b"Exif", bytes(4) + TIFF_ONLY), Carried((bytes(4) + TIFF_ONLY,))),
        (_box(b"xml ", PACKET), Carried((), (PACKET,))),
        (_box(b"uuid", bytes.fromhex("be7acfcb97a942e89c71999491e3afac") + PACKET), Carried((), (PACKET,))),
        (_box(b"uuid", b"JpgTiffExif->JP2" + TIFF_ONLY), Carried((TIFF_ONLY,))),
        (struct.pack(">I", 0) + b"xml " + PACKET, Carried((), (PACKET,))),
        (struct.pack(">I4sQ", 1, b"xml ", 16 + len(PACKET)) + PACKET, Carried((), (PACKET,))),
        (_box(b"brob", b"xml " + brotli(PACKET)), Carried((), (PACKET,))),
        (_box(b"brob", b"Exif" + brotli(bytes(4) + TIFF_ONLY)), Carried((bytes(4) + TIFF_ONLY,))),
        (_box(b"brob", b"xml " + brotli(PACKET)[:40]), Carried()),
        (_box(b"brob", b"xml " + brotli(bytes(2 * MAX_BLOCK_BYTES))), Carried()),
        (_box(b"brob", b"jumb" + brotli(PACKET)), Carried()),
        (_box(b"uuid", bytes(16) + PACKET) + b"\0\0\0\3", Carried()),
        (b"\0\0\0\4xml ", Carried()),
    ],
)
@pytest.mark.parametrize("name", ["jxl", "jp2"])
def test_boxes_of_jpeg_xl_and_jpeg_2000(name: str, box: bytes, expected: Carried) -> None:
    assert carried(name, _box(b"JXL ", b"\x0d\x0a\x87\x0a") + box, {}) == expected
