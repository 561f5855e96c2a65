"""The blocks of metadata that a photo's file carries: where each container keeps EXIF, XMP and IPTC.

They are found by the containers' own structure, whatever a picture's codec makes of it: bounds-checked, at most
`MAX_BLOCK_BYTES` of each kind, and nothing that is broken here is a failure of the photo. Sources: Exif 2.32; XMP
part 3 (Adobe, 2020); PNG, third edition, and ImageMagick's raw profiles; RFC 9649 (WebP); TIFF 6.0; ISO/IEC 18181-2
(JPEG XL); ISO/IEC 15444-1 (JPEG 2000).
"""

from __future__ import annotations

import itertools
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from pipeline.decode.exif import has_tiff_header, tiff_blobs
from pipeline.decode.xmp import MAX_PACKET_BYTES

MAX_BLOCK_BYTES = MAX_PACKET_BYTES
"""An EXIF block, an XMP packet or a Photoshop resource that is larger is passed over."""
_MAX_BLOCKS = 4  # of one kind: real files have one or two, and each may take a second
_MAX_INFLATED = 8  # likewise
_MAX_BYTES = 2 * MAX_BLOCK_BYTES  # of all that a file carries
_EXIF, _XMP, _XMP_MORE = b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_PHOTOSHOP = b"Photoshop 3.0\0"
_GUID_BYTES = 32
_PNG_XMP, _PNG_PROFILE = b"XML:com.adobe.xmp", b"raw profile type "
_PNG_PROFILES = (b"exif", b"app1", b"xmp", b"iptc", b"8bim", b"app13")
_GIF_XMP, _GIF_XMP_END = b"\x0bXMP DataXMP", b"\x01\xff\xfe\xfd"
_TIFF_XMP, _TIFF_IIM, _TIFF_PHOTOSHOP = 700, 33723, 34377
_BOXES = {b"Exif": "exif", b"xml ": "xmp"}
_EXIF_ITEM = re.compile(rb"(infe[\2\3].{3}(?:.{4}|.{6}))Exif", re.DOTALL)
_UUID_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
_UUID_EXIF = b"JpgTiffExif->JP2"
_NAMED_GUID = re.compile(rb"HasExtendedXMP[^0-9A-Fa-f]{1,40}([0-9A-Fa-f]{32})")


@dataclass(frozen=True)
class Carried:
    """Blocks as they stand in the file, in its order.

    `photoshop`: Photoshop's image resources, which hold IPTC-IIM among others; `iim`: IPTC-IIM that stands by itself.
    """

    exif: tuple[bytes, ...] = ()
    xmp: tuple[bytes, ...] = ()
    photoshop: bytes = b""
    iim: bytes = b""


def carried(format_name: str, data: bytes, info: dict[Any, Any]) -> Carried:
    """Return the blocks of a file of any format but JPEG; `info` is what Pillow's reader of HEIC or AVIF found."""
    match format_name:
        case "png":
            return _png(data)
        case "webp":
            chunks = _riff_chunks(data)
            return _few(("exif" if name == b"EXIF" else "xmp", chunk) for name, chunk in chunks)
        case "gif":
            return _gif(data)
        case "tiff":
            xmp, photoshop, iim = tiff_blobs(data, _TIFF_XMP, _TIFF_PHOTOSHOP, _TIFF_IIM)
            return Carried((data,), (xmp,) if _is_block(xmp) else (), _limited(photoshop), _limited(iim))
    blocks = [(kind, block) for kind in ("exif", "xmp") if isinstance(block := info.get(kind), bytes)]
    return _few(itertools.chain(blocks, _boxes(data))) if format_name in ("jxl", "jp2", "jpeg2000") else _few(blocks)


def without_exif_item(heif: bytes) -> bytes:
    """Return a HEIF file (AVIF, HEIC) whose EXIF is an item of a kind that no codec knows."""
    return _EXIF_ITEM.sub(rb"\1skip", heif, count=1)


@dataclass
class JpegBlocks:
    """Gathers a JPEG's blocks out of its segments."""

    _exif: list[list[bytes]] = field(default_factory=list)
    _xmp: list[bytes] = field(default_factory=list)
    _more: list[bytes] = field(default_factory=list)
    _photoshop: list[bytes] = field(default_factory=list)
    _size_bytes: int = 0

    def add(self, marker: int, segment: bytes) -> None:
        """Keep a segment APP1 or APP13, if it holds such a block or a part of one."""
        if self._size_bytes + len(segment) > _MAX_BYTES:
            return
        before = self._size_bytes
        self._size_bytes += len(segment)
        if marker == 0xED and segment.startswith(_PHOTOSHOP):
            self._photoshop.append(segment[len(_PHOTOSHOP) :])
        elif segment.startswith(_EXIF):
            if self._exif and not has_tiff_header(segment):  # more of the one before, which had no room
                self._exif[-1].append(segment[len(_EXIF) + 1 :])
            else:
                self._exif.append([segment])
        elif segment.startswith(_XMP):
            self._xmp.append(segment[len(_XMP) :])
        elif segment.startswith(_XMP_MORE):
            self._more.append(segment[len(_XMP_MORE) :])
        else:
            self._size_bytes = before

    def carried(self) -> Carried:
        """Return the blocks, with XMP's parts put together."""
        if not (self._exif or self._xmp or self._photoshop):
            return _NOTHING
        blocks = [*(("exif", b"".join(parts)) for parts in self._exif), *(("xmp", packet) for packet in self._xmp)]
        blocks += [("xmp", packet) for packet in self._extended()]
        return _few([*blocks, ("photoshop", b"".join(self._photoshop))])

    def _extended(self) -> Iterator[bytes]:
        """Yield extended packets of which all parts are there, and that a packet names: others are other versions'."""
        parts: dict[bytes, dict[int, bytes]] = {}
        lengths: dict[bytes, int] = {}
        for part in self._more:
            if len(part) >= _GUID_BYTES + 8:
                guid = part[:_GUID_BYTES]
                length, offset = struct.unpack_from(">LL", part, _GUID_BYTES)
                lengths.setdefault(guid, length)
                parts.setdefault(guid, {}).setdefault(offset, part[_GUID_BYTES + 8 :])
        named = {guid.upper() for guid in _NAMED_GUID.findall(b" ".join(self._xmp))}
        for guid, by_offset in parts.items():
            if guid.upper() not in named:
                continue
            whole = bytearray()
            for offset in sorted(by_offset):
                if offset != len(whole):
                    break
                whole += by_offset[offset]
            if len(whole) == lengths[guid]:
                yield bytes(whole)


_NOTHING = Carried()


def _few(blocks: Iterable[tuple[str, bytes]]) -> Carried:
    kept: dict[str, list[bytes]] = {"exif": [], "xmp": [], "photoshop": [], "iim": []}
    room_bytes = _MAX_BYTES
    for kind, block in blocks:
        if _is_block(block) and len(kept[kind]) < _MAX_BLOCKS and len(block) <= room_bytes:
            kept[kind].append(block)
            room_bytes -= len(block)
    photoshop, iim = (next(iter(kept[kind]), b"") for kind in ("photoshop", "iim"))
    return Carried(tuple(kept["exif"]), tuple(kept["xmp"]), photoshop, iim)


def _is_block(block: bytes) -> bool:
    return 0 < len(block) <= MAX_BLOCK_BYTES


def _limited(block: bytes) -> bytes:
    return block if _is_block(block) else b""


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield a WebP's chunks of metadata, also where its header does not announce them."""
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name in (b"EXIF", b"XMP "):
            yield name, data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def _gif(data: bytes) -> Carried:
    """Find a GIF's XMP, which stands in it as it is, with a tail by which readers of blocks find their way out."""
    start = data.find(_GIF_XMP)
    if start < 0:
        return _NOTHING
    start += len(_GIF_XMP)
    end = data.find(_GIF_XMP_END, start)
    return _few([("xmp", data[start : end if end >= 0 else len(data)])])


def _png(data: bytes) -> Carried:
    found = _few(_png_blocks(data))
    # Chunks of EXIF come before profiles by the same name, which older programs left standing.
    return replace(found, exif=tuple(sorted(found.exif, key=lambda block: block[:4] not in (b"II\x2a\0", b"MM\0\x2a"))))


def _png_blocks(data: bytes) -> Iterator[tuple[str, bytes]]:
    inflated = 0
    at = 8
    while at + 8 <= len(data):
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if name == b"eXIf":
            yield "exif", data[at + 8 : at + 8 + size]
        elif name in (b"tEXt", b"zTXt", b"iTXt") and inflated < _MAX_INFLATED:
            block = _png_text(name, data[at + 8 : at + 8 + min(size, _MAX_BYTES + (1 << 20))])
            if block is not None:
                inflated += 1
                yield block
        elif name == b"IEND":
            return
        at += 12 + size


def _png_text(name: bytes, chunk: bytes) -> tuple[str, bytes] | None:
    """Return the block in a text chunk, if it has a keyword that stands for one."""
    keyword, _, rest = chunk.partition(b"\0")
    is_xmp = keyword == _PNG_XMP
    kind = keyword.lower().removeprefix(_PNG_PROFILE).strip()
    if not is_xmp and (kind not in _PNG_PROFILES or len(kind) == len(keyword.strip())):
        return None
    is_compressed = name == b"zTXt"
    if name == b"zTXt":
        rest = rest[1:]
    elif name == b"iTXt":
        is_compressed = rest[:1] == b"\1"
        rest = rest[2:].split(b"\0", 2)[-1]
    if is_compressed:
        rest = _inflated(rest, MAX_BLOCK_BYTES + 1 if is_xmp else 3 * MAX_BLOCK_BYTES)  # hexadecimal, with line ends
    return ("xmp", rest) if is_xmp else _profile(kind, rest)


def _inflated(data: bytes, most_bytes: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, most_bytes)
    except zlib.error:
        return b""


def _profile(kind: bytes, text: bytes) -> tuple[str, bytes] | None:
    """Return what a raw profile holds: its name, its length, then hexadecimal in lines."""
    lines = text.lstrip(b"\n").split(b"\n", 2)
    if len(lines) < 3:
        return None
    try:
        block = bytes.fromhex(lines[2].rstrip(b"\0").decode("ascii"))
    except ValueError:
        return None
    if block.startswith(_XMP):
        return "xmp", block[len(_XMP) :]
    if kind in (b"exif", b"app1") and has_tiff_header(block):
        return "exif", block
    if kind in (b"exif", b"xmp", b"app1"):
        return "xmp", block
    block = block.removeprefix(_PHOTOSHOP)
    return "photoshop" if block.startswith(b"8BIM") else "iim", block


def _unfolded(data: bytes) -> bytes:
    """Return what a Brotli stream holds, none where it is broken or holds more than a block may."""
    whole, part = bytearray(), bytearray(1 << 16)  # filled by us, as `read` of a broken stream loses what it had got
    try:
        with pa.CompressedInputStream(pa.BufferReader(data), "brotli") as stream:
            while (count := stream.readinto(part)) and len(whole) <= MAX_BLOCK_BYTES:
                whole += part[:count]
    except OSError:
        return b""
    return bytes(whole)


def _boxes(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the blocks in the top-level boxes of JPEG XL and JPEG 2000, of which `brob` holds another, compressed."""
    at = unfolded = 0
    while at + 8 <= len(data):
        size, kind, head = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if size and size < head:
            return
        end = at + size if size else len(data)
        start = at + head
        if kind in _BOXES:
            yield _BOXES[kind], data[start:end]
        elif kind == b"brob" and data[start : start + 4] in _BOXES and unfolded < _MAX_INFLATED:
            unfolded += 1
            yield _BOXES[data[start : start + 4]], _unfolded(data[start + 4 : end])
        elif kind == b"uuid" and data[start : start + 16] in (_UUID_XMP, _UUID_EXIF):
            yield "xmp" if data[start : start + 16] == _UUID_XMP else "exif", data[start + 16 : end]
        at = end
