"""What a home of objects can do, whichever it is: the protocol that `storage` finds one of for each URI.

An object is bytes under a name. Every put is atomic: an object appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True)
class Entry:
    """One stored object as its listing shows it; `etag` names its version (S3's ETag, a local file's time and size).

    `modified_us` is when it was last written, in microseconds since 1970; of an object store, to the whole second.
    """

    uri: str
    size_bytes: int
    etag: str
    modified_us: int


@dataclass(frozen=True)
class Blob:
    """An object's bytes with the version that was read."""

    data: bytes
    etag: str


class ChangedError(OSError):
    """The object is not the version that was asked for."""


class LinkError(OSError):
    """A link is where a file should be that is to be replaced: what it leads to is somebody else's."""


class TooLargeError(OSError):
    """The object has more bytes than were allowed."""


class Store(Protocol):
    """Objects by their URIs; `storage` has a function of each method's name, which says more and what it raises."""

    is_remote: bool
    """Whether its objects are elsewhere than on this machine."""

    def canonical(self, uri: str) -> str:
        """Return an object's URI in the one form that is stored."""

    def can_be_put(self, uri: str) -> bool:
        """Whether an object can be put under just this name."""

    def local_path(self, uri: str) -> Path | None:
        """Return where on this machine the file or folder at `uri` lies, None if it is elsewhere."""

    def read(self, uri: str, max_bytes: int | None) -> Blob:
        """Return the whole object."""

    def read_range(self, uri: str, offset_bytes: int, length_bytes: int, etag: str | None) -> bytes:
        """Return a part of the object."""

    def head(self, uri: str) -> Entry:
        """Return the object as a listing would show it."""

    def exists(self, uri: str) -> bool:
        """Whether an object, not a folder, is there."""

    def list_files(self, uri: str) -> Iterator[Entry]:
        """Yield every object below `uri`, however deep, in a stable order."""

    def write_bytes(self, uri: str, data: bytes) -> None:
        """Put an object over whatever is there."""

    def create_bytes(self, uri: str, data: bytes) -> str:
        """Put an object where nothing is; return its version."""

    def read_version(self, uri: str) -> Blob:
        """Return the object with the version that `replace_bytes` takes."""

    def replace_bytes(self, uri: str, data: bytes, version: str) -> str:
        """Put an object over that version; return the new one."""

    def delete(self, uri: str) -> None:
        """Remove the object, if it is there."""

    def remove_temporaries(self, uri: str) -> None:
        """Remove what puts of killed processes left below a folder, or beside a file that is replaced."""

    def remove_empty_folders(self, uri: str) -> None:
        """Remove a folder and those below it, if they are empty."""

    def let_duckdb_read(self, connection: duckdb.DuckDBPyConnection, uri: str) -> None:
        """Teach `connection` to read what is at `uri`."""


def is_plain(path: str | bytes) -> bool:
    """Whether no part of a path is empty, `.` or `..`, so that it leads nowhere else and no store rewrites it."""
    parts: list[str] | list[bytes] = path.split("/") if isinstance(path, str) else path.split(b"/")
    return not any(part in ("", ".", "..", b"", b".", b"..") for part in parts)


def check_size(uri: str, size_bytes: int, max_bytes: int | None) -> None:
    """Raise TooLargeError for an object that has more than `max_bytes`."""
    if max_bytes is not None and size_bytes > max_bytes:
        raise TooLargeError(f"{size_bytes} bytes, more than the limit of {max_bytes}: {uri}")


def check_version(uri: str, found: str, wanted: str | None) -> None:
    """Raise ChangedError for an object that is not the version `wanted`; any will do where that is None."""
    if wanted is not None and found != wanted:
        raise ChangedError(f"changed meanwhile: {uri}")
