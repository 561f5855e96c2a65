"""Builders of camera raw files for tests: TIFF-shaped ones with previews or a real mosaic, RAF, CR3 and RW2.

All return the bytes of a file. Cameras' own files are not free to ship, so these have their structure and our pictures.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from PIL import Image

from tests.support.photo_samples import encode

Value = bytes | int | tuple[int, ...] | list[tuple[int, int]]
"""Of a tag: text or bytes with their NUL, whole numbers, or rationals."""
Tags = dict[int, Value]
BYTES_TAGS = {0x2E, 33422, 50706}
_SRATIONAL_TAGS = {50721}


def _packed(tag: int, value: Value) -> tuple[int, int, bytes]:
    """Return a tag's TIFF type, its count and its bytes."""
    if isinstance(value, bytes):
        return (7 if tag == 0x2E else 1 if tag in BYTES_TAGS else 2), len(value), value
    if isinstance(value, list):
        kind = 10 if tag in _SRATIONAL_TAGS else 5
        return kind, len(value), b"".join(struct.pack("<ii", *pair) for pair in value)
    numbers = (value,) if isinstance(value, int) else value
    return 4, len(numbers), struct.pack(f"<{len(numbers)}I", *numbers)


def directory(tags: Tags, at: int, next_at: int = 0) -> bytes:
    """Return a TIFF directory that stands at `at`, its long values behind it."""
    places = at + 2 + 12 * len(tags) + 4
    entries, rest = struct.pack("<H", len(tags)), b""
    for tag in sorted(tags):
        kind, count, data = _packed(tag, tags[tag])
        inline = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", places + len(rest))
        rest += b"" if len(data) <= 4 else data + b"\0" * (len(data) & 1)
        entries += struct.pack("<HHI", tag, kind, count) + inline
    return entries + struct.pack("<I", next_at) + rest


def exif_tags(lat_deg: float, lon_deg: float, taken_at: str) -> tuple[Tags, Tags]:
    """Return the camera's and the position's directory, in whole minutes, north and east."""
    camera: Tags = {0x9003: taken_at.encode() + b"\0"}
    angles = [[(int(angle), 1), (round(angle % 1 * 60), 1), (0, 1)] for angle in (lat_deg, lon_deg)]
    return camera, {1: b"N\0", 2: angles[0], 3: b"E\0", 4: angles[1]}


def tiff_raw(
    main: Tags,
    subs: list[tuple[Tags, bytes]],
    data: bytes = b"",
    exif: tuple[Tags, Tags] | None = None,
    head: bytes = b"II*\0",
) -> bytes:
    """Return a TIFF whose first directory is `main`, with sub-directories, each with its own picture's bytes.

    A picture's place and length go into tags 513 and 514 of a JPEG, 273 and 279 of anything else.
    """
    first_at = 16 if len(head) > 4 else 8
    blocks: list[bytes] = []

    def put(block: bytes) -> int:
        at = 8192 + sum(map(len, blocks))
        blocks.append(block + b"\0" * (len(block) & 1))
        return at

    def with_picture(tags: Tags, picture: bytes) -> Tags:
        is_preview = picture[:2] == b"\xff\xd8" and 273 not in tags
        if not picture:
            return tags
        at = put(picture)
        return tags | ({513: at, 514: len(picture)} if is_preview else {273: at, 279: len(picture)})

    main = with_picture(dict(main), data)
    if subs:
        places = []
        for tags, picture in subs:
            filled = with_picture(tags, picture)
            at = 8192 + sum(map(len, blocks))
            places.append(put(directory(filled, at)))
        main[330] = tuple(places)
    for tag, tags in zip((0x8769, 0x8825), exif or (), strict=False):
        at = 8192 + sum(map(len, blocks))
        main[tag] = put(directory(tags, at))
    start = head[:4] + struct.pack("<I", first_at) + head[4:].ljust(first_at - 8, b"\0") + directory(main, first_at)
    assert len(start) <= 8192
    return start.ljust(8192, b"\0") + b"".join(blocks)


def mosaic(image: Image.Image) -> tuple[Tags, bytes]:
    """Return the directory of a sensor's picture, uncompressed, with a Bayer pattern, and its 16-bit words."""
    width_px, height_px = image.size
    rgb_HWC = np.asarray(image.convert("RGB"), dtype=np.float64)
    linear_HWC = (rgb_HWC / 255.0) ** 2.2
    words_HW = np.zeros((height_px, width_px))
    for row, column, channel in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        words_HW[row::2, column::2] = linear_HWC[row::2, column::2, channel]
    tags: Tags = {254: 0, 256: width_px, 257: height_px, 258: 16, 259: 1, 262: 32803, 277: 1, 278: height_px}
    tags |= {33421: 2 | 2 << 16, 33422: bytes([0, 1, 1, 2]), 50717: 65535}  # the first is two shorts, see below
    return tags, (words_HW * 65535).astype("<u2").tobytes()


_SRGB_OF_XYZ = [(32406, 10000), (-15372, 10000), (-4986, 10000)]
_SRGB_OF_XYZ += [(-9689, 10000), (18758, 10000), (415, 10000), (557, 10000), (-2040, 10000), (10570, 10000)]
CAMERA: Tags = {271: b"GRATICULE\0", 272: b"Test One\0"}
DNG: Tags = CAMERA | {50706: bytes([1, 4, 0, 0]), 50708: b"Graticule Test One\0"}


def mosaic_dng(
    image: Image.Image, orientation: int = 1, preview: bytes = b"", exif: tuple[Tags, Tags] | None = None
) -> bytes:
    """Return a DNG that holds a real mosaic of `image`, which LibRaw develops, and a preview where one is given."""
    tags, words = mosaic(image)
    colours: Tags = {274: orientation, 50721: _SRGB_OF_XYZ, 50778: 21, 50728: [(1, 1), (1, 1), (1, 1)]}
    if not preview:
        return _short_typed(tiff_raw(DNG | colours | tags, [], words, exif))
    thumbnail: Tags = {254: 1, 256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 277: 1, 278: 16}
    subs = [(tags, words), ({254: 1, 259: 7, 262: 6}, preview)]
    return _short_typed(tiff_raw(DNG | colours | thumbnail, subs, bytes(256), exif))


def _short_typed(data: bytes) -> bytes:
    """Give the pattern's size its type, two shorts."""
    return data.replace(struct.pack("<HHI", 33421, 4, 1), struct.pack("<HHI", 33421, 3, 2))


def jpeg_of(image: Image.Image, size_px: tuple[int, int] | None = None, **options: Any) -> bytes:
    """Return a JPEG of `image`, of that size."""
    return encode(image.resize(size_px) if size_px else image, "jpeg", quality=90, **options)


def nef(preview: bytes, exif: tuple[Tags, Tags] | None = None, orientation: int = 1, make: bytes = b"NIKON") -> bytes:
    """Return a file as Nikon's: a thumbnail first, the preview, and a sensor's picture that nothing can develop."""
    first: Tags = {254: 1, 256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 274: orientation, 277: 1, 278: 16}
    first |= {271: make + b" CORPORATION\0", 272: b"NIKON D0\0"}
    sensor: Tags = {254: 0, 256: 1640, 257: 1208, 258: 14, 259: 34713, 262: 32803, 277: 1, 278: 1208}
    return tiff_raw(first, [({254: 1, 259: 6}, preview), (sensor, bytes(64))], bytes(256), exif)


def raf(preview: bytes) -> bytes:
    """Return a file as Fujifilm's: the preview's place stands at byte 84, in the other byte order."""
    head = b"FUJIFILMCCD-RAW 0201FF383501" + b"T6".ljust(32, b"\0") + bytes(24)
    table = struct.pack(">IHHHH", 1, 0x111, 4, 1208, 1640)
    places = struct.pack(">IIII", 160 + len(table), len(preview), 160, len(table))
    return (head + places).ljust(160, b"\0") + table + preview


def _box(kind: bytes, *content: bytes) -> bytes:
    return struct.pack(">I", 8 + sum(map(len, content))) + kind + b"".join(content)


def cr3(preview: bytes, small: bytes, exif: tuple[Tags, Tags], orientation: int = 1) -> bytes:
    """Return a file as Canon's since 2018: directories in boxes, a small preview in one, the large one as a track."""
    first = directory({256: 1640, 257: 1208, 271: b"Canon\0", 274: orientation}, 8)
    blocks = [b"II*\0\x08\0\0\0" + block for block in (first, *(directory(tags, 8) for tags in exif))]
    tags = b"".join(_box(kind, block) for kind, block in zip((b"CMT1", b"CMT2", b"CMT4"), blocks, strict=True))
    uuid = _box(b"uuid", bytes.fromhex("85c0b687820f11e08111f4ce462b6a48"), tags, _box(b"THMB", bytes(16), small))
    inner = _box(b"PRVW", bytes(16), small)
    shown = _box(b"uuid", bytes.fromhex("eaf42b5e1c984b88b9fbb7dc406e4d16"), struct.pack(">II", 0, 1), inner)
    file_type = _box(b"ftyp", b"crx \0\0\0\1crx isom")

    def movie(at: int) -> bytes:
        sizes = _box(b"stsz", struct.pack(">III", 0, len(preview), 1))
        table = _box(b"stbl", sizes, _box(b"co64", struct.pack(">IIQ", 0, 1, at)))
        return _box(b"moov", uuid, _box(b"trak", _box(b"mdia", _box(b"minf", table))))

    at = len(file_type) + len(movie(0)) + len(shown) + 8
    return file_type + movie(at) + shown + _box(b"mdat", preview)


def rw2(preview: bytes, exif: tuple[Tags, Tags], orientation: int = 1) -> bytes:
    """Return a file as Panasonic's: the JPEG is a tag's value."""
    main: Tags = {2: 1660, 3: 1220, 4: 4, 5: 8, 6: 1212, 7: 1648, 0x2E: preview, 271: b"Panasonic\0", 274: orientation}
    start = blocks = b""
    camera_at, gps_at = 8, 8
    for _ in range(2):
        start = directory(main | {0x8769: camera_at, 0x8825: gps_at}, 8)
        camera_at = 8 + len(start)
        blocks = directory(exif[0], camera_at)
        gps_at = camera_at + len(blocks)
        blocks += directory(exif[1], gps_at)
    return b"IIU\0" + struct.pack("<I", 8) + start + blocks


def one_raw_of_each(image: Image.Image) -> list[tuple[str, bytes]]:
    """Return a file of each structure, with what it is made of: `tiff` and `cr3` tell a fuzzer where its parts are."""
    preview, taken = jpeg_of(image), exif_tags(47.5, 19.25, "2021:05:06 07:08:09")
    tiffs = [nef(preview, taken, 6), mosaic_dng(image, 6), mosaic_dng(image, 8, preview, taken)]
    return [*(("tiff", data) for data in tiffs), ("raf", raf(preview)), ("cr3", cr3(preview, preview, taken))]
