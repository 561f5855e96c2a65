"""A source that goes away is told from photos that fail, each for itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import schema
from pipeline.cluster.source_gone import Heartbeat, SourceGoneError, check
from pipeline.read.fetch import FetchSettings
from pipeline.run.tally import Fetches
from pipeline.schema import ErrorCode
from pipeline.sources import manifest

SETTINGS = FetchSettings(gone_after=100, gone_share=0.9)


def row(uri: str, code: ErrorCode | None = None) -> dict[str, Any]:
    return {schema.URI: uri, schema.ERROR_CODE: None if code is None else str(code), schema.ERROR_MESSAGE: "words"}


def test_what_only_a_manifest_names_speaks_against_no_source_by_not_being_there() -> None:
    told: list[Fetches] = []
    heartbeat = Heartbeat(
        told.append, manifest.listed_below(["/photos/", "s3://b/x/*.tar", "/lists/all.parquet", "/z.zip"])
    )
    listed = ("/photos/a", "/photos/b.tar#c", "s3://b/x/y.tar#d", "/z.zip#e")
    for uri in (*listed, "/photos-2/a", "/lists/a", "s3://b/y.tar#d"):
        heartbeat([row(uri, code) for code in (None, ErrorCode.NOT_FOUND, ErrorCode.FORBIDDEN, ErrorCode.CORRUPT)])
        heartbeat([row(uri, code) for code in (ErrorCode.FETCH_FAILED, ErrorCode.FETCH_TIMEOUT)])
    heartbeat.tell()
    (fetches,) = told
    counts = {"not_found": len(listed), "forbidden": len(listed), "fetch_failed": 7, "fetch_timeout": 7}
    assert (fetches.photos, fetches.failed_by_code) == (42, counts)
    assert fetches.example == "s3://b/y.tar#d: words"


@pytest.mark.parametrize(
    ("photos", "failed", "is_over", "is_gone"),
    [
        (100, 91, False, True),
        (100, 90, False, False),
        (120, 109, False, True),
        (99, 99, False, False),  # too few to say while it goes on
        (99, 99, True, True),
        (99, 80, True, False),
        (3, 3, True, True),
        (0, 0, True, False),
    ],
)
def test_more_than_a_share_of_the_last_photos(photos: int, failed: int, is_over: bool, is_gone: bool) -> None:
    last = Fetches(photos, {"not_found": failed // 2, "fetch_failed": failed - failed // 2}, "/a.jpg: words")
    if not is_gone:
        check(last, SETTINGS, is_over)
        return
    with pytest.raises(SourceGoneError, match=f"^the source went away: {failed} of the last {photos} photos") as caught:
        check(last, SETTINGS, is_over)
    for said in ("fetch_failed", "such as /a.jpg: words", "Nothing of this run is published", "run the same command"):
        assert said in str(caught.value)


def test_it_can_be_turned_off() -> None:
    check(Fetches(200, {"fetch_failed": 200}), FetchSettings(gone_share=1), is_over=True)


def test_a_few_photos_that_always_fail_end_no_second_start() -> None:
    few = Fetches(3, {"forbidden": 2, "fetch_failed": 1})
    with pytest.raises(SourceGoneError):
        check(few, SETTINGS, is_over=True, failed_before=2)
    check(few, SETTINGS, is_over=True, failed_before=3)
    with pytest.raises(SourceGoneError):  # what is listed anew each time and never there is no photo's affair
        check(Fetches(3, {"not_found": 3}), SETTINGS, is_over=True, failed_before=3)
    with pytest.raises(SourceGoneError):
        check(Fetches(100, {"forbidden": 100}), SETTINGS, failed_before=100)


def test_prefixes_hold_for_real_listings(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (batch,) = manifest.read_manifest(str(tmp_path))
    (uri,) = batch.column(schema.URI).to_pylist()
    assert uri.startswith(manifest.listed_below([str(tmp_path)]))
