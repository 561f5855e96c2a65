"""What third-party image codecs raise, turned into one of our error codes: the one place with a broad `except`."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.decode.exif import tiff_extent_bytes
from pipeline.decode.pictures.iso_media import is_jpeg2000_cut, is_jxl_cut
from pipeline.schema import ErrorCode, PhotoError

_SAYS_TRUNCATED = re.compile(r"truncat|premature end|unexpected end|end of (file|data)|only got \d+|EOF", re.IGNORECASE)
_SAYS_TOO_LARGE = re.compile(r"data too large|too much memory|exceeds .*limit|security limit|allocat", re.IGNORECASE)
_MOVIE_STARTS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_END_OF_DATA = (EOFError, IndexError, struct.error)
_SAYS_UNSUPPORTED = re.compile(
    r"unsupported|not supported|cannot handle|unknown (pixel|compression|raw) mode", re.IGNORECASE
)

# Not the codecs' own words: they quote bytes of files.
_WORDS = {
    ErrorCode.TOO_LARGE: "decoding needs more memory than it may take",
    ErrorCode.TRUNCATED: "it ends before its picture does",
    ErrorCode.UNSUPPORTED_FORMAT: "its decoder does not take this kind of it",
    ErrorCode.CORRUPT: "its decoder can make nothing of it",
}
_BOXES = {b"ftyp", b"meta", b"mdat", b"moov", b"free", b"skip", b"wide", b"uuid", b"idat", b"mini", b"grpl", b"mpvd"}


@contextmanager
def codec_call(format_name: str, data: bytes) -> Iterator[None]:
    """Wrap a call into a third-party codec, and nothing else: whatever it raises becomes a `PhotoError`.

    Codecs raise about anything on hostile files (OSError, SyntaxError, TypeError, IndexError, struct.error …).
    Keep our own code out of the block, so that our bugs surface as themselves. MemoryError becomes `too_large`.
    """
    try:
        yield
    except PhotoError:
        raise
    except MemoryError as error:
        raise PhotoError(ErrorCode.TOO_LARGE, f"{format_name}: decoding needs more memory than there is") from error
    except Exception as error:
        code = _code_of(error, format_name, data)
        raise PhotoError(code, f"{format_name}: {_WORDS[code]} ({type(error).__name__})") from error


def _code_of(error: Exception, format_name: str, data: bytes) -> ErrorCode:
    text = str(error)
    if _SAYS_TOO_LARGE.search(text):
        return ErrorCode.TOO_LARGE
    ran_out = isinstance(error, _END_OF_DATA) or isinstance(error.__cause__, _END_OF_DATA)
    if ran_out or _SAYS_TRUNCATED.search(text) or is_cut(format_name, data):
        return ErrorCode.TRUNCATED
    if _SAYS_UNSUPPORTED.search(text):
        return ErrorCode.UNSUPPORTED_FORMAT
    return ErrorCode.CORRUPT


def is_cut(format_name: str, data: bytes) -> bool:
    """Say whether a file is shorter than its own structure claims. Only tells apart reasons for a failure: harmless
    files with a wrong length field exist, so a file that decodes is not asked, but for formats named in `decode`."""
    match format_name:
        case "jpeg":
            return b"\xff\xd9" not in data[-65536:]
        case "png":
            return b"IEND" not in data
        case "webp":
            return int.from_bytes(data[4:8], "little") + 8 > len(data)
        case "gif":
            return not data.rstrip(b"\0").endswith(b";")
        case "bmp":
            return len(data) < int.from_bytes(data[2:6], "little") < 1 << 31
        case "tiff":
            return tiff_extent_bytes(data) > len(data)
        case "heic" | "avif":
            return _is_box_cut(data)
        case "jxl":
            return is_jxl_cut(data)
        case "jp2":
            return is_jpeg2000_cut(data)
        case "video":
            return data[4:8] in _MOVIE_STARTS and _is_box_cut(data)
        case "camera raw":
            return False  # `raw.RawFile` tells it
    raise AssertionError(f"no such format: {format_name}")


def _is_box_cut(data: bytes) -> bool:
    """Walk the top-level boxes of an ISO base media file (ISO/IEC 14496-12, 4.2) and see whether the last one fits."""
    at = 0
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if size == 0 or kind not in _BOXES:  # to the end of the file, or no box: bytes appended by somebody
            return False
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:
            return False
        at += size
    return at > len(data)
