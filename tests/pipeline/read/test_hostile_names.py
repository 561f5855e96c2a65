"""Whatever a manifest calls a photo, it costs that photo's row at most."""

from __future__ import annotations

import pytest

from pipeline import schema
from pipeline.read.fetch import Fetcher, FetchSettings
from pipeline.schema import PhotoError

NAMES = [
    *("s3://b\x00/c", "s3://a b/c", "s3://b/", "s3://b", "s3:///x", "s3://b/a\nb", f"s3://{'b' * 300}/x", "s3://é/x"),
    *(f"s3://b/{'k' * 5000}", "s3://..", "s3://../x", "s3://B_UPPER/x", "s3://[::1]/x", "s3://user:pw@b/x"),
    *("s3://b:80/x", "s3://b?x=1/y", "s3://b#f/y", "S3N://b/x", "ftp://h/x", "data:image/png;base64,AAAA", "x://y"),
    *("gs://\x00/x", "gs://é/x", "az://%zz/x", "abfs://c@acc/a.jpg"),
    *("file://host/x", "file://%00", "file:///a%", "//", "/", "", "C:\\x", "\\\\server\\x", "/nul\0x", "n" * 5000),
    *("http://x", "https://[::1/x", "https://", "/dev/zero", "/dev/stdin", "/sys/kernel/debug"),
]


@pytest.mark.s3
@pytest.mark.parametrize("uri", NAMES)
@pytest.mark.parametrize("allow_http", [False, True])
def test_a_name_that_leads_nowhere_is_a_failure_of_its_photo(s3_server: str, uri: str, allow_http: bool) -> None:
    settings = FetchSettings(budget_s=0.1, attempt_timeout_s=1, allow_http=allow_http)
    row = dict.fromkeys(schema.MANIFEST.names) | {schema.URI: uri}
    with pytest.raises(PhotoError) as caught:
        Fetcher(settings, 1 << 20)(row)
    assert caught.value.code in (*schema.FETCH_ERRORS, schema.ErrorCode.UNSUPPORTED_FORMAT)


@pytest.mark.parametrize("uri", ["/proc/kmsg", "/proc/self/mem", "/proc/self/environ", "/proc/cpuinfo"])
def test_nothing_is_read_that_the_kernel_makes_up(uri: str) -> None:
    row = dict.fromkeys(schema.MANIFEST.names) | {schema.URI: uri}
    try:
        assert Fetcher(FetchSettings(budget_s=0.1), 1 << 20)(row).data == b""
    except PhotoError as error:  # not this user's to open
        assert error.code == "forbidden"  # noqa: PT017


@pytest.mark.parametrize("uri", ["/etc/passwd", "file:///etc/passwd", "/photos/../etc/passwd", "/photos"])
def test_local_photos_outside_of_the_roots_are_refused_and_not_opened(uri: str) -> None:
    row = dict.fromkeys(schema.MANIFEST.names) | {schema.URI: uri}
    with pytest.raises(PhotoError, match=r"--photos-root") as caught:
        Fetcher(FetchSettings(), 1 << 20, local_roots=("/photos/", "s3://b/x/"))(row)
    assert caught.value.code == "forbidden"
