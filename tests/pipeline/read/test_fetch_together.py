"""Neighbours in a tar come by one request, whole or not at all, and each with its own word where something is wrong."""

from __future__ import annotations

import io
import os
import tarfile
from typing import Any

import pytest

from pipeline import schema, storage
from pipeline.read import archive_members
from pipeline.read.fetch import Fetcher, FetchSettings
from pipeline.schema import PhotoError
from pipeline.sources import archives
from tests.pipeline.read.test_fetch import faulty

HASTY = FetchSettings(budget_s=1.5, attempt_timeout_s=0.3)
PATIENT = FetchSettings(budget_s=60, attempt_timeout_s=10)


def listed(uri: str, **columns: object) -> dict[str, Any]:
    return dict.fromkeys(schema.MANIFEST.names) | {schema.URI: uri} | columns


def put_tar(bucket: str, name: str, photos: list[bytes]) -> list[dict[str, Any]]:
    """Put a tar on S3; return its members as the manifest lists them."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for index, photo in enumerate(photos):
            info = tarfile.TarInfo(f"{index:03d}.jpg")
            info.size = len(photo)
            tar.addfile(info, io.BytesIO(photo))
    uri = f"s3://{bucket}/together/{name}"
    storage.write_bytes(uri, data.getvalue())
    container = storage.head(uri)
    return [
        listed(f"{uri}#{row.pop(archives.MEMBER)}", container_uri=uri, container_etag=container.etag, **row)
        for row in archives.list_members(container).to_pylist()
    ]


@pytest.mark.s3
def test_neighbours_in_a_tar_come_by_one_request(s3_bucket: str) -> None:
    photos = [os.urandom(size) for size in (100_000, 0, 90_000, 3, 2_000_000, *[150_000] * 20)]
    rows = put_tar(s3_bucket, "near.tar", photos)
    fetch = Fetcher(PATIENT, 1 << 24)
    groups = list(archive_members.lie_together(rows))
    assert [row for group in groups for row in group] == rows
    # The large one is alone, and six of 150 kB are less than a MiB.
    assert [len(group) for group in groups] == [4, 1, 6, 6, 6, 2]
    with faulty(s3_bucket, {}, folder="together") as proxy:
        got = [outcome for group in groups for outcome in fetch.together(group)]
        assert proxy.tally["photo requests"] == len(groups)
    assert got == [storage.Blob(photo, row[schema.ETAG]) for photo, row in zip(photos, rows, strict=True)]


@pytest.mark.s3
def test_neighbours_in_a_tar_come_whole_through_every_fault(s3_bucket: str) -> None:
    photos = [os.urandom(70_000) for _ in range(40)]
    rows = put_tar(s3_bucket, "faulty.tar", photos)
    fetch = Fetcher(FetchSettings(budget_s=60, attempt_timeout_s=0.3), 1 << 20)
    with faulty(s3_bucket, folder="together", seed=7, burst=0) as proxy:
        got = [outcome for group in archive_members.lie_together(rows) for outcome in fetch.together(group)]
        assert proxy.tally["photo requests"] > len(list(archive_members.lie_together(rows)))
    assert [blob.data for blob in got if isinstance(blob, storage.Blob)] == photos


@pytest.mark.s3
def test_what_is_wrong_with_a_tar_is_said_of_each_photo_it_concerns(s3_bucket: str) -> None:
    rows = put_tar(s3_bucket, "cut.tar", [bytes([65 + index]) * 1000 for index in range(5)])
    fetch = Fetcher(PATIENT, 1 << 20)
    uri = rows[0][schema.CONTAINER_URI]
    storage.write_bytes(uri, storage.read_bytes(uri)[: rows[3][schema.OFFSET_BYTES] + 10])
    now = storage.head(uri).etag
    outcomes = fetch.together([row | {schema.CONTAINER_ETAG: now} for row in rows])
    assert [outcome.data[:1] for outcome in outcomes[:3] if isinstance(outcome, storage.Blob)] == [b"A", b"B", b"C"]
    assert [outcome.code for outcome in outcomes[3:] if isinstance(outcome, PhotoError)] == ["truncated"] * 2
    changed = fetch.together(rows)
    assert [outcome.code for outcome in changed if isinstance(outcome, PhotoError)] == ["fetch_failed"] * 5
    storage.delete(uri)
    gone = fetch.together(rows)
    assert [outcome.code for outcome in gone if isinstance(outcome, PhotoError)] == ["not_found"] * 5
    too_large = Fetcher(HASTY, 500).together(rows)
    assert [outcome.code for outcome in too_large if isinstance(outcome, PhotoError)] == ["too_large"] * 5


def test_only_neighbours_of_one_tar_lie_together() -> None:
    def member(offset_bytes: int, uri: str = "/a.tar", etag: str = "v1") -> dict[str, Any]:
        place = {"container_uri": uri, "container_etag": etag, "offset_bytes": offset_bytes, "stored_bytes": 1000}
        return listed(f"{uri}#{offset_bytes}", **place)

    together = [member(512), member(2048)]
    for apart in (
        [listed("/a.jpg"), listed("/b.jpg")],
        [member(512), listed("/b.jpg")],
        [listed("/b.jpg"), member(512)],
        together[::-1],  # in another order than in the tar
        [member(512), member(1000)],  # one within the other
        [member(512), member(512 + 1000 + 65537)],
        [member(512), member(2048, uri="/b.tar")],
        [member(512), member(2048, etag="v2")],
        [member(512, uri="/a.zip"), member(2048, uri="/a.zip")],
    ):
        assert list(archive_members.lie_together(apart)) == [[apart[0]], [apart[1]]]
    assert list(archive_members.lie_together(together)) == [together]
    assert list(archive_members.lie_together([])) == []
