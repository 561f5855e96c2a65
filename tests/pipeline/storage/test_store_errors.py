"""What a store's odd answers make of a photo: credentials, clocks and buckets are nobody's photo."""

from __future__ import annotations

import datetime as dt
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import schema, storage
from pipeline.read.fetch import Fetcher, FetchSettings
from pipeline.schema import ErrorCode, PhotoError
from pipeline.storage.clients import NoCredentialsError, builtin_errors, s3_options
from tests.conftest import forget_s3_clients

PHOTO = b"\xff\xd8\xff" + b"x" * 1000
HASTY = FetchSettings(budget_s=0.5, attempt_timeout_s=2)

_ODD: list[tuple[int, str, ErrorCode]] = [
    (400, "ExpiredToken", ErrorCode.FETCH_FAILED),
    (403, "ExpiredToken", ErrorCode.FETCH_FAILED),
    (403, "InvalidToken", ErrorCode.FETCH_FAILED),
    (400, "InvalidToken", ErrorCode.FETCH_FAILED),
    (403, "RequestTimeTooSkewed", ErrorCode.FETCH_FAILED),
    (403, "InvalidAccessKeyId", ErrorCode.FETCH_FAILED),
    (403, "SignatureDoesNotMatch", ErrorCode.FETCH_FAILED),
    (403, "AuthenticationFailed", ErrorCode.FETCH_FAILED),
    (401, "AuthenticationRequired", ErrorCode.FETCH_FAILED),
    (400, "KMS.DisabledException", ErrorCode.FETCH_FAILED),
    (403, "KMS.DisabledException", ErrorCode.FETCH_FAILED),
    (404, "NoSuchBucket", ErrorCode.FETCH_FAILED),
    (404, "ContainerNotFound", ErrorCode.FETCH_FAILED),
    (301, "PermanentRedirect", ErrorCode.FETCH_FAILED),
    (400, "AuthorizationHeaderMalformed", ErrorCode.FETCH_FAILED),
    (405, "MethodNotAllowed", ErrorCode.FETCH_FAILED),
    (412, "PreconditionFailed", ErrorCode.FETCH_FAILED),
    (416, "InvalidRange", ErrorCode.FETCH_FAILED),
    (500, "InternalError", ErrorCode.FETCH_FAILED),
    (503, "SlowDown", ErrorCode.FETCH_FAILED),
    (403, "AccessDenied", ErrorCode.FORBIDDEN),
    (403, "InvalidObjectState", ErrorCode.FORBIDDEN),
    (404, "NoSuchKey", ErrorCode.NOT_FOUND),
    (404, "BlobNotFound", ErrorCode.NOT_FOUND),
]


class _OddStore(http.server.BaseHTTPRequestHandler):
    """Answers `…/STATUS-CODE` with that status and S3's XML of that code, other names with a photo."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        status, _, code = self.path.rsplit("/", 1)[1].split("?")[0].partition("-")
        body = f"<?xml version='1.0'?>\n<Error><Code>{code}</Code><Message>m</Message></Error>".encode()
        if not code:
            status, body = "200", PHOTO
        self.send_response(int(status))
        self.send_header("ETag", '"e1"')
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def store_of_odd_answers() -> Iterator[None]:
    """Let the environment name a store of odd answers."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _OddStore)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    with pytest.MonkeyPatch.context() as environment:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            environment.delenv(name, raising=False)
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        environment.setenv("AWS_ACCESS_KEY_ID", "a")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "b")
        environment.setenv("AWS_REGION", "us-east-1")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        forget_s3_clients()
        yield
    server.shutdown()
    server.server_close()
    forget_s3_clients()


@pytest.fixture
def odd_store(store_of_odd_answers: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The environment of that store, to be changed by one test."""
    forget_s3_clients()
    yield monkeypatch
    monkeypatch.undo()
    forget_s3_clients()


def fetched(key: str) -> storage.Blob:
    row = dict.fromkeys(schema.MANIFEST.names) | {schema.URI: f"s3://bkt/{key}", schema.ETAG: "e1"}
    return Fetcher(HASTY, 1 << 20)(row)


@pytest.mark.usefixtures("store_of_odd_answers")
@pytest.mark.parametrize("folder", ["", "a//"], ids=["obstore", "boto3"])
@pytest.mark.parametrize(("status", "code", "expected"), _ODD)
def test_each_answer_gets_its_error_and_keeps_the_stores_own_code(
    folder: str, status: int, code: str, expected: ErrorCode
) -> None:
    with pytest.raises(PhotoError) as caught:
        fetched(f"{folder}{status}-{code}")
    assert caught.value.code == expected, caught.value.message
    assert code in caught.value.message


@pytest.mark.usefixtures("store_of_odd_answers")
def test_the_names_of_photos_are_not_taken_for_codes() -> None:
    with pytest.raises(PhotoError) as caught:
        fetched("<Code>NoSuchBucket</Code>/404-NoSuchKey")
    assert caught.value.code == ErrorCode.NOT_FOUND


def test_credentials_that_can_no_longer_be_had_pass(odd_store: pytest.MonkeyPatch, tmp_path: Path) -> None:
    granted, process = tmp_path / "granted", tmp_path / "credentials.sh"
    expires = (dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)).isoformat()
    process.write_text(
        f"#!/bin/sh\n[ -e {granted} ] || exit 3\n"
        f'echo \'{{"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "b", "SessionToken": "t",'
        f' "Expiration": "{expires}"}}\'\n'
    )
    process.chmod(0o755)
    (tmp_path / "config").write_text(f"[profile p]\ncredential_process = {process}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        odd_store.delenv(name)
    odd_store.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    odd_store.setenv("AWS_PROFILE", "p")
    granted.touch()
    assert fetched("photo").data == PHOTO
    granted.unlink()
    for profile, said in (("p", "Error when retrieving credentials"), ("none", "could not be found")):
        odd_store.setenv("AWS_PROFILE", profile)
        forget_s3_clients()
        with pytest.raises(PhotoError) as caught:
            fetched("photo")
        assert (caught.value.code, said in caught.value.message) == ("fetch_failed", True), caught.value.message


def test_credentials_that_fail_to_be_renewed_pass(odd_store: pytest.MonkeyPatch) -> None:
    """Within obstore, which asks boto3 again and again as long as it lives."""
    import botocore.credentials
    import botocore.exceptions

    def renewed(self: Any) -> Any:
        raise botocore.exceptions.CredentialRetrievalError(provider="sso", error_msg="the token has expired")

    odd_store.setattr(botocore.credentials.Credentials, "get_frozen_credentials", renewed)
    with pytest.raises(PhotoError) as caught:
        fetched("photo")
    assert (caught.value.code, "the token has expired" in caught.value.message) == ("fetch_failed", True)


def test_no_credentials_at_all_are_no_photos_fault_either(odd_store: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        odd_store.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        odd_store.setenv(name, str(tmp_path / "none"))
    with pytest.raises(NoCredentialsError), builtin_errors("s3://bkt/photo"):
        s3_options()
    with pytest.raises(PhotoError) as caught:
        fetched("photo")
    assert (caught.value.code, "no S3 credentials" in caught.value.message) == ("fetch_failed", True)
