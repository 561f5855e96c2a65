"""The fuzzer's target `metadata`: XMP, IPTC and EXIF, by themselves and in every container that carries them."""

from __future__ import annotations

import struct
import zlib
from datetime import datetime

import pyarrow as pa

from tests.support.photo_samples import china_image, encode, exif_block

_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF'
    ' xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""'
    ' xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"'
    ' xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" exif:GPSLatitude="48,51.5N" exif:GPSLongitude="2,21,6E"'
    ' exif:DateTimeOriginal="2019-07-14T12:00:00.5+02:00" exif:GPSTimeStamp="2019-07-14T10:00:00Z"'
    ' photoshop:City="Paris"><dc:subject><rdf:Bag><rdf:li>\u00e9t\u00e9</rdf:li><rdf:li>b</rdf:li></rdf:Bag>'
    "</dc:subject>"
    '<dc:description><rdf:Alt><rdf:li xml:lang="x-default">A &amp; b</rdf:li></rdf:Alt></dc:description>'
    "</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end='w'?>"
)


def check_metadata(data: bytes) -> str:
    """Readers of metadata never raise; what they return is in range, printable, and fits the output's columns."""
    from pipeline.decode.carried import MAX_BLOCK_BYTES, Carried, carried
    from pipeline.decode.exif import read_exif
    from pipeline.decode.jpeg import read_jpeg_header
    from pipeline.decode.recorded import MAX_CAPTION_CHARS, MAX_KEYWORDS, recorded_in
    from pipeline.schema import PhotoError

    told: set[str] = set()
    places = [carried(name, data, {}) for name in ("png", "webp", "gif", "tiff", "jxl", "jp2")]
    places += [Carried((data,), (data,), data, data), Carried((), (data, data)), Carried((), (), b"", data)]
    try:
        places.append(read_jpeg_header(data).blocks)
    except PhotoError:
        told.add("no jpeg")
    for blocks in places:
        assert all(len(block) <= max(MAX_BLOCK_BYTES, len(data)) for block in (*blocks.exif, *blocks.xmp))
        found = recorded_in(read_exif(*blocks.exif), blocks)
        assert (found.lat_deg is None) == (found.lon_deg is None) == (found.by is None)
        if found.lat_deg is not None and found.lon_deg is not None:
            assert abs(found.lat_deg) <= 90
            assert abs(found.lon_deg) <= 180
        assert (found.taken_at_utc is None) == (found.utc_by is None)
        pa.array([found.taken_at], pa.timestamp("us"))
        pa.array([found.taken_at_utc], pa.timestamp("us", "UTC"))
        words = [found.city, found.region, found.country, found.country_code, found.caption, *found.keywords]
        assert all(word is None or (word.isprintable() and 0 < len(word) <= MAX_CAPTION_CHARS) for word in words)
        assert len(found.keywords) <= MAX_KEYWORDS + 1
        pa.array(words, pa.string()).validate(full=True)
        told |= {name for name in ("by", "taken_at", "caption") if getattr(found, name) is not None}
    return " ".join(sorted(told))


def metadata_seeds() -> list[tuple[str, bytes]]:
    """Return packets, blocks and small photos that carry them, each with the kind of its container."""
    packet = _PACKET.encode()
    datasets = [(1, 90, b"\x1b%G"), (2, 90, b"Paris"), (2, 55, b"20190714"), (2, 60, b"120000+0200"), (2, 120, b"A")]
    iim = b"".join(b"\x1c" + bytes((r, n)) + struct.pack(">H", len(value)) + value for r, n, value in datasets)
    photoshop = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iim)) + iim + bytes(len(iim) % 2)
    exif = exif_block(39.9998, 116.2755, datetime(2020, 2, 3, 4, 5, 6), orientation=6)
    image = china_image().resize((16, 16))
    jpeg, png = encode(image, "jpeg", exif=exif, xmp=packet), encode(image, "png", exif=exif)
    app13 = b"Photoshop 3.0\0" + photoshop
    jpeg = jpeg[:2] + b"\xff\xed" + struct.pack(">H", len(app13) + 2) + app13 + jpeg[2:]
    profile = f"\niptc\n{len(photoshop):8d}\n{photoshop.hex()}\n".encode()
    for keyword, body in ((b"XML:com.adobe.xmp", b"\1\0\0\0" + packet), (b"Raw profile type iptc", b"\0" + profile)):
        kind, flag = (b"iTXt", 4) if keyword.startswith(b"XML") else (b"zTXt", 1)
        chunk = kind + keyword + b"\0" + body[:flag] + zlib.compress(body[flag:])
        png = png[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]
    box = struct.pack(">I", 8 + len(packet)) + b"xml " + packet
    brob = pa.Codec("brotli").compress(packet, asbytes=True)
    box += struct.pack(">I", 12 + len(brob)) + b"brobxml " + brob
    return [
        *(("packet", data) for data in (packet, packet, _PACKET.encode("utf-16"), iim, photoshop, exif, box)),
        ("jpeg", jpeg),
        ("png", png),
        ("webp", encode(image, "webp", exif=exif, xmp=packet)),
        ("tiff", encode(image, "tiff", tiffinfo={700: packet, 33723: iim})),
        ("gif", encode(image, "gif") + b"!\xff\x0bXMP DataXMP" + packet + b"\x01\xff\xfe\xfd"),
    ]
