"""What a photo's first bytes tell: its format, and whether it is larger than what is taken. No codec is asked.

So a file is refused before the rest of it is fetched, and before a codec spends memory on what its header claims. What
stands further back than the bytes at hand (a TIFF's directory, a JPEG's frame behind large profiles, a camera raw
file's preview) is not judged here: the decoder, which has the whole file, does that.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pipeline.decode.exif import ExifFacts, read_exif, tiff_count, tiff_number
from pipeline.decode.jpeg import read_jpeg_header
from pipeline.decode.pictures.iso_media import (
    JP2_CODESTREAM,
    JP2_CONTAINER,
    JXL_CODESTREAM,
    JXL_CONTAINER,
    primary_size_px,
)
from pipeline.decode.pictures.jpeg2000 import jpeg2000_memory_bytes, read_jpeg2000_header
from pipeline.decode.pictures.jpeg_xl import jxl_size_px
from pipeline.decode.pictures.raw import RAW_FORMATS, raw_format
from pipeline.decode.pictures.video import VIDEO_FORMATS, video_format
from pipeline.decode.recorded import NOTHING_RECORDED, Recorded, recorded, recorded_in
from pipeline.schema import ErrorCode, Media, PhotoError

_MAGICS = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II\x2a\0", "tiff"),
    (b"MM\0\x2a", "tiff"),
    (b"II\x2b\0", "tiff"),
    (b"MM\0\x2b", "tiff"),
    (JXL_CODESTREAM, "jxl"),
    (JXL_CONTAINER, "jxl"),
    (JP2_CODESTREAM, "jp2"),
    (JP2_CONTAINER, "jp2"),
)
_BMP_HEADER_BYTES = {12, 16, 40, 52, 56, 64, 108, 124}
"""Two letters are no magic: texts begin so, too."""
_BLANKS, _MOST_BLANKS, _MOST_ODD = b" \t\r\n\0\xef\xbb\xbf", 64, 16
"""What scripts of web servers put before a picture, and viewers pass over; a few other bytes, too, before a JPEG."""
_HEAD_BYTES, _ZEROS_OF_A_BOX = 512, 3
"""So many bytes of its length, which a photo of boxes begins with, are blanks themselves."""
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_BYTES_PER_PIXEL = {"webp": 12, "heic": 8, "avif": 8, "jxl": 16}
_BYTES_PER_PIXEL_ELSE = 4
_LEAST_ROW_BYTES = 32
"""A codec keeps a pointer for each row of pixels, and no row is shorter than a word."""
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_PIECES = 256, 257, (273, 324)
_MAX_TIFF_PIECES = 1 << 19
"""Pillow keeps some 700 bytes for each strip or tile; a picture of half a million rows may have each in a strip."""
_BMP_CORE_HEADER_BYTES = 12
_MAX_SIDE_PX = (1 << 31) - 1


@dataclass(frozen=True)
class DecodeLimits:
    """Above any of these a photo is refused as `too_large`, from its length and header alone.

    `max_bytes`: of the file. `max_pixels`: of the picture, whatever its format; a sequential JPEG is decoded in rows,
    so this bounds time. `max_memory_bytes`: what its decoder has to hold at once: all pixels (4 to 12 bytes each) for
    formats that can't shrink on load, all frequencies for a progressive JPEG; the default admits 268 megapixels of PNG.
    What the decoder's process may take follows from it, see `reader.ReaderSettings.decode_memory_bytes`.
    """

    max_bytes: int = 512 << 20
    max_pixels: int = 1_000_000_000
    max_memory_bytes: int = 1 << 30


@dataclass(frozen=True)
class PhotoFacts:
    """What a photo's header says; `width_px` and `height_px` as displayed, after the EXIF orientation.

    `decoded_share`: how much of its picture could be decoded, 0 to 1; None where all of it, or nothing was.
    """

    format: str
    width_px: int
    height_px: int
    exif: ExifFacts
    recorded: Recorded = NOTHING_RECORDED
    decoded_share: float | None = None

    @property
    def media(self) -> Media:
        """What kind of picture the file holds, by its format."""
        if self.format in VIDEO_FORMATS:
            return Media.VIDEO
        return Media.RAW if self.format in RAW_FORMATS else Media.IMAGE


class DecodeFailure(PhotoError):  # noqa: N818 - as PhotoError reads: a failure of the photo, not of the program
    """Why a photo could not be decoded, with `facts` where its header could be read, else None."""

    def __init__(self, code: ErrorCode, message: str, facts: PhotoFacts | None = None) -> None:
        super().__init__(code, message)
        self.facts = facts

    def __reduce__(self) -> tuple[type[DecodeFailure], tuple[ErrorCode, str, PhotoFacts | None]]:
        return DecodeFailure, (self.code, self.message, self.facts)


def check_head(head: bytes, limits: DecodeLimits, with_videos: bool = False) -> None:
    """Look at the first bytes of a file whose rest is still to come; what they don't tell is no reason to refuse it.

    `with_videos`: videos are taken, whatever their first bytes say.

    Raises `DecodeFailure`: unsupported_format, too_large, and corrupt where no rest could mend it.
    """
    try:
        format_name, start = find_photo(head, with_videos)
        head = head[start:] if start else head
        if format_name != "jpeg":
            check_size(format_name, head, limits)
            return
        header = read_jpeg_header(head)
    except DecodeFailure:
        raise
    except PhotoError as error:
        if error.code == ErrorCode.TRUNCATED:
            return
        raise DecodeFailure(error.code, error.message) from error
    size_px = (header.width_px, header.height_px)
    if _is_too_large(size_px, header.coefficient_bytes, limits):
        exif = read_exif(*header.blocks.exif)
        facts = facts_of("jpeg", size_px, exif, exif.orientation, recorded_in(exif, header.blocks))
        refuse_too_large(facts, header.coefficient_bytes, limits)


def check_size(format_name: str, data: bytes, limits: DecodeLimits) -> None:
    """Raise `DecodeFailure` (too_large, corrupt) for a picture that is too large, as far as these bytes tell its size.

    `data`: a file, or its first bytes, of any format but JPEG.
    """
    jpeg2000 = read_jpeg2000_header(data) if format_name == "jp2" else None
    if jpeg2000 is not None:
        size_px: tuple[int, int] | None = (jpeg2000.width_px, jpeg2000.height_px)
        needed_bytes = jpeg2000_memory_bytes(jpeg2000, jpeg2000.halvings)
    else:
        size_px = _size_px(format_name, data)
        needed_bytes = memory_bytes(format_name, size_px) if size_px is not None else 0
    if size_px is not None and min(size_px) >= 1 and _is_too_large(size_px, needed_bytes, limits):
        exif = read_exif(data) if format_name == "tiff" else ExifFacts()
        facts = facts_of(format_name, size_px, exif, exif.orientation, recorded(exif))
        refuse_too_large(facts, needed_bytes, limits)
    pieces = max(tiff_count(data, tag) for tag in _TIFF_PIECES) if format_name == "tiff" else 0
    if pieces > _MAX_TIFF_PIECES:
        raise DecodeFailure(ErrorCode.CORRUPT, f"tiff: says it has {pieces} strips or tiles")


def memory_bytes(format_name: str, size_px: tuple[int, int]) -> int:
    """Return what a codec that can't shrink on load holds at once of a picture of that width and height."""
    width_px, height_px = size_px
    row_bytes = width_px * _BYTES_PER_PIXEL.get(format_name, _BYTES_PER_PIXEL_ELSE)
    return height_px * max(row_bytes, _LEAST_ROW_BYTES)


def facts_of(format_name: str, size_px: tuple[int, int], exif: ExifFacts, turn: int, records: Recorded) -> PhotoFacts:
    """Return the facts of a picture that is stored with this width and height, and is displayed after this turn.

    `turn`: an EXIF orientation, 1 to 8.

    Raises `PhotoError`: corrupt where one is 0, too_large where one does not fit its column.
    """
    if min(size_px) < 1:
        raise PhotoError(ErrorCode.CORRUPT, f"{format_name}: has no width or no height")
    if max(size_px) > _MAX_SIDE_PX:
        raise PhotoError(ErrorCode.TOO_LARGE, f"{format_name}: says it is {size_px[0]} × {size_px[1]} pixels")
    width_px, height_px = reversed(size_px) if turn >= 5 else size_px
    return PhotoFacts(format_name, width_px, height_px, exif, records)


def _is_too_large(size_px: tuple[int, int], needed_bytes: int, limits: DecodeLimits) -> bool:
    is_beyond = size_px[0] * size_px[1] > limits.max_pixels or needed_bytes > limits.max_memory_bytes
    return is_beyond or max(size_px) > _MAX_SIDE_PX


def refuse_too_large(facts: PhotoFacts, needed_bytes: int, limits: DecodeLimits) -> None:
    """Raise `DecodeFailure` (too_large) for a picture whose size or decoder is beyond the limits."""
    size = f"{facts.format}: {facts.width_px} × {facts.height_px} pixels"
    if facts.width_px * facts.height_px > limits.max_pixels:
        message = f"{size}, more than the {limits.max_pixels} pixels allowed"
        raise DecodeFailure(ErrorCode.TOO_LARGE, message, facts)
    if needed_bytes > limits.max_memory_bytes:
        need = f"decoding needs {needed_bytes >> 20} MiB, more than the {limits.max_memory_bytes >> 20} MiB allowed"
        raise DecodeFailure(ErrorCode.TOO_LARGE, f"{size}: {need}", facts)


def find_photo(data: bytes, with_videos: bool = False) -> tuple[str, int]:
    """Return the format that a file's first bytes show, and where the photo begins.

    That is at 0, but where blanks or a few odd bytes stand before it. `with_videos`: videos are photos, too.

    Raises `PhotoError` (unsupported_format) for all others.
    """
    format_name = _format_of(data)
    if format_name is not None:
        return format_name, 0
    blanks = len(data[:_MOST_BLANKS]) - len(data[:_MOST_BLANKS].lstrip(_BLANKS))
    odd = data.find(b"\xff\xd8\xff", 0, _MOST_ODD)
    for start in (blanks, blanks - _ZEROS_OF_A_BOX, odd):
        if start > 0 and (format_name := _format_of(data[start : start + _HEAD_BYTES])) is not None:
            return format_name, start
    if with_videos and (format_name := video_format(data)) is not None:
        return format_name, 0
    what = ": its first bytes are all zero" if data and not data[:65_536].strip(b"\0") else ""
    raise PhotoError(ErrorCode.UNSUPPORTED_FORMAT, f"not a photo in a known format{what}")


def sniff_format(data: bytes) -> str:
    """Return the format of a photo as `find_photo` does; raises `PhotoError` (unsupported_format) for all others."""
    return find_photo(data)[0]


def _format_of(data: bytes) -> str | None:
    for magic, format_name in _MAGICS:
        if data.startswith(magic):
            if format_name == "bmp" and int.from_bytes(data[14:18], "little") not in {0, *_BMP_HEADER_BYTES}:
                break
            return raw_format(data) or "tiff" if format_name == "tiff" else format_name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        end = min(int.from_bytes(data[:4], "big"), 256)
        brands = [data[8:12], *(data[i : i + 4] for i in range(16, end, 4))]
        is_avif = not _AVIF_BRANDS.isdisjoint(brands)
        if brands[0] in _AVIF_BRANDS or (is_avif and brands[0] in (b"mif1", b"msf1")):
            return "avif"
        if not _HEIC_BRANDS.isdisjoint(brands):
            return "heic"
    return raw_format(data)


def _size_px(format_name: str, data: bytes) -> tuple[int, int] | None:
    """Return width and height as stored, None where these bytes don't tell: what is wrong the decoder says better."""
    match format_name:
        case "gif":
            return _gif_extent_px(data)
        case "png" if data[12:16] == b"IHDR" and len(data) >= 24:
            return struct.unpack_from(">II", data, 16)
        case "bmp" if len(data) >= 26:
            if int.from_bytes(data[14:18], "little") == _BMP_CORE_HEADER_BYTES:
                return struct.unpack_from("<HH", data, 18)
            width_px, height_px = struct.unpack_from("<ii", data, 18)
            return width_px, abs(height_px)  # negative: the first row is the uppermost
        case "tiff":
            width_px, height_px = tiff_number(data, _TIFF_WIDTH), tiff_number(data, _TIFF_HEIGHT)
            return None if width_px is None or height_px is None else (width_px, height_px)
        case "webp":
            return _webp_size_px(data)
        case "heic" | "avif":
            return primary_size_px(data)
        case "jxl":
            return jxl_size_px(data)
    return None


def _webp_size_px(data: bytes) -> tuple[int, int] | None:
    """Return the size in a WebP's first chunk (RFC 9649): of its canvas, or of its one frame."""
    if len(data) < 30:
        return None
    match data[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
        case b"VP8L":
            sides = int.from_bytes(data[21:25], "little")
            return 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
        case b"VP8 ":
            width_px, height_px = struct.unpack_from("<HH", data, 26)
            return width_px & 0x3FFF, height_px & 0x3FFF
    return None


def _gif_extent_px(data: bytes) -> tuple[int, int]:
    """Return how far a GIF's screen or its first frame reaches; a file that ends before is left to the decoder."""
    width_px, height_px = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    flags = data[10] if len(data) > 10 else 0
    at = 13 + (3 << ((flags & 7) + 1)) * (flags >> 7)
    while at < len(data) and data[at] != ord(b","):
        if data[at] != ord(b"!"):  # stray bytes, which decoders skip one by one
            at = min((place for mark in b",!" if (place := data.find(mark, at)) >= 0), default=len(data))
            continue
        at += 2
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    left, top, frame_width_px, frame_height_px = (
        int.from_bytes(data[at + i : at + i + 2], "little") for i in (1, 3, 5, 7)
    )
    return max(width_px, left + frame_width_px), max(height_px, top + frame_height_px)
