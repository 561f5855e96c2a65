"""Camera raw files: which ones they are, the JPEG previews inside, and a half-size picture where no preview will do.

The largest preview is what a viewer shows and what is looked at here: it costs a JPEG's time, and the camera's own
colours come with it. A file's directories are read first, by our own reader, as LibRaw refuses files whose sensor it
does not know; LibRaw is asked for previews that only maker notes tell of, and to develop a picture where there is none
that is large enough. It is loaded when it is first needed, and only here. Position, time and orientation come from the
file's own directories, what is missing there from its preview's EXIF.

Sources: TIFF 6.0; TIFF/EP; DNG 1.7; for CR3, RAF and RW2, which have no public specification, the descriptions of
their structure in ExifTool's tag names and in LibRaw's documentation.
"""

from __future__ import annotations

import dataclasses
import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from pipeline.decode.carried import Carried, carried
from pipeline.decode.codec_errors import codec_call
from pipeline.decode.exif import TiffDirectory, read_exif, tiff_directories
from pipeline.decode.jpeg import JpegHeader, read_jpeg_header
from pipeline.decode.pictures.iso_media import IsoBox, children, iso_box, iso_boxes
from pipeline.schema import ErrorCode, PhotoError

_Loaded = TypeVar("_Loaded")
_Pixels = np.ndarray[Any, np.dtype[np.uint8]]

_MAGICS = (
    (b"FUJIFILMCCD-RAW", "raf"),
    (b"IIRO", "orf"),
    (b"IIRS", "orf"),
    (b"MMOR", "orf"),
    (b"IIU\0", "rw2"),
    (b"FOVb", "x3f"),
    (b"\0MRM", "mrw"),
)
_TIFF_MAGICS = (b"II\x2a\0", b"MM\0\x2a")
_CIFF = b"HEAPCCDR"
_MAKERS = {
    "NIKON": "nef",
    "SONY": "arw",
    "PENTAX": "pef",
    "RICOH": "pef",
    "ASAHI": "pef",
    "SAMSUNG": "srw",
    "CANON": "cr2",
    "HASSELBLAD": "3fr",
    "PHASE ONE": "iiq",
    "LEAF": "mos",
    "MAMIYA": "mef",
    "EPSON": "erf",
    "SEIKO EPSON": "erf",
    "KODAK": "kdc",
    "EASTMAN KODAK": "kdc",
}
_OTHER = "raw"
RAW_FORMATS = frozenset({name for _, name in _MAGICS} | set(_MAKERS.values()) | {"cr3", "crw", "dng", "nrw", _OTHER})
"""The names of what is camera raw; `raw` where neither its first bytes nor its maker tell which kind."""

_SUBFILE, _WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC, _MAKE, _MODEL = 254, 256, 257, 259, 262, 271, 272
_ORIENTATION, _PREVIEW_PLACE, _PREVIEW_BYTES, _DNG_VERSION, _DNG_CROP = 274, 513, 514, 50706, 50720
_PIECES, _SUB_IFDS = ((273, 279), (324, 325)), 330
_RW2_PREVIEW, _RW2_BORDERS = 0x2E, (5, 4, 7, 6)  # left, top, right, bottom
_SENSOR_PHOTOMETRICS = {32803, 34892}  # a mosaic of colours, and one that is linear and complete
_SENSOR_COMPRESSIONS = {32767, 32769, 32770, 34713, 65000, 65535}  # Sony, packed, Samsung, Nikon, Kodak, Pentax
_MAIN_PICTURE = {None, 0}
_JPEG_COMPRESSIONS = {6, 7}
_MOST_DIRECTORIES, _MOST_OF_FIRST, _MOST_PIECES, _MOST_PREVIEWS = 64, 16, 1 << 16, 32
_LINKS, _MOST_ENTRIES = (0x8769, 0x8825), 1000
_TYPE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_RAF_PREVIEW_AT, _RAF_TABLE_AT = 84, 92
_RAF_CROPPED, _RAF_FULL = 0x111, 0x100
_CR3_TAGS = bytes.fromhex("85c0b687820f11e08111f4ce462b6a48")
_CR3_PREVIEW = bytes.fromhex("eaf42b5e1c984b88b9fbb7dc406e4d16")
_JPEG = b"\xff\xd8\xff"
_SAME_SIZE = 0.06
"""A preview so near to the sensor's size is the whole picture, and has the size that the camera displays."""
_BAYER_BYTES, _ELSE_BYTES = 8, 24
"""For each pixel of the sensor: its word, its share of four colours and of the picture; and where it can't shrink."""
_COLOURS = 3
_MOST_EMPTY = 0.1
_ORIENTATION_OF_FLIP = {0: 1, 3: 3, 5: 8, 6: 6}
_NO_PREVIEW = "camera raw file without an embedded preview"


def raw_format(data: bytes) -> str | None:
    """Return which kind of camera raw a file is, by its first bytes or its TIFF directories; None for all others."""
    for magic, name in _MAGICS:
        if data.startswith(magic):
            return name
    if data[6:14] == _CIFF:
        return "crw"
    if data[4:12] == b"ftypcrx ":
        return "cr3"
    return _tiff_raw_format(data) if data.startswith(_TIFF_MAGICS) else None


def _tiff_raw_format(data: bytes) -> str | None:
    """A TIFF is camera raw when it holds a sensor's data, or its first picture is a thumbnail beside a JPEG preview."""
    if data[8:10] == b"CR":
        return "cr2"
    if data[8:12] in (b"IIII", b"MMMM"):
        return "iiq"
    directories = tiff_directories(data, _MOST_OF_FIRST, is_chain_followed=False)
    if not directories:
        return None
    first = directories[0]
    is_thumbnail = bool((first.number(_SUBFILE) or 0) & 1)
    has_sensor = any(
        d.number(_PHOTOMETRIC) in _SENSOR_PHOTOMETRICS or d.number(_COMPRESSION) in _SENSOR_COMPRESSIONS
        for d in directories
    )
    has_preview = any(d.number(_PREVIEW_PLACE) or d.number(_COMPRESSION) in _JPEG_COMPRESSIONS for d in directories)
    is_parted = len(directories) > 1 or _is_cut_off(first, data)
    if first.count(_DNG_VERSION):
        return "dng" if has_sensor or is_thumbnail else None
    if not (has_sensor or (is_thumbnail and is_parted and (has_preview or len(directories) == 1))):
        return None
    make = first.text(_MAKE).upper()
    name = next((name for maker, name in _MAKERS.items() if make.startswith(maker)), _OTHER)
    return "nrw" if name == "nef" and "COOLPIX" in first.text(_MODEL).upper() else name


def _is_cut_off(first: TiffDirectory, data: bytes) -> bool:
    """Whether the file ends before its sub-directories do."""
    return any(place >= len(data) for place in first.numbers(_SUB_IFDS, _MOST_OF_FIRST))


@dataclass(frozen=True, eq=False)
class _Preview:
    data: bytes
    header: JpegHeader

    @property
    def size_px(self) -> tuple[int, int]:
        return self.header.width_px, self.header.height_px


@dataclass
class _Found:
    """What a file's own structure tells: where previews may lie, as (place, length), and the rest."""

    places: list[tuple[int, int]]
    size_px: tuple[int, int] | None = None
    blocks: Carried = dataclasses.field(default_factory=Carried)
    orientation: int | None = None
    is_cut: bool = False


class RawFile:
    """A camera raw file: its facts, and the picture of it to look at.

    `size_px`: width and height as stored. `blocks`: the file's own metadata, and after them its preview's. `exif`: what
    the file's directories say, and for what they don't, its preview's EXIF.

    Raises `PhotoError` (unsupported_format, truncated) where neither its structure nor LibRaw tells anything of it.
    """

    def __init__(self, format_name: str, data: bytes) -> None:
        self._data = data
        match format_name:
            case "raf":
                found = _read_raf(data)
            case "cr3":
                found = _read_cr3(data)
            case "crw" | "x3f" | "mrw":
                found = _Found([])
            case _:
                found = _read_tiff(data)
        self._is_cut = found.is_cut
        self._previews = sorted(_previews(data, found.places), key=_area_px, reverse=True)
        self._is_libraw_asked = False
        if not self._previews and found.size_px is None:
            self._previews = self._by_libraw()
        largest = self._previews[0] if self._previews else None
        self.blocks = found.blocks if largest is None else _both(found.blocks, largest.header.blocks)
        self.exif = read_exif(*self.blocks.exif)
        orientation = found.orientation
        if orientation is None and largest is not None:
            orientation = read_exif(*largest.header.blocks.exif).orientation
        self.exif = dataclasses.replace(self.exif, orientation=orientation or 1)
        self.size_px = _displayed_px(found.size_px, largest) or self._developed_px()

    def turn_of(self, shown_px: tuple[int, int]) -> int:
        """Return the orientation (1 to 8) to apply to a preview of that size: 1 where the camera turned it already."""
        is_turned = self.exif.orientation >= 5 and _is_upright(shown_px) != _is_upright(self.size_px)
        return 1 if is_turned and shown_px[0] != shown_px[1] else self.exif.orientation

    def look(
        self, load_jpeg: Callable[[bytes], _Loaded], is_enough: Callable[[int, int], bool], max_memory_bytes: int
    ) -> _Loaded | _Pixels:
        """Return the largest preview that `load_jpeg` takes, or else pixels developed at half size, RGB or grey.

        Args:
            load_jpeg: decodes a JPEG, or raises `PhotoError`; then the next one is taken.
            is_enough: whether a preview of that width and height is as large as the model wants.
            max_memory_bytes: what developing may hold at once.

        Raises:
            PhotoError: truncated, corrupt, too_large, or unsupported_format where there is neither.
        """
        refusals: list[PhotoError] = []

        def first_of(previews: list[_Preview]) -> Iterator[_Loaded]:
            for preview in previews:
                try:
                    yield load_jpeg(preview.data)
                except PhotoError as error:
                    refusals.append(error)

        large = [preview for preview in self._previews if is_enough(*preview.size_px)]
        for loaded in first_of(large):
            return loaded
        known = list(self._previews)
        asked = self._by_libraw()
        for loaded in first_of([preview for preview in asked if is_enough(*preview.size_px)]):
            return loaded
        try:
            return self._developed(max_memory_bytes)
        except PhotoError as error:
            refusals.append(error)
        small = [preview for preview in (*known, *asked) if not is_enough(*preview.size_px)]
        for loaded in first_of(sorted(small, key=_area_px, reverse=True)):
            return loaded
        raise refusals[0]

    def _by_libraw(self) -> list[_Preview]:
        """Return the preview that LibRaw finds, which may lie where only maker notes tell; empty where it has none."""
        if self._is_libraw_asked:
            return []
        self._is_libraw_asked = True
        import rawpy

        try:
            with codec_call("camera raw", self._data), rawpy.imread(io.BytesIO(self._data)) as raw:
                thumbnail = raw.extract_thumb()
            is_jpeg = thumbnail.format == rawpy.ThumbFormat.JPEG
            return list(_previews(bytes(thumbnail.data), [(0, len(thumbnail.data))])) if is_jpeg else []
        except PhotoError:  # it has none, or is unknown to LibRaw: developing it says better what is wrong
            return []

    def _developed_px(self) -> tuple[int, int]:
        import rawpy

        with self._libraw_call(), rawpy.imread(io.BytesIO(self._data)) as raw:
            sizes = raw.sizes
        self.exif = dataclasses.replace(self.exif, orientation=_ORIENTATION_OF_FLIP.get(sizes.flip, 1))
        return sizes.width, sizes.height

    def _developed(self, max_memory_bytes: int) -> _Pixels:
        """Return the sensor's picture as stored: a pixel for each square of a mosaic; grey (HW) of a monochrome one."""
        import rawpy

        if self._is_cut:
            raise PhotoError(ErrorCode.TRUNCATED, "camera raw file that ends before the sensor's data do")
        with self._libraw_call(), rawpy.imread(io.BytesIO(self._data)) as raw:
            is_mosaic = raw.raw_type == rawpy.RawType.Flat and raw.raw_pattern is not None
            pixels = raw.sizes.raw_width * raw.sizes.raw_height
            needed_bytes = pixels * (_BAYER_BYTES if is_mosaic else _ELSE_BYTES)
            if needed_bytes > max_memory_bytes:
                need = f"developing needs {needed_bytes >> 20} MiB, more than the {max_memory_bytes >> 20} MiB allowed"
                raise PhotoError(ErrorCode.TOO_LARGE, f"{_NO_PREVIEW}, and {need}")
            if _empty_rows_share(raw.raw_image_visible) > _MOST_EMPTY:  # LibRaw says no word of it
                message = "camera raw file whose sensor's data are damaged, or end too early"
                raise PhotoError(ErrorCode.TRUNCATED, message)
            developed: _Pixels = raw.postprocess(half_size=True, use_camera_wb=True, user_flip=0, output_bps=8)
        return developed[..., 0] if developed.shape[2] != _COLOURS else developed  # of a monochrome sensor

    def _libraw_call(self) -> _LibrawCall:
        return _LibrawCall(self._data, self._is_cut)


def _empty_rows_share(sensor: np.ndarray[Any, Any]) -> float:
    """Return how many of a sensor's rows, 0 to 1, hold zeros alone and were not decoded: sensors have noise."""
    return float(1 - sensor.reshape(sensor.shape[0], -1).any(axis=1).mean())


class _LibrawCall:
    """What LibRaw can't do is no fault of the file, which its camera wrote: it is `unsupported_format`."""

    def __init__(self, data: bytes, is_cut: bool) -> None:
        self._call = codec_call("camera raw", data)
        self._is_cut = is_cut

    def __enter__(self) -> None:
        self._call.__enter__()

    def __exit__(self, *raised: Any) -> None:
        try:
            self._call.__exit__(*raised)
        except PhotoError as error:
            if raised[0] is PhotoError or error.code == ErrorCode.TOO_LARGE:  # ours, or what no format can help
                raise
            if self._is_cut:
                raise PhotoError(ErrorCode.TRUNCATED, "camera raw file that ends before its pictures do") from error
            raise PhotoError(
                ErrorCode.UNSUPPORTED_FORMAT, f"{_NO_PREVIEW}, which can't be developed either ({error.message})"
            ) from error


def _area_px(preview: _Preview) -> int:
    return preview.header.width_px * preview.header.height_px


def _is_upright(size_px: tuple[int, int]) -> bool:
    return size_px[1] > size_px[0]


def _previews(data: bytes, places: list[tuple[int, int]]) -> Iterator[_Preview]:
    for at, size_bytes in dict.fromkeys(places[:_MOST_PREVIEWS]):
        if at >= 0 and data[at : at + 3] == _JPEG:
            jpeg = data[at : at + size_bytes]
            try:
                yield _Preview(jpeg, read_jpeg_header(jpeg))
            except PhotoError:  # the sensor's data are a JPEG of a kind that shows nothing, or it is damaged
                continue


def _both(own: Carried, preview: Carried) -> Carried:
    """Return the file's own metadata, and behind it its preview's: each is one camera's word on one photo."""
    return Carried(
        own.exif + preview.exif, own.xmp + preview.xmp, own.photoshop or preview.photoshop, own.iim or preview.iim
    )


def _displayed_px(sensor_px: tuple[int, int] | None, largest: _Preview | None) -> tuple[int, int] | None:
    """Return the size before it is turned: a full-size preview's, as sensors have a margin, or else the sensor's."""
    if largest is None or sensor_px is None:
        return sensor_px if largest is None else largest.size_px
    if all(abs(p - s) <= _SAME_SIZE * s for p, s in zip(largest.size_px, sensor_px, strict=True)):
        return largest.size_px
    return sensor_px


def _read_tiff(data: bytes) -> _Found:
    directories = tiff_directories(data, _MOST_DIRECTORIES)
    places: list[tuple[int, int]] = []
    extent_bytes = 0
    for directory in directories:
        own, extent = _places_of(directory)
        places += own
        extent_bytes = max(extent_bytes, extent)
    is_cut = extent_bytes > len(data) or not directories or _is_cut_off(directories[0], data)
    return _Found(places, _sensor_px(directories), carried("tiff", data, {}), _orientation(directories), is_cut)


def _orientation(directories: list[TiffDirectory]) -> int | None:
    """Return how the camera was held: the first directory says it of all pictures, or else the sensor's own does."""
    return next((o for d in directories if (o := d.number(_ORIENTATION)) is not None and 1 <= o <= 8), None)


def _places_of(directory: TiffDirectory) -> tuple[list[tuple[int, int]], int]:
    """Return where a directory's picture may be a JPEG, and how far its data reach."""
    places: list[tuple[int, int]] = []
    extent_bytes = 0
    at, size_bytes = directory.number(_PREVIEW_PLACE), directory.number(_PREVIEW_BYTES)
    if at and size_bytes:
        places.append((at, size_bytes))
    inline = directory.value_bytes(_RW2_PREVIEW)
    if inline is not None:
        places.append(inline)
    for places_tag, sizes_tag in _PIECES:
        starts, sizes = (directory.numbers(tag, _MOST_PIECES) for tag in (places_tag, sizes_tag))
        pieces = [(int(s), int(n)) for s, n in zip(starts, sizes, strict=False) if s == s and n == n]
        extent_bytes = max([extent_bytes, *(start + size for start, size in pieces)])
        if len(pieces) == 1:
            places.append(pieces[0])
    return places, max([extent_bytes, *(start + size for start, size in places)])


def _sensor_px(directories: list[TiffDirectory]) -> tuple[int, int] | None:
    """Return the size of the sensor's picture, or where no directory is the sensor's, of the largest that is whole."""
    sizes: list[tuple[bool, int, tuple[int, int]]] = []
    for directory in directories:
        width_px, height_px = directory.number(_WIDTH), directory.number(_HEIGHT)
        left, top, right, bottom = (directory.number(tag) for tag in _RW2_BORDERS)
        is_sensor = directory.number(_PHOTOMETRIC) in _SENSOR_PHOTOMETRICS
        if None not in (left, top, right, bottom) and directory.count(_RW2_PREVIEW):
            width_px, height_px, is_sensor = (right or 0) - (left or 0), (bottom or 0) - (top or 0), True
        crop = directory.numbers(_DNG_CROP, 2)
        if len(crop) == 2 and all(1 <= side < 1 << 31 for side in crop):
            width_px, height_px = int(crop[0]), int(crop[1])
        if directory.number(_SUBFILE) in _MAIN_PICTURE and width_px and height_px and min(width_px, height_px) > 0:
            sizes.append((is_sensor, width_px * height_px, (width_px, height_px)))
    return max(sizes)[2] if sizes else None


def _read_raf(data: bytes) -> _Found:
    at, size_bytes = _numbers_be(data, _RAF_PREVIEW_AT, 2)
    table_at, _ = _numbers_be(data, _RAF_TABLE_AT, 2)
    tags: dict[int, tuple[int, int]] = {}
    (count,) = _numbers_be(data, table_at, 1)
    entry_at = table_at + 4
    for _ in range(min(count, 256) if table_at else 0):
        tag, length = int.from_bytes(data[entry_at : entry_at + 2]), int.from_bytes(data[entry_at + 2 : entry_at + 4])
        if length == 4:
            height_px = int.from_bytes(data[entry_at + 4 : entry_at + 6])
            tags[tag] = (int.from_bytes(data[entry_at + 6 : entry_at + 8]), height_px)
        entry_at += 4 + length
    size_px = tags.get(_RAF_CROPPED) or tags.get(_RAF_FULL)
    is_cut = len(data) < _RAF_TABLE_AT or at + size_bytes > len(data)
    return _Found([(at, size_bytes)], size_px if size_px and min(size_px) > 0 else None, is_cut=is_cut)


def _numbers_be(data: bytes, at: int, count: int) -> tuple[int, ...]:
    return tuple(int.from_bytes(data[at + 4 * i : at + 4 * i + 4], "big") for i in range(count))


def _read_cr3(data: bytes) -> _Found:
    """Canon keeps TIFFs of the camera, EXIF and GPS directories in boxes, and JPEGs in boxes and as the first track."""
    blocks: dict[bytes, bytes] = {}
    places: list[tuple[int, int]] = []
    is_cut = False
    for box in iso_boxes(data):
        is_cut |= box.is_cut
        if box.kind == b"uuid" and data[box.start : box.start + 16] == _CR3_PREVIEW:
            inner = (b for b in iso_boxes(data, box.start + 24, box.end) if b.kind == b"PRVW")
            places += [place for b in inner if (place := _jpeg_in(data, b))]
        if box.kind != b"moov":
            continue
        for part in children(data, box):
            if part.kind == b"uuid" and data[part.start : part.start + 16] == _CR3_TAGS:
                for tag in iso_boxes(data, part.start + 16, part.end):
                    if tag.kind.startswith(b"CMT"):
                        blocks.setdefault(tag.kind, data[tag.start : tag.end])
                    elif tag.kind == b"THMB" and (place := _jpeg_in(data, tag)):
                        places.append(place)
            elif part.kind == b"trak" and (place := _first_sample(data, part)):
                places.append(place)
                is_cut |= sum(place) > len(data)
    first = tiff_directories(blocks.get(b"CMT1", b""), 1)
    camera = _one_tiff(*(blocks.get(kind, b"") for kind in (b"CMT1", b"CMT2", b"CMT4")))
    own = Carried((camera,), carried("jp2", data, {}).xmp)
    return _Found(places, _sensor_px(first), own, _orientation(first), is_cut)


def _one_tiff(main: bytes, camera: bytes, gps: bytes) -> bytes:
    """Return one TIFF out of three, whose directories of the camera and of the position are the other two's first."""
    order: Literal["little", "big"] = "little" if main[:2] == b"II" else "big"
    entries = [entry for entry in _entries(main, order, 0) if _tag(entry, order) not in _LINKS]
    whole = main
    for link, block in zip(_LINKS, (camera, gps), strict=True):
        at = len(whole)
        own = _entries(block, order, at) if block[:4] == main[:4] else []
        if own:
            whole += block + len(own).to_bytes(2, order) + b"".join(own) + bytes(4)
            place = at + len(block)
            entries.append(struct.pack("<HHII" if order == "little" else ">HHII", link, 4, 1, place))
    return whole[:4] + len(whole).to_bytes(4, order) + whole[8:] + len(entries).to_bytes(2, order) + b"".join(entries)


def _tag(entry: bytes, order: Literal["little", "big"]) -> int:
    return int.from_bytes(entry[:2], order)


def _entries(block: bytes, order: Literal["little", "big"], shift: int) -> list[bytes]:
    """Return a TIFF's first directory, entry by entry, with places that count from `shift` bytes before it."""
    at = int.from_bytes(block[4:8], order)
    count = min(int.from_bytes(block[at : at + 2], order), _MOST_ENTRIES)
    moved: list[bytes] = []
    for start in range(at + 2, min(at + 2 + 12 * count, len(block) - 11), 12):
        entry = block[start : start + 12]
        kind, values = int.from_bytes(entry[2:4], order), int.from_bytes(entry[4:8], order)
        place = int.from_bytes(entry[8:12], order) + shift
        is_apart = values * _TYPE_BYTES.get(kind, 1) > 4 and place < 1 << 32
        moved.append(entry[:8] + place.to_bytes(4, order) if is_apart else entry)
    return moved


def _jpeg_in(data: bytes, box: IsoBox) -> tuple[int, int] | None:
    at = data.find(_JPEG, box.start, min(box.start + 64, box.end))
    return None if at < 0 else (at, box.end - at)


def _first_sample(data: bytes, track: IsoBox) -> tuple[int, int] | None:
    table = iso_box(data, b"mdia", b"minf", b"stbl", within=track)
    sizes = iso_box(data, b"stsz", within=table) if table else None
    if table is None or sizes is None:
        return None
    same_bytes, count, first_bytes = _numbers_be(data, sizes.start + 4, 3)
    size_bytes = same_bytes or (first_bytes if count else 0)
    for kind, width in ((b"co64", 8), (b"stco", 4)):
        place = iso_box(data, kind, within=table)
        if place is not None and size_bytes:
            return int.from_bytes(data[place.start + 8 : place.start + 8 + width], "big"), size_bytes
    return None
