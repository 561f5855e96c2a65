"""DuckDB's threads share a remote file: what one of them seeks must not move the others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pipeline import storage
from pipeline.storage.shared_file import SharedFile

DATA = bytes(range(256)) * 16_384
"""4 MiB: more than any buffer."""


def seek_in_turn_and_read(file: Any) -> list[tuple[bool, int]]:
    """Seek with one thread, then with another, then read with both; return whether each got its bytes, and how many."""
    wanted = ((1000, 3_000_000), (2_500_001, 1_500_000))
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        for thread, (start, _) in zip((first, second), wanted, strict=True):
            thread.submit(file.seek, start).result()
        answers = [
            thread.submit(file.read, size).result() for thread, (_, size) in zip((first, second), wanted, strict=True)
        ]
    return [
        (answer == DATA[start : start + size], len(answer))
        for answer, (start, size) in zip(answers, wanted, strict=True)
    ]


def test_each_thread_has_its_position() -> None:
    file = SharedFile(lambda start, size: DATA[start : start + size])
    assert seek_in_turn_and_read(file) == [(True, 3_000_000), (True, 1_500_000)]
    file.seek(len(DATA) - 3)
    assert (file.read(2), file.tell(), file.read(10), file.read(0)) == (DATA[-3:-1], len(DATA) - 1, DATA[-1:], b"")


@pytest.mark.s3
def test_what_duckdb_opens_is_such_a_file(s3_bucket: str) -> None:
    uri = f"s3://{s3_bucket}/shared ü/%20.bin"
    storage.write_bytes(uri, DATA)
    given: list[Any] = []

    class Connection:
        """Takes the file system as DuckDB does."""

        def register_filesystem(self, files: Any) -> None:
            given.append(files)

    storage.let_duckdb_read(Connection(), uri)  # type: ignore[arg-type]
    assert seek_in_turn_and_read(given[0].open(uri, "rb")) == [(True, 3_000_000), (True, 1_500_000)]
