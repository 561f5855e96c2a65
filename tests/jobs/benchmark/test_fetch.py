"""The fetch benchmark fetches what it says and leaves nothing behind."""

from __future__ import annotations

import sys

import pytest

from jobs.benchmark.fetch import FetchBenchmark
from pipeline import storage


@pytest.mark.s3
def test_prints_a_line_for_each_client_and_removes_its_objects(
    s3_bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = f"s3://{s3_bucket}/bench"
    FetchBenchmark(output, objects=20, size_bytes=100_000, repeats=1, without=("s3fs",)).measure()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["without s3fs", "20 objects of 100,000 bytes, 16 at once"]
    requests_each = {line[:24].strip(): float(line[24:].split()[1]) for line in lines[3:]}
    assert requests_each == {
        "ours": 1.0,
        "obstore alone": 1.0,
        "boto3 alone": 1.0,
        "ours, tar, one by one": 1.0,
        "ours, tar, together": 0.1,  # ten of 100 kB are less than a MiB
    }
    assert list(storage.list_files(output)) == []


def test_refuses_what_would_measure_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="s3://BUCKET/PREFIX"):
        FetchBenchmark("/local").measure()
    with pytest.raises(ValueError, match="--objects"):
        FetchBenchmark("s3://b/x", objects=0).measure()
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ValueError, match=r"pip install s3fs .* or say --without s3fs"):
        FetchBenchmark("s3://b/x").measure()
