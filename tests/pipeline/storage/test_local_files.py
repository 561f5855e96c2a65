"""Beside other people's files: nothing that lies under any name is followed, emptied, read as ours or taken away."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.storage import local_files
from pipeline.storage.store import LinkError

PRECIOUS = b"precious"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the user's elsewhere, which a stranger would like to have emptied, overwritten or copied."""
    file = tmp_path / "home" / "victim"
    file.parent.mkdir()
    file.write_bytes(PRECIOUS)
    return file


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


def put(uri: str) -> None:
    storage.write_bytes(uri, b"new")


def create(uri: str) -> None:
    storage.create_bytes(uri, b"new")


def replace(uri: str) -> None:
    storage.write_bytes(uri, b"old")
    storage.replace_bytes(uri, b"new", storage.read_version(uri).etag)


@pytest.mark.parametrize("write", [put, create, replace])
def test_links_with_the_names_of_helpers_are_not_followed(
    write: Callable[[str], None], shared: Path, victim: Path
) -> None:
    (shared / ".a.xmp.tmp").symlink_to(victim)
    if write is not replace:
        (shared / ".a.xmp.lock").symlink_to(victim)
    before = sorted(os.listdir(shared))
    write(f"{shared}/a.xmp")
    assert (shared / "a.xmp").read_bytes() == b"new"
    assert sorted(os.listdir(shared)) == sorted([*before, "a.xmp"])
    assert victim.read_bytes() == PRECIOUS


@pytest.mark.parametrize("what", ["link", "link to nothing", "file", "pipe", "folder"])
def test_what_is_no_lock_is_refused_and_stays(what: str, shared: Path, victim: Path) -> None:
    uri, lock = f"{shared}/a.xmp", shared / ".a.xmp.lock"
    storage.write_bytes(uri, b"old")
    version = storage.read_version(uri).etag
    match what:
        case "link":
            lock.symlink_to(victim)
        case "link to nothing":
            lock.symlink_to(victim.with_name("made"))
        case "file":
            os.link(victim, lock)
        case "pipe":
            os.mkfifo(lock)
        case "folder":
            lock.mkdir()
    before = os.lstat(lock)
    with pytest.raises(OSError, match=r"\.a\.xmp\.lock"):
        storage.replace_bytes(uri, b"new", version)
    assert os.lstat(lock) == before
    assert (victim.read_bytes(), os.listdir(victim.parent)) == (PRECIOUS, ["victim"])
    assert Path(uri).read_bytes() == b"old"


def test_a_link_is_replaced_by_a_put_and_never_read_to_be_replaced(shared: Path, victim: Path) -> None:
    (shared / "a.xmp").symlink_to(victim)
    with pytest.raises(LinkError, match="a link, which is not followed"):
        storage.read_version(f"{shared}/a.xmp")
    with pytest.raises(FileExistsError):
        storage.create_bytes(f"{shared}/a.xmp", b"new")
    storage.write_bytes(f"{shared}/a.xmp", b"new")
    assert not (shared / "a.xmp").is_symlink()
    assert victim.read_bytes() == PRECIOUS


def test_the_folder_that_was_opened_is_the_one_that_is_written_to(
    shared: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def swap_the_folder(descriptor: int) -> None:
        real(descriptor)
        shared.rename(shared.with_name("moved"))
        shared.symlink_to(victim.parent)

    monkeypatch.setattr(os, "fsync", swap_the_folder)
    storage.write_bytes(f"{shared}/a.xmp", b"new")
    assert os.listdir(victim.parent) == ["victim"]
    assert os.listdir(shared.with_name("moved")) == ["a.xmp"]


def test_a_name_as_long_as_a_file_system_takes_can_be_put(shared: Path) -> None:
    uri = f"{shared}/{'ü' * 127}x"
    storage.write_bytes(uri, b"new")
    assert storage.read_bytes(uri) == b"new"
    assert len(os.listdir(shared)) == 1


def test_what_killed_puts_left_goes_and_nothing_else_does(shared: Path) -> None:
    left = [f".a.{'0' * 32}.tmp", ".a.tmp"]
    others = ["a", f".b.{'0' * 32}.tmp", f".a.{'0' * 31}.tmp", ".a.lock.tmp"]
    for name in (*left, *others):
        (shared / name).write_bytes(b"")
    local_files.remove_temporaries(f"{shared}/a")
    assert sorted(os.listdir(shared)) == sorted(others)
    local_files.remove_temporaries(str(shared))
    assert sorted(os.listdir(shared)) == sorted([others[0], *others[2:]])


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///a%20b", "/a b"),
        ("file:/a%20b", "/a b"),
        ("file://localhost/a%20b", "/a b"),
        ("FILE://LocalHost/a b", "/a b"),
        ("file:///100%", "/100%"),
        ("file:////server/x", "//server/x"),
        ("/a%20b", "/a%20b"),
        ("file:a", None),
    ],
)
def test_a_file_uri_is_a_path_however_it_is_written(uri: str, path: str | None) -> None:
    assert storage.canonical(uri) == (path or f"{os.getcwd()}/{uri}")


@pytest.mark.parametrize("uri", ["file://server/a", "file://server", "file://a%20b/c", "file://127.0.0.1/a"])
def test_a_file_uri_of_another_machine_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=r"is a file of the machine .*: write file:///PATH"):
        storage.canonical(uri)


@pytest.mark.parametrize("uri", ["file://", "file://localhost"])
def test_a_file_uri_without_a_path_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="names no file: write file:///PATH"):
        storage.canonical(uri)
