"""What a camera wrote about a photo: position, time and orientation, read from its EXIF block.

An own reader of the few tags we want, instead of Pillow's: it never warns (Pillow's warnings go through process-wide
filters, which are not thread-safe), never touches the maker note, looks at most at a few kilobytes whatever the file
claims, and can not fail: what is broken is None. Source: Exif 2.32, CIPA DC-008, and TIFF 6.0.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from datetime import datetime

_ORIENTATION, _DATE_TIME, _EXIF_IFD, _GPS_IFD = 0x0112, 0x0132, 0x8769, 0x8825
_SUB_IFDS = 0x014A
_DATE_TIME_ORIGINAL, _DATE_TIME_DIGITIZED = 0x9003, 0x9004
_GPS_LAT_REF, _GPS_LAT, _GPS_LON_REF, _GPS_LON = 1, 2, 3, 4
_TYPES = {1: "B", 2: "s", 3: "H", 4: "L", 5: "LL", 6: "b", 7: "B", 8: "h", 9: "l", 10: "ll"}
_TYPES |= {12: "d", 13: "L", 16: "Q", 18: "Q"}
_ASCII, _UNDEFINED, _RATIONALS, _DOUBLE = 2, 7, (5, 10), 12
_RAW_MAGICS = (b"IIRO", b"IIRS", b"MMOR", b"IIU\0")
"""Olympus' and Panasonic's camera raw files are TIFF with another word in the place of 42."""
_MAX_ENTRIES = 1000
_MAX_TEXT_BYTES = 64
_DATE = re.compile(r"(\d{4})[:/\-.](\d{1,2})[:/\-.](\d{1,2})[ T](\d{1,2}):(\d{1,2}):(\d{1,2})")


@dataclass(frozen=True)
class ExifFacts:
    """What EXIF says of a photo; a missing or unbelievable value is None.

    `lat_deg`, `lon_deg`: WGS84 degrees, both or neither; exactly (0, 0) is a known camera failure and counts as none.
    `taken_at`: the camera's local time, naive, to the second; its time zone, where written, is not kept.
    `orientation`: 1 to 8, how the stored picture is turned; 1 also when absent, out of range, or (HEIC) already undone.
    """

    lat_deg: float | None = None
    lon_deg: float | None = None
    taken_at: datetime | None = None
    orientation: int = 1


def read_exif(exif: bytes | None) -> ExifFacts:
    """Return the facts in an EXIF block (its `Exif\\0\\0` prefix may be absent) or a whole TIFF file; never raises."""
    tiff = _TiffTags(exif or b"")
    main = tiff.directory(tiff.first_directory)
    camera = tiff.directory(tiff.integer(main.get(_EXIF_IFD)))
    gps = tiff.directory(tiff.integer(main.get(_GPS_IFD)))
    lat_deg = _angle_deg(tiff, gps.get(_GPS_LAT), gps.get(_GPS_LAT_REF), "NS", 90.0)
    lon_deg = _angle_deg(tiff, gps.get(_GPS_LON), gps.get(_GPS_LON_REF), "EW", 180.0)
    if lat_deg is None or lon_deg is None or (lat_deg == 0 and lon_deg == 0):
        lat_deg = lon_deg = None
    orientation = tiff.integer(main.get(_ORIENTATION))
    times = (camera.get(_DATE_TIME_ORIGINAL), camera.get(_DATE_TIME_DIGITIZED), main.get(_DATE_TIME))
    return ExifFacts(
        lat_deg=lat_deg,
        lon_deg=lon_deg,
        taken_at=next((t for t in (_time(tiff.text(entry)) for entry in times) if t is not None), None),
        orientation=orientation if orientation is not None and 1 <= orientation <= 8 else 1,
    )


def tiff_extent_bytes(tiff_file: bytes) -> int:
    """Return how many bytes a TIFF file needs for its first directory's strips or tiles; 0 when it can't be told."""
    tiff = _TiffTags(tiff_file)
    if tiff.first_directory >= len(tiff_file):
        return tiff.first_directory + 1
    main = tiff.directory(tiff.first_directory)
    extent_bytes = 0
    for offsets_tag, counts_tag in ((273, 279), (324, 325)):
        offsets, counts = tiff.numbers(main.get(offsets_tag), 1 << 20), tiff.numbers(main.get(counts_tag), 1 << 20)
        ends = (o + c for o, c in zip(offsets, counts, strict=False))
        extent_bytes = max([extent_bytes, *(int(end) for end in ends if math.isfinite(end))])
    return extent_bytes


def tiff_number(tiff_file: bytes, tag: int) -> int | None:
    """Return one integer of a TIFF file's first directory, None when it is absent."""
    tiff = _TiffTags(tiff_file)
    return tiff.integer(tiff.directory(tiff.first_directory).get(tag))


def tiff_count(tiff_file: bytes, tag: int) -> int:
    """Return how many values an entry of a TIFF file's first directory says it has, 0 when it is absent."""
    tiff = _TiffTags(tiff_file)
    entry = tiff.directory(tiff.first_directory).get(tag)
    return entry.count if entry is not None else 0


class TiffDirectory:
    """One directory of a TIFF-shaped file, to ask for its tags; what is absent or broken reads as none."""

    def __init__(self, tiff: _TiffTags, entries: dict[int, _Entry]) -> None:
        self._tiff, self._entries = tiff, entries

    def number(self, tag: int) -> int | None:
        """Return a tag's first whole number."""
        return self._tiff.integer(self._entries.get(tag))

    def numbers(self, tag: int, limit: int) -> list[float]:
        """Return up to `limit` numbers of a tag."""
        return self._tiff.numbers(self._entries.get(tag), limit)

    def text(self, tag: int) -> str:
        """Return a tag's text, at most its first 64 characters."""
        return self._tiff.text(self._entries.get(tag))

    def count(self, tag: int) -> int:
        """Return how many values a tag says it has, 0 when it is absent."""
        entry = self._entries.get(tag)
        return entry.count if entry is not None else 0

    def value_bytes(self, tag: int) -> tuple[int, int] | None:
        """Return where the bytes of a tag of single bytes lie in the file, and how many it says there are."""
        entry = self._entries.get(tag)
        return None if entry is None or entry.type not in (1, _UNDEFINED) else (entry.offset, entry.count)


def tiff_directories(tiff_file: bytes, most: int, is_chain_followed: bool = True) -> list[TiffDirectory]:
    """Return a TIFF-shaped file's directories, at most so many: each of the chain, and after it its sub-directories.

    `is_chain_followed`: without, only the first of the chain, with its own.
    """
    tiff = _TiffTags(tiff_file)
    found: list[TiffDirectory] = []
    seen: set[int] = set()
    waiting = [tiff.first_directory]
    while waiting and len(found) < most:
        place = waiting.pop(0)
        entries = tiff.directory(place) if place not in seen else {}
        seen.add(place)
        if entries:
            found.append(TiffDirectory(tiff, entries))
            waiting = [int(p) for p in tiff.numbers(entries.get(_SUB_IFDS), most) if math.isfinite(p)] + waiting
            if is_chain_followed:
                waiting.append(tiff.next_directory(place))
    return found


@dataclass(frozen=True)
class _Entry:
    type: int
    count: int
    offset: int  # where the values lie, from the start of the TIFF header


class _TiffTags:
    """Bounds-checked access to a TIFF structure (classic or BigTIFF): what lies outside reads as absent."""

    def __init__(self, data: bytes) -> None:
        start = 6 * sum(data[i : i + 6] == b"Exif\0\0" for i in (0, 6))
        self._data = memoryview(data)[start:]
        magic = bytes(self._data[:4])
        self._order = ">" if magic[:2] == b"MM" else "<"
        self._big = magic in (b"II\x2b\0", b"MM\0\x2b")
        known = self._big or magic in (b"II\x2a\0", b"MM\0\x2a", *_RAW_MAGICS)
        place = (self._unpack("Q", 8) if self._big else self._unpack("L", 4)) if known else ()
        self.first_directory: int = place[0] if place else 0

    def _unpack(self, layout: str, offset: int) -> tuple[int, ...]:
        size = struct.calcsize(self._order + layout)
        chunk = self._data[offset : offset + size] if offset >= 0 else b""
        return struct.unpack(self._order + layout, chunk) if len(chunk) == size else ()

    def directory(self, offset: int | None) -> dict[int, _Entry]:
        """Return the first entry of each tag of the directory at `offset`; empty when there is none."""
        entries: dict[int, _Entry] = {}
        count = self._unpack("Q" if self._big else "H", offset) if offset else ()
        if not offset or not count:
            return entries
        layout, entry_bytes, inline_bytes, at = ("HHQ", 20, 8, offset + 8) if self._big else ("HHL", 12, 4, offset + 2)
        for _ in range(min(count[0], _MAX_ENTRIES)):
            head = self._unpack(layout, at)
            if not head:
                break
            tag, kind, value_count = head
            value_at = at + entry_bytes - inline_bytes
            if kind in _TYPES and value_count * struct.calcsize("=" + _TYPES[kind]) > inline_bytes:
                value_at = (self._unpack("Q" if self._big else "L", value_at) or (-1,))[0]
            entries.setdefault(tag, _Entry(kind, value_count, value_at))
            at += entry_bytes
        return entries

    def next_directory(self, offset: int) -> int:
        """Return where the directory after the one at `offset` lies, 0 when that is the last."""
        count = self._unpack("Q" if self._big else "H", offset)
        if not count:
            return 0
        after = offset + (8 + 20 * count[0] if self._big else 2 + 12 * count[0])
        return (self._unpack("Q" if self._big else "L", after) or (0,))[0]

    def numbers(self, entry: _Entry | None, limit: int) -> list[float]:
        """Return up to `limit` numbers, rationals divided (x/0 is NaN, but 0/0 is 0: unused); empty when broken."""
        if entry is None or entry.type not in _TYPES or entry.type in (_ASCII, _UNDEFINED) or entry.count < 1:
            return []
        layout = _TYPES[entry.type]
        values = self._unpack(f"{len(layout) * min(entry.count, limit)}{layout[0]}", entry.offset)
        if entry.type not in _RATIONALS:
            return list(values)
        pairs = zip(values[::2], values[1::2], strict=True)
        return [n / d if d else (0.0 if n == 0 else float("nan")) for n, d in pairs]

    def integer(self, entry: _Entry | None) -> int | None:
        values = self.numbers(entry, 1) if entry is not None and entry.type not in (*_RATIONALS, _DOUBLE) else []
        return int(values[0]) if values else None

    def text(self, entry: _Entry | None) -> str:
        if entry is None or entry.type != _ASCII or entry.offset < 0:
            return ""
        text = bytes(self._data[entry.offset : entry.offset + min(entry.count, _MAX_TEXT_BYTES)])
        return text.split(b"\0")[0].decode("ascii", "replace").strip()

    def is_unknown(self, entry: _Entry) -> bool:
        """Say whether a rational's first value is 0/0, EXIF's way of writing "unknown"."""
        return entry.type in _RATIONALS and self._unpack(_TYPES[entry.type], entry.offset) == (0, 0)


def _angle_deg(
    tiff: _TiffTags, entry: _Entry | None, ref_entry: _Entry | None, letters: str, limit_deg: float
) -> float | None:
    """Return signed degrees from degrees, minutes, seconds and a reference letter; None unless all of it is believable.

    Without its letter a position's hemisphere is a guess, and a wrong position is worse than none.
    """
    if entry is None or tiff.is_unknown(entry):
        return None
    if entry.type == _ASCII:
        values = [float(v) for v in re.findall(r"-?\d+(?:\.\d+)?", tiff.text(entry))][:3]
    else:
        values = tiff.numbers(entry, 3)
    letter = tiff.text(ref_entry)[:1].upper()
    if not values or letter not in tuple(letters):
        return None
    degrees, minutes, seconds = [*values, 0.0, 0.0][:3]
    is_negative_half = letter == letters[1]
    if degrees < 0 and not is_negative_half:
        return None
    angle_deg = abs(degrees) + minutes / 60 + seconds / 3600
    if not (0 <= minutes <= 60 and 0 <= seconds <= 60 and angle_deg <= limit_deg):  # also refuses NaN
        return None
    return -angle_deg if is_negative_half else angle_deg


def _time(text: str) -> datetime | None:
    match = _DATE.match(text)
    try:
        return datetime(*(int(part) for part in match.groups())) if match else None  # type: ignore[arg-type]
    except ValueError:
        return None
