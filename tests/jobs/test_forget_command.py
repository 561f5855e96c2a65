"""jobs.forget as people call it: it says beforehand what it would remove, afterwards what it has, and exits truly."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jobs import geotag_archive, run_command
from jobs.forget import ForgetSettings, run
from jobs.graticule import commands
from pipeline import schema, storage
from pipeline.storage import lease
from tests.support.bytes_below import traces
from tests.support.photo_rows import located_row
from tests.support.published_rows import publish_rows


@pytest.fixture
def output(tmp_path: Path) -> str:
    publish_rows(str(tmp_path / "out"), [located_row(f"/photos/{name}.jpg", 10, 20) for name in "abc"])
    return str(tmp_path / "out")


def left(output: str, uri: str) -> list[str]:
    return traces(output, uri, schema.photo_id(uri))


def test_it_says_first_what_it_would_do(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    where = "uri = '/photos/a.jpg' -- a comment"
    assert run(ForgetSettings(output, where=where)) == 0
    said = capsys.readouterr().out
    assert "1 rows of 1 photos would be removed, from 1 runs" in said
    assert "Add --write to do it" in said
    assert left(output, "/photos/a.jpg")
    storage.write_bytes(f"{output}/report.html", b"/photos/a.jpg")
    assert run(ForgetSettings(output, where=where, write=True)) == 0
    said = capsys.readouterr().out
    assert "1 rows of 1 photos are removed, from 1 runs" in said
    assert "report.html" in said  # which is not ours
    assert left(output, "/photos/a.jpg") == ["report.html"]
    assert geotag_archive.run(geotag_archive.ArchiveSettings((), verify=output)) == 0
    assert run(ForgetSettings(output, where=where, write=True)) == 0
    assert "No photo of" in capsys.readouterr().out


def test_photos_without_a_row_are_forgotten_too(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.txt").write_text("/photos/b.jpg\n/photos/new.jpg\n")
    names = str(tmp_path / "names.txt")
    assert run(ForgetSettings(output, photos=names, write=True)) == 0
    assert "1  photos have no row" in capsys.readouterr().out
    assert run(ForgetSettings(output, photos=names, again=True)) == 0
    assert "dry run" in capsys.readouterr().out
    assert run(ForgetSettings(output, photos=names, again=True, write=True)) == 0
    assert "2 photos are forgotten no more" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say which photos"),
        (("--where", "true", "--photos", "x"), "say which photos"),
        (("--where", "nonsense = 1"), "DuckDB can't run this query"),
        (("--where", "true", "--again"), "name the photos by --photos"),
        (("--photos", "no-such-file"), "can't read --photos no-such-file"),
    ],
)
def test_what_can_not_be_meant_is_said(
    output: str,
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["forget", output, *arguments])
    with pytest.raises(SystemExit) as stopped:
        run_command(ForgetSettings, run)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_nothing_is_made_where_nothing_is_published(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing is published"):
        run(ForgetSettings(str(tmp_path / "none"), where="true", write=True))
    assert not (tmp_path / "none").exists()


def test_a_run_that_has_the_output_is_waited_for(output: str) -> None:
    with (
        lease.held(output, "r9", lease.LeaseSettings()),
        pytest.raises(lease.LeaseHeldError, match="wait until it has"),
    ):
        run(ForgetSettings(output, where="true", write=True))


def test_graticule_knows_the_command() -> None:
    assert commands()["forget"].startswith("Forget photos")
