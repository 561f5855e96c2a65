"""Whatever a file or an object is called, it is listed, read and written as itself; errors are Python's own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError

from pipeline import storage
from pipeline.storage import clients
from pipeline.storage.clients import AskerRefusedError
from tests.conftest import forget_s3_clients

NAMES = [
    "a b.jpg",
    "ü ñ/ж.jpg",
    "100%.jpg",
    "a%20b.jpg",
    "x#1.jpg",
    "new\nline.jpg",
    "q?a=b&c.jpg",
    "[a]*.jpg",
    "日.jpg",
]
"""Names that both a file system and an object store take."""
S3_ONLY_NAMES = ["x//y.jpg", "x/../y.jpg", "x/./y.jpg", "/lead.jpg", "tab\t.jpg", "back\\slash.jpg", "\x7fdel.jpg"]
DEEP_NAMES = ["1/2/3/deep.jpg", ".hidden/.photo.jpg"]


@pytest.fixture
def prefix(s3_bucket: str, request: pytest.FixtureRequest) -> str:
    """A prefix of the bucket that is this test's own."""
    return f"s3://{s3_bucket}/{request.node.name}"


def put(uri: str, data: bytes) -> None:
    """Put an object by boto3, which changes no key."""
    bucket, key = uri.removeprefix("s3://").split("/", 1)
    try:
        boto3.Session().client("s3", region_name="us-east-1").put_object(Bucket=bucket, Key=key, Body=data)
    except ClientError:
        if "\n" not in key:
            raise
        pytest.skip("this S3 server takes no newline in a name (moto does not)")


class TestLocal:
    @pytest.mark.parametrize("name", [*NAMES, *DEEP_NAMES])
    def test_round_trip(self, tmp_path: Path, name: str) -> None:
        uri = storage.join(str(tmp_path), name)
        storage.write_bytes(uri, name.encode())
        (entry,) = storage.list_files(str(tmp_path))
        assert entry.uri == uri
        assert entry.size_bytes == len(name.encode())
        assert storage.exists(uri)
        blob = storage.read(entry.uri)
        assert (blob.data, blob.etag) == (name.encode(), entry.etag)
        storage.delete(uri)
        storage.delete(uri)  # already gone is no error
        assert not storage.exists(uri)

    def test_a_name_that_is_no_utf8_travels_as_a_file_uri(self, tmp_path: Path) -> None:
        path = os.path.join(os.fsencode(tmp_path), b"caf\xe9 #1%.jpg")
        with open(path, "wb") as file:
            file.write(b"x")
        (entry,) = storage.list_files(str(tmp_path))
        assert entry.uri == f"file://{tmp_path}/caf%E9%20%231%25.jpg"
        entry.uri.encode()  # can be stored
        assert storage.read(entry.uri).data == b"x"
        assert storage.exists(entry.uri)
        assert storage.absolute(entry.uri) == entry.uri

    def test_the_etag_changes_with_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_bytes(b"1")
        before = storage.read(str(path)).etag
        path.write_bytes(b"2")
        os.utime(path, ns=(1, 1))
        assert storage.read(str(path)).etag != before

    def test_listing_is_sorted_and_complete(self, tmp_path: Path) -> None:
        for name in ("b", "a/2", "a/1", "c"):
            storage.write_bytes(f"{tmp_path}/{name}", b"")
        listed = [entry.uri.removeprefix(f"{tmp_path}/") for entry in storage.list_files(str(tmp_path))]
        assert listed == ["b", "c", "a/1", "a/2"]
        assert list(storage.list_files(f"{tmp_path}/missing")) == []

    def test_links_to_nowhere_are_listed_and_links_to_folders_named(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
        (tmp_path / "itself").symlink_to("itself")
        (tmp_path / "up").symlink_to(tmp_path)
        listed = [entry.uri for entry in storage.list_files(str(tmp_path))]
        assert listed == [f"{tmp_path}/itself", f"{tmp_path}/nowhere"]
        assert f"{tmp_path}/up" in caplog.text
        for uri in listed:
            with pytest.raises(FileNotFoundError):
                storage.read(uri)

    @pytest.mark.parametrize("name", ["missing", "file/below", "n" * 300, "zero\0byte"])
    def test_what_can_not_be_there_is_not_found(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(FileNotFoundError):
            storage.read(f"{tmp_path}/{name}")

    @pytest.mark.timeout(10)
    def test_what_is_no_regular_file_is_refused_without_waiting(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "socket"))
        (tmp_path / "folder").mkdir()
        for name in ("pipe", "socket", "folder"):
            with pytest.raises(IsADirectoryError):
                storage.read(f"{tmp_path}/{name}")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_forbidden_file_is_a_permission_error(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(b"x")
        (tmp_path / "secret").chmod(0)
        with pytest.raises(PermissionError):
            storage.read(f"{tmp_path}/secret")

    def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        uri = f"{tmp_path}/a"
        storage.write_bytes(uri, b"old")

        def interrupted(handle: int) -> None:
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            storage.write_bytes(uri, b"new and longer")
        assert os.listdir(tmp_path) == ["a"]
        assert storage.read_bytes(uri) == b"old"

    def test_readers_never_see_half_of_a_write(self, tmp_path: Path) -> None:
        uri, versions = f"{tmp_path}/a", [bytes([i]) * 2_000_000 for i in range(20)]
        storage.write_bytes(uri, versions[0])
        writer = threading.Thread(target=lambda: [storage.write_bytes(uri, version) for version in versions])
        writer.start()
        while writer.is_alive():
            assert storage.read_bytes(uri) in versions
        writer.join()

    def test_files_get_the_rights_that_the_user_gives_files(self, tmp_path: Path) -> None:
        before = os.umask(0o077)
        try:
            storage.write_bytes(f"{tmp_path}/a", b"")
        finally:
            os.umask(before)
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600

    def test_delete_folder(self, tmp_path: Path) -> None:
        for name in ("gone/a", "gone/deep/er/b", "kept"):
            storage.write_bytes(f"{tmp_path}/{name}", b"")
        storage.delete_folder(f"{tmp_path}/gone")
        storage.delete_folder(f"{tmp_path}/missing")
        assert os.listdir(tmp_path) == ["kept"]

    def test_check_writable(self, tmp_path: Path) -> None:
        storage.check_writable(f"{tmp_path}/new/folder")
        assert list(storage.list_files(str(tmp_path))) == []
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(ValueError, match=r"can't write to .*file.* Give --output a folder"):
            storage.check_writable(f"{tmp_path}/file")

    def test_local_folder_is_the_folder_itself(self, tmp_path: Path) -> None:
        assert storage.local_folder(str(tmp_path)) == tmp_path


class TestNames:
    def test_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert storage.absolute("a/../b c/") == f"{tmp_path}/b c"
        assert storage.absolute("file:///a%20b/") == "/a b"
        assert storage.absolute("S3A://b/x//y/") == "s3://b/x//y"
        assert storage.absolute("s3://b/") == storage.absolute("s3://b") == "s3://b"

    @pytest.mark.parametrize("uri", ["s3://", "s3:///x", "s3:///", "http://host/x", "ftp://host"])
    def test_what_can_not_be_a_uri(self, uri: str) -> None:
        with pytest.raises(ValueError, match=r"bucket|use a local path or one of s3://"):
            storage.absolute(uri)

    def test_an_object_keeps_its_trailing_slash(self) -> None:
        assert storage.canonical("S3://b/x/") == "s3://b/x/"


@pytest.mark.s3
class TestS3:
    @pytest.mark.parametrize("name", [*NAMES, *DEEP_NAMES, *S3_ONLY_NAMES])
    def test_every_key_is_listed_and_read_as_itself(self, prefix: str, name: str) -> None:
        put(f"{prefix}/{name}", name.encode())
        (entry,) = storage.list_files(prefix)
        assert entry.uri == f"{prefix}/{name}"
        assert entry.size_bytes == len(name.encode())
        blob = storage.read(entry.uri)
        assert (blob.data, blob.etag) == (name.encode(), entry.etag)
        assert '"' not in entry.etag

    @pytest.mark.parametrize("name", [name for name in [*NAMES, *DEEP_NAMES] if "\n" not in name])
    def test_round_trip(self, prefix: str, name: str) -> None:
        uri = f"{prefix}/{name}"
        assert not storage.exists(uri)
        storage.write_bytes(uri, b"1")
        assert storage.exists(uri)
        assert [entry.uri for entry in storage.list_files(prefix)] == [uri]
        storage.delete(uri)
        storage.delete(uri)
        assert list(storage.list_files(prefix)) == []

    def test_a_prefix_is_a_folder_and_not_the_beginning_of_a_name(self, prefix: str) -> None:
        for name in ("in/a", "inner", "in/", "in/sub/"):
            put(f"{prefix}/{name}", b"" if name.endswith("/") else b"x")
        assert [entry.uri for entry in storage.list_files(f"{prefix}/in")] == [f"{prefix}/in/a"]

    def test_listing_goes_on_after_a_page(self, prefix: str) -> None:
        uris = [f"{prefix}/{index}" for index in range(5)]
        for uri in uris:
            storage.write_bytes(uri, b"")
        pages: list[str] = []

        def small_pages(params: dict[str, object], **_: object) -> None:
            params["MaxKeys"] = 2
            pages.append("page")

        clients.s3_client().meta.events.register("before-parameter-build.s3.ListObjectsV2", small_pages)
        try:
            assert [entry.uri for entry in storage.list_files(prefix)] == uris
        finally:
            forget_s3_clients()
        assert len(pages) == 3

    def test_delete_folder(self, prefix: str) -> None:
        for name in ("gone/a", "gone/deep/er/b", "kept"):
            storage.write_bytes(f"{prefix}/{name}", b"")
        storage.delete_folder(f"{prefix}/gone")
        assert [entry.uri for entry in storage.list_files(prefix)] == [f"{prefix}/kept"]

    @pytest.mark.parametrize("name", ["missing", "miss//ing", "k" * 1100, ""])
    def test_a_missing_object_is_not_found(self, s3_bucket: str, name: str) -> None:
        with pytest.raises(FileNotFoundError):
            storage.read(f"s3://{s3_bucket}/{name}")

    def test_a_missing_bucket_is_not_found(self, s3_server: str) -> None:
        with pytest.raises(FileNotFoundError):
            storage.read("s3://graticule-no-such-bucket/x")
        with pytest.raises(FileNotFoundError):
            list(storage.list_files("s3://graticule-no-such-bucket"))
        with pytest.raises(ValueError, match="can't write to s3://graticule-no-such-bucket/x: not found"):
            storage.check_writable("s3://graticule-no-such-bucket/x")

    @pytest.fixture
    def wrong_secret(self, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        put(f"{prefix}/a", b"x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        forget_s3_clients()
        try:
            storage.read(f"{prefix}/a")
        except OSError:
            yield
        else:
            pytest.skip("this S3 server takes every secret (moto does)")
        finally:
            monkeypatch.undo()
            forget_s3_clients()

    @pytest.mark.usefixtures("wrong_secret")
    def test_a_wrong_secret_is_told_in_the_words_of_the_store(self, prefix: str) -> None:
        for name in ("a", "a//b"):  # one for each client
            with pytest.raises(AskerRefusedError, match="SignatureDoesNotMatch"):
                storage.read(f"{prefix}/{name}")
        with pytest.raises(AskerRefusedError, match="SignatureDoesNotMatch"):
            list(storage.list_files(prefix))
        with pytest.raises(ValueError, match="SignatureDoesNotMatch"):
            storage.check_writable(prefix)

    def test_no_credentials_is_a_usage_error(self, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
        forget_s3_clients()
        try:
            with pytest.raises(ValueError, match="no S3 credentials: set AWS_ACCESS_KEY_ID"):
                storage.read(f"s3://{s3_bucket}/x")
            with pytest.raises(ValueError, match="no S3 credentials: set AWS_ACCESS_KEY_ID"):
                list(storage.list_files(f"s3://{s3_bucket}/x"))
        finally:
            monkeypatch.undo()
            forget_s3_clients()

    def test_a_server_that_is_down_is_an_os_error_and_no_denial(
        self, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(clients, "_MAX_RETRIES", 2)
        forget_s3_clients()
        try:
            for name in ("a", "a//b"):
                with pytest.raises(OSError, match=name) as caught:
                    storage.read(f"s3://{s3_bucket}/{name}")
                assert not isinstance(caught.value, FileNotFoundError | PermissionError)
        finally:
            monkeypatch.undo()
            forget_s3_clients()

    def test_local_folder_copies_once_a_version(
        self, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        for name, data in (("config.json", b"1"), ("sub/weights", b"2")):
            storage.write_bytes(f"{prefix}/{name}", data)
        first = storage.local_folder(prefix)
        assert (first / "config.json").read_bytes() + (first / "sub" / "weights").read_bytes() == b"12"
        (first / "config.json").touch()
        assert storage.local_folder(f"{prefix}/") == first
        storage.write_bytes(f"{prefix}/config.json", b"changed")
        second = storage.local_folder(prefix)
        assert second != first
        assert (second / "config.json").read_bytes() == b"changed"
        with pytest.raises(ValueError, match="nothing is at"):
            storage.local_folder(f"{prefix}/missing")

    def test_local_folder_writes_nothing_outside_the_cache(
        self, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        put(f"{prefix}/../../../../evil", b"x")
        with pytest.raises(ValueError, match=r"'\.\.'"):
            storage.local_folder(prefix)
        assert not list(tmp_path.rglob("evil"))


@pytest.mark.s3
def test_s3_conditional_puts_let_one_of_many_win(prefix: str) -> None:
    check_conditional_puts(prefix)


def test_local_conditional_puts_let_one_of_many_win(tmp_path: Path) -> None:
    check_conditional_puts(str(tmp_path))
    assert os.listdir(tmp_path) == []  # no lock is left behind


def check_conditional_puts(folder: str) -> None:
    uri = storage.join(folder, "lease.json")
    version = storage.create_bytes(uri, b"1")
    with pytest.raises(FileExistsError):
        storage.create_bytes(uri, b"2")
    assert storage.read_version(uri) == storage.Blob(b"1", version)
    newer = storage.replace_bytes(uri, b"3", version)
    with pytest.raises(storage.ChangedError):
        storage.replace_bytes(uri, b"4", version)
    assert storage.read_version(uri) == storage.Blob(b"3", newer)

    won = []

    def try_to_win(number: int) -> None:
        with contextlib.suppress(storage.ChangedError):
            storage.replace_bytes(uri, b"%d" % number, newer)
            won.append(number)

    threads = [threading.Thread(target=try_to_win, args=(number,)) for number in range(100, 110)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read(uri).data == b"%d" % won[0]
    storage.delete(uri)
    with pytest.raises(storage.ChangedError):
        storage.replace_bytes(uri, b"5", newer)


@pytest.mark.s3
def test_s3_parts_are_of_the_version_asked_for(prefix: str) -> None:
    check_parts(prefix)


def test_local_parts_are_of_the_version_asked_for(tmp_path: Path) -> None:
    check_parts(str(tmp_path))


def check_parts(folder: str) -> None:
    for name in ("a", "b .. c/../d" if folder.startswith("s3") else "b"):
        uri = storage.join(folder, name)
        if ".." in name:
            put(uri, b"0123456789")
        else:
            storage.write_bytes(uri, b"0123456789")
        etag = storage.read(uri).etag
        assert storage.read_range(uri, 2, 3, etag) == b"234"
        assert storage.read_range(uri, 8, 30) == b"89"
        with pytest.raises(storage.ChangedError):
            storage.read_range(uri, 2, 3, "another")
    assert storage.head(storage.join(folder, "a")) == next(
        e for e in storage.list_files(folder) if e.uri.endswith("/a")
    )
    with pytest.raises(FileNotFoundError):
        storage.head(storage.join(folder, "missing"))
