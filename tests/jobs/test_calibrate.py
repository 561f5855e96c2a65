"""An archive whose cameras know better than its model how sure that should be, and the command that tells the model."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jobs import calibrate
from jobs.calibrate import Settings
from model.checkpoint import Checkpoint
from model.engines import load_engine
from model.geodecoder import GeoDecoder, tiny
from model.readout import Reading, ReadOut
from pipeline import schema, storage
from pipeline.decode.photo import DecodeTarget
from tests.pipeline.published.test_catalog import publish_run
from tests.support.photo_rows import located_row
from training.data.dataset import PhotoStore
from training.data.split import SplitConfig, fingerprint
from training.evaluate.evaluation import network_outputs
from training.hierarchy import PartitionConfig, build_hierarchy

PHOTOS, TOWNS = 240, 40
TRUE, TOO_SURE = 0.2, 4.0


@dataclasses.dataclass(frozen=True)
class Archive:
    """Photos of towns far apart, which are drawn from what a network says at the temperature TRUE."""

    photos: list[str]
    towns: list[tuple[float, float]]
    model: Path
    """The same network, TOO_SURE times too sure."""

    def rows(self, photos: int = PHOTOS) -> list[dict[str, Any]]:
        return [
            located_row(uri, 0, 0, **{schema.RECORDED_LAT_DEG: lat, schema.RECORDED_LON_DEG: lon})
            for uri, (lat, lon) in zip(self.photos[:photos], self.towns[:photos], strict=True)
        ]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    folder, random = tmp_path_factory.mktemp("archive"), np.random.default_rng(0)
    lat_deg_T, lon_deg_T = -45 + 10.0 * (np.arange(TOWNS) % 8) + 0.5, -150 + 60.0 * (np.arange(TOWNS) // 8) + 0.5
    hierarchy = build_hierarchy(lat_deg_T, lon_deg_T, PartitionConfig(tau_min=0, tau_max=(1,)))
    assert hierarchy.class_counts == (TOWNS,)
    names = []
    for number in range(PHOTOS):
        pixels = random.integers(0, 256, 3) + random.integers(-60, 61, (40, 40, 3))
        names.append(str(folder / f"{number}.png"))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(names[-1])
    torch.set_num_threads(1)  # on tensors this small a second thread costs more than it gives
    torch.manual_seed(0)
    model = GeoDecoder(tiny(), hierarchy.class_counts)
    target = DecodeTarget.of(model.config.preprocessing)
    logits_NK = torch.cat([o.logits[0] for *_, o in network_outputs(model, PhotoStore(names, target), range(PHOTOS))])
    # A network of random weights says nearly the same of all photos: what it says of each is made to tell.
    with torch.no_grad():
        scale = 1.0 / float(logits_NK.std(dim=0).mean())
        model.classifiers[0].weight.mul_(scale)
        model.classifiers[0].bias.copy_(scale * (model.classifiers[0].bias - logits_NK.mean(dim=0)))
    logits_NK = scale * (logits_NK - logits_NK.mean(dim=0))
    probability_NK = ReadOut(hierarchy, Reading((TRUE,))).log_probabilities((logits_NK,))[0].exp()
    town_N = probability_NK.multinomial(1, generator=torch.Generator().manual_seed(0))[:, 0].tolist()
    level = hierarchy.levels[0]
    towns = [(float(level.lat_deg_K[town]), float(level.lon_deg_K[town])) for town in town_N]
    parts = {"train": {"photos": 30, "fingerprint": fingerprint(f"{number}.png" for number in range(30))}}
    training = {"split": dataclasses.asdict(SplitConfig()), "parts": parts}
    Checkpoint.save(folder / "model", model, hierarchy, Reading((TRUE / TOO_SURE,)), training, "sure")
    lines = [f"{k}.png,{lat},{lon},{'train' if k < 30 else 'test'}" for k, (lat, lon) in enumerate(towns[:60])]
    (folder / "photos.csv").write_text("\n".join(["path,lat,lon,part", *lines]) + "\n")
    return Archive(names, towns, folder / "model")


@pytest.fixture
def publish(archive: Archive, tmp_path: Path) -> Callable[..., Settings]:
    """Publish rows as the too sure model's, and return how to calibrate it on them."""

    def published(rows: list[dict[str, Any]], precision: str = "street", **settings: Any) -> Settings:
        output = tmp_path / "geotags"
        publish_run(str(output), "r1", rows, precision=precision)
        record = json.loads((output / "runs" / "r1.json").read_text())
        model = Checkpoint.load(archive.model)
        record |= {"model_id": model.model_id, "model_uri": str(archive.model), "sources": ["/my photos"]}
        record["settings"]["point"] = "auto"
        (output / "runs" / "r1.json").write_text(json.dumps(record))
        return Settings(**{"output": str(output), "to": str(tmp_path / "to"), "by_folder": "never"} | settings)

    return published


def test_a_model_that_is_too_sure_gets_the_temperature_that_made_its_photos(
    archive: Archive, publish: Callable[..., Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = publish(archive.rows())
    assert calibrate.run(settings) == 0
    old, new = Checkpoint.load(archive.model), Checkpoint.load(Path(settings.to))
    assert new.reading.temperatures == pytest.approx((TRUE,), rel=0.25)
    assert new.reading.prior is None
    assert new.model_id != old.model_id
    assert new.weights_sha256 == old.weights_sha256
    assert new.training["parts"] == old.training["parts"]
    (found,) = new.training["calibrations"]
    assert (found["from"], found["photos"], found["left_out"]) == (old.model_id, PHOTOS, {})
    (level,) = found["levels"]
    assert level["photos_in_cells"] == PHOTOS
    assert level["nll"][1] < level["nll"][0] - 0.1
    assert level["calibration_error"][1] < level["calibration_error"][0] / 2
    before, after = found["radius_holds"]
    assert before["value"] < 0.8
    assert after["low"] < 0.9 < after["high"]
    out = capsys.readouterr().out
    assert f"0{TOWNS:>13}{PHOTOS:>15}" in out
    assert f"{TRUE / TOO_SURE:.3f} → {new.reading.temperatures[0]:.3f}" in out
    assert (
        f"python -m jobs.geotag_archive --photos '/my photos' --output {settings.output} --retag --model {settings.to}"
        in out
    )
    # It is what engines serve.
    pixels = np.random.default_rng(1).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    one, other = (load_engine("torch", model, precision="fp32")(pixels) for model in (old, new))
    assert (other.top_probability_BT[:, 0] < one.top_probability_BT[:, 0]).all()
    np.testing.assert_array_equal(one.top_index_BT[:, 0], other.top_index_BT[:, 0])


def test_what_is_as_true_as_it_can_be_is_left_alone_unless_told_otherwise(
    archive: Archive, publish: Callable[..., Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = publish(archive.rows())
    assert calibrate.run(settings) == 0
    again = dataclasses.replace(settings, model=settings.to, to=f"{settings.to}-again")
    assert calibrate.run(again) == 3
    assert "nothing was written" in capsys.readouterr().out
    assert not (Path(again.to) / "config.json").exists()
    assert calibrate.run(dataclasses.replace(again, anyway=True)) == 0
    new = Checkpoint.load(Path(again.to))
    assert new.model_id == Checkpoint.load(Path(settings.to)).model_id  # the same photos, the same temperatures
    assert len(new.training["calibrations"]) == 2
    with pytest.raises(ValueError, match=r"there is a model at .* already"):
        calibrate.run(settings)


def test_what_is_left_out_is_counted(
    archive: Archive, publish: Callable[..., Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained on, without a position, beyond the sample; and a photo in no cell is no label, but has a radius."""
    rows = archive.rows()
    rows[60] |= {schema.RECORDED_LAT_DEG: None, schema.RECORDED_LON_DEG: None}
    rows[61] |= {schema.RECORDED_LAT_DEG: 89.0, schema.RECORDED_LON_DEG: 0.0}
    settings = publish(rows, trained_on=str(archive.model.parent / "photos.csv"), sample=PHOTOS - 31 - 5)
    assert calibrate.run(settings) == 0
    (found,) = Checkpoint.load(Path(settings.to)).training["calibrations"]
    assert found["photos"] == PHOTOS - 31 - 5
    assert sorted(found["left_out"].values()) == [1, 5, 30]
    (level,) = found["levels"]
    assert level["photos_in_cells"] == PHOTOS - 31 - 5 - 1
    out = capsys.readouterr().out
    assert "       30  left out: the model was trained on it" in out
    assert f"        5  left out: not drawn (--sample {settings.sample}, --seed 0)" in out
    elsewhere = dataclasses.replace(settings, root="/elsewhere", to=f"{settings.to}2")
    with pytest.raises(ValueError, match=r"none of the 30 photos .* such as /elsewhere/0.png: give --root"):
        calibrate.run(elsewhere)
    other = archive.model.parent / "other.csv"
    other.write_text((archive.model.parent / "photos.csv").read_text().replace("train", "test", 1))
    with pytest.raises(ValueError, match=r"is not the table that sure-.* was trained with"):
        calibrate.run(dataclasses.replace(settings, trained_on=str(other), to=f"{settings.to}2"))


def test_the_point_is_where_the_archive_has_it(archive: Archive, publish: Callable[..., Settings]) -> None:
    settings = publish(archive.rows())
    path = Path(settings.output) / "runs" / "r1.json"
    record = json.loads(path.read_text())
    record["model_id"] += "+least-distance"
    record["settings"]["point"] = "least-distance"
    path.write_text(json.dumps(record))
    assert calibrate.run(settings) == 0
    new = Checkpoint.load(Path(settings.to))
    (found,) = new.training["calibrations"]
    assert found["from"] == record["model_id"]
    assert re.fullmatch(r"sure-[0-9a-f]{12}", new.model_id)


def test_photos_that_cannot_tell_are_refused(archive: Archive, publish: Callable[..., Settings]) -> None:
    few = publish(archive.rows(49))
    with pytest.raises(ValueError, match=r"49 photos of .* it takes 50, since with fewer"):
        calibrate.run(few)
    with pytest.raises(ValueError, match="--sample 20: give at least 50"):
        calibrate.run(dataclasses.replace(few, sample=20))
    with pytest.raises(ValueError, match="is a table"):
        calibrate.run(dataclasses.replace(few, output=str(archive.model.parent / "photos.csv")))
    assert not storage.exists(f"{few.to}/config.json")


def test_photos_in_no_cell_cannot_tell(archive: Archive, publish: Callable[..., Settings]) -> None:
    at_sea = {schema.RECORDED_LAT_DEG: 89.0, schema.RECORDED_LON_DEG: 0.0}
    outside = publish([*archive.rows(49), *(row | at_sea for row in archive.rows(99)[49:])])
    with pytest.raises(ValueError, match=r"^49 photos (.|\n)* 50  it lies in none of the model's cells"):
        calibrate.run(outside)


def test_one_folder_is_one_group(archive: Archive, publish: Callable[..., Settings]) -> None:
    with pytest.raises(ValueError, match=r"240 photos are 1 groups .*--by-folder never.*it takes 5"):
        calibrate.run(publish(archive.rows(), by_folder="always"))


def test_positions_that_were_coarsened_are_refused(archive: Archive, publish: Callable[..., Settings]) -> None:
    with pytest.raises(ValueError, match=r"^0 photos .*\n +240  its run kept coarse positions only \(--precision\)"):
        calibrate.run(publish(archive.rows(), precision="city"))


def test_another_model_must_be_named(archive: Archive, publish: Callable[..., Settings], tmp_path: Path) -> None:
    settings = publish(archive.rows())
    path = Path(settings.output) / "runs" / "r1.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"model_id": "sure-000000000000"}))
    with pytest.raises(ValueError, match=r"holds sure-\w+ now, not sure-000000000000, .*: give --model"):
        calibrate.run(settings)
    assert calibrate.run(dataclasses.replace(settings, model=str(archive.model))) == 0
    path.write_text(json.dumps({name: value for name, value in record.items() if name != "model_uri"}))
    with pytest.raises(ValueError, match="does not say where its model is: give --model"):
        calibrate.run(dataclasses.replace(settings, to=str(tmp_path / "other")))
