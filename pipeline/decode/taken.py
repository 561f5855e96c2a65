"""When a photo was taken, out of what cameras and programs write: odd but recoverable times are recovered.

Decisions. Hour 24 is hour 0 of the day that is written: phones write the new day with it (their GPS times show it).
Second 60 is the next minute's first. Absent seconds, and a day without a time, are zeros; blanks are zeros too. A
month or a year alone is no time, nor is one before 1826, the year of the oldest photograph. A time in the future is
kept: no clock but the camera's is asked, so a file says the same whenever it is read. Digits may be of any script.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

FIRST_YEAR = 1826
_PARTS = re.compile(
    r"\s*(\d{4})[:/\-. ]([\d ]?[\d ])[:/\-. ]([\d ]?[\d ])"
    r"(?:[T ]\s*(?:([\d ]?[\d ])(?:[:.]([\d ]?[\d ]))(?:[:.]([\d ]?[\d ]))?)?([.,]\d+)?(.*))?$",
    re.DOTALL,
)
_COMPACT = re.compile(r"\s*(\d{4})(\d\d)(\d\d)(?:[T ]?(\d\d)(\d\d)(\d\d)?([.,]\d+)?(.*))?$", re.DOTALL)
_OFFSET = re.compile(r"\s*(?:UTC|GMT)?\s*([+\-\u2212])\s?(\d{1,2}):?(\d\d)?(?![\d:])", re.IGNORECASE)
_UTC = re.compile(r"\s*(?:Z|UTC|GMT)\s*$", re.IGNORECASE)
_HALF_OF_DAY = re.compile(r"\s*([ap])\.?m\b", re.IGNORECASE)
_MOST_OFFSET = timedelta(hours=14)
_LEAST_OFFSET = timedelta(hours=-12)
_QUARTER = timedelta(minutes=15)
_OFFSETS_WITH_MINUTES = {-9.5, -3.5, -2.5, 3.5, 4.5, 5.5, 5.75, 6.5, 8.75, 9.5, 10.5, 12.75, 13.75}
"""Hours east of UTC that clocks of some country are set to, beside the whole ones."""


@dataclass(frozen=True)
class Moment:
    """A time as written: `local`, naive, and how far the clock was east of UTC, None where that is not written.

    `is_day`: whether only a day was written.
    """

    local: datetime
    offset: timedelta | None = None
    is_day: bool = False

    @property
    def utc(self) -> datetime | None:
        """The moment in UTC, where it can be told."""
        return None if self.offset is None else utc_of(self.local, self.offset)


def read_moment(text: str, fraction: str = "") -> Moment | None:
    """Return the time that `text` says, None where it says none; never raises.

    `fraction`: the digits of its fraction of a second, where they are written apart and `text` has none itself.
    """
    text = text.replace("\0", " ").rstrip()
    parts = _PARTS.match(text) or _COMPACT.match(text)
    if parts is None:
        return None
    year, month, day, hour, minute, second = (int((part or "").replace(" ", "0") or 0) for part in parts.groups()[:6])
    if hour == 24:
        hour = 0
    rest = parts[8] or ""
    half = _HALF_OF_DAY.match(rest)
    if half and 1 <= hour <= 12:
        hour = hour % 12 + 12 * (half[1] in "pP")
        rest = rest[half.end() :]
    digits = parts[7][1:] if parts[7] else fraction.strip()
    is_digits = digits.isdecimal() and second < 60
    microsecond = int(digits[:6].ljust(6, "0")) if is_digits else 0
    try:
        local = datetime(year, month, day, hour, minute, min(second, 59), microsecond)
        local += timedelta(seconds=max(0, second - 59))
    except (ValueError, OverflowError):
        return None
    if second > 60 or year < FIRST_YEAR:
        return None
    return Moment(local, read_offset(rest), is_day=not (parts[4] or "").strip())


def best_moment(moments: Iterable[Moment | None]) -> Moment | None:
    """Return the first of several times that there is; of a mere day the first time on it, if there is one."""
    found = [moment for moment in moments if moment is not None]
    if not found:
        return None
    day = found[0].local.date()
    return next((m for m in found if not m.is_day and m.local.date() == day), found[0]) if found[0].is_day else found[0]


def read_offset(text: str) -> timedelta | None:
    """Return how far east of UTC the beginning of `text` says that a clock is ("+01:00", "-0330", "Z"), or None."""
    if _UTC.match(text):
        return timedelta(0)
    parts = _OFFSET.match(text)
    if parts is None:
        return None
    minutes = int(parts[3] or 0)
    offset = timedelta(hours=int(parts[2]), minutes=minutes) * (1 if parts[1] == "+" else -1)
    return offset if minutes < 60 and _LEAST_OFFSET <= offset <= _MOST_OFFSET else None


def utc_of(local: datetime, offset: timedelta) -> datetime | None:
    """Return a local time in UTC, None beyond the calendar's ends."""
    try:
        return (local - offset).replace(tzinfo=UTC)
    except OverflowError:
        return None


def gps_moment(day_text: str, hours_minutes_seconds: list[float]) -> datetime | None:
    """Return the moment of a GPS fix out of its date and its three numbers, in UTC; None where it is none."""
    day = read_moment(day_text)
    if day is None or len(hours_minutes_seconds) != 3:
        return None
    hour, minute, second = hours_minutes_seconds
    if not (0 <= hour < 25 and 0 <= minute < 61 and 0 <= second < 62):  # also refuses NaN
        return None
    try:
        start = datetime.combine(date(day.local.year, day.local.month, day.local.day), datetime.min.time(), UTC)
        return start + timedelta(hours=hour, minutes=minute, seconds=second)
    except OverflowError:
        return None


def offset_by_gps(local: datetime, gps_utc: datetime) -> timedelta | None:
    """Return how far east of UTC a camera's clock is by the time of its GPS fix, to a quarter of an hour.

    The fix may be older than the photo, and clocks are minutes off: only what is the time of some country is one.
    """
    quarters = round((local.replace(tzinfo=UTC) - gps_utc) / _QUARTER)
    is_in_use = quarters % 4 == 0 or quarters / 4 in _OFFSETS_WITH_MINUTES
    if not is_in_use or not _LEAST_OFFSET <= quarters * _QUARTER <= _MOST_OFFSET:
        return None
    return quarters * _QUARTER
