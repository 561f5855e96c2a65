"""JPEG XL (ISO/IEC 18181), as a bare codestream and in boxes, by libjxl.

A picture that was recompressed from a JPEG gives that JPEG back, bit for bit, which our own decoder shrinks on load.
Any other is decoded whole, and comes turned as its codestream says: its EXIF orientation says the same, and does not
count. libjxl is loaded when it is first needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from pipeline.decode.codec_errors import codec_call
from pipeline.decode.pictures.iso_media import JXL_CODESTREAM, iso_boxes
from pipeline.schema import ErrorCode, PhotoError

_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_SIZE_BITS = (9, 13, 18, 30)
_MODES = {"L", "LA", "RGB", "RGBA", "I;16", "F"}


@dataclass(frozen=True, eq=False)
class JxlPicture:
    """A decoded file: the JPEG that it was made of, or else the picture, upright, with its profile."""

    jpeg: bytes | None
    image: Image.Image | None
    icc: bytes | None


def jxl_size_px(data: bytes) -> tuple[int, int] | None:
    """Return width and height as displayed, None where these bytes don't tell."""
    stream = _codestream_start(data)
    if stream is None or len(stream) < 16:
        return None
    bits = _Bits(stream[2:])
    height_px, width_px = _size(bits)
    is_all_default = bits.take(1)
    is_turned = not is_all_default and bits.take(1) and bits.take(3) >= 4  # orientations 5 to 8, counted from 0
    return (height_px, width_px) if is_turned else (width_px, height_px)


def _size(bits: _Bits) -> tuple[int, int]:
    is_small = bits.take(1)

    def side() -> int:
        return 8 * (1 + bits.take(5)) if is_small else 1 + bits.take(_SIZE_BITS[bits.take(2)])

    height_px = side()
    ratio = bits.take(3)
    if ratio == 0:
        return height_px, side()
    numerator, denominator = _RATIOS[ratio - 1]
    return height_px, height_px * numerator // denominator


class _Bits:
    """Numbers of any number of bits, the lowest first."""

    def __init__(self, data: bytes) -> None:
        self._number = int.from_bytes(data[:14], "little")

    def take(self, bits: int) -> int:
        value = self._number & ((1 << bits) - 1)
        self._number >>= bits
        return value


def _codestream_start(data: bytes) -> bytes | None:
    if data.startswith(JXL_CODESTREAM):
        return data[:16]
    for box in iso_boxes(data):
        if box.kind in (b"jxlc", b"jxlp"):
            start = box.start + (4 if box.kind == b"jxlp" else 0)
            rest = data[start : min(box.end, start + 16)]
            if not rest.startswith(JXL_CODESTREAM):
                return None
            # A first part may be shorter than the header; the next one goes on.
            return rest if len(rest) >= 16 else rest + _next_part(data, box.end)
    return None


def _next_part(data: bytes, at: int) -> bytes:
    part = next((box for box in iso_boxes(data, at) if box.kind == b"jxlp"), None)
    return bytes(16) if part is None else data[part.start + 4 : part.start + 20].ljust(16, b"\0")


def read_jxl(data: bytes) -> JxlPicture:
    """Decode a file. Raises `PhotoError` (truncated, corrupt, too_large, unsupported_format)."""
    from pillow_jxl import Decoder

    with codec_call("jxl", data):
        try:
            is_jpeg, info, pixels, icc, _ = Decoder(num_threads=0)(data)
        except RuntimeError as error:  # its own words advise to build another libjxl
            raise ValueError("libjxl can't decode it: it is damaged, or ends too early") from error
    if is_jpeg:
        return JxlPicture(bytes(pixels), None, None)
    mode = "F" if info.mode == "F;16" else info.mode
    if mode not in _MODES:
        raise PhotoError(ErrorCode.UNSUPPORTED_FORMAT, f"jxl: its samples are of a kind that is not supported ({mode})")
    with codec_call("jxl", data):
        image = Image.frombuffer(mode, (info.width, info.height), pixels, "raw", mode, 0, 1)
    return JxlPicture(None, image, icc or None)
