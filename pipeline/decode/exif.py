"""What a camera wrote about a photo: position, time and orientation, read from its EXIF block.

An own reader of the few tags we want, instead of Pillow's: it never warns (Pillow's warnings go through process-wide
filters, which are not thread-safe), never touches the maker note, looks at most at a few kilobytes whatever the file
claims, and can not fail: what is broken is None. Source: Exif 2.32, CIPA DC-008, and TIFF 6.0.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pipeline.decode.taken import Moment, gps_moment, read_moment, read_offset

_ORIENTATION, _DATE_TIME, _EXIF_IFD, _GPS_IFD = 0x0112, 0x0132, 0x8769, 0x8825
_SUB_IFDS = 0x014A
_ORIGINAL = (0x9003, 0x9291, 0x9011)
"""The time of taking, its fraction of a second, and its offset from UTC; likewise that of digitizing."""
_DIGITIZED = (0x9004, 0x9292, 0x9012)
_CHANGED_FRACTION, _CHANGED_OFFSET = 0x9290, 0x9010
_GPS_LAT_REF, _GPS_LAT, _GPS_LON_REF, _GPS_LON, _GPS_TIME, _GPS_DATE = 1, 2, 3, 4, 7, 29
_TYPES = {1: "B", 2: "s", 3: "H", 4: "L", 5: "LL", 6: "b", 7: "B", 8: "h", 9: "l", 10: "ll", 11: "f", 12: "d"}
_TYPES |= {13: "L", 16: "Q", 18: "Q", 129: "B"}
_ASCII, _RATIONALS, _FLOATS = 2, (5, 10), (11, 12)
_TEXTS = (_ASCII, 7, 129)  # as some write it, and UTF-8 since Exif 3.0
_UNDEFINED = 7
_RAW_MAGICS = (b"IIRO", b"IIRS", b"MMOR", b"IIU\0")
"""Olympus' and Panasonic's camera raw files are TIFF with another word in the place of 42."""
_MAX_ENTRIES = 1000
_MAX_TEXT_BYTES = 64
_MAGIC = re.compile(rb"II\x2a\0|MM\0\x2a|II\x2b\0|MM\0\x2b")
_MAX_BYTES_BEFORE_MAGIC = 32
"""`Exif\0\0`, once or twice, and what boxes of HEIF and JPEG XL put before it."""


@dataclass(frozen=True)
class ExifFacts:
    """What EXIF says of a photo; a missing or unbelievable value is None.

    `lat_deg`, `lon_deg`: WGS84 degrees, both or neither. Exactly (0, 0) is a known camera failure and counts as none.
    A position whose GPSStatus is `V`, void, is one: phones write that of good fixes, and every viewer shows it.
    `taken_at`: the camera's local time, naive; `offset`: how far its clock was east of UTC, where that is written;
    `is_change`: whether it is no more than the time of the file's last change. `gps_at_utc`: the time of the GPS fix.
    `orientation`: 1 to 8, how the stored picture is turned; 1 also when absent, out of range, or (HEIC) already undone.
    """

    lat_deg: float | None = None
    lon_deg: float | None = None
    taken_at: datetime | None = None
    orientation: int = 1
    offset: timedelta | None = None
    is_change: bool = False
    gps_at_utc: datetime | None = None


def read_exif(*blocks: bytes | None) -> ExifFacts:
    """Return the facts in a photo's EXIF blocks, or in a whole TIFF file; never raises.

    `Exif\0\0` before a block may be absent. What an earlier block lacks is taken from a later one, but for the
    orientation, which viewers take from the first.
    """
    facts = _facts(blocks[0] or b"") if blocks else ExifFacts()
    for block in blocks[1:]:
        facts = _completed(facts, _facts(block or b""))
    return facts


def has_tiff_header(block: bytes) -> bool:
    """Say whether an EXIF block begins here, rather than goes on."""
    return _MAGIC.search(block, 0, _MAX_BYTES_BEFORE_MAGIC) is not None


def _facts(exif: bytes) -> ExifFacts:
    tiff = _TiffTags(exif)
    main = tiff.directory(tiff.first_directory)
    if not main:
        return ExifFacts()
    camera = tiff.directory(tiff.integer(main.get(_EXIF_IFD)))
    gps = tiff.directory(tiff.integer(main.get(_GPS_IFD)))
    lat_deg, lon_deg = _position(tiff, gps) or (None, None)
    orientation = tiff.integer(main.get(_ORIENTATION))
    moment, is_change = _taken(tiff, main, camera)
    return ExifFacts(
        lat_deg=lat_deg,
        lon_deg=lon_deg,
        taken_at=moment.local if moment else None,
        orientation=orientation if orientation is not None and 1 <= orientation <= 8 else 1,
        offset=moment.offset if moment else None,
        is_change=is_change,
        gps_at_utc=gps_moment(tiff.text(gps.get(_GPS_DATE)), tiff.numbers(gps.get(_GPS_TIME), 3)),
    )


def _completed(facts: ExifFacts, later: ExifFacts) -> ExifFacts:
    if facts.lat_deg is None:
        facts = replace(facts, lat_deg=later.lat_deg, lon_deg=later.lon_deg)
    if facts.taken_at is None or (facts.is_change and later.taken_at is not None and not later.is_change):
        facts = replace(facts, taken_at=later.taken_at, offset=later.offset, is_change=later.is_change)
    return facts if facts.gps_at_utc else replace(facts, gps_at_utc=later.gps_at_utc)


def _taken(tiff: _TiffTags, main: dict[int, _Entry], camera: dict[int, _Entry]) -> tuple[Moment | None, bool]:
    """Return the first believable time, and whether it is that of the last change.

    The offset of that is the original's too where the two times are the same, or it would be another computer's.
    """
    changed = _moment(tiff, main.get(_DATE_TIME), camera.get(_CHANGED_FRACTION), camera.get(_CHANGED_OFFSET))
    for tags in (_ORIGINAL, _DIGITIZED):
        moment = _moment(tiff, *(camera.get(tag) for tag in tags))
        if moment is None:
            continue
        is_unchanged = changed is None or changed.local.replace(microsecond=0) == moment.local.replace(microsecond=0)
        if moment.offset is None and is_unchanged:
            offset = read_offset(tiff.text(camera.get(_CHANGED_OFFSET)))
            moment = Moment(moment.local, offset)
        return moment, False
    return changed, changed is not None


def _moment(tiff: _TiffTags, time: _Entry | None, fraction: _Entry | None, offset: _Entry | None) -> Moment | None:
    if time is None:
        return None
    moment = read_moment(tiff.text(time), tiff.text(fraction))
    if moment is None or moment.offset is not None or offset is None:
        return moment
    return replace(moment, offset=read_offset(tiff.text(offset)))


def _position(tiff: _TiffTags, gps: dict[int, _Entry]) -> tuple[float, float] | None:
    if not gps:
        return None
    lat_deg = _angle_deg(tiff, gps.get(_GPS_LAT), gps.get(_GPS_LAT_REF), "NS", 90.0)
    lon_deg = _angle_deg(tiff, gps.get(_GPS_LON), gps.get(_GPS_LON_REF), "EW", 180.0)
    return position_deg(lat_deg, lon_deg)


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


def tiff_blobs(tiff_file: bytes, *tags: int) -> list[bytes]:
    """Return the bytes of entries of a TIFF file's first directory, none of one that is absent or lies outside."""
    tiff = _TiffTags(tiff_file)
    directory = tiff.directory(tiff.first_directory)
    return [tiff.blob(directory.get(tag)) for tag in tags]


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
        found = None if data[:4] in _RAW_MAGICS else _MAGIC.search(data, 0, _MAX_BYTES_BEFORE_MAGIC)
        self._data = memoryview(data)[found.start() if found else 0 :]
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
        values = self.numbers(entry, 1) if entry is not None and entry.type not in (*_RATIONALS, *_FLOATS) else []
        return int(values[0]) if values else None

    def text(self, entry: _Entry | None) -> str:
        """Return the beginning of a text, blanks for the zero bytes that some write between date and time."""
        if entry is None or entry.type not in _TEXTS or entry.offset < 0:
            return ""
        text = bytes(self._data[entry.offset : entry.offset + min(entry.count, _MAX_TEXT_BYTES)])
        return text.replace(b"\0", b" ").decode("utf-8", "replace").strip()

    def blob(self, entry: _Entry | None) -> bytes:
        """Return all bytes of an entry's values; none where they do not lie in the file."""
        size_bytes = entry.count * struct.calcsize("=" + _TYPES[entry.type]) if entry and entry.type in _TYPES else 0
        if entry is None or entry.offset < 0 or entry.offset + size_bytes > len(self._data):
            return b""
        return bytes(self._data[entry.offset : entry.offset + size_bytes])

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
    return signed_deg(values, letter, letters, limit_deg)


def signed_deg(values: list[float], letter: str, letters: str, limit_deg: float) -> float | None:
    """Return signed degrees out of degrees, minutes and seconds and the letter of their half of the world.

    `letters`: that of the positive half, then that of the negative one. None unless all of it is believable.
    """
    if letter not in tuple(letters) or not values:
        return None
    degrees, minutes, seconds = [*values, 0.0, 0.0][:3]
    is_negative_half = letter == letters[1]
    if degrees < 0 and not is_negative_half:
        return None
    angle_deg = abs(degrees) + minutes / 60 + seconds / 3600
    if not (0 <= minutes <= 60 and 0 <= seconds <= 60 and angle_deg <= limit_deg):  # also refuses NaN
        return None
    return -angle_deg if is_negative_half else angle_deg


def position_deg(lat_deg: float | None, lon_deg: float | None) -> tuple[float, float] | None:
    """Return a position of which both parts are known; exactly (0, 0), which broken cameras write, is none."""
    if lat_deg is None or lon_deg is None or (lat_deg == 0 and lon_deg == 0):
        return None
    return lat_deg, lon_deg
