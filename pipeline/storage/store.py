"""What a home of objects can do, whichever it is: the protocol that `storage` finds one of for each URI.

An object is bytes under a name. Every put is atomic: an object appears whole or not at all.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import duckdb


HEAD_BYTES = 64 << 10
Intake = Callable[[bytes, int], None]
"""Who looks at a body as it comes, with its first `HEAD_BYTES` and its size: what it raises ends the read.

It is not asked about a body of no more than that. Where a server does not say the size, it is asked again with what has
come by then, each time that has doubled.
"""


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


class Visitor(Protocol):
    """Says where a listing goes, and is told what it could not look at: for whoever wants all the rest."""

    def enters(self, folder_uri: str) -> bool:
        """Whether to list a folder below the one that was asked for; object stores have none, and do not ask."""

    def note_unseen(self, uri: str, error: OSError) -> None:
        """Take note that a folder, or some of its files, could not be looked at; raise `error` to end the listing."""


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

    def read(self, uri: str, max_bytes: int | None, intake: Intake | None) -> Blob:
        """Return the whole object."""

    def read_range(
        self, uri: str, offset_bytes: int, length_bytes: int, etag: str | None, intake: Intake | None
    ) -> bytes:
        """Return a part of the object."""

    def head(self, uri: str) -> Entry:
        """Return the object as a listing would show it."""

    def exists(self, uri: str) -> bool:
        """Whether an object, not a folder, is there."""

    def list_files(self, uri: str, visitor: Visitor | None = None) -> Iterator[Entry]:
        """Yield every object below `uri`, however deep, in a stable order, but for what `visitor` leaves out."""

    def list_folder(self, uri: str) -> Iterator[Entry]:
        """Yield every object right in `uri`, none that is deeper."""

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


def taken_in(chunks: Iterable[bytes], size_bytes: int | None, intake: Intake | None) -> bytes:
    """Return all chunks of a body, of which the server said that it has `size_bytes`, held once.

    Raises what `intake` raises, and asks for no more chunks then.
    """
    received, asked_at_bytes = io.BytesIO(), HEAD_BYTES
    for chunk in chunks:
        received.write(chunk)
        come_bytes = received.tell()
        # Of a body that has just its head there is no rest to be spared.
        if intake is not None and come_bytes >= asked_at_bytes and (size_bytes or come_bytes + 1) > HEAD_BYTES:
            intake(bytes(received.getbuffer()[:HEAD_BYTES]), size_bytes or come_bytes)
            if size_bytes is not None:
                intake = None
            asked_at_bytes = 2 * come_bytes
    return received.getvalue()
