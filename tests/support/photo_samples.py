"""Builders of real photo files for tests, from the photographs that ship inside scikit-learn; no file is stored here.

All return the bytes of a file. `china_image()` (640 × 427, a palace) is the usual starting point.
"""

from __future__ import annotations

import io
import math
from datetime import datetime
from pathlib import Path
from typing import Any

import pillow_heif
import pillow_jxl  # noqa: F401 - teaches Pillow to write it
import sklearn.datasets
from PIL import Image

_IMAGES = Path(sklearn.datasets.__file__).parent / "images"
_UNDO = {  # how the pixels of a camera held that way are stored, for each EXIF orientation
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def china_jpeg() -> bytes:
    """Return scikit-learn's china.jpg, byte for byte."""
    return (_IMAGES / "china.jpg").read_bytes()


def flower_jpeg() -> bytes:
    """Return scikit-learn's flower.jpg, byte for byte."""
    return (_IMAGES / "flower.jpg").read_bytes()


def china_image() -> Image.Image:
    """Return china.jpg as an RGB picture, 640 × 427."""
    with Image.open(_IMAGES / "china.jpg") as image:
        return image.convert("RGB")


def encode(image: Image.Image, format_name: str, **options: Any) -> bytes:
    """Return `image` as a file; `format_name`: jpeg, png, webp, tiff, gif, bmp, heic, avif, jxl or jp2."""
    buffer = io.BytesIO()
    if format_name == "heic":
        pillow_heif.from_pillow(image).save(buffer, **options)
    else:
        image.save(buffer, {"jp2": "jpeg2000"}.get(format_name, format_name), **options)
    return buffer.getvalue()


def exif_block(
    lat_deg: float | None = None,
    lon_deg: float | None = None,
    taken_at: datetime | None = None,
    orientation: int | None = None,
) -> bytes:
    """Return an EXIF block with just these facts in it, written by Pillow."""
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    if taken_at is not None:
        exif.get_ifd(0x8769)[0x9003] = taken_at.strftime("%Y:%m:%d %H:%M:%S")
    if lat_deg is not None and lon_deg is not None:
        gps = exif.get_ifd(0x8825)
        gps[1], gps[2] = "S" if lat_deg < 0 else "N", _degrees_minutes_seconds(lat_deg)
        gps[3], gps[4] = "W" if lon_deg < 0 else "E", _degrees_minutes_seconds(lon_deg)
    return exif.tobytes()


def _degrees_minutes_seconds(angle_deg: float) -> tuple[float, float, float]:
    minutes, degrees = math.modf(abs(angle_deg))
    seconds, minutes = math.modf(minutes * 60)
    return degrees, minutes, round(seconds * 60, 4)


def camera_jpeg(image: Image.Image, orientation: int = 1, **facts: Any) -> bytes:
    """Return a JPEG as a camera held that way writes it: pixels turned, and an EXIF tag that says so."""
    undo = _UNDO[orientation]
    stored = image if undo is None else image.transpose(undo)
    return encode(stored, "jpeg", quality=92, exif=exif_block(orientation=orientation, **facts))


def in_every_format(image: Image.Image) -> dict[str, bytes]:
    """Return the same picture as a file of each format that Graticule reads, by the name that it gives the format."""
    lossless = {"png": {}, "tiff": {}, "bmp": {}, "webp": {"lossless": True}, "jp2": {}}
    lossy = {"jpeg": {"quality": 95}, "heic": {"quality": 95}, "avif": {"quality": 95}, "gif": {}}
    lossy["jxl"] = {"quality": 95, "effort": 3}
    return {name: encode(image, name, **options) for name, options in (lossless | lossy).items()}


def large_jpeg(width_px: int, height_px: int) -> bytes:
    """Return a valid JPEG of any size without ever holding its pixels: one 16-pixel row of blocks, repeated.

    Each row is a restart interval of its own, so its compressed bytes can stand anywhere; only the header's height and
    the restart markers' numbers change. `height_px` must be a multiple of 16 and `width_px` of 640.
    """
    strip = Image.new("RGB", (width_px, 16))
    for left in range(0, width_px, 640):
        strip.paste(china_image().crop((0, 200, 640, 216)), (left, 0))
    row = encode(strip, "jpeg", restart_marker_rows=1, subsampling="4:2:0")
    frame, scan = row.index(b"\xff\xc0"), row.index(b"\xff\xda")
    scan_data = scan + 2 + int.from_bytes(row[scan + 2 : scan + 4], "big")
    header = row[: frame + 5] + height_px.to_bytes(2, "big") + row[frame + 7 : scan_data]
    entropy = row[scan_data:-2]
    rows = [entropy + bytes((0xFF, 0xD0 + i % 8)) for i in range(height_px // 16 - 1)]
    return header + b"".join(rows) + entropy + b"\xff\xd9"


def png_bomb(side_px: int = 20_000) -> bytes:
    """Return a small PNG whose header and compressed data unfold to side × side black pixels."""
    return encode(Image.new("1", (side_px, side_px)), "png")
