"""From a picture as it is stored to the upright RGB squares that the model wants: cut out, resampled, turned.

Only what the model looks at is resampled, and only what is small is turned. Which squares, `model.backbones.framing`
says; what lies beside a letterboxed photo is filled. Transparent pictures lie on white, as viewers show them. An
embedded colour profile is applied (to sRGB); a broken one is ignored. 16-bit pictures are scaled, not clipped.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageCms

from model.backbones.framing import VIEWS, Box, Cut, boxes

if TYPE_CHECKING:  # the decoder needs no network
    from model.backbones.backbone import Preprocessing

SHRINK_MARGIN = 1.0
"""What it costs in answers `jobs.benchmark shrink` measures, beside larger ones."""
_REDUCING_GAP = 3.0
"""What is loaded much larger is averaged down to so many times the size first: 12 megapixels in 12 ms instead of 33,
and 0.3 of 255 away, where a pixel aside is 10 away."""

_Box = tuple[float, float, float, float]
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAX_ICC_BYTES = 4 << 20
_BAND_PIXELS = 1 << 21
"""So many pixels of an unusual mode are made RGB at a time."""
_SRGB = ImageCms.createProfile("sRGB")


VIDEO_FRAMES = 5
"""Out of so many key frames of a video the best is taken, unless a user says otherwise: some seconds of a phone's."""


@dataclass(frozen=True)
class DecodeTarget:
    """What the model wants: views of `image_size_px` squared, cut out as `framing` says.

    By its centre and for crops: the shorter side resized to `resize_px`, then squares out of it.

    `shrink_margin`: a JPEG is loaded at the smallest of 1/8, 1/4, 1/2 of its size and all of it that has at least so
    many times the pixels that the views need, then resized. Infinite: all of it, and without a short cut in resizing
    either. `fill_rgb`: the colour beside a letterboxed photo. `video_frames`: out of how many key frames of a video the
    best is taken; 0 where videos are no photos.
    """

    image_size_px: int
    resize_px: int
    shrink_margin: float = SHRINK_MARGIN
    framing: Cut = "centre"
    fill_rgb: tuple[int, int, int] = (128, 128, 128)
    video_frames: int = 0

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
class StoredPicture:
    """A loaded picture, as stored.

    Attributes:
        scale: of the whole picture's size, 0 to 1, at which it was loaded.
        stored_px: the whole picture's width and height.
        turn: the EXIF orientation (1 to 8) that is still to be applied.
        icc: its colour profile.
        bits: of each sample, where they come in 16-bit words.
    """

    image: Image.Image
    scale: float
    stored_px: tuple[int, int]
    turn: int
    icc: bytes | None
    bits: int


def upright_views(picture: StoredPicture, target: DecodeTarget) -> list[Image.Image]:
    """Cut each view out of a picture of any mode, resample it, then (when it is small) fix colours and turn."""
    width_px, height_px = picture.stored_px[::-1] if picture.turn >= 5 else picture.stored_px
    return [_upright_view(picture, target, box.stored(picture.turn)) for box in target.boxes(width_px, height_px)]


def _upright_view(picture: StoredPicture, target: DecodeTarget, part: Box) -> Image.Image:
    image, scale, stored_px = picture.image, picture.scale, picture.stored_px
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
        image, box = _in_eight_bits(image, box, picture.bits, view_px, gap)
        gap = None
    view = _to_srgb(image.resize(view_px, Image.Resampling.BILINEAR, box, gap), picture.icc)
    turn = _TRANSPOSE.get(picture.turn)
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
    transform = _srgb_transform(icc, image.mode) if icc and len(icc) <= MAX_ICC_BYTES else None
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
