"""A stored object as a seekable file, for readers that want only parts of it: Parquet, CSV, tar, zip."""

from __future__ import annotations

import io

from pipeline import storage

_FIRST_WINDOW_BYTES = 64 << 10
_LAST_WINDOW_BYTES = 8 << 20
_NEAR_BYTES = (64 << 10, 1 << 20)
"""A gap that is read through rather than asked around: local, remote (what comes in the time a request takes)."""


class RangedFile(io.RawIOBase):
    """Reads one version of an object by ranges, further ahead the longer reads follow each other. Not for two threads.

    Raises ChangedError where the object is no longer that version, other errors as `storage.read_range`, and ValueError
    for one read of more than `max_read_bytes`: a format's parser was told an absurd length.
    """

    def __init__(self, entry: storage.Entry, max_read_bytes: int | None = None) -> None:
        self._entry = entry
        self._max_read_bytes = max_read_bytes
        self._near_bytes = _NEAR_BYTES[storage.is_remote(entry.uri)]
        self._position = 0
        self._ahead = b""
        self._ahead_start = 0
        self._window_bytes = _FIRST_WINDOW_BYTES

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def seekable(self) -> bool:
        """Whether it can be read from anywhere: always."""
        return True

    def tell(self) -> int:
        """Return where the next read begins, in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set where the next read begins; ValueError before the beginning."""
        position = offset + (0, self._position, self._entry.size_bytes)[whence]
        if position < 0:
            raise ValueError(f"{self._entry.uri}: there is nothing before its beginning")
        self._position = position
        return position

    def read(self, size: int | None = -1) -> bytes:
        """Return the next `size` bytes, all that remain where that is negative or more."""
        left = max(self._entry.size_bytes - self._position, 0)
        size = left if size is None or size < 0 else min(size, left)
        if self._max_read_bytes is not None and size > self._max_read_bytes:
            raise ValueError(f"{self._entry.uri} claims a header of {size} bytes")
        skipped = self._position - self._ahead_start
        data = self._ahead[skipped : skipped + size] if skipped >= 0 else b""
        if len(data) < size:
            data += self._fetch(self._position + len(data), size - len(data))
        self._position += len(data)
        return data

    def _fetch(self, start: int, size: int) -> bytes:
        gap = start - (self._ahead_start + len(self._ahead))
        is_near = 0 <= gap <= self._near_bytes
        self._window_bytes = min(self._window_bytes * 2, _LAST_WINDOW_BYTES) if is_near else _FIRST_WINDOW_BYTES
        wanted = min(max(size, self._window_bytes), self._entry.size_bytes - start)
        self._ahead = storage.read_range(self._entry.uri, start, wanted, self._entry.etag)
        self._ahead_start = start
        if len(self._ahead) < wanted:
            raise OSError(f"{self._entry.uri} ended before its {self._entry.size_bytes} bytes")
        return self._ahead[:size]
