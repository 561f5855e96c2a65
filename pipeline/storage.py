"""Open, list, read and put on any URI: a local path, `file://`, `s3://`, `gs://`, `az://`.

Errors come out as Python's own: `FileNotFoundError`, `PermissionError`, `TimeoutError`, other `OSError`; a URI that
can't be one is a `ValueError`. Every put is atomic: an object appears whole or not at all. S3 credentials, region and
endpoint come from the environment, as boto3 and every AWS tool read them.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import hashlib
import itertools
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
import tenacity
from obstore.fsspec import FsspecStore

from pipeline import local_files
from pipeline.parallel_listing import Page, list_in_order
from pipeline.shared_file import SharedFile
from pipeline.store_clients import builtin_errors
from pipeline.store_clients import s3_client as _s3_client
from pipeline.store_clients import s3_options as _s3_options
from pipeline.store_clients import store as _store

if TYPE_CHECKING:
    import duckdb

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_PUT_TIMEOUT_S = 15.0
_REMOTE_SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss")


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


class TooLargeError(OSError):
    """The object has more bytes than were allowed."""


@dataclass(frozen=True)
class _Attempt:
    timeout_s: float
    deadline_s: float


_MAKING_CLIENTS = threading.Lock()
"""Without it, each of sixteen threads that begin together would make its own: boto3's takes 0.3 s of CPU."""
_ATTEMPT: ContextVar[_Attempt | None] = ContextVar("attempt", default=None)


@contextlib.contextmanager
def one_attempt(timeout_s: float, deadline_s: float) -> Iterator[None]:
    """Within it, this thread's reads are tried once, whatever their size: for callers that try again themselves.

    Such a read raises TimeoutError when no byte comes for `timeout_s`, or at `deadline_s` by `time.monotonic`. All else
    that is read or put is tried again here, for up to a minute, each time for half a minute.
    """
    token = _ATTEMPT.set(_Attempt(timeout_s, deadline_s))
    try:
        yield
    finally:
        _ATTEMPT.reset(token)


# Whether a put or removal was done can't be known when its answer is lost, so the clients give up at once. Ours may all
# be done twice.
_done_again = tenacity.retry(
    retry=tenacity.retry_if_exception(lambda error: type(error) in (OSError, TimeoutError)),
    wait=tenacity.wait_random_exponential(multiplier=0.25, max=5),
    stop=tenacity.stop_before_delay(60),
    reraise=True,
)


def is_remote(uri: str) -> bool:
    """Whether `uri` names an object store rather than a local path; ValueError for a scheme nobody here reads."""
    match = _SCHEME.match(uri)
    if match is None or match[1].lower() == "file":
        return False
    if match[1].lower() not in _REMOTE_SCHEMES:
        raise ValueError(
            f"can't read {uri!r}: use a local path or one of {', '.join(f'{s}://' for s in _REMOTE_SCHEMES)}"
        )
    return True


def absolute(uri: str) -> str:
    """Return a folder's or prefix's `uri` as `canonical` does, without a trailing slash."""
    uri = canonical(uri)
    return uri.rstrip("/") if is_remote(uri) else uri


def canonical(uri: str) -> str:
    """Return an object's `uri` in the one form that is stored: one scheme a store, or an absolute local path."""
    if is_remote(uri):
        scheme, rest = uri.split("://", 1)
        bucket = rest.split("/", 1)[0]
        if not bucket:
            raise ValueError(f"{uri!r} names no bucket: write s3://BUCKET/PREFIX")
        return f"{'s3' if scheme.lower() == 's3a' else scheme.lower()}://{rest}"
    return local_files.uri_of(os.path.abspath(os.fsencode(local_files.path_of(uri))))


def join(uri: str, *parts: str) -> str:
    """Return the URI of `parts` below `uri`."""
    return "/".join([uri.rstrip("/"), *parts])


def read(uri: str, max_bytes: int | None = None) -> Blob:
    """Return the whole object at `uri` and the version read; TooLargeError, unread, where it is more than `max_bytes`.

    Raises FileNotFoundError, PermissionError, TimeoutError, RefusedError; any other OSError may be of the moment.
    """
    if not is_remote(uri):
        with local_files.open_file(uri) as file:
            _check_size(uri, os.fstat(file.fileno()).st_size, max_bytes)
            data = file.read()
            status = os.fstat(file.fileno())
        if len(data) < status.st_size:
            raise OSError(f"is being written just now: {uri}")
        return Blob(data, local_files.etag_of(status))
    with _opened(uri) as answer:
        _check_size(uri, answer.size_bytes, max_bytes)
        return Blob(_received(uri, answer), answer.etag)


def read_bytes(uri: str) -> bytes:
    """Return the whole object at `uri`."""
    return read(uri).data


def write_bytes(uri: str, data: bytes) -> None:
    """Put `data` at `uri` atomically, over whatever is there."""
    if is_remote(uri):
        _put(uri, data)
    else:
        local_files.put(uri, data)


def read_range(uri: str, offset_bytes: int, length_bytes: int, etag: str | None = None) -> bytes:
    """Return a part of the object at `uri`, shorter where the object ends; ChangedError where it isn't version `etag`.

    Raises as `read` otherwise.
    """
    if not is_remote(uri):
        with local_files.open_file(uri) as file:
            _check_version(uri, local_files.etag_of(os.fstat(file.fileno())), etag)
            file.seek(offset_bytes)
            return file.read(length_bytes)
    with _opened(uri, (offset_bytes, offset_bytes + length_bytes)) as answer:
        _check_version(uri, answer.etag, etag)
        return _received(uri, answer)


def head(uri: str) -> Entry:
    """Return the object at `uri` as a listing would show it; FileNotFoundError where none is."""
    if not is_remote(uri):
        with local_files.open_file(uri) as file:
            status = os.fstat(file.fileno())
        return Entry(uri, status.st_size, local_files.etag_of(status), status.st_mtime_ns // 1000)
    bucket, key = _split(uri)
    with builtin_errors(uri):
        if _obstore_takes(key):
            found = obstore.head(_store(bucket), key)
            return _entry(uri, found["size"], found["e_tag"], found["last_modified"])
        answer = _s3_client().head_object(Bucket=_s3_bucket(uri), Key=key)
        return _entry(uri, answer["ContentLength"], answer["ETag"], answer["LastModified"])


def create_bytes(uri: str, data: bytes) -> str:
    """Put `data` at `uri` if nothing is there; return its version, for `replace_bytes`. FileExistsError otherwise.

    `data` must be unlike anybody else's: finding it there counts as having put it.
    """
    if is_remote(uri):
        return _put_if(uri, data, ["create"], FileExistsError(f"already there: {uri}"))
    local_files.create(uri, data)
    return _digest(data)


def read_version(uri: str) -> Blob:
    """Return the object at `uri` with the version that `replace_bytes` takes."""
    blob = read(uri)
    return blob if is_remote(uri) else Blob(blob.data, _digest(blob.data))


def replace_bytes(uri: str, data: bytes, version: str) -> str:
    """Put `data` at `uri` if `version` is there, in one step nobody can come between; return the new version.

    Raises ChangedError where something else is there by now, or nothing. `data` must be unlike anybody else's.
    """
    if is_remote(uri):
        # Ceph knows an ETag only without the quotes that HTTP puts around it.
        modes = [{"e_tag": f'"{version}"'}, {"e_tag": version}]
        return _put_if(uri, data, modes, ChangedError(f"changed meanwhile: {uri}"))
    with local_files.locked(uri):
        if not exists(uri):
            raise ChangedError(f"removed meanwhile: {uri}")
        _check_version(uri, read_version(uri).etag, version)
        local_files.put(uri, data, is_locked=True)
    return _digest(data)


def delete(uri: str) -> None:
    """Remove the object at `uri`; one that is already gone is no error."""
    if is_remote(uri):
        _delete(uri)
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(local_files.path_of(uri))


def remove_temporaries(folder_uri: str) -> None:
    """Remove what puts of killed processes left below a folder, for whoever alone writes there; stores keep nothing."""
    if not is_remote(folder_uri):
        local_files.remove_temporaries(folder_uri)


def delete_folder(uri: str) -> None:
    """Remove every object below `uri`, and a local folder's then empty directories."""
    for entry in list_files(uri):
        delete(entry.uri)
    remove_empty_folders(uri)


def remove_empty_folders(uri: str) -> None:
    """Remove a local folder and those below it, if they are empty; stores have none."""
    if not is_remote(uri):
        local_files.remove_empty_folders(uri)


def exists(uri: str) -> bool:
    """Whether an object (not a folder) is at `uri`."""
    if not is_remote(uri):
        return os.path.isfile(local_files.path_of(uri))
    bucket, key = _split(uri)
    if not key:
        return False
    with builtin_errors(uri):
        try:
            obstore.head(_store(bucket), key)
        except FileNotFoundError:
            return False
    return True


def list_files(uri: str) -> Iterator[Entry]:
    """Yield every object below `uri`, however deep, in a stable order; a missing folder or prefix yields nothing.

    Raises FileNotFoundError for a missing bucket and OSError for any folder that can't be listed: none is passed over.
    """
    if not is_remote(uri):
        yield from itertools.starmap(Entry, local_files.walk(os.fsencode(local_files.path_of(uri))))
        return
    bucket, prefix = _split(uri)
    prefix = prefix and prefix.rstrip("/") + "/"
    with builtin_errors(uri):
        if bucket.startswith("s3://"):
            for entry in list_in_order(functools.partial(_s3_page, _s3_client(), _s3_bucket(uri), prefix), prefix):
                if not (entry.uri.endswith("/") and entry.size_bytes == 0):  # a console's folder marker
                    yield entry
        else:
            for chunk in obstore.list(_store(bucket), prefix):
                for item in chunk:
                    yield _entry(f"{bucket}/{item['path']}", item["size"], item["e_tag"], item["last_modified"])


def _s3_page(client: Any, bucket: str, prefix: str, token: str | None, after: str | None) -> Page[Entry]:
    # boto3, not obstore: obstore's listing stops at the first key with `//`, `..` or a control character in it.
    where = {"ContinuationToken": token} if token else {"StartAfter": after} if after else {}
    answer = client.list_objects_v2(Bucket=bucket, Prefix=prefix, **where)
    items = answer.get("Contents", ())
    entries = [_entry(f"s3://{bucket}/{x['Key']}", x["Size"], x["ETag"], x["LastModified"]) for x in items]
    return Page([item["Key"] for item in items], entries, answer.get("NextContinuationToken"))


def _entry(uri: str, size_bytes: int, etag: str | None, modified_at: dt.datetime) -> Entry:
    # Some stores' listings tell milliseconds, but HTTP's Last-Modified, where one object is asked for, whole seconds.
    return Entry(uri, size_bytes, _clean_etag(etag), int(modified_at.timestamp()) * 1_000_000)


def check_writable(uri: str) -> None:
    """Put and remove a small object below `uri`; ValueError saying what failed where that is refused."""
    probe = join(uri, f".graticule-probe-{os.getpid()}")
    try:
        write_bytes(probe, b"")
        delete(probe)
    except OSError as error:
        raise ValueError(
            f"can't write to {uri}: {error}. Give --output a folder or prefix you may write to."
        ) from error


def cache_folder() -> Path:
    """Return the local folder for what can be made again: copies of remote models, compiled engines (XDG's place)."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "graticule"


def local_folder(uri: str) -> Path:
    """Return a local folder with the files below `uri`: itself, or a copy of a remote one, made once per version."""
    if not is_remote(uri):
        return Path(os.fsdecode(local_files.path_of(uri)))
    entries = list(list_files(uri))
    if not entries:
        raise ValueError(f"nothing is at {uri}: check the name")
    names = [entry.uri.removeprefix(uri.rstrip("/") + "/") for entry in entries]
    if any(".." in name.split("/") for name in names):  # would be written outside the cache
        raise ValueError(f"{uri} holds names with '..' in them: not a folder to copy")
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
    if is_remote(uri):
        if any(character in uri for character in "*?[#"):
            raise ValueError(f"{uri}: DuckDB can't read a remote name with *, ?, [ or # in it: choose one without")
        scheme = uri.split("://", 1)[0]
        with builtin_errors(uri):
            options: Any = _s3_options() if scheme == "s3" else {}
        connection.register_filesystem(_DuckdbStore(scheme, **options))  # type: ignore[call-overload]


class _DuckdbStore(FsspecStore):
    """obstore's file system, but with files that DuckDB's threads can share."""

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:  # type: ignore[override]
        if mode != "rb":
            return super()._open(path, mode, **options)
        return SharedFile(functools.partial(read_range, path))  # the whole URI, as DuckDB gives it


@_done_again
def _put(uri: str, data: bytes) -> None:
    bucket, key = _split(uri)
    with builtin_errors(uri):
        try:
            obstore.put(_store(bucket), key, data)
        except FileNotFoundError as error:
            # A large object's last answer was lost, and obstore tried to clear away the parts that are in it by now.
            if "NoSuchUpload" not in str(error):
                raise
            raise OSError(f"put, or not: {uri}") from error


@_done_again
def _delete(uri: str) -> None:
    bucket, key = _split(uri)
    with builtin_errors(uri), contextlib.suppress(FileNotFoundError):
        obstore.delete(_store(bucket), key)


@_done_again
def _put_if(uri: str, data: bytes, modes: Iterable[Any], refusal: OSError) -> str:
    bucket, key = _split(uri)
    # Not tried again by obstore, which can't know that a refusal after a lost answer is no refusal.
    store = _store(bucket, _PUT_TIMEOUT_S)
    with builtin_errors(uri):
        for mode in modes:
            try:
                return _clean_etag(obstore.put(store, key, data, mode=mode, use_multipart=False)["e_tag"])
            except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError, FileNotFoundError):
                continue
    # What we put ourselves, in an attempt whose answer was lost, must not count as another's.
    with contextlib.suppress(FileNotFoundError):
        found = read(uri)
        if found.data == data:
            return found.etag
    raise refusal


@dataclass(frozen=True)
class _Answer:
    size_bytes: int
    etag: str
    chunks: Iterable[Any]


@contextlib.contextmanager
def _opened(uri: str, part: tuple[int, int] | None = None) -> Iterator[_Answer]:
    """Ask for a remote object, or the part from one byte to before another, with its bytes still to come."""
    bucket, key = _split(uri)
    attempt = _ATTEMPT.get()
    silence_s = attempt.timeout_s if attempt else None
    with builtin_errors(uri):
        if _obstore_takes(key):
            with _MAKING_CLIENTS:
                store = _store(bucket, silence_s)
            response = obstore.get(store, key, options={"range": part} if part else {})
            start, end = response.range
            yield _Answer(end - start, _clean_etag(response.meta["e_tag"]), response.stream(min_chunk_size=1))
            return
        options = {"Range": f"bytes={part[0]}-{part[1] - 1}"} if part else {}
        with _MAKING_CLIENTS:
            client = _s3_client(silence_s)
        answer = client.get_object(Bucket=_s3_bucket(uri), Key=key, **options)
        with contextlib.closing(answer["Body"]) as body:
            yield _Answer(answer["ContentLength"], _clean_etag(answer["ETag"]), body.iter_chunks(1 << 20))


def _received(uri: str, answer: _Answer) -> bytes:
    attempt = _ATTEMPT.get()
    received = []
    for chunk in answer.chunks:
        if attempt and time.monotonic() > attempt.deadline_s:
            raise TimeoutError(f"still coming at the deadline: {uri}")
        received.append(chunk)
    data = b"".join(received)
    if len(data) != answer.size_bytes:
        raise OSError(f"{len(data)} bytes came instead of {answer.size_bytes}: {uri}")
    return data


def _check_size(uri: str, size_bytes: int, max_bytes: int | None) -> None:
    if max_bytes is not None and size_bytes > max_bytes:
        raise TooLargeError(f"{size_bytes} bytes, more than the limit of {max_bytes}: {uri}")


def _check_version(uri: str, found: str, wanted: str | None) -> None:
    if wanted is not None and found != wanted:
        raise ChangedError(f"changed meanwhile: {uri}")


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _split(uri: str) -> tuple[str, str]:
    """Return (`scheme://bucket`, key)."""
    scheme, rest = uri.split("://", 1)
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key


def _s3_bucket(uri: str) -> str:
    return uri.split("://", 1)[1].split("/", 1)[0]


def _clean_etag(etag: str | None) -> str:
    return (etag or "").strip('"')


def _obstore_takes(key: str) -> bool:
    """Whether obstore can address `key`: it refuses or rewrites empty, `.` and `..` segments and control characters.

    Nor is it clear about one that is longer than S3 allows.
    """
    segments = key.split("/")
    return not any(part in ("", ".", "..") for part in segments) and key.isprintable() and len(key.encode()) <= 1024
