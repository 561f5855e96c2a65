"""A folder is renamed and a photo deleted between two runs: nothing is inferred again, and readers see what is there.

The case field/moved-folder, after reports to PhotoPrism and LibrePhotos.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.forget import ForgetSettings
from jobs.forget import run as forget
from pipeline import schema
from pipeline.published import records
from pipeline.published.catalog import Catalog
from pipeline.run.verify import verify_output
from tests.conftest import RayCluster
from tests.integration.test_geotag import geotag
from tests.support.bytes_below import traces
from tests.support.photo_samples import china_jpeg, flower_jpeg


@pytest.mark.ray
def test_a_renamed_folder_and_a_deleted_photo(anywhere: RayCluster, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "photos", str(tmp_path / "out")
    (folder / "Unsorted").mkdir(parents=True)
    for index, data in enumerate((china_jpeg(), flower_jpeg(), china_jpeg() + b"2")):
        (folder / "Unsorted" / f"p{index}.jpg").write_bytes(data)
    arguments = ("--photos", folder, "--output", output, "--model", tiny_checkpoint)
    first = geotag(anywhere.environment, *arguments)
    assert first.returncode == 0, first.stderr

    (folder / "Unsorted").rename(folder / "2019 Lisbon")
    (folder / "2019 Lisbon" / "p2.jpg").unlink()
    second = geotag(anywhere.environment, *arguments)
    assert second.returncode == 0, second.stderr
    assert "listed no more" in second.stdout
    newest = records.run_records(output)[-1]
    assert newest.counts.published == newest.counts.copies == 2  # both have their answer from the first run
    assert newest.plan is not None
    assert newest.plan.gone == 3

    catalog = Catalog(output)
    here = catalog.rows("SELECT uri, lat_deg, lon_deg FROM photos_here ORDER BY uri").to_pylist()
    assert [row[schema.URI] for row in here] == [f"{folder}/2019 Lisbon/p{index}.jpg" for index in range(2)]
    before = catalog.rows("SELECT lat_deg, lon_deg FROM photos WHERE uri LIKE '%Unsorted/p0.jpg'").to_pylist()
    assert before == [{name: here[0][name] for name in (schema.LAT_DEG, schema.LON_DEG)}]

    (folder / "2019 Lisbon" / "p1.jpg").unlink()
    third = geotag(anywhere.environment, *arguments)  # nothing is to do, and yet it is noted
    assert third.returncode == 0, third.stderr
    assert "Nothing to do: all 1 photos have their row" in third.stdout
    assert "4 more are listed no more" in third.stdout
    assert len(Catalog(output).rows("FROM photos_here")) == 1
    assert len(records.run_records(output)) == 3
    fourth = geotag(anywhere.environment, *arguments)
    assert fourth.returncode == 0, fourth.stderr
    assert len(records.run_records(output)) == 3  # nothing is new

    assert forget(ForgetSettings(output, where="gone_since IS NOT NULL", write=True)) == 0
    for name in ("Unsorted/p0.jpg", "2019 Lisbon/p1.jpg"):
        assert traces(output, f"{folder}/{name}", schema.photo_id(f"{folder}/{name}")) == []
    assert verify_output(output) == []
