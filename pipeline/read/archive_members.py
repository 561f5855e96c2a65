"""The bytes of photos inside tar and zip archives, from where `archives` has found that they lie."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import schema, storage
from pipeline.schema import ErrorCode, PhotoError
from pipeline.sources import archives

_LOCAL_MAGIC = b"PK\3\4"
_DESCRIPTOR_MAGIC = b"PK\7\x08"
_ENCRYPTED, _HAS_DESCRIPTOR = 1, 8
_STORED, _DEFLATED = 0, 8
_MAX_TOGETHER_BYTES, _MAX_GAP_BYTES = 1 << 20, 64 << 10
"""Members of a tar are read by one request up to so much, with what lies between them up to so much: a request costs
a client half a millisecond of processor time, in which 64 KiB come."""
_INFLATED_FROM_BYTES, _INFLATED_TO_BYTES = 256 << 10, 1 << 20
"""A zip's member is inflated in such steps, each looked at before the next."""
_ANY_RATIO_BYTES, _MAX_RATIO = 64 << 20, 400
"""A blank scan unfolds a thousandfold, as far as deflate can; what is large and does so is no photo."""
_SLACK_BYTES = 512
"""Read behind a zip member: its local header's extra fields, of which the directory tells nothing, and a CRC."""


def read_member(
    container_uri: str,
    offset_bytes: int,
    stored_bytes: int,
    container_etag: str | None,
    max_bytes: int,
    size_bytes: int | None = None,
    intake: storage.Intake | None = None,
) -> bytes:
    """Return the bytes of one photo inside an archive, from where `list_members` said that it lies.

    `size_bytes`: what it has unpacked, as listed: a zip's member that unpacks to more is corrupt. `intake` is asked as
    by `storage.read`, about the photo's bytes, not the archive's.

    Raises `storage.ChangedError` where the archive is no longer version `container_etag`, other OSErrors as
    `storage.read_range`, and PhotoError: `too_large` above `max_bytes`, `truncated`, and for a zip `corrupt` and
    `unsupported_format`.
    """
    # Deflate makes nothing longer than by a few bytes in each block; a zip's part has a name before it.
    if stored_bytes > max_bytes + (max_bytes // 1000 + (128 << 10) if archives.is_zip(container_uri) else 0):
        raise PhotoError(ErrorCode.TOO_LARGE, f"{stored_bytes} bytes in its archive, the limit is {max_bytes}")

    def read(start: int, length_bytes: int, intake: storage.Intake | None = None) -> bytes:
        return storage.read_range(container_uri, offset_bytes + start, length_bytes, container_etag, intake)

    if archives.is_zip(container_uri):
        return _zip_member(read, stored_bytes, max_bytes, size_bytes, intake)
    # No range of an object store is empty.
    return _whole(read(0, stored_bytes, intake) if stored_bytes else b"", stored_bytes)


def read_head(container_uri: str, offset_bytes: int, stored_bytes: int, container_etag: str | None) -> bytes:
    """Return a member's first bytes, at most 64 KiB, unpacked; b"" where they don't tell. Raises as `read_member`."""
    length_bytes = min(stored_bytes, storage.HEAD_BYTES)
    head = storage.read_range(container_uri, offset_bytes, length_bytes, container_etag) if length_bytes else b""
    return _unpacked_head(head, _local_header(head, stored_bytes)) if archives.is_zip(container_uri) else head


def lie_together(listed: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield rows of `schema.MANIFEST` in groups: those that follow each other closely in one tar, for `read_together`.

    Any other photo is a group of its own. A group's bytes are bounded, since they are held all at once.
    """
    group: list[dict[str, Any]] = []
    for row in listed:
        if group and not _follows(row, group[0], group[-1]):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def is_packed(row: Mapping[str, Any]) -> bool:
    """Whether a row of `schema.MANIFEST` is a member of an archive of which members have to be unpacked."""
    uri: str | None = row[schema.CONTAINER_URI]
    return uri is not None and archives.is_zip(uri)


def overlapping(listed: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the URIs of those rows of `schema.MANIFEST` that are members of a zip and share bytes of it with another.

    No archiver writes such a zip, and half a megabyte of it can unfold to any size; Python's and Info-ZIP's readers
    refuse its members, too.
    """
    places = [(_span(row), row[schema.URI]) for row in listed if is_packed(row)]
    found: set[str] = set()
    before: tuple[tuple[str, int, int], str] | None = None
    for place in sorted(places):
        (container, start, end), uri = place
        if before is not None and before[0][0] == container and start < before[0][2] and uri != before[1]:
            found |= {uri, before[1]}
        if before is None or before[0][0] != container or end > before[0][2]:
            before = place
    return found


def _span(row: Mapping[str, Any]) -> tuple[str, int, int]:
    start: int = row[schema.OFFSET_BYTES]
    return row[schema.CONTAINER_URI], start, start + row[schema.STORED_BYTES]


def _follows(row: Mapping[str, Any], first: Mapping[str, Any], last: Mapping[str, Any]) -> bool:
    uri = row[schema.CONTAINER_URI]
    if (
        uri is None
        or archives.is_zip(uri)
        or any(row[n] != last[n] for n in (schema.CONTAINER_URI, schema.CONTAINER_ETAG))
    ):
        return False
    gap_bytes: int = row[schema.OFFSET_BYTES] - last[schema.OFFSET_BYTES] - last[schema.STORED_BYTES]
    together_bytes: int = row[schema.OFFSET_BYTES] + row[schema.STORED_BYTES] - first[schema.OFFSET_BYTES]
    return 0 <= gap_bytes <= _MAX_GAP_BYTES and together_bytes <= _MAX_TOGETHER_BYTES


def read_together(group: Sequence[Mapping[str, Any]]) -> list[bytes | PhotoError]:
    """Return the bytes of each photo of a group of several that `lie_together` yielded, by one request.

    Raises as `read_member`, but for what concerns one photo: that is its place's PhotoError, `truncated`.
    """
    first, last = group[0], group[-1]
    start = first[schema.OFFSET_BYTES]
    length_bytes = last[schema.OFFSET_BYTES] + last[schema.STORED_BYTES] - start
    uri, etag = first[schema.CONTAINER_URI], first[schema.CONTAINER_ETAG]
    data = storage.read_range(uri, start, length_bytes, etag) if length_bytes else b""
    photos: list[bytes | PhotoError] = []
    for row in group:
        at = row[schema.OFFSET_BYTES] - start
        try:
            photos.append(_whole(data[at : at + row[schema.STORED_BYTES]], row[schema.STORED_BYTES]))
        except PhotoError as error:
            photos.append(error)
    return photos


def _whole(data: bytes, stored_bytes: int) -> bytes:
    if len(data) < stored_bytes:
        raise PhotoError(ErrorCode.TRUNCATED, f"its archive ends after {len(data)} of {stored_bytes} bytes")
    return data


@dataclass(frozen=True)
class _LocalHeader:
    """What stands before a zip member's packed bytes, which begin at `start`, and its CRC-32, None if it follows."""

    start: int
    packed_bytes: int
    is_deflated: bool
    crc: int | None


def _local_header(data: bytes, stored_bytes: int) -> _LocalHeader:
    if len(data) < archives.LOCAL_HEADER.size:
        raise PhotoError(ErrorCode.TRUNCATED, "its archive ends within the member's header")
    magic, _, flags, method, _, _, crc, _, _, name_bytes, extra_bytes = archives.LOCAL_HEADER.unpack_from(data)
    if magic != _LOCAL_MAGIC:
        raise PhotoError(ErrorCode.CORRUPT, "its archive has no member where the directory says")
    if flags & _ENCRYPTED:
        raise PhotoError(ErrorCode.UNSUPPORTED_FORMAT, "encrypted in its archive: repack it without a password")
    if method not in (_STORED, _DEFLATED):
        name = zipfile.compressor_names.get(method, "unknown")  # type: ignore[attr-defined]
        raise PhotoError(
            ErrorCode.UNSUPPORTED_FORMAT,
            f"compressed by method {method} ({name}) in its archive: repack it with deflate or without compression",
        )
    # The local header may not know the sizes yet (it was written first); its name is the directory's.
    packed_bytes = stored_bytes - archives.LOCAL_HEADER.size - name_bytes
    if packed_bytes < 0:
        raise PhotoError(ErrorCode.CORRUPT, "its name in the archive is not the directory's")
    start = archives.LOCAL_HEADER.size + name_bytes + extra_bytes
    return _LocalHeader(start, packed_bytes, method == _DEFLATED, None if flags & _HAS_DESCRIPTOR else crc)


def _zip_member(
    read: Callable[[int, int, storage.Intake | None], bytes],
    stored_bytes: int,
    max_bytes: int,
    size_bytes: int | None,
    intake: storage.Intake | None,
) -> bytes:
    def look(head: bytes, _: int) -> None:
        """Ask `intake` about the photo whose packed bytes have begun to come."""
        header = _local_header(head, stored_bytes)
        photo_head = _unpacked_head(head, header)
        if intake is not None and len(photo_head) > len(head) // 2:  # the extra field may take most of it
            intake(photo_head, header.packed_bytes if size_bytes is None else size_bytes)

    data = read(0, stored_bytes + _SLACK_BYTES, look)
    header = _local_header(data, stored_bytes)
    start, packed_bytes = header.start, header.packed_bytes
    descriptor_bytes = 0 if header.crc is not None else 8
    if start + packed_bytes + descriptor_bytes > stored_bytes + _SLACK_BYTES:
        data, start = read(start, packed_bytes + descriptor_bytes, None), 0
    packed, descriptor = memoryview(data)[start : start + packed_bytes], data[start + packed_bytes :][:8]
    if len(packed) < packed_bytes:
        raise PhotoError(ErrorCode.TRUNCATED, f"its archive ends after {len(packed)} of {packed_bytes} bytes")
    photo = _inflated(packed, max_bytes, size_bytes, intake) if header.is_deflated else bytes(packed)
    if len(photo) > max_bytes:
        raise PhotoError(ErrorCode.TOO_LARGE, f"more than the limit of {max_bytes} bytes")
    if zlib.crc32(photo) not in (_descriptor_crcs(descriptor) if header.crc is None else (header.crc,)):
        raise PhotoError(ErrorCode.CORRUPT, "its CRC-32 in the archive is another")
    return photo


def _unpacked_head(head: bytes, header: _LocalHeader) -> bytes:
    """Return as much of a zip's member as its first packed bytes hold; b"" where they are damaged."""
    photo_head = head[header.start : header.start + header.packed_bytes]
    if not header.is_deflated:
        return photo_head
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(photo_head, len(head))
    except zlib.error:
        return b""


def _inflated(packed: memoryview, max_bytes: int, size_bytes: int | None, intake: storage.Intake | None) -> bytes:
    stream, photo = zlib.decompressobj(-zlib.MAX_WBITS), io.BytesIO()
    try:
        for piece in _pieces(stream, packed):
            photo.write(piece)
            come_bytes = photo.tell()
            if come_bytes > max_bytes:
                raise PhotoError(ErrorCode.TOO_LARGE, f"more than the limit of {max_bytes} bytes")
            if size_bytes is not None and come_bytes > size_bytes:
                raise PhotoError(ErrorCode.CORRUPT, f"it unpacks to more than the {size_bytes} bytes that are listed")
            if come_bytes > _ANY_RATIO_BYTES and come_bytes > _MAX_RATIO * len(packed):
                message = f"its {len(packed)} bytes in the archive unpack to more than {_MAX_RATIO} times as many"
                raise PhotoError(ErrorCode.TOO_LARGE, message)
            if intake is not None and come_bytes >= storage.HEAD_BYTES and not stream.eof:
                intake(photo.getvalue(), come_bytes if size_bytes is None else size_bytes)
                intake = None
    except zlib.error as error:
        raise PhotoError(ErrorCode.CORRUPT, f"its compressed bytes in the archive are damaged: {error}") from error
    if not stream.eof:
        raise PhotoError(ErrorCode.TRUNCATED, "its compressed bytes in the archive end too early")
    return photo.getvalue()


def _pieces(stream: Any, packed: memoryview) -> Iterator[bytes]:
    """Yield what `packed` inflates to in pieces, the first as long as a head; until the stream's end, if it comes."""
    length_bytes = storage.HEAD_BYTES
    for at in range(0, len(packed), _INFLATED_FROM_BYTES):
        rest: bytes | memoryview = packed[at : at + _INFLATED_FROM_BYTES]
        while True:
            piece = stream.decompress(rest, length_bytes)
            yield piece
            rest = stream.unconsumed_tail
            # A full piece may be all that there was room for, though its source is used up.
            if stream.eof or (not rest and len(piece) < length_bytes):
                break
            length_bytes = _INFLATED_TO_BYTES
        if stream.eof:
            return


def _descriptor_crcs(descriptor: bytes) -> tuple[int, ...]:
    """Return what can be the CRC in a data descriptor: its magic number is optional."""
    numbers = struct.unpack_from("<2I", descriptor.ljust(8, b"\0"))
    return numbers if descriptor.startswith(_DESCRIPTOR_MAGIC) else numbers[:1]
