"""What Google Takeout's JSON says of the photo beside it: its owner's position, the time in UTC, title and description.

Its form is nowhere specified; it was learnt from exports of 2018 to 2025. `geoData` is what Google Photos shows, set by
the owner or estimated, and `geoDataExif` what the file had when it was uploaded; 0, 0 stands for unknown.
"""

from __future__ import annotations

import html
import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

MAX_JSON_BYTES = 1 << 20
"""What Takeout writes of a photo has some 1,000 bytes, and of one with many people and comments some 10,000."""
_OWN_KEYS = ("photoTakenTime", "geoData", "geoDataExif", "creationTime")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_YEAR = 1826
"""Of the oldest photograph; Takeout's times are negative before 1970."""


@dataclass(frozen=True)
class TakeoutFacts:
    """What a JSON of Google Takeout says; a missing or unbelievable value is None.

    `lat_deg`, `lon_deg`: WGS84 degrees, both or neither. `title`: the photo's name before Google cut or changed it.
    """

    lat_deg: float | None = None
    lon_deg: float | None = None
    taken_at_utc: datetime | None = None
    title: str | None = None
    description: str | None = None


def read_takeout(data: bytes) -> TakeoutFacts | None:
    """Return what a JSON says, None where it is another program's or an album's; ValueError where it is no JSON."""
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"{len(data)} bytes, more than the {MAX_JSON_BYTES} that are read of a JSON")
    try:
        found = json.loads(data.decode("utf-8-sig", "replace"))
    except RecursionError:
        raise ValueError("it is nested deeper than any JSON of a photo") from None
    if not isinstance(found, dict) or not any(key in found for key in _OWN_KEYS):
        return None
    lat_deg, lon_deg = _position(found.get("geoData")) or _position(found.get("geoDataExif")) or (None, None)
    return TakeoutFacts(
        lat_deg=lat_deg,
        lon_deg=lon_deg,
        taken_at_utc=_moment(found.get("photoTakenTime")),
        title=_text(found.get("title")),
        description=_text(found.get("description")),
    )


def _position(place: Any) -> tuple[float, float] | None:
    if not isinstance(place, dict):
        return None
    lat_deg, lon_deg = (_number(place.get(name)) for name in ("latitude", "longitude"))
    is_known = lat_deg is not None and lon_deg is not None and abs(lat_deg) <= 90 and abs(lon_deg) <= 180
    if not is_known or (lat_deg == 0 and lon_deg == 0):
        return None
    assert lat_deg is not None
    assert lon_deg is not None
    return lat_deg, lon_deg


def _moment(time: Any) -> datetime | None:
    seconds = _number(time.get("timestamp")) if isinstance(time, dict) else None
    if seconds is None or not seconds:  # 0 is written where it is unknown
        return None
    try:
        moment = _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        return None
    return moment if moment.year >= _FIRST_YEAR else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _text(value: Any) -> str | None:
    """Return a text as its owner wrote it: Takeout keeps HTML's names for some characters."""
    text = html.unescape(value).strip() if isinstance(value, str) else ""
    return text or None
