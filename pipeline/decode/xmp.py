"""What an XMP packet says of a photo: position, time, named place, caption and keywords.

The packet may be a photo's own or a sidecar. It is read as a stream by defusedxml, and only the properties named here
are kept, so that neither a bomb nor megabytes of an editor's history cost memory: limits stand below, and what is
beyond them, or is no XML, says nothing. Properties count where they describe the picture itself, as attributes or
elements, in arrays, and under any prefix; those of pictures that it was made of (`xmpMM:Pantry`, histories) don't.
Sources: XMP 1 and 2 (ISO 16684-1), Exif 2.32 for XMP (CIPA DC-010), IPTC Photo Metadata 2023.1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from xml.etree.ElementTree import ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import XMLParser

from pipeline.decode.exif import position_deg, signed_deg
from pipeline.decode.taken import Moment, best_moment, read_moment, read_offset

MAX_PACKET_BYTES = 16 << 20
_MAX_DEPTH = 100
_MAX_ELEMENTS = 400_000  # some editors' histories have hundreds of thousands
_MAX_ATTRIBUTES = 200_000  # of which the parser would keep all that one element has

_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
_DESCRIPTION, _VALUE = f"{_RDF}Description", f"{_RDF}value"
_TRANSPARENT = {_DESCRIPTION, _VALUE, *(f"{_RDF}{name}" for name in ("Alt", "Bag", "Seq", "li"))}
_EXIF = "http://ns.adobe.com/exif/1.0/"
_EXIF_NAMES = (
    *("GPSLatitude", "GPSLatitudeRef", "GPSLongitude", "GPSLongitudeRef"),
    *("GPSDateTime", "GPSTimeStamp", "GPSDateStamp"),
    *("DateTimeOriginal", "DateTimeDigitized", "OffsetTimeOriginal", "OffsetTimeDigitized"),
)
_EXTENSION = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
_LOCATION_CREATED = f"{_EXTENSION}LocationCreated"
_CREATED = "created:"
_NAMES = {
    **{f"{{{_EXIF}}}{name}": name for name in _EXIF_NAMES},
    **{f"{{http://cipa.jp/exif/1.0/}}{name}": name for name in _EXIF_NAMES if name.startswith("Offset")},
    **{f"{{http://ns.adobe.com/photoshop/1.0/}}{name}": name for name in ("City", "State", "Country", "DateCreated")},
    "{http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/}CountryCode": "CountryCode",
    "{http://ns.adobe.com/xap/1.0/}CreateDate": "CreateDate",
    "{http://purl.org/dc/elements/1.1/}description": "description",
    "{http://purl.org/dc/elements/1.1/}subject": "subject",
}
_NAMES_CREATED = {
    **{f"{_EXTENSION}{name}": _CREATED + name for name in ("City", "ProvinceState", "CountryName", "CountryCode")},
    **{f"{{{_EXIF}}}{name}": _CREATED + name for name in _EXIF_NAMES if name.startswith("GPSL")},
}
_ROOT = re.compile(r"<((?:[^\s<>/:?!]+:)?(?:xmpmeta|xapmeta|RDF))(?=[\s>])")
_NOT_IN_XML = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_DECLARED = re.compile(rb"""<\?xml[^>]{0,100}encoding\s*=\s*["']([A-Za-z0-9._\-]{1,40})["']""")
_CODECS = {"iso-8859-1": "latin-1", "latin1": "latin-1", "windows-1252": "cp1252", "cp1252": "cp1252"}
_OUTSIDE, _NODE = "outside", "node"
_TIMES = (
    ("DateTimeOriginal", "OffsetTimeOriginal"),
    ("DateCreated", ""),
    ("DateTimeDigitized", "OffsetTimeDigitized"),
    ("CreateDate", ""),
)
_MAX_ANGLE_CHARS = 64
_BETWEEN_NUMBERS = re.compile(
    r"""[NSEWnsew]?[+\-\u2212 ]*(?:[ ,;:'"\u00b0\u00ba\u2019\u201d\u2032\u2033]|deg)*[NSEWnsew]?"""
)
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)(?:/(\d+))?")


@dataclass(frozen=True)
class XmpFacts:
    """What an XMP packet says of its photo; a missing or unbelievable value is None.

    `lat_deg`, `lon_deg`: WGS84 degrees, both or neither, as in `ExifFacts`. `taken_at`: local time, naive; `offset`:
    how far its clock was east of UTC. `gps_at_utc`: the time of the GPS fix. The names are as written, of the place
    where the photo was taken; `caption` is the one in the default language.
    """

    lat_deg: float | None = None
    lon_deg: float | None = None
    taken_at: datetime | None = None
    offset: timedelta | None = None
    gps_at_utc: datetime | None = None
    country: str | None = None
    country_code: str | None = None
    region: str | None = None
    city: str | None = None
    caption: str | None = None
    keywords: tuple[str, ...] = ()


def read_xmp(packet: bytes) -> XmpFacts:
    """Return the facts in an XMP packet or sidecar, in any encoding that XMP allows; never raises.

    A damaged packet, and one beyond `MAX_PACKET_BYTES`, says nothing.
    """
    text = _text_of(packet) if len(packet) <= MAX_PACKET_BYTES else ""
    if not text or text.count('="') + text.count("='") > _MAX_ATTRIBUTES:
        return XmpFacts()
    properties = _Properties()
    parser = XMLParser(target=properties)
    try:
        try:
            parser.feed(text)
        finally:
            parser.close()  # whatever happened: it is a circle of references, and the collector comes late
    except (ParseError, DefusedXmlException, ValueError):
        return XmpFacts()
    return _facts(properties)


def angle_deg(text: str, ref: str, letters: str, limit_deg: float) -> float | None:
    """Return signed degrees out of an angle in words, None unless all of it is believable.

    XMP's "48,51.4980N" and "48,51,29.88N", decimals ("48.8583", "-2.35"), what programs print (48° 51' 29.88" N), and
    a comma for the decimal point where the number could be nothing else. `ref`: the letter, where it stands apart.
    """
    text = text.strip()
    letter = next((c.upper() for c in (text[:1], text[-1:], ref.strip()[:1]) if c.upper() in tuple("NSEW")), "")
    numbers = list(_NUMBER.finditer(text)) if len(text) <= _MAX_ANGLE_CHARS else []
    if not 1 <= len(numbers) <= 4 or _BETWEEN_NUMBERS.fullmatch(_NUMBER.sub(" ", text)) is None:
        return None
    raw = [number[0] for number in numbers]
    values = [float(n[1]) / int(n[2] or 1) if int(n[2] or 1) else float("nan") for n in numbers]
    if "," in text and "." not in text and "/" not in text:
        values = _with_decimal_comma(raw, values)
    is_negative = text.lstrip("NSEWnsew ")[:1] in ("-", "\u2212")
    if not letter:
        if len(values) > 1:  # its hemisphere would be a guess
            return None
        letter = letters[is_negative]
    return signed_deg([-values[0] if is_negative else values[0], *values[1:]], letter, letters, limit_deg)


def _with_decimal_comma(raw: list[str], values: list[float]) -> list[float]:
    """Return degrees, minutes and seconds where the last comma stands for a decimal point, else `values`."""
    is_fraction = len(values) == 4 or (len(values) > 1 and (values[-1] >= 60 or len(raw[-1]) > 2))
    return [*values[:-2], float(f"{raw[-2]}.{raw[-1]}")] if is_fraction else values


def _text_of(packet: bytes) -> str:
    """Return the packet's outermost element as text, "" where there is none: what stands around it is of no use.

    So neither padding, nor a document type with entities, nor a declared encoding that is wrong by now is in the way.
    """
    head = packet[:4]
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") and head[2:] != b"\0\0":
        encoding = "utf-16"
    elif b"<\0\0\0" in packet[:256] or b"\0\0\0<" in packet[:256]:
        encoding = "utf-32-le" if packet.find(b"<\0\0\0") % 4 == 0 else "utf-32-be"
    elif b"<\0" in packet[:128]:
        encoding = "utf-16-le" if packet.find(b"<\0") % 2 == 0 else "utf-16-be"
    else:
        declared = _DECLARED.search(packet[:1024])
        encoding = _CODECS.get(declared[1].decode("ascii").lower(), "utf-8") if declared else "utf-8"
    text = packet.decode(encoding, "replace")
    start = _ROOT.search(text)
    if start is None:
        return ""
    end = re.compile(rf"</{re.escape(start[1])}\s*>").search(text, start.end())
    return _NOT_IN_XML.sub("", text[start.start() : end.end()]) if end else ""


@dataclass
class _Properties:
    """The wanted properties of the picture, each with its values and their languages, as a parser meets them.

    Of every open element it is known what it stands for: `_OUTSIDE`, a `_NODE` that describes the picture, the
    structure of the place where it was taken (`_CREATED`), a wanted property by its name, or None for what is passed
    over with all that is in it.
    """

    found: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    _open: list[str | None] = field(default_factory=list)
    _languages: list[str] = field(default_factory=list)
    _text: list[str] = field(default_factory=list)
    _elements: int = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        if len(self._open) >= _MAX_DEPTH or self._elements > _MAX_ELEMENTS:
            raise ValueError("deeper or longer than any XMP")
        role = self._role(self._open[-1] if self._open else _OUTSIDE, tag)
        self._open.append(role)
        self._languages.append(attributes.get(_LANGUAGE, ""))
        self._text.clear()
        if role is None or role == _OUTSIDE or not attributes:
            return
        if role in (_NODE, _CREATED):
            names = _NAMES if role == _NODE else _NAMES_CREATED
            for name, value in attributes.items():
                self._add(names.get(name), value, "")
        else:
            self._add(role, attributes.get(_VALUE, ""), "")

    def data(self, text: str) -> None:
        if self._open and self._open[-1] not in (None, _OUTSIDE, _NODE, _CREATED):
            self._text.append(text)

    def end(self, tag: str) -> None:
        del tag
        role, language = self._open.pop(), self._languages.pop()
        if self._text:
            self._add(role, "".join(self._text), language)
            self._text.clear()

    def close(self) -> None:
        """Do nothing: what was found stands in `found`."""

    def first(self, *names: str) -> str:
        """Return the first value of the first of these properties that has any, in the default language; else ""."""
        for name in names:
            values = self.found.get(name)
            if values:
                return next((value for value, language in values if language == "x-default"), values[0][0])
        return ""

    def all(self, name: str) -> list[str]:
        """Return all values of a property, in their order."""
        return [value for value, _ in self.found.get(name, [])]

    def _add(self, name: str | None, value: str, language: str) -> None:
        value = value.strip()
        if name is not None and value:
            self.found.setdefault(name, []).append((value, language.lower()))

    @staticmethod
    def _role(parent: str | None, tag: str) -> str | None:
        if parent is None:
            return None
        if parent == _OUTSIDE:
            return _NODE if tag == _DESCRIPTION else _OUTSIDE
        if parent == _NODE:
            return _NODE if tag == _DESCRIPTION else _CREATED if tag == _LOCATION_CREATED else _NAMES.get(tag)
        if tag in _TRANSPARENT:
            return parent
        return _NAMES_CREATED.get(tag) if parent == _CREATED else None


def _facts(properties: _Properties) -> XmpFacts:
    first = properties.first
    lat_deg, lon_deg = _position(properties, "") or _position(properties, _CREATED) or (None, None)
    taken = best_moment(_moment(first(name), first(offset) if offset else "") for name, offset in _TIMES)
    return XmpFacts(
        lat_deg=lat_deg,
        lon_deg=lon_deg,
        taken_at=taken.local if taken else None,
        offset=taken.offset if taken else None,
        gps_at_utc=_gps_at_utc(first("GPSDateTime", "GPSTimeStamp"), first("GPSDateStamp")),
        country=first(f"{_CREATED}CountryName", "Country") or None,
        country_code=first(f"{_CREATED}CountryCode", "CountryCode") or None,
        region=first(f"{_CREATED}ProvinceState", "State") or None,
        city=first(f"{_CREATED}City", "City") or None,
        caption=first("description") or None,
        keywords=tuple(dict.fromkeys(properties.all("subject"))),
    )


def _position(properties: _Properties, prefix: str) -> tuple[float, float] | None:
    lat_deg, lon_deg = (
        angle_deg(properties.first(prefix + name), properties.first(f"{prefix}{name}Ref"), letters, limit_deg)
        for name, letters, limit_deg in (("GPSLatitude", "NS", 90.0), ("GPSLongitude", "EW", 180.0))
    )
    return position_deg(lat_deg, lon_deg)


def _moment(text: str, offset_text: str) -> Moment | None:
    moment = read_moment(text)
    if moment is None or moment.offset is not None:
        return moment
    return replace(moment, offset=read_offset(offset_text))


def _gps_at_utc(text: str, day_text: str) -> datetime | None:
    """Return the moment of the GPS fix: one text by the standard, day and time apart by Apple and others."""
    moment = read_moment(text) or (read_moment(f"{day_text} {text}") if day_text and text else None)
    if moment is None:
        return None
    return moment.utc or moment.local.replace(tzinfo=UTC)
