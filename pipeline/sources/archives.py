"""Photos inside tar and zip archives: where each lies, by reading headers only.

Nothing is unpacked: a member's name, whatever is in it, is only ever a name. `read.archive_members` reads their bytes.
"""

from __future__ import annotations

import collections
import itertools
import logging
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from pipeline import schema, storage
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

LOCAL_HEADER = struct.Struct("<4s5H3I2H")
"""What stands before a zip's member."""

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
        for name, found in (_zip_members if is_zip(container.uri) else _tar_members)(container, problems):
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


def is_zip(uri: str) -> bool:
    """Whether `uri` is named like a zip."""
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
            stored_bytes = LOCAL_HEADER.size + len(name_bytes) + member.compress_size
            if member.header_offset < 0 or member.header_offset + stored_bytes > container.size_bytes:
                outside = outside or f"it seems damaged: member {member.filename!r} lies outside the archive"
                continue
            etag = f"{member.CRC:08x}-{member.file_size:x}"
            yield _text(name), (etag, member.file_size, member.header_offset, stored_bytes)
    if outside:
        problems.append(outside)
    if links:
        log.warning("%s: %d links in it are no photos", container.uri, links)
