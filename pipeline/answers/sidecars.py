"""Predictions as XMP sidecars beside the photos, which photo managers and exiftool read; photos are never written to.

What another program keeps in a sidecar stays as it is, byte for byte: our part is one `rdf:Description` of its own, put
in before `</rdf:RDF>` and sealed with its own hash, so that it is known again, and taken out whole.

Sources: XMP part 1 (ISO 16684-1); Exif in XMP (CIPA DC-010); IPTC Photo Metadata for the place names.
"""

from __future__ import annotations

import enum
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_from_bytes
from xml.parsers import expat

from pipeline import schema, storage
from pipeline.answers.export import PLACE_NAMES
from pipeline.answers.owners import Owned, OwnersSidecars
from pipeline.answers.xml_text import xml_text
from pipeline.beside import ours
from pipeline.beside.names import title_fits
from pipeline.beside.sidecar import read_sidecar
from pipeline.decode.xmp import read_xmp
from pipeline.locate.precision import PRECISIONS, PrecisionName
from pipeline.schema import PhotoError
from pipeline.sources import archives
from pipeline.storage import local_files
from pipeline.storage.store import is_plain

COLUMNS = [
    *(schema.URI, schema.ETAG, schema.LAT_DEG, schema.LON_DEG, schema.RADIUS_KM, schema.CONFIDENCE, schema.PRECISION),
    *(*PLACE_NAMES, schema.COUNTRY_PROBABILITY),
    *(schema.MODEL_ID, schema.RUN_ID),
]
"""What `Sidecars` asks of a row."""

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_EXIF = "http://ns.adobe.com/exif/1.0/"
_PHOTOSHOP = "http://ns.adobe.com/photoshop/1.0/"
_IPTC = "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/"
_ROOTS = ("adobe:ns:meta/ xmpmeta", "adobe:ns:meta/ xapmeta", f"{_RDF} RDF")
_MAX_SIDECAR_BYTES = 16 << 20

_BEFORE = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    f'<x:xmpmeta xmlns:x="adobe:ns:meta/">\n<rdf:RDF xmlns:rdf="{_RDF}">\n'
).encode()
_AFTER = b'</rdf:RDF>\n</x:xmpmeta>\n<?xpacket end="w"?>\n'
_END = b"</rdf:Description>"
_NAMED_FROM: dict[str, PrecisionName] = {schema.REGION: "region", schema.PLACE: "city"}
"""The coarsest precision, of `precision.PRECISIONS`, at which a finer name than the country's is worth writing."""
_SURE = 0.5
"""A country less probable than this is not named, nor is anything in it."""
_PLACE_PROPERTIES = dict(
    zip(
        PLACE_NAMES,
        (
            ("Iptc4xmpCore:CountryCode", f"{_IPTC} CountryCode"),
            ("photoshop:Country", f"{_PHOTOSHOP} Country"),
            ("photoshop:State", f"{_PHOTOSHOP} State"),
            ("photoshop:City", f"{_PHOTOSHOP} City"),
        ),
        strict=True,
    )
)


class Outcome(enum.StrEnum):
    """What becomes of one photo's sidecar."""

    CREATED = "new sidecar"
    ADDED = "added to another program's sidecar"
    RENEWED = "our older prediction replaced"
    UNCHANGED = "already written"
    REMOVED = "sidecar removed, it held nothing else"
    TAKEN_OUT = "our part taken out of a sidecar"
    NONE = "no sidecar"
    NOT_OURS = "nothing of ours in the sidecar"
    HAS_GPS = "a sidecar has a GPS position already"
    HAS_TAKEOUT = "Google Takeout's JSON has a position already"
    OF_ANOTHER = "the sidecar is shared, and has the prediction of another photo"
    EDITED = "ours, but edited since by another program"
    NOT_UNDERSTOOD = "the sidecar can't be understood"
    IN_ARCHIVE = "the photo is inside a tar or zip"
    GONE = "the photo is not there any more"
    PHOTO_CHANGED = "the photo has changed since its prediction"
    NO_NAME = "no sidecar can have such a name"
    IS_LINK = "a link is in the sidecar's place, which is not followed"
    ELSEWHERE = "not below --relative-to"
    CHANGED_MEANWHILE = "another program wrote the sidecar meanwhile"
    FAILED = "could not be read or written"


WRITTEN = (Outcome.CREATED, Outcome.ADDED, Outcome.RENEWED, Outcome.REMOVED, Outcome.TAKEN_OUT)
"""Outcomes that change a file; all others leave everything as it is."""
TROUBLE = (Outcome.CHANGED_MEANWHILE, Outcome.FAILED)
"""Outcomes that another try may mend."""


@dataclass(frozen=True)
class Done:
    """What became of a photo's sidecar; `detail` says more where it went wrong."""

    outcome: Outcome
    sidecar: str
    detail: str = ""


class Sidecars:
    """Writes each photo's sidecar, or takes ours away again; with `is_dry` it only says what it would do.

    Sidecars lie beside the photos, or below `folder` under the photo's whole path, less `relative_to` where given.
    """

    def __init__(self, folder: str | None, relative_to: str | None, *, undo: bool, is_dry: bool) -> None:
        if relative_to is not None and folder is None:
            raise ValueError("--relative-to shortens the names below --to FOLDER: add --to")
        self._folder = None if folder is None else storage.absolute(folder)
        self._top = None if relative_to is None else _path(storage.absolute(relative_to)).rstrip(b"/") + b"/"
        self._undo, self._is_dry = undo, is_dry
        self._owners = OwnersSidecars()

    def __call__(self, row: Mapping[str, Any]) -> Done:
        """Do what is to be done for the photo of one row with `COLUMNS`; never raises OSError, but says so."""
        uri = row[schema.URI]
        target = self._target(uri)
        if isinstance(target, Outcome):
            return Done(target, f"{uri}.xmp")
        try:
            if storage.is_link(target):
                return Done(Outcome.IS_LINK, target)
            all_beside = self._owners.of(target.removesuffix(".xmp"))
            beside = [each for each in all_beside if each.uri != target]
            if self._undo:
                return self._all_taken_away(target, beside)
            if self._folder is None and (outcome := _not_as_it_was(row)) is not None:
                return Done(outcome, target)
            for each in beside:
                if (left := _is_left_for(each, uri)) is not None:
                    return Done(left, each.uri)
            # Programs read the photo's own name before the stem that it shares: a new file would hide the owner's.
            taking = [each.uri for each in beside if each.takes_ours]
            if taking and len(beside) == len(all_beside):
                target = taking[0]
            return Done(self._written(row, target), target)
        except _NotUnderstoodError as error:
            return Done(Outcome.NOT_UNDERSTOOD, target, str(error))
        except (FileExistsError, storage.ChangedError):
            return Done(Outcome.CHANGED_MEANWHILE, target)
        except OSError as error:
            return Done(Outcome.FAILED, target, schema.printable(str(error)))

    def _target(self, uri: str) -> str | Outcome:
        """Return where the sidecar of the photo at `uri` lies, or why nowhere."""
        if any(archives.is_archive(uri[: match.start()]) for match in re.finditer("#", uri)):
            return Outcome.IN_ARCHIVE
        if self._folder is None:
            return f"{uri}.xmp" if storage.can_be_put(f"{uri}.xmp") else Outcome.NO_NAME
        path = _path(uri)
        if self._top is None:
            path = path.partition(b"://")[2] if storage.is_remote(uri) else path.lstrip(b"/")
        elif path.startswith(self._top):
            path = path.removeprefix(self._top)
        else:
            return Outcome.ELSEWHERE
        if storage.is_remote(self._folder):
            try:
                name = path.decode()
            except UnicodeDecodeError:
                name = quote_from_bytes(path)
            target = storage.join(self._folder, f"{name}.xmp")
        else:
            target = local_files.uri_of(os.path.join(_path(self._folder), path + b".xmp"))
        # A key may be a/../../b: below a local folder that is a path out of it.
        return target if is_plain(path) and storage.can_be_put(target) else Outcome.NO_NAME

    def _written(self, row: Mapping[str, Any], target: str) -> Outcome:
        name, own = (uri.rpartition("/")[2] for uri in (row[schema.URI], target))
        photo = "" if own.lower() == f"{name}.xmp".lower() else name  # the sidecar is one that others share
        old = _existing(target)
        if old is None:
            return self._put(
                Outcome.CREATED, target, _BEFORE + _description(row, "", frozenset(), photo) + b"\n" + _AFTER
            )
        scan = _Scan(old.data)
        ours = scan.sealed
        if scan.has_gps_beside(ours):
            return Outcome.HAS_GPS
        if ours is not None and scan.photo != photo:
            return Outcome.OF_ANOTHER
        rest, at = old.data, scan.end_of_rdf
        if ours is not None:
            rest, at = _without(old.data, ours), ours.start
        new = rest[:at] + _description(row, scan.about, scan.names_beside(ours), photo) + b"\n" + rest[at:]
        if new == old.data:
            return Outcome.UNCHANGED
        return self._put(Outcome.ADDED if ours is None else Outcome.RENEWED, target, new, old.etag)

    def _all_taken_away(self, target: str, beside: Sequence[Owned]) -> Done:
        """Take ours away from wherever an export may have put it; say what became of the first that had it."""
        done: list[Done] = []
        for uri in [target, *(each.uri for each in beside if each.takes_ours)]:
            is_link = storage.is_link(uri)
            done.append(Done(Outcome.IS_LINK if is_link else self._taken_away(uri), uri))
        return next((each for each in done if each.outcome in (*WRITTEN, Outcome.EDITED)), done[0])

    def _taken_away(self, target: str) -> Outcome:
        """Take ours away. No store removes a file on a condition: between reading and removing lies a moment."""
        old = _existing(target)
        if old is None:
            return Outcome.NONE
        scan = _Scan(old.data)
        if scan.sealed is None:
            return Outcome.EDITED if scan.marked else Outcome.NOT_OURS
        rest = _without(old.data, scan.sealed)
        if rest != _BEFORE + _AFTER:
            return self._put(Outcome.TAKEN_OUT, target, rest, old.etag)
        if not self._is_dry:
            storage.delete(target)
        return Outcome.REMOVED

    def _put(self, outcome: Outcome, target: str, data: bytes, version: str | None = None) -> Outcome:
        """Put `data` where `version` is, or nothing."""
        if not self._is_dry:
            if version is None:
                storage.create_bytes(target, data)
            else:
                storage.replace_bytes(target, data, version)
        return outcome


class _NotUnderstoodError(Exception):
    """The sidecar is no XMP to which anything can be added safely."""


class _Scan:
    """What matters in a sidecar, by one pass of a parser that knows no DTD, and hence no entities.

    `marked` and `sealed` are our parts: every one, and the one that is as we wrote it, if it is the only one.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._names: list[tuple[int, str]] = []
        self._depth = 0
        self._open_mark: tuple[int, int] | None = None
        self._about: str | None = None
        self._ends: list[int] = []
        self.marked: list[slice] = []
        self.photo = ""
        self._parser = expat.ParserCreate(namespace_separator=" ")
        self._parser.XmlDeclHandler = self._declared
        self._parser.StartDoctypeDeclHandler = self._doctype
        self._parser.StartElementHandler = self._started
        self._parser.EndElementHandler = self._ended
        try:
            data.decode()  # another encoding's bytes have other places
            self._parser.Parse(data, True)
        except UnicodeDecodeError as error:
            raise _NotUnderstoodError("it is not in UTF-8") from error
        except expat.ExpatError as error:
            raise _NotUnderstoodError(f"it is no XML: {error}") from error
        if len(self._ends) != 1:
            raise _NotUnderstoodError(f"it has {len(self._ends)} elements rdf:RDF")
        self.end_of_rdf = self._ends[0]
        if data[self.end_of_rdf : self.end_of_rdf + 2] != b"</":
            raise _NotUnderstoodError("its rdf:RDF is empty")
        self.about = self._about or ""
        self.sealed = self.marked[0] if len(self.marked) == 1 and ours.is_sealed(data[self.marked[0]]) else None

    def has_gps_beside(self, ours: slice | None) -> bool:
        """Whether a GPS property, of whatever depth, is outside of `ours`."""
        return any(name.startswith(f"{_EXIF} GPS") for name in self.names_beside(ours))

    def names_beside(self, ours: slice | None) -> frozenset[str]:
        """Return the names, `namespace name`, of all elements and attributes outside of `ours`."""
        return frozenset(name for at, name in self._names if ours is None or not ours.start <= at < ours.stop)

    def _declared(self, version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and encoding.lower() not in ("utf-8", "us-ascii"):
            raise _NotUnderstoodError("it is not in UTF-8")

    def _doctype(self, *what: object) -> None:
        raise _NotUnderstoodError("it has a DTD")

    def _started(self, name: str, attributes: dict[str, str]) -> None:
        if self._depth == 0 and name not in _ROOTS:
            raise _NotUnderstoodError("it is no XMP")
        self._depth += 1
        at = self._parser.CurrentByteIndex
        self._names += [(at, name), *((at, attribute) for attribute in attributes)]
        if name == f"{_RDF} Description":
            if f"{ours.NAMESPACE} Seal" in attributes and self._open_mark is None:
                self._open_mark = at, self._depth
                self.photo = attributes.get(f"{ours.NAMESPACE} Photo", "")
            elif self._about is None:
                self._about = attributes.get(f"{_RDF} about")

    def _ended(self, name: str) -> None:
        at = self._parser.CurrentByteIndex
        if self._open_mark is not None and self._open_mark[1] == self._depth:
            self.marked.append(slice(self._open_mark[0], at + len(_END)))
            self._open_mark = None
        self._depth -= 1
        if name == f"{_RDF} RDF":
            self._ends.append(at)


def _not_as_it_was(row: Mapping[str, Any]) -> Outcome | None:
    """Return what is wrong with the photo of a row, None if it is as it was when it was looked at."""
    try:
        found = storage.head(row[schema.URI])
    except FileNotFoundError:
        return Outcome.GONE
    return Outcome.PHOTO_CHANGED if row[schema.ETAG] and found.etag != row[schema.ETAG] else None


def _is_left_for(owned: Owned, photo_uri: str) -> Outcome | None:
    """Return why a photo is left alone for the sake of one of its owner's files, None if it need not be."""
    if storage.is_link(owned.uri):
        return Outcome.IS_LINK
    data = _existing(owned.uri)
    if data is None:
        return None
    if owned.kind == "takeout":
        try:
            found = read_sidecar(data.data, owned.kind)
        except PhotoError:
            return None  # no program reads it either
        is_another = owned.is_cut and found.title and not title_fits(found.title, photo_uri.rpartition("/")[2])
        return None if found.recorded.lat_deg is None or is_another else Outcome.HAS_TAKEOUT
    try:
        scan = _Scan(data.data)
    except _NotUnderstoodError as error:
        if read_xmp(data.data).lat_deg is None:
            raise _NotUnderstoodError(f"{schema.printable(owned.uri)}: {error}") from error
        return Outcome.HAS_GPS
    return Outcome.HAS_GPS if scan.has_gps_beside(scan.sealed) else None


def _existing(target: str) -> storage.Blob | None:
    try:
        size_bytes = storage.head(target).size_bytes
        if size_bytes > _MAX_SIDECAR_BYTES:
            raise _NotUnderstoodError(f"it has {size_bytes} bytes")
        return storage.read_version(target)
    except FileNotFoundError:
        return None


def _without(data: bytes, ours: slice) -> bytes:
    return data[: ours.start] + data[ours.stop :].removeprefix(b"\n")


def _description(row: Mapping[str, Any], about: str, taken: frozenset[str], photo: str) -> bytes:
    """Return our part, sealed, without the properties whose names are `taken`; it leans on no prefix from outside.

    `photo` names whose prediction it is, "" where the sidecar's own name does.
    """
    model = xml_text(row[schema.MODEL_ID])
    radius_m = max(1, math.ceil(round(row[schema.RADIUS_KM] * 1000, 1)))
    method = (
        f"predicted from the picture, not measured, by {model} {ours.METHOD}: 90 % within {radius_m / 1000:g} km, "
        f"confidence {row[schema.CONFIDENCE]:.2f}"
    )
    properties = {
        "exif:GPSVersionID": "2.3.0.0",
        "exif:GPSLatitude": _angle(row[schema.LAT_DEG], "NS"),
        "exif:GPSLongitude": _angle(row[schema.LON_DEG], "EW"),
        "exif:GPSMapDatum": "WGS-84",
        "exif:GPSHPositioningError": f"{radius_m}/1",  # a rational, in metres
        "exif:GPSProcessingMethod": method,
    }
    for column in _sure_names(row):
        tag, name = _PLACE_PROPERTIES[column]
        if name not in taken:
            properties[tag] = xml_text(row[column])
    lines = "".join(f"  <{tag}>{text}</{tag}>\n" for tag, text in properties.items())
    whose = f'graticule:ModelId="{model}" graticule:RunId="{xml_text(row[schema.RUN_ID])}"'
    whose += f' graticule:Photo="{xml_text(photo)}"' if photo else ""
    unsealed = (
        f'<rdf:Description xmlns:rdf="{_RDF}" rdf:about="{xml_text(about)}"\n  xmlns:exif="{_EXIF}"\n'
        f'  xmlns:photoshop="{_PHOTOSHOP}"\n  xmlns:Iptc4xmpCore="{_IPTC}"\n  xmlns:graticule="{ours.NAMESPACE}"\n'
        f'  {whose} graticule:Seal="">\n{lines}'
    ).encode() + _END
    return ours.sealed(unsealed)


def _sure_names(row: Mapping[str, Any]) -> list[str]:
    """Return the columns of those place names that are more likely right than not: none on the open sea."""
    if not row[schema.COUNTRY_CODE] or (row[schema.COUNTRY_PROBABILITY] or 0.0) < _SURE:
        return []
    finest = row[schema.PRECISION]
    fineness = PRECISIONS.index(finest) if finest in PRECISIONS else len(PRECISIONS)
    return [
        column
        for column in PLACE_NAMES
        if row[column] and (column not in _NAMED_FROM or fineness <= PRECISIONS.index(_NAMED_FROM[column]))
    ]


def _angle(angle_deg: float, letters: str) -> str:
    """Return XMP's `DDD,MM.mmmmmmK`, rounded to a millionth of a minute, some 2 mm."""
    degrees, micro_minutes = divmod(round(abs(angle_deg) * 60e6), 60_000_000)
    minutes, fraction = divmod(micro_minutes, 1_000_000)
    return f"{degrees},{minutes:02d}.{fraction:06d}{letters[angle_deg < 0]}"


def _path(uri: str) -> bytes:
    return uri.encode() if storage.is_remote(uri) else os.fsencode(local_files.path_of(uri))
