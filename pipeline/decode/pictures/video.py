"""Videos: which ones they are, a frame that shows the place, and where and when they were taken.

One frame is looked at, out of the first key frames: the others cost no more than a few packets, as what lies between
key frames is never decoded. Of those that are neither dark nor flat the sharpest is taken. FFmpeg is loaded when it is
first needed, and only here; it runs in one thread, and below the limits of the decoder's process.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.decode.carried import Carried, carried
from pipeline.decode.codec_errors import codec_call
from pipeline.decode.exif import ExifFacts
from pipeline.decode.pictures.quicktime import QuickTimeFacts, read_iso_6709, read_quicktime
from pipeline.decode.recorded import Recorded, recorded_in
from pipeline.decode.taken import read_moment
from pipeline.schema import ErrorCode, PhotoError, RecordedBy, UtcBy

_Pixels = np.ndarray[Any, np.dtype[np.uint8]]

_ISO_FORMATS = {"mp4", "mov", "3gp"}
VIDEO_FORMATS = frozenset(
    {*_ISO_FORMATS, "matroska", "webm", "avi", "asf", "flv", "mpeg", "mpegts", "ogv", "mxf", "realmedia"}
)
"""The names of videos' formats."""
_MAGICS = (
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (0, b"FLV\1", "flv"),
    (0, b"\0\0\1\xba", "mpeg"),
    (0, b"\0\0\1\xb3", "mpeg"),
    (0, b"\x06\x0e\x2b\x34\2\5\1\1", "mxf"),
    (0, b".RMF", "realmedia"),
    (8, b"AVI LIST", "avi"),
)
_QUICKTIME_BOXES = {b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
_MOVIE_BRANDS = (b"iso", b"mp4", b"avc", b"M4V", b"MSNV", b"dash", b"f4v", b"F4V", b"mmp4", b"XAVC", b"hvc", b"NDSC")
_SOUND_BRANDS = {b"M4A ", b"M4B ", b"M4P "}
_PACKET_BYTES = (188, 192)
_DARK, _FLAT = 24.0, 8.0
"""Of 255: the mean below which a frame is dark, and the deviation below which there is nothing in it."""
_JUDGED_PX = 160
_MOST_PACKETS = 5000
"""Of the stream of pictures: some three minutes, in which any camera has a key frame."""
_BUFFER_BYTES = 1 << 18
_BYTES_PER_PIXEL = 24
"""What FFmpeg keeps: frames that others refer to, up to sixteen of one and a half bytes a pixel."""
_ORIENTATION_OF_TURN = {0: 1, 90: 8, 180: 3, 270: 6}
_MAX_ASPECT = 16
_ATTACHED_PICTURE = 0x400


def video_format(data: bytes) -> str | None:
    """Return the format of a video by its first bytes, None for what is none."""
    if data[4:8] == b"ftyp":
        brands = [data[at : at + 4] for at in (8, *range(16, min(int.from_bytes(data[:4], "big"), 256), 4))]
        if brands[0] == b"qt  ":
            return "mov"
        if brands[0] in _SOUND_BRANDS:
            return None
        if brands[0].startswith((b"3gp", b"3g2")):
            return "3gp"
        return "mp4" if any(brand.startswith((*_MOVIE_BRANDS, b"qt")) for brand in brands) else None
    if data[4:8] in _QUICKTIME_BOXES and int.from_bytes(data[:4], "big") >= 1:
        return "mov"
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return "webm" if b"webm" in data[:64] else "matroska"
    if data.startswith(b"OggS"):
        return "ogv" if b"theora" in data[:512] else None
    for packet_bytes in _PACKET_BYTES:
        start = packet_bytes - 188
        if data[start : start + 4 * packet_bytes : packet_bytes] == b"GGGG":
            return "mpegts"
    return next((name for at, magic, name in _MAGICS if data[at : at + len(magic)] == magic), None)


@dataclass(frozen=True, eq=False)
class VideoPicture:
    """A video's frame as RGB pixels, of that width and height, and the orientation (1 to 8) that turns it upright."""

    pixels_HWC: _Pixels
    size_px: tuple[int, int]
    turn: int


class VideoFile:
    """A video of which one frame is looked at.

    Attributes:
        size_px: width and height as displayed, but for the turn.
        recorded: where and when it was taken, as its container says.

    Raises:
        PhotoError: truncated, corrupt, too_large, or unsupported_format where it has no pictures, or of no known kind.
    """

    def __init__(self, format_name: str, data: bytes) -> None:
        self._data, self._format = data, format_name
        with codec_call("video", data), _opened(data) as container:
            stream = _picture_stream(container)
            self.size_px = _shown_px(stream)
            names = dict(container.metadata) | dict(stream.metadata)
        if min(self.size_px) < 1:
            raise PhotoError(ErrorCode.CORRUPT, f"{format_name}: has no width or no height")
        self.recorded = _recorded(data, format_name, names)

    @property
    def memory_bytes(self) -> int:
        """What decoding its frames may take."""
        return self.size_px[0] * self.size_px[1] * _BYTES_PER_PIXEL

    def look(self, frames: int, min_side_px: float) -> VideoPicture:
        """Return the best of the first key frames, shrunk to at least `min_side_px` both ways.

        Raises `PhotoError`.
        """
        best: tuple[float, Any] | None = None
        with codec_call("video", self._data), _opened(self._data) as container:
            stream = _picture_stream(container)
            for frame in _key_frames(container, stream, frames):
                worth = _worth(frame)
                if best is None or worth > best[0]:
                    best = (worth, frame)
            if best is not None:
                picture = _picture(best[1], self.size_px, min_side_px)
        if best is None:
            raise PhotoError(ErrorCode.CORRUPT, f"{self._format}: no frame of it can be decoded")
        return picture


def _opened(data: bytes) -> Any:
    import av

    av.logging.set_level(av.logging.PANIC)
    return av.open(io.BytesIO(data), buffer_size=_BUFFER_BYTES, metadata_errors="replace")


def _picture_stream(container: Any) -> Any:
    """Return the first stream of pictures that is no cover, ready to decode key frames."""
    streams = [stream for stream in container.streams.video if stream.codec_context is not None]
    moving = [stream for stream in streams if not int(stream.disposition) & _ATTACHED_PICTURE]
    if not moving:
        raise PhotoError(ErrorCode.UNSUPPORTED_FORMAT, "video: there are no pictures in it, or of no known kind")
    stream = moving[0]
    stream.codec_context.thread_count = 1
    stream.codec_context.skip_frame = "NONKEY"
    return stream


def _shown_px(stream: Any) -> tuple[int, int]:
    """Return width and height of frames whose pixels are made square."""
    width_px, height_px = stream.codec_context.width, stream.codec_context.height
    aspect = stream.sample_aspect_ratio
    if aspect and 1 / _MAX_ASPECT <= aspect <= _MAX_ASPECT:
        width_px = round(width_px * aspect)
    return width_px, height_px


def _key_frames(container: Any, stream: Any, frames: int) -> Iterator[Any]:
    import av

    seen = 0
    for number, packet in enumerate(container.demux(stream)):
        try:
            decoded = packet.decode()
        except av.error.EOFError:
            return
        except av.error.InvalidDataError:  # one damaged packet is not all of them
            if seen or number >= _MOST_PACKETS:
                return
            continue
        for frame in decoded:
            seen += 1
            yield frame
            if seen == frames:
                return
        if number >= _MOST_PACKETS:
            return


def _worth(frame: Any) -> float:
    """Return how much a frame shows: its sharpness, as the strength of edges; below 0 where it is dark or flat."""
    grey_HW = _reformatted(frame, _shrunk_px((frame.width, frame.height), _JUDGED_PX), "gray").astype(np.float32)
    mean, deviation = float(grey_HW.mean()), float(grey_HW.std())
    if mean < _DARK or deviation < _FLAT:
        return mean / 255 - 2 + deviation / 255
    edges_HW = 4 * grey_HW[1:-1, 1:-1] - grey_HW[:-2, 1:-1] - grey_HW[2:, 1:-1] - grey_HW[1:-1, :-2] - grey_HW[1:-1, 2:]
    return float(edges_HW.std()) if edges_HW.size else 0.0


def _shrunk_px(size_px: tuple[int, int], min_side_px: float) -> tuple[int, int]:
    factor = min(1.0, min_side_px / min(size_px))
    return max(1, round(size_px[0] * factor)), max(1, round(size_px[1] * factor))


def _reformatted(frame: Any, size_px: tuple[int, int], layout: str) -> _Pixels:
    pixels: _Pixels = frame.reformat(*size_px, format=layout, interpolation="AREA").to_ndarray()
    return pixels


def _picture(frame: Any, shown_px: tuple[int, int], min_side_px: float) -> VideoPicture:
    """Return a frame whose pixels are square, shrunk."""
    small_px = _shrunk_px(shown_px, min_side_px)
    turn = _ORIENTATION_OF_TURN.get(round(frame.rotation / 90) * 90 % 360, 1)
    return VideoPicture(_reformatted(frame, small_px, "rgb24"), small_px, turn)


def _recorded(data: bytes, format_name: str, names: dict[str, str]) -> Recorded:
    """Return what the container says: its boxes, or the names that other containers give to values; and its XMP."""
    is_iso = format_name in _ISO_FORMATS
    own = read_quicktime(data) if is_iso else _named(names)
    blocks = Carried(xmp=carried("jp2", data, {}).xmp) if is_iso else Carried()
    found = recorded_in(ExifFacts(), blocks)
    if own.lat_deg is not None:
        found = replace(found, lat_deg=own.lat_deg, lon_deg=own.lon_deg, by=RecordedBy.VIDEO)
    if own.taken_at is not None:
        found = replace(found, taken_at=own.taken_at)
    if own.taken_at_utc is not None:
        found = replace(found, taken_at_utc=own.taken_at_utc, utc_by=UtcBy.QUICKTIME)
    return found


def _named(names: dict[str, str]) -> QuickTimeFacts:
    lower = {name.lower(): value for name, value in names.items()}
    lat_deg, lon_deg = read_iso_6709(lower.get("location", "")) or (None, None)
    moment = read_moment(lower.get("creation_time", "") or lower.get("date", ""))
    return QuickTimeFacts(lat_deg, lon_deg, None, moment.utc if moment else None)
