"""Lists as texts: unpacked and turned into UTF-8 as they are read, whatever packed and wrote them."""

from __future__ import annotations

import codecs
import io
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Protocol, cast

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.sources.lists.columns import UnreadableListError
from pipeline.storage.ranged_file import RangedFile

ODD = "\uffff"
"""Stands for a byte that is no UTF-8, where a parser takes none: no text has it."""
PARQUET_MAGIC = b"PAR1"
_QUOTE = ord('"')
_HEAD_BYTES = 64 << 10
_PART_BYTES = 1 << 20
_LONGEST_LINE_BYTES = 16 << 20
_PACKINGS = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bz2"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\xfd7zXZ\0", "xz"),
)
_NO_LISTS = (
    (b"PK\x03\x04", "a zip or an Excel workbook"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook"),
    (b"ARROW1", "an Arrow file"),
    (b"ORC", "an ORC file"),
    (b"Obj\x01", "an Avro file"),
    (b"SQLite format 3", "a database"),
)
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""The longer marks before those that they begin with."""


class _Source(Protocol):
    def read(self, size: int, /) -> bytes:
        """Return the next bytes, none at the end."""


class Text(io.RawIOBase):
    """A text as UTF-8 without a byte order mark, read once from its beginning.

    Raises UnreadableListError where its packing is damaged or its bytes are no text of its encoding. Bytes that are no
    UTF-8 in one that has no mark are handed on as they are, or, once `marks_odd` is set, as `ODD`: only their rows
    can't be read.
    """

    quotes, marks_odd, has_odd = 0, False, False

    def __init__(self, entry: storage.Entry, source: _Source, encoding: str, mark_bytes: int) -> None:
        self._entry, self._source, self._skip = entry, source, mark_bytes
        self._decoder = None if encoding == "utf-8" else codecs.getincrementaldecoder(encoding)()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return about the next `size` bytes, which is more than 0; none at the end."""
        assert size > 0, "a text of any size is read in parts"
        if self._skip:
            self._packed(self._skip)
            self._skip = 0
        data = self._packed(size)
        if self._decoder is not None:
            data = self._decoded(data, size)
        elif self.marks_odd:
            data = self._marked(data, size)
        self.quotes += int(np.count_nonzero(np.frombuffer(data, np.uint8) == _QUOTE))  # bytes.count is 3 times slower
        return data

    def _decoded(self, data: bytes, size: int) -> bytes:
        assert self._decoder is not None
        try:
            while True:
                text = self._decoder.decode(data, final=not data)
                if text or not data:
                    return text.encode()
                data = self._packed(size)
        except UnicodeError as error:
            raise UnreadableListError(f"{self._entry.uri} is no readable text: {error}. Save it as UTF-8") from error

    def _marked(self, data: bytes, size: int) -> bytes:
        while not data.isascii() or self._utf8.getstate()[0]:
            text = self._utf8.decode(data, final=not data)
            if text or not data:
                try:
                    return text.encode()
                except UnicodeEncodeError:
                    self.has_odd = True
                    return re.sub("[\udc80-\udcff]", ODD, text).encode()
            data = self._packed(size)
        return data

    def _packed(self, size: int) -> bytes:
        return _read(self._entry, self._source, size)


@dataclass(frozen=True)
class Opened:
    """A text with its first 64 KB, for a look at how it is written."""

    text: Text
    head: str

    @property
    def is_from_windows(self) -> bool:
        """Whether its first line ends as Windows writes it."""
        return "\r\n" in self.head

    @property
    def line_end(self) -> bytes:
        """Return what stands between its lines; zeros are what `find -print0` writes."""
        if "\0" in self.head:
            return b"\0"
        return b"\r" if "\r" in self.head and "\n" not in self.head else b"\n"


def magic(entry: storage.Entry) -> bytes:
    """Return a file's first bytes."""
    return RangedFile(entry).read(16)


def open_text(entry: storage.Entry) -> Opened:
    """Open a text from its beginning; UnreadableListError for what is no text at all."""
    source, encoding, mark_bytes = _unpacked(entry), "utf-8", 0
    first = _read(entry, source, _HEAD_BYTES) if entry.size_bytes else b""
    for begin, what in _NO_LISTS:
        if first.startswith(begin):
            raise UnreadableListError(f"{entry.uri} is {what}, whatever its name says: save it as CSV UTF-8")
    mark = next(((mark, name) for mark, name in _MARKS if first.startswith(mark)), None)
    if mark is not None:
        encoding, mark_bytes = mark[1], len(mark[0])
    elif len(first) > 1 and (first[0] == 0) != (first[1] == 0):  # Windows' UTF-16 without its mark
        encoding = "utf-16-be" if first[0] == 0 else "utf-16-le"
    head = Text(entry, io.BytesIO(first), encoding, mark_bytes)
    try:
        shown = head.read(_HEAD_BYTES).decode("utf-8", "replace") if first else ""
    finally:
        head.close()
    return Opened(Text(entry, _unpacked(entry), encoding, mark_bytes), shown)


def _read(entry: storage.Entry, source: _Source, size: int) -> bytes:
    try:
        return source.read(size)
    except (lzma.LZMAError, EOFError) as error:
        raise UnreadableListError(f"{entry.uri} can't be unpacked: {error}") from error


def _unpacked(entry: storage.Entry) -> _Source:
    file = RangedFile(entry)
    begin = file.read(16)
    file.seek(0)
    packing = next((name for magic, name in _PACKINGS if begin.startswith(magic)), None)
    if packing == "xz":
        return lzma.LZMAFile(cast("IO[bytes]", file))
    return file if packing is None else pa.CompressedInputStream(pa.PythonFile(file, "r"), packing)


def split_lines(entry: storage.Entry, opened: Opened) -> Iterator[list[bytes]]:
    """Yield a text's lines without their ends (`\\n`, `\\r\\n`, an old Mac's `\\r` or zeros), many at a time.

    Raises UnreadableListError for a line of more than 16 MB: all of it must be held.
    """
    end, carried = opened.line_end, b""
    while data := opened.text.read(_PART_BYTES):
        lines = (carried + data).split(end)
        carried = lines.pop()
        if len(carried) > _LONGEST_LINE_BYTES:
            raise UnreadableListError(f"{entry.uri} has a line of more than {_LONGEST_LINE_BYTES >> 20} MB")
        if lines:
            yield [line.removesuffix(b"\r") for line in lines] if opened.is_from_windows else lines
    if carried:
        yield [carried.removesuffix(b"\r") if opened.is_from_windows else carried]
