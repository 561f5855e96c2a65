"""How fast photos become pictures of the model's size: our decode beside the bare libraries, format by format.

`python -m jobs.benchmark decode` is the command. The libraries that the pipeline itself does without come with
`pip install "graticule[bench]"`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import struct
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401 - teaches Pillow to read and write it
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from jobs.benchmark.figure import Figure
from jobs.demo_photos import write_demo_archive
from pipeline import storage
from pipeline.decode.photo import DecodeTarget, decode_photo
from pipeline.schema import PhotoError

Pixels = NDArray[np.uint8]
Library = Literal["simplejpeg", "PIL", "opencv", "pyvips", "imagecodecs"]
FormatName = Literal[
    "jpeg-12mp",
    "jpeg-12mp-progressive",
    "jpeg-640",
    "jpeg-640-progressive",
    "webp",
    "heic",
    "avif",
    "png",
    "tiff",
    "jxl",
    "jp2",
    "raw",
    "video",
]

_LIBRARIES: dict[Library, tuple[str, str]] = {
    "simplejpeg": ("simplejpeg", "simplejpeg"),
    "PIL": ("PIL", "pillow"),
    "opencv": ("cv2", "opencv-python-headless"),
    "pyvips": ("pyvips", "pyvips pyvips-binary"),
    "imagecodecs": ("imagecodecs", "imagecodecs"),
}
"""Each with its module and what pip installs for it."""
_LARGE_PX, _HD_PX, _SMALL_PX = (4000, 3000), (1920, 1080), (640, 480)
_VIDEO_FRAMES = 5
_FORMATS: dict[FormatName, tuple[str, tuple[int, int], dict[str, Any]]] = {
    "jpeg-12mp": ("jpeg", _LARGE_PX, {"quality": 90}),
    "jpeg-12mp-progressive": ("jpeg", _LARGE_PX, {"quality": 90, "progressive": True}),
    "jpeg-640": ("jpeg", _SMALL_PX, {"quality": 90}),
    "jpeg-640-progressive": ("jpeg", _SMALL_PX, {"quality": 90, "progressive": True}),
    "webp": ("webp", _LARGE_PX, {"quality": 85, "method": 2}),
    "heic": ("heif", _LARGE_PX, {"quality": 60, "enc_params": {"preset": "veryfast"}}),
    "avif": ("avif", _LARGE_PX, {"quality": 70, "speed": 9}),
    "png": ("png", _LARGE_PX, {"compress_level": 3}),
    "tiff": ("tiff", _LARGE_PX, {"compression": "tiff_lzw"}),
    "jxl": ("jxl", _LARGE_PX, {"quality": 90, "effort": 3}),
    "jp2": ("jpeg2000", _LARGE_PX, {"irreversible": True, "quality_layers": [12]}),
    "raw": ("jpeg", _LARGE_PX, {"quality": 90}),
    "video": ("jpeg", _HD_PX, {"quality": 90}),
}
_WRAPPED: tuple[FormatName, ...] = ("raw", "video")
"""Formats whose picture the other ways are given as a JPEG, as they can't read them: what they cost beside one."""
_LEAST_OF_BARE = 0.9
_SAME_PICTURE = 12.0
"""Mean difference of two ways' pixels, of 255, above which they do not do the same."""


@dataclass(frozen=True)
class DecodeBenchmark:
    """Photos a second and core of our decode, beside each library's own shrinking decode with an antialiased resize,
    and beside the bare call that ours is made of, which neither resizes nor checks. In place of raw files and videos
    the others are given the same picture as a JPEG."""

    photos: str | None = None
    """Folder of photos, the largest of which are encoded anew in each format; the demo's if not given."""
    formats: tuple[FormatName, ...] = tuple(_FORMATS)
    without: tuple[Library, ...] = ()
    """Leave these libraries out."""
    sample: int = 3
    """Different photos for each format."""
    image_size_px: int = 224
    """The model's."""
    repeats: int = 7
    """All ways are timed this often in turn and the median counts. Processor time is: the machine may be busy."""

    def measure(self) -> list[Figure]:
        """Print a line for each format; return the figures."""
        if min(self.sample, self.image_size_px, self.repeats) < 1 or not self.formats:
            raise ValueError("give --sample, --image-size-px and --repeats of 1 or more, and at least one of --formats")
        for library, (module, package) in _LIBRARIES.items():
            if library not in self.without:
                try:
                    importlib.import_module(module)
                except (ImportError, OSError) as error:  # pyvips without its library is an OSError
                    raise ValueError(
                        f"this benchmark compares with {library}: pip install {package}, or say --without {library}"
                    ) from error
        pillow_heif.register_heif_opener()
        libraries = [library for library in _LIBRARIES if library not in self.without]
        if self.without:
            print(f"without {', '.join(self.without)}")
        print(f"photos/s and core, to {self.image_size_px} px")
        columns = "".join(f"{name:>13}" for name in ("ours", "bare call", *libraries))
        print(f"{'':<22}{columns}{'ours ÷ bare':>13}{'÷ fastest':>11}  fastest")
        pictures = _pictures(self.photos, self.sample)
        return [figure for format_name in self.formats for figure in self._compare(format_name, pictures, libraries)]

    def _compare(self, format_name: FormatName, pictures: list[Image.Image], libraries: list[Library]) -> list[Figure]:
        target = DecodeTarget(self.image_size_px, self.image_size_px, video_frames=_VIDEO_FRAMES)
        beside = [_encoded(picture, format_name) for picture in pictures]
        photos = [_wrapped(picture, jpeg, format_name) for picture, jpeg in zip(pictures, beside, strict=True)]
        ways: dict[str, Callable[[bytes], Pixels]] = {
            "ours": lambda data: decode_photo(data, target).pixels_HWC,
            "bare": _bare_call(format_name, self.image_size_px),
        }
        expected = ways["ours"](photos[0]).astype(int)
        for library in libraries:
            way = _way(library, format_name, self.image_size_px)
            if way is None:
                continue
            difference = float(np.abs(way(beside[0]).astype(int) - expected).mean())
            if difference > _SAME_PICTURE:
                raise ValueError(f"{library} makes another picture of {format_name} ({difference:.1f} of 255 away)")
            ways[library] = way
        cpu_s: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(self.repeats):
            for name, way in ways.items():
                start_s = time.process_time()
                for data in photos if name == "ours" else beside:
                    way(data)
                cpu_s[name].append(time.process_time() - start_s)
        per_s = {name: len(photos) / float(np.median(taken_s)) for name, taken_s in cpu_s.items()}
        fastest = max((name for name in per_s if name not in ("ours", "bare")), key=lambda name: per_s[name])
        speeds = "".join(
            f"{per_s[name]:>13.1f}" if name in per_s else f"{'–':>13}" for name in ("ours", "bare", *libraries)
        )
        print(
            f"{format_name:<22}{speeds}{per_s['ours'] / per_s['bare']:>13.2f}"
            f"{per_s['ours'] / per_s[fastest]:>11.2f}  {fastest}",
            flush=True,
        )
        return [
            Figure(f"decode, {format_name}", f"ours ÷ {name}", per_s["ours"], other, per_s["ours"] / other, least=least)
            for name, other, least in (
                ("the bare call", per_s["bare"], None if format_name in _WRAPPED else _LEAST_OF_BARE),
                ("the fastest other way", per_s[fastest], None),
            )
        ]


def _pictures(folder: str | None, count: int) -> list[Image.Image]:
    """Return the largest photos as 4000 × 3000 pictures: real ones, so that codecs meet real detail."""
    with tempfile.TemporaryDirectory(prefix="graticule-bench-") as made:
        if folder is None:
            write_demo_archive(Path(made))
        sized: list[tuple[int, bytes]] = []
        for entry in storage.list_files(storage.absolute(folder or made)):
            data = storage.read_bytes(entry.uri)
            with contextlib.suppress(PhotoError):
                photo = decode_photo(data, DecodeTarget(8, 8))
                sized.append((photo.width_px * photo.height_px, data))
    if len(sized) < count:
        raise ValueError(f"{folder or 'the demo'} holds {len(sized)} readable photos, --sample wants {count}")
    largest = sorted(sized, key=lambda found: found[0], reverse=True)[:count]
    pictures = []
    for _, data in largest:
        with Image.open(io.BytesIO(data)) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
            pictures.append(ImageOps.fit(upright, _LARGE_PX, Image.Resampling.LANCZOS))
    return pictures


def _encoded(picture: Image.Image, format_name: FormatName) -> bytes:
    codec, size_px, options = _FORMATS[format_name]
    file = io.BytesIO()
    picture.resize(size_px, Image.Resampling.LANCZOS, reducing_gap=2.0).save(file, codec, **options)
    return file.getvalue()


def _wrapped(picture: Image.Image, encoded: bytes, format_name: FormatName) -> bytes:
    """Return a camera raw file around a JPEG, or a video of the picture; any other file as it is."""
    match format_name:
        case "raw":
            return _raw_around(encoded)
        case "video":
            return _video_of(picture.resize(_FORMATS[format_name][1], Image.Resampling.LANCZOS, reducing_gap=2.0))
    return encoded


def _raw_around(jpeg: bytes) -> bytes:
    """Return a file of the structure of a CR2: a TIFF whose first picture is the camera's JPEG."""
    width_px, height_px = _LARGE_PX
    tags = [(256, width_px), (257, height_px), (259, 6), (273, 4096), (274, 1), (279, len(jpeg))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0\x10\0\0\0CR\2\0\0\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    return head.ljust(4096, b"\0") + jpeg + bytes(2 * len(jpeg))  # the sensor's data, which nobody reads


def _video_of(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *picture.size, "yuv420p", 20_000_000
        stream.codec_context.gop_size = 12
        for _ in range(12 * _VIDEO_FRAMES):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")))
        output.mux(stream.encode(None))
    return file.getvalue()


def _eighths(format_name: FormatName, image_size_px: int) -> int:
    """Return how many eighths of a JPEG's size are enough: written anew here, so that our choice is checked by it."""
    short_px = min(_FORMATS[format_name][1])
    return next((eighths for eighths in (1, 2, 4) if short_px * eighths >= 8 * image_size_px), 8)


def _bare_call(format_name: FormatName, image_size_px: int) -> Callable[[bytes], Any]:
    """Return the one call of a codec that ours is made of, at the same scale."""
    if _FORMATS[format_name][0] != "jpeg":
        return lambda data: Image.open(io.BytesIO(data)).load()
    width_px, height_px = (side * _eighths(format_name, image_size_px) // 8 for side in _FORMATS[format_name][1])
    return lambda data: simplejpeg.decode_jpeg(data, "RGB", min_height=height_px, min_width=width_px)


def _way(library: Library, format_name: FormatName, image_size_px: int) -> Callable[[bytes], Pixels] | None:
    """Return how a library comes from a file to the model's picture, best as it can; None where it can't read it."""
    codec, stored_px, _ = _FORMATS[format_name]
    eighths = _eighths(format_name, image_size_px)
    width_px, height_px = (side * eighths // 8 for side in stored_px)
    size_px = (image_size_px, image_size_px)
    module = importlib.import_module(_LIBRARIES[library][0])

    def fitted(picture: Image.Image) -> Pixels:
        inset = (picture.width - picture.height) / 2
        box = (inset, 0, picture.width - inset, picture.height)
        return np.asarray(picture.convert("RGB").resize(size_px, Image.Resampling.BILINEAR, box))

    def by_pil(data: bytes) -> Pixels:
        with Image.open(io.BytesIO(data)) as opened:
            opened.draft("RGB", (width_px, height_px))
            return fitted(opened)

    def by_simplejpeg(data: bytes) -> Pixels:
        pixels_HWC = simplejpeg.decode_jpeg(data, "RGB", min_height=height_px, min_width=width_px)
        return fitted(Image.fromarray(pixels_HWC))

    def by_opencv(data: bytes) -> Pixels:
        flags = {1: "IMREAD_REDUCED_COLOR_8", 2: "IMREAD_REDUCED_COLOR_4", 4: "IMREAD_REDUCED_COLOR_2"}
        flag = getattr(module, flags.get(eighths, "IMREAD_COLOR") if codec == "jpeg" else "IMREAD_COLOR")
        pixels_HWC = module.imdecode(np.frombuffer(data, np.uint8), flag)
        inset = (pixels_HWC.shape[1] - pixels_HWC.shape[0]) // 2
        square = pixels_HWC[:, inset : inset + pixels_HWC.shape[0]]
        resized = module.resize(square, size_px, interpolation=module.INTER_AREA)
        return np.ascontiguousarray(resized[:, :, ::-1])

    def by_pyvips(data: bytes) -> Pixels:
        picture = module.Image.thumbnail_buffer(data, image_size_px, height=image_size_px, crop="centre")
        return np.asarray(picture.numpy())[:, :, :3]

    def by_imagecodecs(data: bytes) -> Pixels:
        name = {"jpeg": "jpeg8", "jxl": "jpegxl", "jpeg2000": "jpeg2k"}.get(codec, codec)
        return fitted(Image.fromarray(getattr(module, f"{name}_decode")(data)))

    match library:
        case "simplejpeg":
            return by_simplejpeg if codec == "jpeg" else None
        case "PIL":
            return by_pil
        case "opencv":
            module.setNumThreads(1)
            return None if codec in ("heif", "jxl") else by_opencv
        case "pyvips":
            logging.getLogger("pyvips").setLevel(logging.WARNING)  # it tells of every step
            return None if codec in ("heif", "jxl", "jpeg2000") else by_pyvips
        case "imagecodecs":
            return None if codec == "heif" else by_imagecodecs
