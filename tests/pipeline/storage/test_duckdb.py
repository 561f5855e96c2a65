"""DuckDB is opened without the modules that list archives, and spills into a folder that only its user can read."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.storage.duckdb import connect, spill_folder
from tests.support.photo_rows import located_row
from tests.support.published_rows import publish_rows

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_query_loads_nothing_of_what_lists_an_archive() -> None:
    unneeded = {
        "pipeline.run.plan",
        "pipeline.run.publish",
        "pipeline.sources.archives",
        "pipeline.sources.manifest",
        "pipeline.storage.web",
    }
    assert all(importlib.util.find_spec(name) for name in unneeded), "a module that is not there is never loaded"
    code = f"import pipeline.published.catalog, sys; print(*sorted({unneeded} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_it_spills_into_a_folder_of_its_users_own(temporary: Path) -> None:
    before = os.umask(0)
    try:
        with connect() as connection:
            connection.execute("SET memory_limit = '40MB'; SET threads = 1")
            # Random text, which does not compress, of twice what fits into memory.
            connection.execute("CREATE TABLE rows AS SELECT md5(random()::VARCHAR) AS text FROM range(2_500_000)")
            (folder,) = temporary.iterdir()
            (own,) = folder.iterdir()
            assert list(own.iterdir()), "nothing was spilled"
            assert [path.stat().st_mode & 0o777 for path in (folder, own)] == [0o700, 0o700]
            assert connection.execute("SELECT count(text) FROM rows").fetchall() == [(2_500_000,)]
    finally:
        os.umask(before)
    assert spill_folder() == folder  # that of an earlier process is taken again


@pytest.mark.parametrize("what", ["a link", "open to others", "a file"])
def test_a_folder_that_others_have_made_is_refused(temporary: Path, tmp_path: Path, what: str) -> None:
    folder = spill_folder()
    folder.rmdir()
    if what == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    elif what == "open to others":
        folder.mkdir()
        folder.chmod(0o770)
    else:
        folder.touch(mode=0o600)
    with pytest.raises(ValueError, match=r"not a folder of this user's alone.*remove it, or name another"):
        connect()


def test_a_folder_of_somebody_else_is_refused(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    folder = spill_folder()
    stranger = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: stranger)
    folder.rename(temporary / f"graticule-duckdb-{stranger}")
    with pytest.raises(ValueError, match="not a folder of this user's alone"):
        connect()


def test_no_query_reads_what_another_has_spilled(tmp_path: Path, temporary: Path) -> None:
    output = str(tmp_path / "output")
    catalog = publish_rows(output, [located_row("/photos/a.jpg", 48.0, 2.0)])
    with connect() as other:
        other.execute("SET memory_limit = '40MB'; SET threads = 1")
        other.execute("CREATE TABLE rows AS SELECT md5(random()::VARCHAR) AS text FROM range(2_500_000)")
        spilled = [path for path in temporary.rglob("duckdb_temp_*") if path.is_file()]
        assert spilled
        for file in spilled:
            with pytest.raises(ValueError, match="file system operations are disabled"):
                catalog.rows(f"SELECT size FROM read_blob('{file}')")
        with pytest.raises(ValueError, match="file system operations are disabled"):
            catalog.rows(f"FROM glob('{spill_folder()}/*/*')")


def test_what_killed_processes_spilled_is_removed_and_nothing_else(temporary: Path) -> None:
    code = (
        "import os, signal, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from pipeline.storage.duckdb import connect\n"
        "kept = connect(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(temporary)], cwd=REPOSITORY, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = spill_folder().iterdir()
    first, second = connect(), connect()
    of_both = set(spill_folder().iterdir())
    assert len(of_both) == 2
    assert left not in of_both
    first.close()
    del first
    gc.collect()
    assert len(set(spill_folder().iterdir()) & of_both) == 1
    second.close()
