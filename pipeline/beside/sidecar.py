"""A sidecar's bytes become what it records of its photo, as far as the photo itself does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from xml.parsers import expat

from model.world.geodesy import haversine_km
from pipeline.beside import ours
from pipeline.beside.names import Kind
from pipeline.beside.takeout import MAX_JSON_BYTES, read_takeout
from pipeline.decode.exif import ExifFacts
from pipeline.decode.recorded import MAX_CAPTION_CHARS, NOTHING_RECORDED, Recorded, in_one_line, recorded
from pipeline.decode.xmp import XmpFacts, read_xmp
from pipeline.schema import ErrorCode, PhotoError, RecordedBy, UtcBy

MAX_BYTES: dict[Kind, int] = {"xmp": 4 << 20, "takeout": MAX_JSON_BYTES}
"""So large a sidecar may be; darktable and Lightroom write some kilobytes, and a megabyte where much was retouched."""


@dataclass(frozen=True)
class Sidecar:
    """What a sidecar records; `title` is the photo's name by Takeout, `is_another` says that it is no photo's JSON."""

    recorded: Recorded = NOTHING_RECORDED
    title: str | None = None
    is_another: bool = False


def read_sidecar(data: bytes, kind: Kind) -> Sidecar:
    """Return what a sidecar records; PhotoError, `corrupt`, where it is damaged."""
    if kind == "xmp":
        return Sidecar(_of_xmp(data))
    try:
        facts = read_takeout(data)
    except ValueError as error:
        raise PhotoError(ErrorCode.CORRUPT, f"it is no readable JSON: {error}") from error
    if facts is None:
        return Sidecar(is_another=True)
    found = Recorded(
        lat_deg=facts.lat_deg,
        lon_deg=facts.lon_deg,
        by=None if facts.lat_deg is None else RecordedBy.TAKEOUT,
        taken_at_utc=facts.taken_at_utc,
        utc_by=None if facts.taken_at_utc is None else UtcBy.TAKEOUT,
        caption=in_one_line(facts.description or "", MAX_CAPTION_CHARS) or None,
    )
    return Sidecar(found, facts.title)


def completed(own: Recorded, beside: Sequence[Recorded]) -> Recorded:
    """Return what a photo records itself, and what it lacks from its sidecars, of which the first is believed first.

    `apart_km` is how far the farthest of all other positions is from the one that is believed.
    """
    found = own
    for each in beside:
        if found.lat_deg is None or found.lon_deg is None:
            found = replace(found, lat_deg=each.lat_deg, lon_deg=each.lon_deg, by=each.by)
        elif each.lat_deg is not None and each.lon_deg is not None:
            apart_km = float(haversine_km(found.lat_deg, found.lon_deg, each.lat_deg, each.lon_deg))
            found = replace(found, apart_km=max(apart_km, found.apart_km or 0.0))
        if found.taken_at is None and each.taken_at is not None:
            found = replace(found, taken_at=each.taken_at)
        if found.taken_at_utc is None:
            found = replace(found, taken_at_utc=each.taken_at_utc, utc_by=each.utc_by)
        if not (found.country or found.country_code or found.region or found.city):
            found = replace(
                found, country=each.country, country_code=each.country_code, region=each.region, city=each.city
            )
        found = replace(found, caption=found.caption or each.caption, keywords=found.keywords or each.keywords)
    return found


def _of_xmp(data: bytes) -> Recorded:
    rest = ours.without_ours(data)
    facts = read_xmp(rest)
    if facts == XmpFacts() and (problem := _problem(data)):
        raise PhotoError(ErrorCode.CORRUPT, f"it is no readable XMP: {problem}")
    if ours.is_predicted(rest):
        facts = replace(facts, lat_deg=None, lon_deg=None, country=None, country_code=None, region=None, city=None)
    found = recorded(ExifFacts(), facts)
    return replace(found, by=None if found.lat_deg is None else RecordedBy.SIDECAR)


def _problem(data: bytes) -> str:
    """Return why a sidecar that says nothing is no XML, "" where it only has nothing to say."""
    if not data.strip(b"\0 \t\r\n"):
        return "it is empty"

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError) as error:
        return str(error)
    return ""
