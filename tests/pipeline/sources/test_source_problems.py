"""One bad part of a source is a problem that is said, and everything else is listed; what is left out is not opened."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from pipeline import schema, storage
from pipeline.published.records import PublishedFile, RunRecord
from pipeline.run.plan import list_sources, make_plan
from pipeline.run.staging import Stage
from pipeline.sources import archives, manifest
from pipeline.sources.manifest import Listing, ListSettings, read_manifest
from tests.conftest import REPOSITORY
from tests.support.photo_rows import located_row, photos
from tests.support.planning import todo


def names(listing: Listing, folder: Path | str) -> list[str]:
    uris = [uri for batch in listing for uri in batch.column(schema.URI).to_pylist()]
    return sorted(uri.removeprefix(f"{folder}/") for uri in uris)


def put(folder: Path | str, *files: str) -> None:
    for name in files:
        storage.write_bytes(f"{folder}/{name}", name.encode())


def too_deep(folder: Path) -> str:
    """Make folders below `folder` until their path is longer than the system takes; return the first such."""
    before, path = os.getcwd(), str(folder)
    try:
        os.chdir(folder)
        while len(path) < 4096:
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
            path += "/" + "d" * 200
        with open("x.jpg", "w"):
            pass
    finally:
        os.chdir(before)
    return path


def test_a_folder_whose_name_is_too_long_is_a_problem_and_the_others_are_listed(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "z/b.jpg")
    deep = too_deep(tmp_path)
    listing = read_manifest(str(tmp_path))
    assert names(listing, tmp_path) == ["a.jpg", "z/b.jpg"]
    assert listing.search.problems == [schema.SourceProblem("folder", deep, "File name too long")]
    listing = read_manifest(str(tmp_path), exclude=["ddd*"])
    assert names(listing, tmp_path) == ["a.jpg", "z/b.jpg"]
    assert (listing.search.problems, listing.search.excluded_folders) == ([], 1)


def test_files_whose_names_are_too_long_are_one_problem_of_their_folder(tmp_path: Path) -> None:
    folder, before = str(tmp_path), os.getcwd()
    try:
        os.chdir(folder)
        while len(folder) < 3880:
            os.mkdir("d" * 100)
            os.chdir("d" * 100)
            folder += "/" + "d" * 100
        for name in ("a" * 250, "b" * 250, "c"):
            with open(name, "w"):
                pass
    finally:
        os.chdir(before)
    listing = read_manifest(str(tmp_path))
    assert names(listing, folder) == ["c"]
    (problem,) = listing.search.problems
    assert (problem.kind, problem.uri) == ("folder", folder)
    assert "for 2 of the names in it, such as " in problem.reason


def test_folders_may_be_deeper_than_python_goes(tmp_path: Path) -> None:
    before = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
        with open("x.jpg", "w"):
            pass
        os.chdir(before)
        assert names(read_manifest(str(tmp_path)), tmp_path) == ["d/" * 1200 + "x.jpg"]
    finally:
        os.chdir(before)
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # Python's own removal goes no deeper than it


LIST = """
import sys
from pipeline.sources.manifest import read_manifest
for options in ({}, {"exclude": ["lost+found", "/r--"]}):
    listing = read_manifest(sys.argv[1], **options)
    print(sum(batch.num_rows for batch in listing), sorted(each.uri for each in listing.search.problems))
try:
    list(read_manifest(sys.argv[1] + "/lost+found"))
except ValueError as error:
    print(error)
"""


def test_a_folder_that_may_not_be_listed_is_a_problem(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "lost+found/b.jpg", "r--/c.jpg", "r--/d.jpg")
    rights = ("-dac_override,-dac_read_search",) * 2
    as_user = ["setpriv", f"--bounding-set={rights[0]}", f"--inh-caps={rights[1]}"] if os.geteuid() == 0 else []
    if as_user and not shutil.which("setpriv"):
        pytest.skip("root may list everything, and there is no setpriv to give that up")
    for name, mode in (("lost+found", 0), ("r--", 0o444)):
        (tmp_path / name).chmod(mode)
    try:
        command = [*as_user, sys.executable, "-c", LIST, str(tmp_path)]
        said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout.splitlines()
    finally:
        for name in ("lost+found", "r--"):
            (tmp_path / name).chmod(0o755)
    assert said[0] == f"1 {[f'{tmp_path}/lost+found', f'{tmp_path}/r--']}"
    assert said[1] == "1 []"
    assert said[2].startswith(f"can't read --photos {tmp_path}/lost+found: ")


def test_photos_where_nobody_could_look_are_not_gone(tmp_path: Path) -> None:
    put(tmp_path, "photos/a.jpg")
    deep = too_deep(tmp_path / "photos")
    stage = Stage(str(tmp_path / "output"), "r1")
    rows = [f"{deep}/x.jpg", f"{tmp_path}/photos/away.jpg", f"{tmp_path}/photos/a.jpg"]
    published = Stage(str(tmp_path / "other"), "r0").put_rows(photos([located_row(uri, 1, 2) for uri in rows]))
    sources = (str(tmp_path / "photos"),)
    records = [RunRecord(run_id="r0", sources=sources, files=(PublishedFile(published),))]
    plan = make_plan(sources, stage, [published], "m-1", False, None, records=records)
    assert (plan.listed, plan.gone, plan.missing.unseen, plan.is_complete) == (1, 1, 1, False)


def tar(path: Path, *members: str, link: tuple[str, str] | None = None) -> None:
    with tarfile.open(path, "w") as archive:
        for name in members:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))
        if link is not None:
            info = tarfile.TarInfo(link[0])
            info.type, info.linkname = tarfile.LNKTYPE, link[1]
            archive.addfile(info)


def test_archives_that_can_not_be_opened_are_problems(tmp_path: Path) -> None:
    tar(tmp_path / "good.tar", "a.jpg")
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "nowhere.tar").symlink_to("missing")
    put(tmp_path, "folder.tar/readme.txt")
    (tmp_path / "empty.tar").touch()
    listing = read_manifest(f"{tmp_path}/*.tar")
    assert names(listing, tmp_path) == ["good.tar#a.jpg"]
    assert {problem.uri.rsplit("/", 1)[1] for problem in listing.search.problems} == {
        "pipe.tar",
        "nowhere.tar",
        "empty.tar",
    }
    listing = read_manifest(f"{tmp_path}/*.tar", exclude=["pipe.tar", "/nowhere.tar", "EMPTY.*"])
    assert names(listing, tmp_path) == ["good.tar#a.jpg"]
    assert (listing.search.problems, listing.search.excluded_folders) == ([], 3)


def test_include_can_name_archives(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", "1.jpg", "2.png")
    tar(tmp_path / "b.tar", "1.jpg")
    listing = read_manifest(f"{tmp_path}/*.tar", include=["a.tar"])
    assert names(listing, tmp_path) == ["a.tar#1.jpg", "a.tar#2.png"]
    assert listing.search.excluded_folders == 1
    assert names(read_manifest(f"{tmp_path}/*.tar", include=["a.tar", "*.jpg"]), tmp_path) == [
        "a.tar#1.jpg",
        "a.tar#2.png",
        "b.tar#1.jpg",
    ]


def test_a_store_that_fails_for_every_archive_ends_the_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(60):
        tar(tmp_path / f"{index:02d}.tar", "a.jpg")

    def fails(*_: object) -> bytes:
        raise OSError("the store is away")

    monkeypatch.setattr(storage, "read_range", fails)
    with pytest.raises(ValueError, match=r"can't read --photos .*the store is away"):
        names(read_manifest(f"{tmp_path}/*.tar"), tmp_path)


def test_an_archive_that_changes_while_it_is_listed_is_listed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar(tmp_path / "a.tar", "a.jpg")
    outdated = storage.head(f"{tmp_path}/a.tar")
    tar(tmp_path / "a.tar", "a.jpg", "b.jpg")
    contents = archives.look_into(outdated)
    assert (contents.members.num_rows, contents.problems) == (2, ())
    assert contents.container == storage.head(f"{tmp_path}/a.tar")
    monkeypatch.setattr(storage, "head", lambda uri: outdated)
    contents = archives.look_into(outdated)
    assert contents.members.num_rows == 0
    assert contents.problems == ("it changed while it was listed: is it being written?",)


def test_hard_links_in_a_tar_are_photos_with_their_targets_bytes(tmp_path: Path) -> None:
    for target in ("all/p0.jpg", "./all/p0.jpg"):
        tar(tmp_path / "x.tar", "all/p0.jpg", "all/p1.jpg", link=("best/summer.jpg", target))
        rows = {row[schema.URI]: row for batch in read_manifest(f"{tmp_path}/x.tar") for row in batch.to_pylist()}
        assert len(rows) == 3
        linked, original = (rows[f"{tmp_path}/x.tar#{name}"] for name in ("best/summer.jpg", "all/p0.jpg"))
        assert {name for name in linked if linked[name] != original[name]} == {schema.URI, schema.PHOTO_ID}
    tar(tmp_path / "x.tar", "all/p0.jpg", link=("best/summer.jpg", "elsewhere.jpg"))
    listing = read_manifest(f"{tmp_path}/x.tar")
    assert names(listing, tmp_path) == ["x.tar#all/p0.jpg"]
    assert "the hard link best/summer.jpg leads to elsewhere.jpg" in listing.search.problems[0].reason


def test_a_hard_link_to_what_is_no_photo_is_none_either(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
        for kind, name, target in ((tarfile.SYMTYPE, "to.jpg", "a.jpg"), (tarfile.LNKTYPE, "too.jpg", "to.jpg")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    listing = read_manifest(f"{tmp_path}/x.tar")
    assert names(listing, tmp_path) == ["x.tar#a.jpg"]
    assert listing.search.problems == []


@pytest.mark.parametrize(
    ("system", "members", "listed"),
    [
        (0, ["2019\\", "2019\\a.jpg", "2019\\thumbs\\a.jpg"], ["2019/a.jpg"]),
        (3, ["2019\\", "2019\\a.jpg", "thumbs\\a.jpg"], ["2019/a.jpg"]),
        (0, ["a/b\\c.jpg"], ["a/b/c.jpg"]),
        (3, ["a/b\\c.jpg", "d\\e.jpg"], ["a/b\\c.jpg", "d\\e.jpg"]),
    ],
)
def test_backslashes_of_zips_from_windows_stand_between_folders(
    tmp_path: Path, system: int, members: list[str], listed: list[str]
) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in members:
            info = zipfile.ZipInfo("x")
            info.filename = info.orig_filename = name
            info.create_system = system
            archive.writestr(info, b"" if name.endswith("\\") else b"1")
    listing = read_manifest(f"{tmp_path}/x.zip", exclude=["thumbs"])
    assert names(listing, tmp_path) == [f"x.zip#{name}" for name in listed]


def listed(sources: list[str], output: str, settings: ListSettings | None = None) -> list[str]:
    with list_sources(sources, output, settings or ListSettings()) as found:
        return sorted(uri for (uri,) in found.connection.sql("SELECT uri FROM listed").fetchall())


def test_an_output_reached_by_another_name_has_no_photos(tmp_path: Path) -> None:
    put(tmp_path, "photos/a.jpg", "photos/geotags/runs/r1.json", "photos/geotags-2024/b.jpg")
    (tmp_path / "link").symlink_to("photos")
    for output in ("link/geotags", "photos/geotags", "photos/../link/geotags"):
        source = str(tmp_path / "photos")
        assert listed([source], storage.absolute(f"{tmp_path}/{output}")) == [
            f"{source}/a.jpg",
            f"{source}/geotags-2024/b.jpg",
        ]
    assert listed([f"{tmp_path}/link"], f"{tmp_path}/photos/geotags") == [
        f"{tmp_path}/link/a.jpg",
        f"{tmp_path}/link/geotags-2024/b.jpg",
    ]


def test_an_output_that_holds_the_photos_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "photos/sub/a.jpg")
    tar(tmp_path / "photos" / "x.tar", "a.jpg")
    (tmp_path / "link").symlink_to("photos")
    for source, output in (
        ("photos/sub", "photos"),
        ("photos", "photos"),
        ("photos/", "link"),
        ("link", "photos"),
        ("photos/sub/a.jpg", "photos/sub"),
        ("photos/x.tar", "link"),
        ("photos/*.tar", "photos"),
        ("photos/s*/*.jpg", "photos"),
        ("photos/sub", ""),
    ):
        with pytest.raises(ValueError, match=r"holds the photos of --photos .*: give a folder beside or below them"):
            manifest.check_output([storage.absolute(f"{tmp_path}/{source}")], storage.absolute(f"{tmp_path}/{output}"))
    for output in ("photos/sub", "phot", "photos-2", "beside"):
        manifest.check_output([f"{tmp_path}/photos"], f"{tmp_path}/{output}")
    with pytest.raises(ValueError, match="holds the photos"):
        manifest.check_output(["s3://bucket/photos"], "s3://bucket")
    manifest.check_output(["s3://bucket/photos"], "s3://bucket/photos/geotags")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ListSettings(include=["jpg"]), r"leave out all 2 photos of /.*: write --include '\*\.jpg'"),
        (ListSettings(exclude=["*"]), r"leave out all 2 photos and 1 folders of "),
        (ListSettings(exclude=["*.jpg"]), r"leave out all 2 photos and 1 folders of "),
    ],
)
def test_a_listing_of_which_all_is_left_out_says_so(tmp_path: Path, settings: ListSettings, message: str) -> None:
    put(tmp_path, "a.jpg", "b.jpg")
    if settings.exclude:
        put(tmp_path, "sub.jpg/c.jpg")
    with pytest.raises(ValueError, match=message):
        listed([str(tmp_path)], "/nowhere", settings)


def test_photos_patterns_and_several_names(tmp_path: Path) -> None:
    put(tmp_path, "p0.jpg", "p1.JPG", "q.png", "2024-01/a.jpg", "2024-02/deep/a.jpg", "2025/a.jpg", "odd[1]/a.jpg")
    tar(tmp_path / "2024.tar", "m.jpg")
    for pattern, found in (
        ("p0.jpg", ["p0.jpg"]),
        ("*.jpg", ["p0.jpg", "p1.JPG"]),
        ("p?.jpg", ["p0.jpg", "p1.JPG"]),
        ("2024-*", ["2024-01/a.jpg", "2024-02/deep/a.jpg"]),
        ("2024-*/*.jpg", ["2024-01/a.jpg"]),
        ("**/a.jpg", ["2024-01/a.jpg", "2024-02/deep/a.jpg", "2025/a.jpg", "odd[1]/a.jpg"]),
        ("[pq]*.*g", ["p0.jpg", "p1.JPG", "q.png"]),
        ("odd[1]", ["odd[1]/a.jpg"]),
        ("20*.tar", ["2024.tar#m.jpg"]),
    ):
        assert names(read_manifest(f"{tmp_path}/{pattern}"), tmp_path) == found, pattern
    with pytest.raises(ValueError, match=r"no photos match .*/\*\.gif: check it, or name the folder"):
        names(read_manifest(f"{tmp_path}/*.gif"), tmp_path)
    with pytest.raises(ValueError, match="a pattern can't name manifests"):
        names(read_manifest(f"{tmp_path}/*.csv"), tmp_path)


@pytest.mark.parametrize("name", ["list.xlsx", "list.csv.zip", "list.yaml", "list.avro", "LIST.ORC"])
def test_a_list_of_another_kind_is_no_photo(tmp_path: Path, name: str) -> None:
    put(tmp_path, name)
    with pytest.raises(ValueError, match=r"is a list of a kind that can't be read: write Parquet, CSV"):
        names(read_manifest(f"{tmp_path}/{name}"), tmp_path)


def marked_folders(folder: str) -> None:
    put(folder, "open/(1).jpg", "open/p.jpg", "private/-.jpg", "private/.nomedia", "private/p.jpg", "private/sub/p.jpg")
    put(folder, "docs/.noimage", "docs/p.jpg", "docs-2/p.jpg")


def test_owners_marks_are_honoured_unless_told_otherwise(tmp_path: Path) -> None:
    marked_folders(str(tmp_path))
    storage.write_bytes(f"{tmp_path}/.ppignore", b"# mine\nscans/\n*.psd\n!keep.psd\n")
    put(tmp_path, "scans/p.jpg", "open/scans/p.jpg", "a.psd", "keep.psd", "open/b.psd")
    listing = read_manifest(str(tmp_path))
    assert names(listing, tmp_path) == ["docs-2/p.jpg", "keep.psd", "open/(1).jpg", "open/p.jpg"]
    assert (listing.search.marked, listing.search.marked_folders) == (2, 4)
    listing = read_manifest(str(tmp_path), honours_marks=False)
    assert len(names(listing, tmp_path)) == 12
    with pytest.raises(ValueError, match=r"an owner's mark .* leaves out all of .*--ignore-marks"):
        listed([f"{tmp_path}/docs"], "/nowhere")


def test_owners_marks_in_an_archive(tmp_path: Path) -> None:
    tar(tmp_path / "x.tar", "open/p.jpg", "private/-.jpg", "private/sub/p.jpg", "private/.nomedia", "private-2/p.jpg")
    listing = read_manifest(f"{tmp_path}/x.tar")
    assert names(listing, tmp_path) == ["x.tar#open/p.jpg", "x.tar#private-2/p.jpg"]
    assert (listing.search.marked, listing.search.marked_folders) == (2, 1)
    assert len(names(read_manifest(f"{tmp_path}/x.tar", honours_marks=False), tmp_path)) == 4


@pytest.mark.s3
def test_owners_marks_photos_and_patterns_on_s3(s3_bucket: str) -> None:
    folder = f"s3://{s3_bucket}/marks"
    marked_folders(folder)
    output = f"s3://{s3_bucket}/marks-output"
    open_photos = [f"{folder}/{name}" for name in ("docs-2/p.jpg", "open/(1).jpg", "open/p.jpg")]
    assert listed([folder], output) == open_photos
    assert len(listed([folder], output, ListSettings(honours_marks=False))) == 7
    plan = make_plan([folder], Stage(output, "r1"), [], "m-1", False, None)
    assert (todo(plan), plan.marked, plan.marked_folders) == (open_photos, 4, 2)
    assert listed([f"{folder}/open/p.jpg"], output) == [f"{folder}/open/p.jpg"]
    assert listed([f"{folder}/o*/*.jpg"], output) == open_photos[1:]
    with pytest.raises(ValueError, match="an owner's mark"):
        listed([f"{folder}/docs"], output)


def test_manifests_may_name_local_photos_only_below_their_own_folder_or_what_was_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "lists/in.jpg", "elsewhere/out.jpg")
    storage.write_bytes(f"{tmp_path}/lists/m.csv", f"uri\nin.jpg\n../elsewhere/out.jpg\n{tmp_path}/listsX/a\n".encode())
    source = f"{tmp_path}/lists/m.csv"
    assert len(listed([source], "/nowhere", ListSettings(photos_root=()))) == 3
    assert "2 photos can't be read; row 2" in caplog.text
    roots = manifest.local_roots([source], ())
    storage.write_bytes(f"{tmp_path}/lists/m.csv", b"uri\n../elsewhere/out.jpg\n")
    with pytest.raises(ValueError, match=r"m\.csv, row 1: .* name a folder above it with --photos-root"):
        listed([source], "/nowhere", ListSettings(photos_root=()))
    assert len(listed([source], "/nowhere", ListSettings(photos_root=[f"{tmp_path}/elsewhere"]))) == 1
    from pipeline.sources.roots import is_allowed

    for name, allowed in (
        (f"{tmp_path}/lists/in.jpg", True),
        (f"file://{tmp_path}/lists/caf%E9.jpg", True),
        (f"{tmp_path}/lists", False),
        (f"{tmp_path}/listsX/a", False),
        ("/etc/passwd", False),
        ("file:///etc/passwd", False),
        ("FILE:///etc/passwd", False),
        ("s3://bucket/a.jpg", True),
    ):
        assert is_allowed(name, roots) == allowed, name
    assert is_allowed("/p/a.jpg", manifest.local_roots(["/p"], ()))
    assert is_allowed("/p/a.jpg", manifest.local_roots(["/p/*.jpg"], ()))
    assert is_allowed("/p/a.jpg", manifest.local_roots(["/p/a.jpg"], ()))
    assert not is_allowed("/p/a.jpg.secret", manifest.local_roots(["/p/a.jpg"], ()))
