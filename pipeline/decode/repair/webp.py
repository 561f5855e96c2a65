"""WebP files whose length field is wrong, as tools that cut or join files leave it, though the picture is whole.

Browsers read such files on, as far as there are chunks; libwebp's animation decoder, which Pillow has, gives them up.
Source: RFC 9649.
"""

from __future__ import annotations

_HEADER_BYTES = 12
_PICTURE = {b"VP8 ", b"VP8L", b"ANMF"}
_NEEDED = _PICTURE | {b"ALPH"}


def with_right_length(data: bytes) -> bytes:
    """Return a WebP with the length that its whole chunks have; itself where that is right or its picture is cut."""
    at, end, has_picture = _HEADER_BYTES, _HEADER_BYTES, False
    while at + 8 <= len(data):
        kind, size_bytes = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + size_bytes > len(data):
            if kind in _NEEDED:
                return data
            break
        has_picture = has_picture or kind in _PICTURE
        at += 8 + size_bytes + size_bytes % 2
        end = at
    if not has_picture or end - 8 == int.from_bytes(data[4:8], "little"):
        return data
    return data[:4] + (end - 8).to_bytes(4, "little") + data[8:end].ljust(end - 8, b"\0")
