"""The cache of compiled engines: each made once whoever asks, whole or made again."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model.engines import cache

MAKER = """
import sys, time
from pathlib import Path
from model.engines import cache

def make(folder):
    with open({log!r}, "a") as log:
        log.write("made\\n")
    Path({started!r}).touch()
    time.sleep({seconds})
    (folder / "plan").write_bytes(b"plan")

print(cache.entry(Path({cache_dir!r}), "e", {{"engine": "test"}}, make))
"""


def process(tmp_path: Path, seconds: float) -> subprocess.Popen[str]:
    """One of several processes that want the same entry, whose making takes so long."""
    code = MAKER.format(
        log=str(tmp_path / "log"),
        started=str(tmp_path / "started"),
        seconds=seconds,
        cache_dir=str(tmp_path / "cache"),
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def maker(content: bytes, made: list[bytes]) -> cache.Maker:
    def make(folder: Path) -> None:
        made.append(content)
        (folder / "plan").write_bytes(content)

    return make


def test_an_entry_is_made_once_and_says_what_it_is(tmp_path: Path) -> None:
    made: list[bytes] = []
    for content in (b"first", b"second"):
        folder = cache.entry(tmp_path, "name", {"engine": "test", "precision": "bf16"}, maker(content, made))
        assert folder == tmp_path / "name"
        assert (folder / "plan").read_bytes() == b"first"
    assert made == [b"first"]
    manifest = json.loads((folder / cache.MANIFEST_FILE).read_bytes())
    assert manifest["engine"] == "test"
    assert manifest["files"]["plan"]["bytes"] == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["name", "name.lock"]


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "manifest", "no manifest"])
def test_a_damaged_entry_is_made_again(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made: list[bytes] = []
    folder = cache.entry(tmp_path, "name", {}, maker(b"first", made))
    assert cache.damage(folder) is None
    if damage == "cut":
        (folder / "plan").write_bytes(b"firs")
    elif damage == "changed":
        (folder / "plan").write_bytes(b"First")
    elif damage == "gone":
        (folder / "plan").unlink()
    elif damage == "manifest":
        (folder / cache.MANIFEST_FILE).write_bytes(b"{")
    else:
        (folder / cache.MANIFEST_FILE).unlink()
    with caplog.at_level(logging.WARNING):
        assert (cache.entry(tmp_path, "name", {}, maker(b"second", made)) / "plan").read_bytes() == b"second"
    assert "making it again" in caplog.text
    assert made == [b"first", b"second"]


def test_a_failed_making_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "plan").write_bytes(b"half")
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cache.entry(tmp_path, "name", {}, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["name.lock"]
    made: list[bytes] = []
    assert (cache.entry(tmp_path, "name", {}, maker(b"whole", made)) / "plan").read_bytes() == b"whole"


def test_a_share_is_asked_first_and_not_for_what_does_not_work(tmp_path: Path) -> None:
    asked: list[str] = []
    made: list[bytes] = []

    def share(name: str, folder: Path, make: cache.Maker) -> None:
        asked.append(name)
        make(folder)
        assert cache.damage(folder) is None  # what it would put for others is whole, manifest and all

    cache.entry(tmp_path, "name", {}, maker(b"first", made), share)
    cache.entry(tmp_path, "name", {}, maker(b"second", made), share)
    assert (asked, made) == (["name"], [b"first"])
    folder = cache.entry(tmp_path, "name", {}, maker(b"third", made), share, remake=True)
    assert (folder / "plan").read_bytes() == b"third"
    assert asked == ["name"]


def test_a_pool_of_processes_makes_it_once(tmp_path: Path) -> None:
    pool = [process(tmp_path, seconds=0.5) for _ in range(3)]
    assert {one.communicate()[0].strip() for one in pool} == {str(tmp_path / "cache" / "e")}
    assert [one.returncode for one in pool] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "made\n"


def test_threads_wait_for_each_other_too(tmp_path: Path) -> None:
    made: list[bytes] = []
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: cache.entry(tmp_path, "name", {}, maker(b"x", made)), range(4)))
    assert made == [b"x"]


def test_a_maker_that_is_killed_is_followed(tmp_path: Path) -> None:
    first = process(tmp_path, seconds=600)
    while not (tmp_path / "started").exists():
        time.sleep(0.05)
        assert first.poll() is None
    second = process(tmp_path, seconds=0)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert second.communicate()[0].strip() == str(tmp_path / "cache" / "e")
    assert cache.damage(tmp_path / "cache" / "e") is None
    assert (tmp_path / "log").read_text() == "made\nmade\n"
