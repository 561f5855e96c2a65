"""PNG files without what is no part of the picture, so that none of it can make a healthy one fail.

libpng and every browser pass over ancillary chunks that are damaged, too large or unknown; Pillow gives up the picture
for them. So its reader is given only the chunks that we use. Source: W3C PNG, third edition.
"""

from __future__ import annotations

import bisect
import io
import itertools
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PICTURE = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"}
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_OF_USE = {b"iCCP", b"eXIf", *_TEXTS}
_MOST_TEXTS_BYTES = 32 << 20
_MOST_CHUNKS = 1 << 20
_PIECE_BYTES = 64 << 10


class PngView(io.RawIOBase):
    """A PNG file without its superfluous chunks, to read from; no byte of it is copied beforehand."""

    def __init__(self, data: bytes, most_unfolded_bytes: int) -> None:
        """Look over the chunks; one that unfolds to more than `most_unfolded_bytes` is passed over."""
        self._data = memoryview(data)
        self._spans = _kept(self._data, most_unfolded_bytes)
        self._starts = [0, *itertools.accumulate(end - start for start, end in self._spans)]
        self._at = 0

    def readable(self) -> bool:
        """Whether it can be read: yes."""
        return True

    def seekable(self) -> bool:
        """Whether it can be read from anywhere: yes."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place."""
        self._at = max(0, offset + {0: 0, 1: self._at, 2: self._starts[-1]}[whence])
        return self._at

    def tell(self) -> int:
        """Return the place."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Return the next `size` bytes, fewer at the end; all that is left if negative."""
        left = self._starts[-1] - self._at if size < 0 else size
        pieces = []
        while left > 0 and self._at < self._starts[-1]:
            index = bisect.bisect_right(self._starts, self._at) - 1
            start, end = self._spans[index]
            start += self._at - self._starts[index]
            piece = self._data[start : min(end, start + left)]
            pieces.append(piece)
            self._at += len(piece)
            left -= len(piece)
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)


def _kept(data: memoryview, most_unfolded_bytes: int) -> list[tuple[int, int]]:
    """Return where the parts lie that are kept, in order; neighbours are one part."""
    spans: list[tuple[int, int]] = [(0, len(SIGNATURE))]
    at, has_profile, texts_bytes = len(SIGNATURE), False, 0
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(data):
            break
        length_bytes, kind = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8])
        end = min(at + 12 + length_bytes, len(data))
        is_kept = not kind[0] & 32 or kind in _PICTURE
        is_too_much = (kind == b"iCCP" and has_profile) or (kind in _TEXTS and texts_bytes > _MOST_TEXTS_BYTES)
        if not is_kept and kind in _OF_USE and not is_too_much and _is_sound(data[at:end], length_bytes):
            unfolded_bytes = _unfolded_bytes(kind, bytes(data[at + 8 : end - 4]), most_unfolded_bytes)
            is_kept = unfolded_bytes <= most_unfolded_bytes
            if kind in _TEXTS:
                texts_bytes += unfolded_bytes  # of what is passed over, too: it took its time
                is_kept = is_kept and texts_bytes <= _MOST_TEXTS_BYTES
            elif kind == b"iCCP":
                has_profile = True
        if kind == b"tRNS":
            is_kept = _is_sound(data[at:end], length_bytes)
        if is_kept:
            if spans[-1][1] == at:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((at, end))
        at += 12 + length_bytes
        if kind == b"IEND":
            break
    return spans


def _is_sound(chunk: memoryview, length_bytes: int) -> bool:
    """Whether a chunk is whole and its checksum is right."""
    if len(chunk) < 12 + length_bytes:
        return False
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def _unfolded_bytes(kind: bytes, content: bytes, most_bytes: int) -> int:
    """Return how long a chunk's content is once unfolded, or more than `most_bytes` where it is more, or damaged."""
    packed = content
    if kind in (b"zTXt", b"iCCP"):
        packed = content.partition(b"\0")[2][1:]
    elif kind == b"iTXt":
        _, _, rest = content.partition(b"\0")
        if rest[:1] != b"\1":
            return len(content)
        packed = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    else:
        return len(content)
    stream, unfolded_bytes = zlib.decompressobj(), 0
    try:
        while not stream.eof and unfolded_bytes <= most_bytes:
            piece = stream.decompress(packed, _PIECE_BYTES)
            unfolded_bytes += len(piece)
            packed = stream.unconsumed_tail
            if not piece and not packed:
                break
    except zlib.error:
        return most_bytes + 1
    return unfolded_bytes
