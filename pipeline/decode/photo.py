"""Photo bytes → upright RGB squares of the model's size, or a typed refusal. No I/O, thread-safe.

The one decode of training and serving. The format is told by content, never by name, and only the formats named here
are ever parsed. Sizes are refused from the header, before memory is spent. Only what the model looks at is resampled.

Decisions: which squares, `model.backbones.framing` says; what lies beside a letterboxed photo is filled. Transparent
pictures lie on white, as viewers show them. An embedded colour profile is applied (to sRGB); a broken one is ignored.
16-bit pictures are scaled, not clipped. Of several frames the first is taken; of a camera raw file its
largest preview, see `raw`; of a video, where
videos are asked for, one frame, see `video`.

Importing this module lifts Pillow's own process-wide size limit (ours replaces it), tells the AVIF and HEIC decoders to
use one thread each (photos are what runs in parallel) and silences Pillow's warnings about odd metadata.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pillow_heif.options
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from pipeline.decode.carried import Carried, carried, without_exif_item
from pipeline.decode.codec_errors import codec_call, is_cut
from pipeline.decode.exif import ExifFacts, read_exif, tiff_number
from pipeline.decode.header import DecodeFailure as DecodeFailure
from pipeline.decode.header import DecodeLimits as DecodeLimits
from pipeline.decode.header import PhotoFacts as PhotoFacts
from pipeline.decode.header import check_size, facts_of, find_photo, memory_bytes, refuse_too_large
from pipeline.decode.header import sniff_format as sniff_format
from pipeline.decode.jpeg import decode_jpeg_shrunk, read_jpeg_header, shrink_eighths
from pipeline.decode.pictures.jpeg2000 import (
    decode_jpeg2000,
    halvings_for,
    jpeg2000_memory_bytes,
    jpeg2000_profile,
    read_jpeg2000_header,
)
from pipeline.decode.pictures.jpeg_xl import jxl_size_px, read_jxl
from pipeline.decode.pictures.raw import RAW_FORMATS, RawFile
from pipeline.decode.pictures.video import VIDEO_FORMATS, VideoFile
from pipeline.decode.pictures.views import MAX_ICC_BYTES, StoredPicture, upright_views
from pipeline.decode.pictures.views import SHRINK_MARGIN as SHRINK_MARGIN
from pipeline.decode.pictures.views import DecodeTarget as DecodeTarget
from pipeline.decode.recorded import NOTHING_RECORDED, Recorded, recorded_in
from pipeline.decode.repair.partial import LEAST_SHARE, load_part
from pipeline.decode.repair.png import PngView
from pipeline.decode.repair.webp import with_right_length
from pipeline.schema import ErrorCode, PhotoError

Image.MAX_IMAGE_PIXELS = None
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
pillow_heif.options.DECODE_THREADS = 1
pillow_heif.options.THUMBNAILS = False
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


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
_TIFF_SUBFILE_TYPE, _TIFF_BITS = 254, 258
PngImagePlugin.MAX_TEXT_CHUNK = MAX_ICC_BYTES  # Pillow's 1 MiB refuses pictures with real profiles and metadata
_READ_IN_ROWS = {"png", "tiff", "gif", "bmp"}
"""Formats of which a codec leaves what it could decode; libwebp's and libheif's leave nothing."""
_OF_VIDEOS = 2.0  # so many times the pixels that the views need, as FFmpeg's averaging is rough
_MAX_RUN_LENGTH_PIXELS = 1 << 25  # Pillow unfolds these BMPs in Python: 12 million pixels a second


@dataclass(frozen=True, eq=False)
class DecodedPhoto:
    """`pixels_HWC`: uint8 RGB, of the target's `shape_HWC`, C-contiguous, upright. The rest as in `PhotoFacts`.

    `format`: jpeg, png, webp, tiff, gif, bmp, heic, avif, jxl, jp2, or one of `raw.RAW_FORMATS` or
    `video.VIDEO_FORMATS`.
    """

    pixels_HWC: np.ndarray[Any, np.dtype[np.uint8]]
    format: str
    width_px: int
    height_px: int
    exif: ExifFacts
    recorded: Recorded = NOTHING_RECORDED
    decoded_share: float | None = None

    @property
    def facts(self) -> PhotoFacts:
        """All but the pixels."""
        return PhotoFacts(self.format, self.width_px, self.height_px, self.exif, self.recorded, self.decoded_share)


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
        format_name, start = find_photo(data, target.video_frames > 0)
        source = _open(format_name, data[start:] if start else data, limits)
        facts = source.facts
        refuse_too_large(facts, source.memory_bytes, limits)
        image, scale = source.load(target)
        facts = source.facts
        picture = StoredPicture(image, scale, source.stored_px, source.turn, source.icc, source.bits)
        views = upright_views(picture, target)
    except PhotoError as error:
        facts = error.facts if isinstance(error, DecodeFailure) else facts
        raise DecodeFailure(error.code, error.message, facts) from error
    pixels_HWC = np.concatenate([np.asarray(view, dtype=np.uint8) for view in views])
    assert pixels_HWC.shape == target.shape_HWC
    share = source.decoded_share
    return DecodedPhoto(pixels_HWC, facts.format, facts.width_px, facts.height_px, facts.exif, facts.recorded, share)


class _Source:
    """An opened photo: its facts, its colour profile, and how to load it at (at least) the size wanted."""

    facts: PhotoFacts
    memory_bytes: int
    icc: bytes | None
    turn: int  # the orientation (1 to 8) that is still to be applied to the loaded picture
    is_turned_by_codec: bool = False
    bits: int = 16  # of each sample, where they come in 16-bit words
    decoded_share: float | None = None  # of a damaged picture, once it was loaded

    @property
    def stored_px(self) -> tuple[int, int]:
        """Width and height of the whole picture that is loaded, before it is turned."""
        width_px, height_px = self.facts.width_px, self.facts.height_px
        return (height_px, width_px) if self.turn >= 5 else (width_px, height_px)

    def load(self, target: DecodeTarget) -> tuple[Image.Image, float]:
        """Return the picture as stored, at `scale` (0 to 1) of its size. Raises `PhotoError`."""
        raise NotImplementedError

    def _set_facts(self, format_name: str, size_px: tuple[int, int], blocks: Carried) -> None:
        exif = read_exif(*blocks.exif)
        self.turn = 1 if self.is_turned_by_codec else exif.orientation
        self.facts = facts_of(format_name, size_px, exif, self.turn, recorded_in(exif, blocks))


class _JpegSource(_Source):
    def __init__(self, data: bytes, format_name: str = "jpeg") -> None:
        self._data = data
        self._header = header = read_jpeg_header(data)
        self.memory_bytes = header.coefficient_bytes
        self.icc = header.icc
        self._set_facts(format_name, (header.width_px, header.height_px), header.blocks)

    def load(self, target: DecodeTarget) -> tuple[Image.Image, float]:
        least_px = target.least_side_px(self._header.width_px, self._header.height_px)
        eighths = shrink_eighths(self._header, least_px * target.shrink_margin)
        image, self.decoded_share = decode_jpeg_shrunk(self._data, self._header, eighths)
        return image, eighths / 8


class _PillowSource(_Source):
    def __init__(self, format_name: str, data: bytes) -> None:
        self._data, self._format = with_right_length(data) if format_name == "webp" else data, format_name
        self.is_turned_by_codec = format_name in _TURNED_BY_CODEC
        self._image = self._opened()
        self.memory_bytes = memory_bytes(format_name, self._image.size)
        icc = self._image.info.get("icc_profile")
        self.icc = icc if isinstance(icc, bytes) else None  # a TIFF's may be of any type
        if format_name == "tiff":
            self.bits = tiff_number(data, _TIFF_BITS) or 16
        self._set_facts(format_name, self._image.size, carried(format_name, data, self._image.info))
        if format_name == "tiff" and self.facts.exif.orientation != 1:
            self.memory_bytes *= 2  # Pillow turns it as it is loaded, into another picture

    def load(self, target: DecodeTarget) -> tuple[Image.Image, float]:
        if self._format == "tiff" and (tiff_number(self._data, _TIFF_SUBFILE_TYPE) or 0) & 1:
            raise PhotoError(ErrorCode.UNSUPPORTED_FORMAT, "tiff: its first picture is a thumbnail (camera raw?)")
        is_run_length = self._format == "bmp" and self._data[30:34] in (b"\1\0\0\0", b"\2\0\0\0")
        if is_run_length and self.facts.width_px * self.facts.height_px > _MAX_RUN_LENGTH_PIXELS:
            raise PhotoError(ErrorCode.TOO_LARGE, "bmp: more pixels than are taken in run-length encoding")
        if self._format in ("heic", "avif", "webp") and is_cut(self._format, self._data):
            raise PhotoError(ErrorCode.TRUNCATED, f"{self._format}: shorter than its own structure says")
        try:
            with codec_call(self._format, self._data):
                self._image.load()
        except PhotoError as error:
            if error.code != ErrorCode.TRUNCATED or self._format not in _READ_IN_ROWS:
                raise
            self._load_part()
        with codec_call(self._format, self._data):
            # Some damage shows only when the picture is used: a frame of another mode, more transparency than colours.
            if self._image.im.mode != self._image.mode:
                raise ValueError("its frame is not of the kind that its header says")
            if self._image.has_transparency_data:
                self._image.crop((0, 0, 1, 1)).convert("RGBA")
        # TIFF and HEIC may change size when they are turned.
        self.facts = facts_of(self._format, self._image.size, self.facts.exif, self.turn, self.facts.recorded)
        return self._image, 1.0

    def _opened(self) -> ImageFile.ImageFile:
        with codec_call(self._format, self._data):
            is_png = self._format == "png"
            return _READERS[self._format](PngView(self._data, MAX_ICC_BYTES) if is_png else io.BytesIO(self._data))

    def _load_part(self) -> None:
        """Load what there is of a picture that breaks off; PhotoError (truncated) where it is too little."""
        self._image = self._opened()
        with codec_call(self._format, self._data):
            share = load_part(self._image)
        if share < LEAST_SHARE:
            message = f"{self._format}: only {share:.0%} of the picture's rows are there"
            raise PhotoError(ErrorCode.TRUNCATED, message)
        self.decoded_share = share if share < 1 else None  # what follows the picture is nothing to miss
        if self._format == "tiff":  # its codec turns what is whole
            self.turn = self.facts.exif.orientation


class _JxlSource(_Source):
    """A JPEG XL; one that a JPEG was made into is that JPEG."""

    is_turned_by_codec = True

    def __init__(self, data: bytes) -> None:
        size_px = jxl_size_px(data)
        if size_px is None:
            raise PhotoError(ErrorCode.TRUNCATED, "jxl: ends before its picture's header does")
        self._data, self.icc = data, None
        self.memory_bytes = memory_bytes("jxl", size_px)
        self._set_facts("jxl", size_px, carried("jxl", data, {}))

    def load(self, target: DecodeTarget) -> tuple[Image.Image, float]:
        picture = read_jxl(self._data)
        if picture.jpeg is not None:
            jpeg = _JpegSource(picture.jpeg, "jxl")  # with the metadata that it had
            self.facts, self.icc, self.turn = jpeg.facts, jpeg.icc, jpeg.turn
            image, scale = jpeg.load(target)
            self.decoded_share = jpeg.decoded_share
            return image, scale
        assert picture.image is not None
        self.icc = picture.icc
        self.facts = facts_of("jxl", picture.image.size, self.facts.exif, self.turn, self.facts.recorded)
        return picture.image, 1.0


class _Jpeg2000Source(_Source):
    def __init__(self, data: bytes, limits: DecodeLimits) -> None:
        header = read_jpeg2000_header(data)
        if header is None:
            raise PhotoError(ErrorCode.TRUNCATED, "jp2: ends before its picture's header does")
        self._data, self._header, self._limits = data, header, limits
        self.memory_bytes, self.icc = 0, jpeg2000_profile(data)
        self._set_facts("jp2", (header.width_px, header.height_px), carried("jp2", data, {}))

    def load(self, target: DecodeTarget) -> tuple[Image.Image, float]:
        header = self._header
        least_px = target.least_side_px(header.width_px, header.height_px) * target.shrink_margin
        halvings = halvings_for(header, least_px) if math.isfinite(least_px) else 0
        refuse_too_large(self.facts, jpeg2000_memory_bytes(header, halvings), self._limits)
        return decode_jpeg2000(self._data, header, halvings), 0.5**halvings


class _RawSource(_Source):
    """A camera raw file by its largest preview, which has the camera's colours, or developed at half its size."""

    def __init__(self, format_name: str, data: bytes, limits: DecodeLimits) -> None:
        self._limits = limits
        self._raw = RawFile(format_name, data)
        self._shown_px = self._raw.size_px
        self.memory_bytes, self.icc = 0, None  # what is loaded is judged when it is known
        exif = self._raw.exif
        self.turn = exif.orientation
        records = recorded_in(exif, self._raw.blocks)
        self.facts = facts_of(format_name, self._raw.size_px, exif, self.turn, records)

    @property
    def stored_px(self) -> tuple[int, int]:
        return self._shown_px

    def load(self, target: DecodeTarget) -> tuple[Image.Image, float]:
        def load_jpeg(data: bytes) -> tuple[_JpegSource, Image.Image, float]:
            preview = _JpegSource(data)
            refuse_too_large(preview.facts, preview.memory_bytes, self._limits)
            return preview, *preview.load(target)

        def is_enough(width_px: int, height_px: int) -> bool:
            return min(width_px, height_px) >= target.least_side_px(width_px, height_px)

        found = self._raw.look(load_jpeg, is_enough, self._limits.max_memory_bytes)
        if isinstance(found, np.ndarray):
            image = Image.fromarray(found)
            self._shown_px = image.size
            return image, 1.0
        preview, image, scale = found
        self.icc, self._shown_px = preview.icc, preview.stored_px
        self.turn, self.decoded_share = self._raw.turn_of(self._shown_px), preview.decoded_share
        return image, scale


class _VideoSource(_Source):
    """A video by the best of its first key frames."""

    def __init__(self, format_name: str, data: bytes) -> None:
        self._video = video = VideoFile(format_name, data)
        self.memory_bytes, self.icc, self.turn = video.memory_bytes, None, 1
        self._shown_px = video.size_px
        self.facts = facts_of(format_name, video.size_px, ExifFacts(), self.turn, video.recorded)

    @property
    def stored_px(self) -> tuple[int, int]:
        return self._shown_px

    def load(self, target: DecodeTarget) -> tuple[Image.Image, float]:
        size_px, facts = self._video.size_px, self.facts
        least_px = _OF_VIDEOS * target.least_side_px(*size_px) * target.shrink_margin
        picture = self._video.look(target.video_frames, min(least_px, float(min(size_px))))
        self.turn, self._shown_px = picture.turn, picture.size_px
        self.facts = facts_of(facts.format, size_px, facts.exif, self.turn, facts.recorded)
        return Image.fromarray(picture.pixels_HWC), 1.0


def _open(format_name: str, data: bytes, limits: DecodeLimits) -> _Source:
    if format_name in VIDEO_FORMATS:
        return _VideoSource(format_name, data)
    if format_name in RAW_FORMATS:
        return _RawSource(format_name, data, limits)
    if format_name != "jpeg":  # opening alone may make a picture of the size that is claimed, or a tuple for each strip
        check_size(format_name, data, limits)
    match format_name:
        case "jpeg":
            return _JpegSource(data)
        case "jxl":
            return _JxlSource(data)
        case "jp2":
            return _Jpeg2000Source(data, limits)
    return _PillowSource(format_name, data)
