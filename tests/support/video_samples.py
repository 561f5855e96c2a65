"""Builders of videos for tests, written by FFmpeg, and the boxes that cameras put into them. All return bytes."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import av
from PIL import Image

from tests.support.raw_samples import one_raw_of_each

_MATRICES = {  # of `tkhd`: how a player turns what is stored, by the EXIF orientation that does the same
    1: (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000),
    3: (-0x10000, 0, 0, 0, -0x10000, 0, 0, 0, 0x40000000),
    6: (0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000),
    8: (0, -0x10000, 0, 0x10000, 0, 0, 0, 0, 0x40000000),
}


def video(
    images: Sequence[Image.Image], container: str = "mp4", codec: str = "mpeg4", turn: int = 1, **options: Any
) -> bytes:
    """Return a video whose every frame is a key frame."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, **options) as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height = images[0].size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = 1
        stream.bit_rate = 8_000_000
        for image in images:
            for packet in stream.encode(av.VideoFrame.from_image(image)):
                output.mux(packet)
        for packet in stream.encode(None):
            output.mux(packet)
    data = buffer.getvalue()
    return data if turn == 1 else _turned(data, turn)


def _turned(data: bytes, turn: int) -> bytes:
    plain, turned = (struct.pack(">9i", *_MATRICES[which]) for which in (1, turn))
    at = data.index(plain, data.index(b"tkhd"))
    return data[:at] + turned + data[at + len(turned) :]


def box(kind: bytes, *content: bytes) -> bytes:
    """Return a box of the ISO base media format."""
    return struct.pack(">I", 8 + sum(map(len, content))) + kind + b"".join(content)


def with_movie_boxes(data: bytes, *boxes: bytes, created: datetime | None = None) -> bytes:
    """Return the MP4, whose `moov` is last, with more boxes in it, and with another creation time."""
    at = data.rindex(b"moov") - 4
    movie = data[at + 8 :]
    if created is not None:
        start = movie.index(b"mvhd") + 8
        seconds = int((created - datetime(1904, 1, 1, tzinfo=UTC)).total_seconds())
        movie = movie[:start] + struct.pack(">I", seconds) + movie[start + 4 :]
    return data[:at] + box(b"moov", movie, *boxes)


def apple_keys(**values: str) -> bytes:
    """Return the `meta` box of iPhones: `location_ISO6709="+48.1-011.5/"` stands for the key with dots."""
    names = [f"com.apple.quicktime.{name.replace('_', '.')}".encode() for name in values]
    keys = box(b"keys", struct.pack(">II", 0, len(names)), *(box(b"mdta", name) for name in names))
    items = [
        box(struct.pack(">I", number), box(b"data", struct.pack(">II", 1, 0), text.encode()))
        for number, text in enumerate(values.values(), start=1)
    ]
    handler = box(b"hdlr", bytes(8), b"mdta", bytes(13))
    return box(b"meta", handler, keys, box(b"ilst", *items))


def xyz(text: str) -> bytes:
    """Return the `udta` box of Android's and other cameras' videos."""
    return box(b"udta", box(b"\xa9xyz", struct.pack(">HH", len(text), 0x15C7), text.encode()))


def loci(lat_deg: float, lon_deg: float, name: bytes = b"\0") -> bytes:
    """Return the `udta` box of 3GPP."""
    place = struct.pack(">Biii", 0, round(lon_deg * 65536), round(lat_deg * 65536), 0)
    return box(b"udta", box(b"loci", struct.pack(">IH", 0, 0x15C7), name, place, b"earth\0\0"))


def raws_and_videos(image: Image.Image) -> list[tuple[str, bytes]]:
    """Return a camera raw file and a video of each structure, with its name."""
    mp4 = with_movie_boxes(video([image] * 2), apple_keys(location_ISO6709="+48.1+011.5/"))
    return [*one_raw_of_each(image), ("mp4", mp4), ("matroska", video([image] * 2, "matroska"))]
