"""Files of this machine's file system, by path or `file://` URI: what `storage` does there.

Names that are no UTF-8 travel as percent-encoded `file://` URIs. A put is a temporary file that is renamed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote_from_bytes, unquote_to_bytes

log = logging.getLogger(__name__)

_TEMPORARY = re.compile(r"/\.[0-9a-f]{32}\.tmp$")
_FOLDER_ATTEMPTS = 9


def path_of(uri: str) -> bytes | str:
    """Return the path that `uri` names."""
    return unquote_to_bytes(uri[7:]) if uri.lower().startswith("file://") else uri


def uri_of(path: bytes) -> str:
    """Return a path as text: itself, or a percent-encoded `file://` URI where its bytes are no UTF-8."""
    try:
        return path.decode()
    except UnicodeDecodeError:
        return "file://" + quote_from_bytes(path)


def etag_of(status: os.stat_result) -> str:
    """Return what names a file's version: its time and size."""
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def open_file(uri: str) -> BinaryIO:
    """Open a regular file to read; FileNotFoundError also for names that no file can have."""
    path = path_of(uri)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise IsADirectoryError(f"not a regular file: {uri}")
        # Not blocking: a named pipe that takes the file's place must not hang the run.
        return open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            raise FileNotFoundError(error.errno, error.strerror, error.filename) from error
        raise
    except ValueError as error:  # a zero byte in the name
        raise FileNotFoundError(f"no file can have this name: {uri}") from error


def put(uri: str, data: bytes, is_locked: bool = False) -> None:
    """Put `data` at `uri` atomically, over whatever is there, and make the folders on the way.

    A process killed meanwhile leaves its temporary file behind: the next put of who has the file `locked` writes over
    it, `remove_temporaries` removes the others.
    """
    path = Path(os.fsdecode(path_of(uri)))
    temporary = path.parent / f".{path.name if is_locked else uuid.uuid4().hex}.tmp"
    try:
        with _opened_in_made_folder(temporary, "wb" if is_locked else "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is not None:  # a full disk doesn't say which
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def create(uri: str, data: bytes) -> None:
    """Put `data` at `uri` as `put` does, but only where nothing is there: FileExistsError otherwise."""
    path = Path(os.fsdecode(path_of(uri)))
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    put(uri_of(os.fsencode(temporary)), data)
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        with locked(uri):  # a file system without hard links
            if os.path.lexists(path):
                raise FileExistsError(f"already there: {uri}") from None
            put(uri, data, is_locked=True)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def remove_temporaries(folder_uri: str) -> None:
    """Remove what killed processes' puts left below a folder: for whoever alone puts anything there."""
    for uri, _, _, _ in walk(os.fsencode(path_of(folder_uri))):
        if _TEMPORARY.search(uri):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path_of(uri))


def remove_empty_folders(folder_uri: str) -> None:
    """Remove a folder and those below it that are empty; one into which somebody puts a file meanwhile stays."""
    for folder, _, _ in os.walk(os.fsencode(path_of(folder_uri)), topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def is_left_empty(uri: str) -> bool:
    """Whether the nearest folder that there is, `uri` or one above it, has nothing in it: maybe no disk is mounted."""
    path = os.fsencode(path_of(uri))
    while True:
        try:
            with os.scandir(path) as children:
                return next(children, None) is None
        except (FileNotFoundError, NotADirectoryError):
            path = os.path.dirname(path)
        except OSError:  # whatever is below can't be seen
            return True


@contextlib.contextmanager
def locked(uri: str) -> Iterator[None]:
    """Keep other processes that lock the same file out: a file system has no conditional put. Leaves no file behind."""
    path = Path(os.fsdecode(path_of(uri)))
    lock_path = path.parent / f".{path.name}.lock"
    while True:
        with _opened_in_made_folder(lock_path, "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_at(lock, lock_path):  # whoever had it before has removed it: this one keeps nobody out
                continue
            try:
                yield
            finally:
                lock_path.unlink()
            return


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def walk(folder: bytes) -> Iterator[tuple[str, int, str, int]]:
    """Yield (URI, size, ETag, time in µs since 1970) of every file below `folder`, sorted.

    Links to folders are named in the log instead.
    """
    try:
        children = sorted(os.scandir(folder), key=lambda child: child.name)
    except FileNotFoundError:
        return
    for child in children:
        if child.is_dir(follow_symlinks=False):
            yield from walk(child.path)
        elif os.path.isdir(child.path):
            log.warning("not followed, a link to a folder: %s (name the folder itself as a source)", uri_of(child.path))
        else:
            try:
                status = child.stat()
            except OSError:  # a link to nowhere or to itself: listed, so that it gets its row
                try:
                    status = child.stat(follow_symlinks=False)
                except FileNotFoundError:  # removed since the folder was read
                    continue
            yield uri_of(child.path), status.st_size, etag_of(status), status.st_mtime_ns // 1000


def _opened_in_made_folder(path: Path, mode: str) -> BinaryIO:
    """Open a file to write, and make the folders on the way, again where another process removes an empty one."""
    for _ in range(_FOLDER_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return open(path, mode)  # type: ignore[return-value]
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, mode)  # type: ignore[return-value]
