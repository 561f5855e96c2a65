"""Open, list, read and put on any URI: a local path, `file://`, `s3://`, `gs://`, `az://`; each has its `store.Store`.

Errors come out as Python's own: `FileNotFoundError`, `PermissionError`, `TimeoutError`, other `OSError`; a URI that
can't be one is a `ValueError`. Every put is atomic: an object appears whole or not at all. S3 credentials, region and
endpoint come from the environment, as boto3 and every AWS tool read them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.storage import local_files, object_store
from pipeline.storage.local_store import LocalStore
from pipeline.storage.object_store import ObjectStore
from pipeline.storage.object_store import one_attempt as one_attempt
from pipeline.storage.store import HEAD_BYTES as HEAD_BYTES
from pipeline.storage.store import Blob as Blob
from pipeline.storage.store import ChangedError as ChangedError
from pipeline.storage.store import Entry as Entry
from pipeline.storage.store import Intake as Intake
from pipeline.storage.store import Store, is_plain
from pipeline.storage.store import TooLargeError as TooLargeError
from pipeline.storage.store import Visitor as Visitor

if TYPE_CHECKING:
    import duckdb

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_LOCAL: Store = LocalStore()
_OBJECTS: Store = ObjectStore()


def _store_of(uri: str) -> Store:
    """Return the home of `uri`; ValueError for a scheme that none has."""
    match = _SCHEME.match(uri)
    if match is None or match[1].lower() == "file":
        return _LOCAL
    if match[1].lower() not in object_store.SCHEMES:
        raise ValueError(
            f"can't read {uri!r}: use a local path or one of {', '.join(f'{s}://' for s in object_store.SCHEMES)}"
        )
    return _OBJECTS


def is_remote(uri: str) -> bool:
    """Whether `uri` names an object store rather than a local path; ValueError for a scheme nobody here reads."""
    return _store_of(uri).is_remote


def absolute(uri: str) -> str:
    """Return a folder's or prefix's `uri` as `canonical` does, without a trailing slash."""
    uri = canonical(uri)
    return uri.rstrip("/") if is_remote(uri) else uri


def canonical(uri: str) -> str:
    """Return an object's `uri` in the one form that is stored: one scheme a store, or an absolute local path."""
    return _store_of(uri).canonical(uri)


def can_be_put(uri: str) -> bool:
    """Whether an object can be put at `uri` under just this name: some stores refuse or rewrite odd ones."""
    return _store_of(uri).can_be_put(uri)


def join(uri: str, *parts: str) -> str:
    """Return the URI of `parts` below `uri`."""
    return "/".join([uri.rstrip("/"), *parts])


def read(uri: str, max_bytes: int | None = None, intake: Intake | None = None) -> Blob:
    """Return the whole object at `uri` and the version read; TooLargeError, unread, where it is more than `max_bytes`.

    Raises FileNotFoundError, PermissionError, TimeoutError, RefusedError; any other OSError may be of the moment. What
    `intake` raises, once the first 64 KiB are there, ends the read.
    """
    return _store_of(uri).read(uri, max_bytes, intake)


def read_bytes(uri: str) -> bytes:
    """Return the whole object at `uri`."""
    return read(uri).data


def write_bytes(uri: str, data: bytes) -> None:
    """Put `data` at `uri` atomically, over whatever is there."""
    _store_of(uri).write_bytes(uri, data)


def read_range(
    uri: str, offset_bytes: int, length_bytes: int, etag: str | None = None, intake: Intake | None = None
) -> bytes:
    """Return a part of the object at `uri`, shorter where the object ends; ChangedError where it isn't version `etag`.

    Raises as `read` otherwise.
    """
    return _store_of(uri).read_range(uri, offset_bytes, length_bytes, etag, intake)


def head(uri: str) -> Entry:
    """Return the object at `uri` as a listing would show it; FileNotFoundError where none is."""
    return _store_of(uri).head(uri)


def create_bytes(uri: str, data: bytes) -> str:
    """Put `data` at `uri` if nothing is there; return its version, for `replace_bytes`. FileExistsError otherwise.

    `data` must be unlike anybody else's: finding it there counts as having put it.
    """
    return _store_of(uri).create_bytes(uri, data)


def read_version(uri: str) -> Blob:
    """Return the object at `uri` with the version that `replace_bytes` takes."""
    return _store_of(uri).read_version(uri)


def replace_bytes(uri: str, data: bytes, version: str) -> str:
    """Put `data` at `uri` if `version` is there, in one step nobody can come between; return the new version.

    Raises ChangedError where something else is there by now, or nothing. `data` must be unlike anybody else's.
    """
    return _store_of(uri).replace_bytes(uri, data, version)


def delete(uri: str) -> None:
    """Remove the object at `uri`; one that is already gone is no error."""
    _store_of(uri).delete(uri)


def remove_temporaries(uri: str) -> None:
    """Remove what puts of killed processes left below a folder, for whoever alone writes there, or what they left
    beside a file when they replaced it; object stores keep nothing of such."""
    _store_of(uri).remove_temporaries(uri)


def is_within(uri: str, folder: str) -> bool:
    """Whether the object at `uri` really is below `folder`, where no link leads elsewhere."""
    path, top = _store_of(uri).local_path(uri), _store_of(folder).local_path(folder)
    if path is None or top is None:
        return path is top and uri.startswith(join(folder, ""))
    return path.parent.resolve().is_relative_to(top.resolve())


def is_link(uri: str) -> bool:
    """Whether a link to another file is at `uri`."""
    path = _store_of(uri).local_path(uri)
    return path is not None and path.is_symlink()


def delete_folder(uri: str) -> None:
    """Remove every object below `uri`, and a local folder's then empty directories."""
    for entry in list_files(uri):
        delete(entry.uri)
    remove_empty_folders(uri)


def remove_empty_folders(uri: str) -> None:
    """Remove a local folder and those below it, if they are empty; stores have none."""
    _store_of(uri).remove_empty_folders(uri)


def is_left_empty(uri: str) -> bool:
    """Whether the nearest local folder that there is, `uri` or one above it, has nothing in it; stores have none."""
    return not is_remote(uri) and local_files.is_left_empty(uri)


def exists(uri: str) -> bool:
    """Whether an object (not a folder) is at `uri`."""
    return _store_of(uri).exists(uri)


def list_files(uri: str, visitor: Visitor | None = None) -> Iterator[Entry]:
    """Return all objects below `uri`, however deep, in a stable order; a missing folder or prefix has none.

    A store's objects are in the order of their keys; a local folder's files are sorted, 10,000 at a time, and its
    folders come after. Raises FileNotFoundError for a missing bucket and OSError for any folder that can't be listed:
    none is passed over, but where a `visitor` takes note of it.
    """
    return _store_of(uri).list_files(uri, visitor)


def list_folder(uri: str) -> Iterator[Entry]:
    """Return the objects right in a folder, or whose key goes on without a slash behind that prefix; as `list_files`.

    Nothing that is deeper is listed.
    """
    return _store_of(uri).list_folder(uri)


def check_writable(uri: str) -> None:
    """Put and remove a small object below `uri`; ValueError saying what failed where that is refused.

    Nothing is left behind, no folder either.
    """
    probe = join(uri, f".graticule-probe-{os.getpid()}")
    folder = _store_of(uri).local_path(uri)
    made = [] if folder is None else [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        write_bytes(probe, b"")
        delete(probe)
        with contextlib.suppress(OSError):  # somebody has put something there meanwhile
            for each in made:
                each.rmdir()
    except OSError as error:
        raise ValueError(
            f"can't write to {uri}: {error}. Give --output a folder or prefix you may write to."
        ) from error


def cache_folder() -> Path:
    """Return the local folder for what can be made again: copies of remote models, compiled engines (XDG's place)."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "graticule"


def local_folder(uri: str) -> Path:
    """Return a local folder with the files below `uri`: itself, or a copy of a remote one, made once per version."""
    path = _store_of(uri).local_path(uri)
    if path is not None:
        return path
    entries = list(list_files(uri))
    if not entries:
        raise ValueError(f"nothing is at {uri}: check the name")
    names = [entry.uri.removeprefix(uri.rstrip("/") + "/") for entry in entries]
    if odd := [name for name in names if not is_plain(name)]:  # might be written outside the cache
        raise ValueError(f"{uri} holds {odd[0]!r}, of which a part is empty, '.' or '..': not a folder to copy")
    version = hashlib.sha256(repr(entries).encode()).hexdigest()[:16]
    cache = cache_folder() / version
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=cache.parent))
        for entry, name in zip(entries, names, strict=True):
            write_bytes(f"{fresh}/{name}", read_bytes(entry.uri))
        try:
            fresh.rename(cache)
        except OSError:  # another process was first; its copy has the same content
            assert cache.exists()
            delete_folder(str(fresh))
    return cache


def let_duckdb_read(connection: duckdb.DuckDBPyConnection, uri: str) -> None:
    """Teach `connection` to read `uri`'s scheme through obstore: DuckDB's own S3 reader needs a download.

    ValueError for a remote name that it can't read.
    """
    _store_of(uri).let_duckdb_read(connection, uri)
