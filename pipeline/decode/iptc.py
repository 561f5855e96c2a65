"""What an IPTC-IIM block says of a photo: named place, caption, keywords and time, as newsrooms write them.

Sources: IPTC-NAA Information Interchange Model 4.2; Adobe's Photoshop file formats (image resources); the Metadata
Working Group's guidelines 2.0 for which of IIM and XMP is to be believed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipeline.decode.taken import read_moment

_RESOURCE = b"8BIM"
_IIM, _IIM_DIGEST = 0x0404, 0x0425
_MARK = 0x1C
_MAX_DATASETS = 20_000
_UTF8 = b"\x1b%G"
_CHARACTER_SET, _KEYWORD, _DATE, _TIME = (1, 90), (2, 25), (2, 55), (2, 60)
_CITY, _REGION, _COUNTRY_CODE, _COUNTRY, _CAPTION = (2, 90), (2, 95), (2, 100), (2, 101), (2, 120)


@dataclass(frozen=True)
class IptcFacts:
    """What IPTC-IIM says of its photo, as written; None where it says nothing.

    `taken_at`: local time, naive; `offset`: how far its clock was east of UTC. `is_newer_than_xmp`: whether the block
    was changed after a program had written it and XMP alike, so that it is to be believed before XMP.
    """

    country: str | None = None
    country_code: str | None = None
    region: str | None = None
    city: str | None = None
    caption: str | None = None
    keywords: tuple[str, ...] = ()
    taken_at: datetime | None = None
    offset: timedelta | None = None
    is_newer_than_xmp: bool = False


def read_iptc(photoshop: bytes = b"", iim: bytes = b"") -> IptcFacts:
    """Return the facts in Photoshop's image resources, or in an IIM block that stands by itself; never raises.

    Text is UTF-8 where the block says so or where it can be; else it is taken for Windows' Latin 1.
    """
    resources = dict(reversed(list(_resources(photoshop))))  # of each the first
    digest = resources.get(_IIM_DIGEST)
    iim = resources.get(_IIM) or iim
    found: dict[tuple[int, int], list[bytes]] = {}
    for name, value in _datasets(iim):
        found.setdefault(name, []).append(value)
    if not found:
        return IptcFacts()
    is_utf8 = found.get(_CHARACTER_SET, [b""])[0].startswith(_UTF8)

    def first(name: tuple[int, int]) -> str:
        return next((text for value in found.get(name, []) if (text := _text(value, is_utf8))), "")

    moment = read_moment(f"{first(_DATE)} {first(_TIME)}")
    return IptcFacts(
        country=first(_COUNTRY) or None,
        country_code=first(_COUNTRY_CODE) or None,
        region=first(_REGION) or None,
        city=first(_CITY) or None,
        caption=first(_CAPTION) or None,
        keywords=tuple(dict.fromkeys(text for value in found.get(_KEYWORD, []) if (text := _text(value, is_utf8)))),
        taken_at=moment.local if moment else None,
        offset=moment.offset if moment else None,
        is_newer_than_xmp=digest is not None
        and any(digest)
        and digest != hashlib.md5(iim, usedforsecurity=False).digest(),
    )


def _text(value: bytes, is_utf8: bool) -> str:
    try:
        text = value.decode("utf-8", "replace" if is_utf8 else "strict")
    except UnicodeDecodeError:
        text = value.decode("cp1252", "replace")
    return text.strip("\0 \t\r\n")


def _resources(photoshop: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while photoshop[at : at + 4] == _RESOURCE:
        number = int.from_bytes(photoshop[at + 4 : at + 6], "big")
        name_bytes = photoshop[at + 6] + 1 if at + 6 < len(photoshop) else 1
        at += 6 + name_bytes + name_bytes % 2
        size = int.from_bytes(photoshop[at : at + 4], "big")
        yield number, photoshop[at + 4 : at + 4 + size]
        at += 4 + size + size % 2


def _datasets(iim: bytes) -> Iterator[tuple[tuple[int, int], bytes]]:
    """Yield record and number of each dataset with its value, up to the first that is broken."""
    at = max(iim.find(_MARK), 0)
    for _ in range(_MAX_DATASETS):
        if at + 5 > len(iim) or iim[at] != _MARK:
            return
        name, size = (iim[at + 1], iim[at + 2]), int.from_bytes(iim[at + 3 : at + 5], "big")
        at += 5
        if size & 0x8000:  # then it is the length of the length
            length_bytes = size & 0x7FFF
            if length_bytes > 8:
                return
            size = int.from_bytes(iim[at : at + length_bytes], "big")
            at += length_bytes
        if at + size > len(iim):
            return
        yield name, iim[at : at + size]
        at += size
