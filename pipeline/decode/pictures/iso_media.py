"""The boxes of ISO base media files (ISO/IEC 14496-12): HEIC, AVIF, CR3, JPEG 2000, JPEG XL, QuickTime and MP4.

Pure and bounds-checked: what lies outside the bytes at hand reads as absent, nothing here raises, and however a file
nests or repeats its boxes, a bounded number of them is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

JXL_CODESTREAM, JXL_CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
JP2_CODESTREAM, JP2_CONTAINER = b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"
_JP2_END = b"\xff\xd9"
_MOST_BOXES = 10_000
"""Of one parent: real files have a few hundred (a HEIC's tiles), and most files less than twenty."""
_MOST_ITEMS = 65_536


@dataclass(frozen=True)
class IsoBox:
    """A box: its four letters, and where its content begins and ends. `is_cut`: the file ends before the box does."""

    kind: bytes
    start: int
    end: int
    is_cut: bool = False


def iso_boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[IsoBox]:
    """Yield the boxes that follow each other from `start` to `end`; what is no box ends them."""
    end = len(data) if end is None else min(end, len(data))
    for _ in range(_MOST_BOXES):
        if start + 8 > end:
            return
        size, kind = int.from_bytes(data[start : start + 4], "big"), bytes(data[start + 4 : start + 8])
        content = start + 8
        if size == 1 and start + 16 <= end:
            size, content = int.from_bytes(data[start + 8 : start + 16], "big"), start + 16
        elif size == 0:  # to the end of the file
            size = end - start
        if size < content - start:
            return
        box_end = start + size
        yield IsoBox(kind, content, min(box_end, end), box_end > end)
        start = box_end


def iso_box(data: bytes, *path: bytes, within: IsoBox | None = None) -> IsoBox | None:
    """Return the first box at a path of kinds, such as `b"moov", b"udta"`, None where there is none."""
    for kind in path:
        start, end = (0, None) if within is None else (within.start, within.end)
        if within is not None and kind != b"meta" and within.kind == b"meta":
            start = _meta_content(data, within)
        found = next((box for box in iso_boxes(data, start, end) if box.kind == kind), None)
        if found is None:
            return None
        within = found
    return within


def _meta_content(data: bytes, meta: IsoBox) -> int:
    """Return where the boxes of a `meta` box begin: after its version and flags, which QuickTime leaves out."""
    return meta.start if data[meta.start + 4 : meta.start + 8] == b"hdlr" else meta.start + 4


def children(data: bytes, parent: IsoBox) -> Iterator[IsoBox]:
    """Yield the boxes that stand in a box that holds nothing else (or is a `meta`)."""
    start = _meta_content(data, parent) if parent.kind == b"meta" else parent.start
    return iso_boxes(data, start, parent.end)


def is_jxl_cut(data: bytes) -> bool:
    """Say whether a JPEG XL file ends before its boxes do; of a bare codestream libjxl does not say why it fails."""
    return data.startswith(JXL_CODESTREAM) or any(box.is_cut for box in iso_boxes(data))


def is_jpeg2000_cut(data: bytes) -> bool:
    """Say whether a JPEG 2000's end is missing, and with it some of the picture: OpenJPEG would paint it grey."""
    box = None if data.startswith(JP2_CODESTREAM) else iso_box(data, b"jp2c")
    if box is not None and box.is_cut:
        return True
    end = len(data) if box is None else box.end
    return _JP2_END not in data[max(0, end - 64) : end]


def primary_size_px(data: bytes) -> tuple[int, int] | None:
    """Return width and height, as displayed, of a HEIC's or AVIF's primary picture, None where these bytes don't tell.

    They stand in the `ispe` box that `ipma` gives to the item that `pitm` names (ISO/IEC 23008-12); where no item can
    be told apart, the largest `ispe` is taken.
    """
    meta = iso_box(data, b"meta")
    properties = iso_box(data, b"iprp", within=meta) if meta else None
    container = iso_box(data, b"ipco", within=properties) if properties else None
    if meta is None or properties is None or container is None or container.is_cut:
        return None
    held = dict(enumerate(children(data, container), start=1))
    item = _primary_item(data, meta)
    own = [held[number] for number in _properties_of(data, properties, item) if number in held]
    width_px, height_px = next((size for box in own if (size := _extent_px(data, box))), None) or max(
        (size for box in held.values() if (size := _extent_px(data, box))), key=math.prod, default=(0, 0)
    )
    for box in own:
        if box.kind == b"clap" and box.start + 16 <= box.end:  # what of the coded picture is shown
            parts = [_number(data, box.start + 4 * i, 4) for i in range(4)]
            width_px, height_px = parts[0] // max(1, parts[1]), parts[2] // max(1, parts[3])
        elif box.kind == b"irot" and box.end > box.start and data[box.start] & 1:
            width_px, height_px = height_px, width_px
    return (width_px, height_px) if width_px and height_px else None


def _extent_px(data: bytes, box: IsoBox) -> tuple[int, int] | None:
    if box.kind != b"ispe" or box.start + 12 > box.end:
        return None
    return _number(data, box.start + 4, 4), _number(data, box.start + 8, 4)


def _number(data: bytes, at: int, size_bytes: int) -> int:
    return int.from_bytes(data[at : at + size_bytes], "big")


def _primary_item(data: bytes, meta: IsoBox) -> int | None:
    pitm = iso_box(data, b"pitm", within=meta)
    if pitm is None or pitm.start + 6 > pitm.end:
        return None
    return _number(data, pitm.start + 4, 2 if data[pitm.start] == 0 else 4)


def _properties_of(data: bytes, properties: IsoBox, item: int | None) -> list[int]:
    """Return the numbers of an item's properties in `ipco`, which count from 1."""
    for table in iso_boxes(data, properties.start, properties.end):
        if table.kind != b"ipma" or table.start + 8 > table.end:
            continue
        name_bytes = 2 if data[table.start] == 0 else 4
        number_bytes = 2 if data[table.start + 3] & 1 else 1
        at = table.start + 8
        for _ in range(min(_number(data, table.start + 4, 4), _MOST_ITEMS)):
            if at + name_bytes >= table.end:
                break
            count = data[at + name_bytes]
            numbers_at = at + name_bytes + 1
            if _number(data, at, name_bytes) == item:
                mask = (1 << (8 * number_bytes - 1)) - 1  # the first bit says that a reader must know it
                return [
                    _number(data, numbers_at + i * number_bytes, number_bytes) & mask
                    for i in range(count)
                    if numbers_at + (i + 1) * number_bytes <= table.end
                ]
            at = numbers_at + count * number_bytes
    return []
