"""How programs name what they put beside a photo, as keys by which names of one folder find each other.

A photo and a sidecar belong together where a key of the one is a key of the other; the lower the sum of their ranks,
the closer. The name alone decides, but for what Google Takeout has cut: there the JSON's own title has the last word
(`title_fits`).

- XMP: `IMG.CR2.xmp` (darktable, digiKam) or `IMG.xmp` (Adobe, Capture One), which raw and JPEG share; `IMG_01.CR2.xmp`
  is a duplicate in darktable; `IMG.CR2.xmp` speaks for its twin `IMG.JPG`, too.
- Google Takeout: `IMG.jpg.json`, `IMG.jpg.supplemental-metadata.json` cut anywhere, `IMG.jpg(1).json` of `IMG(1).jpg`,
  names cut after 46 UTF-16 units, `IMG.HEIC.json` of the live photo's `IMG.MP4`, the original's for `IMG-edited.jpg`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Literal, NamedTuple

Kind = Literal["xmp", "takeout"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ENDINGS: dict[str, Kind] = {".xmp": "xmp", ".json": "takeout"}
"""The endings of what stands beside photos."""
RAW_ENDINGS = _words(
    ".3fr .ari .arw .bay .cap .cr2 .cr3 .crw .dcr .dcs .dng .erf .fff .iiq .k25 .kdc .mef .mos .mrw .nef .nrw .orf .pef"
    " .ptx .raf .raw .rw2 .rwl .sr2 .srf .srw .x3f"
)
IMAGE_ENDINGS = _words(".jpg .jpeg .jpe .jfif .heic .heif .hif .avif .png .webp .gif .bmp .tif .tiff .jxl .jp2 .jpx")
VIDEO_ENDINGS = _words(".mov .mp4 .m4v .mp .mv .3gp .avi .mkv .webm .mts .m2ts .mpg .mpeg .wmv .lrv .insv")
_MEDIA_ENDINGS = RAW_ENDINGS | IMAGE_ENDINGS | VIDEO_ENDINGS

FULL_NAME, STEM, VERSION, TWIN = 0, 1, 2, 3
OWN_NAME, NO_ENDING, CUT, CUT_OTHER_NUMBER, LIVE, OF_ORIGINAL = 10, 11, 12, 13, 14, 20
"""Ranks. What a photo has by its original's name has `OF_ORIGINAL` more, or twice that for `-effects-edited`."""
CUT_RANKS = (CUT, CUT_OTHER_NUMBER, CUT + OF_ORIGINAL, CUT + 2 * OF_ORIGINAL)
"""Ranks of names that were cut, so that several photos may have had this one."""

_SUFFIX = ".supplemental-metadata"
_CUT_UNITS = range(43, 48)
"""A JSON's name is cut after 46 UTF-16 units; with a number behind, and by older exports, a little before or after."""
_NO_PHOTOS = _words(
    "metadata metadatos metadaten metadati metadados metadonnées métadonnées metadane метаданные メタデータ 元数据"
    " print-subscriptions shared_album_comments user-generated-memory-titles archive_browser"
)
"""JSON files of albums and accounts."""
_NUMBERED = re.compile(r"(?s)(.+)\((\d{1,5})\)\Z")
_VERSION = re.compile(r"(?s)(.+)_\d{2,3}(\.[^.]+)\Z")
_EDITED = re.compile(r"(?s)(.+)-[^\d_.(-]{0,24}\Z")
"""Every language has its own `-edited`: letters and blanks, maybe cut."""
_NO_LETTERS = re.compile(r"[\W_]+")


class Key(NamedTuple):
    """`spelling`: what to find, in the letters' own case, which those compare who find several; keys are told apart
    without it. `rank`: how close it is, lower is closer."""

    spelling: str
    rank: int


def kind_of(name: str) -> Kind | None:
    """Return what a file is by its name, None where it is nothing that stands beside a photo."""
    return ENDINGS.get(name[name.rfind(".") :].lower()) if "." in name else None


def photo_keys(name: str, kind: Kind) -> Iterator[Key]:
    """Yield what finds the sidecars of one kind of the photo `name`, a name without its folder."""
    name = _composed(name)
    stem, ending = _split(name)
    if kind == "xmp":
        yield Key(f"x:{name}", FULL_NAME)
        yield Key(f"y:{stem}", STEM)
        if twin := _twin_of(ending):
            yield Key(f"z{twin}:{stem}", TWIN)
        return
    bare, number = _without_number(stem)
    yield from _takeout_keys(bare, number, ending, 0)
    for more in (OF_ORIGINAL, 2 * OF_ORIGINAL):
        edited = _EDITED.match(bare)
        if edited is None:
            return
        bare = edited[1]
        yield from _takeout_keys(bare, number, ending, more)


def sidecar_keys(name: str) -> Iterator[Key]:
    """Yield what finds the photos of the sidecar `name`, which `kind_of` knows."""
    kind, base = kind_of(name), _composed(name[: name.rfind(".")])
    if kind == "xmp":
        yield Key(f"x:{base}", 0)
        yield Key(f"y:{base}", 0)
        if version := _VERSION.match(base):
            yield Key(f"x:{version[1]}{version[2]}", VERSION)
        stem, ending = _split(base)
        if twin := _twin_of(ending):
            yield Key(f"z{'raw' if twin == 'image' else 'image'}:{stem}", 0)
        return
    base, number = _without_number(base)
    if base.lower() in _NO_PHOTOS:
        return
    if _units(base) in _CUT_UNITS:
        yield Key(f"c:{base}{number}", 0)
        yield Key(f"d:{base}", 0)
    dot = base.rfind(".")
    photo = base[:dot] if dot > 0 and _SUFFIX.startswith(base[dot:].lower()) else base
    stem, ending = _split(photo)
    if ending:
        yield Key(f"n:{stem}{number}{ending}", 0)
    if ending.lower() in IMAGE_ENDINGS:
        yield Key(f"l:{stem}{number}", 0)
    if ending.lower() not in _MEDIA_ENDINGS:
        yield Key(f"t:{photo}{number}", 0)


def title_fits(title: str, name: str) -> bool:
    """Whether a JSON whose photo had this `title` can be of the photo `name`, which was cut or edited."""
    stem, _ = _without_number(_split(_composed(name))[0])
    ours, theirs = (_NO_LETTERS.sub("_", each.lower()) for each in (stem, _split(_composed(title))[0]))
    return ours.startswith(theirs) or theirs.startswith(ours)


def _takeout_keys(stem: str, number: str, ending: str, more: int) -> Iterator[Key]:
    yield Key(f"n:{stem}{number}{ending}", OWN_NAME + more)
    yield Key(f"t:{stem}{number}", NO_ENDING + more)
    whole = f"{stem}{ending}"
    for units in _CUT_UNITS:
        if _units(whole) > units:
            cut = _cut(whole, units)
            yield Key(f"c:{cut}{number}", CUT + more)
            if not more:
                yield Key(f"d:{cut}", CUT_OTHER_NUMBER)
    is_other = ending.lower() in VIDEO_ENDINGS or ending.lower() in RAW_ENDINGS
    if is_other or more:
        yield Key(f"l:{stem}{number}", LIVE + more)
    if is_other and not more:
        yield Key(f"l:{stem}{number}{ending}", LIVE)  # PXL_1.MP of PXL_1.MP.jpg


def _twin_of(ending: str) -> str:
    """Return which of a pair of raw and picture a file with this ending is, "" for neither."""
    ending = ending.lower()
    return "raw" if ending in RAW_ENDINGS else "image" if ending in IMAGE_ENDINGS else ""


def _split(name: str) -> tuple[str, str]:
    """Return a name's stem and its ending with the dot, "" where it has none."""
    dot = name.rfind(".")
    return (name[:dot], name[dot:]) if dot > 0 else (name, "")


def _without_number(stem: str) -> tuple[str, str]:
    """Return what stands before a number in brackets, and that number with them, "" where there is none."""
    found = _NUMBERED.match(stem)
    return (found[1], f"({found[2]})") if found else (stem, "")


def _composed(name: str) -> str:
    """Return a name as most file systems keep it: macOS takes its accented letters apart."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _units(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def _cut(text: str, units: int) -> str:
    """Return the first UTF-16 units of a text, without half a character."""
    if text.isascii():
        return text[:units]
    return text.encode("utf-16-le", "surrogatepass")[: 2 * units].decode("utf-16-le", "ignore")
