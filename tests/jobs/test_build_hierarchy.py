from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from jobs.build_hierarchy import Settings, run
from model.world.hierarchy import Hierarchy
from training.hierarchy import PRESETS, build_hierarchy

LAT_DEG = np.linspace(-60, 60, 500)
LON_DEG = np.linspace(-170, 170, 500)


@pytest.mark.parametrize("names", [("lat", "lon"), ("LAT", "LON"), ("Latitude", "Longitude"), ("lat_deg", "lon_deg")])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_builds_what_partition_builds(
    names: tuple[str, str], suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pa.table({"note": ["x"] * 500, names[0]: LAT_DEG, names[1]: LON_DEG})
    manifest = tmp_path / f"photos with spaces.{suffix}"
    if suffix == "csv":
        pyarrow.csv.write_csv(table, manifest)
    else:
        pq.write_table(table, manifest)
    assert run(Settings(str(manifest), str(tmp_path / "out"), preset="hundreds")) == 0
    built = Hierarchy.load(tmp_path / "out")
    assert built.content_hash == build_hierarchy(LAT_DEG, LON_DEG, PRESETS["hundreds"]).content_hash
    printed = capsys.readouterr().out
    assert built.content_hash[:16] in printed
    assert "100.00%" in printed


def test_thresholds_can_be_given(tmp_path: Path) -> None:
    pq.write_table(pa.table({"lat": LAT_DEG, "lon": LON_DEG}), tmp_path / "p.parquet")
    run(Settings(str(tmp_path / "p.parquet"), str(tmp_path), tau_min=1, tau_max=(90, 30)))
    assert Hierarchy.load(tmp_path).provenance["tau_max"] == [90, 30]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        (b"", "neither|no rows|empty"),
        (b"PAR1 but then nothing", "readable Parquet"),
        (b"lat,lon\n", "no rows"),
        (b"a,b\n1,2\n", "has no column lat_deg"),
        (b"lat,lon\n1,2\nnorth,3\n", "not made of numbers"),
        (b"lat,lon\n1,2\n91,3\n", "row 2"),
        (b"lat,lon\n1,2\n,3\n", "row 2"),
        (b"lat,lon\n1,181\n5,3\n", "row 1"),
        (b"lat,lon\n1,2\n", "preset for fewer"),
    ],
)
def test_bad_tables_are_one_clear_error(content: bytes | None, message: str, tmp_path: Path) -> None:
    manifest = tmp_path / "photos.csv"
    if content is not None:
        manifest.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        run(Settings(str(manifest), str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_the_users_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"lat": LAT_DEG, "lon": LON_DEG}), tmp_path / "p.parquet")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write"):
        run(Settings(str(tmp_path / "p.parquet"), str(tmp_path / "file" / "below"), preset="hundreds"))
