"""Names that would lead elsewhere, or that a store can't take as they are, are known by one rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import storage
from pipeline.storage.local_store import LocalStore
from pipeline.storage.object_store import ObjectStore
from pipeline.storage.store import Store, is_plain


@pytest.mark.parametrize("path", ["a", "a/b.jpg", ".a/..b/c..", "a b/ü"])
def test_plain_paths(path: str) -> None:
    assert is_plain(path)
    assert is_plain(path.encode())


@pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", "./a", "a/.", "../a", "a/../b", "a/.."])
def test_paths_that_lead_elsewhere(path: str) -> None:
    assert not is_plain(path)
    assert not is_plain(path.encode())


@pytest.mark.parametrize(
    ("uri", "can"),
    [
        ("/photos/../a.jpg", True),
        ("/photos/a\0.jpg", False),
        ("s3://bucket/a b.jpg", True),
        ("s3://bucket/a/../b.jpg", False),
        ("s3://bucket/a//b.jpg", False),
        ("s3://bucket/a\n.jpg", False),
        ("s3://bucket/" + "a" * 1025, False),
    ],
)
def test_what_can_be_put_under_just_its_name(uri: str, can: bool) -> None:
    assert storage.can_be_put(uri) == can


def test_each_store_is_found_by_the_scheme_and_says_where_it_is(tmp_path: Path) -> None:
    homes: list[Store] = [LocalStore(), ObjectStore()]
    assert [home.local_path(f"{tmp_path}/a") for home in homes] == [tmp_path / "a", None]
    assert [storage.is_remote(uri) for uri in ("a", "FILE:///a", "s3a://b/a", "gs://b/a")] == [False, False, True, True]
    assert storage.canonical("S3A://bucket/a") == "s3://bucket/a"
    with pytest.raises(ValueError, match="can't read 'ftp://host/a': use a local path or one of s3://"):
        storage.read("ftp://host/a")
