"""A stored object as a file that several threads read at once, each in two steps: seek, then read."""

from __future__ import annotations

import threading
from collections.abc import Callable


class SharedFile:
    """What DuckDB needs of a Python file to read an object; `read_range` returns bytes from an offset on, so many.

    DuckDB's threads share one file. With one position for all of them, a thread now and then gets bytes from where
    another sought meanwhile: decompression fails, or does not. Here each has its own, and gets all that it asks for.
    """

    def __init__(self, read_range: Callable[[int, int], bytes]) -> None:
        self._read_range = read_range
        self._of_thread = threading.local()

    def seek(self, offset_bytes: int) -> int:
        """Set where this thread's next read begins."""
        self._of_thread.position = offset_bytes
        return offset_bytes

    def tell(self) -> int:
        """Return where this thread's next read begins."""
        return int(getattr(self._of_thread, "position", 0))

    def read(self, size_bytes: int) -> bytes:
        """Return the next bytes, fewer only at the end of the object."""
        data = self._read_range(self.tell(), size_bytes) if size_bytes else b""
        self._of_thread.position = self.tell() + len(data)
        return data

    def close(self) -> None:
        """Do nothing: nothing is held open."""
