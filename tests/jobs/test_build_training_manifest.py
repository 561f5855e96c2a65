"""From an archive or a published table to a table that jobs.train reads, by the command that a user would type."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.build_training_manifest import MAP_ENDING, REPORT_ENDING, Settings, run
from pipeline import schema, storage
from pipeline.schema import ErrorCode
from tests.conftest import REPOSITORY, SHARED
from tests.pipeline.published.test_catalog import publish_run
from tests.support.photo_rows import failed_row, located_row
from training.data.labelled import PARTS, labelled_photos
from training.data.split import SplitConfig, fingerprint, split_photos

TRUTH = SHARED / "data" / "tables" / "truth"


def written(settings: Settings) -> tuple[pa.Table, dict[str, Any]]:
    assert run(settings) == 0
    table = pq.read_table(pa.BufferReader(storage.read_bytes(settings.output)))
    return table, json.loads(storage.read_bytes(settings.output + REPORT_ENDING))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A table in the layout of MP-16: 40 towns 2° apart with 5 photos each by a local, and some that can't be."""
    folder = tmp_path_factory.mktemp("mp16")
    lines = ["IMG_ID,AUTHOR,LAT,LON,S3_Label,S16_Label"]
    for town in range(40):
        for number in range(5):
            where = f"{35 + 2 * (town // 8)}.{number},{2 * (town % 8)}.5"
            lines.append(f"{town:02}/{number}.jpg,local {town},{where},{town % 3},{town % 16}")
    lines += [
        "bad/<b>.jpg,x,0,0,0,0",
        "bad/swapped.jpg,x,151.2,-33.9,0,0",
        "bad/pole.jpg,x,90,0,0,0",
        "00/0.jpg,x,36,0.5,0,0",
    ]
    (folder / "mp16.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "mp16.csv")


def test_a_published_table_becomes_parts_that_training_takes(
    published: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "photos.parquet")
    table, report = written(Settings(source=published, output=output, root="s3://bucket/images"))
    assert table.schema.equals(schema.TRAINING, check_metadata=True)
    assert table.num_rows == 199  # of 204: 00/0.jpg contradicts itself
    assert table[schema.URI][0].as_py() == "s3://bucket/images/00/1.jpg"
    assert table[schema.SCENE][0].as_py() == "shopping and dining"
    groups: dict[int, set[str]] = {}
    for group, part in zip(table[schema.GROUP].to_pylist(), table[schema.PART].to_pylist(), strict=True):
        groups.setdefault(group, set()).add(part)
    assert len(groups) == 40
    assert all(len(parts) == 1 for parts in groups.values())
    counts = table[schema.PART].value_counts().to_pylist()
    assert {row["values"]: row["counts"] for row in counts} == {part: report["parts"][part]["photos"] for part in PARTS}
    assert 30 <= report["parts"]["test"]["photos"] <= 40
    assert {reason: found["photos"] for reason, found in report["dropped"].items()} == {
        "swapped": 1,
        "null_island": 1,
        "on_pole": 1,
        "contradictory": 2,
    }
    assert report["dropped"]["swapped"]["examples"] == [
        {"row": 202, "name": "bad/swapped.jpg", "lat_deg": 151.2, "lon_deg": -33.9}
    ]
    assert report["photos"] == report["kept"] + sum(found["photos"] for found in report["dropped"].values()) == 204
    out = capsys.readouterr().out
    assert "such as row 202: 151.2, -33.9" in out
    assert f"test {report['parts']['test']['photos']:>25}"[-9:] in out

    # Training reads it, takes the parts as they are, and will record the fingerprints of the report.
    photos = labelled_photos(output)
    split = split_photos(photos, SplitConfig(seed=9))
    for part in PARTS:
        names = [photos.name_N[row] for row in split.rows(part)]
        assert fingerprint(names) == report["parts"][part]["fingerprint"]
        assert len(names) == report["parts"][part]["photos"]


def test_the_seed_and_the_scenes_are_the_users(published: str, tmp_path: Path) -> None:
    first, _ = written(Settings(source=published, output=str(tmp_path / "1.parquet")))
    again, _ = written(Settings(source=published, output=str(tmp_path / "2.parquet"), scenes="3"))
    other, _ = written(
        Settings(source=published, output=str(tmp_path / "3.parquet"), scenes="none", split=SplitConfig(seed=5))
    )
    assert first[schema.PART] == again[schema.PART] != other[schema.PART]
    assert again[schema.SCENE][:1].to_pylist() == ["indoor"]
    assert other[schema.SCENE].null_count == other.num_rows


def test_an_archive_keeps_folders_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "geotags")
    rows = []
    for folder in range(10):
        for number in range(6):
            exif = {
                schema.RECORDED_LAT_DEG: 40.0 + folder,
                schema.RECORDED_LON_DEG: 5.0 + 2 * number,
            }  # all in other places
            rows.append(located_row(f"/photos/{folder}/{number}.jpg", 0, 0, **exif))
    no_gps = {schema.RECORDED_LAT_DEG: None, schema.RECORDED_LON_DEG: None}
    rows += [located_row("/photos/0/no gps.jpg", 0, 0, **no_gps), failed_row("/photos/0/bad.jpg", ErrorCode.CORRUPT)]
    publish_run(output, "r1", rows)
    table, report = written(Settings(source=output, output=str(tmp_path / "photos.parquet")))
    assert {reason: found["photos"] for reason, found in report["dropped"].items()} == {
        "unreadable": 1,
        "missing_coordinates": 1,
    }
    assert table[schema.PHOTOGRAPHER].null_count == table.num_rows == 60
    assert table[schema.LAT_DEG].to_pylist()[0] == 40.0
    parts: dict[str, set[str]] = {}
    for uri, part in zip(table[schema.URI].to_pylist(), table[schema.PART].to_pylist(), strict=True):
        parts.setdefault(uri.rpartition("/")[0], set()).add(part)
    assert len(parts) == 10
    assert all(len(found) == 1 for found in parts.values())
    # In one folder, at a place where the last folder has a photo too.
    many_in_one = [located_row(f"/all/{n}.jpg", 0, 0, **exif) for n in range(70)]
    publish_run(output, "r2", many_in_one)
    written(Settings(source=output, output=str(tmp_path / "flat.parquet")))
    assert "one group has 76 of the 130 photos" in (out := capsys.readouterr().out)
    assert "--by-folder never" in out
    _, loose = written(Settings(source=output, output=str(tmp_path / "loose.parquet"), by_folder="never"))
    assert sum(found["groups"] for found in loose["parts"].values()) == 60
    assert "130 photos; " in capsys.readouterr().out


def test_cutting_is_offered_where_everything_hangs_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twenty photographers, each with photos at home and one in the next one's town."""
    lines = ["path,lat,lon,photographer"]
    for who in range(20):
        lines += [f"{who}-{number}.jpg,{40 + who % 5}.3,{3 * (who // 5)}.7,p{who}" for number in range(9)]
        lines.append(f"{who}-away.jpg,{40 + (who + 1) % 20 % 5}.3,{3 * ((who + 1) % 20 // 5)}.7,p{who}")
    (tmp_path / "photos.csv").write_text("\n".join(lines) + "\n")
    settings = {"source": str(tmp_path / "photos.csv"), "output": str(tmp_path / "photos.parquet")}
    _, kept = written(Settings(**settings))  # type: ignore[arg-type]
    assert kept["parts"]["train"]["photos"] == 200
    assert "one group has 200 of the 200 photos" in capsys.readouterr().out
    table, cut = written(Settings(**settings, links="cut"))  # type: ignore[arg-type]
    assert 0 < cut["left_out_as_links"] < 20
    assert table.num_rows == 200 - cut["left_out_as_links"]
    assert cut["parts"]["test"]["photos"] > 20
    who = {part: {row["photographer"] for row in table.to_pylist() if row["part"] == part} for part in PARTS}
    assert sum(map(len, who.values())) == len(set.union(*who.values()))
    assert "left out" in capsys.readouterr().out


@pytest.fixture(scope="module")
def coordinates(tmp_path_factory: pytest.TempPathFactory) -> str:
    """3,000 positions without names: most about Paris, some all over Europe and the Atlantic."""
    random = np.random.default_rng(0)
    crowd = np.stack([random.normal(48.86, 0.1, 2500), random.normal(2.35, 0.1, 2500)], axis=1)
    spread = np.stack([random.uniform(38, 60, 500), random.uniform(-20, 30, 500)], axis=1)
    path = tmp_path_factory.mktemp("even") / "it's <coordinates> & more.csv"
    path.write_text("LAT,LON\n" + "".join(f"{lat:.5f},{lon:.5f}\n" for lat, lon in np.concatenate([crowd, spread])))
    return str(path)


def test_an_even_test_set_is_drawn_and_measured(
    coordinates: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "even.parquet")
    table, report = written(Settings(source=coordinates, output=output, even=150))
    assert table.num_rows == 150
    assert set(table[schema.PART].to_pylist()) == {"test"}
    assert len(set(table[schema.URI].to_pylist())) == 150
    assert table[schema.URI][0].as_py().startswith(f"{coordinates}#")
    measured = report["evenness"]["measured"]
    before, drawn, best = (measured[name] for name in ("all photos", "150 drawn evenly", "150 at best"))
    assert before["covered"] < drawn["covered"] < best["covered"]
    assert drawn["fullest_share"] < before["fullest_share"]
    assert report["evenness"]["land_without_photos"] > 0.8
    picture = ElementTree.fromstring(Path(output + MAP_ENDING).read_text())
    texts = [text.text or "" for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "Before: all 3,000 photos" in texts
    assert "After: 150 drawn evenly" in texts
    assert "150 drawn evenly" in capsys.readouterr().out

    _, short = written(Settings(source=coordinates, output=output, even=2900))
    assert short["evenness"]["drawn"] < 2900
    assert f"only {short['evenness']['drawn']} of 2900 photos" in capsys.readouterr().out


def test_an_even_test_set_can_be_drawn_from_one_part(published: str, tmp_path: Path) -> None:
    whole = str(tmp_path / "photos.parquet")
    table, _ = written(Settings(source=published, output=whole))
    held_out = {row["uri"] for row in table.to_pylist() if row["part"] == "test"}
    drawn, _ = written(Settings(source=whole, output=str(tmp_path / "even.parquet"), even=20, part="test"))
    assert drawn.num_rows == 20
    assert set(drawn[schema.URI].to_pylist()) <= held_out
    assert drawn[schema.PHOTOGRAPHER].null_count == 0


@pytest.mark.parametrize(
    ("text", "changed", "message"),
    [
        ("LAT,LON\n1,1\n", {}, "does not name its photos"),
        ("path,lat,lon\na,0,0\nb,90,0\n", {}, "nothing is left of .*: 1 null_island, 1 on_pole"),
        ("path,lat,lon\na,1,1\n", {"part": "test"}, "give both or none"),
        ("path,lat,lon\na,1,1\n", {"even": -1}, "--even -1"),
        ("path,lat,lon\na,48,2\n", {"even": 1, "part": "test"}, "no photos of the part test"),
        ("path,lat,lon\na,30,-45\n", {"even": 1}, "no photo on land"),
        ("path,lat,lon,S16_Label\na,48,2,16\n", {}, "numbered 0 to 15"),
    ],
)
def test_what_can_not_be_used_is_refused(text: str, changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "photos.csv").write_text(text)
    output = tmp_path / "out" / "photos.parquet"
    with pytest.raises(ValueError, match=message):
        run(Settings(source=str(tmp_path / "photos.csv"), output=str(output), **changed))
    assert not output.exists()


def test_the_command_line(published: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.build_training_manifest", "--source"]
    done = subprocess.run(
        [*command, published, "--output", "photos.parquet", "--split.seed", "3", "--scenes", "none"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "204 photos in" in done.stdout
    assert (tmp_path / "photos.parquet").is_file()
    refused = subprocess.run(
        [*command, "none.csv", "--output", "photos.parquet"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "error: " in refused.stderr
    assert "neither a table nor an output of jobs.geotag_archive" in refused.stderr


@pytest.mark.s3
def test_everything_may_live_on_s3(published: str, s3_bucket: str) -> None:
    source, output = f"s3://{s3_bucket}/tables/mp16.csv", f"s3://{s3_bucket}/manifests/photos.parquet"
    storage.write_bytes(source, Path(published).read_bytes())
    table, report = written(Settings(source=source, output=output))
    assert table[schema.URI][0].as_py() == f"s3://{s3_bucket}/tables/00/1.jpg"
    _, even = written(Settings(source=output, output=f"s3://{s3_bucket}/manifests/even.parquet", even=30))
    assert even["evenness"]["drawn"] == 30
    assert storage.exists(f"s3://{s3_bucket}/manifests/even.parquet{MAP_ENDING}")
    assert report["kept"] == labelled_photos(output).lat_deg_N.size


@pytest.mark.skipif(not TRUTH.is_dir(), reason=f"the published tables are not at {TRUTH}")
def test_a_published_benchmark_goes_through(tmp_path: Path) -> None:
    source = str(TRUTH / "im2gps3k_places365.csv")
    table, report = written(Settings(source=source, output=str(tmp_path / "photos.parquet"), links="cut"))
    assert report["dropped"] == {}
    assert report["parts"]["test"]["photos"] > 0.03 * report["photos"]
    assert table[schema.PHOTOGRAPHER].null_count == 0
    _, even = written(Settings(source=source, output=str(tmp_path / "even.parquet"), even=300))
    measured = even["evenness"]["measured"]
    assert measured["300 drawn evenly"]["covered"] > 1.5 * measured["300 at random"]["covered"]
