"""The photos' disk goes away between listing and reading: nothing of that passes for an answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import storage
from pipeline.published.catalog import Catalog
from tests.conftest import RayCluster
from tests.integration.test_geotag import geotag
from tests.integration.test_watching import start
from tests.support.hosts import wait_until
from tests.support.photo_samples import china_jpeg, flower_jpeg


@pytest.mark.ray
def test_a_disk_that_is_away_for_a_minute_costs_no_answer(
    anywhere: RayCluster, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    photos, output = tmp_path / "photos", str(tmp_path / "output")
    for index in range(7):
        storage.write_bytes(f"{photos}/{index}.jpg", (china_jpeg() if index % 2 else flower_jpeg()) + b"%d" % index)
    arguments = ("--photos", photos, "--output", output, "--model", tiny_checkpoint)
    first = geotag(anywhere.environment, *arguments)
    assert first.returncode == 0, first.stderr

    def answers(output: str) -> list[tuple[object, ...]]:
        return sorted(Catalog(output).sql("SELECT uri, status, model_id FROM photos").fetchall())

    def records() -> list[str]:
        return [entry.uri for entry in storage.list_files(f"{output}/runs")]

    before, recorded = answers(output), records()
    assert {status for _, status, _ in before} <= {"located", "undecided"}

    again, log = (*arguments, "--retag", "--point", "least-distance"), tmp_path / "log"
    running = start(anywhere, log, *again)
    wait_until(lambda: "photos listed" in log.read_text(), "nothing is listed")
    photos.rename(tmp_path / "away")
    assert running.wait(200) == 1
    said = log.read_text()
    assert "the source went away: 7 of the last 7 photos could not be fetched (7 not_found), such as /" in said
    assert said.count("the source went away") == 1
    assert "Traceback" not in said
    assert (answers(output), records()) == (before, recorded)

    (tmp_path / "away").rename(photos)
    back = geotag(anywhere.environment, *again)
    assert back.returncode == 0, back.stderr
    assert "7 photos processed" in back.stdout
    after = answers(output)
    assert [row[:2] for row in after] == [row[:2] for row in before]
    assert {model_id for *_, model_id in after}.isdisjoint({model_id for *_, model_id in before})
