"""Object stores by obstore, and by boto3 where obstore can't: S3, Google's and Azure's as a `store.Store`.

Errors come out as Python's own. S3 credentials, region and endpoint come from the environment, as boto3 and every AWS
tool read them.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import re
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

from pipeline.storage import clients
from pipeline.storage.clients import builtin_errors
from pipeline.storage.listing import Page, list_in_order
from pipeline.storage.shared_file import SharedFile
from pipeline.storage.store import (
    Blob,
    ChangedError,
    Entry,
    Intake,
    Visitor,
    check_size,
    check_version,
    is_plain,
    taken_in,
)

if TYPE_CHECKING:
    import duckdb

SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss")
_PUT_TIMEOUT_S = 15.0
_BUCKET = re.compile(r"[A-Za-z0-9._$@:+~-]+")
"""What buckets, containers and `container@account` are made of: of other characters obstore's client may die."""


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


class ObjectStore:
    """Objects by their URIs, `s3://BUCKET/KEY` and alike. An object's version is its ETag."""

    is_remote = True

    def canonical(self, uri: str) -> str:
        """Return the URI with one scheme a store; ValueError where it names nothing that can be a bucket."""
        scheme, rest = uri.split("://", 1)
        bucket = rest.split("/", 1)[0]
        if not _BUCKET.fullmatch(bucket):
            raise ValueError(f"{uri!r} names no bucket: write s3://BUCKET/PREFIX")
        return f"{'s3' if scheme.lower() == 's3a' else scheme.lower()}://{rest}"

    def can_be_put(self, uri: str) -> bool:
        """Whether obstore takes the key as it is."""
        return _obstore_takes(_split(uri)[1])

    def local_path(self, uri: str) -> Path | None:
        """Return None: it is elsewhere."""
        return None

    def read(self, uri: str, max_bytes: int | None, intake: Intake | None = None) -> Blob:
        """Return the whole object."""
        with _opened(uri) as answer:
            check_size(uri, answer.size_bytes, max_bytes)
            return Blob(_received(uri, answer, intake), answer.etag)

    def read_range(
        self, uri: str, offset_bytes: int, length_bytes: int, etag: str | None = None, intake: Intake | None = None
    ) -> bytes:
        """Return a part of the object."""
        with _opened(uri, (offset_bytes, offset_bytes + length_bytes)) as answer:
            check_version(uri, answer.etag, etag)
            return _received(uri, answer, intake)

    def head(self, uri: str) -> Entry:
        """Return the object as a listing would show it."""
        bucket, key = _split(uri)
        with builtin_errors(uri):
            if _obstore_takes(key):
                found = obstore.head(clients.store(bucket), key)
                return _entry(uri, found["size"], found["e_tag"], found["last_modified"])
            answer = clients.s3_client().head_object(Bucket=_s3_bucket(uri), Key=key)
            return _entry(uri, answer["ContentLength"], answer["ETag"], answer["LastModified"])

    def exists(self, uri: str) -> bool:
        """Whether an object is there."""
        bucket, key = _split(uri)
        if not key:
            return False
        with builtin_errors(uri):
            try:
                obstore.head(clients.store(bucket), key)
            except FileNotFoundError:
                return False
        return True

    def list_files(self, uri: str, visitor: Visitor | None = None) -> Iterator[Entry]:
        """Yield every object below a prefix, in the order of keys; `visitor` is not asked, there are no folders."""
        del visitor
        bucket, prefix = _split(uri)
        prefix = prefix and prefix.rstrip("/") + "/"
        with builtin_errors(uri):
            if bucket.startswith("s3://"):
                page = functools.partial(_s3_page, clients.s3_client(), _s3_bucket(uri), prefix)
                for entry in list_in_order(page, prefix):
                    if not (entry.uri.endswith("/") and entry.size_bytes == 0):  # a console's folder marker
                        yield entry
            else:
                for chunk in obstore.list(clients.store(bucket), prefix):
                    for item in chunk:
                        yield _entry(f"{bucket}/{item['path']}", item["size"], item["e_tag"], item["last_modified"])

    def list_folder(self, uri: str) -> Iterator[Entry]:
        """Yield the objects whose keys go on without a slash behind the prefix, in the order of keys."""
        bucket, prefix = _split(uri)
        prefix = prefix and prefix.rstrip("/") + "/"
        with builtin_errors(uri):
            if not bucket.startswith("s3://"):
                for item in obstore.list_with_delimiter(clients.store(bucket), prefix)["objects"]:
                    yield _entry(f"{bucket}/{item['path']}", item["size"], item["e_tag"], item["last_modified"])
                return
            token: str | None = None
            while True:
                page = _s3_page(clients.s3_client(), _s3_bucket(uri), prefix, token, None, Delimiter="/")
                yield from (entry for entry in page.entries if not entry.uri.endswith("/"))
                token = page.next_token
                if token is None:
                    return

    @_done_again
    def write_bytes(self, uri: str, data: bytes) -> None:
        """Put an object over whatever is there."""
        bucket, key = _split(uri)
        with builtin_errors(uri):
            try:
                obstore.put(clients.store(bucket), key, data)
            except FileNotFoundError as error:
                # A large object's last answer was lost, and obstore tried to clear away the parts that are in it by
                # now.
                if "NoSuchUpload" not in str(error):
                    raise
                raise OSError(f"put, or not: {uri}") from error

    def create_bytes(self, uri: str, data: bytes) -> str:
        """Put an object where nothing is; return its ETag."""
        return self._put_if(uri, data, ["create"], FileExistsError(f"already there: {uri}"))

    def read_version(self, uri: str) -> Blob:
        """Return the object with its ETag."""
        return self.read(uri, None)

    def replace_bytes(self, uri: str, data: bytes, version: str) -> str:
        """Put an object over the one of that ETag; return its own."""
        # Ceph knows an ETag only without the quotes that HTTP puts around it.
        modes = [{"e_tag": f'"{version}"'}, {"e_tag": version}]
        return self._put_if(uri, data, modes, ChangedError(f"changed meanwhile: {uri}"))

    @_done_again
    def _put_if(self, uri: str, data: bytes, modes: Iterable[Any], refusal: OSError) -> str:
        bucket, key = _split(uri)
        # Not tried again by obstore, which can't know that a refusal after a lost answer is no refusal.
        client = clients.store(bucket, _PUT_TIMEOUT_S)
        with builtin_errors(uri):
            for mode in modes:
                try:
                    return _clean_etag(obstore.put(client, key, data, mode=mode, use_multipart=False)["e_tag"])
                except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError, FileNotFoundError):
                    continue
        # What we put ourselves, in an attempt whose answer was lost, must not count as another's.
        with contextlib.suppress(FileNotFoundError):
            found = self.read(uri, None)
            if found.data == data:
                return found.etag
        raise refusal

    @_done_again
    def delete(self, uri: str) -> None:
        """Remove the object, if it is there."""
        bucket, key = _split(uri)
        with builtin_errors(uri), contextlib.suppress(FileNotFoundError):
            obstore.delete(clients.store(bucket), key)

    def remove_temporaries(self, uri: str) -> None:
        """Do nothing: a put that was not finished leaves nothing that a listing shows."""

    def remove_empty_folders(self, uri: str) -> None:
        """Do nothing: there are no folders."""

    def let_duckdb_read(self, connection: duckdb.DuckDBPyConnection, uri: str) -> None:
        """Teach `connection` the scheme of `uri`; ValueError for a name that DuckDB can't read."""
        if any(character in uri for character in "*?[#"):
            raise ValueError(f"{uri}: DuckDB can't read a remote name with *, ?, [ or # in it: choose one without")
        scheme = uri.split("://", 1)[0]
        with builtin_errors(uri):
            options: Any = clients.s3_options() if scheme == "s3" else {}
        connection.register_filesystem(_DuckdbStore(scheme, **options))  # type: ignore[call-overload]


class _DuckdbStore(FsspecStore):
    """obstore's file system, but with files that DuckDB's threads can share."""

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:  # type: ignore[override]
        if mode != "rb":
            return super()._open(path, mode, **options)
        return SharedFile(functools.partial(ObjectStore().read_range, path))  # the whole URI, as DuckDB gives it


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
                client = clients.store(bucket, silence_s)
            response = obstore.get(client, key, options={"range": part} if part else {})
            start, end = response.range
            yield _Answer(end - start, _clean_etag(response.meta["e_tag"]), response.stream(min_chunk_size=1))
            return
        options = {"Range": f"bytes={part[0]}-{part[1] - 1}"} if part else {}
        with _MAKING_CLIENTS:
            client = clients.s3_client(silence_s)
        answer = client.get_object(Bucket=_s3_bucket(uri), Key=key, **options)
        with contextlib.closing(answer["Body"]) as body:
            yield _Answer(answer["ContentLength"], _clean_etag(answer["ETag"]), body.iter_chunks(1 << 20))


def _received(uri: str, answer: _Answer, intake: Intake | None) -> bytes:
    data = taken_in(_in_time(uri, answer.chunks), answer.size_bytes, intake)
    if len(data) != answer.size_bytes:
        raise OSError(f"{len(data)} bytes came instead of {answer.size_bytes}: {uri}")
    return data


def _in_time(uri: str, chunks: Iterable[Any]) -> Iterator[Any]:
    attempt = _ATTEMPT.get()
    for chunk in chunks:
        if attempt and time.monotonic() > attempt.deadline_s:
            raise TimeoutError(f"still coming at the deadline: {uri}")
        yield chunk


def _s3_page(client: Any, bucket: str, prefix: str, token: str | None, after: str | None, **how: str) -> Page[Entry]:
    # boto3, not obstore: obstore's listing stops at the first key with `//`, `..` or a control character in it.
    where = {"ContinuationToken": token} if token else {"StartAfter": after} if after else {}
    answer = client.list_objects_v2(Bucket=bucket, Prefix=prefix, **where, **how)
    items = answer.get("Contents", ())
    entries = [_entry(f"s3://{bucket}/{x['Key']}", x["Size"], x["ETag"], x["LastModified"]) for x in items]
    return Page([item["Key"] for item in items], entries, answer.get("NextContinuationToken"))


def _entry(uri: str, size_bytes: int, etag: str | None, modified_at: dt.datetime) -> Entry:
    # Some stores' listings tell milliseconds, but HTTP's Last-Modified, where one object is asked for, whole seconds.
    return Entry(uri, size_bytes, _clean_etag(etag), int(modified_at.timestamp()) * 1_000_000)


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
    return is_plain(key) and key.isprintable() and len(key.encode()) <= 1024
