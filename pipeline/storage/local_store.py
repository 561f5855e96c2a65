"""This machine's file system as a store: `local_files` under the names of `store.Store`."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pipeline.storage import local_files
from pipeline.storage.store import HEAD_BYTES, Blob, ChangedError, Entry, Intake, Visitor, check_size, check_version

if TYPE_CHECKING:
    import duckdb


class _NoFolders(local_files.StrictVisitor):
    """Keeps a listing in its folder."""

    def enters(self, folder_uri: str) -> bool:
        """Enter none."""
        del folder_uri
        return False


class LocalStore:
    """Files by their paths or `file://` URIs. A file's version is its time and size, for `replace_bytes` its digest."""

    is_remote = False

    def canonical(self, uri: str) -> str:
        """Return an absolute path, or a `file://` URI where that is no UTF-8."""
        return local_files.uri_of(os.path.abspath(os.fsencode(local_files.path_of(uri))))

    def can_be_put(self, uri: str) -> bool:
        """Whether a file can have this name."""
        return b"\0" not in os.fsencode(local_files.path_of(uri))

    def local_path(self, uri: str) -> Path | None:
        """Return the path."""
        return Path(os.fsdecode(local_files.path_of(uri)))

    def read(self, uri: str, max_bytes: int | None, intake: Intake | None = None) -> Blob:
        """Return the whole file."""
        with local_files.open_file(uri) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            check_size(uri, size_bytes, max_bytes)
            # No more than its size: one that grows meanwhile, or that the kernel makes up (below /proc), has no end.
            data = _read(file, 0, size_bytes, intake)
            status = os.fstat(file.fileno())
        if len(data) != status.st_size:
            raise OSError(f"is being written just now: {uri}")
        return Blob(data, local_files.etag_of(status))

    def read_range(
        self, uri: str, offset_bytes: int, length_bytes: int, etag: str | None, intake: Intake | None = None
    ) -> bytes:
        """Return a part of the file."""
        with local_files.open_file(uri) as file:
            status = os.fstat(file.fileno())
            check_version(uri, local_files.etag_of(status), etag)
            return _read(file, offset_bytes, min(length_bytes, max(status.st_size - offset_bytes, 0)), intake)

    def head(self, uri: str) -> Entry:
        """Return the file as a listing would show it."""
        with local_files.open_file(uri) as file:
            status = os.fstat(file.fileno())
        return Entry(uri, status.st_size, local_files.etag_of(status), status.st_mtime_ns // 1000)

    def exists(self, uri: str) -> bool:
        """Whether a regular file is there."""
        return os.path.isfile(local_files.path_of(uri))

    def list_files(self, uri: str, visitor: Visitor | None = None) -> Iterator[Entry]:
        """Yield every file below a folder, as `local_files.walk` does."""
        yield from itertools.starmap(Entry, local_files.walk(os.fsencode(local_files.path_of(uri)), visitor))

    def list_folder(self, uri: str) -> Iterator[Entry]:
        """Yield a folder's own files."""
        return self.list_files(uri, _NoFolders())

    def write_bytes(self, uri: str, data: bytes) -> None:
        """Put a file, and make the folders on the way."""
        local_files.put(uri, data)

    def create_bytes(self, uri: str, data: bytes) -> str:
        """Put a file where nothing is; return its digest."""
        local_files.create(uri, data)
        return _digest(data)

    def read_version(self, uri: str) -> Blob:
        """Return the file, itself no link, with its digest."""
        with local_files.open_file(uri, follow_links=False) as file:
            data = file.read()
        return Blob(data, _digest(data))

    def replace_bytes(self, uri: str, data: bytes, version: str) -> str:
        """Put a file over the one of that digest, with all others locked out; return its digest."""
        with local_files.locked(uri):
            if not self.exists(uri):
                raise ChangedError(f"removed meanwhile: {uri}")
            check_version(uri, self.read_version(uri).etag, version)
            local_files.put(uri, data)
        return _digest(data)

    def delete(self, uri: str) -> None:
        """Remove the file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(local_files.path_of(uri))

    def remove_temporaries(self, uri: str) -> None:
        """Remove temporary files that killed processes left."""
        local_files.remove_temporaries(uri)

    def remove_empty_folders(self, uri: str) -> None:
        """Remove a folder and those below it, if they are empty."""
        local_files.remove_empty_folders(uri)

    def let_duckdb_read(self, connection: duckdb.DuckDBPyConnection, uri: str) -> None:
        """Do nothing: DuckDB reads files by itself."""


def _read(file: BinaryIO, start: int, size_bytes: int, intake: Intake | None) -> bytes:
    """Read so many bytes; of what `intake` refuses no more than the first."""
    if intake is not None and size_bytes > HEAD_BYTES:
        intake(os.pread(file.fileno(), HEAD_BYTES, start), size_bytes)
    if start:
        file.seek(start)
    return file.read(size_bytes)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
