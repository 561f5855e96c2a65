"""Machines share compiled engines through a store: one compiles, the others take what it put there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model.engines import cache
from pipeline import storage
from pipeline.locate import engine_share
from pipeline.locate.engine_share import EngineShare
from pipeline.storage import lease
from pipeline.storage.lease import LeaseSettings


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "shared engines")
    else:
        yield f"s3://{request.getfixturevalue('s3_bucket')}/{tmp_path.name}/engines"


class Machine:
    """A machine with its own cache, which counts what it had to make."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.cache_dir, self.share, self.made = folder, EngineShare(uri), 0

    def plan(self, name: str = "tensorrt-x") -> bytes:
        def make(folder: Path) -> None:
            self.made += 1
            (folder / "engine.plan").write_bytes(b"plan of " + self.cache_dir.name.encode())

        return (cache.entry(self.cache_dir, name, {"engine": "test"}, make, self.share) / "engine.plan").read_bytes()


def test_the_second_machine_takes_what_the_first_has_made(uri: str, tmp_path: Path) -> None:
    one, other = Machine(tmp_path / "one", uri), Machine(tmp_path / "other", uri)
    assert one.plan() == other.plan() == other.plan() == b"plan of one"
    assert (one.made, other.made) == (1, 0)
    assert other.plan("tensorrt-y") == b"plan of other"
    names = {entry.uri.removeprefix(storage.canonical(uri)) for entry in storage.list_files(uri)}
    assert {f"/tensorrt-{x}/{file}" for x in "xy" for file in ("engine.plan", "manifest.json")} <= names


@pytest.mark.parametrize("damage", [b"plan of on", None])
def test_what_is_damaged_there_is_made_and_put_again(
    damage: bytes | None, uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Machine(tmp_path / "one", uri).plan()
    plan = storage.join(uri, "tensorrt-x", "engine.plan")
    if damage is None:
        storage.delete(plan)
    else:
        storage.write_bytes(plan, damage)
    with caplog.at_level(logging.WARNING):
        assert Machine(tmp_path / "other", uri).plan() == b"plan of other"
    assert "is damaged" in caplog.text
    assert Machine(tmp_path / "third", uri).plan() == b"plan of other"


def test_an_interrupted_put_is_no_entry(uri: str, tmp_path: Path) -> None:
    """The manifest is put last."""
    storage.write_bytes(storage.join(uri, "tensorrt-x", "engine.plan"), b"half a pl")
    assert Machine(tmp_path / "one", uri).plan() == b"plan of one"


def test_a_machine_that_is_second_waits(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_share, "_LOOK_AGAIN_S", 0.05)
    one, other = Machine(tmp_path / "one", uri), Machine(tmp_path / "other", uri)
    with ThreadPoolExecutor(1) as pool, caplog.at_level(logging.INFO):
        entry = storage.join(uri, "tensorrt-x")
        with lease.held(entry, "elsewhere", LeaseSettings()):
            waiting = pool.submit(other.plan)
            while "waiting for it" not in caplog.text:
                threading.Event().wait(0.02)
                assert not waiting.done()
            folder = tmp_path / "fresh"
            folder.mkdir()
            (folder / "engine.plan").write_bytes(b"plan of one")
            cache._seal(folder, {})
            one.share._put(entry, folder)
        assert waiting.result() == b"plan of one"
    assert other.made == 0
