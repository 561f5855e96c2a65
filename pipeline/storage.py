"""Open, list, read and put on any URI: a local path, `file://`, `s3://`, `gs://`, `az://`.

Errors come out as Python's own: `FileNotFoundError`, `PermissionError`, `TimeoutError`, other `OSError`; a URI that
can't be one is a `ValueError`. Every put is atomic: an object appears whole or not at all. S3 credentials, region and
endpoint come from the environment, as boto3 and every AWS tool read them.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import functools
import hashlib
import logging
import os
import re
import stat
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

import boto3
import botocore.exceptions
import obstore
from botocore.config import Config as BotoConfig
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.fsspec import FsspecStore
from obstore.store import S3Store, from_url

if TYPE_CHECKING:
    import duckdb

log = logging.getLogger(__name__)

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_REMOTE_SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss")
FETCH_TIMEOUT = dt.timedelta(seconds=30)
RETRY_BUDGET = dt.timedelta(seconds=60)
_MAX_RETRIES = 5


@dataclass(frozen=True)
class Entry:
    """One stored object as its listing shows it; `etag` names its version (S3's ETag, a local file's time and size)."""

    uri: str
    size_bytes: int
    etag: str


@dataclass(frozen=True)
class Blob:
    """An object's bytes with the version that was read."""

    data: bytes
    etag: str


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
    return _local_uri(os.path.abspath(os.fsencode(_local_path(uri))))


def join(uri: str, *parts: str) -> str:
    """Return the URI of `parts` below `uri`."""
    return "/".join([uri.rstrip("/"), *parts])


def read(uri: str) -> Blob:
    """Return the whole object at `uri` and the version read."""
    if not is_remote(uri):
        return _read_local(uri)
    bucket, key = _split(uri)
    with _builtin_errors(uri):
        if _obstore_takes(key):
            response = obstore.get(_store(bucket), key)
            return Blob(bytes(response.bytes()), _clean_etag(response.meta["e_tag"]))
        answer = _s3_client().get_object(Bucket=_s3_bucket(uri), Key=key)
        return Blob(answer["Body"].read(), _clean_etag(answer["ETag"]))


def read_bytes(uri: str) -> bytes:
    """Return the whole object at `uri`."""
    return read(uri).data


def write_bytes(uri: str, data: bytes) -> None:
    """Put `data` at `uri` atomically, over whatever is there."""
    if is_remote(uri):
        bucket, key = _split(uri)
        with _builtin_errors(uri):
            obstore.put(_store(bucket), key, data)
        return
    path = Path(os.fsdecode(_local_path(uri)))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def delete(uri: str) -> None:
    """Remove the object at `uri`; one that is already gone is no error."""
    if is_remote(uri):
        bucket, key = _split(uri)
        with _builtin_errors(uri), contextlib.suppress(FileNotFoundError):
            obstore.delete(_store(bucket), key)
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_local_path(uri))


def delete_folder(uri: str) -> None:
    """Remove every object below `uri`, and a local folder's then empty directories."""
    for entry in list_files(uri):
        delete(entry.uri)
    if not is_remote(uri):
        for folder, _, _ in os.walk(os.fsencode(_local_path(uri)), topdown=False):
            os.rmdir(folder)


def exists(uri: str) -> bool:
    """Whether an object (not a folder) is at `uri`."""
    if not is_remote(uri):
        return os.path.isfile(_local_path(uri))
    bucket, key = _split(uri)
    if not key:
        return False
    with _builtin_errors(uri):
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
        yield from _list_local(os.fsencode(_local_path(uri)))
        return
    bucket, prefix = _split(uri)
    prefix = prefix and prefix.rstrip("/") + "/"
    with _builtin_errors(uri):
        if bucket.startswith("s3://"):
            # boto3, not obstore: obstore's listing stops at the first key with `//`, `..` or a control character in it.
            pages = _s3_client().get_paginator("list_objects_v2").paginate(Bucket=_s3_bucket(uri), Prefix=prefix)
            for page in pages:
                for item in page.get("Contents", ()):
                    if not (item["Key"].endswith("/") and item["Size"] == 0):  # a console's folder marker
                        yield Entry(f"{bucket}/{item['Key']}", item["Size"], _clean_etag(item["ETag"]))
        else:
            for chunk in obstore.list(_store(bucket), prefix):
                for item in chunk:
                    yield Entry(f"{bucket}/{item['path']}", item["size"], _clean_etag(item["e_tag"]))


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
        return Path(os.fsdecode(_local_path(uri)))
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
        options: Any = _s3_options() if scheme == "s3" else {}
        connection.register_filesystem(FsspecStore(scheme, **options))  # type: ignore[call-overload]


def _local_path(uri: str) -> bytes | str:
    return unquote_to_bytes(uri[7:]) if uri.lower().startswith("file://") else uri


def _local_uri(path: bytes) -> str:
    """Return a path as text: itself, or a percent-encoded `file://` URI where its bytes are no UTF-8."""
    try:
        return path.decode()
    except UnicodeDecodeError:
        return "file://" + quote_from_bytes(path)


def _local_etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def _read_local(uri: str) -> Blob:
    path = _local_path(uri)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise IsADirectoryError(f"not a regular file: {uri}")
        # Not blocking: a named pipe that takes the file's place must not hang the run.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            return Blob(file.read(), _local_etag(os.fstat(file.fileno())))
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            raise FileNotFoundError(error.errno, error.strerror, error.filename) from error
        raise
    except ValueError as error:  # a zero byte in the name
        raise FileNotFoundError(f"no file can have this name: {uri}") from error


def _list_local(folder: bytes) -> Iterator[Entry]:
    try:
        children = sorted(os.scandir(folder), key=lambda child: child.name)
    except FileNotFoundError:
        return
    for child in children:
        if child.is_dir(follow_symlinks=False):
            yield from _list_local(child.path)
        elif os.path.isdir(child.path):
            log.warning(
                "not followed, a link to a folder: %s (name the folder itself as a source)", _local_uri(child.path)
            )
        else:
            try:
                status = child.stat()
            except OSError:  # a link to nowhere or to itself: listed, so that it gets its row
                status = child.stat(follow_symlinks=False)
            yield Entry(_local_uri(child.path), status.st_size, _local_etag(status))


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


def _s3_session() -> tuple[boto3.Session, str]:
    """Return a session with the environment's credentials, and the region; ValueError where there are none."""
    session = boto3.Session()
    if session.get_credentials() is None:
        raise ValueError(
            "no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or use an instance role"
        )
    return session, os.environ.get("AWS_REGION") or session.region_name or "us-east-1"


def _s3_options() -> dict[str, Any]:
    session, region = _s3_session()
    options: dict[str, Any] = {
        "region": region,
        "client_options": {"timeout": FETCH_TIMEOUT, "connect_timeout": dt.timedelta(seconds=5), "allow_http": True},
        "retry_config": {"max_retries": _MAX_RETRIES, "retry_timeout": RETRY_BUDGET},
    }
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        options["endpoint"] = endpoint
    options["credential_provider"] = Boto3CredentialProvider(session)
    return options


@functools.lru_cache(maxsize=64)
def _store(bucket: str) -> Any:
    if bucket.startswith("s3://"):
        return S3Store(_s3_bucket(bucket), **_s3_options())
    return from_url(bucket, client_options={"timeout": FETCH_TIMEOUT})


@functools.lru_cache(maxsize=1)
def _s3_client() -> Any:
    session, region = _s3_session()
    config = BotoConfig(
        connect_timeout=5,
        read_timeout=FETCH_TIMEOUT.total_seconds(),
        retries={"mode": "standard", "max_attempts": _MAX_RETRIES},
        max_pool_connections=64,
    )
    return session.client("s3", region_name=region, config=config)


@contextlib.contextmanager
def _builtin_errors(uri: str) -> Iterator[None]:
    """Turn both S3 clients' errors into Python's own, with one clear sentence."""
    try:
        yield
    except FileNotFoundError as error:  # obstore's, with the server's whole answer in it
        raise FileNotFoundError(f"not found: {uri}") from error
    except botocore.exceptions.ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        http_status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        no_such_name = http_status == 400 and code in ("400", "InvalidURI", "KeyTooLongError", "InvalidObjectName")
        if http_status == 404 or code == "InvalidBucketName" or no_such_name:
            raise FileNotFoundError(f"not found ({code}): {uri}") from error
        if http_status in (401, 403):
            raise PermissionError(f"{code}: {uri}") from error
        raise OSError(f"{code} ({http_status}): {uri}") from error
    except (botocore.exceptions.ConnectTimeoutError, botocore.exceptions.ReadTimeoutError) as error:
        raise TimeoutError(f"no answer in time: {uri}") from error
    except botocore.exceptions.ParamValidationError as error:  # an empty key, characters that no bucket has
        raise FileNotFoundError(f"no object can have this name: {uri}") from error
    except botocore.exceptions.BotoCoreError as error:
        raise OSError(f"{error}: {uri}") from error
    except (obstore.exceptions.PermissionDeniedError, obstore.exceptions.UnauthenticatedError) as error:
        raise PermissionError(f"permission denied: {uri}") from error
    except obstore.exceptions.BaseError as error:
        reason = str(error).split("\n", 1)[0]
        if "timed out" in str(error):
            raise TimeoutError(f"no answer in time: {uri}: {reason}") from error
        raise OSError(f"{reason}: {uri}") from error
