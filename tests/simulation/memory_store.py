"""An object store in memory, every operation of which is a scheduling point; answers and requests get lost.

It takes the place of what `pipeline.storage` does with s3:// URIs, function by function.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from fsspec import AbstractFileSystem

from pipeline import storage
from pipeline.storage.shared_file import SharedFile
from tests.simulation.scheduler import Scheduler

_ATTEMPTS = 2
"""How often a put that is not answered is tried again."""


class MemoryStore:
    """Objects by URI. `lost` is how likely it is that a change's request or answer is lost."""

    def __init__(self, scheduler: Scheduler, lost: float) -> None:
        self.objects: dict[str, bytes] = {}
        self._scheduler, self._lost = scheduler, lost
        self._late: list[Callable[[], None]] = []

    def patches(self) -> dict[str, Any]:
        """Return the functions of `pipeline.storage` that this store stands for, by name."""
        names = ("read", "read_bytes", "write_bytes", "read_range", "head", "create_bytes", "read_version")
        names += ("replace_bytes", "delete", "delete_folder", "exists", "list_files", "let_duckdb_read")
        return {name: getattr(self, name) for name in names}

    def read(self, uri: str, max_bytes: int | None = None) -> storage.Blob:
        """As `storage.read`."""
        del max_bytes
        self._scheduler.step(f"read {uri}")
        return self._found(uri)

    def read_bytes(self, uri: str) -> bytes:
        """As `storage.read_bytes`."""
        return self.read(uri).data

    def read_range(self, uri: str, offset_bytes: int, length_bytes: int, etag: str | None = None) -> bytes:
        """As `storage.read_range`; no scheduling point, as DuckDB calls it from threads of its own."""
        found = self._found(uri)
        if etag is not None and found.etag != etag:
            raise storage.ChangedError(f"changed meanwhile: {uri}")
        return found.data[offset_bytes : offset_bytes + length_bytes]

    def head(self, uri: str) -> storage.Entry:
        """As `storage.head`."""
        self._scheduler.step(f"head {uri}")
        return self.entry(uri)

    def entry(self, uri: str) -> storage.Entry:
        """Return an object as a listing shows it, without a scheduling point."""
        found = self._found(uri)
        return storage.Entry(uri, len(found.data), found.etag, 0)

    def exists(self, uri: str) -> bool:
        """As `storage.exists`."""
        self._scheduler.step(f"exists {uri}")
        return uri in self.objects

    def list_files(self, uri: str, visitor: storage.Visitor | None = None) -> Iterator[storage.Entry]:
        """As `storage.list_files`."""
        del visitor
        self._scheduler.step(f"list {uri}")
        yield from [self.entry(name) for name in sorted(self.objects) if name.startswith(uri.rstrip("/") + "/")]

    def write_bytes(self, uri: str, data: bytes) -> None:
        """As `storage.write_bytes`."""
        self._change(f"put {uri}", lambda: self.objects.__setitem__(uri, data))

    def delete(self, uri: str) -> None:
        """As `storage.delete`."""
        self._change(f"delete {uri}", lambda: self.objects.pop(uri, None))

    def delete_folder(self, uri: str) -> None:
        """As `storage.delete_folder`."""
        for entry in self.list_files(uri):
            self.delete(entry.uri)

    def create_bytes(self, uri: str, data: bytes) -> str:
        """As `storage.create_bytes`."""
        return self._change_if(f"create {uri}", uri, data, None, FileExistsError(f"already there: {uri}"))

    def read_version(self, uri: str) -> storage.Blob:
        """As `storage.read_version`."""
        return self.read(uri)

    def replace_bytes(self, uri: str, data: bytes, version: str) -> str:
        """As `storage.replace_bytes`."""
        return self._change_if(f"replace {uri}", uri, data, version, storage.ChangedError(f"changed meanwhile: {uri}"))

    def let_duckdb_read(self, connection: Any, uri: str) -> None:
        """As `storage.let_duckdb_read`."""
        del uri
        self._scheduler.step("open DuckDB")
        connection.register_filesystem(_FileSystem(self, skip_instance_cache=True))

    def arrive(self) -> None:
        """Let requests that were on their way arrive at last."""
        late, self._late = self._late, []
        for apply in late:
            apply()

    def _found(self, uri: str) -> storage.Blob:
        try:
            data = self.objects[uri]
        except KeyError:
            raise FileNotFoundError(f"not found: {uri}") from None
        return storage.Blob(data, hashlib.blake2b(data, digest_size=16).hexdigest())

    def _change(self, what: str, apply: Callable[[], object]) -> None:
        for _ in range(_ATTEMPTS):
            self._scheduler.step(what)
            if self._is_done(what, apply):
                return
        raise OSError(f"no answer: {what}")

    def _change_if(self, what: str, uri: str, data: bytes, version: str | None, refusal: OSError) -> str:
        """As `ObjectStore._put_if`: what was put in an attempt whose answer was lost does not count as another's."""
        is_put: list[bool] = []

        def apply() -> None:
            there = self._found(uri).etag if uri in self.objects else None
            is_put.append(there == version)
            if is_put[-1]:
                self.objects[uri] = data

        for _ in range(_ATTEMPTS):
            self._scheduler.step(what)
            if self._is_done(what, apply):
                if not is_put[-1]:
                    self._scheduler.step(f"{what}: refused, read back")
                    if uri not in self.objects or self.objects[uri] != data:
                        raise refusal
                return self._digest(data)
        raise OSError(f"no answer: {what}")

    @staticmethod
    def _digest(data: bytes) -> str:
        return hashlib.blake2b(data, digest_size=16).hexdigest()

    def _is_done(self, what: str, apply: Callable[[], object]) -> bool:
        """Apply a change, or not, and return whether it was answered."""
        fate = self._scheduler.random.random() if not self._scheduler.is_calm else 1.0
        if fate > self._lost:
            apply()
            return True
        kind = self._scheduler.random.choice(("answer lost", "request lost", "request late"))
        self._scheduler.trace.append(f"{'':9}{what}: {kind}")
        if kind == "answer lost":
            apply()
        elif kind == "request late":
            self._late.append(apply)
        return False


class _FileSystem(AbstractFileSystem):  # type: ignore[misc]
    """What DuckDB needs to read the store."""

    protocol = "s3"

    def __init__(self, store: MemoryStore, **options: Any) -> None:
        super().__init__(**options)
        self._store = store

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        entry = self._store.entry(_uri(path))
        return {"name": path, "size": entry.size_bytes, "type": "file"}

    def exists(self, path: str, **_: Any) -> bool:
        return _uri(path) in self._store.objects

    def glob(self, path: str, **_: Any) -> list[str]:
        return [path] if self.exists(path) else []

    def modified(self, path: str) -> Any:
        del path
        import datetime as dt

        return dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        assert mode == "rb"
        uri = _uri(path)
        return SharedFile(lambda offset, length: self._store.read_range(uri, offset, length))


def _uri(path: str) -> str:
    return path if path.startswith("s3://") else f"s3://{path}"
