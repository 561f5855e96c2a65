"""Photos inside tar and zip archives: where each lies, by reading headers only, and the bytes of one.

Nothing is unpacked: a member's name, whatever is in it, is only ever a name.
"""

from __future__ import annotations

import collections
import io
import itertools
import logging
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline import schema, storage
from pipeline.schema import ErrorCode, PhotoError
from pipeline.storage.ranged_file import RangedFile

log = logging.getLogger(__name__)

ENDINGS = (".tar", ".zip")
_REFUSED_ENDINGS = (
    *(".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4", ".tar.lzma", ".tar.z"),
    *(".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".7z", ".rar"),
)
MEMBER = "member"
"""Name inside the archive: with `uri` and the columns of the manifest what `look_into` tells of a photo."""
MEMBERS = pa.schema(
    [
        pa.field(MEMBER, pa.string(), nullable=False),
        *(schema.MANIFEST.field(n) for n in (schema.ETAG, schema.SIZE_BYTES, schema.OFFSET_BYTES, schema.STORED_BYTES)),
    ]
)

_LISTED_AT_ONCE = 8
_UNREAD_ON_END = 3 * _LISTED_AT_ONCE
_OF_ONE_ARCHIVE = (FileNotFoundError, PermissionError, IsADirectoryError, storage.ChangedError, storage.TooLargeError)
"""Errors that say nothing of the store, but for those of its asker: see `list_archives`."""
_UNIX = 3
_DOS_SYSTEMS = (0, 6, 10, 14)
"""FAT, HPFS, NTFS and VFAT: no name there has a backslash in it, so that one stands between folders."""
_MAX_TAR_HEADER_BYTES = 64 << 10
"""Python's tar parser takes time with the square of an extended header: 3 s for this much."""
_MAX_ZIP_DIRECTORY_BYTES = 256 << 20
"""About three million photos, for which Python's zip parser takes 2 GB."""
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    ValueError,
    OverflowError,
    LookupError,
    EOFError,
    RecursionError,
    NotImplementedError,
    struct.error,
    zlib.error,
)
"""What Python's tar and zip parsers raise on damaged files."""

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
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

_Member = tuple[str, int, int, int]
"""ETag, size, offset, stored size."""


def is_archive(uri: str) -> bool:
    """Whether `uri` is named like an archive, of a kind that can be read or not."""
    return uri.lower().endswith((*ENDINGS, *_REFUSED_ENDINGS))


def check_readable(uri: str) -> None:
    """Raise ValueError, saying what to do, for an archive of a kind whose photos can't be read one by one."""
    if not uri.lower().endswith(ENDINGS):
        raise ValueError(
            f"{uri}: photos can't be read one by one from a compressed archive: unpack it, or repack it as plain .tar"
        )


@dataclass(frozen=True)
class Contents:
    """What is in an archive: the version that was listed, its photos as rows of `MEMBERS`, and what is wrong with it.

    With `problems`, each a sentence, there may be more photos in it than are known. `error` is what kept it from being
    read, if anything did.
    """

    container: storage.Entry
    members: pa.Table
    problems: tuple[str, ...] = ()
    error: OSError | None = None


def list_archives(containers: Iterable[storage.Entry]) -> Iterator[Contents]:
    """Yield what is in each archive, as `look_into` says, in the order given; some are listed at once in threads.

    Raises OSError where so many on end could not be read that it is their store which can't be.
    """
    pool = ThreadPoolExecutor(_LISTED_AT_ONCE, thread_name_prefix="list-archive")
    ahead: collections.deque[Future[Contents]] = collections.deque()
    unread = 0
    try:
        for container in itertools.chain(containers, itertools.repeat(None)):
            if container is not None:
                ahead.append(pool.submit(look_into, container))
                if len(ahead) < _LISTED_AT_ONCE:
                    continue
            if not ahead:
                return
            contents = ahead.popleft().result()
            is_of_the_store = contents.error is not None and not isinstance(contents.error, _OF_ONE_ARCHIVE)
            unread = unread + 1 if is_of_the_store else 0
            if contents.error is not None and unread == _UNREAD_ON_END:
                raise contents.error
            yield contents
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def list_members(container: storage.Entry) -> pa.Table:
    """Return the photos in an archive that is in order, as `look_into` does; ValueError, or OSError, otherwise."""
    contents = look_into(container)
    if contents.error is not None:
        raise contents.error
    if contents.problems:
        raise ValueError(f"{container.uri}: {'; '.join(contents.problems)}")
    return contents.members


def look_into(container: storage.Entry) -> Contents:
    """Return the photos in a tar or zip, one row of `MEMBERS` each, as far as it is whole; of two with one name the
    later one.

    A tar's hard links are photos, with their targets' bytes. The ETag of a zip's member is its CRC-32 and size: it
    stays when the zip grows. An archive that changes while it is listed is listed once more.
    """
    try:
        try:
            return _contents(container)
        except storage.ChangedError:
            return _contents(storage.head(container.uri))
    except storage.ChangedError as error:
        return Contents(
            container, MEMBERS.empty_table(), ("it changed while it was listed: is it being written?",), error
        )
    except OSError as error:
        return Contents(container, MEMBERS.empty_table(), (f"it can't be read: {error}",), error)


def _contents(container: storage.Entry) -> Contents:
    members: dict[str, _Member] = {}
    problems: list[str] = []
    repeats, astray = 0, ""
    if container.size_bytes == 0:
        return Contents(container, MEMBERS.empty_table(), ("it seems damaged: it is empty, 0 bytes long",))
    try:
        for name, found in (_zip_members if _is_zip(container.uri) else _tar_members)(container, problems):
            member = found
            if isinstance(found, str):
                member = members.get(found) or members.get(_other_spelling(found)) or ""
                if not member:
                    astray = astray or f"the hard link {name} leads to {found}, which is not in it: make it whole"
                    continue
            assert not isinstance(member, str)
            repeats += members.pop(name, None) is not None
            members[name] = member
    except _DAMAGED as error:
        kept = f"; {len(members)} members before that are whole" if members else ""
        problems.append(f"it seems damaged: {error}{kept}")
    if astray:
        problems.append(astray)
    if repeats:
        log.warning("%s: %d members have the name of a later one, which replaces them", container.uri, repeats)
    columns = zip(*members.values(), strict=True) if members else [[]] * 4
    return Contents(container, pa.table([list(members), *columns], schema=MEMBERS), tuple(problems))


def _other_spelling(name: str) -> str:
    """Return a name with the `./` at its beginning that some programs write, or without."""
    return name.removeprefix("./") if name.startswith("./") else f"./{name}"


def _is_zip(uri: str) -> bool:
    return uri.lower().endswith(".zip")


def _text(name: str) -> str:
    """Return a member's name as UTF-8 can hold it."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _tar_members(container: storage.Entry, problems: list[str]) -> Iterator[tuple[str, _Member | str]]:
    """Yield each photo's name with where it lies, or, of a hard link, with its target's name."""
    file = RangedFile(container, _MAX_TAR_HEADER_BYTES)
    links, sparse = 0, ""
    no_photos: set[str] = set()
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
        end = 0
        while member := archive.next():
            archive.members.clear()  # type: ignore[attr-defined]  # it would hold every one
            if member.size < 0 or archive.offset <= end:
                raise ValueError(f"member {member.name!r} has a negative size")
            end = archive.offset
            if member.issparse():
                sparse = sparse or f"member {member.name!r} is stored as a sparse file: repack without --sparse"
                continue
            if member.offset_data + (member.size if member.isreg() else 0) > container.size_bytes:
                raise ValueError(f"it is cut: member {member.name!r} goes on behind the end")
            if member.isreg():
                etag = f"{container.etag}@{member.offset_data:x}"
                yield _text(member.name), (etag, member.size, member.offset_data, member.size)
            elif member.islnk() and member.linkname not in no_photos:
                yield _text(member.name), _text(member.linkname)
            elif not member.isdir():
                no_photos.add(member.name)
                links += 1
        _check_tar_end(container, archive.offset)
    if sparse:
        problems.append(sparse)
    if links:
        log.warning("%s: %d links and devices in it are no photos", container.uri, links)


def _check_tar_end(container: storage.Entry, end: int) -> None:
    """Raise ValueError where anything but zeros follows: the parser stops at what it does not understand."""
    if end >= container.size_bytes:
        log.warning("%s has no end mark: it may have been cut between two members", container.uri)
    file = RangedFile(container)
    file.seek(end)
    while block := file.read(1 << 20):
        if block.strip(b"\0"):
            raise ValueError(f"what is at byte {end} is no member, and not the end either: repack it")


def _zip_members(container: storage.Entry, problems: list[str]) -> Iterator[tuple[str, _Member | str]]:
    links, outside = 0, ""
    with zipfile.ZipFile(RangedFile(container, _MAX_ZIP_DIRECTORY_BYTES)) as archive:
        has_slashes = any("/" in member.filename for member in archive.infolist())
        for member in archive.infolist():
            is_unix = member.create_system == _UNIX
            name = member.filename
            if member.create_system in _DOS_SYSTEMS or not has_slashes:
                name = name.replace("\\", "/")
            if name.endswith("/"):
                continue
            if is_unix and stat.S_ISLNK(member.external_attr >> 16):
                links += 1
                continue
            name_bytes = member.orig_filename.encode("utf-8" if member.flag_bits & 0x800 else "cp437")
            stored_bytes = _LOCAL_HEADER.size + len(name_bytes) + member.compress_size
            if member.header_offset < 0 or member.header_offset + stored_bytes > container.size_bytes:
                outside = outside or f"it seems damaged: member {member.filename!r} lies outside the archive"
                continue
            etag = f"{member.CRC:08x}-{member.file_size:x}"
            yield _text(name), (etag, member.file_size, member.header_offset, stored_bytes)
    if outside:
        problems.append(outside)
    if links:
        log.warning("%s: %d links in it are no photos", container.uri, links)


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
    if stored_bytes > max_bytes + (max_bytes // 1000 + (128 << 10) if _is_zip(container_uri) else 0):
        raise PhotoError(ErrorCode.TOO_LARGE, f"{stored_bytes} bytes in its archive, the limit is {max_bytes}")

    def read(start: int, length_bytes: int, intake: storage.Intake | None = None) -> bytes:
        return storage.read_range(container_uri, offset_bytes + start, length_bytes, container_etag, intake)

    if _is_zip(container_uri):
        return _zip_member(read, stored_bytes, max_bytes, size_bytes, intake)
    # No range of an object store is empty.
    return _whole(read(0, stored_bytes, intake) if stored_bytes else b"", stored_bytes)


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
    return uri is not None and _is_zip(uri)


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
    if uri is None or _is_zip(uri) or any(row[n] != last[n] for n in (schema.CONTAINER_URI, schema.CONTAINER_ETAG)):
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
    if len(data) < _LOCAL_HEADER.size:
        raise PhotoError(ErrorCode.TRUNCATED, "its archive ends within the member's header")
    magic, _, flags, method, _, _, crc, _, _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack_from(data)
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
    packed_bytes = stored_bytes - _LOCAL_HEADER.size - name_bytes
    if packed_bytes < 0:
        raise PhotoError(ErrorCode.CORRUPT, "its name in the archive is not the directory's")
    start = _LOCAL_HEADER.size + name_bytes + extra_bytes
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
        photo_head = head[header.start : header.start + header.packed_bytes]
        if header.is_deflated:
            try:
                photo_head = zlib.decompressobj(-zlib.MAX_WBITS).decompress(photo_head, len(head))
            except zlib.error:  # said once all of it is there
                return
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
