"""Processor time that a client pays for each object of an S3 store: our Fetcher beside the bare clients.

`python -m jobs.benchmark fetch --output s3://BUCKET/PREFIX` is the command. It writes its objects there and removes
them.
"""

from __future__ import annotations

import importlib
import io
import itertools
import os
import tarfile
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from jobs.benchmark.figure import Figure
from pipeline import schema, storage
from pipeline.read import archive_members
from pipeline.read.fetch import Fetcher, FetchSettings
from pipeline.sources import archives
from pipeline.storage import clients

Client = Literal["s3fs"]
_FETCHES = 16


@dataclass(frozen=True)
class FetchBenchmark:
    """Milliseconds of processor time for each object, by our Fetcher as the Reader uses it, by obstore and boto3 alone
    and by s3fs; and for each member of a tar, one by one and neighbours together. Aim: 1 ms for 100 kB."""

    output: str
    """Where to write the objects, s3://BUCKET/PREFIX; they are removed again."""
    objects: int = 200
    size_bytes: int = 100_000
    """Of each object."""
    repeats: int = 5
    """All clients are timed this often in turn and the median counts."""
    without: tuple[Client, ...] = ()
    """Leave these clients out."""

    def measure(self) -> list[Figure]:
        """Print a line for each client; return the figures."""
        if min(self.objects, self.size_bytes, self.repeats) < 1:
            raise ValueError("give --objects, --size-bytes and --repeats of 1 or more")
        if not self.output.startswith("s3://"):
            raise ValueError(f"--output {self.output}: the clients are compared on S3: give s3://BUCKET/PREFIX")
        if "s3fs" not in self.without:
            try:
                importlib.import_module("s3fs")
            except ImportError as error:
                raise ValueError(
                    "this benchmark compares with s3fs: pip install s3fs (it wants an older botocore: in an environment"
                    " of its own), or say --without s3fs"
                ) from error
        folder = storage.join(storage.absolute(self.output), f"graticule-bench-{uuid.uuid4().hex[:8]}")
        try:
            return self._measure(folder)
        finally:
            storage.delete_folder(folder)

    def _measure(self, folder: str) -> list[Figure]:
        photos = [os.urandom(self.size_bytes) for _ in range(self.objects)]
        with ThreadPoolExecutor(_FETCHES) as pool:
            uris = [storage.join(folder, "photos", f"{index:06d}.jpg") for index in range(self.objects)]
            list(pool.map(storage.write_bytes, uris, photos))
        storage.write_bytes(storage.join(folder, "photos.tar"), _tar_of(photos))
        rows = [_listed(entry) for entry in storage.list_files(storage.join(folder, "photos"))]
        members = _listed_members(storage.head(storage.join(folder, "photos.tar")))
        together = list(archive_members.lie_together(members))
        fetcher = Fetcher(FetchSettings(), self.size_bytes)
        ways: dict[str, Callable[[], Sequence[bytes]]] = {
            "ours": lambda: _all(lambda row: fetcher(row).data, rows),
            "obstore alone": lambda: _all(_obstore_get, uris),
            "boto3 alone": lambda: _all(_boto3_get, uris),
        }
        if "s3fs" not in self.without:
            ways["s3fs"] = _s3fs_way(uris)
        else:
            print("without s3fs")
        ways["ours, tar, one by one"] = lambda: _all(lambda row: fetcher(row).data, members)
        ways["ours, tar, together"] = lambda: list(
            itertools.chain(*_all(lambda group: _together(fetcher, group), together))
        )
        requests = dict.fromkeys(ways, self.objects) | {"ours, tar, together": len(together)}
        cpu_ms: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(self.repeats + 1):
            for name, way in ways.items():
                start_s = time.process_time()
                got = way()
                if repeat:  # the first makes clients and connections
                    cpu_ms[name].append(1000 * (time.process_time() - start_s) / self.objects)
                if list(got) != photos:
                    raise ValueError(f"{name} returns other bytes: its speed would mean nothing")
        print(f"{self.objects} objects of {self.size_bytes:,} bytes, {_FETCHES} at once")
        print(f"{'':<24}{'CPU ms each':>12}{'requests each':>15}{'÷ obstore':>11}")
        least_ms = float(np.median(cpu_ms["obstore alone"]))
        for name, taken_ms in cpu_ms.items():
            median_ms = float(np.median(taken_ms))
            each = requests[name] / self.objects
            print(f"{name:<24}{median_ms:>12.3f}{each:>15.2f}{median_ms / least_ms:>11.2f}")
        ours_ms = float(np.median(cpu_ms["ours"]))
        return [
            Figure(f"fetch, {self.size_bytes:,} B", f"ours ÷ {name}", ours_ms, ms, ours_ms / ms, "core ms", most=most)
            for name, ms, most in (
                [("a millisecond", 1.0, 1.0)]
                + [(name, float(np.median(cpu_ms[name])), None) for name in ways if not name.startswith("ours")]
            )
        ]


def _all(get: Callable[[Any], Any], wanted: Sequence[Any]) -> list[Any]:
    with ThreadPoolExecutor(_FETCHES) as pool:
        return list(pool.map(get, wanted))


def _together(fetcher: Fetcher, group: list[dict[str, Any]]) -> list[bytes]:
    outcomes = fetcher.together(group)
    for outcome in outcomes:
        if isinstance(outcome, schema.PhotoError):
            raise outcome
    return [outcome.data for outcome in outcomes if isinstance(outcome, storage.Blob)]


def _obstore_get(uri: str) -> bytes:
    bucket, key = uri.removeprefix("s3://").split("/", 1)
    return bytes(clients.store(f"s3://{bucket}", 30.0).get(key).bytes())


def _boto3_get(uri: str) -> bytes:
    bucket, key = uri.removeprefix("s3://").split("/", 1)
    return bytes(clients.s3_client(30.0).get_object(Bucket=bucket, Key=key)["Body"].read())


def _s3fs_way(uris: list[str]) -> Callable[[], list[bytes]]:
    files = importlib.import_module("s3fs").S3FileSystem(endpoint_url=os.environ.get("AWS_ENDPOINT_URL"))

    def get() -> list[bytes]:
        found: dict[str, bytes] = files.cat(uris, batch_size=_FETCHES)
        return [found[uri.removeprefix("s3://")] for uri in uris]

    return get


def _tar_of(photos: list[bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for index, photo in enumerate(photos):
            member = tarfile.TarInfo(f"{index:06d}.jpg")
            member.size = len(photo)
            archive.addfile(member, io.BytesIO(photo))
    return data.getvalue()


def _listed(entry: storage.Entry) -> dict[str, Any]:
    columns = {schema.URI: entry.uri, schema.ETAG: entry.etag, schema.SIZE_BYTES: entry.size_bytes}
    return dict.fromkeys(schema.MANIFEST.names) | columns


def _listed_members(container: storage.Entry) -> list[dict[str, Any]]:
    place = {schema.CONTAINER_URI: container.uri, schema.CONTAINER_ETAG: container.etag}
    members: pa.Table = archives.list_members(container)
    return [
        dict.fromkeys(schema.MANIFEST.names) | place | {schema.URI: f"{container.uri}#{row.pop(archives.MEMBER)}"} | row
        for row in members.to_pylist()
    ]
