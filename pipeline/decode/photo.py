"""Photo bytes → upright RGB squares of the model's size, or a typed refusal. No I/O, thread-safe.

The one decode of training and serving. The format is told by content, never by name, and only the formats named here
are ever parsed. Sizes are refused from the header, before memory is spent. Only what the model looks at is resampled.

Decisions: which squares, `model.backbones.framing` says; what lies beside a letterboxed photo is filled. Transparent
pictures lie on white, as viewers show them. An embedded colour profile is applied (to sRGB); a broken one is ignored.
16-bit pictures are scaled, not clipped. Of several frames the first is taken. Camera raw files, which look
like TIFF but whose first picture is a thumbnail, are refused.

Importing this module lifts Pillow's own process-wide size limit (ours replaces it), tells the AVIF and HEIC decoders to
use one thread each (photos are what runs in parallel) and silences Pillow's warnings about odd metadata.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pillow_heif.options
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from model.backbones.framing import VIEWS, Box, Cut, boxes
from pipeline.decode.carried import Carried, carried, without_exif_item
from pipeline.decode.codec_errors import codec_call, is_cut
from pipeline.decode.exif import ExifFacts, read_exif, tiff_number
from pipeline.decode.header import DecodeFailure as DecodeFailure
from pipeline.decode.header import DecodeLimits as DecodeLimits
from pipeline.decode.header import PhotoFacts as PhotoFacts
from pipeline.decode.header import check_size, facts_of, memory_bytes, refuse_too_large
from pipeline.decode.header import sniff_format as sniff_format
from pipeline.decode.jpeg import decode_jpeg_shrunk, read_jpeg_header, shrink_eighths
from pipeline.decode.recorded import NOTHING_RECORDED, Recorded, recorded_in
from pipeline.schema import ErrorCode, PhotoError

if TYPE_CHECKING:  # the decoder needs no network
    from model.backbones.backbone import Preprocessing

Image.MAX_IMAGE_PIXELS = None
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
pillow_heif.options.DECODE_THREADS = 1
pillow_heif.options.THUMBNAILS = False
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

SHRINK_MARGIN = 1.0
"""What it costs in answers `jobs.benchmark shrink` measures, beside larger ones."""
_REDUCING_GAP = 3.0
"""What is loaded much larger is averaged down to so many times the size first: 12 megapixels in 12 ms instead of 33,
and 0.3 of 255 away, where a pixel aside is 10 away."""

_Box = tuple[float, float, float, float]


def _open_avif(file: io.BytesIO) -> ImageFile.ImageFile:
    """Open an AVIF, without its EXIF where that is broken: libavif refuses the picture for it."""
    try:
        return AvifImagePlugin.AvifImageFile(file)
    except ValueError as error:
        if "Exif" not in str(error):
            raise
    return AvifImagePlugin.AvifImageFile(io.BytesIO(without_exif_item(file.getvalue())))


_READERS: dict[str, Callable[..., ImageFile.ImageFile]] = {
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "heic": pillow_heif.HeifImageFile,
    "avif": _open_avif,
}
_TURNED_BY_CODEC = {"tiff", "heic"}
_TIFF_SUBFILE_TYPE, _TIFF_BITS, _TIFF_DNG_VERSION = 254, 258, 50706
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAX_ICC_BYTES = 4 << 20
PngImagePlugin.MAX_TEXT_CHUNK = _MAX_ICC_BYTES  # Pillow's 1 MiB refuses pictures with real profiles and metadata
_MAX_PNG_PROFILES = 8  # one is allowed; each may unfold a thousandfold, and a few may appear in picture data by chance
_MAX_RUN_LENGTH_PIXELS = 1 << 25  # Pillow unfolds these BMPs in Python: 12 million pixels a second
_BAND_PIXELS = 1 << 21
"""So many pixels of an unusual mode are made RGB at a time."""
_SRGB = ImageCms.createProfile("sRGB")


@dataclass(frozen=True)
class DecodeTarget:
    """What the model wants: views of `image_size_px` squared, cut out as `framing` says.

    By its centre and for crops: the shorter side resized to `resize_px`, then squares out of it.

    `shrink_margin`: a JPEG is loaded at the smallest of 1/8, 1/4, 1/2 of its size and all of it that has at least so
    many times the pixels that the views need, then resized. Infinite: all of it, and without a short cut in resizing
    either. `fill_rgb`: the colour beside a letterboxed photo.
    """

    image_size_px: int
    resize_px: int
    shrink_margin: float = SHRINK_MARGIN
    framing: Cut = "centre"
    fill_rgb: tuple[int, int, int] = (128, 128, 128)

    def __post_init__(self) -> None:
        if not self.shrink_margin >= 1:
            raise ValueError(f"shrink_margin {self.shrink_margin:g}: give 1 or more")
        if not 1 <= self.image_size_px <= self.resize_px:
            raise ValueError(f"need 1 <= image_size_px <= resize_px, got {self.image_size_px} and {self.resize_px}")
        if self.framing not in VIEWS:
            raise ValueError(f"framing must be one of {', '.join(VIEWS)}, not {self.framing!r}")

    @staticmethod
    def of(preprocessing: Preprocessing) -> DecodeTarget:
        """Return what a model with this preprocessing wants."""
        return DecodeTarget(
            preprocessing.image_size_px,
            preprocessing.resize_px,
            framing=preprocessing.framing,
            fill_rgb=preprocessing.fill_rgb,
        )

    @property
    def shape_HWC(self) -> tuple[int, int, int]:
        """The shape of a photo's pixels: its views, one below the other."""
        return VIEWS[self.framing] * self.image_size_px, self.image_size_px, 3

    @property
    def pixels_bytes(self) -> int:
        """What a photo's pixels take."""
        return math.prod(self.shape_HWC)

    def boxes(self, width_px: int, height_px: int) -> list[Box]:
        """Return the parts of an upright photo that become its views."""
        return boxes(self.framing, width_px, height_px, self.image_size_px / self.resize_px)

    def least_side_px(self, width_px: int, height_px: int) -> float:
        """Return how many pixels a photo's shorter side must have for its views to be as sharp as they can be."""
        longest_px = max(max(box.width_px, box.height_px) for box in self.boxes(width_px, height_px))
        short_px = min(width_px, height_px)
        return self.resize_px if longest_px < short_px else self.image_size_px * short_px / longest_px


@dataclass(frozen=True, eq=False)
class DecodedPhoto:
    """`pixels_HWC`: uint8 RGB, of the target's `shape_HWC`, C-contiguous, upright. The rest as in `PhotoFacts`.

    `format`: jpeg, png, webp, tiff, gif, bmp, heic or avif.
    """

    pixels_HWC: np.ndarray[Any, np.dtype[np.uint8]]
    format: str
    width_px: int
    height_px: int
    exif: ExifFacts
    recorded: Recorded = NOTHING_RECORDED


def decode_photo(data: bytes, target: DecodeTarget, limits: DecodeLimits | None = None) -> DecodedPhoto:
    """Decode a photo to `target`, shrinking it while loading where its format can.

    Raises `DecodeFailure` (a `PhotoError`): empty, too_large, unsupported_format, truncated or corrupt.
    """
    limits = limits or DecodeLimits()
    facts: PhotoFacts | None = None
    try:
        if not data:
            raise PhotoError(ErrorCode.EMPTY, "the file has no bytes")
        if len(data) > limits.max_bytes:
            raise PhotoError(ErrorCode.TOO_LARGE, f"{len(data)} bytes, more than the {limits.max_bytes} allowed")
        source = _open(sniff_format(data), data, limits)
        facts = source.facts
        refuse_too_large(facts, source.memory_bytes, limits)
        image, scale = source.load(target)
        facts = source.facts
        views = _upright_views(image, scale, source, target)
    except PhotoError as error:
        facts = error.facts if isinstance(error, DecodeFailure) else facts
        raise DecodeFailure(error.code, error.message, facts) from error
    pixels_HWC = np.concatenate([np.asarray(view, dtype=np.uint8) for view in views])
    assert pixels_HWC.shape == target.shape_HWC
    return DecodedPhoto(pixels_HWC, facts.format, facts.width_px, facts.height_px, facts.exif, facts.recorded)


class _Source:
    """An opened photo: its facts, its colour profile, and how to load it at (at least) the size wanted."""

    facts: PhotoFacts
    memory_bytes: int
    icc: bytes | None
    turn: int  # the orientation (1 to 8) that is still to be applied to the loaded picture
    bits: int = 16  # of each sample, where they come in 16-bit words

    def load(self, target: DecodeTarget) -> tuple[Image.Image, float]:
        """Return the picture as stored, at `scale` (0 to 1) of its size. Raises `PhotoError`."""
        raise NotImplementedError

    def _set_facts(self, format_name: str, size_px: tuple[int, int], blocks: Carried) -> None:
        exif = read_exif(*blocks.exif)
        self.turn = 1 if format_name in _TURNED_BY_CODEC else exif.orientation
        self.facts = facts_of(format_name, size_px, exif, self.turn, recorded_in(exif, blocks))


class _JpegSource(_Source):
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._header = header = read_jpeg_header(data)
        self.memory_bytes = header.coefficient_bytes
        self.icc = header.icc
        self._set_facts("jpeg", (header.width_px, header.height_px), header.blocks)

    def load(self, target: DecodeTarget) -> tuple[Image.Image, float]:
        least_px = target.least_side_px(self._header.width_px, self._header.height_px)
        eighths = shrink_eighths(self._header, least_px * target.shrink_margin)
        return decode_jpeg_shrunk(self._data, self._header, eighths), eighths / 8


class _PillowSource(_Source):
    def __init__(self, format_name: str, data: bytes) -> None:
        self._data, self._format = data, format_name
        if format_name == "png" and data.count(b"iCCP") > _MAX_PNG_PROFILES:
            raise PhotoError(ErrorCode.CORRUPT, "png: has many colour profiles")
        with codec_call(format_name, data):
            self._image = _READERS[format_name](io.BytesIO(data))
        self.memory_bytes = memory_bytes(format_name, self._image.size)
        icc = self._image.info.get("icc_profile")
        self.icc = icc if isinstance(icc, bytes) else None  # a TIFF's may be of any type
        if format_name == "tiff":
            self.bits = tiff_number(data, _TIFF_BITS) or 16
        self._set_facts(format_name, self._image.size, carried(format_name, data, self._image.info))
        if format_name == "tiff" and self.facts.exif.orientation != 1:
            self.memory_bytes *= 2  # Pillow turns it as it is loaded, into another picture

    def load(self, target: DecodeTarget) -> tuple[Image.Image, float]:
        if self._format == "tiff" and self._is_camera_raw():
            raise PhotoError(ErrorCode.UNSUPPORTED_FORMAT, "tiff: its first picture is a thumbnail (camera raw?)")
        is_run_length = self._format == "bmp" and self._data[30:34] in (b"\1\0\0\0", b"\2\0\0\0")
        if is_run_length and self.facts.width_px * self.facts.height_px > _MAX_RUN_LENGTH_PIXELS:
            raise PhotoError(ErrorCode.TOO_LARGE, "bmp: more pixels than are taken in run-length encoding")
        if self._format in ("heic", "avif", "webp") and is_cut(self._format, self._data):
            raise PhotoError(ErrorCode.TRUNCATED, f"{self._format}: shorter than its own structure says")
        with codec_call(self._format, self._data):
            self._image.load()
            # Some damage shows only when the picture is used: a frame of another mode, more transparency than colours.
            if self._image.im.mode != self._image.mode:
                raise ValueError("its frame is not of the kind that its header says")
            if self._image.has_transparency_data:
                self._image.crop((0, 0, 1, 1)).convert("RGBA")
        # TIFF and HEIC may change size when they are turned.
        self.facts = facts_of(self._format, self._image.size, self.facts.exif, self.turn, self.facts.recorded)
        return self._image, 1.0

    def _is_camera_raw(self) -> bool:
        is_thumbnail = (tiff_number(self._data, _TIFF_SUBFILE_TYPE) or 0) & 1
        return bool(is_thumbnail) or tiff_number(self._data, _TIFF_DNG_VERSION) is not None


def _open(format_name: str, data: bytes, limits: DecodeLimits) -> _Source:
    if format_name != "jpeg":  # opening alone may make a picture of the size that is claimed, or a tuple for each strip
        check_size(format_name, data, limits)
    return _JpegSource(data) if format_name == "jpeg" else _PillowSource(format_name, data)


def _upright_views(image: Image.Image, scale: float, source: _Source, target: DecodeTarget) -> list[Image.Image]:
    """Cut each view out of a picture of any mode, resample it, then (when it is small) fix colours and turn."""
    width_px, height_px = source.facts.width_px, source.facts.height_px
    stored_px = (height_px, width_px) if source.turn >= 5 else (width_px, height_px)
    return [
        _upright_view(image, scale, source, target, box.stored(source.turn), stored_px)
        for box in target.boxes(width_px, height_px)
    ]


def _upright_view(
    image: Image.Image, scale: float, source: _Source, target: DecodeTarget, part: Box, stored_px: tuple[int, int]
) -> Image.Image:
    left, top = (stored_px[0] - part.width_px) * part.across, (stored_px[1] - part.height_px) * part.down
    box = (
        left * scale,
        top * scale,
        min((left + part.width_px) * scale, image.width),
        min((top + part.height_px) * scale, image.height),
    )
    longest_px = max(part.width_px, part.height_px)
    view_width_px, view_height_px = (max(1, round(target.image_size_px * side / longest_px)) for side in part[:2])
    view_px = (view_width_px, view_height_px)
    gap = _REDUCING_GAP if math.isfinite(target.shrink_margin) else None
    if image.mode not in ("RGB", "L", "CMYK"):
        image, box = _in_eight_bits(image, box, source.bits, view_px, gap)
        gap = None
    view = _to_srgb(image.resize(view_px, Image.Resampling.BILINEAR, box, gap), source.icc)
    turn = _TRANSPOSE.get(source.turn)
    return _letterboxed(view if turn is None else view.transpose(turn), target)


def _letterboxed(view: Image.Image, target: DecodeTarget) -> Image.Image:
    side_px = target.image_size_px
    if view.size == (side_px, side_px):
        return view
    square = Image.new("RGB", (side_px, side_px), target.fill_rgb)
    square.paste(view, ((side_px - view.width) // 2, (side_px - view.height) // 2))
    return square


def _in_eight_bits(
    image: Image.Image, box: _Box, bits: int, view_px: tuple[int, int], gap: float | None
) -> tuple[Image.Image, _Box]:
    """Cut `box` (rounded outwards) out of a picture of unusual mode and make it RGB or L; return it and its new box.

    It is averaged down as `Image.resize` does it with a reducing gap, to the same values, but in bands of rows: frames
    are as large as memory is meant for, and no copy of a whole one is made.
    """
    left, top, right, bottom = int(box[0]), int(box[1]), int(np.ceil(box[2])), int(np.ceil(box[3]))
    factors = [int(side / view / gap) or 1 if gap else 1 for side, view in zip(_sides(box), view_px, strict=True)]
    to_eight_bits = _eight_bits_of(image, (left, top, right, bottom), bits)
    if factors == [1, 1]:
        return to_eight_bits(left, top, right, bottom), (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    band_px = max(1, _BAND_PIXELS // ((right - left) * factors[1])) * factors[1]
    averaged: Image.Image | None = None
    for start in range(top, bottom, band_px):
        band = to_eight_bits(left, start, right, min(start + band_px, bottom)).reduce((factors[0], factors[1]))
        if averaged is None:
            averaged = Image.new(band.mode, (band.width, -(-(bottom - top) // factors[1])))
        averaged.paste(band, (0, (start - top) // factors[1]))
    assert averaged is not None
    across, down = factors
    new_box = ((box[0] - left) / across, (box[1] - top) / down, (box[2] - left) / across, (box[3] - top) / down)
    return averaged, new_box


def _sides(box: _Box) -> tuple[float, float]:
    return box[2] - box[0], box[3] - box[1]


def _eight_bits_of(
    image: Image.Image, part: tuple[int, int, int, int], bits: int
) -> Callable[[int, int, int, int], Image.Image]:
    """Return what cuts a rectangle (left, top, right, bottom) out of a picture and makes it RGB or L.

    White, where the file does not say it, is told from `part` of the picture.
    """
    white = _white(image, part, bits) if image.mode.startswith(("I", "F")) else 0.0

    def convert(*rectangle: int) -> Image.Image:
        cut = image if rectangle == (0, 0, *image.size) else image.crop(rectangle)  # type: ignore[arg-type]
        if cut.mode == "1":
            return cut.convert("L")
        if white:
            return Image.fromarray(_scale_to_uint8(np.asarray(cut), white))
        if cut.mode == "LAB":
            transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), _SRGB, "LAB", "RGB")
            converted = ImageCms.applyTransform(cut, transform)
            assert converted is not None
            return converted
        if cut.has_transparency_data:
            rgba = cut if cut.mode == "RGBA" else cut.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        return cut.convert("RGB")

    return convert


def _white(image: Image.Image, part: tuple[int, int, int, int], bits: int) -> float:
    """Return what is white in grey samples: of 16-bit words by their number of bits, of 32-bit ones what holds them.

    32-bit and floating-point files don't say what white is: the smallest of 1 (floating point), 255, 65535 and their
    own maximum that holds them is taken.
    """
    left, top, right, bottom = part
    if image.mode.startswith("I;16"):
        return float((1 << min(bits, 16)) - 1)
    band_px = max(1, _BAND_PIXELS // (right - left))
    starts = range(top, bottom, band_px)
    bands = (np.asarray(image.crop((left, start, right, min(start + band_px, bottom)))) for start in starts)
    highest = max(float(np.nanmax(band, initial=0)) for band in bands)
    steps = (1.0, 255.0, 65535.0) if image.mode.startswith("F") else (255.0, 65535.0)
    return next((step for step in steps if highest <= step), highest)


def _scale_to_uint8(values_HW: np.ndarray[Any, Any], white: float) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Scale grey samples to 0..255; NaN becomes black."""
    scaled_HW = values_HW.astype(np.float32)
    scaled_HW *= 255.0 / white
    np.nan_to_num(scaled_HW, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    scaled_HW += 0.5
    return np.asarray(np.clip(scaled_HW, 0, 255, out=scaled_HW), dtype=np.uint8)


def _to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    transform = _srgb_transform(icc, image.mode) if icc and len(icc) <= _MAX_ICC_BYTES else None
    if transform is None:
        return image.convert("RGB")
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    return converted


@lru_cache(maxsize=16)  # of up to 4 MiB each
def _srgb_transform(icc: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from a profile to sRGB; None when it is sRGB already, broken, or not for this `mode`."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        if mode == "RGB" and ImageCms.getProfileDescription(profile).startswith("sRGB"):
            return None
        return ImageCms.buildTransform(profile, _SRGB, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
