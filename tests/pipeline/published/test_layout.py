"""The names of what lies below an output are made and read in one place, those of older versions too."""

from __future__ import annotations

import pytest

from pipeline.published import layout


@pytest.mark.parametrize(
    ("name", "epoch"),
    [
        ("part-e12-00000.parquet", 12),
        ("part-00000.parquet", 0),  # of an older version
        ("part-e12-00000.parquet.bak", None),
        ("notes.parquet", None),
        (".part-e12-00000.parquet", None),
    ],
)
def test_the_epoch_of_a_published_file(name: str, epoch: int | None) -> None:
    assert layout.published_epoch(f"s3://bucket/out/photos/run=a-e7-b/{name}") == epoch


def test_what_is_made_is_recognised() -> None:
    uri = layout.published_file("s3://out", "r1", 7, 3)
    path = uri.removeprefix("s3://out/")
    assert path == "photos/run=r1/part-e7-00003.parquet"
    assert (layout.published_epoch(uri), layout.run_of(path), list(layout.epochs_in(path))) == (7, "r1", [7])
    assert layout.is_published_file(path, "r1")
    assert not layout.is_published_file(path, "r")
    assert layout.is_published_file(path)
    for elsewhere in (
        "photos/run=r1/a/b.parquet",
        "photos/b.parquet",
        "photos/run=r1/../../b",
        "photos/run=r1/..",
        "runs/run=r1/b",
        "../b",
    ):
        assert not layout.is_published_file(elsewhere)
    assert layout.run_of(layout.staging_folder("", "r2").removeprefix("/") + "/run-e7.json") == "r2"


@pytest.mark.parametrize(
    ("path", "is_swept"),
    [
        ("runs/.0.tmp", True),
        ("removed/.0.tmp", True),
        (".lease.json.tmp", True),
        (".lease.json.0f.tmp", True),
        (".lease.jsonx.tmp", False),
        ("nights/.0.tmp", False),
    ],
)
def test_where_the_next_holder_sweeps(path: str, is_swept: bool) -> None:
    assert layout.is_swept(path) == is_swept
