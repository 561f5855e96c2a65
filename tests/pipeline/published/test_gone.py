"""A photo is gone where all sources that listed it were listed again without it; a disk that is away is no deletion."""

from __future__ import annotations

import csv
import datetime as dt
import io
import tarfile
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.answers.export import Selection, count
from pipeline.published import records
from pipeline.published.catalog import Catalog
from pipeline.report.gather import gather
from pipeline.run.retention import remove_replaced_runs
from pipeline.run.verify import verify_output
from pipeline.storage.lease import LeaseSettings
from tests.support.nights import Nights, put, remove


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    return Nights(str(tmp_path / "out"))


def manifest(path: Path, *photos: str) -> str:
    if path.suffix == ".txt":
        path.write_text("\n".join(photos))
        return str(path)
    if path.name.endswith(".parts.csv"):
        path.mkdir(exist_ok=True)
        manifest(path / "part-0.csv", *photos)
        return str(path)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["uri"], *([photo] for photo in photos)])
    return str(path)


def test_a_photo_is_gone_from_the_first_run_that_misses_it_until_it_is_listed_again(
    nights: Nights, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    put(folder, "a.jpg", "b.jpg", "c.jpg")
    nights.run(str(folder))
    assert (nights.gone(), nights.here()) == ({}, ["a.jpg", "b.jpg", "c.jpg"])
    remove(folder, "b.jpg")
    record = nights.run(str(folder))
    assert record.plan is not None
    assert record.plan.gone == 1
    assert record.gone is not None
    assert (nights.gone(), nights.here()) == ({"b.jpg": 2}, ["a.jpg", "c.jpg"])
    remove(folder, "c.jpg")
    put(folder, "d.jpg")
    nights.run(str(folder))
    assert nights.gone() == {"b.jpg": 2, "c.jpg": 3}
    assert nights.run(str(folder)).gone is None  # nothing is new: the list that there is counts
    assert nights.found[-1].count == 2
    put(folder, "b.jpg")
    nights.run(str(folder))
    assert nights.gone() == {"c.jpg": 3}
    assert verify_output(nights.output) == []


def test_readers_leave_out_what_is_gone_unless_asked(nights: Nights, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    put(folder, "a.jpg", "b.jpg", "c.jpg")
    nights.run(str(folder))
    remove(folder, "b.jpg")
    nights.run(str(folder))
    catalog = Catalog(nights.output)
    counted = count(catalog, Selection())
    assert (counted.taken, list(counted.left_out.values())) == (2, [1])
    assert "--with-gone" in next(iter(counted.left_out))
    assert count(catalog, Selection(with_gone=True)).taken == 3
    assert gather(catalog, nights.output).photos == 2
    assert gather(catalog, nights.output, with_gone=True).photos == 3


def test_another_source_or_narrower_patterns_make_nothing_gone(nights: Nights, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    put(one, "a.jpg", "b.jpg", "c.png")
    put(other, "x.jpg", "y.jpg")
    nights.run(str(one))
    nights.run(str(other))
    nights.run(str(one), include=["*.jpg"])
    nights.run(str(one), exclude=["a*"])
    assert nights.gone() == {}
    remove(one, "b.jpg")
    nights.run(str(other))
    assert nights.gone() == {}
    nights.run(str(one), exclude=["a*"])  # the runs before that have listed b.jpg had other patterns
    assert nights.gone() == {}
    nights.run(str(other), str(one))
    assert nights.gone() == {"b.jpg": 7}


def test_the_same_patterns_as_before_find_what_is_gone(nights: Nights, tmp_path: Path) -> None:
    put(tmp_path / "one", "a.jpg", "b.jpg", "c.png")
    nights.run(str(tmp_path / "one"), include=["*.jpg"])
    remove(tmp_path / "one", "b.jpg")
    nights.run(str(tmp_path / "one"), include=["*.jpg"])
    assert nights.gone() == {"b.jpg": 2}


def test_a_listing_that_was_not_complete_makes_nothing_gone_and_yet_brings_back(nights: Nights, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    put(folder, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    nights.run(str(folder))
    remove(folder, "b.jpg")
    nights.run(str(folder))
    remove(folder, "c.jpg")
    put(folder, "b.jpg")
    nights.run(str(folder), is_complete=False)
    assert nights.gone() == {}
    assert nights.found[-1].held_back == 1
    nights.run(str(folder))
    assert nights.gone() == {"c.jpg": 4}


def test_a_disk_that_is_not_mounted_is_no_deletion(
    nights: Nights, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "photos"
    put(folder, "a.jpg", "b.jpg", "c.jpg", *(f"disk/2024/{index}.jpg" for index in range(2)))
    nights.run(str(folder))
    remove(folder, "disk/2024/0.jpg", "disk/2024/1.jpg")
    (folder / "disk").mkdir()  # the mount point is still there, and empty
    record = nights.run(str(folder))
    assert nights.gone() == {}
    assert record.gone is None
    assert record.plan is not None
    assert (record.plan.gone, record.plan.held_back) == (0, 2)
    assert "remove the empty folders" in caplog.text
    assert str(folder / "disk") in caplog.text
    (folder / "disk").rmdir()
    nights.run(str(folder))
    assert nights.gone() == {"0.jpg": 3, "1.jpg": 3}


def test_a_source_of_which_most_is_missing_is_not_believed(
    nights: Nights, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside another source however large: below a disk that is away lies some stray file."""
    large, disk = tmp_path / "large", tmp_path / "disk"
    put(large, *(f"{index}.jpg" for index in range(20)))
    put(disk, "a.jpg", "b.jpg", "c.jpg")
    nights.run(str(large), str(disk))
    remove(disk, "a.jpg", "b.jpg", "c.jpg")
    put(disk, "not-mounted.txt")
    nights.run(str(large), str(disk))
    assert nights.gone() == {}
    assert nights.found[-1].held_back == 3
    assert "--max-gone-fraction 1" in caplog.text
    assert str(disk) in caplog.text
    nights.run(str(large), str(disk), max_gone_fraction=1)
    assert nights.gone() == {"a.jpg": 3, "b.jpg": 3, "c.jpg": 3}


def test_a_moved_folder_is_gone_under_its_old_name_however_much_it_is(nights: Nights, tmp_path: Path) -> None:
    """field/moved-folder: bytes that are there under another name were moved."""
    folder = tmp_path / "photos"
    put(folder, "Unsorted/p0.jpg", "Unsorted/p1.jpg", "Unsorted/p2.jpg")
    nights.run(str(folder))
    (folder / "Unsorted").rename(folder / "2019 Lisbon")
    (folder / "2019 Lisbon" / "p2.jpg").unlink()
    nights.run(str(folder))
    assert nights.gone() == {"p0.jpg": 2, "p1.jpg": 2, "p2.jpg": 2}
    here = Catalog(nights.output).rows("SELECT uri FROM photos_here ORDER BY uri").column(0).to_pylist()
    assert here == [f"{folder}/2019 Lisbon/p{index}.jpg" for index in range(2)]


def test_folders_above_and_below_of_the_source(nights: Nights, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    put(folder, "a.jpg", "below/b.jpg", "below/c.jpg", "below/d.jpg")
    nights.run(str(folder / "below"))
    nights.run(str(folder))
    remove(folder, "a.jpg", "below/b.jpg")
    nights.run(str(folder / "below"))
    assert nights.gone() == {"b.jpg": 3}  # of the folder above nothing else is known
    nights.run(str(folder), max_gone_fraction=0.4)
    assert nights.gone() == {"b.jpg": 3, "a.jpg": 4}


def test_members_of_archives_are_gone_by_their_archives_only(nights: Nights, tmp_path: Path) -> None:
    folder = tmp_path / "photos"

    def tar(name: str, *members: str) -> None:
        folder.mkdir(exist_ok=True)
        with tarfile.open(folder / name, "w") as file:
            for member in members:
                info = tarfile.TarInfo(member)
                info.size = 1
                file.addfile(info, io.BytesIO(b"x"))

    tar("one.tar", "a.jpg", "b.jpg")
    tar("two.tar", "c.jpg", "d.jpg")
    nights.run(f"{folder}/*.tar")
    nights.run(str(folder))  # lists the archives as files, and no members
    assert nights.gone() == {}
    tar("one.tar", "a.jpg")
    nights.run(f"{folder}/*.tar")
    assert nights.gone() == {"one.tar#b.jpg": 3}


@pytest.mark.parametrize("name", ["m.csv", "m.txt", "m.parts.csv"])
def test_what_a_manifest_names_is_gone_by_that_manifest_only(nights: Nights, tmp_path: Path, name: str) -> None:
    """The folder's listing follows no links; that it does not name what the manifest names says nothing."""
    folder = tmp_path / "photos"
    put(folder, "a.jpg", "b.jpg")
    put(tmp_path / "elsewhere", "c.jpg")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    listed = [f"{folder}/{name}" for name in ("a.jpg", "b.jpg", "link/c.jpg")]
    table = manifest(tmp_path / name, *listed)
    nights.run(table)
    nights.run(str(folder))
    assert nights.gone() == {}
    manifest(tmp_path / name, *listed[:2])
    nights.run(table)
    assert nights.gone() == {"c.jpg": 3}


def test_a_photo_that_two_sources_list_is_gone_when_neither_does(nights: Nights, tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    one = manifest(tmp_path / "one.csv", *(f"{tmp_path}/{name}.jpg" for name in "abc"))
    other = manifest(tmp_path / "other.csv", *(f"{tmp_path}/{name}.jpg" for name in "abc"))
    nights.run(one, other)
    manifest(tmp_path / "one.csv", *(f"{tmp_path}/{name}.jpg" for name in "ab"))
    nights.run(one)
    assert nights.gone() == {}
    nights.run(one, other)
    assert nights.gone() == {}
    manifest(tmp_path / "other.csv", *(f"{tmp_path}/{name}.jpg" for name in "ab"))
    nights.run(one, other)
    assert nights.gone() == {"c.jpg": 4}


def test_retention_keeps_the_list_that_counts_and_removes_the_others(nights: Nights, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    put(folder, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    nights.run(str(folder))
    for name in ("b.jpg", "c.jpg"):
        remove(folder, name)
        nights.run(str(folder))
    assert remove_replaced_runs(nights.output, dt.timedelta(0), LeaseSettings(), grace=dt.timedelta(0)) == ["r2"]
    assert [record.run_id for record in records.run_records(nights.output)] == ["r1", "r3"]
    lists = [entry.uri.rsplit("/", 1)[1] for entry in storage.list_files(f"{nights.output}/gone")]
    assert lists == ["e3.parquet"]
    assert nights.gone() == {"b.jpg": 2, "c.jpg": 3}
    assert verify_output(nights.output) == []


def test_verify_finds_a_list_that_is_damaged_or_that_nobody_names(nights: Nights, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    put(folder, "a.jpg", "b.jpg", "c.jpg")
    nights.run(str(folder))
    remove(folder, "b.jpg")
    nights.run(str(folder))
    storage.write_bytes(f"{nights.output}/gone/e1.parquet", b"stray")
    storage.write_bytes(f"{nights.output}/gone/e2.parquet", b"damaged")
    found = {problem.where: problem.what for problem in verify_output(nights.output)}
    assert found["gone/e1.parquet"].startswith("no run's record names it")
    assert found["gone/e2.parquet"] == "its bytes are not those that were written"


def test_the_nearest_folder_that_is_there_tells_whether_a_disk_may_be_away(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert storage.is_left_empty(f"{tmp_path}/empty/below/it")
    assert not storage.is_left_empty(f"{tmp_path}/none/below/it")
    for uri in ("", "/", "/no-such-folder/at-all", "s3://bucket/none"):
        assert not storage.is_left_empty(uri)


@pytest.mark.parametrize("pattern", ["*.jpg", "[a-z].jpg"])
def test_what_a_pattern_listed_is_gone_when_the_same_pattern_lists_it_no_more(
    nights: Nights, tmp_path: Path, pattern: str
) -> None:
    folder = tmp_path / "photos"
    put(folder, "a.jpg", "b.jpg", "c.jpg", "d.png")
    nights.run(f"{folder}/{pattern}")
    remove(folder, "b.jpg")
    nights.run(f"{folder}/?.jpg")
    assert nights.gone() == {}
    nights.run(f"{folder}/{pattern}")
    assert nights.gone() == {"b.jpg": 3}
