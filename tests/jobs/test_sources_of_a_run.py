"""What a run says of its sources, and with which exit code: wrong ones leave nothing, bad parts of them are told."""

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import os
from pathlib import Path

import pytest
import tyro

from jobs import geotag_archive, nightly
from jobs.geotag_archive import ArchiveSettings
from jobs.nightly import NightlySettings
from pipeline import storage
from pipeline.published.records import PlanCounts, RunRecord
from tests.conftest import fresh_bucket, published_output
from tests.pipeline.sources.test_source_problems import too_deep


@pytest.fixture
def archive(tiny_checkpoint: Path, tmp_path: Path) -> ArchiveSettings:
    """Settings over an archive whose every photo is done, so that nothing here needs Ray."""
    published_output(tmp_path / "out", tiny_checkpoint)
    return ArchiveSettings((str(tmp_path / "out-photos"),), output=f"{tmp_path}/out", model=str(tiny_checkpoint))


def test_photos_takes_several_words_and_may_be_given_again() -> None:
    for words in (["--photos", "a", "b", "--output", "o", "--photos", "c"], ["--photos", "a", "b", "c"]):
        assert tyro.cli(ArchiveSettings, args=words).photos == ("a", "b", "c")
        assert tyro.cli(NightlySettings, args=words).archive.photos == ("a", "b", "c")


@pytest.mark.parametrize("what", ["missing", "excluded", "damaged", "row", "empty"])
def test_a_wrong_source_leaves_nothing_at_the_output(tiny_checkpoint: Path, tmp_path: Path, what: str) -> None:
    photos, output = tmp_path / "photos", tmp_path / "deep" / "out"
    storage.write_bytes(f"{photos}/a.jpg", b"1")
    storage.write_bytes(f"{photos}/x.tar", b"no archive" * 100)
    storage.write_bytes(f"{photos}/m.csv", b"name\n1\n")
    (photos / "empty").mkdir()
    source = {"missing": "missing", "excluded": "", "damaged": "x.tar", "row": "m.csv", "empty": "empty"}[what]
    settings = ArchiveSettings((f"{photos}/{source}",), output=str(output), model=str(tiny_checkpoint))
    with pytest.raises(ValueError, match="photos"):
        geotag_archive.run(dataclasses.replace(settings, include=("png",) if what == "excluded" else ()))
    with pytest.raises(ValueError, match="photos"):
        nightly.run(NightlySettings(dataclasses.replace(settings, include=("png",) if what == "excluded" else ())))
    assert not (tmp_path / "deep").exists()


def test_a_wrong_source_of_a_known_output_leaves_no_unfinished_run(archive: ArchiveSettings, tmp_path: Path) -> None:
    assert geotag_archive.run(archive) == 0
    before = sorted(entry.uri for entry in storage.list_files(archive.output))
    assert f"{archive.output}/lease.json" in before
    with pytest.raises(ValueError, match="no photos at"):
        geotag_archive.run(dataclasses.replace(archive, photos=(*archive.photos, f"{tmp_path}/missing")))
    assert sorted(entry.uri for entry in storage.list_files(archive.output)) == before


@pytest.mark.parametrize("job", ["geotag_archive", "nightly"])
def test_an_output_above_the_photos_is_refused_and_nothing_is_written(
    tiny_checkpoint: Path, tmp_path: Path, job: str
) -> None:
    storage.write_bytes(f"{tmp_path}/project/photos/a.jpg", b"1")
    (tmp_path / "link").symlink_to("project")
    for output in ("project", "project/photos", "link", ""):
        settings = ArchiveSettings(
            (f"{tmp_path}/project/photos",), output=f"{tmp_path}/{output}", model=str(tiny_checkpoint)
        )
        with pytest.raises(ValueError, match="holds the photos of --photos"):
            geotag_archive.run(settings) if job == "geotag_archive" else nightly.run(NightlySettings(settings))
    assert [entry.uri for entry in storage.list_files(f"{tmp_path}/project")] == [f"{tmp_path}/project/photos/a.jpg"]
    assert sorted(os.listdir(tmp_path)) == ["link", "project"]


@pytest.mark.s3
def test_wrong_sources_and_outputs_leave_nothing_on_s3(tiny_checkpoint: Path, s3_server: str) -> None:
    with fresh_bucket() as bucket:
        storage.write_bytes(f"s3://{bucket}/photos/a.jpg", b"1")
        for source, output, include in (
            ("photos", "", ()),
            ("photos", "photos/", ()),
            ("", "", ()),
            ("missing", "out", ()),
            ("photos", "out", ("png",)),
        ):
            settings = ArchiveSettings(
                (f"s3://{bucket}/{source}",),
                output=f"s3://{bucket}/{output}",
                model=str(tiny_checkpoint),
                include=include,
            )
            with pytest.raises(ValueError, match=r"holds the photos|no photos at|leave out all 1 photos"):
                geotag_archive.run(settings)
            with pytest.raises(ValueError, match="photos"):
                nightly.run(NightlySettings(settings))
        assert [entry.uri for entry in storage.list_files(f"s3://{bucket}")] == [f"s3://{bucket}/photos/a.jpg"]


def test_nothing_to_do_but_a_problem_is_said_and_ends_with_3(
    archive: ArchiveSettings, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert geotag_archive.run(archive) == 0
    assert f"Nothing to do: all 3 photos have their row at {archive.output}" in capsys.readouterr().out
    deep = too_deep(Path(archive.photos[0]))
    with caplog.at_level(logging.WARNING):
        assert geotag_archive.run(archive) == 3
    said = capsys.readouterr().out
    assert f"Nothing to do: 3 photos have their row at {archive.output}" in said
    assert f"Source problems: 1. All else was done; the next run looks at these again:\n    folder {deep}:" in said
    assert "source problems: 1; all but these" in caplog.text
    assert nightly.run(NightlySettings(archive, date="2026-01-01")) == 3
    assert "done, not all could be listed" in capsys.readouterr().out
    night = json.loads(storage.read_bytes(f"{archive.output}/nights/2026-01-01.json"))
    assert (night["exit_code"], night["source_problems"], night["gone"]) == (3, 1, 0)
    assert geotag_archive.run(dataclasses.replace(archive, exclude=("ddd*",))) == 0
    assert "left out by --include and --exclude: 1 folders or archives, unopened" in capsys.readouterr().out


def test_problems_alone_are_no_photos(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.tar", "b.tar"):
        storage.write_bytes(f"{tmp_path}/{name}", b"no archive" * 100)
    sources = (f"{tmp_path}/a.tar", f"{tmp_path}/b.tar")
    settings = ArchiveSettings(sources, output=f"{tmp_path}/out", model=str(tiny_checkpoint))
    assert geotag_archive.run(settings) == 3
    said = capsys.readouterr().out
    assert "Nothing to do: no photo could be listed." in said
    assert f"    archive {tmp_path}/a.tar: it seems damaged" in said


def test_a_run_with_problems_ends_with_3_whatever_its_photos_say() -> None:
    record = RunRecord(run_id="r1")
    assert geotag_archive.exit_code(record, PlanCounts(), 0.5) == 0
    assert geotag_archive.exit_code(record, PlanCounts(source_problems=2), 0.5) == 3


def test_file_uris_name_photos_and_outputs(
    archive: ArchiveSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = sorted(os.listdir(tmp_path))
    for photos, output in (("file:", "file://"), ("FILE://", "file:"), ("file://localhost", "file://LOCALHOST")):
        settings = dataclasses.replace(
            archive, photos=(f"{photos}{archive.photos[0]}",), output=f"{output}{archive.output}"
        )
        assert geotag_archive.run(settings) == 0
        assert f"Nothing to do: all 3 photos have their row at {archive.output}" in capsys.readouterr().out
    for changed in ({"photos": (f"file://server{archive.photos[0]}",)}, {"output": f"file://server{archive.output}"}):
        with pytest.raises(ValueError, match=r"is a file of the machine server: write file:///PATH"):
            geotag_archive.run(dataclasses.replace(archive, **changed))  # type: ignore[arg-type]
    assert sorted(os.listdir(tmp_path)) == here


@pytest.mark.parametrize("name", ["list.txt", "list.csv.gz", "list.jsonl", "list.tsv", "parts.csv"])
def test_a_list_of_any_kind_is_a_source_of_a_run(
    archive: ArchiveSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    names = [entry.uri for entry in storage.list_files(archive.photos[0])]
    text = "".join(f'{{"uri": "{each}"}}\n' if name.endswith("jsonl") else f"{each}\n" for each in names)
    data = text.encode() if name.endswith(("jsonl", "txt")) else f"uri\n{text}".encode()
    data = gzip.compress(data) if name.endswith("gz") else data
    storage.write_bytes(f"{tmp_path}/{name}/part-0.csv" if name == "parts.csv" else f"{tmp_path}/{name}", data)
    assert geotag_archive.run(dataclasses.replace(archive, photos=(f"{tmp_path}/{name}",))) == 0
    assert "Nothing to do: all 3 photos have their row" in capsys.readouterr().out
