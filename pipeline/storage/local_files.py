"""Files of this machine's file system, by path or `file://` URI: what `storage` does there.

Names that are no UTF-8 travel as percent-encoded `file://` URIs. A put is a temporary file that is renamed.

Files are put beside other people's, where anything may lie under any name. So what is written is always a new file, in
the folder that was opened, under a name that nobody can guess; and no link is followed for the last part of a name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import re
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote_from_bytes, unquote_to_bytes

from pipeline.storage.store import LinkError, Visitor

log = logging.getLogger(__name__)

_TEMPORARY = re.compile(rb"\.(?:.*\.)?[0-9a-f]{32}\.tmp", re.DOTALL)
_LONGEST_IN_TEMPORARY = 200
"""So many bytes of a file's name are in its temporary one: a file system takes 255."""
_FOLDER_ATTEMPTS = 9
_SORTED_AT_ONCE = 10_000


class OtherHostError(ValueError):
    """A `file:` URI names a file of another machine than this one."""


def path_of(uri: str) -> bytes | str:
    """Return the path that `uri` names: itself, or that of `file:///x`, `file:/x` or `file://localhost/x` (RFC 8089).

    Raises OtherHostError for a file of another host, ValueError for such a URI without a path.
    """
    if uri[:6].lower() != "file:/":
        return uri
    rest = uri[5:]
    if rest.startswith("//"):
        host, slash, rest = rest[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise OtherHostError(f"{uri} is a file of the machine {host}: write file:///PATH for one of this machine")
        if not slash:
            raise ValueError(f"{uri} names no file: write file:///PATH")
        rest = f"/{rest}"
    return unquote_to_bytes(rest)


def uri_of(path: bytes) -> str:
    """Return a path as text: itself, or a percent-encoded `file://` URI where its bytes are no UTF-8."""
    try:
        return path.decode()
    except UnicodeDecodeError:
        return "file://" + quote_from_bytes(path)


def etag_of(status: os.stat_result) -> str:
    """Return what names a file's version: its time and size."""
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def open_file(uri: str, follow_links: bool = True) -> BinaryIO:
    """Open a regular file to read; FileNotFoundError also for names that no file can have.

    Raises LinkError for a link that is not to be followed.
    """
    path = path_of(uri)
    try:
        status = os.stat(path, follow_symlinks=follow_links)
        if stat.S_ISLNK(status.st_mode):
            raise LinkError(f"a link, which is not followed: {uri}")
        if not stat.S_ISREG(status.st_mode):
            raise IsADirectoryError(f"not a regular file: {uri}")
        # Not blocking: a named pipe that takes the file's place must not hang the run.
        flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
        return open(os.open(path, flags), "rb")
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            raise FileNotFoundError(error.errno, error.strerror, error.filename) from error
        raise
    except ValueError as error:  # a zero byte in the name
        raise FileNotFoundError(f"no file can have this name: {uri}") from error


def put(uri: str, data: bytes) -> None:
    """Put `data` at `uri` atomically, over whatever is there, and make the folders on the way.

    A process killed meanwhile leaves its temporary file behind: `remove_temporaries` removes it.
    """
    path = _path(uri)
    try:
        with _put_temporary(path, data) as (folder, temporary):
            os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError as error:
        raise _about(path, error) from error


def create(uri: str, data: bytes) -> None:
    """Put `data` at `uri` as `put` does, but only where nothing is there: FileExistsError otherwise."""
    path = _path(uri)
    try:
        with _put_temporary(path, data) as (folder, temporary):
            try:
                os.link(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                    raise
                with locked(uri):  # a file system without hard links
                    if os.path.lexists(path):
                        raise FileExistsError(errno.EEXIST, f"already there: {uri}") from None
                    os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError as error:
        raise _about(path, error) from error


def remove_temporaries(uri: str) -> None:
    """Remove what killed processes' puts left below a folder, for whoever alone puts anything there; or beside a file,
    of those that had that file `locked`."""
    path = _path(uri)
    if path.is_dir():
        for found, _, _, _ in walk(os.fsencode(path)):
            left = os.fsencode(path_of(found))
            if _TEMPORARY.fullmatch(os.path.basename(left)):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(left)
    elif path.is_file():
        with locked(uri) as folder:
            for name in os.listdir(folder):
                is_left = name.startswith(f".{path.name}.") and _TEMPORARY.fullmatch(os.fsencode(name))
                if is_left or name == f".{path.name}.tmp":  # as older versions called it
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=folder)


def remove_empty_folders(folder_uri: str) -> None:
    """Remove a folder and those below it that are empty; one into which somebody puts a file meanwhile stays."""
    for folder, _, _ in os.walk(os.fsencode(path_of(folder_uri)), topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def is_left_empty(uri: str) -> bool:
    """Whether the nearest folder that there is, `uri` or one above it, has nothing in it: maybe no disk is mounted."""
    path = os.fsencode(path_of(uri)) or b"/"  # what a file of the root lies in
    while True:
        try:
            with os.scandir(path) as children:
                return next(children, None) is None
        except (FileNotFoundError, NotADirectoryError):
            path = os.path.dirname(path) or b"/"
        except OSError:  # whatever is below can't be seen
            return True


@contextlib.contextmanager
def locked(uri: str) -> Iterator[int]:
    """Keep other processes that lock the same file out: a file system has no conditional put. Leaves no file behind.

    Yields the descriptor of the file's folder. Raises OSError where something else than a lock has the lock's name; it
    stays as it is.
    """
    path = _path(uri)
    name = f".{path.name}.lock"
    while True:
        with _opened_in(path.parent, name, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK) as (folder, lock):
            # Nothing is written into it: a lock is an empty file of one name.
            status = os.fstat(lock)
            if not stat.S_ISREG(status.st_mode) or status.st_size:
                raise FileExistsError(errno.EEXIST, "this is no lock of ours", str(path.with_name(name)))
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_at(lock, name, folder):  # whoever had it before has removed it: this one keeps nobody out
                continue
            try:
                yield folder
            finally:
                os.unlink(name, dir_fd=folder)
            return


def _is_at(descriptor: int, name: str, folder: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(name, dir_fd=folder, follow_symlinks=False))
    except FileNotFoundError:
        return False


class StrictVisitor:
    """Enters every folder, and raises what could not be looked at: a `store.Visitor`."""

    def enters(self, folder_uri: str) -> bool:
        """Return True."""
        return True

    def note_unseen(self, uri: str, error: OSError) -> None:
        """Raise the error."""
        raise error


def walk(folder: bytes, visitor: Visitor | None = None) -> Iterator[tuple[str, int, str, int]]:
    """Yield (URI, size, ETag, time in µs since 1970) of every file below `folder`: a folder's files, then its folders.

    Names are sorted, but of a folder that has more than 10,000 only so many at a time: memory is bounded, however many
    there are, and depth costs no recursion. Links to folders are named in the log instead. A missing folder has no
    files; OSError where `folder` itself can't be listed, and where a thing below can't, as `visitor` says.
    """
    visitor = visitor or StrictVisitor()
    to_enter: list[Iterator[bytes]] = [iter((folder,))]
    while to_enter:
        path = next(to_enter[-1], None)
        if path is None:
            to_enter.pop()
        elif len(to_enter) == 1 or visitor.enters(uri_of(path)):
            subfolders = bytearray()
            try:
                yield from _files_in(path, subfolders, visitor)
            except FileNotFoundError:  # removed since its parent was read
                pass
            except OSError as error:
                if len(to_enter) == 1:
                    raise
                visitor.note_unseen(uri_of(path), error)
            to_enter.append(_paths(path, subfolders))


def _paths(folder: bytes, names: bytearray) -> Iterator[bytes]:
    """Yield the paths of names that a zero byte ends, each: a million of them take 20 MB so."""
    at = 0
    while (end := names.find(b"\0", at)) >= 0:
        yield os.path.join(folder, bytes(names[at:end]))
        at = end + 1


def _files_in(folder: bytes, subfolders: bytearray, visitor: Visitor) -> Iterator[tuple[str, int, str, int]]:
    """Yield a folder's own files, as `walk` does, and add the names of its folders, a zero byte after each."""
    unseen: dict[int | None, tuple[int, OSError, bytes]] = {}
    for child in _children(folder):
        try:
            if child.is_dir(follow_symlinks=False):
                subfolders += child.name + b"\0"
                continue
            if child.is_symlink() and os.path.isdir(child.path):
                uri = uri_of(child.path)
                log.warning("not followed, a link to a folder: %s (name the folder itself as a source)", uri)
                continue
            status = _status(child)
        except FileNotFoundError:  # removed since the folder was read
            continue
        except OSError as error:  # nothing in this folder may be looked at, or the name is too long
            count, first, name = unseen.get(error.errno, (0, error, child.name))
            unseen[error.errno] = (count + 1, first, name)
            continue
        yield uri_of(child.path), status.st_size, etag_of(status), status.st_mtime_ns // 1000
    for count, first, name in unseen.values():
        example = name.decode("utf-8", "backslashreplace")
        reason = f"{first.strerror}, for {count} of the names in it, such as {example}"
        visitor.note_unseen(uri_of(folder), OSError(first.errno, reason))


def _children(folder: bytes) -> Iterator[os.DirEntry[bytes]]:
    """Yield what is in a folder, sorted so many at a time; what was read before an error comes first."""
    error: OSError | None = None
    is_read = False
    with os.scandir(folder) as children:
        while not is_read:
            chunk: list[os.DirEntry[bytes]] = []
            try:
                chunk.extend(itertools.islice(children, _SORTED_AT_ONCE))
            except OSError as raised:
                error = raised
            is_read = error is not None or len(chunk) < _SORTED_AT_ONCE
            if is_read:
                children.close()  # nobody may ask for what comes after this
            yield from sorted(chunk, key=lambda child: child.name)
    if error is not None:
        raise error


def _status(child: os.DirEntry[bytes]) -> os.stat_result:
    try:
        return child.stat()
    except OSError:  # a link to nowhere or to itself: listed, so that it gets its row
        return child.stat(follow_symlinks=False)


def _path(uri: str) -> Path:
    return Path(os.fsdecode(path_of(uri)))


def _about(path: Path, error: OSError) -> OSError:
    """Return the same error with the file's name: a full disk doesn't say which, and nobody knows a temporary one's."""
    return error if error.errno is None else OSError(error.errno, error.strerror, str(path))


@contextlib.contextmanager
def _put_temporary(path: Path, data: bytes) -> Iterator[tuple[int, str]]:
    """Put a new file beside `path`, which is gone afterwards unless it was renamed; yields its folder and name."""
    name = f".{os.fsdecode(os.fsencode(path.name)[:_LONGEST_IN_TEMPORARY])}.{uuid.uuid4().hex}.tmp"
    with _opened_in(path.parent, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as (folder, descriptor):
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            yield folder, name
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)


@contextlib.contextmanager
def _opened_in(parent: Path, name: str, flags: int) -> Iterator[tuple[int, int]]:
    """Open a file, itself no link, in a folder, made again where another process removes an empty one; their
    descriptors."""
    for attempt in range(_FOLDER_ATTEMPTS + 1):
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            if attempt == _FOLDER_ATTEMPTS:
                raise
            continue
        try:
            descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=folder)
        except FileNotFoundError:
            os.close(folder)
            if attempt == _FOLDER_ATTEMPTS:
                raise
            continue
        except BaseException:
            os.close(folder)
            raise
        try:
            yield folder, descriptor
        finally:
            os.close(descriptor)
            os.close(folder)
        return
