"""Where and when a QuickTime or MP4 file was taken, as its own boxes say: pure, and it can not fail.

Positions: the key `com.apple.quicktime.location.ISO6709`, then `©xyz` (cameras, Android), then 3GPP's `loci`. Times:
Apple's `com.apple.quicktime.creationdate`, which has the local time and its offset; else the movie's creation time,
which the format has in UTC. Sources: QuickTime File Format; ISO/IEC 14496-12; ISO 6709, annex H; 3GPP TS 26.244.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pipeline.decode.exif import position_deg
from pipeline.decode.pictures.iso_media import IsoBox, children, iso_box, iso_boxes
from pipeline.decode.taken import Moment, read_moment

_LOCATION, _CREATED = b"com.apple.quicktime.location.ISO6709", b"com.apple.quicktime.creationdate"
_XYZ, _DAY, _LOCI = b"\xa9xyz", b"\xa9day", b"loci"
_ISO_6709 = re.compile(r"\s*([+-])(\d{2,6})(\.\d+)?([+-])(\d{3,7})(\.\d+)?(?:[+-][\d.]+)?(?:CRS[^/]*)?/?\s*\0*$")
_EPOCH, _UNIX = datetime(1904, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)
_FIRST = datetime(1990, 1, 1, tzinfo=UTC)
_MAX_VALUE_BYTES = 1024
_MOST_KEYS, _MOST_ALIKE = 1000, 8


@dataclass(frozen=True)
class QuickTimeFacts:
    """What a movie's boxes say; None where they say nothing that can be believed.

    `lat_deg`, `lon_deg`: WGS84 degrees, both or neither. `taken_at`: the local time, naive; `taken_at_utc`: the moment.
    """

    lat_deg: float | None = None
    lon_deg: float | None = None
    taken_at: datetime | None = None
    taken_at_utc: datetime | None = None


def read_quicktime(data: bytes) -> QuickTimeFacts:
    """Return what a file's boxes say of where and when it was taken; never raises."""
    movie = iso_box(data, b"moov")
    if movie is None:
        return QuickTimeFacts()
    texts = _keyed(data, movie) | _user_texts(data, movie)
    places = (read_iso_6709(texts.get(key, "")) for key in (_LOCATION, _XYZ))
    lat_deg, lon_deg = next((place for place in places if place), None) or _loci(data, movie) or (None, None)
    written = read_moment(texts.get(_CREATED, "")) or read_moment(texts.get(_DAY, ""))
    moment = written if written is not None and written.utc is not None else None
    created = moment.utc if moment else _created(data, movie)
    return QuickTimeFacts(lat_deg, lon_deg, _local(moment or written), created)


def _local(moment: Moment | None) -> datetime | None:
    return None if moment is None else moment.local


def read_iso_6709(text: str) -> tuple[float, float] | None:
    """Return latitude and longitude in degrees out of `+48.8577+002.295/` and the forms with minutes and seconds."""
    found = _ISO_6709.match(text[:_MAX_VALUE_BYTES])
    if found is None:
        return None
    lat_deg = _angle_deg(found[1], found[2], found[3] or "", 2)
    lon_deg = _angle_deg(found[4], found[5], found[6] or "", 3)
    if lat_deg is None or lon_deg is None or abs(lat_deg) > 90 or abs(lon_deg) > 180:
        return None
    return position_deg(lat_deg, lon_deg)


def _angle_deg(sign: str, digits: str, fraction: str, degree_digits: int) -> float | None:
    """Degrees, then minutes and seconds where there are two or four digits more; the last has the fraction."""
    rest = len(digits) - degree_digits
    if rest not in (0, 2, 4):
        return None
    parts = [digits[:degree_digits], *(digits[i : i + 2] for i in range(degree_digits, len(digits), 2))]
    values = [float(part) for part in (*parts[:-1], parts[-1] + fraction)]
    if any(value >= 60 for value in values[1:]):
        return None
    angle_deg: float = sum(value / 60**power for power, value in enumerate(values))
    return -angle_deg if sign == "-" else angle_deg


def _text(data: bytes, start: int, end: int) -> str:
    return data[start : min(end, start + _MAX_VALUE_BYTES)].decode("utf-8", "replace").strip("\0 ")


def _keyed(data: bytes, movie: IsoBox) -> dict[bytes, str]:
    """Return the texts of `moov/meta`: a list of keys, and a list of values by the number of their key."""
    found: dict[bytes, str] = {}
    for meta in _all(data, movie, b"meta"):
        found = _keyed_in(data, meta) | found
    return found


def _all(data: bytes, parent: IsoBox, kind: bytes) -> list[IsoBox]:
    """Return the boxes of a kind: a program that edits a file may put a second one behind the camera's."""
    return [box for box in children(data, parent) if box.kind == kind][:_MOST_ALIKE]


def _keyed_in(data: bytes, meta: IsoBox) -> dict[bytes, str]:
    keys, values = iso_box(data, b"keys", within=meta), iso_box(data, b"ilst", within=meta)
    if keys is None or values is None:
        return {}
    names: list[bytes] = []
    for number, key in enumerate(iso_boxes(data, keys.start + 8, keys.end)):
        if number == _MOST_KEYS:
            break
        names.append(data[key.start : min(key.end, key.start + 100)])
    return {
        names[number - 1]: text
        for item in iso_boxes(data, values.start, values.end)
        if 1 <= (number := int.from_bytes(item.kind, "big")) <= len(names) and (text := _value(data, item))
    }


def _value(data: bytes, item: IsoBox) -> str:
    box = next((box for box in iso_boxes(data, item.start, item.end) if box.kind == b"data"), None)
    return "" if box is None else _text(data, box.start + 8, box.end)


def _user_texts(data: bytes, movie: IsoBox) -> dict[bytes, str]:
    """Return the texts of `moov/udta`, and of the list of iTunes in it."""
    found: dict[bytes, str] = {}
    for user in _all(data, movie, b"udta"):
        for box in children(data, user):
            if box.kind in (_XYZ, _DAY):  # the length of a text and its language come first
                length = int.from_bytes(data[box.start : box.start + 2], "big")
                found.setdefault(box.kind, _text(data, box.start + 4, min(box.start + 4 + length, box.end)))
        listed = iso_box(data, b"meta", b"ilst", within=user)
        for item in children(data, listed) if listed else ():
            if item.kind in (_XYZ, _DAY):
                found.setdefault(item.kind, _value(data, item))
    return found


def _loci(data: bytes, movie: IsoBox) -> tuple[float, float] | None:
    """Return the position of 3GPP's box: after a name, longitude and latitude as numbers of 16 and 16 bits."""
    boxes = (iso_box(data, _LOCI, within=user) for user in _all(data, movie, b"udta"))
    box = next((box for box in boxes if box is not None), None)
    if box is None:
        return None
    start = box.start + 6
    is_wide = data[start : start + 2] in (b"\xfe\xff", b"\xff\xfe")
    name_end = data.find(b"\0\0" if is_wide else b"\0", start, min(box.end, start + _MAX_VALUE_BYTES))
    at = name_end + (2 if is_wide else 1) + 1  # and the role of the place
    if name_end < 0 or at + 8 > box.end:
        return None
    lon_deg, lat_deg = (int.from_bytes(data[at + i : at + i + 4], "big", signed=True) / 65536 for i in (0, 4))
    return position_deg(lat_deg, lon_deg) if abs(lat_deg) <= 90 and abs(lon_deg) <= 180 else None


def _created(data: bytes, movie: IsoBox) -> datetime | None:
    """Return the movie's creation time; 0 is unknown, and what would be long ago was counted from 1970."""
    header = iso_box(data, b"mvhd", within=movie)
    if header is None or header.start + 12 > header.end:
        return None
    size_bytes = 8 if data[header.start] == 1 else 4
    seconds = int.from_bytes(data[header.start + 4 : header.start + 4 + size_bytes], "big")
    if not 0 < seconds < 1 << 33:
        return None
    moments = (epoch + timedelta(seconds=seconds) for epoch in (_EPOCH, _UNIX))
    return next((moment for moment in moments if moment >= _FIRST), None)
