"""JPEG, shrunk while it is decoded: libjpeg computes the picture at 1/8, 1/4 or 1/2 of its size straight from the
frequencies, so a 300-megapixel photo costs the memory of what is asked for, and most of a full decode's time is saved.

A damaged JPEG is never passed on as if it were whole: libjpeg paints what is missing grey and only warns, so its
warnings are read, and what is there is counted. Source: ITU-T T.81; libjpeg-turbo's jerror.h for the list of warnings.
"""

from __future__ import annotations

import io
import itertools
import re
from dataclasses import dataclass

import simplejpeg
from PIL import Image, JpegImagePlugin

from pipeline.decode.carried import Carried, JpegBlocks
from pipeline.decode.codec_errors import codec_call
from pipeline.decode.repair.jpeg_scans import (
    breaks_off_unnoticed,
    data_end,
    find_hole,
    first_scan_end,
    share_of_scans,
)
from pipeline.decode.repair.partial import LEAST_SHARE, load_part
from pipeline.schema import ErrorCode, PhotoError

_EOI = b"\xff\xd9"
_SOI_TO_SOS_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
_SOF_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_NOT_FILL = re.compile(rb"[^\xff]")
_MARKER_AMONG_PICTURE_DATA = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
# Bombs: a scan of a few bytes can make the decoder visit every block, and a segment may have no more than four. Real
# files have ten scans or so, and a few hundred segments at most (profiles and maker notes in parts of 64 KiB).
_MAX_SCANS, _MAX_SEGMENTS = 100, 10_000
_HUFFMAN_SEQUENTIAL, _PROGRESSIVE, _SUPPORTED = {0xC0, 0xC1}, {0xC2, 0xCA}, {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
# The first warning is all that libjpeg reports. These mean lost or garbled picture; its others (unknown Adobe
# transform, JFIF version, bad ICC chunk, wrong SOS parameters, stray bytes between headers) leave the picture whole.
_END_OF_FILE = "Premature end of JPEG file"
_LOST_DATA = re.compile(r"premature end of data segment")
_GARBLED_DATA = re.compile(
    r"bad Huffman code|bad arithmetic code|instead of RST|before marker 0xd[0-7]|Inconsistent prog"
)
_STRAY_AFTER_PICTURE = re.compile(r"(\d+) extraneous bytes before marker 0xd9")


@dataclass(frozen=True)
class JpegHeader:
    """What stands before a JPEG's picture data; `icc` is the raw colour profile, None when absent.

    `coefficient_bytes`: memory for all frequencies at once, which progressive and multi-scan files need; else 0.
    `data_start`: where the first scan's data begin.
    `is_checkable_without_end`: whether a missing end marker can be told apart from missing data.
    """

    width_px: int
    height_px: int
    components: int
    coefficient_bytes: int
    is_checkable_without_end: bool
    blocks: Carried
    icc: bytes | None
    data_start: int


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Read the marker segments up to the picture data. Raises `PhotoError` (truncated, corrupt, unsupported_format)."""
    blocks = JpegBlocks()
    icc_chunks: dict[int, bytes] = {}
    frame: bytes | None = None
    frame_marker = 0
    at = 2
    for number in itertools.count():
        after_fill = _NOT_FILL.search(data, at) if (at := data.find(b"\xff", at)) >= 0 else None
        at = after_fill.start() if after_fill else len(data)
        if number == _MAX_SEGMENTS:
            raise PhotoError(ErrorCode.CORRUPT, f"jpeg: more than {_MAX_SEGMENTS} segments before its picture data")
        if at + 3 > len(data):
            raise PhotoError(ErrorCode.TRUNCATED, "jpeg: ends before its picture data")
        marker = data[at]
        if marker == 0xD9:
            raise PhotoError(ErrorCode.CORRUPT, "jpeg: has no picture data")
        if marker == 0x00 or marker in _SOI_TO_SOS_WITHOUT_LENGTH:
            at += 1
            continue
        length = int.from_bytes(data[at + 1 : at + 3], "big")
        segment = data[at + 3 : at + 1 + length]
        if length < 2:
            raise PhotoError(ErrorCode.CORRUPT, f"jpeg: segment 0x{marker:02x} has no length")
        if len(segment) < length - 2:
            raise PhotoError(ErrorCode.TRUNCATED, "jpeg: ends inside its header")
        if marker in _SOF_MARKERS and frame is None:
            frame, frame_marker = segment, marker
        elif marker in (0xE1, 0xED):
            blocks.add(marker, segment)
        elif marker == 0xE2 and segment.startswith(b"ICC_PROFILE\0") and len(segment) > 14:
            icc_chunks.setdefault(segment[12], segment[14:])
        elif marker == 0xDA:
            break
        at += 1 + length
    if frame is None or len(frame) < 6 or len(frame) < 6 + 3 * frame[5] or not segment:
        raise PhotoError(ErrorCode.CORRUPT, "jpeg: its picture data comes without a frame header")
    if frame_marker not in _SUPPORTED or frame[0] != 8 or frame[5] not in (1, 3, 4):
        what = f"process 0x{frame_marker:02x}, {frame[0]} bits, {frame[5]} components"
        raise PhotoError(ErrorCode.UNSUPPORTED_FORMAT, f"jpeg: this kind is not supported ({what})")
    height_px, width_px, components = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big"), frame[5]
    if not height_px or not width_px:
        raise PhotoError(ErrorCode.CORRUPT, "jpeg: has no width or no height")
    has_one_scan = segment[0] == components and frame_marker not in _PROGRESSIVE
    if not has_one_scan:
        _refuse_many_scans(data, at)
    sampling = [(s >> 4) * (s & 15) for s in frame[7 : 6 + 3 * components : 3]]
    samples = width_px * height_px * sum(sampling) // max(1, *sampling)
    return JpegHeader(
        width_px=width_px,
        height_px=height_px,
        components=components,
        coefficient_bytes=0 if has_one_scan else 2 * samples,
        data_start=at + 1 + length,
        is_checkable_without_end=has_one_scan and frame_marker in _HUFFMAN_SEQUENTIAL,
        blocks=blocks.carried(),
        icc=b"".join(icc_chunks[i] for i in sorted(icc_chunks)) or None,
    )


def _refuse_many_scans(data: bytes, at: int) -> None:
    """Walk the markers from the first scan's header (at `at`) to the end of the picture."""
    scans = 0
    for _ in range(_MAX_SEGMENTS):
        if data[at] == 0xDA:
            scans += 1
        if data[at] == 0xD9 or scans > _MAX_SCANS:
            break
        if data[at] not in _SOI_TO_SOS_WITHOUT_LENGTH:
            at += max(2, int.from_bytes(data[at + 1 : at + 3], "big"))
        found = _MARKER_AMONG_PICTURE_DATA.search(data, at)
        if found is None:
            return
        at = found.start(1)
    else:
        raise PhotoError(ErrorCode.CORRUPT, f"jpeg: more than {_MAX_SEGMENTS} segments in its picture data")
    if scans > _MAX_SCANS:
        raise PhotoError(ErrorCode.TOO_LARGE, f"jpeg: more than {_MAX_SCANS} scans")


def shrink_eighths(header: JpegHeader, min_side_px: float) -> int:
    """Return the smallest k of 1, 2, 4, 8 for which the picture at k/8 of its size is at least `min_side_px` both ways.

    Only powers of two: the others have no fast transform in libjpeg-turbo (640×480 at 5/8 takes longer than in full).
    """
    side_px = min(header.width_px, header.height_px)
    return next((k for k in (1, 2, 4) if side_px * k >= min_side_px * 8), 8)


def decode_jpeg_shrunk(data: bytes, header: JpegHeader, eighths: int) -> tuple[Image.Image, float | None]:
    """Decode at `eighths`/8 of the full size to a picture of mode L, RGB or CMYK, as stored (orientation not applied).

    Returns it with the share of it that is there, None for a whole one: what is missing is grey, as libjpeg has it.

    Raises `PhotoError`: truncated or corrupt, where less than `LEAST_SHARE` is there or nobody can tell.
    """
    attempt = data
    image, warning = _decoded(attempt, header, eighths)
    if _END_OF_FILE in warning and header.is_checkable_without_end:
        attempt = data + _EOI
        image, warning = _decoded(attempt, header, eighths)
    stray = _STRAY_AFTER_PICTURE.search(warning)
    if stray is not None and bytes(int(stray[1])) + _EOI in attempt:
        # Padding, or what follows where a copy broke off: zeros are codes of data, too.
        image, warning = _decoded(attempt[: data_end(data, header.data_start)] + _EOI, header, eighths)
        stray = _STRAY_AFTER_PICTURE.search(warning)
    elif image is not None and header.is_checkable_without_end and breaks_off_unnoticed(data, header.data_start):
        image, warning = None, _END_OF_FILE
    if image is not None:
        return image, None
    is_cut = _END_OF_FILE in warning or _LOST_DATA.search(warning) is not None
    # Bytes left over after the last block mean that the decoder lost its place: seen with one byte, colours shifted.
    is_garbled = _GARBLED_DATA.search(warning) is not None or stray is not None
    if is_cut or (is_garbled and find_hole(data, header.data_start) is not None):
        return _decode_part(data, header, eighths)
    if is_garbled:
        raise PhotoError(ErrorCode.CORRUPT, f"jpeg: {warning}")
    return _decode_with_pillow(attempt, eighths), None


def _decoded(data: bytes, header: JpegHeader, eighths: int, strict: bool = True) -> tuple[Image.Image | None, str]:
    """Return the picture, or None and the first of libjpeg's warnings; unless `strict`, it comes whatever they are."""
    colorspace = {1: "GRAY", 3: "RGB", 4: "CMYK"}[header.components]
    min_height_px, min_width_px = (
        (0, 0) if eighths == 8 else (-(-side * eighths // 8) for side in (header.height_px, header.width_px))
    )
    with codec_call("jpeg", data):
        try:
            pixels_HWC = simplejpeg.decode_jpeg(
                data, colorspace, min_height=min_height_px, min_width=min_width_px, strict=strict
            )
        except ValueError as error:
            return None, str(error) or "unknown"
    if header.components == 4:
        return Image.fromarray(255 - pixels_HWC, "CMYK"), ""  # Adobe's polarity, which is everybody's
    return Image.fromarray(pixels_HWC[..., 0] if header.components == 1 else pixels_HWC), ""


def _decode_part(data: bytes, header: JpegHeader, eighths: int) -> tuple[Image.Image, float | None]:
    """Decode what there is of a JPEG that breaks off; PhotoError (truncated) where it is too little."""
    image: Image.Image | None
    if header.is_checkable_without_end:
        cut = data[: first_scan_end(data, header.data_start)]
        with codec_call("jpeg", data):
            part = JpegImagePlugin.JpegImageFile(io.BytesIO(cut))
            if eighths < 8:
                part.draft(None, (part.width * eighths // 8, part.height * eighths // 8))
            share = load_part(part)
        image = part
    else:
        share, end, may_be_whole = share_of_scans(data)
        image = _decoded(data[:end] + _EOI, header, eighths)[0] if may_be_whole else None
        if image is not None:
            return image, None  # but for its end marker
        image = _decoded(data[:end] + _EOI, header, eighths, strict=False)[0] if share >= LEAST_SHARE else None
    if share < LEAST_SHARE or image is None:
        raise PhotoError(ErrorCode.TRUNCATED, f"jpeg: only {share:.0%} of the picture is there")
    return image, share


def _decode_with_pillow(data: bytes, eighths: int) -> Image.Image:
    """Decode with the second reader, which does the same, slower: it takes what simplejpeg has no name for (odd chroma
    subsampling) and ignores harmless warnings, yet still notices a premature end."""
    with codec_call("jpeg", data):
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
        if eighths < 8:
            image.draft(None, (image.width * eighths // 8, image.height * eighths // 8))
        image.load()
    return image
