"""What a photo itself records of where and when it was taken, and in words: EXIF, XMP and IPTC put together.

Positions: EXIF's first, then XMP's. Times: EXIF's time of taking or digitizing, then XMP's, then IPTC's, and only then
EXIF's time of the last change. Words: XMP's, then IPTC's; the other way round where IPTC was changed after XMP.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from model.world.geodesy import haversine_km
from pipeline.decode.carried import Carried
from pipeline.decode.exif import ExifFacts
from pipeline.decode.iptc import IptcFacts, read_iptc
from pipeline.decode.taken import offset_by_gps, utc_of
from pipeline.decode.xmp import XmpFacts, read_xmp
from pipeline.schema import RecordedBy, UtcBy, printable

MAX_CAPTION_CHARS = 10_000
MAX_WORDS_CHARS = 250
MAX_KEYWORDS = 1000
CUT = "…"
"""Ends what was cut, and is the last keyword where there were more."""


@dataclass(frozen=True)
class Recorded:
    """What a photo records; None where it records nothing.

    `lat_deg`, `lon_deg`: WGS84 degrees, both or neither; `by`: where they stand; `apart_km`: how far XMP's position is
    from EXIF's, where there are both. `taken_at`: local time, naive; `taken_at_utc`: the same moment in UTC, `utc_by`:
    how that is known. Words are printable, in one line, and cut at the limits above.
    """

    lat_deg: float | None = None
    lon_deg: float | None = None
    by: RecordedBy | None = None
    apart_km: float | None = None
    taken_at: datetime | None = None
    taken_at_utc: datetime | None = None
    utc_by: UtcBy | None = None
    country: str | None = None
    country_code: str | None = None
    region: str | None = None
    city: str | None = None
    caption: str | None = None
    keywords: tuple[str, ...] = ()


NOTHING_RECORDED = Recorded()


def recorded_in(exif: ExifFacts, blocks: Carried) -> Recorded:
    """Return what EXIF, and the other blocks that a photo carries, record; never raises."""
    if not (blocks.xmp or blocks.photoshop or blocks.iim):
        return recorded(exif)
    xmp = XmpFacts()
    for packet in blocks.xmp:
        xmp = _completed(xmp, read_xmp(packet))
    iptc = read_iptc(blocks.photoshop, blocks.iim) if blocks.photoshop or blocks.iim else IptcFacts()
    return recorded(exif, xmp, iptc)


def recorded(exif: ExifFacts, xmp: XmpFacts | None = None, iptc: IptcFacts | None = None) -> Recorded:
    """Return what these say together, each by its place in the order of trust."""
    taken_at, offset = _taken(exif, xmp, iptc)
    taken_at_utc, utc_by = _utc(taken_at, offset, exif.gps_at_utc or (xmp.gps_at_utc if xmp else None))
    words = _words(xmp or XmpFacts(), iptc or IptcFacts()) if xmp or iptc else Recorded()
    found = replace(words, taken_at=taken_at, taken_at_utc=taken_at_utc, utc_by=utc_by)
    if exif.lat_deg is not None:
        found = replace(found, lat_deg=exif.lat_deg, lon_deg=exif.lon_deg, by=RecordedBy.EXIF)
        if xmp and xmp.lat_deg is not None:
            assert exif.lon_deg is not None
            assert xmp.lon_deg is not None
            apart_km = float(haversine_km(exif.lat_deg, exif.lon_deg, xmp.lat_deg, xmp.lon_deg))
            found = replace(found, apart_km=apart_km)
    elif xmp and xmp.lat_deg is not None:
        found = replace(found, lat_deg=xmp.lat_deg, lon_deg=xmp.lon_deg, by=RecordedBy.XMP)
    return found


def in_one_line(text: str, limit_chars: int) -> str:
    """Return a text whose runs of blanks and line ends are one blank each, printable, and cut where it is longer."""
    line = printable(" ".join(text.split())[: limit_chars + 1])
    return line if len(line) <= limit_chars else line[: limit_chars - 1] + CUT


def _completed(facts: XmpFacts, later: XmpFacts) -> XmpFacts:
    """Return the facts of several packets: what an earlier one lacks is taken from a later one."""
    lat_deg, lon_deg = (facts.lat_deg, facts.lon_deg) if facts.lat_deg is not None else (later.lat_deg, later.lon_deg)
    taken_at, offset = (facts.taken_at, facts.offset) if facts.taken_at else (later.taken_at, later.offset)
    return XmpFacts(
        lat_deg=lat_deg,
        lon_deg=lon_deg,
        taken_at=taken_at,
        offset=offset,
        gps_at_utc=facts.gps_at_utc or later.gps_at_utc,
        country=facts.country or later.country,
        country_code=facts.country_code or later.country_code,
        region=facts.region or later.region,
        city=facts.city or later.city,
        caption=facts.caption or later.caption,
        keywords=facts.keywords or later.keywords,
    )


def _taken(exif: ExifFacts, xmp: XmpFacts | None, iptc: IptcFacts | None) -> tuple[datetime | None, timedelta | None]:
    if exif.taken_at is not None and not exif.is_change:
        return exif.taken_at, exif.offset
    for facts in (xmp, iptc):
        if facts is not None and facts.taken_at is not None:
            return facts.taken_at, facts.offset
    return exif.taken_at, exif.offset


def _utc(
    taken_at: datetime | None, offset: timedelta | None, gps_at_utc: datetime | None
) -> tuple[datetime | None, UtcBy | None]:
    if taken_at is not None and offset is not None:
        moment = utc_of(taken_at, offset)
        return moment, UtcBy.OFFSET_TIME if moment else None
    if gps_at_utc is None:
        return None, None
    if taken_at is None:
        return gps_at_utc, UtcBy.GPS_TIME
    by_gps = offset_by_gps(taken_at, gps_at_utc)
    moment = utc_of(taken_at, by_gps) if by_gps is not None else None
    return moment, UtcBy.GPS_TIME if moment else None


def _words(xmp: XmpFacts, iptc: IptcFacts) -> Recorded:
    first, second = (iptc, xmp) if iptc.is_newer_than_xmp else (xmp, iptc)

    def name(one: str | None, other: str | None, limit_chars: int = MAX_WORDS_CHARS) -> str | None:
        return in_one_line(one or other or "", limit_chars) or None

    keywords = first.keywords or second.keywords
    lines = [line for word in keywords[:MAX_KEYWORDS] if (line := in_one_line(word, MAX_WORDS_CHARS))]
    return Recorded(
        country=name(first.country, second.country),
        country_code=name(first.country_code, second.country_code),
        region=name(first.region, second.region),
        city=name(first.city, second.city),
        caption=name(first.caption, second.caption, MAX_CAPTION_CHARS),
        keywords=(*lines, *([CUT] if len(keywords) > MAX_KEYWORDS else [])),
    )
