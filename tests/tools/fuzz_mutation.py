"""Seeds for the fuzzer, and mutations that know where a format keeps its lengths, offsets and checksums.

Blind flips mostly hit picture data; hostile files lie in their structure. So a file is cut into its parts (segments,
chunks, boxes, directory entries), parts are changed, and what would be noticed first (PNG's checksums) is made right.
"""

from __future__ import annotations

import io
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.support.photo_samples import china_image, encode, exif_block, in_every_format
from tests.support.video_samples import raws_and_videos
from tests.tools.fuzz_sidecars import SEEDS_OF_METADATA

_MAX_CORPUS_FILE_BYTES, _MAX_INPUT_BYTES = 1 << 20, 4 << 20
_EXTREMES = (0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000)
_EXTREMES_WIDE = (*_EXTREMES, 0xFFFFFFFE, 0xFFFFFFFF, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_CONTAINER_BOXES = {b"meta", b"iprp", b"ipco", b"iinf", b"moov", b"trak", b"mdia", b"minf", b"stbl", b"dinf", b"iref"}


@dataclass(frozen=True)
class Seed:
    """A good file, and the name of the cutter that understands it."""

    kind: str
    data: bytes


# --- mutation


def mutated(rng: random.Random, seeds: list[Seed]) -> bytes:
    """Return one seed after one to five mutations, of its structure or blind."""
    seed = rng.choice(seeds)
    data = bytearray(seed.data)
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        structured = _STRUCTURED.get(seed.kind)
        if structured is not None and rng.random() < 0.7:
            structured(rng, data)
        else:
            _blind(rng, data, rng.choice(seeds).data)
        del data[_MAX_INPUT_BYTES:]
    return bytes(data)


def _blind(rng: random.Random, data: bytearray, other: bytes) -> None:
    if not data:
        return
    # Half of the time near the start, where headers are.
    at = rng.randrange(min(len(data), rng.choice((64, 600, len(data), len(data)))))
    length = rng.choice((1, 2, 4, 16, 256, 4096))
    match rng.randrange(9):
        case 0 | 1:
            data[at] ^= 1 << rng.randrange(8)
        case 2:
            data[at : at + length] = rng.randbytes(length)
        case 3 | 4:
            _overwrite(rng, data, at, rng.choice((1, 2, 4, 8)), rng.choice("<>"))
        case 5:
            del data[at:]
        case 6:
            del data[at : at + length]
        case 7:
            data[at:at] = data[at : at + length] * rng.choice((1, 1, 2, 50))
        case 8:
            start = min(at, len(other)) if rng.random() < 0.5 else rng.randrange(len(other) + 1)
            data[at : at + length] = other[start : start + length]


def _overwrite(rng: random.Random, data: bytearray, at: int, size: int, order: str) -> None:
    """Put an extreme number there, or one near the number that is there or near the file's length."""
    present = int.from_bytes(data[at : at + size], "little" if order == "<" else "big")
    near = rng.choice((present, present, len(data))) + rng.choice((-2, -1, 1, 2, 4, 100))
    value = rng.choice(_EXTREMES_WIDE) if rng.random() < 0.6 else near
    data[at : at + size] = (value % (1 << (8 * size))).to_bytes(size, "little" if order == "<" else "big")


def _change_parts(rng: random.Random, parts: list[bytes], fields: Callable[[bytearray], None]) -> None:
    """Drop, repeat, move or change a part; `fields` is how a part's inside is changed."""
    at = rng.randrange(len(parts))
    match rng.randrange(8):
        case 0:
            del parts[at]
        case 1:
            parts.insert(rng.randrange(len(parts) + 1), parts[at])
        case 2:
            parts[at:at] = [parts[at]] * min(rng.choice((2, 30, 300)), _MAX_INPUT_BYTES // (len(parts[at]) + 1))
        case 3:
            other = rng.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        case _:
            part = bytearray(parts[at])
            fields(part)
            parts[at] = bytes(part)


def _jpeg(rng: random.Random, data: bytearray) -> None:
    parts, at = [bytes(data[:2])], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        parts.append(bytes(data[at:end]))
        at = end
    parts.append(bytes(data[at:]))

    def change(part: bytearray) -> None:
        if rng.random() < 0.2 and len(part) > 4:  # the length
            _overwrite(rng, part, 2, 2, ">")
        elif part[4:10] == b"Exif\0\0":
            inner = part[10:]
            _tiff(rng, inner)
            part[10:] = inner[:60_000]
        elif part:
            _overwrite(rng, part, rng.randrange(min(len(part), 40)), rng.choice((1, 2)), ">")

    _change_parts(rng, parts, change)
    data[:] = b"".join(parts)


def _png(rng: random.Random, data: bytearray) -> None:
    parts, at = [], 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        parts.append(bytes(data[at:end]))
        at = end
    if not parts:
        return
    if rng.random() < 0.2:
        parts.insert(
            1,
            _png_chunk(
                rng.choice((b"tRNS", b"PLTE", b"acTL", b"fcTL", b"zTXt", b"iTXt", b"iCCP", b"eXIf")),
                rng.randbytes(rng.choice((0, 1, 5, 26, 300))),
            ),
        )

    def change(part: bytearray) -> None:
        if part[4:8] == b"eXIf":
            inner = part[8:-4]
            _tiff(rng, inner)
            part[:] = _png_chunk(b"eXIf", bytes(inner))
            return
        if len(part) > 12:
            _overwrite(rng, part, 8 + rng.randrange(min(len(part) - 12, 30)), rng.choice((1, 4)), ">")
        if rng.random() < 0.2:
            _overwrite(rng, part, 0, 4, ">")
        part[-4:] = struct.pack(">I", zlib.crc32(part[4:-4]))

    _change_parts(rng, parts, change)
    data[8:] = b"".join(parts)


def _png_chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def _tiff(rng: random.Random, data: bytearray) -> None:
    """Change a field of a directory entry, of any directory; or a directory's count, or where one begins."""
    start = 6 if data[:6] == b"Exif\0\0" else 0
    order, is_big = (
        ">" if data[start : start + 2] == b"MM" else "<",
        data[start + 2 : start + 4] in (b"\x2b\0", b"\0\x2b"),
    )
    entries = list(_tiff_entries(data, start, order, is_big))
    word = 8 if is_big else 4
    if not entries or rng.random() < 0.1:
        _overwrite(rng, data, start + rng.choice((2, 4, 8)), rng.choice((2, word)), order)
        return
    at, entry_bytes = rng.choice(entries), 20 if is_big else 12
    match rng.randrange(9):
        case 0:
            tag = rng.choice(
                (254, 256, 257, 258, 259, 262, 273, 274, 277, 279, 306, 317, 322, 338, 339, 0x8769, 0x8825, 1)
            )
            data[at : at + 2] = struct.pack(order + "H", tag)
        case 1:
            data[at + 2 : at + 4] = struct.pack(order + "H", rng.randrange(20))
        case 2:
            _overwrite(rng, data, at + 4, word, order)
        case 3:
            _overwrite(rng, data, at + 4 + word, rng.choice((1, 2, word)), order)
        case 4:  # points to itself or to another entry
            data[at + 4 + word : at + entry_bytes] = struct.pack(order + ("Q" if is_big else "L"), rng.choice(entries))
        case 5:
            data[at : at + entry_bytes] = data[(other := rng.choice(entries)) : other + entry_bytes]
        case 6:  # the value it points to
            value_at = start + int.from_bytes(
                data[at + 4 + word : at + entry_bytes], "little" if order == "<" else "big"
            )
            if value_at < len(data):
                _overwrite(rng, data, value_at + rng.choice((0, 4, 8)), rng.choice((1, 2, 4)), order)
        case 7:
            _overwrite(rng, data, min(entries) - (8 if is_big else 2), 2, order)
        case 8:  # ends before what it points to
            del data[rng.randrange(min(entries), len(data)) :]


def _tiff_entries(data: bytearray, start: int, order: str, is_big: bool) -> Iterator[int]:
    word, entry_bytes, byteorder = (8, 20, order) if is_big else (4, 12, order)
    endian = "little" if byteorder == "<" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], endian)  # type: ignore[arg-type]

    waiting, seen = [number(start + (8 if is_big else 4), word)], set[int]()
    while waiting and len(seen) < 10:
        offset = start + waiting.pop()
        if offset in seen or offset + 8 > len(data):
            continue
        seen.add(offset)
        first = offset + (8 if is_big else 2)
        for at in range(first, first + entry_bytes * min(number(offset, 2), 100), entry_bytes):
            if at + entry_bytes > len(data):
                break
            if number(at, 2) in (0x8769, 0x8825):
                waiting.append(number(at + 4 + word, 4))
            yield at


def _boxes(rng: random.Random, data: bytearray) -> None:
    """Change a box of an ISO base media file, at any depth."""
    found = list(_walk_boxes(data, 0, len(data)))
    if not found:
        return
    at, end = rng.choice(found)
    match rng.randrange(8):
        case 0:
            _overwrite(rng, data, at, 4, ">")
        case 1:
            data[at + 4 : at + 8] = data[(other := rng.choice(found)[0]) + 4 : other + 8]
        case 2:
            del data[at:end]
        case 3:
            data[at:at] = data[at:end] * rng.choice((1, 3, 50))
        case 4:
            data[at:at] = struct.pack(">I", end - at + 8) + rng.choice((b"meta", b"ipco", b"free", b"iprp"))
        case _:
            if end - at > 9:
                _overwrite(rng, data, at + 8 + rng.randrange(min(end - at - 8, 60)), rng.choice((1, 2, 4)), ">")


def _walk_boxes(data: bytearray, at: int, end: int) -> Iterator[tuple[int, int]]:
    while at + 8 <= end:
        size, kind = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8])
        stop = min(end, at + size) if size >= 8 else end
        yield at, stop
        if kind in _CONTAINER_BOXES:
            yield from _walk_boxes(data, at + (12 if kind == b"meta" else 14 if kind == b"iinf" else 8), stop)
        at = stop


def _webp(rng: random.Random, data: bytearray) -> None:
    parts, at = [], 12
    while at + 8 <= len(data):
        end = at + 8 + (int.from_bytes(data[at + 4 : at + 8], "little") + 1) // 2 * 2
        parts.append(bytes(data[at:end]))
        at = end
    if not parts:
        return

    def change(part: bytearray) -> None:
        where = 4 if rng.random() < 0.3 else rng.randrange(min(len(part), 30))
        _overwrite(rng, part, where, rng.choice((1, 2, 3, 4)), "<")

    _change_parts(rng, parts, change)
    data[12:] = b"".join(parts)
    if rng.random() < 0.8:
        data[4:8] = struct.pack("<I", len(data) - 8)


def _gif(rng: random.Random, data: bytearray) -> None:
    if len(data) < 13:
        return
    table_end = min(len(data), 13 + (3 << ((data[10] & 7) + 1)) * (data[10] >> 7))
    descriptor = data.find(b",", table_end)
    match rng.randrange(4):
        case 0:
            _overwrite(rng, data, rng.choice((6, 8)), 2, "<")
        case 1 if descriptor > 0:
            _overwrite(rng, data, descriptor + rng.choice((1, 3, 5, 7, 9)), rng.choice((1, 2)), "<")
        case 2 if descriptor > 0:  # the first code size, and the length of the first block
            _overwrite(rng, data, descriptor + rng.choice((10, 11)), 1, "<")
        case _:
            part = data[table_end : rng.randrange(table_end, len(data) + 1)]
            data[table_end:table_end] = part * rng.choice((1, 3, 30))


def _bmp(rng: random.Random, data: bytearray) -> None:
    _overwrite(rng, data, rng.choice((2, 10, 14, 18, 22, 26, 28, 30, 34, 46, 50, 54)), rng.choice((1, 2, 4)), "<")


def _csv(rng: random.Random, data: bytearray) -> None:
    odd = ('"', '""', ",", "\r", "\n", "\0", "\ufeff", "é", "=cmd()", "s3://b/k", "file:///", "http://[", "a" * 70_000,
           "-1", "1e9", "9" * 30, "uri,uri", "../../x", "%00", "\x1b[31m", "memory://x", "s3://", "::")  # fmt: skip
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice(odd).encode() if rng.random() < 0.8 else rng.randbytes(3)


def _tar(rng: random.Random, data: bytearray) -> None:
    """Change a field of a member's header and make its checksum right again."""
    at = rng.choice([i for i in range(0, len(data) - 511, 512) if data[i + 257 : i + 262] == b"ustar"] or [0])
    start, size = rng.choice(((0, 100), (124, 12), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155), (482, 13)))
    odd = (
        b"-1",
        b"77777777777",
        b"\x80" + b"\xff" * 11,
        b"\xff" * 12,
        b"\0",
        b"../../x",
        b"9",
        b"x",
        b"L",
        b"g",
        b"S",
        b" 1 ",
    )
    value = rng.choice(odd)[:size]
    data[at + start : at + start + len(value)] = value
    if rng.random() < 0.3:  # what a pax header says
        _overwrite(rng, data, min(at + 512 + rng.randrange(30), len(data)), 1, "<")
    if len(data) >= at + 512:
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])


def _zip(rng: random.Random, data: bytearray) -> None:
    """Change a field of a local header, a directory entry, the end record or an extra field."""
    marks = (b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\7\x08", b"\1\0\x10\0")
    found = [at for mark in marks for at in range(len(data)) if data[at : at + 4] == mark]
    at = (rng.choice(found) if found else 0) + 4 + rng.randrange(42)
    _overwrite(rng, data, min(at, len(data)), rng.choice((1, 2, 4, 8)), "<")


_STRUCTURED: dict[str, Callable[[random.Random, bytearray], None]] = {
    "jpeg": _jpeg,
    "png": _png,
    "tiff": _tiff,
    **dict.fromkeys(("heic", "avif", "jp2", "cr3", "mp4"), _boxes),
    "webp": _webp,
    "gif": _gif,
    "bmp": _bmp,
    "csv": _csv,
    "tar": _tar,
    "zip": _zip,
}


# --- seeds


def seeds_of(target: str, corpus: Path | None = None) -> list[Seed]:
    """Return what a target starts from: small files of every kind that it reads, and the files below `corpus`."""
    kinds = {"decode": _photos, "exif": _exif_blocks, "manifest": _manifests, "members": _archives}
    seeds = kinds[target]() if target in kinds else [Seed(*each) for each in SEEDS_OF_METADATA[target]()]
    for path in sorted(corpus.rglob("*")) if corpus else ():
        if path.is_file() and 0 < path.stat().st_size <= _MAX_CORPUS_FILE_BYTES:
            data = path.read_bytes()
            seeds.append(Seed(_kind_of(data), data))
    return seeds


def _kind_of(data: bytes) -> str:
    magics = {b"\xff\xd8": "jpeg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp", b"II": "tiff", b"MM": "tiff"}
    found = next((kind for magic, kind in magics.items() if data.startswith(magic)), None)
    return found or ("webp" if data[8:12] == b"WEBP" else "heic" if data[4:8] == b"ftyp" else "unknown")


def _photos() -> list[Seed]:
    image = china_image().resize((96, 64))
    exif = exif_block(39.9998, 116.2755, datetime(2020, 2, 3, 4, 5, 6), orientation=6)
    grey, words = image.convert("L"), Image.new("I;16", (40, 30), 999)
    palette, clear = image.quantize(32), image.convert("RGBA")
    clear.putalpha(99)
    seeds = [Seed(name, data) for name, data in in_every_format(image).items()]
    seeds += [Seed(kind, data) for kind, data in raws_and_videos(image)]
    more: list[tuple[str, Image.Image, dict[str, object]]] = [
        ("jpeg", image, {"exif": exif, "icc_profile": b"x" * 200, "comment": b"hello"}),
        ("jpeg", image, {"progressive": True, "exif": exif}),
        ("jpeg", image.convert("CMYK"), {}),
        ("jpeg", grey, {"restart_marker_rows": 1}),
        ("png", image, {"exif": exif, "icc_profile": b"y" * 200}),
        ("png", palette, {"transparency": 3}),
        ("png", words, {}),
        ("png", clear, {}),
        ("png", image, {"save_all": True, "append_images": [grey.convert("RGB")]}),
        ("tiff", image, {"compression": "tiff_lzw"}),
        ("tiff", image, {"exif": exif}),
        ("tiff", image, {"compression": "tiff_adobe_deflate", "tiffinfo": {317: 2}}),
        ("tiff", image, {"compression": "jpeg"}),
        ("tiff", grey, {"compression": "packbits"}),
        ("tiff", image.convert("1"), {"compression": "group4"}),
        ("tiff", image, {"big_tiff": True}),
        ("tiff", words, {}),
        ("tiff", grey.convert("F"), {}),
        ("tiff", grey.convert("I"), {}),
        ("tiff", image.convert("CMYK"), {}),
        ("tiff", palette, {}),
        ("tiff", clear, {"compression": "tiff_lzw"}),
        ("gif", palette, {"save_all": True, "append_images": [grey.quantize(16)], "transparency": 3}),
        ("gif", grey, {"interlace": 1}),
        ("bmp", palette, {}),
        ("bmp", clear, {}),
        ("bmp", image.convert("1"), {}),
        ("webp", image, {"exif": exif, "icc_profile": b"z" * 200, "quality": 60}),
        ("webp", clear, {"quality": 60}),
        ("webp", image, {"save_all": True, "append_images": [grey.convert("RGB")]}),
        ("heic", image, {"exif": exif, "quality": 40}),
        ("heic", clear, {"quality": 40}),
        ("avif", image, {"exif": exif, "quality": 40}),
        ("avif", clear, {"quality": 40}),
    ]
    seeds += [Seed(kind, encode(picture, kind, **options)) for kind, picture, options in more]
    return [*seeds, Seed("bmp", rle_bmp(32, 4))]


def rle_bmp(width_px: int, height_px: int) -> bytes:
    """Return a run-length encoded BMP whose every row is one pixel and an end of line: 4 bytes a row."""
    rows = b"\x01\x01\0\0" * height_px + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, width_px, height_px, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return struct.pack("<2sIHHI", b"BM", 1078 + len(rows), 0, 0, 1078) + header + bytes(range(256)) * 4 + rows


def _exif_blocks() -> list[Seed]:
    full = exif_block(-33.8568, 151.2153, datetime(2020, 2, 3, 4, 5, 6), orientation=6)
    big = io.BytesIO()
    china_image().resize((16, 16)).save(big, "tiff", big_tiff=True, exif=full)
    files = [full, full[6:], exif_block(1.5, -2.5), exif_block(taken_at=datetime(1999, 1, 1)), big.getvalue()]
    files.append(encode(china_image().resize((16, 16)), "tiff", exif=full))
    texts = [b"S\0\0\0", b"33.8568\0", b"E\0\0\0", b"151,12,5\0"]
    files.append(_big_endian_gps(texts))
    return [Seed("tiff", data) for data in files]


def _big_endian_gps(texts: list[bytes]) -> bytes:
    """Return a big-endian block whose GPS values are texts, as a few writers leave them."""
    main = struct.pack(">2sHLHHHLLL", b"MM", 42, 8, 1, 0x8825, 4, 1, 26, 0)
    values_at, entries, values = 26 + 2 + 12 * len(texts) + 4, b"", b""
    for tag, text in enumerate(texts, start=1):
        inline = text if len(text) == 4 else struct.pack(">L", values_at + len(values))
        entries += struct.pack(">HHL", tag, 2, len(text)) + inline
        values += text if len(text) != 4 else b""
    return main + struct.pack(">H", len(texts)) + entries + bytes(4) + values


def _manifests() -> list[Seed]:
    rows = {"uri": ["a.jpg", "b/c.jpg", "s3://bucket/d e.jpg"], "etag": ['"x"', None, "y"], "size_bytes": [1, None, 3]}
    plain = b'uri,etag,size_bytes\na.jpg,"x",12\n"b,\nc.jpg",,\n'
    seeds = [Seed("csv", plain), Seed("csv", b"path;url\n1;2\n"), Seed("csv", b"\xef\xbb\xbfpath\n007\nNA\n")]
    for options in ({}, {"compression": "zstd"}, {"use_dictionary": False, "data_page_version": "2.0"}):
        buffer = io.BytesIO()
        pq.write_table(pa.table(rows), buffer, **options)
        seeds.append(Seed("parquet", buffer.getvalue()))
    return seeds


def _archives() -> list[Seed]:
    photo = encode(china_image().resize((8, 8)), "jpeg")
    names = ["a.jpg", "folder/\u00e9\u4e16.jpg", "long/" * 40 + "name.jpg"]
    seeds = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(photo)
                archive.addfile(member, io.BytesIO(photo))
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
            archive.addfile(link)
        seeds.append(Seed("tar", buffer.getvalue()))
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        for is_streamed in (False, True):
            buffer = io.BytesIO()
            target = _Unseekable(buffer) if is_streamed else buffer
            with zipfile.ZipFile(target, "w", method) as packed:  # type: ignore[arg-type]
                for name in names:
                    with packed.open(zipfile.ZipInfo(name), "w", force_zip64=name == "a.jpg") as file:
                        file.write(photo)
            seeds.append(Seed("zip", buffer.getvalue()))
    return seeds


class _Unseekable:
    """A file to which zips are written as to a pipe: with the sizes behind the members."""

    def __init__(self, buffer: io.BytesIO) -> None:
        self.write, self.flush = buffer.write, buffer.flush
